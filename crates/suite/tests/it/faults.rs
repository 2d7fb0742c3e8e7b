//! Errors, panics and hangs of a device are failed tests in the report, never a crash or a hang of
//! the suite.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::faulty::Faulty;
use onelane_suite::{Caller, Mode, OpError, Report, SuiteConfig, TEN, run_suite};

const PARALLEL: [Mode; 2] = [Mode::Parallel, Mode::Batched];

fn run(device: &Arc<Faulty>, mode: Mode) -> Report {
    // Linear and BMM: the two quickest.
    let config = SuiteConfig::default()
        .mode(mode)
        .threads([3])
        .iterations(2)
        .tests([TEN[0], TEN[4]])
        .stall_after(Duration::from_secs(5));
    run_suite(device, &config, &mut ()).unwrap()
}

fn victim(mode: Mode) -> Caller {
    match mode {
        Mode::Single => Caller::Thread(0),
        Mode::Parallel => Caller::Thread(2),
        Mode::Batched => Caller::Worker,
    }
}

#[test]
fn an_error_is_a_failed_test() {
    for mode in [Mode::Single, Mode::Parallel, Mode::Batched] {
        let device = Faulty::new(move |caller, _, _| {
            if caller == victim(mode) {
                return Err(OpError::new("download", "the cable is loose"));
            }
            Ok(())
        });
        let report = run(&device, mode);
        assert_eq!((report.passed, report.failed), (0, 2), "{mode}");
        for result in &report.results {
            let error = &result.errors[0];
            assert!(error.contains("download: the cable is loose"), "{error}");
        }
    }
}

#[test]
fn a_panic_is_a_failed_test_and_the_other_threads_go_on() {
    for mode in PARALLEL {
        let device = Faulty::new(move |caller, nth, _| {
            assert!(caller != victim(mode) || nth != 0, "the device is on fire");
            Ok(())
        });
        let report = run(&device, mode);
        assert_eq!((report.passed, report.failed), (0, 2), "{mode}");
        for result in &report.results {
            let error = &result.errors[0];
            assert!(error.contains("the device is on fire"), "{error}");
            // The queue's engine is built anew after each panic, and panics again; a thread that calls
            // the device panics once, and what else it and the others got was compared.
            if mode == Mode::Parallel {
                assert!(result.max_diff.unwrap() < 1e-6);
            }
        }
    }
}

#[test]
fn an_error_in_the_golden_result_is_a_failed_test() {
    for mode in PARALLEL {
        let device = Faulty::new(|caller, _, _| match caller {
            Caller::Golden => Err(OpError::new("download", "no")),
            _ => Ok(()),
        });
        let report = run(&device, mode);
        assert_eq!(report.results[1].errors, ["golden result: download: no"]);
    }
}

#[test]
fn a_hang_is_a_failed_test_and_ends_the_run() {
    for mode in PARALLEL {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let device = {
            let gate = Arc::clone(&gate);
            Faulty::new(move |caller, _, _| {
                if caller == victim(mode) {
                    let (open, opened) = &*gate;
                    let open = open.lock().unwrap();
                    drop(opened.wait_while(open, |open| !*open).unwrap());
                }
                Ok(())
            })
        };
        let report = run(&device, mode);
        assert_eq!((report.passed, report.failed), (0, 2), "{mode}");
        let [hung, left_out] = &report.results[..] else {
            panic!("two tests were asked for");
        };
        assert!(hung.errors[0].starts_with("hung: "), "{:?}", hung.errors);
        assert_eq!(left_out.errors, ["not run: threads of Linear still hang on the device"]);
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
    }
}
