//! What waits: how a request enters its queue and leaves it, and which ones go together as a batch.

use crate::bug::Bug;
use crate::scenario::Scenario;
use crate::state::{Broken, End, Frame, Place, Stage, State, Stopper};

impl Scenario {
    /// Puts an accepted request at the end of its queue.
    pub fn enqueue(&self, state: &mut State, request: u8) {
        if state.stopper == Stopper::Returned {
            state.breaks(Broken::Shutdown);
        }
        let life = state.life;
        let entry = &mut state.requests[request as usize];
        (entry.place, entry.life) = (Place::Waiting, life);
        state.lists[self.plans[request as usize].queue as usize].push(request);
    }

    /// Removes a waiting request and answers it.
    pub fn dismiss(&self, state: &mut State, request: u8, end: End) {
        if !(self.has(Bug::CancelledStays) && end == End::Cancelled) {
            for list in &mut state.lists {
                list.retain(|&other| other != request);
            }
        }
        state.resolve(request, end);
        if !self.has(Bug::NoRoomSignal) {
            state.wake_line();
        }
        self.retire_if_drained(state);
    }

    /// Answers everything that waits: it will not be run.
    pub fn close_all(&self, state: &mut State) {
        for request in state.lists.concat() {
            self.dismiss(state, request, End::Closed);
        }
    }

    /// When what was closed is empty, every worker gets an errand: drop the engines.
    pub fn retire_if_drained(&self, state: &mut State) {
        if state.stopping.is_some() && !state.drained && state.is_idle() {
            state.drained = true;
            for worker in &mut state.workers {
                (worker.retires, worker.asleep) = (true, false);
            }
        }
    }

    /// The class that a request counts as. Each time that a later one is taken before it, it is
    /// lifted by one: the model's clock.
    fn class(&self, state: &State, request: u8) -> u8 {
        let lifts =
            if self.has(Bug::NoAgeing) { 0 } else { state.requests[request as usize].bypassed };
        self.plans[request as usize].class.saturating_sub(lifts)
    }

    /// The request with the best claim, in one queue or in all.
    pub fn head(&self, state: &State, queue: Option<u8>) -> Option<u8> {
        let claims = state.lists.iter().zip(0u8..).filter(|(_, q)| queue.is_none_or(|w| w == *q));
        let claims = claims.flat_map(|(list, q)| {
            let last = list.len();
            list.iter().enumerate().map(move |(place, &request)| {
                let age = if self.has(Bug::LastInFirstOut) { last - place } else { place };
                ((self.class(state, request), age, q), request)
            })
        });
        claims.min().map(|(_, request)| request)
    }

    /// Takes the batch that `head` claims.
    pub fn dispatch(&self, state: &mut State, worker: usize, head: u8) {
        let plan = |request: u8| &self.plans[request as usize];
        let (queue, key) = (plan(head).queue, plan(head).key);
        let list = std::mem::take(&mut state.lists[queue as usize]);
        let mut mates: Vec<u8> =
            list.iter().copied().filter(|&r| r != head && plan(r).key == key).collect();
        // Most urgent first; stable, so in order of acceptance within a class.
        mates.sort_by_key(|&request| plan(request).class);
        let mut batch = vec![head];
        batch.extend(mates.into_iter().take(self.max_batch - 1));
        let left: Vec<u8> = list.iter().copied().filter(|r| !batch.contains(r)).collect();
        for (place, &request) in list.iter().enumerate() {
            if batch.contains(&request) {
                let entry = &mut state.requests[request as usize];
                if entry.place == Place::Waiting {
                    entry.place = Place::Running;
                } else {
                    state.breaks(Broken::Computed);
                }
            } else if list[place + 1..].iter().any(|later| batch.contains(later)) {
                state.requests[request as usize].bypassed += 1;
                let alike = |&r: &u8| {
                    plan(r).key == plan(request).key && plan(r).class == plan(request).class
                };
                if list[place + 1..].iter().any(|later| batch.contains(later) && alike(later)) {
                    state.breaks(Broken::Fifo);
                }
            }
        }
        state.lists[queue as usize] = left;
        let parts = vec![(0, batch.len() as u8)];
        let answers = vec![None; batch.len()];
        let frame =
            Frame { queue, batch, parts, answers, stage: Stage::Compute, asked: Vec::new() };
        state.workers[worker].stack.push(frame);
        if !self.has(Bug::NoRoomSignal) {
            state.wake_line();
        }
    }
}
