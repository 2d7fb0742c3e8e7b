//! What a worker does to the state: it takes batches and errands, runs the engine, hands answers
//! over, sleeps, ends, and dies.

use crate::bug::Bug;
use crate::scenario::{Mode, Nature, Scenario};
use crate::state::{Broken, End, Maker, Place, Stage, State, Worker};

impl Scenario {
    /// The workers of an executor that has just been made.
    pub fn fresh_workers(&self) -> Vec<Worker> {
        let worker = Worker {
            alive: true,
            asleep: true,
            errands: 0,
            retires: false,
            stack: Vec::new(),
            engines: [true, true],
        };
        vec![worker; self.workers]
    }

    /// What a worker with an empty stack does next: an errand, a batch, sleep, or its end.
    pub fn step(&self, state: &mut State, worker: usize) {
        let errand_first = self.has(Bug::SleepsOnErrand);
        if errand_first && self.errand(state, worker) {
            return;
        }
        for request in state.lists.concat() {
            if state.requests[request as usize].late {
                self.dismiss(state, request, End::Expired);
            }
        }
        // What expired may have been the last of a closed queue: then there is an errand now.
        if !errand_first && self.errand(state, worker) {
            return;
        }
        let told = state.stopping.is_some();
        if told && self.has(Bug::DrainForgets) {
            state.workers[worker].alive = false;
            return;
        }
        if let Some(head) = self.head(state, None) {
            self.dispatch(state, worker, head);
            if self.head(state, None).is_some() && !self.has(Bug::OneWake) {
                state.wake_worker();
            }
            return;
        }
        let gone = state.drained && state.workers.iter().all(|worker| !worker.retires);
        if told && state.is_idle() && (gone || state.died) {
            state.workers[worker].alive = false;
        } else {
            state.workers[worker].asleep = true;
        }
    }

    /// Runs one errand, if there is one.
    fn errand(&self, state: &mut State, worker: usize) -> bool {
        if state.workers[worker].errands > 0 {
            state.workers[worker].errands -= 1;
            if let Maker::Waits(left) = &mut state.maker {
                *left -= 1;
                if *left == 0 {
                    state.maker = Maker::Done;
                }
            }
            return true;
        }
        if state.workers[worker].retires {
            state.workers[worker].retires = false;
            // The last one removes the queue, and with it what kept the others.
            if state.workers.iter().all(|worker| !worker.retires) {
                state.wake_workers();
            }
            return true;
        }
        false
    }

