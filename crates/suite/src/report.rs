//! [`Report`]: what a run of the suite found, in the form that is written as JSON.

use crate::device::DeviceKind;
use crate::mode::Mode;
use crate::outcome::{Batches, Outcome, Plan};

/// One test with one number of threads.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct TestResult {
    /// The test's name.
    pub name: String,
    /// How many threads ran it at once.
    pub threads: usize,
    /// Every thread was right in every iteration.
    pub passed: bool,
    /// The greatest absolute difference to the golden result; `null` when there is none to give:
    /// nothing was compared, or a value was not finite.
    pub max_diff: Option<f64>,
    /// The greatest absolute difference between two threads' results for the same input; `null`
    /// with a single thread.
    pub thread_diff: Option<f64>,
    /// How far a result may lie from the golden one, relative and absolute.
    pub tolerance: f32,
    /// Wall-clock time of the test, golden result included.
    pub seconds: f64,
    /// Batches of the queue, where there was one.
    pub batches: Option<Batches>,
    /// What went wrong; empty when passed.
    pub errors: Vec<String>,
}

impl TestResult {
    pub(crate) fn new(plan: &Plan, outcome: Outcome, seconds: f64) -> Self {
        Self {
            name: plan.case.name.to_owned(),
            threads: plan.threads,
            passed: outcome.passed(),
            max_diff: outcome.max_diff,
            thread_diff: outcome.thread_diff,
            tolerance: plan.tolerance.absolute,
            seconds,
            batches: outcome.batches,
            errors: outcome.errors,
        }
    }
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The device's name.
    pub device: String,
    /// Whether the device is hardware or a simulation.
    pub device_kind: DeviceKind,
    /// The seed of a simulated device's schedule; absent for hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// How the tests were run.
    pub mode: Mode,
    /// The numbers of threads that each test was run with.
    pub threads: Vec<usize>,
    /// Workers of the device executor; `null` without a queue.
    pub workers: Option<usize>,
    /// How often each thread ran each test.
    pub iterations: usize,
    /// Tests times numbers of threads.
    pub total: usize,
    /// How many of them passed.
    pub passed: usize,
    /// How many did not.
    pub failed: usize,
    /// One for each test and number of threads, in the order of the run.
    pub results: Vec<TestResult>,
}

impl Report {
    /// Every test passed, and there was one.
    pub fn all_passed(&self) -> bool {
        self.failed == 0 && self.passed == self.total && self.total > 0
    }

    /// How many tests passed, of how many, with this number of threads.
    pub fn score(&self, threads: usize) -> (usize, usize) {
        let results = || self.results.iter().filter(|r| r.threads == threads);
        (results().filter(|r| r.passed).count(), results().count())
    }
}
