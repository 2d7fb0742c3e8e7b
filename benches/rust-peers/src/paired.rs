//! [`Paired`]: measurements taken round by round, compared within each round.

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

    /// The median rate of a queue.
    pub fn rate(&self, queue: usize) -> f64 {
        median(self.rounds.iter().map(|round| round[queue]))
    }

    /// The median, least and greatest of the rounds' ratios of one queue to another. Only
    /// neighbours in time are compared: what disturbs the machine for longer than a round meets
    /// both.
    pub fn ratio(&self, queue: usize, to: usize) -> [f64; 3] {
        let ratios: Vec<f64> = self.rounds.iter().map(|round| round[queue] / round[to]).collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = ratios.iter().copied().fold(0.0, f64::max);
        [median(ratios), least, greatest]
    }
}

/// The middle value, or the mean of the middle two; 0 of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.get(half) {
        None => 0.0,
        Some(&upper) if values.len() % 2 == 1 => upper,
        Some(&upper) => (values[half - 1] + upper) / 2.0,
    }
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
        let [middle, least, greatest] = paired.ratio(0, 1);
        for ratio in [middle, least, greatest] {
            assert!((ratio - 2.0).abs() < 1e-9, "{ratio}");
        }
        assert_eq!(paired.rate(0), 200.0);
    }

    #[test]
    fn medians() {
        assert_eq!(median([]), 0.0);
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