    /// Runs the engine on the next part.
    pub fn compute(&self, state: &mut State, worker: usize, rebuilt: bool) {
        let mut stack = std::mem::take(&mut state.workers[worker].stack);
        let frame = stack.last_mut().expect("computing needs a batch");
        let queue = frame.queue as usize;
        let (from, to) = *frame.parts.last().expect("computing needs a part");
        let part = from as usize..to as usize;
        if !state.workers[worker].engines[queue] && !rebuilt {
            // Nothing more of this batch can be computed; the next batch tries again.
            for (from, to) in frame.parts.drain(..) {
                frame.answers[from as usize..to as usize].fill(Some(End::Error));
            }
            frame.stage = Stage::Deliver(0);
            state.workers[worker].stack = stack;
            return;
        }
        state.workers[worker].engines[queue] = true;
        let natures = frame.batch[part.clone()].iter().map(|&r| self.plans[r as usize].nature);
        let natures: Vec<Nature> = natures.collect();
        let asked = frame.asked.clone();
        let ask = natures.iter().find_map(|nature| match nature {
            Nature::Asks(inner) if !asked.contains(inner) => Some(*inner),
            _ => None,
        });
        if let Some(inner) = ask {
            frame.asked.push(inner);
            if state.stopping.is_some() {
                // Refused: the engine goes on without.
                state.requests[inner as usize].place = Place::Refused;
            } else {
                frame.stage = Stage::WaitsFor(inner);
                self.enqueue(state, inner);
                state.wake_worker();
            }
            state.workers[worker].stack = stack;
            return;
        }
        frame.parts.pop();
        let fault = natures.iter().any(|n| matches!(n, Nature::Poison | Nature::Bomb));
        if natures.contains(&Nature::Bomb) {
            state.workers[worker].engines[queue] = false;
            if self.has(Bug::AnsweredTwice) && part.len() > 1 {
                for &request in &frame.batch[part.clone()] {
                    state.resolve(request, End::Error);
                }
            }
        }
        if !fault {
            frame.answers[part].fill(Some(End::Response));
        } else if part.len() == 1 {
            frame.answers[part].fill(Some(End::Error));
        } else {
            let middle = from + (to - from) / 2;
            frame.parts.push((middle, to));
            if !self.has(Bug::BisectionLosesHalf) {
                frame.parts.push((from, middle));
            }
        }
        if frame.parts.is_empty() {
            let whole = frame.batch.iter().zip(&frame.answers).any(|(&request, answer)| {
                *answer != Some(End::Response)
                    && !matches!(self.plans[request as usize].nature, Nature::Poison | Nature::Bomb)
            });
            // A rebuild that failed has answered the rest with its error, above.
            if whole {
                state.breaks(Broken::Alone);
            }
            frame.stage = Stage::Deliver(0);
        }
        state.workers[worker].stack = stack;
    }

    /// Whether a worker whose engine waits for that request can do something about it.
    pub fn can_help(&self, state: &State, worker: usize, request: u8) -> bool {
        match state.requests[request as usize].place {
            // Another worker runs it: its answer wakes this one.
            Place::Running => false,
            Place::Waiting => {
                // An engine in use further up the stack would be refused; no scenario has that.
                let queue = self.plans[request as usize].queue;
                state.workers[worker].stack.iter().all(|frame| frame.queue != queue)
            }
            Place::Unborn | Place::Refused | Place::Resolved(_) => true,
        }
    }

    /// Runs what the engine waits for, or goes on with the batch once that is settled.
    pub fn help(&self, state: &mut State, worker: usize) {
        let frame = state.workers[worker].stack.last_mut().expect("helping needs a batch");
        let Stage::WaitsFor(request) = frame.stage else { return };
        if state.requests[request as usize].place == Place::Waiting {
            let queue = self.plans[request as usize].queue;
            if let Some(head) = self.head(state, Some(queue)) {
                self.dispatch(state, worker, head);
            }
        } else {
            frame.stage = Stage::Compute;
        }
    }

    /// Hands over one answer, or is done with the batch.
    pub fn deliver(&self, state: &mut State, worker: usize) {
        let frame = state.workers[worker].stack.last_mut().expect("handing over needs a batch");
        let Stage::Deliver(at) = frame.stage else { return };
        if let Some(&request) = frame.batch.get(at as usize) {
            frame.stage = Stage::Deliver(at + 1);
            let end = frame.answers[at as usize].unwrap_or(End::Closed);
            state.resolve(request, end);
            return;
        }
        state.workers[worker].stack.pop();
        self.retire_if_drained(state);
    }

    /// Everything that the worker had is answered as it unwinds; nothing can be run any more.
    pub fn die(&self, state: &mut State, worker: usize) {
        state.died = true;
        (state.workers[worker].alive, state.workers[worker].retires) = (false, false);
        for frame in std::mem::take(&mut state.workers[worker].stack) {
            let from = if let Stage::Deliver(at) = frame.stage { at as usize } else { 0 };
            for &request in &frame.batch[from..] {
                state.resolve(request, End::Closed);
            }
        }
        state.stopping.get_or_insert(Mode::Abort);
        state.wake_whole_line();
        if !self.has(Bug::DeathLeavesWaiting) {
            self.close_all(state);
        }
        state.wake_workers();
    }
}
