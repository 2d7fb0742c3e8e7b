//! The hazards and their cures, as scenarios. Everything here is simulated.
//!
//! `ONELANE_SIM_SEEDS` sets how many seeds the hazard table runs with (1 unless set; 20 is the full size,
//! some minutes on two cores).

use std::sync::OnceLock;

use crate::within_time::within_time;
use onelane_sim::models::Packing;
use onelane_sim::scenario::{
    Answers, Buckets, Cell, Column, Crash, CrashTrial, Expectation, Front, Job, Prediction,
    Program, Rounds, Row, Trial, Use, Workload, affinity, counterexample, growth, in_flight,
};
use onelane_sim::{ActionKind, Profile, Reuse, Schedule, SimError, StreamPolicy};

/// One trial for all tests, so that they share its memo.
fn trial() -> Trial {
    static TRIAL: OnceLock<Trial> = OnceLock::new();
    TRIAL.get_or_init(|| Trial::new(Profile::fork_2_9_1())).clone()
}

fn seeds() -> u64 {
    let seeds = std::env::var("ONELANE_SIM_SEEDS");
    seeds.map_or(1, |seeds| seeds.parse().expect("ONELANE_SIM_SEEDS is a number"))
}

/// The hazard table of the fork: 8 threads by 30 iterations.
#[test]
fn the_hazard_table_is_as_expected() {
    within_time(|| {
        // Without optimisation the arithmetic is slow; the outcomes are the same in kind.
        let iterations = if cfg!(debug_assertions) { 6 } else { 30 };
        let trial = trial().iterations(iterations);
        let jobs = Job::all(0..seeds());
        let cells = trial.cells(&jobs, |_, _| ());
        let mut unmet = Vec::new();
        for row in Row::ALL {
            for column in Column::ALL {
                let of_cell = |(job, _): &(&Job, &Cell)| (job.row, job.column) == (row, column);
                let cells = jobs.iter().zip(&cells).filter(of_cell).map(|(_, cell)| cell);
                let shown: Vec<String> = cells.clone().map(ToString::to_string).collect();
                println!("{row} | {column} | {}", shown.join(" "));
                let expectation = Expectation::of(row, column);
                if !expectation.is_met(cells) {
                    unmet.push(format!("{row}, {column}: {shown:?}, not {expectation:?}"));
                }
            }
        }
        assert!(unmet.is_empty(), "{unmet:#?}");
    });
}

/// A difference of the size that was reported, and the cause that the rules give.
#[test]
fn wrong_numbers_come_from_stale_reads_and_are_large() {
    within_time(|| {
        let cell = |column, seed| trial().seed(seed).cell(Row::RaceWithContiguous, column);
        let mut failed = 0;
        for seed in 0..3 {
            let direct = cell(Column::Threads, seed);
            assert_eq!(direct.passes(), direct.worst == 0.0);
            if !direct.passes() {
                failed += 1;
                assert!(direct.stats.stale_reads > 0);
                assert!((10.0..1000.0).contains(&direct.worst), "{}", direct.worst);
            }
            let queue = cell(Column::Queue { workers: 1 }, seed);
            assert!(queue.passes() && queue.worst == 0.0);
            assert_eq!(queue.stats.stale_reads + queue.stats.stale_writes, 0);
        }
        assert!(failed > 0);
    });
}

/// Mistakes in a queue show in the table.
#[test]
fn a_broken_queue_fails() {
    within_time(|| {
        let fails = |workers, answers| {
            let run = |seed| {
                let trial = trial().iterations(5).seed(seed);
                trial.run(Workload::new(Row::TransformerBlock), Front::Queue { workers, answers })
            };
            (0..3).any(|seed| !run(seed).passes())
        };
        assert!(!fails(1, Answers::Host));
        assert!(!fails(1, Answers::Device));
        // Completing a request before its synchronise.
        assert!(fails(1, Answers::DeviceTooEarly));
        // Two workers where one was meant.
        assert!(fails(2, Answers::Host));
    });
}

