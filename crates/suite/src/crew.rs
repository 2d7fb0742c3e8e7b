//! [`Crew`]: threads that run at once under watch. A panic is their result, a hang is noticed.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

/// What a member tells the one who waits.
enum Message<T> {
    Step,
    Done(usize, Result<T, String>),
}

/// A member's way to show that it makes progress.
pub(crate) struct Pulse<T>(Sender<Message<T>>);

impl<T> Clone for Pulse<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Pulse<T> {
    /// One step is done.
    pub(crate) fn step(&self) {
        // Nobody listens any more once the crew was given up as hung.
        let _ = self.0.send(Message::Step);
    }
}

/// Threads that were started and are not yet joined.
pub(crate) struct Crew<T> {
    messages: Receiver<Message<T>>,
    threads: usize,
}

/// The crew made no progress for too long. The members named are left behind, running.
#[derive(Debug, PartialEq)]
pub(crate) struct Hung {
    /// The members that had not ended.
    pub(crate) members: Vec<usize>,
}

impl<T: Send + 'static> Crew<T> {
    /// Starts `threads` threads, each running `body` with its number from 0. All run or none.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn start(
        name: &str,
        threads: usize,
        body: impl Fn(usize, &Pulse<T>) -> T + Clone + Send + 'static,
    ) -> Result<Self, String> {
        let (sender, messages) = mpsc::channel();
        // CORRECTNESS: members meet each other, so none may begin before all exist. They wait for
        // this lock, which is held until the last one was started or one was refused.
        let all_exist = Arc::new(RwLock::new(false));
        let mut gate = all_exist.write().unwrap_or_else(PoisonError::into_inner);
        for member in 0..threads {
            let pulse = Pulse(sender.clone());
            let body = body.clone();
            let may_begin = Arc::clone(&all_exist);
            let run = move || {
                if !*may_begin.read().unwrap_or_else(PoisonError::into_inner) {
                    return;
                }
                let result = caught(|| body(member, &pulse));
                drop(body);
                let _ = pulse.0.send(Message::Done(member, result));
            };
            thread::Builder::new().name(format!("{name}-{member}")).spawn(run).map_err(
                |error| format!("thread {} of {threads} could not be started: {error}", member + 1),
            )?;
        }
        *gate = true;
        drop(gate);
        Ok(Self { messages, threads })
    }

    /// Waits for all members and gives their results in order; a member that panicked gives the
    /// panic's text.
    ///
    /// # Errors
    /// [`Hung`] when no member steps or ends for `stall_after`.
    pub(crate) fn join(
        self,
        stall_after: Duration,
        mut step: impl FnMut(),
    ) -> Result<Vec<Result<T, String>>, Hung> {
        let mut results: Vec<Option<Result<T, String>>> = (0..self.threads).map(|_| None).collect();
        while results.iter().any(Option::is_none) {
            match self.messages.recv_timeout(stall_after) {
                Ok(Message::Step) => step(),
                Ok(Message::Done(member, result)) => results[member] = Some(result),
                // A member that ends always says so first; both mean that no one will come.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let members = (0..self.threads).filter(|&m| results[m].is_none());
                    return Err(Hung { members: members.collect() });
                }
            }
        }
        Ok(results.into_iter().flatten().collect())
    }
}

/// Runs `body` and gives the text of its panic as an error.
pub(crate) fn caught<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    // What the body leaves half-done is not used after a panic, except the comparison's collector,
    // whose lock passes over poison.
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| format!("panicked: {}", text(&*panic)))
}

fn text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn results_come_in_order_and_panics_as_text() {
        let crew = Crew::start("test", 3, |member, pulse| {
            pulse.step();
            assert!(member != 1, "member one fails");
            member * 10
        })
        .unwrap();
        let mut steps = 0;
        let results = crew.join(LONG, || steps += 1).unwrap();
        assert_eq!(steps, 3);
        assert_eq!(results[0], Ok(0));
        assert!(results[1].as_ref().unwrap_err().contains("member one fails"));
        assert_eq!(results[2], Ok(20));
    }

    #[test]
    fn a_hang_names_those_who_hang() {
        let never = Arc::new(Barrier::new(2));
        let waits = Arc::clone(&never);
        let crew = Crew::start("test", 2, move |member, _| {
            if member == 1 {
                waits.wait();
            }
        })
        .unwrap();
        let hung = crew.join(Duration::from_millis(50), || ()).unwrap_err();
        assert!(hung.members.contains(&1));
        never.wait();
    }
}
