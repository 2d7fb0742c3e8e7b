//! The suite can fail: one wrong element in one result of one thread fails each of the ten tests,
//! in each mode; and each test passes on candle's CPU device when nothing is wrong.

use std::sync::Arc;

use crate::faulty::Faulty;
use onelane_suite::{
    Caller, CandleDevice, HostTensor, Mode, Report, SuiteConfig, TEN, TestResult, run_suite,
};

const THREADS: usize = 2;
const ITERATIONS: usize = 2;

fn config(mode: Mode) -> SuiteConfig {
    SuiteConfig::default().mode(mode).threads([THREADS]).iterations(ITERATIONS)
}

/// Moves one element by a little more than four times what the mode allows. The last one, so that a
/// comparison that stops early would miss it.
fn corrupt(host: &mut HostTensor, mode: Mode) {
    let last = host.data_mut().last_mut().unwrap();
    *last += 4.1 * mode.tolerance().absolute * (1.0 + last.abs());
}

fn check_names(report: &Report) {
    let names: Vec<_> = report.results.iter().map(|result| &*result.name).collect();
    assert_eq!(names, TEN.map(|case| case.name));
}

fn assert_one_fault(result: &TestResult, mode: Mode) {
    let name = &result.name;
    assert!(!result.passed, "{name} did not notice");
    assert_eq!(result.errors.len(), 1, "{name}: {:?}", result.errors);
    let error = &result.errors[0];
    assert!(error.contains("1 of ") && error.contains("outside the tolerance"), "{error}");
    let diff = result.max_diff.unwrap();
    assert!(diff > f64::from(mode.tolerance().absolute), "{name}: {diff}");
}

#[test]
fn single_threaded_passes_and_fails() {
    let good = run_suite(&Arc::new(CandleDevice::cpu()), &config(Mode::Single), &mut ());
    let good = good.unwrap();
    check_names(&good);
    assert!(good.all_passed(), "{good:#?}");
    // The CPU engine rounds otherwise than the reference: a difference of exactly zero in products
    // would mean that the engine was compared with itself.
    assert!(good.results[1].max_diff.unwrap() > 0.0);

    let faulty = Faulty::new(|caller, nth, host| {
        if caller == Caller::Thread(0) && nth == 1 {
            corrupt(host, Mode::Single);
        }
        Ok(())
    });
    let bad = run_suite(&faulty, &config(Mode::Single), &mut ()).unwrap();
    check_names(&bad);
    assert_eq!((bad.passed, bad.failed), (0, 10), "{bad:#?}");
    for result in &bad.results {
        assert_one_fault(result, Mode::Single);
    }
}

#[test]
fn parallel_passes_and_fails() {
    let good = run_suite(&Arc::new(CandleDevice::cpu()), &config(Mode::Parallel), &mut ());
    let good = good.unwrap();
    check_names(&good);
    assert!(good.all_passed(), "{good:#?}");

    let faulty = Faulty::new(|caller, nth, host| {
        if caller == Caller::Thread(1) && nth == 1 {
            corrupt(host, Mode::Parallel);
        }
        Ok(())
    });
    let bad = run_suite(&faulty, &config(Mode::Parallel), &mut ()).unwrap();
    check_names(&bad);
    assert_eq!((bad.passed, bad.failed), (0, 10), "{bad:#?}");
    for result in &bad.results {
        assert_one_fault(result, Mode::Parallel);
        assert!(result.errors[0].starts_with("thread 1, iteration 1: "));
        // Thread 1 differed from itself in iteration 0.
        assert_eq!(result.thread_diff, result.max_diff);
    }
}

#[test]
fn batched_passes_and_fails() {
    let good = run_suite(&Arc::new(CandleDevice::cpu()), &config(Mode::Batched), &mut ());
    let good = good.unwrap();
    check_names(&good);
    assert!(good.all_passed(), "{good:#?}");
    for result in &good.results {
        let batches = result.batches.unwrap();
        let requests = batches.count as f64 * batches.mean_size;
        assert!((requests - (THREADS * ITERATIONS) as f64).abs() < 1e-6);
    }

    let faulty = Faulty::new(|caller, nth, host| {
        if caller == Caller::Worker && nth == 0 {
            corrupt(host, Mode::Batched);
        }
        Ok(())
    });
    let bad = run_suite(&faulty, &config(Mode::Batched), &mut ()).unwrap();
    check_names(&bad);
    assert_eq!((bad.passed, bad.failed), (0, 10), "{bad:#?}");
    for result in &bad.results {
        assert_one_fault(result, Mode::Batched);
    }
}

#[test]
fn a_wrong_golden_result_fails_both_parallel_modes() {
    for mode in [Mode::Parallel, Mode::Batched] {
        let faulty = Faulty::new(move |caller, nth, host| {
            if caller == Caller::Golden && nth == 1 {
                corrupt(host, mode);
            }
            Ok(())
        });
        let config = config(mode).tests(&TEN[..1]);
        let bad = run_suite(&faulty, &config, &mut ()).unwrap();
        // Thread 1's golden result is wrong, so both of its iterations fail.
        assert_eq!(bad.results[0].errors.len(), 2, "{mode}: {bad:#?}");
    }
}

#[test]
fn rows_that_reach_the_wrong_request_fail() {
    let faulty = Faulty::new(|caller, _, host| {
        if caller == Caller::Worker {
            *host = host.clone().rotated(1);
        }
        Ok(())
    });
    // One that is stacked by rows, one by matrices, one by sequences, and one that runs in turn.
    let config = config(Mode::Batched).tests([TEN[0], TEN[2], TEN[4], TEN[9]]);
    let bad = run_suite(&faulty, &config, &mut ()).unwrap();
    assert_eq!((bad.passed, bad.failed), (0, 4), "{bad:#?}");
}
