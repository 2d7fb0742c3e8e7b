//! [`World`]: one life of a queue over children that fail.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use onelane::{BatchConfig, BatchQueue, DeviceExecutor, ExecutorConfig};
use onelane_isolate::{Isolated, IsolationConfig, Supervisor, this_program};

use super::engine::Faulty;

/// A batch that takes this long hangs. Those that hang on purpose take up to five times as long.
const HANG: Duration = Duration::from_secs(2);
/// Above this a child is replaced.
const MAX_MEMORY: u64 = 40 << 20;
/// Says that this process is such a parent.
pub(super) const VARIABLE: &str = "ONELANE_CHAOS_DOOMED";
/// Why the lock around the present world is never poisoned.
pub(super) const UNPOISONED: &str = "nobody panics with it";

/// One queue over its children.
pub(super) struct World {
    pub(super) queue: BatchQueue<Isolated<Faulty>>,
    pub(super) device: DeviceExecutor,
    pub(super) supervisor: Supervisor,
    /// Requests may be answered `Closed`, and submitting is refused.
    pub(super) ended: AtomicBool,
}

impl World {
    pub(super) fn new(number: u64, dice: &mut fastrand::Rng) -> anyhow::Result<Self> {
        let config = IsolationConfig::default()
            .hang(HANG)
            .grace(Duration::from_millis(500))
            .max_memory(MAX_MEMORY)
            // On a busy machine one request may be struck from outside more than once.
            .retries(3)
            .spare(dice.bool());
        let config = if dice.bool() { config.recycle_batches(dice.u64(20..400)) } else { config };
        let supervisor = Supervisor::new(child, config)?;
        let executor = ExecutorConfig::new(format!("chaos:{number}")).workers(dice.usize(1..3));
        let device = DeviceExecutor::new(executor)?;
        let batches = BatchConfig::default().max_batch_size(16).capacity(64).max_rebuilds(1000);
        let queue = BatchQueue::new(&device, batches, Isolated::<Faulty>::factory(&supervisor))?;
        Ok(Self { queue, device, supervisor, ended: AtomicBool::new(false) })
    }
}

pub(super) fn child() -> std::process::Command {
    let mut command = this_program();
    // A backtrace takes seconds on a busy machine, which would count as a hang.
    command.env_remove(VARIABLE).env("RUST_BACKTRACE", "0");
    command
}
