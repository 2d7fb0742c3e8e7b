//! [`Arrivals`]: when requests arrive under open load, whatever has become of those before.

use std::time::{Duration, Instant};

/// How arrivals are spread.
#[derive(Clone, Copy, Debug)]
pub enum Process {
    /// As many independent users make them: gaps are exponential. A seed gives the same again.
    Poisson {
        /// Chooses them.
        seed: u64,
    },
    /// At equal distances.
    Steady,
}

/// Arrivals for a time.
#[derive(Clone, Copy, Debug)]
pub struct Arrivals {
    /// Mean number per second.
    pub rate: f64,
    /// For how long.
    pub time: Duration,
    /// Their spread.
    pub process: Process,
}

impl Arrivals {
    /// The instants, from `start`, ascending.
    pub fn instants(self, start: Instant) -> impl Iterator<Item = Instant> + Send + use<> {
        self.offsets().take_while(move |&at| at < self.time).map(move |at| start + at)
    }

    /// Durations since the start, without end.
    fn offsets(self) -> impl Iterator<Item = Duration> + Send + use<> {
        let mean_gap = 1.0 / self.rate;
        let mut dice = match self.process {
            Process::Poisson { seed } => Some(fastrand::Rng::with_seed(seed)),
            Process::Steady => None,
        };
        let mut at = 0.0;
        std::iter::from_fn(move || {
            at += match &mut dice {
                // 1 - u is never 0.
                Some(dice) => -(1.0 - dice.f64()).ln() * mean_gap,
                None => mean_gap,
            };
            // A rate of next to nothing: nobody arrives within a human life.
            Some(Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX))
        })
    }
}

/// Waits until an instant; returns at once if it is past.
///
/// # Blocking
/// Until then.
pub fn sleep_until(instant: Instant) {
    let now = Instant::now();
    if instant > now {
        std::thread::sleep(instant - now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(rate: f64, process: Process) -> Arrivals {
        Arrivals { rate, time: Duration::from_secs(1), process }
    }

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let rate = 5000.0;
        let offsets = arrivals(rate, Process::Poisson { seed: 7 }).offsets();
        let offsets: Vec<f64> = offsets.take(100_000).map(|at| at.as_secs_f64()).collect();
        assert!(offsets.is_sorted());
        let seconds = offsets[offsets.len() - 1];
        assert!((offsets.len() as f64 / seconds / rate - 1.0).abs() < 0.02, "{seconds}");
        let gaps: Vec<f64> = offsets.windows(2).map(|pair| (pair[1] - pair[0]) * rate).collect();
        // Exponential with mean 1: variance 1, and e^-1 of all gaps are longer than the mean.
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        let long = gaps.iter().filter(|&&gap| gap > 1.0).count() as f64 / gaps.len() as f64;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert!((variance - 1.0).abs() < 0.05, "{variance}");
        assert!((long - (-1.0_f64).exp()).abs() < 0.01, "{long}");
        // Gaps do not know of each other.
        let product: f64 = gaps.windows(2).map(|g| (g[0] - mean) * (g[1] - mean)).sum();
        assert!((product / gaps.len() as f64).abs() < 0.02);
    }

    #[test]
    fn a_seed_gives_the_same_arrivals_and_another_seed_others() {
        let of = |seed| {
            let offsets = arrivals(100.0, Process::Poisson { seed }).offsets();
            offsets.take(50).collect::<Vec<_>>()
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn steady_arrivals_have_equal_gaps_and_end_with_the_time() {
        let start = Instant::now();
        let instants: Vec<_> = arrivals(4.0, Process::Steady).instants(start).collect();
        let offsets: Vec<_> = instants.iter().map(|at| (*at - start).as_millis()).collect();
        assert_eq!(offsets, [250, 500, 750]);
    }
}
