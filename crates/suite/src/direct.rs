//! Parallel mode without a queue: threads call the device directly, all at once.
//!
//! The golden results come from the same operations on the same device, run one after another by
//! one spawned thread that has ended before the others start. Each thread then uploads its own copy
//! of the weights and inputs, waits for the others, runs, brings the result to the host and
//! compares, in every iteration anew.

use std::sync::Arc;

use crate::case::Draw;
use crate::compare::{Spread, compare};
use crate::crew::{Crew, Pulse, caught};
use crate::device::{Caller, Device, Rendezvous};
use crate::golden::{Golden, Model, upload};
use crate::ops::{OpResult, Ops};
use crate::outcome::{Check, Outcome, Plan};

/// Runs a plan by threads that call the device directly.
///
/// # Blocking
/// Until the run is done, or made no progress for the plan's `stall_after`; threads that hang are
/// left behind.
pub fn run_direct<D: Device>(device: &Arc<D>, plan: &Plan, step: &mut dyn FnMut()) -> Outcome {
    let golden = match golden(device, plan) {
        Ok(golden) => Arc::new(golden),
        Err(outcome) => return outcome,
    };
    let spread = Arc::new(Spread::default());
    let meeting = device.rendezvous(plan.threads);
    let member = {
        let (device, spread, plan) = (Arc::clone(device), Arc::clone(&spread), *plan);
        move |thread: usize, pulse: &Pulse<Vec<Check>>| {
            let member = Member {
                thread,
                plan: &plan,
                golden: &golden,
                spread: &spread,
                meeting: &*meeting,
            };
            member.run(&*device, pulse)
        }
    };
    let joined = match Crew::start(plan.case.name, plan.threads, member) {
        Ok(crew) => crew.join(plan.stall_after, step),
        Err(error) => return Outcome::broken(error),
    };
    match joined {
        Ok(threads) => Outcome::gather(plan, threads, &spread),
        Err(hung) => Outcome::hung(plan, "on the device", &hung),
    }
}

/// Computes the golden results in one spawned thread, and waits for its end.
fn golden<D: Device>(device: &Arc<D>, plan: &Plan) -> Result<Golden, Outcome> {
    let body = {
        let (device, plan) = (Arc::clone(device), *plan);
        move |_: usize, pulse: &Pulse<OpResult<Golden>>| {
            let ops = device.attach(Caller::Golden)?;
            Golden::compute(&ops, &plan.case, plan.threads, plan.iterations, || {
                pulse.step();
            })
        }
    };
    let broken = |error: String| Outcome::broken(format!("golden result: {error}"));
    let crew = Crew::start("golden", 1, body).map_err(broken)?;
    let results = crew
        .join(plan.stall_after, || ())
        .map_err(|hung| Outcome::hung(plan, "computing the golden result", &hung))?;
    let golden = results.into_iter().next().expect("a crew of one has one result");
    match golden {
        Ok(Ok(golden)) => Ok(golden),
        Ok(Err(error)) => Err(broken(error.to_string())),
        Err(panic) => Err(broken(panic)),
    }
}

/// One of the threads that run at once.
struct Member<'a> {
    thread: usize,
    plan: &'a Plan,
    golden: &'a Golden,
    spread: &'a Spread,
    meeting: &'a dyn Rendezvous,
}

/// A thread's model and the inputs that it uploaded last.
struct Ready<O: Ops> {
    // Dropped in this order: tensors before the view of the device that they live on.
    model: Model<O>,
    uploaded: Option<(Draw, Vec<O::Tensor>)>,
    ops: O,
}

impl Member<'_> {
    fn run<D: Device>(&self, device: &D, pulse: &Pulse<Vec<Check>>) -> Vec<Check> {
        let mut ready = attempt(|| {
            let ops = device.attach(Caller::Thread(self.thread))?;
            let model = Model::upload(&ops, &self.plan.case)?;
            Ok(Ready { model, uploaded: None, ops })
        });
        let mut checks = Vec::with_capacity(self.plan.iterations);
        for iteration in 0..self.plan.iterations {
            let draw = self.plan.case.draw(self.thread, iteration);
            if let Ok(state) = &mut ready
                && let Err(error) = attempt(|| self.prepare(state, draw))
            {
                ready = Err(error);
            }
            // CORRECTNESS: every thread meets in every iteration, whatever failed in it before.
            self.meeting.meet();
            checks.push(match &ready {
                Ok(state) => self.check(state, draw),
                Err(error) => Err(error.clone()),
            });
            pulse.step();
        }
        checks
    }

    /// Uploads this thread's own copy of the draw's inputs, unless it has it already.
    fn prepare<O: Ops>(&self, state: &mut Ready<O>, draw: Draw) -> OpResult<()> {
        if state.uploaded.as_ref().is_none_or(|(d, _)| *d != draw) {
            state.uploaded = None;
            let inputs = upload(&state.ops, &self.golden.sample(draw).inputs)?;
            state.uploaded = Some((draw, inputs));
        }
        state.ops.synchronise()
    }

    fn check<O: Ops>(&self, state: &Ready<O>, draw: Draw) -> Check {
        let (_, inputs) =
            state.uploaded.as_ref().expect("the inputs were uploaded before the threads met");
        let result = attempt(|| state.model.run_uploaded(&state.ops, inputs))?;
        let golden = &self.golden.sample(draw).result;
        self.spread.add(draw, &result, golden);
        Ok(compare(&result, golden, self.plan.tolerance))
    }
}

/// Runs a step on the device; a panic is an error as any other.
fn attempt<T>(step: impl FnOnce() -> OpResult<T>) -> Result<T, String> {
    caught(step)?.map_err(|error| error.to_string())
}
