//! The supervisor: starts the children of one queue, keeps a spare, ends those that are no longer
//! needed, and counts.
//!
//! Invariants: a child that lives is in exactly one place: an engine, the spare's, or a background
//! thread that starts or ends it. No lock is held while a child is waited for. When the last engine
//! goes in good order, or the factory does, the spare and the background threads are gone as well.

use std::fmt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use onelane::ConfigError;

use crate::child::Child;
use crate::children::Children;
use crate::config::IsolationConfig;
use crate::error::ChildLost;
use crate::stats::IsolationStats;
use crate::sync::{self, AtomicBool, Condvar, JoinHandle, Mutex, MutexGuard};
use crate::worker::Worker;

/// The pause after a start that failed; it doubles with each in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
const REBUILD_ATTEMPTS: u32 = 3;
/// How often a pause looks whether it is still wanted.
const BACKOFF_SLICE: Duration = Duration::from_millis(20);

/// Starts and watches the children that run the engine of one queue. A handle: clones are of the
/// same supervisor, and may be kept for its statistics.
#[derive(Clone)]
pub struct Supervisor {
    pub(crate) shared: Arc<Shared<Worker>>,
}

/// What handles, engines and background threads share.
pub(crate) struct Shared<C> {
    pub(crate) children: Arc<Children>,
    state: Mutex<State<C>>,
    /// Signalled when the spare has become ready, or will not.
    changed: Condvar,
}

struct State<C> {
    spare: Spare<C>,
    engines: usize,
    /// Whether a child has ever become ready.
    has_started: bool,
    /// Starts in a row that failed, and when the last one did.
    failures: u32,
    failed_at: Option<Instant>,
    background: Vec<JoinHandle<()>>,
}

enum Spare<C> {
    None,
    /// It is being started; set to end that.
    Starting(Arc<AtomicBool>),
    Ready(Box<C>),
}

impl Supervisor {
    /// Makes a supervisor; it starts nothing yet. `command` makes the command of a child: a program
    /// that calls [`serve`](crate::serve) first, [`this_program`](crate::this_program) say, or one
    /// in any language that speaks the [frames](crate::frame). Its stdin, stdout and stderr are
    /// replaced.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub fn new(
        command: impl Fn() -> Command + Send + Sync + 'static,
        config: IsolationConfig,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let children = Arc::new(Children::new(Box::new(command), config));
        Ok(Self { shared: Arc::new(Shared::new(children)) })
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> IsolationStats {
        let spare = matches!(self.shared.lock().spare, Spare::Ready(_));
        IsolationStats { spare, ..self.shared.children.stats() }
    }

    /// The settings that it was made with.
    pub fn config(&self) -> &IsolationConfig {
        &self.shared.children.config
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("config", self.config()).finish_non_exhaustive()
    }
}

impl<C> Spare<C> {
    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::None)
    }
}

