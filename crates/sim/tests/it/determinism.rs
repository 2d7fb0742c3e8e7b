//! Equal seeds give equal runs, trace included. Everything here is simulated.

use std::sync::Arc;

use crate::within_time::within_time;
use onelane_sim::models::{Mlp, Packing};
use onelane_sim::scenario::{Answers, Front, Row, Trial, Workload};
use onelane_sim::{HostTensor, Memo, Profile, Schedule, SimConfig, SimDevice, Trace};

fn trial(seed: u64) -> Trial {
    Trial::new(Profile::fork_2_9_1()).iterations(2).seed(seed).traced()
}

#[test]
fn two_runs_of_one_seed_are_identical() {
    within_time(|| {
        let fronts = [
            Front::Threads,
            Front::Loop,
            Front::Lock,
            Front::Queue { workers: 3, answers: Answers::Host },
        ];
        for schedule in [Schedule::Random, Schedule::pct(3)] {
            for front in fronts {
                let run = |seed| {
                    let workload = Workload::new(Row::Attention).packing(Packing::Packed);
                    let trial = trial(seed).schedule(schedule.clone());
                    let cell = trial.run(workload, front);
                    (cell.trace, cell.stats, cell.right, cell.worst.to_bits())
                };
                let first = run(5);
                assert!(first.0.events().len() > 500);
                assert!(first == run(5), "two runs of one seed differ: {front:?}");
                assert!(first.0 != run(6).0, "the seed does not matter: {front:?}");
            }
        }
    });
}

#[test]
fn the_memo_changes_nothing() {
    within_time(|| {
        let run = |memo: Memo| {
            let mut trial = trial(3).iterations(3);
            trial.memo = memo;
            let cell = trial.run(Workload::new(Row::TransformerBlock), Front::Threads);
            (cell.trace, cell.stats, cell.right, cell.worst.to_bits())
        };
        let (none, large) = (Memo::new(0), Memo::new(1 << 30));
        let without = run(none.clone());
        assert!(without == run(large.clone()), "the memo changed the run");
        assert_eq!(none.hits_and_misses().0, 0);
        assert!(large.hits_and_misses().0 > 0);
        // And a race showed in both.
        assert!(without.1.stale_reads > 0);
    });
}

fn mlp(device: &SimDevice) -> Mlp {
    let tensor = |shape: &[usize]| {
        let elements = shape.iter().product::<usize>();
        let data = (0..elements).map(|i| (i % 7) as f32 - 3.0).collect();
        device.upload(&HostTensor::new(shape, data)).unwrap()
    };
    Mlp { up: [tensor(&[32, 16]), tensor(&[32])], down: [tensor(&[8, 32]), tensor(&[8])] }
}

/// Real threads that join the device as a party, started in the given order.
fn party(order: [usize; 4]) -> Trace {
    let config = SimConfig::new(Profile::fork_2_9_1()).seed(9).traced(true);
    let device = SimDevice::new(config);
    let model = Arc::new(mlp(&device));
    let party = device.party(["a", "b", "c", "d"]);
    std::thread::scope(|scope| {
        for index in order {
            let (device, party, model) = (&device, &party, &model);
            scope.spawn(move || {
                let _attached = party.join(index).unwrap();
                let x = HostTensor::new([4, 16], vec![index as f32; 64]);
                let x = device.upload(&x).unwrap();
                model.forward(&x).unwrap().download().unwrap();
            });
        }
    });
    device.trace()
}

#[test]
fn a_party_of_real_threads_runs_by_the_seed_alone() {
    within_time(|| {
        let trace = party([0, 1, 2, 3]);
        let threads = |trace: &Trace| {
            let mut names: Vec<String> = trace.events().iter().map(|e| e.thread.clone()).collect();
            names.dedup();
            names
        };
        assert!(threads(&trace).len() > 20, "the threads hardly met");
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            assert!(party(order) == trace, "{order:?} differs");
        }
    });
}
