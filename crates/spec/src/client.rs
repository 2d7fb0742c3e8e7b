//! What a client does to the state: it submits, stands in line for room, leaves the line, and
//! drops its handles.

use crate::bug::Bug;
use crate::scenario::Scenario;
use crate::state::{Broken, ClientAt, End, Place, State};

impl Scenario {
    /// Submits the client's next requests: they are accepted or refused whole, or stand in line.
    pub fn push(&self, state: &mut State, client: u8) {
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

    fn refuse(&self, state: &mut State, client: u8) {
        let next = state.clients[client as usize].next as usize;
        for &request in &self.clients[client as usize][next] {
            state.requests[request as usize].place = Place::Refused;
        }
        let client = &mut state.clients[client as usize];
        (client.next, client.at) = (client.next + 1, ClientAt::Ready);
    }

    /// The client leaves the line; what it wanted to submit is refused.
    pub fn leave(&self, state: &mut State, client: u8) {
        state.line.retain(|&other| other != client);
        self.refuse(state, client);
        if !self.has(Bug::LeaveSilently) {
            state.wake_line();
        }
    }

    /// The handle is dropped; a request that still waits leaves its queue.
    pub fn cancel(&self, state: &mut State, request: u8) {
        state.requests[request as usize].dropped = true;
        if state.requests[request as usize].place == Place::Waiting {
            self.dismiss(state, request, End::Cancelled);
        }
    }
}
