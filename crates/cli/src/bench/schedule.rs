//! When requests arrive under open load: a Poisson process, as many independent users make it.

use std::time::Duration;

/// Arrivals: durations since the start, ascending, without end.
#[derive(Clone, Debug)]
pub struct Poisson {
    dice: fastrand::Rng,
    mean_gap: f64,
    /// Seconds since the start.
    at: f64,
}

impl Poisson {
    /// Arrivals at `rate` a second; the same seed gives the same.
    pub fn new(rate: f64, seed: u64) -> Self {
        Self { dice: fastrand::Rng::with_seed(seed), mean_gap: 1.0 / rate, at: 0.0 }
    }
}

impl Iterator for Poisson {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // Gaps are exponential; 1 - u is never 0.
        self.at -= (1.0 - self.dice.f64()).ln() * self.mean_gap;
        // A rate of next to nothing: nobody arrives within a human life.
        Some(Duration::try_from_secs_f64(self.at).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let rate = 5000.0;
        let arrivals: Vec<f64> =
            Poisson::new(rate, 7).take(100_000).map(|at| at.as_secs_f64()).collect();
        assert!(arrivals.is_sorted());
        let seconds = arrivals[arrivals.len() - 1];
        assert!((arrivals.len() as f64 / seconds / rate - 1.0).abs() < 0.02, "{seconds}");
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| (pair[1] - pair[0]) * rate).collect();
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
        let of = |seed| Poisson::new(100.0, seed).take(50).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}
