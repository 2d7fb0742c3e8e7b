//! [`Peer`]: a queue that clients ask; [`Kind`]: which ones there are.

use std::future::Future;

use crate::{AmateEngine, BatchedFnMacro, CrossbeamLoop, Lane, TokioLoop, TowerBatch, Work};

/// A queue, running.
pub trait Peer: Sized + Send + Sync + 'static {
    /// What one client asks through.
    type Client: Client;

    /// Starts it for this many clients.
    fn start(work: Work, clients: usize) -> Self;

    /// A client of it.
    fn client(&self) -> Self::Client;
}

/// One client's end of a queue.
pub trait Client: Send + 'static {
    /// Asks and blocks until the answer is there.
    fn ask(&mut self, value: u64) -> u64;

    /// Asks and waits without blocking the thread.
    fn infer(&mut self, value: u64) -> impl Future<Output = u64> + Send;
}

/// A client whose queue is not known at compile time.
pub trait BoxedClient: Send {
    /// As [`Client::ask`].
    fn ask(&mut self, value: u64) -> u64;
}

impl<C: Client> BoxedClient for C {
    fn ask(&mut self, value: u64) -> u64 {
        Client::ask(self, value)
    }
}

/// Does something with a queue of any kind.
pub trait PeerVisitor {
    /// What comes of it.
    type Output;

    /// Does it with queues of kind `P`.
    fn visit<P: Peer>(self) -> Self::Output;
}

/// The queues that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// onelane's `BatchQueue`.
    Onelane,
    /// A hand-written greedy loop over `crossbeam-channel`, answers by `oneshot`.
    Crossbeam,
    /// A hand-written greedy loop over tokio's `mpsc`, answers by its `oneshot`.
    Tokio,
    /// `amate`.
    Amate,
    /// `batched-fn`.
    BatchedFn,
    /// `tower-batch-control`.
    TowerBatch,
}

impl Kind {
    /// All of them, onelane first.
    pub const ALL: [Self; 6] = [
        Self::Onelane,
        Self::Crossbeam,
        Self::Tokio,
        Self::Amate,
        Self::BatchedFn,
        Self::TowerBatch,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Onelane => "onelane",
            Self::Crossbeam => "crossbeam",
            Self::Tokio => "tokio",
            Self::Amate => "amate",
            Self::BatchedFn => "batched-fn",
            Self::TowerBatch => "tower-batch-control",
        }
    }

    /// Does something with queues of this kind.
    pub fn visit<V: PeerVisitor>(self, visitor: V) -> V::Output {
        match self {
            Self::Onelane => visitor.visit::<Lane>(),
            Self::Crossbeam => visitor.visit::<CrossbeamLoop>(),
            Self::Tokio => visitor.visit::<TokioLoop>(),
            Self::Amate => visitor.visit::<AmateEngine>(),
            Self::BatchedFn => visitor.visit::<BatchedFnMacro>(),
            Self::TowerBatch => visitor.visit::<TowerBatch>(),
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("unknown queue {text:?}: use {names}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct AnswersAll;

    impl PeerVisitor for AnswersAll {
        type Output = ();

        fn visit<P: Peer>(self) {
            let peer = P::start(Work::default(), 8);
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let mut client = peer.client();
                    scope.spawn(move || {
                        for i in 0..50 {
                            let value = thread * 1000 + i;
                            assert_eq!(Client::ask(&mut client, value), value);
                            let later = client.infer(value + 500);
                            assert_eq!(futures_executor::block_on(later), value + 500);
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn every_queue_gives_every_client_its_own_answers() {
        for kind in Kind::ALL {
            kind.visit(AnswersAll);
        }
    }

    #[test]
    fn names_are_parsed() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("rayon".parse::<Kind>().unwrap_err().contains("use onelane, crossbeam"));
    }
}
