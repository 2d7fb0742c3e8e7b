//! The timer: one thread for the process, started by the first deadline, that runs what is to be
//! done at a time. Without a deadline it sleeps; it does not poll.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Instant;

use super::catch_panic::catch_panic;
use super::per_process::PerProcess;
use super::primitives::{Mutex, park, park_timeout, spawn, thread_waker};

#[derive(Default)]
struct Timer {
    /// By time and, of the same time, order of coming.
    alarms: BTreeMap<(Instant, u64), Box<dyn FnOnce() + Send>>,
    next: u64,
    /// The timer's thread, once there is one.
    thread: Option<Waker>,
}

static TIMER: PerProcess<Mutex<Timer>> =
    PerProcess::new(Mutex::new(Timer { alarms: BTreeMap::new(), next: 0, thread: None }));

/// Runs `alarm`, on the timer's thread, when `at` has come. It may take an executor's lock.
///
/// If there is no thread to be had, nothing is run: the worker sees to deadlines when it is free.
pub(crate) fn call_at(at: Instant, alarm: Box<dyn FnOnce() + Send>) {
    let mut timer = TIMER.get().lock();
    let is_first = timer.alarms.first_key_value().is_none_or(|((first, _), _)| at < *first);
    timer.next += 1;
    let key = (at, timer.next);
    timer.alarms.insert(key, alarm);
    match &timer.thread {
        // CORRECTNESS: the thread looks at the alarms under this lock before it sleeps, and its
        // token keeps a wake-up that comes in between.
        Some(thread) if is_first => thread.wake_by_ref(),
        Some(_) => {}
        None => {
            if spawn("onelane timer".to_owned(), None, run).is_ok() {
                // It sets its own waker; until then it has not looked at the alarms.
                timer.thread = Some(Waker::noop().clone());
            }
        }
    }
}

fn run() {
    TIMER.get().lock().thread = Some(thread_waker());
    loop {
        let due = {
            let mut timer = TIMER.get().lock();
            match timer.alarms.first_entry() {
                None => Err(None),
                Some(first) if first.key().0 <= Instant::now() => Ok(first.remove()),
                Some(first) => Err(Some(first.key().0)),
            }
        };
        match due {
            Ok(alarm) => drop(catch_panic(alarm)),
            Err(None) => park(),
            Err(Some(at)) => park_timeout(at.saturating_duration_since(Instant::now())),
        }
    }
}
