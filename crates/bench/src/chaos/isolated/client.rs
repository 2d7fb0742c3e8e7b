//! A client: a thread that asks, waits, cancels, gives deadlines, and checks what it is given.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use onelane::{EngineError, Refusal, Request, RequestError, ResponseHandle};
use onelane_isolate::ChildLost;

use super::engine::{Act, Ask, Reply};
use super::tally::Tally;
use super::world::{UNPOISONED, World};
use crate::chaos::watchdog::DONE;

pub(super) struct Client<'a> {
    pub(super) dice: fastrand::Rng,
    pub(super) current: &'a RwLock<Arc<World>>,
    pub(super) tally: &'a Tally,
    pub(super) over: &'a AtomicBool,
    pub(super) numbers: &'a AtomicU64,
    pub(super) steps: Arc<AtomicU64>,
}

/// What was asked.
struct Asked {
    act: Act,
    number: u64,
    length: usize,
    deadline: bool,
}

impl Client<'_> {
    pub(super) fn run(mut self) {
        while !self.over.load(Ordering::SeqCst) {
            let world = Arc::clone(&self.current.read().expect(UNPOISONED));
            let mut open = Vec::new();
            for _ in 0..self.dice.usize(1..12) {
                self.submit(&world, &mut open);
            }
            while let Some((handle, asked)) = open.pop() {
                self.steps.fetch_add(1, Ordering::Relaxed);
                self.collect(&world, handle, asked);
            }
        }
        self.steps.store(DONE, Ordering::SeqCst);
    }

    fn act(&mut self) -> Act {
        match self.dice.u32(0..4000) {
            // These keep their batch for as long as a hang takes.
            0 => Act::Hang,
            1 => Act::Stop,
            2..4 => Act::Garbage,
            4..8 => Act::Segfault,
            8..12 => Act::Abort,
            12..16 => Act::Exit,
            16..20 => Act::Kill,
            20..24 => Act::Lost,
            24..30 => Act::Panic,
            30..40 => Act::Fail,
            40..50 => Act::Split,
            50..60 => Act::Grow,
            60..300 => Act::Work,
            _ => Act::Answer,
        }
    }

    fn submit(&mut self, world: &World, open: &mut Vec<(ResponseHandle<Reply>, Asked)>) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        // One in fifty is larger than the arena is at first.
        let length = if self.dice.u8(0..50) == 0 { 40_000 } else { self.dice.usize(0..64) };
        let deadline = self.dice.u8(0..20) == 0;
        let asked = Asked { act: self.act(), number, length, deadline };
        let data = (0..length).map(|at| datum(number, at)).collect();
        let mut request = Request::new(Ask { act: asked.act, number, data });
        if deadline {
            request = request.deadline_after(Duration::from_micros(self.dice.u64(0..3000)));
        }
        self.tally.offered.fetch_add(1, Ordering::Relaxed);
        let submitted = match self.dice.u8(0..4) {
            0 => world.queue.try_submit(request),
            _ => world.queue.submit(request),
        };
        match submitted {
            Ok(handle) => open.push((handle, asked)),
            Err(refused) => {
                self.tally.refused.fetch_add(1, Ordering::Relaxed);
                let fits = match refused.reason() {
                    Refusal::Full => true,
                    Refusal::Closed => world.ended.load(Ordering::SeqCst),
                    _ => false,
                };
                if !fits {
                    self.tally.fault(format!("request {number} was refused: {refused}"));
                }
            }
        }
    }

    fn collect(&mut self, world: &World, handle: ResponseHandle<Reply>, asked: Asked) {
        match self.dice.u8(0..40) {
            0 => {
                drop(handle);
                self.tally.cancelled.fetch_add(1, Ordering::Relaxed);
            }
            1 => match handle.wait_timeout(Duration::from_micros(self.dice.u64(0..2000))) {
                Ok(given) => self.judge(world, &asked, given),
                Err(handle) => self.judge(world, &asked, handle.wait()),
            },
            _ => self.judge(world, &asked, handle.wait()),
        }
    }

    /// Whether that is an answer that this request may have.
    fn judge(&self, world: &World, asked: &Asked, given: Result<Reply, RequestError>) {
        let Asked { act, number, length, deadline } = *asked;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        match given {
            Ok((got, data)) => {
                let data_fits = data.len() == length
                    && data
                        .iter()
                        .enumerate()
                        .all(|(at, &datum_got)| datum_got == datum(number, at));
                if got != number || !data_fits {
                    self.tally
                        .fault(format!("request {number} ({act:?}) was given {got}'s answer"));
                } else if !act.is_harmless() {
                    self.tally.fault(format!("request {number} ({act:?}) was answered"));
                } else {
                    count(&self.tally.completed);
                }
            }
            Err(error) => {
                let fits = match &error {
                    RequestError::Engine(EngineError::Lost(source)) => {
                        count(&self.tally.lost);
                        let lost = source.downcast_ref::<ChildLost>();
                        lost.is_some_and(|lost| is_of(act, lost))
                    }
                    RequestError::Engine(EngineError::Failed(source)) => {
                        count(&self.tally.failed);
                        let panicked = source.to_string().contains("panicked");
                        if panicked { act == Act::Panic } else { act == Act::Fail }
                    }
                    RequestError::DeadlineExceeded => {
                        count(&self.tally.expired);
                        deadline
                    }
                    RequestError::Closed => {
                        count(&self.tally.closed);
                        world.ended.load(Ordering::SeqCst)
                    }
                    _ => false,
                };
                if !fits {
                    self.tally.fault(format!("request {number} ({act:?}): {error}"));
                }
            }
        }
    }
}

/// Whether a request that does `act` may be told of this loss. One that was killed or stopped from
/// outside while it did so is told of that.
fn is_of(act: Act, lost: &ChildLost) -> bool {
    let struck = matches!(lost, ChildLost::Crashed { .. } | ChildLost::Hung { .. });
    match act {
        Act::Segfault | Act::Abort | Act::Exit | Act::Kill => struck,
        Act::Hang | Act::Stop => struck,
        Act::Garbage => struck || matches!(lost, ChildLost::Protocol { .. }),
        Act::Lost => struck || matches!(lost, ChildLost::EngineLost { .. }),
        _ => false,
    }
}

fn datum(number: u64, at: usize) -> f32 {
    (number % 1000) as f32 + at as f32
}
