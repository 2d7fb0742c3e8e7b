//! Files in the making, which a signal that ends the process takes along.
//!
//! The first of them starts a thread that waits for Ctrl-C, SIGTERM and SIGHUP. It removes what is
//! unfinished, and then the signal does what it would have done.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file in the making: removed by a signal until this is dropped.
pub struct Unfinished(PathBuf);

impl Unfinished {
    /// Of the file at a path that does not depend on the current directory.
    pub fn new(path: &Path) -> Self {
        static WATCH: Once = Once::new();
        WATCH.call_once(watch);
        unfinished().push(path.to_owned());
        Self(path.to_owned())
    }

    /// Finishes the file, which no signal interrupts.
    pub fn finish<T>(self, finish: impl FnOnce() -> T) -> T {
        let mut files = unfinished();
        let finished = finish();
        files.retain(|file| *file != self.0);
        finished
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        unfinished().retain(|file| *file != self.0);
    }
}

/// Starts the thread. Without one a signal leaves the file behind, which is no reason to stop.
#[cfg(unix)]
fn watch() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]) else {
        return;
    };
    let wait = move || {
        for signal in signals.forever() {
            for file in unfinished().drain(..) {
                // It may be gone already.
                let _ = std::fs::remove_file(file);
            }
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    let _ = std::thread::Builder::new().name("signals".to_owned()).spawn(wait);
}

#[cfg(not(unix))]
fn watch() {}
