//! Parallel mode with a queue: threads keep host data and submit to a [`BatchQueue`]; only the
//! worker touches the device.
//!
//! One queue serves one test. Its engine holds the weights; a request carries its inputs and a
//! tag, which comes back with the response, so that an answer to somebody else's request is
//! noticed even where the inputs are equal. A batch is uploaded, run and downloaded as **one**
//! tensor, the requests stacked along the outermost dimension and the result cut into equal parts;
//! that tests the stacking and cutting that a batching engine must get right. A plain matrix
//! product cannot be stacked, since each request brings its own right operand: there the requests
//! of a batch run in turn before one synchronise.
//!
//! The golden results are computed by the worker too, one at a time, before the queue is made:
//! nothing but the worker ever calls the device.

use std::sync::{Arc, Barrier};

use onelane::{
    BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig,
    Shutdown,
};

use crate::case::Case;
use crate::compare::{Spread, compare};
use crate::crew::{Crew, Pulse};
use crate::device::{Caller, Device};
use crate::golden::{Golden, Model, upload};
use crate::host::HostTensor;
use crate::ops::{OpResult, Ops};
use crate::outcome::{Batches, Check, Outcome, Plan};

/// The most elements in a batch, inputs and results together: 256 MiB of fp32, so that large tests
/// on many threads do not need more memory than a small machine has.
const MAX_BATCH_ELEMENTS: usize = 64 << 20;

/// Runs a plan by threads that submit to a queue, whose device executor has `workers` workers.
///
/// # Blocking
/// Until the run is done, or made no progress for the plan's `stall_after`; threads that hang are
/// left behind.
pub fn run_batched<D: Device>(
    device: &Arc<D>,
    plan: &Plan,
    workers: usize,
    step: &mut dyn FnMut(),
) -> Outcome {
    let config = ExecutorConfig::new(device.name()).workers(workers);
    let executor = match DeviceExecutor::new(config) {
        Ok(executor) => executor,
        Err(error) => return Outcome::broken(error.to_string()),
    };
    let outcome = run_on(&executor, device, plan, step);
    if outcome.hung {
        // Its last handle would wait for the worker, which does not come back.
        std::mem::forget(executor);
        return outcome;
    }
    match executor.shutdown(Shutdown::Drain, plan.stall_after) {
        Ok(()) => outcome,
        Err(error) => {
            std::mem::forget(executor);
            Outcome {
                hung: true,
                ..Outcome::broken(format!("the device executor did not stop: {error}"))
            }
        }
    }
}

fn run_on<D: Device>(
    executor: &DeviceExecutor,
    device: &Arc<D>,
    plan: &Plan,
    step: &mut dyn FnMut(),
) -> Outcome {
    let (golden, queue) = match prepare(executor, device, plan) {
        Ok((golden, queue)) => (Arc::new(golden), queue),
        Err(outcome) => return outcome,
    };
    let spread = Arc::new(Spread::default());
    let client = {
        let (queue, spread, plan) = (queue.clone(), Arc::clone(&spread), *plan);
        let meeting = Arc::new(Barrier::new(plan.threads));
        move |thread: usize, pulse: &Pulse<Vec<Check>>| {
            meeting.wait();
            let client =
                Client { thread, plan: &plan, golden: &golden, spread: &spread, queue: &queue };
            let checks = (0..plan.iterations).map(|iteration| {
                let check = client.check(iteration);
                pulse.step();
                check
            });
            checks.collect()
        }
    };
    let joined = match Crew::start(plan.case.name, plan.threads, client) {
        Ok(crew) => crew.join(plan.stall_after, step),
        Err(error) => return Outcome::broken(error),
    };
    match joined {
        Ok(threads) => {
            let stats = queue.stats();
            Outcome {
                batches: Some(Batches { count: stats.batches, mean_size: stats.mean_batch_size() }),
                ..Outcome::gather(plan, threads, &spread)
            }
        }
        Err(hung) => {
            std::mem::forget(queue);
            Outcome::hung(plan, "waiting for the queue", &hung)
        }
    }
}

type Prepared<D> = (Golden, BatchQueue<CaseEngine<D>>);

/// Computes the golden results on the worker, then makes the queue.
fn prepare<D: Device>(
    executor: &DeviceExecutor,
    device: &Arc<D>,
    plan: &Plan,
) -> Result<Prepared<D>, Outcome> {
    let body = {
        let (executor, device, plan) = (executor.clone(), Arc::clone(device), *plan);
        move |_: usize, pulse: &Pulse<Result<Prepared<D>, String>>| {
            let golden = {
                let (device, pulse) = (Arc::clone(&device), pulse.clone());
                executor.call(move || {
                    let ops = device.attach(Caller::Golden)?;
                    Golden::compute(&ops, &plan.case, plan.threads, plan.iterations, || {
                        pulse.step();
                    })
                })
            };
            let golden = golden
                .map_err(|error| format!("golden result: {error}"))?
                .map_err(|error| format!("golden result: {error}"))?;
            let config = BatchConfig::default()
                .name(plan.case.name)
                .capacity(plan.threads.max(1))
                .max_batch_cost(MAX_BATCH_ELEMENTS.max(golden.greatest_elements()));
            let device = Arc::clone(&device);
            let queue = BatchQueue::new(&executor, config, move || {
                CaseEngine::new(&*device, &plan.case).map_err(EngineError::failed)
            });
            queue.map(|queue| (golden, queue)).map_err(|error| error.to_string())
        }
    };
    let crew = Crew::start("prepare", 1, body).map_err(Outcome::broken)?;
    let results = crew
        .join(plan.stall_after, || ())
        .map_err(|hung| Outcome::hung(plan, "computing the golden result", &hung))?;
    let prepared = results.into_iter().next().expect("a crew of one has one result");
    prepared.and_then(|result| result).map_err(Outcome::broken)
}

