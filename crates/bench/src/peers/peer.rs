//! [`Peer`]: a queue beside others.

use super::work::Work;
use crate::generator::{AsyncClient, Target};

/// A queue of numbers, running, that gives each back.
pub trait Peer: Target<Client: AsyncClient<Reply = u64>> + Sized {
    /// Starts it for this many clients.
    fn start(work: Work, clients: usize) -> Self;
}

/// Does something with a queue of any kind.
pub trait PeerVisitor {
    /// What comes of it.
    type Output;

    /// Does it with queues of kind `P`.
    fn visit<P: Peer>(self) -> Self::Output;
}
