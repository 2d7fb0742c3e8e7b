//! What the model predicts for a Mac, so that anybody with one can refute it. See
//! `docs/simulated-device.md` for how to check each.

use super::cell::Cell;
use super::crash::{Crash, CrashTrial};
use super::front::Front;
use super::trial::Trial;
use super::workload::{Row, Workload};
use crate::error::SimError;
use crate::models::Packing;
use crate::profile::Profile;

/// A prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Prediction {
    /// The fork: the minimal race passes all, when the projection is kept alive until after the
    /// attention.
    KeepProjection,
    /// The fork: the minimal race passes all at width 128, where the projection is below 1 MiB.
    Width128,
    /// 2.15 with a `torch.mps.Stream` per thread: everything passes.
    UserStreams,
    /// Stock 2.14 aborts with two threads that call `arange`; 2.15 does not.
    Arange,
    /// The fork: `nn.MultiheadAttention` with patch 035 fails for some, when its threads loop without
    /// meeting after each iteration.
    Patch035InLoops,
}

impl Prediction {
    /// All predictions.
    pub const ALL: [Prediction; 5] = [
        Prediction::KeepProjection,
        Prediction::Width128,
        Prediction::UserStreams,
        Prediction::Arange,
        Prediction::Patch035InLoops,
    ];

    /// Whether the simulated device bears it out, for the trial's seed.
    pub fn holds(self, trial: &Trial) -> bool {
        let fork = trial.clone().profile(Profile::fork_2_9_1());
        let race = Workload::new(Row::RaceWithContiguous);
        match self {
            Prediction::KeepProjection => passes(&fork, race.keep_projection()),
            Prediction::Width128 => passes(&fork, race.width(128)),
            Prediction::UserStreams => {
                let streams = trial.clone().profile(Profile::user_streams_2_15());
                let rows = [Row::RaceWithContiguous, Row::Attention, Row::TransformerBlock];
                rows.iter().all(|row| passes(&streams, Workload::new(*row)))
            }
            Prediction::Arange => {
                let run = |profile| CrashTrial::new(profile).seed(trial.seed).run(Crash::Arange);
                matches!(run(Profile::upstream_2_14()), Err(SimError::Aborted(_)))
                    && run(Profile::upstream_2_15()).is_ok_and(|rounds| rounds.wrong == 0)
            }
            Prediction::Patch035InLoops => {
                let cell = patched_in_loops(&fork);
                cell.ended_by.is_none() && !cell.passes()
            }
        }
    }
}

fn passes(trial: &Trial, workload: Workload) -> bool {
    trial.run(workload, Front::Threads).passes()
}

fn patched_in_loops(trial: &Trial) -> Cell {
    let patched = Workload::new(Row::Attention).packing(Packing::Chunked);
    trial.run(patched, Front::Loop)
}
