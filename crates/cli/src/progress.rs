//! A progress bar on stderr, only where that is a terminal.

use indicatif::ProgressBar;
use onelane_suite::{Observer, Plan, TestResult};
use onelane_terminal::bar;

/// Shows a run of the suite.
pub struct SuiteBar {
    bar: ProgressBar,
    /// Where the bar stands when the present test has ended, even if it broke off.
    end: u64,
}

impl SuiteBar {
    /// A bar for `steps` iterations in all. Nothing is drawn when stderr is not a terminal.
    pub fn new(steps: u64) -> Self {
        Self { bar: bar(steps), end: 0 }
    }
}

impl Observer for SuiteBar {
    fn begin(&mut self, plan: &Plan, steps: usize) {
        self.end += steps as u64;
        let threads = plan.threads;
        let plural = if threads == 1 { "" } else { "s" };
        self.bar.set_message(format!("{}, {threads} thread{plural}", plan.case.name));
    }

    fn step(&mut self) {
        self.bar.inc(1);
    }

    fn end(&mut self, result: &TestResult) {
        self.bar.set_position(self.end);
        if !result.passed {
            let threads = result.threads;
            self.bar.println(format!("FAIL {} ({threads} threads)", result.name));
        }
    }
}

impl Drop for SuiteBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
