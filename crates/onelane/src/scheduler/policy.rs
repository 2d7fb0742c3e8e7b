//! Which group goes next: a pure function of what waits, the time and the settings. No clock, no
//! lock, no thread.
//!
//! The group with the best claim goes first. A claim is, in this order: the effective priority
//! (ageing lifts a waiting request one class per `ageing` interval), the queue's device time per
//! weight (less goes first), the arrival (older goes first).
//!
//! Bound on starvation: after at most `2 * ageing` a request counts as Interactive. From then on
//! no later request of its queue is dispatched before the batch that its claim starts, and no
//! other queue is preferred to its own once that queue has had as much device time per weight.

use std::time::{Duration, Instant};

use crate::Priority;
use crate::scheduler::id::QueueId;

/// The oldest request of one class in one group: the one that claims a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where the request is among those that wait in its queue.
    pub(crate) index: usize,
    pub(crate) class: Priority,
    pub(crate) arrival: Instant,
    /// Order of acceptance in its queue; settles equal arrivals.
    pub(crate) seq: u64,
    /// From when on its group may be dispatched: at once unless `max_wait` is set.
    pub(crate) ready_at: Instant,
}

/// What a free worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Run the batch that the head claims which sits there.
    Dispatch(QueueId, usize),
    /// Nothing is ready before this instant; without one, nothing waits.
    Wait(Option<Instant>),
}

/// The class that a request counts as after it has waited: 0 is Interactive.
pub(crate) fn effective_class(class: Priority, waited: Duration, ageing: Duration) -> usize {
    if waited < ageing {
        return class.index();
    }
    let lifts = waited.as_nanos() / ageing.as_nanos().max(1);
    class.index().saturating_sub(usize::try_from(lifts).unwrap_or(usize::MAX))
}

/// Chooses among everything that waits, shown one after another.
pub(crate) struct Choice {
    now: Instant,
    /// The claim (effective class, device time, arrival, order of acceptance: the least goes first),
    /// and whose it is.
    best: Option<((usize, Duration, Instant, u64), QueueId, usize)>,
    earliest: Option<Instant>,
}

impl Choice {
    pub(crate) fn at(now: Instant) -> Self {
        Self { now, best: None, earliest: None }
    }

    /// Considers a head of `queue`, which has had so much device time, divided by its weight.
    pub(crate) fn consider(
        &mut self,
        queue: QueueId,
        head: Head,
        ageing: Duration,
        virtual_time: Duration,
    ) {
        if head.ready_at > self.now {
            self.earliest = Some(self.earliest.map_or(head.ready_at, |e| e.min(head.ready_at)));
            return;
        }
        let waited = self.now.saturating_duration_since(head.arrival);
        let class = effective_class(head.class, waited, ageing);
        let claim = (class, virtual_time, head.arrival, head.seq);
        if self.best.as_ref().is_none_or(|(least, ..)| claim < *least) {
            self.best = Some((claim, queue, head.index));
        }
    }

    pub(crate) fn decision(self) -> Decision {
        match self.best {
            Some((_, queue, index)) => Decision::Dispatch(queue, index),
            None => Decision::Wait(self.earliest),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A head of `queue`, which has had so much device time.
    #[derive(Clone, Copy)]
    struct Candidate {
        queue: QueueId,
        head: Head,
        virtual_time: Duration,
    }

    /// A candidate of `queue` that arrived `age` before `now`.
    fn candidate(queue: QueueId, class: Priority, age: Duration, now: Instant) -> Candidate {
        let arrival = now - age;
        let head = Head { index: 0, class, arrival, seq: 0, ready_at: arrival };
        Candidate { queue, head, virtual_time: Duration::ZERO }
    }

    fn decide(candidates: &[Candidate], now: Instant) -> Decision {
        let mut choice = Choice::at(now);
        for &Candidate { queue, head, virtual_time } in candidates {
            choice.consider(queue, head, SECOND, virtual_time);
        }
        choice.decision()
    }

    fn winner(candidates: &[Candidate], now: Instant) -> QueueId {
        match decide(candidates, now) {
            Decision::Dispatch(queue, _) => queue,
            other => panic!("nothing was dispatched: {other:?}"),
        }
    }

    fn noon() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[test]
    fn nothing_waits() {
        assert_eq!(decide(&[], noon()), Decision::Wait(None));
    }

    #[test]
    fn the_claim_is_class_then_device_time_then_age() {
        use Priority::{Bulk, Interactive, Normal};
        let now = noon();
        let ms = Duration::from_millis;
        // (class, device time, age) of two queues, and which goes first.
        let table = [
            ((Interactive, ms(9), ms(1)), (Normal, ms(0), ms(900)), 1),
            ((Bulk, ms(0), ms(900)), (Normal, ms(9), ms(1)), 2),
            ((Normal, ms(5), ms(1)), (Normal, ms(4), ms(1)), 2),
            ((Normal, ms(4), ms(2)), (Normal, ms(4), ms(1)), 1),
            // Ageing: a class for each second.
            ((Normal, ms(0), ms(1000)), (Interactive, ms(1), ms(0)), 1),
            ((Normal, ms(0), ms(999)), (Interactive, ms(1), ms(0)), 2),
            ((Bulk, ms(0), ms(1999)), (Interactive, ms(1), ms(0)), 2),
            ((Bulk, ms(0), ms(2000)), (Interactive, ms(1), ms(0)), 1),
            // There is nothing above Interactive: device time decides again.
            ((Bulk, ms(9), ms(60_000)), (Interactive, ms(1), ms(0)), 2),
        ];
        for (first, second, expected) in table {
            let make = |queue, (class, virtual_time, age)| Candidate {
                virtual_time,
                ..candidate(queue, class, age, now)
            };
            let pair = [make(1, first), make(2, second)];
            assert_eq!(winner(&pair, now), expected, "{first:?} against {second:?}");
            let reversed = [pair[1], pair[0]];
            assert_eq!(winner(&reversed, now), expected, "the order of looking decided");
        }
    }

    #[test]
    fn equal_arrivals_go_in_order_of_acceptance() {
        let now = noon();
        let mut later = candidate(1, Priority::Normal, SECOND, now);
        later.head.seq = 8;
        let mut earlier = candidate(2, Priority::Normal, SECOND, now);
        earlier.head.seq = 7;
        assert_eq!(winner(&[later, earlier], now), 2);
    }

    #[test]
    fn what_is_ready_does_not_wait_for_what_is_not() {
        let now = noon();
        let mut filling = candidate(1, Priority::Interactive, Duration::ZERO, now);
        filling.head.ready_at = now + SECOND;
        let ready = candidate(2, Priority::Bulk, Duration::ZERO, now);
        assert_eq!(winner(&[filling, ready], now), 2);
        assert_eq!(decide(&[filling], now), Decision::Wait(Some(now + SECOND)));
        assert_eq!(winner(&[filling], now + SECOND), 1);
    }

    #[test]
    fn ageing_can_be_off() {
        let age = Duration::from_secs(1 << 40);
        assert_eq!(effective_class(Priority::Bulk, age, Duration::MAX), 2);
    }
}
