//! The suite on the simulated device: which ways of using it pass, that equal seeds give equal runs, and
//! that mistakes in a queue are noticed. Everything here is simulated.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use onelane::{
    BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig,
};
use onelane_sim::{Profile, Reuse, SimConfig, StreamPolicy, Tensor};
use onelane_suite::race::{
    ATTENTION_CHUNKED, ATTENTION_PACKED, BLOCK_PACKED, MLP, RACE_CONTIGUOUS, RACE_TOLERANCE,
    RACE_VIEWS,
};
use onelane_suite::{
    Caller, Case, Device, DeviceKind, HostTensor, Mode, OpResult, Ops, Outcome, Plan, Report,
    SimMps, SimOps, SuiteConfig, TEN, Tolerance, compare, run_batched, run_direct, run_single,
    run_suite,
};

/// Runs a test in a thread of its own, and fails when it takes too long for even a very busy machine.
fn within_time(test: impl FnOnce() + Send + 'static) {
    const LIMIT: Duration = Duration::from_secs(600);
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match ended.recv_timeout(LIMIT) {
        Err(RecvTimeoutError::Timeout) => panic!("still running after {LIMIT:?}"),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

const THREADS: usize = 8;

fn plan(case: Case, iterations: usize) -> Plan {
    Plan {
        case,
        threads: THREADS,
        iterations,
        tolerance: RACE_TOLERANCE,
        stall_after: Duration::from_secs(300),
    }
}

fn direct(profile: Profile, seed: u64, plan: &Plan) -> Outcome {
    run_direct(&Arc::new(SimMps::new(profile, seed)), plan, &mut || ())
}

fn batched(profile: Profile, seed: u64, (plan, workers): (&Plan, usize)) -> Outcome {
    run_batched(&Arc::new(SimMps::new(profile, seed)), plan, workers, &mut || ())
}

/// The three of the ten that are quick without optimisation, and the one that fails.
fn suite(mode: Mode, seed: u64) -> Report {
    let tests = [TEN[0], TEN[2], TEN[4], TEN[9]];
    let config = SuiteConfig::default().mode(mode).threads([THREADS]).iterations(3).tests(tests);
    let device = Arc::new(SimMps::new(Profile::fork_2_9_1(), seed));
    run_suite(&device, &config, &mut ()).unwrap()
}

#[test]
fn threads_fail_the_transformer_block_alone_and_one_worker_none() {
    within_time(|| {
        let mut failed = 0;
        for seed in 0..3 {
            let report = suite(Mode::Parallel, seed);
            assert_eq!(report.device, "sim-mps:fork-2.9.1");
            assert_eq!((report.device_kind, report.seed), (DeviceKind::Simulated, Some(seed)));
            for result in &report.results {
                let block = result.name == "TransformerBlock";
                assert!(result.passed || block, "seed {seed}: {result:?}");
                failed += usize::from(!result.passed);
            }
            let report = suite(Mode::Batched, seed);
            assert!(report.all_passed(), "seed {seed}: {report:#?}");
        }
        assert!(failed > 0);
    });
}

#[test]
fn every_operation_gives_the_numbers_of_the_reference() {
    within_time(|| {
        let cases = [TEN[0], TEN[2], TEN[4], TEN[9]].into_iter().chain([
            MLP,
            ATTENTION_PACKED,
            ATTENTION_CHUNKED,
        ]);
        for case in cases {
            let plan = Plan { tolerance: Tolerance::both(1e-4), ..plan(case, 2) };
            let device = Arc::new(SimMps::new(Profile::fork_2_9_1(), 0));
            let outcome = run_single(&device, &plan, &mut || ());
            assert!(outcome.passed(), "{}: {outcome:?}", case.name);
        }
    });
}

#[test]
fn the_race_is_found_with_contiguous_and_not_without() {
    within_time(|| {
        let fork = Profile::fork_2_9_1;
        let outcome = direct(fork(), 0, &plan(RACE_CONTIGUOUS, 4));
        assert!(!outcome.passed() && !outcome.hung);
        assert!((10.0..1000.0).contains(&outcome.max_diff.unwrap()), "{outcome:?}");
        assert!(outcome.passed_iterations < 4);
        assert!(direct(fork(), 0, &plan(RACE_VIEWS, 4)).passed());
        assert!(batched(fork(), 0, (&plan(RACE_CONTIGUOUS, 4), 1)).passed());
        for cured in [
            fork().with_reuse(Reuse::PerStream),
            fork().with_reuse(Reuse::Retain),
            fork().with_streams(StreamPolicy::Shared),
            Profile::upstream_2_15(),
            Profile::user_streams_2_15(),
        ] {
            let outcome = direct(cured.clone(), 0, &plan(RACE_CONTIGUOUS, 4));
            assert!(outcome.passed(), "{cured:?}: {outcome:?}");
        }
    });
}

#[test]
fn equal_seeds_give_equal_runs_of_real_threads() {
    within_time(|| {
        let run = |seed| {
            let config = SimConfig::new(Profile::fork_2_9_1()).seed(seed).traced(true);
            let device = Arc::new(SimMps::with(config));
            let outcome = run_direct(&device, &plan(RACE_CONTIGUOUS, 3), &mut || ());
            (outcome, device.trace(), device.stats())
        };
        let first = run(7);
        for _ in 0..3 {
            let again = run(7);
            assert_eq!(again.0, first.0);
            assert!(again.1 == first.1, "the traces differ");
            assert_eq!(again.2, first.2);
        }
        assert!(run(8).1 != first.1, "another seed is another order");
    });
}

#[test]
fn an_abort_is_a_failed_test_that_says_simulated() {
    within_time(|| {
        let outcome = direct(Profile::upstream_2_14(), 0, &plan(MLP, 4));
        assert!(!outcome.passed() && !outcome.hung);
        assert!(outcome.errors[0].contains("(simulated; thread `t"), "{:?}", outcome.errors);
        assert!(batched(Profile::upstream_2_14(), 0, (&plan(MLP, 4), 1)).passed());
    });
}

/// "Two workers by mistake", through the real queue: which requests run at once is the system's choice,
/// so that one seed may pass.
#[test]
fn two_workers_by_mistake_are_noticed() {
    within_time(|| {
        let fails = |workers: usize, seed: u64| {
            let outcome = batched(Profile::fork_2_9_1(), seed, (&plan(BLOCK_PACKED, 6), workers));
            assert!(!outcome.hung, "{outcome:?}");
            !outcome.passed()
        };
        assert!((0..3).all(|seed| !fails(1, seed)));
        assert!((0..20).any(|seed| fails(2, seed)));
    });
}

/// A request of [`Answering`].
struct Job(HostTensor);

impl BatchItem for Job {
    type Key = ();

    fn key(&self) {}
}

/// An engine that answers with tensors on the device, after a synchronise or, by mistake, before it.
struct Answering {
    weights: Vec<Tensor>,
    ops: SimOps,
    synchronises: bool,
}

impl Answering {
    fn new(device: &SimMps, synchronises: bool) -> OpResult<Self> {
        let ops = device.attach(Caller::Worker)?;
        let weights = BLOCK_PACKED.weights().iter().map(|w| ops.upload(w)).collect();
        let weights: OpResult<Vec<Tensor>> = weights;
        let weights = weights?;
        ops.synchronise()?;
        ops.pause();
        Ok(Self { weights, ops, synchronises })
    }

    fn run(&self, batch: &[Job]) -> OpResult<Vec<Tensor>> {
        let answers = batch.iter().map(|job| {
            let x = self.ops.upload(&job.0)?;
            BLOCK_PACKED.program.forward(&self.ops, &self.weights, &[x])
        });
        let answers = answers.collect();
        if self.synchronises {
            self.ops.synchronise()?;
        }
        answers
    }
}

impl Engine for Answering {
    type Item = Job;
    type Output = Tensor;

    fn infer(&mut self, batch: &[Job]) -> Result<Vec<Tensor>, EngineError> {
        self.ops.resume();
        let answers = self.run(batch);
        self.ops.pause();
        answers.map_err(EngineError::failed)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.ops.resume();
    }
}

/// "Completing a request before its synchronise", through the real queue: the block's last layer norm is
/// pending on the worker's stream when the client reads it.
#[test]
fn completing_before_synchronise_is_noticed() {
    within_time(|| {
        let right = |synchronises: bool| {
            let device = Arc::new(SimMps::new(Profile::fork_2_9_1(), 0));
            let executor = DeviceExecutor::new(ExecutorConfig::new(device.name())).unwrap();
            let queue = {
                let device = Arc::clone(&device);
                BatchQueue::new(&executor, BatchConfig::default(), move || {
                    Answering::new(&device, synchronises).map_err(EngineError::failed)
                })
            };
            let queue = queue.unwrap();
            let inputs = BLOCK_PACKED.inputs(BLOCK_PACKED.draw(0, 0));
            let golden = {
                let alone = SimMps::new(Profile::fork_2_9_1(), 0);
                let ops = alone.attach(Caller::Golden).unwrap();
                let upload = |host: &HostTensor| ops.upload(host).unwrap();
                let weights: Vec<Tensor> = BLOCK_PACKED.weights().iter().map(upload).collect();
                let x = ops.upload(&inputs[0]).unwrap();
                let result = BLOCK_PACKED.program.forward(&ops, &weights, &[x]).unwrap();
                ops.download(&result).unwrap()
            };
            let answer = queue.submit(Job(inputs[0].clone())).unwrap().wait().unwrap();
            let answer = answer.download().unwrap();
            let answer = HostTensor::shared(answer.shape(), answer.shared_data());
            compare(&answer, &golden, RACE_TOLERANCE).fault.is_none()
        };
        assert!(right(true), "the queue itself is right");
        assert!(!right(false), "the mistake went unnoticed");
    });
}
