//! Single-threaded mode: the device against the reference on the CPU.

use std::sync::Arc;

use crate::compare::{Spread, compare};
use crate::crew::{Crew, Pulse};
use crate::device::{Caller, Device};
use crate::golden::{Golden, Model};
use crate::ops::OpResult;
use crate::outcome::{Check, Outcome, Plan};
use crate::reference::Reference;

/// Runs a plan on one thread and compares every result with the plain-Rust reference's.
///
/// The plan's number of threads is not used.
///
/// # Blocking
/// Until the run is done, or made no progress for the plan's `stall_after`.
pub fn run_single<D: Device>(device: &Arc<D>, plan: &Plan, step: &mut dyn FnMut()) -> Outcome {
    let plan = Plan { threads: 1, ..*plan };
    let device = Arc::clone(device);
    let body = move |_: usize, pulse: &Pulse<OpResult<Vec<Check>>>| -> OpResult<Vec<Check>> {
        let reference = Reference.attach(Caller::Golden)?;
        let golden = Golden::compute(&reference, &plan.case, 1, 1, || ())?;
        let sample = golden.sample(plan.case.draw(0, 0));
        let ops = device.attach(Caller::Thread(0))?;
        let model = Model::upload(&ops, &plan.case)?;
        let checks = (0..plan.iterations).map(|_| {
            let check = model.run(&ops, &sample.inputs);
            pulse.step();
            let result = check.map_err(|error| error.to_string())?;
            Ok(compare(&result, &sample.result, plan.tolerance))
        });
        Ok(checks.collect())
    };
    let joined = match Crew::start(plan.case.name, 1, body) {
        Ok(crew) => crew.join(plan.stall_after, step),
        Err(error) => return Outcome::broken(error),
    };
    match joined {
        Ok(results) => {
            let flat = results
                .into_iter()
                .map(|result| result.and_then(|checks| checks.map_err(|error| error.to_string())));
            Outcome::gather(&plan, flat.collect(), &Spread::default())
        }
        Err(hung) => Outcome::hung(&plan, "on the device", &hung),
    }
}
