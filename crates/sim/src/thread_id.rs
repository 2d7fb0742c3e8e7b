//! [`ThreadId`]: the number by which everything knows a simulated thread.

/// A simulated thread's number, in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ThreadId(pub(crate) u32);
