//! [`Kind`]: the queues that are compared.

use super::amate_engine::AmateEngine;
use super::batched_fn_macro::BatchedFnMacro;
use super::crossbeam_loop::CrossbeamLoop;
use super::lane::Lane;
use super::peer::PeerVisitor;
use super::tokio_loop::TokioLoop;
use super::tower_batch::TowerBatch;

/// A queue by its name.
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
    use std::time::Duration;

    use super::super::closed_loop::{tasks, threads};
    use super::super::peer::Peer;
    use super::*;
    use crate::generator::Limit;

    struct AnswersAll;

    impl PeerVisitor for AnswersAll {
        type Output = [u64; 2];

        fn visit<P: Peer>(self) -> [u64; 2] {
            let limit = Limit::Requests(400);
            [threads::<P>(8, limit), tasks::<P>(8, 2, limit)].map(|closed| closed.answered)
        }
    }

    /// A wrong answer would panic.
    #[test]
    fn every_queue_gives_every_client_its_own_answers() {
        let (done, waiting) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for kind in Kind::ALL {
                assert_eq!(kind.visit(AnswersAll), [400, 400], "{}", kind.name());
            }
            let _ = done.send(());
        });
        waiting.recv_timeout(Duration::from_secs(60)).expect("no answer is wrong or never comes");
    }

    #[test]
    fn names_are_parsed() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("rayon".parse::<Kind>().unwrap_err().contains("use onelane, crossbeam"));
    }
}
