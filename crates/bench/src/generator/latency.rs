//! [`Latencies`]: how long answers took, from when they were due.
//!
//! Under open load a request counts from the instant at which it was meant to be sent, not from
//! when a busy client got round to it: what the client waited for is part of what its user sees. So
//! a pause of the system shows in full, in every request that it held up (no coordinated omission).

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// What is longer counts as an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// A histogram of latencies, exact to 1%.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_max(LONGEST, 2).expect("the bounds are in order"))
    }
}

impl Latencies {
    /// Notes an answer to a request that was due at `due`.
    pub fn record(&mut self, due: Instant, answered: Instant) {
        self.record_duration(answered.saturating_duration_since(due));
    }

    /// Notes a duration.
    pub fn record_duration(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds what others noted.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// How many were noted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this part of the requests stays within, in microseconds.
    pub fn quantile_us(&self, part: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(part) as f64 / 1e3 }
    }

    /// The arithmetic mean in microseconds.
    pub fn mean_us(&self) -> f64 {
        self.0.mean() / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_shows_in_every_request_that_was_due_in_it() {
        // One request is due each millisecond and takes 1 ms; the server stands still from 100 to
        // 200 ms. The client sends what is overdue when it is over, one after another.
        let start = Instant::now();
        let ms = Duration::from_millis;
        let (mut from_due, mut from_sent) = (Latencies::default(), Latencies::default());
        let mut free = start;
        for i in 0..1000 {
            let due = start + ms(i);
            let mut sent = due.max(free);
            if sent >= start + ms(100) && sent < start + ms(200) {
                sent = start + ms(200);
            }
            free = sent + Duration::from_micros(500);
            from_due.record(due, free);
            from_sent.record(sent, free);
        }
        // From when they were sent, nothing is seen of it.
        assert!(from_sent.quantile_us(1.0) < 510.0);
        // From when they were due: the longest 100 ms, and one in ten more than 50 ms.
        assert!((99_000.0..103_000.0).contains(&from_due.quantile_us(1.0)));
        assert!(from_due.quantile_us(0.9) > 40_000.0, "{}", from_due.quantile_us(0.9));
        assert_eq!(from_due.count(), 1000);
    }

    #[test]
    fn sums_have_the_counts_and_the_extremes_of_both() {
        let (mut a, mut b) = (Latencies::default(), Latencies::default());
        for _ in 0..99 {
            a.record_duration(Duration::from_micros(10));
        }
        b.record_duration(Duration::from_millis(7));
        a.add(&b);
        assert_eq!(a.count(), 100);
        assert!((9.9..10.2).contains(&a.quantile_us(0.5)));
        assert!((6900.0..7100.0).contains(&a.quantile_us(1.0)));
    }

    #[test]
    fn an_answer_before_its_time_took_none() {
        let mut latencies = Latencies::default();
        let now = Instant::now();
        latencies.record(now + Duration::from_secs(1), now);
        assert_eq!((latencies.count(), latencies.quantile_us(1.0)), (1, 0.0));
        assert_eq!(Latencies::default().quantile_us(0.99), 0.0);
    }
}
