//! The line for room in a full queue: by urgency, and then first come, first served.
//!
//! A place in it is fixed when it is taken, so that whoever was woken as the first is overtaken by
//! newcomers alone, and they look for room themselves before they stand in line.

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::after::After;
use crate::request::Priority;

/// A place in a line; the least is the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    /// 0; of who is never lifted to Interactive, its class.
    class: usize,
    /// When it has been lifted to Interactive, one class for each `ageing` interval.
    urgent_at: Instant,
    number: u64,
}

/// Who waits for room in one queue.
pub(crate) struct Line {
    ageing: Duration,
    waiting: BTreeMap<Turn, Waker>,
    next_number: u64,
}

impl Line {
    pub(crate) fn new(ageing: Duration) -> Self {
        Self { ageing, waiting: BTreeMap::new(), next_number: 0 }
    }

    /// The turn of who comes now.
    pub(crate) fn turn(&self, class: Priority, at: Instant) -> Turn {
        let lifts = class.index() as u32;
        let lifted = at.checked_add(self.ageing.saturating_mul(lifts));
        let (class, urgent_at) = lifted.map_or((class.index(), at), |lifted| (0, lifted));
        Turn { class, urgent_at, number: self.next_number }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nobody goes before this one, who may stand in line or not.
    pub(crate) fn is_first(&self, turn: Turn) -> bool {
        self.waiting.first_key_value().is_none_or(|(first, _)| turn <= *first)
    }

    /// Takes a place, or changes the waker of the one who has it.
    pub(crate) fn stand(&mut self, turn: Turn, waker: &Waker, after: &mut After) {
        self.next_number = self.next_number.max(turn.number + 1);
        if self.waiting.get(&turn).is_none_or(|old| !old.will_wake(waker))
            && let Some(old) = self.waiting.insert(turn, waker.clone())
        {
            after.discard(old);
        }
    }

    /// Gives a place back, if it is one still.
    pub(crate) fn leave(&mut self, turn: Turn, after: &mut After) {
        if let Some(waker) = self.waiting.remove(&turn) {
            after.discard(waker);
        }
    }

    /// Lets the first look again. It stays in its place until it has gone in or left.
    pub(crate) fn wake_first(&self, after: &mut After) {
        if let Some((_, waker)) = self.waiting.first_key_value() {
            after.wake(waker.clone());
        }
    }

    /// Sends everybody away, to see that the queue is closed or has failed.
    pub(crate) fn dismiss(&mut self, after: &mut After) {
        after.wake_all(std::mem::take(&mut self.waiting).into_values());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const CLASSES: [Priority; 3] = [Priority::Bulk, Priority::Normal, Priority::Interactive];

    /// Who goes first, and so on, of those who come at these times: (class, milliseconds).
    fn order(ageing: Duration, come: &[(Priority, u64)]) -> Vec<usize> {
        let mut line = Line::new(ageing);
        let start = Instant::now();
        let mut after = After::default();
        let turns: Vec<Turn> = come
            .iter()
            .map(|&(class, ms)| {
                let turn = line.turn(class, start + Duration::from_millis(ms));
                line.stand(turn, Waker::noop(), &mut after);
                turn
            })
            .collect();
        let mut order = Vec::new();
        while let Some(first) =
            turns.iter().position(|&turn| line.waiting.contains_key(&turn) && line.is_first(turn))
        {
            line.leave(turns[first], &mut after);
            order.push(first);
        }
        assert!(line.is_empty());
        order
    }

    #[test]
    fn a_class_is_worth_one_ageing_interval() {
        let [bulk, normal, interactive] = CLASSES;
        let ageing = Duration::from_millis(100);
        assert_eq!(order(ageing, &CLASSES.map(|class| (class, 0))), [2, 1, 0]);
        assert_eq!(order(ageing, &[(bulk, 0), (normal, 99), (interactive, 199)]), [1, 2, 0]);
        assert_eq!(order(ageing, &[(bulk, 0), (normal, 100), (interactive, 200)]), [0, 1, 2]);
        assert_eq!(order(ageing, &[(normal, 0), (normal, 0), (normal, 0)]), [0, 1, 2]);
    }

    #[test]
    fn without_ageing_a_class_is_worth_any_time() {
        let come = [(0, 0), (1, 5), (2, 10), (0, 20)].map(|(at, ms)| (CLASSES[at], ms));
        assert_eq!(order(Duration::MAX, &come), [2, 1, 0, 3]);
    }
}
