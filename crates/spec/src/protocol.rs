//! The protocol as a transition system. Each action is one stretch of the real code under the
//! executor's lock, or one stretch outside it that others can see.

use stateright::{Model, Property};

use crate::bug::Bug;
use crate::scenario::{Mode, Nature, Scenario};
use crate::state::{
    Broken, Client, ClientAt, End, Frame, Maker, Place, Request, Stage, State, Stopper, Worker,
};

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
        fn kept(state: &State, promise: Broken) -> bool {
            state.broken & (1 << promise as u8) == 0
        }
        vec![
            Property::always("each request is answered at most once", |_, state: &State| {
                state.requests.iter().all(|request| request.answers <= 1)
            }),
            Property::always("accepted = answered + waiting + running", Self::adds_up),
            Property::always("nothing is open when shutdown has returned", |_, state: &State| {
                kept(state, Broken::Shutdown)
            }),
            Property::always("first in, first out, per key and class", |_, state: &State| {
                kept(state, Broken::Fifo)
            }),
            Property::always("what was answered is not computed", |_, state: &State| {
                kept(state, Broken::Computed)
            }),
            Property::always("room is given in order of the line", |_, state: &State| {
                kept(state, Broken::Line)
            }),
            Property::always("a group is accepted whole or not at all", |_, state: &State| {
                kept(state, Broken::Group)
            }),
            Property::always("a bad request fails alone", |_, state: &State| {
                kept(state, Broken::Alone)
            }),
            Property::always("what waits is bounded", |model: &Self, state: &State| {
                state.lists[0].len() <= model.capacity
            }),
            Property::always("bounded bypass", |_, state: &State| {
                state.requests.iter().all(|request| request.bypassed <= 2)
            }),
            Property::always("work-conserving", Self::conserves_work),
            Property::always("no deadlock", Self::can_go_on),
            // No action leads back to an earlier state (a counter or a place moves on in each), so
            // every fair run ends, and this is looked at in each end.
            Property::eventually(
                "everything is answered and the executor has ended",
                |_, state: &State| {
                    state.stopper == Stopper::Returned
                        && state.maker == Maker::Done
                        && state.workers.iter().all(|worker| !worker.alive)
                        && state.requests.iter().all(|request| {
                            matches!(request.place, Place::Refused | Place::Resolved(_))
                                || request.place == Place::Unborn
                        })
                        && state.is_idle()
                        && state.line.is_empty()
                },
            ),
        ]
    }
}

