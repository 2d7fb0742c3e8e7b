//! [`Timeline`]: the corrupting order of steps, ready to be drawn: one row per step, and beside the two
//! threads what their command buffers and the freed block hold meanwhile.
//!
//! Everything is read from the trace of the run. Invariant: the segments of a lane cover all rows, in
//! order, without gaps.

use onelane_sim::ActionKind;
use onelane_sim::Event;
use onelane_sim::scenario::{Counterexample, Step};

/// What is drawn.
#[derive(Debug)]
pub struct Timeline {
    /// The number of the block that was freed too early.
    pub block: u32,
    pub rows: Vec<Row>,
    /// T1's command buffer, the freed block, T2's command buffer.
    pub lanes: [Vec<Segment>; 3],
}

/// A step of one of the threads.
#[derive(Debug)]
pub struct Row {
    pub step: u64,
    /// Whether it is T1's; else it is T2's.
    pub first: bool,
    pub what: String,
    pub note: Option<String>,
}

/// Some rows of a lane in which it stays the same.
#[derive(Debug, PartialEq)]
pub struct Segment {
    pub rows: usize,
    pub state: State,
    pub text: String,
}

/// What a lane shows; named as the page's style names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Empty,
    First,
    Second,
    Pending,
    Freed,
    Stale,
}

impl State {
    /// The class in the page's style.
    pub fn class(self) -> &'static str {
        match self {
            State::Empty => "empty",
            State::First => "first",
            State::Second => "second",
            State::Pending => "pending",
            State::Freed => "freed",
            State::Stale => "stale",
        }
    }
}

impl Timeline {
    /// The steps of a run that corrupted, up to the commit that read the wrong numbers; `None` for a
    /// run that did not.
    pub fn of(found: &Counterexample) -> Option<Self> {
        let events = found.trace.events();
        let block = found.freed_block()?;
        let stale = events.iter().position(|event| event.kind == ActionKind::StaleRead)?;
        // The stale command itself, and what else its command buffer held.
        let runs = |event: &&Event| {
            event.kind == ActionKind::Execute
                && event.command_buffer == events[stale].command_buffer
        };
        let last = stale + events[stale..].iter().filter(runs).count();
        let steps: Vec<&Step> = found.steps.iter().filter(|step| step.event <= last).collect();
        let shown: Vec<&Event> = steps.iter().map(|step| &events[step.event]).collect();
        let rows = steps.iter().map(|step| Row {
            step: step.step,
            first: step.thread == "T1",
            what: step.what.trim_start().to_owned(),
            note: step.note.clone(),
        });
        Some(Self {
            block,
            rows: rows.collect(),
            lanes: [
                lane(&shown, command_buffer("T1")),
                lane(&shown, owner(block)),
                lane(&shown, command_buffer("T2")),
            ],
        })
    }
}

/// What a lane shows from a row on: now, and from the next row on.
struct Change {
    now: (State, String),
    then: (State, String),
}

impl Change {
    fn to(state: State, text: impl Into<String>) -> Option<Self> {
        let to = (state, text.into());
        Some(Self { now: to.clone(), then: to })
    }

    /// Only in this row.
    fn once(now: (State, String), then: (State, String)) -> Option<Self> {
        Some(Self { now, then })
    }
}

/// The segments of a lane; `change` tells what an event changes in it.
fn lane(events: &[&Event], mut change: impl FnMut(&Event) -> Option<Change>) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut state = (State::Empty, String::new());
    for event in events {
        let now = match change(event) {
            Some(Change { now, then }) => {
                state = then;
                now
            }
            None => state.clone(),
        };
        match segments.last_mut() {
            Some(last) if (last.state, &last.text) == (now.0, &now.1) => last.rows += 1,
            _ => segments.push(Segment { rows: 1, state: now.0, text: now.1 }),
        }
    }
    segments
}

/// What waits in a thread's command buffer.
fn command_buffer(thread: &'static str) -> impl FnMut(&Event) -> Option<Change> {
    let mut pending: Vec<String> = Vec::new();
    move |event| {
        if event.thread != thread {
            return None;
        }
        let held = |pending: &[String]| match pending {
            [] => (State::Empty, String::new()),
            names => (State::Pending, format!("{} pending", names.join(", "))),
        };
        match event.kind {
            ActionKind::Encode => {
                pending.push(event.name.clone());
                let (state, text) = held(&pending);
                Change::to(state, text)
            }
            ActionKind::Execute => {
                pending.retain(|name| *name != event.name);
                let state = if thread == "T1" { State::First } else { State::Second };
                Change::once((state, format!("{} runs", event.name)), held(&pending))
            }
            ActionKind::StaleRead => {
                Change::once((State::Stale, format!("{} is stale", event.name)), held(&pending))
            }
            _ => None,
        }
    }
}

/// Whose the block is, and whose numbers it holds.
fn owner(block: u32) -> impl FnMut(&Event) -> Option<Change> {
    move |event| {
        let first = event.thread == "T1";
        let (state, thread) = if first { (State::First, "T1") } else { (State::Second, "T2") };
        let writes = event.writes.contains(&block);
        match event.kind {
            ActionKind::Alloc if writes => Change::to(state, format!("{thread}'s")),
            ActionKind::Execute if writes => {
                Change::to(state, format!("{thread}'s, holds {thread}'s projection"))
            }
            ActionKind::Free if writes => {
                Change::to(State::Freed, "free; T1's copy has not read it yet")
            }
            ActionKind::StaleRead if event.reads.contains(&block) => Change::once(
                (State::Stale, "T1's copy reads T2's projection".to_owned()),
                (State::Second, "T2's, holds T2's projection".to_owned()),
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use onelane_sim::scenario::{Program, counterexample};
    use onelane_sim::{Profile, Reuse};

    use super::*;

    #[test]
    fn the_block_goes_from_t1_to_t2_and_is_read_too_late() {
        let found = counterexample(Profile::fork_2_9_1(), Program::Race).unwrap();
        let timeline = Timeline::of(&found).unwrap();
        for lane in &timeline.lanes {
            let rows: usize = lane.iter().map(|segment| segment.rows).sum();
            assert_eq!(rows, timeline.rows.len());
        }
        let states: Vec<State> = timeline.lanes[1].iter().map(|segment| segment.state).collect();
        use State::{First, Freed, Second, Stale};
        assert_eq!(states, [First, First, Freed, Second, Second, Stale, Second]);
        // T1's copy is pending while all of T2's steps are made.
        let pending = timeline.lanes[0].iter().find(|s| s.text == "copy pending").unwrap();
        let second = timeline.rows.iter().filter(|row| !row.first).count();
        assert!(second > 0 && pending.rows > second, "{pending:?}");
    }

    #[test]
    fn a_run_that_did_not_corrupt_is_not_drawn() {
        let cured = Profile::fork_2_9_1().with_reuse(Reuse::PerStream);
        assert!(Timeline::of(&counterexample(cured, Program::Race).unwrap()).is_none());
    }
}
