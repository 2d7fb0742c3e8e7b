//! [`Trial`]: the conditions under which a workload is run.

use super::samples::Samples;
use crate::memo::Memo;
use crate::profile::Profile;
use crate::schedule::Schedule;

/// The conditions of a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trial {
    /// The rules of the device.
    pub profile: Profile,
    /// The seed of the schedule.
    pub seed: u64,
    /// How the next thread is chosen.
    pub schedule: Schedule,
    /// Threads that run at once.
    pub threads: usize,
    /// Iterations; each starts its threads anew.
    pub iterations: usize,
    /// The largest absolute difference that passes.
    pub tolerance: f32,
    /// Whether a thread may begin before the others have been started.
    pub staggered: bool,
    /// Whether events are recorded.
    pub traced: bool,
    /// Results of pure commands, shared by runs.
    pub memo: Memo,
    /// Weights, inputs and expected results, shared by runs.
    pub samples: Samples,
}

/// Bytes of results that trials keep for each other: about what the whole table needs.
const MEMO_BYTES: usize = 768 << 20;

impl Trial {
    /// 8 threads, 30 iterations, tolerance 1e-3, random schedule of seed 0.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            seed: 0,
            schedule: Schedule::Random,
            threads: 8,
            iterations: 30,
            tolerance: 1e-3,
            staggered: false,
            traced: false,
            memo: Memo::new(MEMO_BYTES),
            samples: Samples::default(),
        }
    }

    /// The same with another seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The same with another schedule.
    #[must_use]
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// The same with another number of iterations.
    #[must_use]
    pub fn iterations(mut self, iterations: usize) -> Self {
        self.iterations = iterations;
        self
    }

    /// The same with another number of threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// The same under another profile; memo and samples are shared.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// The same, where a thread may begin before the others have been started.
    #[must_use]
    pub fn staggered(mut self) -> Self {
        self.staggered = true;
        self
    }

    /// The same with events recorded.
    #[must_use]
    pub fn traced(mut self) -> Self {
        self.traced = true;
        self
    }
}
