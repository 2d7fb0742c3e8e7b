//! The run of the suite: settings, and the loop over tests and numbers of threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batched::run_batched;
use crate::case::Case;
use crate::device::Device;
use crate::direct::run_direct;
use crate::mode::Mode;
use crate::outcome::{Outcome, Plan};
use crate::report::{Report, TestResult};
use crate::single::run_single;
use crate::ten::TEN;

/// What to run, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SuiteConfig {
    /// How the tests are run; single-threaded by default.
    pub mode: Mode,
    /// The numbers of threads, one after another; 8 by default. Not used in single-threaded mode.
    pub threads: Vec<usize>,
    /// Workers of the device executor; 1 by default. Used in batched mode only.
    pub workers: usize,
    /// How often each thread runs each test; 10 by default.
    pub iterations: usize,
    /// The tests; all ten by default.
    pub tests: Vec<Case>,
    /// After how long without any progress a test is given up as hung; 2 minutes by default.
    pub stall_after: Duration,
}

impl Default for SuiteConfig {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            threads: vec![8],
            workers: 1,
            iterations: 10,
            tests: TEN.to_vec(),
            stall_after: Duration::from_secs(120),
        }
    }
}

impl SuiteConfig {
    /// Sets how the tests are run.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the numbers of threads.
    #[must_use]
    pub fn threads(mut self, threads: impl Into<Vec<usize>>) -> Self {
        self.threads = threads.into();
        self
    }

    /// Sets the number of workers of the device executor.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Sets how often each thread runs each test.
    #[must_use]
    pub fn iterations(mut self, iterations: usize) -> Self {
        self.iterations = iterations;
        self
    }

    /// Sets the tests.
    #[must_use]
    pub fn tests(mut self, tests: impl Into<Vec<Case>>) -> Self {
        self.tests = tests.into();
        self
    }

    /// Sets after how long without any progress a test is given up as hung.
    #[must_use]
    pub fn stall_after(mut self, stall_after: Duration) -> Self {
        self.stall_after = stall_after;
        self
    }

    /// Says whether this can be run.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn validate(&self) -> Result<(), SuiteError> {
        let at_least_one = |name, ok| if ok { Ok(()) } else { Err(SuiteError::Zero(name)) };
        at_least_one("threads", !self.threads.is_empty() && !self.threads.contains(&0))?;
        at_least_one("workers", self.workers > 0)?;
        at_least_one("iterations", self.iterations > 0)?;
        at_least_one("tests", !self.tests.is_empty())?;
        at_least_one("stall_after", !self.stall_after.is_zero())
    }
}

/// Why the suite could not be run at all. What a test finds is in the [`Report`] instead.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuiteError {
    /// A setting is zero or empty.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}

/// Sees a run as it goes on, for example to draw a progress bar. All methods do nothing by default.
pub trait Observer {
    /// A test begins; [`Observer::step`] will follow up to `steps` times.
    fn begin(&mut self, plan: &Plan, steps: usize) {
        let _ = (plan, steps);
    }

    /// A thread has finished an iteration.
    fn step(&mut self) {}

    /// A test has ended.
    fn end(&mut self, result: &TestResult) {
        let _ = result;
    }
}

/// Observes nothing.
impl Observer for () {}

/// Runs the suite on a device.
///
/// A test that fails, panics or hangs is a failed test in the report. After a hang no further test
/// is run, because the threads left behind still use the device; the tests left out count as
/// failed.
///
/// # Errors
/// When the settings cannot be used.
///
/// # Blocking
/// Until all tests have run.
pub fn run_suite<D: Device>(
    device: &Arc<D>,
    config: &SuiteConfig,
    observer: &mut dyn Observer,
) -> Result<Report, SuiteError> {
    config.validate()?;
    let single = config.mode == Mode::Single;
    let threads = if single { vec![1] } else { config.threads.clone() };
    let mut results = Vec::with_capacity(threads.len() * config.tests.len());
    let mut hung_in = None;
    for &threads in &threads {
        for &case in &config.tests {
            let plan = Plan {
                case,
                threads,
                iterations: config.iterations,
                tolerance: config.mode.tolerance(),
                stall_after: config.stall_after,
            };
            observer.begin(&plan, plan.threads * plan.iterations);
            let started = Instant::now();
            let outcome = match hung_in {
                Some(test) => {
                    Outcome::broken(format!("not run: threads of {test} still hang on the device"))
                }
                None => run_test(device, &plan, config, observer),
            };
            if outcome.hung {
                hung_in = Some(case.name);
            }
            let result = TestResult::new(&plan, outcome, started.elapsed().as_secs_f64());
            observer.end(&result);
            results.push(result);
        }
    }
    let passed = results.iter().filter(|result| result.passed).count();
    Ok(Report {
        device: device.name(),
        device_kind: device.kind(),
        seed: device.seed(),
        mode: config.mode,
        threads,
        workers: (config.mode == Mode::Batched).then_some(config.workers),
        iterations: config.iterations,
        total: results.len(),
        passed,
        failed: results.len() - passed,
        results,
    })
}

fn run_test<D: Device>(
    device: &Arc<D>,
    plan: &Plan,
    config: &SuiteConfig,
    observer: &mut dyn Observer,
) -> Outcome {
    let device = match device.fresh() {
        Ok(device) => device,
        Err(error) => return Outcome::broken(error.to_string()),
    };
    let mut step = || observer.step();
    match config.mode {
        Mode::Single => run_single(&device, plan, &mut step),
        Mode::Parallel => run_direct(&device, plan, &mut step),
        Mode::Batched => run_batched(&device, plan, config.workers, &mut step),
    }
}