impl<C: Child> Shared<C> {
    pub(crate) fn new(children: Arc<Children>) -> Self {
        let state = State {
            spare: Spare::None,
            engines: 0,
            has_started: false,
            failures: 0,
            failed_at: None,
            background: Vec::new(),
        };
        Self { children, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Starting.

    /// A child that is ready: the spare, or a new one.
    ///
    /// # Blocking
    /// For as long as a start takes, and the pause after starts that failed.
    pub(crate) fn take(self: &Arc<Self>) -> Result<C, ChildLost> {
        let worker = match self.take_spare() {
            Some(worker) => worker,
            None => self.start_persistently()?,
        };
        self.prepare_spare();
        Ok(worker)
    }

    /// Starts a child. One that dies on its way is tried again if the engine has been built before:
    /// then it was probably killed from outside, and requests wait for it. So is one that hangs,
    /// stopped from outside perhaps, but once: each such try takes as long as a start may.
    fn start_persistently(self: &Arc<Self>) -> Result<C, ChildLost> {
        let mut attempts = if self.lock().has_started { REBUILD_ATTEMPTS } else { 1 };
        loop {
            attempts -= 1;
            match self.start(&AtomicBool::new(false)) {
                Err(ChildLost::Crashed { .. }) if attempts > 0 => {}
                Err(ChildLost::Hung { .. }) if attempts > 0 => attempts = 1,
                started => return started,
            }
        }
    }

    fn take_spare(&self) -> Option<C> {
        let mut state = self.lock();
        loop {
            match state.spare.take() {
                Spare::None => return None,
                starting @ Spare::Starting(_) => {
                    state.spare = starting;
                    // CORRECTNESS: the thread that starts the spare changes it and signals, whether
                    // the start succeeds, fails or panics.
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Spare::Ready(worker) => {
                    drop(state);
                    match worker.idle() {
                        Ok(()) => return Some(*worker),
                        // It died while nobody needed it: nobody loses anything.
                        Err(interruption) => self.children.lost(&worker.lose(interruption).0),
                    }
                    state = self.lock();
                }
            }
        }
    }

    /// Puts another in the place of a spare that has died, which nobody would notice otherwise
    /// before it is needed.
    pub(crate) fn check_spare(self: &Arc<Self>) {
        let dead = {
            let mut state = self.lock();
            match state.spare.take() {
                Spare::Ready(worker) => match worker.idle() {
                    Ok(()) => {
                        state.spare = Spare::Ready(worker);
                        None
                    }
                    Err(interruption) => Some((worker, interruption)),
                },
                other => {
                    state.spare = other;
                    None
                }
            }
        };
        if let Some((worker, interruption)) = dead {
            self.children.lost(&worker.lose(interruption).0);
            self.prepare_spare();
        }
    }

    /// The spare, if it is ready now.
    pub(crate) fn take_ready_spare(self: &Arc<Self>) -> Option<C> {
        let is_ready = matches!(self.lock().spare, Spare::Ready(_));
        let spare = if is_ready { self.take_spare() } else { None };
        self.prepare_spare();
        spare
    }

    fn start(self: &Arc<Self>, cancel: &AtomicBool) -> Result<C, ChildLost> {
        self.back_off(cancel)?;
        let since = sync::now();
        let started = C::start(&self.children, cancel);
        self.children.started(started.is_ok(), sync::now() - since);
        let mut state = self.lock();
        match &started {
            Ok(_) => {
                state.failures = 0;
                state.has_started = true;
            }
            Err(error) => {
                if !matches!(error, ChildLost::Cancelled) {
                    state.failures = state.failures.saturating_add(1);
                    state.failed_at = Some(sync::now());
                    tracing::error!(%error, in_a_row = state.failures, "no isolated worker");
                }
            }
        }
        started
    }

    fn back_off(&self, cancel: &AtomicBool) -> Result<(), ChildLost> {
        let until = {
            let state = self.lock();
            let Some(failed_at) = state.failed_at.filter(|_| state.failures > 0) else {
                return Ok(());
            };
            let doubled = FIRST_BACKOFF.saturating_mul(1 << (state.failures - 1).min(16));
            failed_at + doubled.min(LONGEST_BACKOFF)
        };
        loop {
            let left = until.saturating_duration_since(sync::now());
            if left.is_zero() {
                return Ok(());
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(ChildLost::Cancelled);
            }
            sync::sleep(left.min(BACKOFF_SLICE));
        }
    }

    /// Starts a spare in the background, if one is wanted and there is none.
    fn prepare_spare(self: &Arc<Self>) {
        if !self.children.config.spare {
            return;
        }
        let mut state = self.lock();
        if !matches!(state.spare, Spare::None) {
            return;
        }
        let cancel = Arc::new(AtomicBool::new(false));
        state.spare = Spare::Starting(Arc::clone(&cancel));
        let place = SparePlace { shared: Arc::clone(self), cancel };
        // A thread that could not be had has dropped the place, which says that there is no spare.
        drop(state);
        self.in_background("onelane-spare", move || place.fill());
    }

    fn in_background(&self, name: &str, task: impl FnOnce() + Send + 'static) {
        match sync::spawn(name, task) {
            Ok(thread) => {
                let mut state = self.lock();
                state.background.retain(|thread| !sync::is_finished(thread));
                state.background.push(thread);
            }
            Err(error) => tracing::error!(%error, name, "no thread could be started"),
        }
    }

    // Ending.

    /// Lets a child end while others go on; without a thread for it, it is killed at once.
    pub(crate) fn retire_in_background(&self, worker: C) {
        self.in_background("onelane-retire", move || worker.retire());
    }

    pub(crate) fn engine_made(&self) {
        self.lock().engines += 1;
    }

    /// An engine goes. The one that goes with a child that works was not lost but is no longer
    /// needed, so neither is the spare.
    pub(crate) fn engine_gone(&self, worker: Option<C>) {
        let is_last = {
            let mut state = self.lock();
            state.engines -= 1;
            state.engines == 0
        };
        if let Some(worker) = worker {
            worker.retire();
            if is_last {
                self.close();
            }
        }
    }

    /// Ends the spare and waits for the background threads.
    pub(crate) fn close(&self) {
        let (spare, threads) = {
            let mut state = self.lock();
            if let Spare::Starting(cancel) = &state.spare {
                cancel.store(true, Ordering::Relaxed);
            }
            let spare = match state.spare.take() {
                Spare::Ready(worker) => Some(worker),
                other => {
                    state.spare = other;
                    None
                }
            };
            (spare, std::mem::take(&mut state.background))
        };
        if let Some(worker) = spare {
            worker.retire();
        }
        for thread in threads {
            // One that panicked has dropped its child, which kills it.
            let _ = thread.join();
        }
    }
}

/// The place of a spare that is being started. Whatever becomes of the start, dropping this leaves
/// the place as it should be and wakes who waits for it.
struct SparePlace<C: Child> {
    shared: Arc<Shared<C>>,
    cancel: Arc<AtomicBool>,
}

impl<C: Child> SparePlace<C> {
    fn fill(self) {
        let Ok(worker) = self.shared.start(&self.cancel) else {
            return;
        };
        let mut state = self.shared.lock();
        if self.cancel.load(Ordering::Relaxed) {
            drop(state);
            worker.retire();
        } else {
            state.spare = Spare::Ready(Box::new(worker));
        }
    }
}

impl<C: Child> Drop for SparePlace<C> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if matches!(&state.spare, Spare::Starting(cancel) if Arc::ptr_eq(cancel, &self.cancel)) {
            state.spare = Spare::None;
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

/// What a factory holds: with it, the need for a spare ends.
pub(crate) struct FactoryGuard<C: Child>(pub(crate) Arc<Shared<C>>);

impl<C: Child> Drop for FactoryGuard<C> {
    fn drop(&mut self) {
        self.0.close();
    }
}
