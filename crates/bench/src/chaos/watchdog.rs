//! Finds hangs: every client, and the thread that ends executors, says that it got somewhere.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often it looks. A hang is counted in looks, not in time: a machine that is suspended does
/// not look.
const LOOK: Duration = Duration::from_millis(500);

/// One that is watched.
struct Watched {
    name: String,
    steps: Arc<AtomicU64>,
}

/// Ends the process with exit code 1 when somebody watched gets nowhere.
#[derive(Clone)]
pub(super) struct Watchdog {
    watched: Arc<Mutex<Vec<Watched>>>,
    controller: Arc<AtomicU64>,
    doing: Arc<Mutex<String>>,
    over: Arc<AtomicBool>,
}

impl Watchdog {
    pub(super) fn start(limit: Duration) -> Self {
        let controller = Arc::new(AtomicU64::new(0));
        let dog = Self {
            watched: Arc::default(),
            controller: Arc::clone(&controller),
            doing: Arc::default(),
            over: Arc::default(),
        };
        dog.watch_steps("the controller".to_owned(), controller);
        let watching = dog.clone();
        std::thread::spawn(move || watching.run(limit));
        dog
    }

    /// Watches somebody; what comes back is to be raised with each step.
    pub(super) fn watch(&self, name: String) -> Arc<AtomicU64> {
        let steps = Arc::new(AtomicU64::new(0));
        self.watch_steps(name, Arc::clone(&steps));
        steps
    }

    fn watch_steps(&self, name: String, steps: Arc<AtomicU64>) {
        if let Ok(mut watched) = self.watched.lock() {
            watched.push(Watched { name, steps });
        }
    }

    /// The thread that ends executors gets to something else.
    pub(super) fn controller(&self, doing: &str) {
        self.controller.fetch_add(1, SeqCst);
        if let Ok(mut current) = self.doing.lock() {
            doing.clone_into(&mut current);
        }
    }

    pub(super) fn stop(&self) {
        self.over.store(true, SeqCst);
    }

    fn run(&self, limit: Duration) {
        let patience = u32::try_from(limit.as_millis() / LOOK.as_millis()).unwrap_or(u32::MAX);
        let mut seen: Vec<(u64, u32)> = Vec::new();
        while !self.over.load(SeqCst) {
            std::thread::sleep(LOOK);
            let Ok(watched) = self.watched.lock() else { return };
            seen.resize(watched.len(), (u64::MAX, 0));
            for (one, (steps, looks)) in watched.iter().zip(&mut seen) {
                let current = one.steps.load(SeqCst);
                *looks = if current == DONE || current != *steps { 0 } else { *looks + 1 };
                *steps = current;
            }
            if seen.iter().any(|(_, looks)| *looks > patience) && !self.over.load(SeqCst) {
                // Whoever is stuck first keeps others waiting: name all, longest first.
                let mut stuck: Vec<_> = watched.iter().zip(&seen).collect();
                stuck.sort_by_key(|(_, (_, looks))| std::cmp::Reverse(*looks));
                for (one, (steps, looks)) in stuck.iter().filter(|(_, (_, looks))| *looks > 2) {
                    let time = LOOK * *looks;
                    eprintln!("HANG: {} got nowhere for {time:?} (step {steps})", one.name);
                }
                if let Ok(doing) = self.doing.lock() {
                    eprintln!("HANG: the controller: {doing}");
                }
                std::process::exit(1);
            }
        }
    }
}

/// The step of one that has ended.
pub(super) const DONE: u64 = u64::MAX - 1;
