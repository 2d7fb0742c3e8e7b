//! The waiting requests of one batch key, and how many of them may share a batch.

use std::time::{Duration, Instant};

use crate::scheduler::fifo::Fifo;

/// The list of a group's requests, by its place among a request's links.
pub(crate) const BY_KEY: usize = 1;

/// The most requests in a batch of one key, learnt from running out of memory.
///
/// It is tried upwards again: memory that was short once, because of a neighbour, say, may be there
/// later. While a try is wrong it costs one split, and the next comes after twice the time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ceiling {
    pub(crate) most: usize,
    /// From when on twice as many are tried.
    retry_at: Option<Instant>,
    retry_after: Duration,
}

/// So many times longer than at first is the longest wait for the next try.
const LONGEST_RETRY: u32 = 16;

impl Ceiling {
    /// More than `most` did not fit.
    fn new(most: usize, now: Instant, retry_after: Duration) -> Self {
        Self { most, retry_at: now.checked_add(retry_after), retry_after }
    }

    /// The most requests that a batch may have now.
    fn limit(&self, now: Instant) -> usize {
        let is_due = self.retry_at.is_some_and(|at| at <= now);
        if is_due { self.most.saturating_mul(2) } else { self.most }
    }
}

/// The requests of one batch key.
pub(crate) struct Group<K> {
    pub(crate) key: K,
    pub(crate) hash: u64,
    pub(crate) by_class: [Fifo; 3],
    pub(crate) len: usize,
    pub(crate) cost: usize,
    /// Batches of this group that run now; the group stays until they are done.
    pub(crate) running: usize,
    pub(crate) ceiling: Option<Ceiling>,
    /// With `max_wait`, from when on a batch may go although it is not full.
    pub(crate) ready_at: Option<Instant>,
}

impl<K> Group<K> {
    pub(crate) fn new(key: K, hash: u64) -> Self {
        Self {
            key,
            hash,
            by_class: [Fifo::new(BY_KEY); 3],
            len: 0,
            cost: 0,
            running: 0,
            ceiling: None,
            ready_at: None,
        }
    }

    /// The most requests that a batch may have now.
    pub(crate) fn limit(&self, max_batch_size: usize, now: Instant) -> usize {
        self.ceiling.map_or(max_batch_size, |ceiling| ceiling.limit(now).min(max_batch_size))
    }

    /// The oldest request of the most urgent class.
    pub(crate) fn first(&self) -> Option<usize> {
        self.by_class.iter().find_map(Fifo::head)
    }

    /// Learns from a batch of so many requests that has run: they fitted, or no more than `most` do.
    pub(crate) fn learn(
        &mut self,
        requests: usize,
        most: Option<usize>,
        now: Instant,
        first_retry: Duration,
    ) {
        match (most, self.ceiling) {
            (Some(most), None) => self.ceiling = Some(Ceiling::new(most, now, first_retry)),
            (Some(most), Some(old)) => {
                let longest = first_retry.saturating_mul(LONGEST_RETRY);
                let retry_after = old.retry_after.saturating_mul(2).min(longest);
                self.ceiling = Some(Ceiling::new(most.min(old.most), now, retry_after));
            }
            (None, Some(old)) if requests > old.most => {
                // The next try may come at once.
                let ceiling = Ceiling { most: requests, retry_at: Some(now), ..old };
                self.ceiling = Some(Ceiling { retry_after: first_retry, ..ceiling });
            }
            (None, _) => {}
        }
    }

    /// Forgets a ceiling that no batch can reach.
    pub(crate) fn forget_ceiling_of(&mut self, max_batch_size: usize) {
        self.ceiling = self.ceiling.filter(|ceiling| ceiling.most < max_batch_size);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_ceiling_is_tried_upwards_and_each_failure_makes_the_next_try_later() {
        let start = Instant::now();
        let at = |seconds: u32| start + seconds * SECOND;
        let mut group = Group::new((), 0);
        let limit = |group: &Group<()>, seconds| group.limit(32, at(seconds));
        assert_eq!(limit(&group, 0), 32);
        group.learn(32, Some(4), at(0), SECOND);
        assert_eq!((limit(&group, 0), limit(&group, 1)), (4, 8));
        // Eight do not fit: the next try comes after two seconds.
        group.learn(8, Some(4), at(1), SECOND);
        assert_eq!((limit(&group, 2), limit(&group, 3)), (4, 8));
        // Eight fit, then sixteen, then all.
        group.learn(8, None, at(3), SECOND);
        assert_eq!(limit(&group, 3), 16);
        group.learn(16, None, at(3), SECOND);
        assert_eq!(limit(&group, 3), 32);
        group.learn(32, None, at(3), SECOND);
        group.forget_ceiling_of(32);
        assert!(group.ceiling.is_none());
    }

    #[test]
    fn a_batch_that_stays_below_the_ceiling_teaches_nothing() {
        let now = Instant::now();
        let mut group = Group::new((), 0);
        group.learn(32, Some(4), now, SECOND);
        group.learn(4, None, now + SECOND, SECOND);
        assert_eq!(group.limit(32, now), 4);
        assert_eq!(group.limit(32, now + SECOND), 8);
    }

    #[test]
    fn waits_for_the_next_try_are_bounded() {
        let mut now = Instant::now();
        let mut group = Group::new((), 0);
        for _ in 0..20 {
            group.learn(2, Some(1), now, SECOND);
            now += LONGEST_RETRY * SECOND;
            assert_eq!(group.limit(32, now), 2);
        }
        group.learn(2, Some(1), now, Duration::MAX);
        assert_eq!(group.limit(32, now + 1000 * SECOND), 2);
    }
}
