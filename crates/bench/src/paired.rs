//! [`Paired`]: measurements taken round by round, compared within each round. What disturbs the
//! machine for longer than a round meets both of a pair.

/// Rates of several queues, one of each in every round.
#[derive(Clone, Debug, Default)]
pub struct Paired {
    rounds: Vec<Vec<f64>>,
}

impl Paired {
    /// Adds a round: a rate for each queue, in the same order every time.
    pub fn push(&mut self, rates: Vec<f64>) {
        self.rounds.push(rates);
    }

    /// The median rate of a queue; 0 without rounds.
    pub fn rate(&self, queue: usize) -> f64 {
        median(self.rounds.iter().map(|round| round[queue])).unwrap_or(0.0)
    }

    /// The median, least and greatest of the rounds' ratios of one queue to another.
    pub fn ratio(&self, queue: usize, to: usize) -> [f64; 3] {
        let ratios: Vec<f64> = self.rounds.iter().map(|round| round[queue] / round[to]).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = ratios.iter().copied().fold(0.0, f64::max);
        [median(ratios).unwrap_or(0.0), least, greatest]
    }
}

/// The middle value, or the mean of the middle two; none of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.get(half) {
        Some(&upper) if values.len().is_multiple_of(2) => Some((values[half - 1] + upper) / 2.0),
        upper => upper.copied(),
    }
}

/// The median of the ratios of neighbours; none without any.
pub fn median_ratio(values: &[f64], to: &[f64]) -> Option<f64> {
    median(values.iter().zip(to).map(|(value, to)| value / to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_round_slows_both_and_leaves_the_ratio() {
        let mut paired = Paired::default();
        for speed in [1.0, 0.1, 1.0, 3.0] {
            paired.push(vec![200.0 * speed, 100.0 * speed]);
        }
        for ratio in paired.ratio(0, 1) {
            assert!((ratio - 2.0).abs() < 1e-9, "{ratio}");
        }
        assert_eq!(paired.rate(0), 200.0);
    }

    #[test]
    fn medians_and_their_ratios() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        // The third round was slow for both.
        assert_eq!(median_ratio(&[8.0, 8.0, 0.8], &[10.0, 10.0, 1.0]), Some(0.8));
    }
}
