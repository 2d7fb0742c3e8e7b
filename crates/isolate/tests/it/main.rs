//! Real children, really killed. The program is also its own child (`engine.rs`), a child that lies
//! (`liar.rs`), and a parent that is killed or counted (`parent.rs`); a variable says which.

mod containment;
mod engine;
mod hygiene;
mod liar;
mod parent;
mod protocol;
mod recycling;
mod simulated;
mod steps;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};

/// No test may take longer, on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match std::env::var("ONELANE_TEST").as_deref() {
        Ok("liar") => liar::main(),
        Ok("parent") => parent::main(),
        Ok("forgetful") => parent::forgetful(),
        _ => onelane_isolate::serve::<engine::Actor>(engine::Actor::new),
    }
    let tests = [containment::tests(), hygiene::tests(), protocol::tests()];
    let more = [recycling::tests(), simulated::tests(), steps::tests()];
    let trials = tests.into_iter().chain(more).flatten().map(|(name, test)| {
        Trial::test(name, move || {
            within(test);
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// Runs a test in a thread of its own; one that hangs has failed.
fn within(test: fn()) {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        // Dropped when the test ends, by a panic as well.
        let _sender = sender;
        test();
    });
    match receiver.recv_timeout(LIMIT) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("not done within {LIMIT:?}"),
        _ => {
            if let Err(payload) = thread.join() {
                std::panic::resume_unwind(payload);
            }
        }
    }
}
