//! A queue over a child, and what tests do with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use onelane::{
    BatchConfig, BatchQueue, BuildError, DeviceExecutor, EngineError, ExecutorConfig, RequestError,
    Shutdown,
};
use onelane_isolate::{ChildLost, Isolated, IsolationConfig, Supervisor, this_program};
use rustix::process::{Pid, Signal};

use crate::engine::{Act, Actor, Ask, Reply};

pub type Tests = Vec<(&'static str, fn())>;

/// How long something that has to happen may take.
pub const SOON: Duration = Duration::from_secs(30);

pub struct World {
    pub queue: BatchQueue<Isolated<Actor>>,
    pub supervisor: Supervisor,
    pub device: DeviceExecutor,
}

/// Variables of the child, without their prefix.
pub type Variables = BTreeMap<&'static str, String>;

pub fn supervisor(config: IsolationConfig, variables: Variables) -> Supervisor {
    let command = move || {
        let mut command = this_program();
        for (name, value) in &variables {
            command.env(format!("ONELANE_TEST_{name}"), value);
        }
        command
    };
    Supervisor::new(command, config).expect("usable settings")
}

pub fn try_world(supervisor: Supervisor) -> Result<World, BuildError> {
    try_world_of(supervisor, 1)
}

pub fn try_world_of(supervisor: Supervisor, workers: usize) -> Result<World, BuildError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let config = ExecutorConfig::new(format!("test:{number}")).workers(workers);
    let device = DeviceExecutor::new(config)?;
    let factory = Isolated::<Actor>::factory(&supervisor);
    let queue = BatchQueue::new(&device, BatchConfig::default().max_batch_size(64), factory)?;
    Ok(World { queue, supervisor, device })
}

pub fn world(config: IsolationConfig) -> World {
    try_world(supervisor(config, Variables::new())).expect("a child")
}

pub fn world_with(config: IsolationConfig, variables: &[(&'static str, &str)]) -> World {
    let variables = variables.iter().map(|&(name, value)| (name, value.to_owned())).collect();
    try_world(supervisor(config, variables)).expect("a child")
}

impl World {
    pub fn ask(&self, act: Act, value: u64) -> Result<Reply, RequestError> {
        self.queue.submit(Ask::new(act, value)).expect("open").wait()
    }

    pub fn echoes(&self, value: u64) {
        assert_eq!(self.ask(Act::Echo, value).expect("an echo").0, value);
    }

    /// Runs all of these as one batch: the worker is kept busy while they are submitted.
    pub fn batch(&self, asks: Vec<Ask>) -> Vec<Result<Reply, RequestError>> {
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let busy = self.device.submit(move || gate.recv().is_ok()).expect("open");
        let submit = |ask| self.queue.submit(ask).expect("open");
        let handles: Vec<_> = asks.into_iter().map(submit).collect();
        go.send(()).expect("the worker waits");
        busy.wait().expect("no panic");
        handles.into_iter().map(|handle| handle.wait()).collect()
    }

    /// The child that serves now, if no other lives.
    pub fn child(&self) -> u32 {
        let children = self.supervisor.stats().children;
        assert_eq!(children.len(), 1, "{children:?}");
        children[0]
    }

    /// Shuts down, and checks that nothing of it is left.
    pub fn close(self) {
        let children = self.supervisor.stats().children;
        self.queue.shutdown(Shutdown::Drain, SOON).expect("in time");
        let left = self.supervisor.stats().children;
        assert!(left.is_empty(), "children after the shutdown: {left:?}");
        for pid in children {
            assert!(!exists(pid), "child {pid} is left");
        }
    }
}

/// The loss behind an error.
pub fn lost(error: &RequestError) -> ChildLost {
    match error {
        RequestError::Engine(EngineError::Lost(source)) => {
            source.downcast_ref::<ChildLost>().expect("it is the source").clone()
        }
        other => panic!("not lost: {other}"),
    }
}

pub fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().expect("a pid")).expect("not zero")
}

pub fn signal(to: u32, signal: Signal) {
    // It may be gone already.
    let _ = rustix::process::kill_process(pid(to), signal);
}

/// Whether there is such a process, not counting one that has only to be reaped. Its first thread
/// may be gone while others still hold its descriptors.
#[cfg(target_os = "linux")]
pub fn exists(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_zombie = stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"));
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads > 1 || (threads == 1 && !is_zombie)
}

#[cfg(not(target_os = "linux"))]
pub fn exists(child: u32) -> bool {
    rustix::process::test_kill_process(pid(child)).is_ok()
}

/// Waits for something that is bound to happen; how long it took.
pub fn eventually(what: &str, limit: Duration, condition: impl Fn() -> bool) -> Duration {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    since.elapsed()
}

/// A directory that goes with the value.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("onelane-isolate-test-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
