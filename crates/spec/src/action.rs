//! An action: one stretch of the real code under the executor's lock, or one stretch outside it
//! that others can see. Which actions are possible in a state.

use crate::scenario::{Mode, Scenario};
use crate::state::{ClientAt, Maker, Place, Stage, State, Stopper};

/// One step. Numbers name clients, workers and requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A client prepares a submission outside the lock, and sees that the executor is open.
    Check(u8),
    /// A client takes the lock and pushes, stands in line, or is refused.
    Push(u8),
    /// A client that was woken in line looks again.
    Retry(u8),
    /// A client leaves the line.
    Leave(u8),
    /// A handle is dropped.
    Cancel(u8),
    /// A deadline passes.
    Late(u8),
    /// Whoever waits for a late request has it removed.
    Expire(u8),
    /// A worker takes a batch, an errand, goes to sleep, or ends.
    Loop(u8),
    /// A worker runs the engine on the next part of its batch; a rebuild before it may fail.
    Compute(u8, bool),
    /// A worker does, inline, what its engine waits for.
    Help(u8),
    /// A worker hands over one answer, or is done with its batch.
    Deliver(u8),
    /// A worker's thread dies.
    Die(u8),
    /// Somebody shuts down.
    Stop(Mode),
    /// `shutdown` returns.
    Return,
    /// The executor is made anew.
    Restart,
    /// A queue is inserted.
    Insert,
    /// Its engines are asked for.
    Ask,
}

impl Scenario {
    /// What the system does by itself: if none of these can happen, nothing is to be waited for.
    pub fn system_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, client) in (0u8..).zip(&state.clients) {
            let more = (client.next as usize) < self.clients[index as usize].len();
            match client.at {
                ClientAt::Ready if more => actions.push(Action::Check(index)),
                ClientAt::Checked => actions.push(Action::Push(index)),
                ClientAt::InLine(true) => actions.push(Action::Retry(index)),
                ClientAt::Ready | ClientAt::InLine(false) => {}
            }
        }
        for (index, worker) in (0u8..).zip(&state.workers) {
            if !worker.alive || worker.asleep {
                continue;
            }
            match worker.stack.last() {
                None => actions.push(Action::Loop(index)),
                Some(frame) => match frame.stage {
                    Stage::Compute => {
                        actions.push(Action::Compute(index, true));
                        if self.rebuild_fails && !worker.engines[frame.queue as usize] {
                            actions.push(Action::Compute(index, false));
                        }
                    }
                    Stage::WaitsFor(request) => {
                        if self.can_help(state, index as usize, request) {
                            actions.push(Action::Help(index));
                        }
                    }
                    Stage::Deliver(_) => actions.push(Action::Deliver(index)),
                },
            }
        }
        if state.stopper == Stopper::Joins && state.workers.iter().all(|worker| !worker.alive) {
            actions.push(Action::Return);
        }
        if state.maker == Maker::Inserted {
            actions.push(Action::Ask);
        }
    }

    /// What users and the world do.
    pub fn other_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, request) in (0u8..).zip(&state.requests) {
            let plan = &self.plans[index as usize];
            if plan.cancels && state.is_open(request) && !request.dropped {
                actions.push(Action::Cancel(index));
            }
            if plan.deadline && state.is_open(request) && !request.late {
                actions.push(Action::Late(index));
            }
            if request.late && request.place == Place::Waiting {
                actions.push(Action::Expire(index));
            }
        }
        if self.impatient {
            actions.extend(state.line.iter().map(|&client| Action::Leave(client)));
        }
        if state.stopper == Stopper::Idle {
            actions.extend(self.modes.iter().map(|&mode| Action::Stop(mode)));
        }
        if self.restart && state.stopper == Stopper::Returned && state.life == 0 {
            actions.push(Action::Restart);
        }
        if state.maker == Maker::Idle {
            actions.push(Action::Insert);
        }
        if self.death && !state.died {
            let alive = (0u8..).zip(&state.workers).filter(|(_, worker)| worker.alive);
            actions.extend(
                alive.filter(|(_, worker)| !worker.asleep).map(|(index, _)| Action::Die(index)),
            );
        }
    }
}
