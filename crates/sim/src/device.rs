//! [`SimDevice`]: how it is made, owned and looked at. What a thread does on it is where that lives:
//! memory in `buffer.rs`, commands in `encode.rs` and `commit.rs`, copies in `transfer.rs`.
//!
//! Every call here is made by a simulated thread: the calling real thread's one, see `registration.rs`.
//! Each action has a yield point before and after it, so that the schedule decides in which order the
//! actions of different threads come.

use std::sync::Arc;
use std::time::Duration;

use crate::baton::Baton;
use crate::error::{SimError, SimResult};
use crate::machine::Machine;
use crate::memo::Memo;
use crate::ownership::{OwnershipCheck, Violation};
use crate::process::{Process, ProcessState};
use crate::profile::Profile;
use crate::registration;
use crate::schedule::Schedule;
use crate::stats::SimStats;
use crate::thread_id::ThreadId;
use crate::trace::{ActionKind, Event, Trace};

/// How a simulated device is made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SimConfig {
    /// Which rules hold.
    pub profile: Profile,
    /// The seed of the schedule.
    pub seed: u64,
    /// How the next thread is chosen.
    pub schedule: Schedule,
    /// Whether events are recorded.
    pub traced: bool,
    /// Where results of pure commands are kept.
    pub memo: Option<Memo>,
    /// How long blocked threads wait, in real time, for one that is outside of the device before
    /// that counts as a hang.
    pub hang_after: Duration,
}

impl SimConfig {
    /// Seed 0, random schedule, no trace, no memo, 60 s.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            seed: 0,
            schedule: Schedule::Random,
            traced: false,
            memo: None,
            hang_after: Duration::from_secs(60),
        }
    }

    /// Sets the seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets how the next thread is chosen.
    #[must_use]
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Records events, or not.
    #[must_use]
    pub fn traced(mut self, traced: bool) -> Self {
        self.traced = traced;
        self
    }

    /// Keeps results of pure commands in `memo`.
    #[must_use]
    pub fn memo(mut self, memo: Memo) -> Self {
        self.memo = Some(memo);
        self
    }

    /// Sets how long blocked threads wait for one that is outside of the device.
    #[must_use]
    pub fn hang_after(mut self, hang_after: Duration) -> Self {
        self.hang_after = hang_after;
        self
    }
}

/// A simulated MPS device. A clone is another handle on the same device.
///
/// # Example
/// ```
/// use onelane_sim::{Op, Profile, SimConfig, SimDevice};
///
/// let device = SimDevice::new(SimConfig::new(Profile::upstream_2_15()));
/// let x = device.alloc(4)?;
/// let y = device.alloc(4)?;
/// device.write(&x, &[1, 2, 3, 4])?;
/// device.encode(Op::kernel("double"), &[&x], &[&y], |reads, writes| {
///     for (to, from) in writes[0].iter_mut().zip(reads[0]) {
///         *to = from * 2;
///     }
/// })?;
/// // The kernel is pending. Reading commits it.
/// assert_eq!(device.read(&y)?, [2, 4, 6, 8]);
/// # Ok::<(), onelane_sim::SimError>(())
/// ```
#[derive(Clone, Debug)]
pub struct SimDevice {
    pub(crate) process: Arc<Process>,
}

impl SimDevice {
    /// Makes a device, with a simulated process of its own around it.
    pub fn new(config: SimConfig) -> Self {
        let baton = Baton::new(&config.schedule, config.seed, config.profile.real_faults);
        let machine = Machine::new(config.profile, config.memo, config.traced);
        Self { process: Process::new(baton, machine, config.hang_after) }
    }

    /// Makes the calling thread an owner of the device, and checks every action of the others from
    /// now on.
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn own(&self, check: OwnershipCheck) -> SimResult<()> {
        self.turn(|thread| {
            let mut state = self.process.lock_running()?;
            let name = state.baton.name(thread).to_string();
            state.machine.ownership.check = check;
            state.machine.ownership.add_owner(thread, &name);
            Ok(())
        })
    }

    /// The actions of threads that do not own the device, each once.
    pub fn violations(&self) -> Vec<Violation> {
        self.process.lock().machine.ownership.violations.clone()
    }

    /// Empties the graph cache, as `torch.mps.empty_cache()` does since 2.13.
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn empty_cache(&self) -> SimResult<()> {
        self.turn(|thread| {
            let mut state = self.process.yield_point(thread)?;
            state.machine.graphs.clear();
            Ok(())
        })
    }

    /// The counters.
    pub fn stats(&self) -> SimStats {
        let state = self.process.lock();
        let machine = &state.machine;
        let graphs = machine.graphs.len();
        SimStats {
            steps: state.baton.step,
            switches: state.baton.switches,
            most_command_buffers: machine.streams.most_in_flight,
            shaders: machine.shaders.len(),
            graphs,
            graph_bytes: graphs as u64 * machine.profile.graph_bytes,
            violations: machine.ownership.violations.len(),
            ..machine.stats.clone()
        }
    }

    /// The events up to now; empty when they are not recorded.
    pub fn trace(&self) -> Trace {
        self.process.lock().machine.trace()
    }

    /// The rules that hold.
    pub fn profile(&self) -> Profile {
        self.process.lock().machine.profile.clone()
    }

    /// The error that ended the simulated process, if one did.
    pub fn failure(&self) -> Option<SimError> {
        self.process.lock().baton.fatal.clone()
    }

    /// Runs `f` as the calling thread's simulated thread.
    pub(crate) fn turn<R>(&self, f: impl FnOnce(ThreadId) -> SimResult<R>) -> SimResult<R> {
        registration::with_turn(&self.process, f)
    }

    /// Runs an action on the device: a turn with a yield point after it. The action has its own before.
    pub(crate) fn act<R>(&self, f: impl FnOnce(ThreadId) -> SimResult<R>) -> SimResult<R> {
        self.turn(|thread| {
            let result = f(thread)?;
            drop(self.process.yield_point(thread)?);
            Ok(result)
        })
    }
}

impl ProcessState {
    /// Checks that a thread may act on the device (rule R10).
    pub(crate) fn check_owner(
        &mut self,
        thread: ThreadId,
        kind: ActionKind,
        operation: &str,
    ) -> SimResult<()> {
        let name = self.baton.name(thread);
        self.machine
            .ownership
            .check((thread, name), kind, operation, self.baton.step)
            .map_err(SimError::Affinity)
    }

    /// Records an event that `fill` completes.
    pub(crate) fn record_on(
        &mut self,
        thread: ThreadId,
        kind: ActionKind,
        fill: impl FnOnce(&mut Event),
    ) {
        self.baton.note(kind);
        let (step, name) = (self.baton.step, self.baton.name(thread));
        self.machine.record_event(|| {
            let mut event = Event {
                step,
                thread: name.to_string(),
                kind,
                name: String::new(),
                stream: None,
                command_buffer: None,
                reads: Vec::new(),
                writes: Vec::new(),
                bytes: None,
            };
            fill(&mut event);
            event
        });
    }
}