impl Scenario {
    fn fresh_workers(&self) -> Vec<Worker> {
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

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// What the system does by itself: if none of these can happen, nothing is to be waited for.
    fn system_actions(&self, state: &State, actions: &mut Vec<Action>) {
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
    fn other_actions(&self, state: &State, actions: &mut Vec<Action>) {
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

    // Clients.

    fn push(&self, state: &mut State, client: u8) {
        let at = &state.clients[client as usize];
        let requests = &self.clients[client as usize][at.next as usize];
        let in_line = matches!(at.at, ClientAt::InLine(_));
        let unlooked = self.has(Bug::CheckThenPush) && at.at == ClientAt::Checked;
        // A handle is to one executor; made anew, it is another.
        let closed = state.stopping.is_some() || at.life != state.life;
        if closed && !unlooked {
            state.line.retain(|&other| other != client);
            return self.refuse(state, client);
        }
        let first = state.line.first().is_none_or(|&front| front == client);
        let first = first || self.has(Bug::Overtake);
        let room = self.capacity - state.lists[0].len().min(self.capacity);
        if first && requests.len() <= room {
            if state.line.first().is_some_and(|&front| front != client) {
                state.breaks(Broken::Line);
            }
            self.accept(state, client, requests.len());
        } else if self.has(Bug::GroupInParts) && first && room > 0 && requests.len() > room {
            self.accept(state, client, room);
            state.breaks(Broken::Group);
        } else {
            if !in_line {
                state.line.push(client);
            }
            state.clients[client as usize].at = ClientAt::InLine(false);
        }
    }

    fn accept(&self, state: &mut State, client: u8, count: usize) {
        let next = state.clients[client as usize].next as usize;
        for &request in &self.clients[client as usize][next][..count] {
            self.enqueue(state, request);
        }
        for &request in &self.clients[client as usize][next][count..] {
            state.requests[request as usize].place = Place::Refused;
        }
        if state.line.contains(&client) {
            state.line.retain(|&other| other != client);
            state.wake_line();
        }
        let client = &mut state.clients[client as usize];
        (client.next, client.at) = (client.next + 1, ClientAt::Ready);
        if !self.has(Bug::NoWake) {
            state.wake_worker();
        }
    }

    fn enqueue(&self, state: &mut State, request: u8) {
        if state.stopper == Stopper::Returned {
            state.breaks(Broken::Shutdown);
        }
        let life = state.life;
        let entry = &mut state.requests[request as usize];
        (entry.place, entry.life) = (Place::Waiting, life);
        state.lists[self.plans[request as usize].queue as usize].push(request);
    }

    fn refuse(&self, state: &mut State, client: u8) {
        let next = state.clients[client as usize].next as usize;
        for &request in &self.clients[client as usize][next] {
            state.requests[request as usize].place = Place::Refused;
        }
        let client = &mut state.clients[client as usize];
        (client.next, client.at) = (client.next + 1, ClientAt::Ready);
    }

    fn leave(&self, state: &mut State, client: u8) {
        state.line.retain(|&other| other != client);
        self.refuse(state, client);
        if !self.has(Bug::LeaveSilently) {
            state.wake_line();
        }
    }

    fn cancel(&self, state: &mut State, request: u8) {
        state.requests[request as usize].dropped = true;
        if state.requests[request as usize].place == Place::Waiting {
            self.dismiss(state, request, End::Cancelled);
        }
    }

    /// Removes a waiting request and answers it.
    fn dismiss(&self, state: &mut State, request: u8, end: End) {
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

    fn close_all(&self, state: &mut State) {
        for request in state.lists.concat() {
            self.dismiss(state, request, End::Closed);
        }
    }

    /// When what was closed is empty, every worker gets an errand: drop the engines.
    fn retire_if_drained(&self, state: &mut State) {
        if state.stopping.is_some() && !state.drained && state.is_idle() {
            state.drained = true;
            for worker in &mut state.workers {
                (worker.retires, worker.asleep) = (true, false);
            }
        }
    }

    // Workers.

    fn step(&self, state: &mut State, worker: usize) {
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

    /// The class that a request counts as. Each time that a later one is taken before it, it is
    /// lifted by one: the model's clock.
    fn class(&self, state: &State, request: u8) -> u8 {
        let lifts =
            if self.has(Bug::NoAgeing) { 0 } else { state.requests[request as usize].bypassed };
        self.plans[request as usize].class.saturating_sub(lifts)
    }

    /// The request with the best claim, in one queue or in all.
    fn head(&self, state: &State, queue: Option<u8>) -> Option<u8> {
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
    fn dispatch(&self, state: &mut State, worker: usize, head: u8) {
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

    /// Runs the engine on the next part.
    fn compute(&self, state: &mut State, worker: usize, rebuilt: bool) {
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

    fn can_help(&self, state: &State, worker: usize, request: u8) -> bool {
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

    fn help(&self, state: &mut State, worker: usize) {
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

    fn deliver(&self, state: &mut State, worker: usize) {
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
    fn die(&self, state: &mut State, worker: usize) {
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

    // Properties.

    /// Each accepted request is in exactly one place.
    fn adds_up(&self, state: &State) -> bool {
        (0u8..).zip(&state.requests).all(|(index, request)| {
            let waits = state.lists.iter().flatten().filter(|&&other| other == index).count();
            let runs = state.workers.iter().flat_map(|worker| &worker.stack);
            let runs = runs.flat_map(|frame| &frame.batch).filter(|&&other| other == index).count();
            match request.place {
                Place::Unborn | Place::Refused => waits + runs + request.answers as usize == 0,
                Place::Waiting => (waits, runs, request.answers) == (1, 0, 0),
                Place::Running => (waits, runs, request.answers) == (0, 1, 0),
                // In its batch until the last answer of that has been handed over.
                Place::Resolved(_) => waits == 0 && runs <= 1 && request.answers >= 1,
            }
        })
    }

    /// No worker sleeps while something can be run, unless another one is about to look.
    fn conserves_work(&self, state: &State) -> bool {
        let waits = state.lists.iter().any(|list| !list.is_empty());
        let sleeps = state.workers.iter().any(|worker| worker.alive && worker.asleep);
        let looks = state.workers.iter().any(|w| w.alive && !w.asleep && w.stack.is_empty());
        !(waits && sleeps) || looks
    }

    /// If the system can do nothing by itself, nobody waits for anything.
    fn can_go_on(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        self.system_actions(state, &mut actions);
        let in_line = state.clients.iter().any(|c| matches!(c.at, ClientAt::InLine(_)));
        let open = state.requests.iter().any(|request| state.is_open(request));
        let joins = state.stopper == Stopper::Joins;
        let makes = !matches!(state.maker, Maker::Done | Maker::Idle);
        !actions.is_empty() || !(in_line || open || joins || makes)
    }
}
