//! Deterministic simulation: the real executor on a virtual clock against a reference that says, for
//! every step of a random workload, what must be so after it.
//!
//! The engine stands at a gate in each batch, so that a test decides when a batch ends; nothing
//! depends on the speed of the machine. The reference is written for clarity, with lists and sorts.
//! A failing workload is shrunk, printed, and kept in `main.proptest-regressions`, from where
//! `cargo test -p onelane --test simulation` runs it first; `PROPTEST_CASES` sets how many there are.
mod driver;
mod reference;
mod task;
mod workload;

use std::time::{Duration, Instant};

use driver::Simulation;
use onelane::testing::within_a_minute;
use proptest::prelude::*;
use workload::{settings, steps};

const MS: Duration = Duration::from_millis(1);

/// Waits for what must come soon; a failure that is seen early can be shrunk.
fn soon(what: &str, has_come: impl Fn() -> bool) {
    let limit = Duration::from_secs(if cfg!(miri) { 600 } else { 10 });
    let begun = Instant::now();
    while !has_come() {
        assert!(begun.elapsed() < limit, "{what}: not in {limit:?}");
        std::thread::yield_now();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(
            prop::test_runner::FileFailurePersistence::WithSource("proptest-regressions"),
        )),
        max_shrink_time: 120_000,
        ..ProptestConfig::default()
    })]

    /// Promises 1, 4, 5, 6, 7, 8 and 10 at once, after every step.
    #[test]
    fn the_executor_does_what_the_reference_says(settings in settings(), steps in steps()) {
        within_a_minute(move || {
            let mut simulation = Simulation::new(&settings);
            for step in &steps {
                simulation.step(step);
            }
            simulation.end();
        });
    }
}
