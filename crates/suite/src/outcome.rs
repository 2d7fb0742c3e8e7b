//! [`Plan`] and [`Outcome`]: what a mode is asked to run for one case, and what it found.
//!
//! Invariant: an outcome passes only if every thread was checked in every iteration. A check that
//! did not happen is a fault, never a pass.

use std::time::Duration;

use crate::case::Case;
use crate::compare::{Comparison, Spread, Tolerance};
use crate::crew::Hung;

/// One case, to be run by a number of threads a number of times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// What to run.
    pub case: Case,
    /// How many threads run it at once.
    pub threads: usize,
    /// How often each of them does.
    pub iterations: usize,
    /// How far a result may lie from the golden one.
    pub tolerance: Tolerance,
    /// After how long without any progress the run is given up as hung.
    pub stall_after: Duration,
}

/// How many requests ran in how many batches.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Batches {
    /// Batches that ran.
    pub count: u64,
    /// Requests in a batch, on average.
    pub mean_size: f64,
}

/// What a run found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outcome {
    /// Iterations in which every thread's result passed.
    pub passed_iterations: usize,
    /// The greatest difference to the golden result; `None` when nothing could be compared.
    pub max_diff: Option<f64>,
    /// The greatest difference between two results for the same input; `None` for a single thread.
    pub thread_diff: Option<f64>,
    /// What went wrong, the first few in full.
    pub errors: Vec<String>,
    /// Threads were left behind that never came back: nothing else should use the device.
    pub hung: bool,
    /// Batches of the queue, where there was one.
    pub batches: Option<Batches>,
}

/// One thread's check of one iteration: a comparison, or why there is none.
pub(crate) type Check = Result<Comparison, String>;

/// How many errors a report carries in full.
const ERRORS: usize = 5;

impl Outcome {
    /// Nothing went wrong.
    pub fn passed(&self) -> bool {
        self.errors.is_empty()
    }

    /// A run that ended before it could check anything.
    pub(crate) fn broken(error: impl Into<String>) -> Self {
        Self {
            passed_iterations: 0,
            max_diff: None,
            thread_diff: None,
            errors: vec![error.into()],
            hung: false,
            batches: None,
        }
    }

    /// A run whose threads stopped making progress.
    pub(crate) fn hung(plan: &Plan, doing: &str, hung: &Hung) -> Self {
        let threads = match hung.members.len() {
            1 => "1 thread".to_owned(),
            n => format!("{n} threads"),
        };
        let error = format!("hung: {threads} {doing} made no progress for {:?}", plan.stall_after);
        Self { hung: true, ..Self::broken(error) }
    }

    /// Gathers what the threads of a run found; `threads` holds each thread's checks in order.
    pub(crate) fn gather(
        plan: &Plan,
        threads: Vec<Result<Vec<Check>, String>>,
        spread: &Spread,
    ) -> Self {
        let mut errors = Errors::default();
        let mut iteration_passes = vec![0usize; plan.iterations];
        let mut max_diff: Option<f64> = None;
        let mut comparable = true;
        for (thread, checks) in threads.into_iter().enumerate() {
            let checks = checks.unwrap_or_else(|error| {
                errors.add(format!("thread {thread}: {error}"));
                Vec::new()
            });
            for (iteration, check) in checks.into_iter().enumerate() {
                let fault = match check {
                    Ok(comparison) => {
                        match comparison.max_diff {
                            Some(diff) => max_diff = Some(max_diff.unwrap_or(0.0).max(diff)),
                            None => comparable = false,
                        }
                        comparison.fault
                    }
                    Err(error) => Some(error),
                };
                match fault {
                    Some(fault) => {
                        errors.add(format!("thread {thread}, iteration {iteration}: {fault}"));
                    }
                    None => iteration_passes[iteration] += 1,
                }
            }
        }
        let passed_iterations =
            iteration_passes.iter().filter(|&&passes| passes == plan.threads).count();
        if passed_iterations < plan.iterations && errors.all == 0 {
            errors.add("not every thread was checked in every iteration".to_owned());
        }
        Self {
            passed_iterations,
            max_diff: max_diff.filter(|_| comparable),
            thread_diff: (plan.threads > 1).then(|| spread.greatest()),
            errors: errors.listed(),
            hung: false,
            batches: None,
        }
    }
}

/// Errors, of which the first few are kept.
#[derive(Default)]
struct Errors {
    kept: Vec<String>,
    all: usize,
}

impl Errors {
    fn add(&mut self, error: String) {
        self.all += 1;
        if self.kept.len() < ERRORS {
            self.kept.push(error);
        }
    }

    fn listed(mut self) -> Vec<String> {
        let more = self.all - self.kept.len();
        if more > 0 {
            self.kept.push(format!("and {more} more"));
        }
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(threads: usize, iterations: usize) -> Plan {
        Plan {
            case: crate::TEN[0],
            threads,
            iterations,
            tolerance: Tolerance::both(0.0),
            stall_after: Duration::from_secs(1),
        }
    }

    fn pass() -> Check {
        Ok(Comparison { max_diff: Some(0.0), fault: None })
    }

    #[test]
    fn a_missing_check_is_a_fault() {
        let gather = |threads| Outcome::gather(&plan(2, 2), threads, &Spread::default());
        let full = gather(vec![Ok(vec![pass(), pass()]), Ok(vec![pass(), pass()])]);
        assert!(full.passed());
        assert_eq!(full.passed_iterations, 2);
        let short = gather(vec![Ok(vec![pass(), pass()]), Ok(vec![pass()])]);
        assert!(!short.passed());
        assert_eq!(short.passed_iterations, 1);
        assert!(!gather(vec![Ok(vec![pass(), pass()])]).passed());
        assert!(!gather(vec![]).passed());
    }

    #[test]
    fn many_errors_are_counted() {
        let fail = || Err("broken".to_owned());
        let checks = (0..20).map(|_| fail()).collect();
        let outcome = Outcome::gather(&plan(1, 20), vec![Ok(checks)], &Spread::default());
        assert_eq!(outcome.errors.len(), ERRORS + 1);
        assert_eq!(outcome.errors[ERRORS], "and 15 more");
        assert_eq!(outcome.max_diff, None);
    }
}