/// Who asked, and when: comes back with the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    thread: usize,
    iteration: usize,
}

/// One request: a tag and host inputs.
struct Job {
    test: &'static str,
    tag: Tag,
    inputs: Arc<Vec<HostTensor>>,
    /// Elements of the inputs and of the result.
    elements: usize,
}

impl BatchItem for Job {
    type Key = &'static str;

    fn key(&self) -> &'static str {
        self.test
    }

    fn cost(&self) -> usize {
        self.elements
    }
}

/// One thread that submits.
struct Client<'a, D: Device> {
    thread: usize,
    plan: &'a Plan,
    golden: &'a Golden,
    spread: &'a Spread,
    queue: &'a BatchQueue<CaseEngine<D>>,
}

impl<D: Device> Client<'_, D> {
    fn check(&self, iteration: usize) -> Check {
        let draw = self.plan.case.draw(self.thread, iteration);
        let sample = self.golden.sample(draw);
        let tag = Tag { thread: self.thread, iteration };
        let job = Job {
            test: self.plan.case.name,
            tag,
            inputs: Arc::clone(&sample.inputs),
            elements: sample.elements(),
        };
        let handle = self.queue.submit(job).map_err(|error| error.to_string())?;
        let (answered, result) = handle.wait().map_err(|error| error.to_string())?;
        if answered != tag {
            return Err(format!("the response is that of another request: {answered:?}"));
        }
        self.spread.add(draw, &result, &sample.result);
        Ok(compare(&result, &sample.result, self.plan.tolerance))
    }
}

/// Runs batches of one case; lives on the worker.
struct CaseEngine<D: Device> {
    // Dropped in this order: the weights before the view of the device that they live on.
    model: Model<D::Ops>,
    ops: D::Ops,
}

impl<D: Device> CaseEngine<D> {
    fn new(device: &D, case: &Case) -> OpResult<Self> {
        let ops = device.attach(Caller::Worker)?;
        let model = Model::upload(&ops, case)?;
        // Between batches the worker waits for requests, not for the device.
        ops.pause();
        Ok(Self { model, ops })
    }

    fn run(&self, batch: &[Job]) -> OpResult<Vec<HostTensor>> {
        let _active = Active::on(&self.ops);
        if batch.len() > 1 && self.model.case.program.stacks() {
            self.run_stacked(batch)
        } else {
            self.run_in_turn(batch)
        }
    }

    fn run_stacked(&self, batch: &[Job]) -> OpResult<Vec<HostTensor>> {
        let inputs = {
            let positions = 0..batch[0].inputs.len();
            let stacks = positions.map(|at| {
                let parts: Vec<_> = batch.iter().map(|job| &job.inputs[at]).collect();
                self.ops.upload(&HostTensor::stacked(&parts))
            });
            stacks.collect::<OpResult<Vec<_>>>()?
        };
        let program = self.model.case.program.stacked(batch.len());
        let result = program.forward(&self.ops, &self.model.weights, &inputs)?;
        self.ops.synchronise()?;
        let result = self.ops.download(&result)?;
        Ok(result.split(batch.len()).expect("each request gives an equal share of the rows"))
    }

    fn run_in_turn(&self, batch: &[Job]) -> OpResult<Vec<HostTensor>> {
        let mut results = Vec::with_capacity(batch.len());
        for job in batch {
            let inputs = upload(&self.ops, &job.inputs)?;
            let program = self.model.case.program;
            results.push(program.forward(&self.ops, &self.model.weights, &inputs)?);
        }
        self.ops.synchronise()?;
        results.iter().map(|result| self.ops.download(result)).collect()
    }
}

impl<D: Device> Engine for CaseEngine<D> {
    type Item = Job;
    type Output = (Tag, HostTensor);

    fn infer(&mut self, batch: &[Job]) -> Result<Vec<Self::Output>, EngineError> {
        let results = self.run(batch).map_err(EngineError::failed)?;
        let tags = batch.iter().map(|job| job.tag);
        Ok(tags.zip(results).collect())
    }
}

impl<D: Device> Drop for CaseEngine<D> {
    fn drop(&mut self) {
        // Freeing tensors is work on the device too.
        self.ops.resume();
    }
}

/// The worker uses the device for as long as this lives, also when a panic ends it.
struct Active<'a, O: Ops>(&'a O);

impl<'a, O: Ops> Active<'a, O> {
    fn on(ops: &'a O) -> Self {
        ops.resume();
        Self(ops)
    }
}

impl<O: Ops> Drop for Active<'_, O> {
    fn drop(&mut self) {
        self.0.pause();
    }
}