/// Patch 035 narrows the race and does not close it: an adversarial schedule still finds it, and so do
/// threads that loop without meeting.
#[test]
fn patch_035_leaves_a_window() {
    within_time(|| {
        let patched = Workload::new(Row::Attention).packing(Packing::Chunked);
        let fails = |trial: Trial, front| !trial.run(patched, front).passes();
        let trial = trial().iterations(10);
        assert!(!fails(trial.clone(), Front::Threads));
        assert!(fails(trial.clone(), Front::Loop));
        let adversarial = trial.clone().schedule(Schedule::pct(3));
        let found = |seed| fails(adversarial.clone().seed(seed).iterations(30), Front::Threads);
        assert!((0..20).any(found));
        // The cures leave none.
        for profile in [
            Profile::fork_2_9_1().with_reuse(Reuse::PerStream),
            Profile::fork_2_9_1().with_reuse(Reuse::Retain),
            Profile::user_streams_2_15(),
        ] {
            assert!(!fails(trial.clone().profile(profile), Front::Loop));
        }
    });
}

/// The assumption that patch 035's success hangs on.
#[test]
fn without_the_thread_cache_patch_035_fails() {
    within_time(|| {
        let profile = Profile::fork_2_9_1().with_thread_cache(None);
        let trial = trial().iterations(10).profile(profile);
        assert!(!trial.cell(Row::Attention, Column::Patch035).passes());
        assert!(trial.cell(Row::Attention, Column::Queue { workers: 1 }).passes());
    });
}

#[test]
fn two_threads_and_one_order_of_steps_corrupt() {
    within_time(|| {
        let fork = Profile::fork_2_9_1;
        for program in [Program::Race, Program::Attention, Program::AttentionWithPatch035] {
            let found = counterexample(fork(), program).unwrap();
            assert!(found.reproduced(), "{program:?}: {}", found.worst);
            let note = |words: &str| {
                let has = |step: &onelane_sim::scenario::Step| {
                    step.note.as_deref().is_some_and(|note| note.contains(words))
                };
                found.steps.iter().position(has)
            };
            // The story, in order.
            let story = [
                note("pending: it reads"),
                note("reader is still pending"),
                note("given to T2"),
                note("overwrites what"),
                note("reads T2's numbers"),
            ];
            assert!(story.iter().all(Option::is_some) && story.is_sorted(), "{story:?}");
            for cured in [
                fork().with_reuse(Reuse::PerStream),
                fork().with_reuse(Reuse::Retain),
                fork().with_streams(StreamPolicy::Shared),
                Profile::user_streams_2_15(),
                Profile::upstream_2_15(),
            ] {
                let cured = counterexample(cured, program).unwrap();
                assert_eq!(cured.worst, 0.0, "{program:?}");
            }
        }
    });
}

#[test]
fn a_trace_opens_in_a_trace_viewer() {
    within_time(|| {
        let found = counterexample(Profile::fork_2_9_1(), Program::Race).unwrap();
        let chrome = found.trace.to_chrome();
        let events = chrome["traceEvents"].as_array().unwrap();
        let with = |key: &str, value: &str| events.iter().filter(|e| e[key] == value).count();
        assert_eq!(with("ph", "X"), found.trace.events().len());
        for event in events {
            assert!(event["pid"].is_u64() && event["ph"].is_string(), "{event}");
            assert!(
                event["ph"] == "M" || (event["ts"].is_u64() && event["tid"].is_u64()),
                "{event}"
            );
        }
        // An arrow from the free to each stale read.
        assert!(with("ph", "s") > 0);
        assert_eq!(with("ph", "s"), with("ph", "f"));
        let stale = found.trace.events().iter().filter(|e| e.kind == ActionKind::StaleRead);
        assert_eq!(with("ph", "s"), stale.count());
    });
}

