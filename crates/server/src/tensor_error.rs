//! Why a tensor, or a declaration of one, makes no sense.

/// A tensor, or a declaration of one, that makes no sense; the message says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TensorError(pub String);
