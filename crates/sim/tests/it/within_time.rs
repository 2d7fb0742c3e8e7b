//! A hard timeout for a test: a hang is a failure, not a stuck job.

use std::sync::mpsc;
use std::time::Duration;

/// Runs `test` in a thread of its own, and fails when it takes too long for even a very busy machine.
pub fn within_time(test: impl FnOnce() + Send + 'static) {
    const LIMIT: Duration = Duration::from_secs(900);
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        // The receiver is gone only after the time was up.
        let _ = done.send(());
    });
    match ended.recv_timeout(LIMIT) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("still running after {LIMIT:?}"),
        // Ended or panicked: take the panic over.
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}