#[test]
fn stock_2_14_aborts_with_two_threads_and_never_through_a_worker() {
    within_time(|| {
        for seed in 0..20 {
            let direct = CrashTrial::new(Profile::upstream_2_14()).seed(seed);
            let ended = direct.run(Crash::Arange);
            assert!(matches!(ended, Err(SimError::Aborted(_))), "seed {seed}: {ended:?}");
        }
        for crash in [Crash::Arange, Crash::Synchronise, Crash::FirstUse] {
            let aborts = |profile: Profile, worker: bool| {
                let run = |seed| {
                    let mut trial = CrashTrial::new(profile.clone()).seed(seed).threads(4);
                    trial.worker = worker;
                    match trial.run(crash) {
                        Err(SimError::Aborted(_)) => true,
                        Ok(Rounds { wrong: 0, .. }) => false,
                        other => panic!("{crash}: {other:?}"),
                    }
                };
                (0..10).filter(|seed| run(*seed)).count()
            };
            assert!(aborts(Profile::upstream_2_14(), false) > 0, "{crash}");
            assert_eq!(aborts(Profile::upstream_2_14(), true), 0, "{crash}");
            assert_eq!(aborts(Profile::upstream_2_15(), false), 0, "{crash}");
        }
    });
}

#[test]
fn the_rows_of_the_table_abort_on_2_14_and_pass_on_2_15() {
    within_time(|| {
        for row in [Row::Mlp, Row::Attention, Row::TransformerBlock] {
            let cell = |profile, column| trial().iterations(4).profile(profile).cell(row, column);
            let direct = cell(Profile::upstream_2_14(), Column::Threads);
            assert!(matches!(direct.ended_by, Some(SimError::Aborted(_))), "{row}: {direct}");
            assert!(cell(Profile::upstream_2_14(), Column::Queue { workers: 1 }).passes());
            assert!(cell(Profile::upstream_2_15(), Column::Threads).passes());
        }
    });
}

#[test]
fn graph_cache_growth_is_bounded_by_shape_buckets() {
    within_time(|| {
        let run = |buckets| growth(Profile::upstream_2_15(), 315, buckets).unwrap();
        let unbounded = run(Buckets::None);
        assert_eq!((unbounded.shapes, unbounded.graphs), (315, 5 * 315));
        assert_eq!(unbounded.padding, 0.0);
        let bounded = run(Buckets::Multiple(64));
        assert_eq!((bounded.shapes, bounded.graphs), (5, 25));
        assert_eq!(bounded.bytes * 63, unbounded.bytes);
        assert!(bounded.padding < 0.2, "{}", bounded.padding);
        let powers = run(Buckets::PowerOfTwo);
        assert_eq!(powers.shapes, 10);
        for growth in [unbounded, bounded, powers] {
            assert_eq!(growth.bytes_after_empty_cache, 0);
        }
    });
}

#[test]
fn sixty_four_threads_deadlock_on_a_buffer_each_and_not_through_a_worker() {
    within_time(|| {
        let run =
            |threads, worker, seed| in_flight(Profile::candle_metal(), (threads, worker), seed);
        for seed in 0..5 {
            assert_eq!(run(63, false, seed), Ok(63));
            let Err(SimError::Hang(hang)) = run(64, false, seed) else {
                panic!("64 threads did not hang with seed {seed}");
            };
            let waits =
                |words: &str| hang.waiting.iter().filter(|w| w.waits_for.contains(words)).count();
            assert_eq!(waits("all 64 of which are open"), 1, "{hang}");
            assert!(waits("serial queue") >= 1, "{hang}");
            assert_eq!(run(200, true, seed), Ok(200));
        }
    });
}

#[test]
fn thread_affine_streams_need_a_worker_and_not_a_lock() {
    within_time(|| {
        let run = |how| affinity(Profile::mlx(), how, 0);
        for how in [Use::OtherThread, Use::UnderLock] {
            let error = run(how).unwrap_err();
            assert!(matches!(error, SimError::NoStream { .. }));
            assert!(error.to_string().contains("There is no Stream(gpu, 0) in current thread"));
        }
        assert_eq!(run(Use::Worker), Ok(()));
        assert_eq!(affinity(Profile::upstream_2_15(), Use::OtherThread, 0), Ok(()));
    });
}

#[test]
fn the_predictions_hold_on_the_model() {
    within_time(|| {
        for prediction in Prediction::ALL {
            assert!(prediction.holds(&trial().iterations(10)), "{prediction:?}");
        }
    });
}
