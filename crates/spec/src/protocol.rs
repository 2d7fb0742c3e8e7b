//! The protocol as a transition system: its first state, and what each action leads to.

use stateright::{Model, Property};

use crate::action::Action;
use crate::bug::Bug;
use crate::property;
use crate::scenario::{Mode, Scenario};
use crate::state::{Broken, Client, ClientAt, End, Maker, Place, Request, State, Stopper};

impl Model for Scenario {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let request = Request {
            place: Place::Unborn,
            answers: 0,
            bypassed: 0,
            late: false,
            dropped: false,
            life: 0,
        };
        let client = Client { next: 0, at: ClientAt::Ready, life: 0 };
        vec![State {
            life: 0,
            stopping: None,
            requests: vec![request; self.plans.len()],
            lists: [Vec::new(), Vec::new()],
            line: Vec::new(),
            clients: vec![client; self.clients.len()],
            workers: self.fresh_workers(),
            stopper: Stopper::Idle,
            maker: if self.maker { Maker::Idle } else { Maker::Done },
            drained: false,
            died: false,
            broken: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.system_actions(state, actions);
        self.other_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Check(client) => {
                let life = state.life;
                let client = &mut state.clients[client as usize];
                (client.at, client.life) = (ClientAt::Checked, life);
            }
            Action::Push(client) | Action::Retry(client) => self.push(&mut state, client),
            Action::Leave(client) => self.leave(&mut state, client),
            Action::Cancel(request) => self.cancel(&mut state, request),
            Action::Late(request) => state.requests[request as usize].late = true,
            Action::Expire(request) => self.dismiss(&mut state, request, End::Expired),
            Action::Loop(worker) => self.step(&mut state, worker as usize),
            Action::Compute(worker, rebuilt) => self.compute(&mut state, worker as usize, rebuilt),
            Action::Help(worker) => self.help(&mut state, worker as usize),
            Action::Deliver(worker) => self.deliver(&mut state, worker as usize),
            Action::Die(worker) => self.die(&mut state, worker as usize),
            Action::Stop(mode) => {
                state.stopping = Some(mode);
                state.stopper = Stopper::Joins;
                state.wake_whole_line();
                if mode == Mode::Abort {
                    self.close_all(&mut state);
                }
                self.retire_if_drained(&mut state);
                state.wake_workers();
            }
            Action::Return => {
                state.stopper = Stopper::Returned;
                if state.requests.iter().any(|request| state.is_open(request)) {
                    state.breaks(Broken::Shutdown);
                }
            }
            Action::Restart => {
                state.life += 1;
                state.stopping = None;
                state.stopper = Stopper::Idle;
                state.drained = false;
                state.died = false;
                state.workers = self.fresh_workers();
            }
            Action::Insert => {
                let refused = state.stopping.is_some();
                state.maker = if refused { Maker::Done } else { Maker::Inserted };
            }
            Action::Ask => {
                if state.stopping.is_some() && self.bug != Some(Bug::ErrandsUnchecked) {
                    state.maker = Maker::Done;
                } else {
                    for worker in &mut state.workers {
                        worker.errands += 1;
                        worker.asleep = false;
                    }
                    state.maker = Maker::Waits(self.workers as u8);
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        property::all()
    }
}
