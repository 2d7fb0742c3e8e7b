//! What has to hold in every state, or in the end of every run.

use stateright::Property;

use crate::scenario::Scenario;
use crate::state::{Broken, ClientAt, Maker, Place, State, Stopper};

/// All properties.
pub fn all() -> Vec<Property<Scenario>> {
    fn kept(state: &State, promise: Broken) -> bool {
        state.broken & (1 << promise as u8) == 0
    }
    vec![
        Property::always("each request is answered at most once", |_, state: &State| {
            state.requests.iter().all(|request| request.answers <= 1)
        }),
        Property::always("accepted = answered + waiting + running", Scenario::adds_up),
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
        Property::always("what waits is bounded", |model: &Scenario, state: &State| {
            state.lists[0].len() <= model.capacity
        }),
        Property::always("bounded bypass", |_, state: &State| {
            state.requests.iter().all(|request| request.bypassed <= 2)
        }),
        Property::always("work-conserving", Scenario::conserves_work),
        Property::always("no deadlock", Scenario::can_go_on),
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

impl Scenario {
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
