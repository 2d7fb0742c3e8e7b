//! H15: streams that belong to a thread. A lock does not help; a worker that builds and runs the model
//! does.

use super::data::{Seeded, WEIGHTS};
use super::workload::{Row, Workload};
use crate::device::{SimConfig, SimDevice};
use crate::error::SimResult;
use crate::profile::Profile;
use crate::sync::SimLock;

/// Who builds the model, and who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Use {
    /// The main thread builds it, another thread runs it.
    OtherThread,
    /// The same, under a lock that all use.
    UnderLock,
    /// One worker builds and runs it.
    Worker,
}

/// Runs an MLP under a profile with thread-affine streams.
///
/// # Errors
/// [`SimError::NoStream`](crate::SimError::NoStream) when a thread uses another one's stream.
pub fn affinity(profile: Profile, how: Use, seed: u64) -> SimResult<()> {
    let device = SimDevice::new(SimConfig::new(profile).seed(seed));
    let workload = Workload::new(Row::Mlp);
    let weights = workload.weights();
    let host = Seeded::new(WEIGHTS).normal(&[4, 256]);
    device.run(|main| {
        let lock = SimLock::new(&device, "model");
        let shared = match how {
            Use::Worker => None,
            _ => Some(workload.build(&device, &weights)?),
        };
        device.synchronise()?;
        let run = || {
            let own;
            let model = match &shared {
                Some(model) => model,
                None => {
                    own = workload.build(&device, &weights)?;
                    &own
                }
            };
            model.forward(&device.upload(&host)?)?.download().map(drop)
        };
        main.scope(|scope| {
            let thread = scope.spawn("thread", |_| match how {
                Use::UnderLock => lock.with(run).and_then(|result| result),
                Use::OtherThread | Use::Worker => run(),
            });
            thread.join().and_then(|result| result)
        })
    })?
}
