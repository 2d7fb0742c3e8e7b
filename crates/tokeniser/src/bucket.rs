//! Length buckets and row counts: a bounded set of shapes for an unbounded set of texts.
//!
//! A text goes into the shortest bucket that holds its tokens; the bucket is its batch key. A batch
//! is then cut into runs whose row counts come from a small fixed set. So a device sees at most
//! `lengths x rows` distinct shapes, whatever the traffic: backends that keep a graph, a kernel or
//! a buffer for each shape do not grow with it.

/// Lengths and row counts that runs may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketConfig {
    lengths: Vec<usize>,
    rows: Vec<usize>,
    round_up: bool,
}

/// Part of a run that may be empty before a batch is cut further, unless rounding up is asked for.
const SLACK: f64 = 0.25;

/// Buckets that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} = {value:?}: must be one or more numbers above 0 in ascending order")]
pub struct BucketError {
    /// `lengths` or `rows`.
    pub name: &'static str,
    /// What was given.
    pub value: Vec<usize>,
}

impl BucketConfig {
    /// Four lengths to the octave (8, 12, 16, 20, 24, 28, 32, 40, ... 8,192) and row counts in powers
    /// of two up to 32: at most a quarter of a text's row is padding, on average about a twelfth.
    /// For devices that compute their padding; at most 138 shapes for a model of 512 tokens, 234 for
    /// one of 8,192.
    pub fn fine() -> Self {
        let octaves = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096];
        let steps = octaves.iter().flat_map(|o| (0..4).map(move |i| o + o * i / 4));
        Self {
            lengths: [8, 12].into_iter().chain(steps).chain([8192]).collect(),
            rows: vec![1, 2, 4, 8, 16, 32],
            round_up: false,
        }
    }

    /// One length to the octave (16, 32, ... 8,192) and 1, 8 or 32 rows, rounded up: at most 15 shapes
    /// for a model of 256 tokens, 30 for one of 8,192. For devices that skip padding, where a coarse bucket
    /// costs nothing and fills batches better; and for a GPU so fast that a small model is launches more
    /// than work, if it does without CUDA graphs.
    pub fn coarse() -> Self {
        Self {
            lengths: (4..=13).map(|octave| 1 << octave).collect(),
            rows: vec![1, 8, 32],
            round_up: true,
        }
    }

    /// Sets the lengths in tokens, ascending. The model's limit is always the last bucket: longer
    /// ones are dropped, and it is added if it is missing.
    #[must_use]
    pub fn lengths(mut self, lengths: impl Into<Vec<usize>>) -> Self {
        self.lengths = lengths.into();
        self
    }

    /// Sets the row counts of a run, ascending. A batch larger than the last is cut.
    #[must_use]
    pub fn rows(mut self, rows: impl Into<Vec<usize>>) -> Self {
        self.rows = rows.into();
        self
    }

    /// Whether a rest always goes in one run of the next row count, however much of that stays empty.
    /// If not, it is cut further where more than a quarter would be empty.
    #[must_use]
    pub fn round_up(mut self, round_up: bool) -> Self {
        self.round_up = round_up;
        self
    }

    /// Fits the buckets to a model that takes at most `limit` tokens.
    ///
    /// # Errors
    /// [`BucketError`] for an empty list, a zero, or an order other than ascending.
    pub fn fit(&self, limit: usize) -> Result<Buckets, BucketError> {
        for (name, value) in [("lengths", &self.lengths), ("rows", &self.rows)] {
            let ascending = value.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || value.first().is_none_or(|&first| first == 0) {
                return Err(BucketError { name, value: value.clone() });
            }
        }
        let shorter = self.lengths.iter().copied().filter(|&length| length < limit);
        let lengths = shorter.chain([limit]).collect();
        Ok(Buckets { lengths, rows: self.rows.clone(), round_up: self.round_up })
    }
}

/// The buckets of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    lengths: Vec<usize>,
    rows: Vec<usize>,
    round_up: bool,
}

/// One pass through the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape {
    /// Rows, those without a text included.
    pub rows: usize,
    /// Tokens of a row, padding included.
    pub length: usize,
}

impl Shape {
    /// Tokens that a device without kernels for ragged rows computes.
    pub fn tokens(self) -> usize {
        self.rows * self.length
    }
}

impl Buckets {
    /// Lengths in tokens, ascending; the last is the model's limit.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Row counts, ascending.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// The bound: no more than this many distinct shapes are ever run.
    pub fn max_shapes(&self) -> usize {
        self.lengths.len() * self.rows.len()
    }

    /// The bucket of a text; the last one for a text beyond the limit.
    pub fn length_for(&self, tokens: usize) -> usize {
        let at = self.lengths.partition_point(|&length| length < tokens);
        self.lengths[at.min(self.lengths.len() - 1)]
    }

    /// Part of a run that may be empty before a batch is cut further.
    pub fn slack(&self) -> f64 {
        if self.round_up { 1.0 } else { SLACK }
    }

    /// Cuts a batch of `texts` in one bucket into runs: how many texts, and in what shape.
    ///
    /// A rest that fills no row count exactly is rounded up if at most `slack` of the rounded run
    /// is then empty, else it is cut further.
    pub fn plan(&self, texts: usize, length: usize, slack: f64) -> Vec<(usize, Shape)> {
        let mut left = texts;
        let mut runs = Vec::new();
        while left > 0 {
            let at = self.rows.partition_point(|&rows| rows < left);
            let rows = match (self.rows.get(at), at.checked_sub(1)) {
                (Some(&up), below) => {
                    let empty = (up - left) as f64 / up as f64;
                    match below {
                        Some(below) if empty > slack => self.rows[below],
                        _ => up,
                    }
                }
                (None, _) => self.rows[self.rows.len() - 1],
            };
            let taken = rows.min(left);
            runs.push((taken, Shape { rows, length }));
            left -= taken;
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_always_the_last_bucket() {
        let lengths = |limit| BucketConfig::coarse().fit(limit).unwrap().lengths().to_vec();
        assert_eq!(lengths(256), [16, 32, 64, 128, 256]);
        assert_eq!(lengths(200), [16, 32, 64, 128, 200]);
        assert_eq!(lengths(10), [10]);
        assert_eq!(lengths(1000), [16, 32, 64, 128, 256, 512, 1000]);
    }

    #[test]
    fn the_documented_bounds_hold() {
        let shapes = |config: BucketConfig, limit| config.fit(limit).unwrap().max_shapes();
        assert_eq!(shapes(BucketConfig::fine(), 512), 138);
        assert_eq!(shapes(BucketConfig::fine(), 8192), 234);
        assert_eq!(shapes(BucketConfig::coarse(), 8192), 30);
        assert_eq!(shapes(BucketConfig::coarse(), 512), 18);
        assert_eq!(shapes(BucketConfig::coarse(), 256), 15);
        let few = BucketConfig::coarse().lengths([64, 128]).rows([1, 32]);
        assert_eq!(shapes(few, 512), 6);
    }

    #[test]
    fn a_text_goes_into_the_shortest_bucket_that_holds_it() {
        let buckets = BucketConfig::fine().fit(256).unwrap();
        let mut before = 0;
        for &length in buckets.lengths() {
            assert_eq!(buckets.length_for(before + 1), length);
            assert_eq!(buckets.length_for(length), length);
            before = length;
        }
        assert_eq!(buckets.length_for(100_000), 256);
    }

    #[test]
    fn plans_run_every_text_in_allowed_shapes() {
        let buckets = BucketConfig::fine().fit(256).unwrap();
        for slack in [0.0, 0.25, 1.0] {
            for texts in 0..100 {
                let plan = buckets.plan(texts, 64, slack);
                assert_eq!(plan.iter().map(|run| run.0).sum::<usize>(), texts);
                for (taken, shape) in plan {
                    assert!(taken <= shape.rows && buckets.rows().contains(&shape.rows));
                    let empty = (shape.rows - taken) as f64 / shape.rows as f64;
                    assert!(empty <= slack || shape.rows == buckets.rows()[0]);
                }
            }
        }
        let rows = |texts, slack| -> Vec<usize> {
            buckets.plan(texts, 64, slack).iter().map(|run| run.1.rows).collect()
        };
        assert_eq!(rows(13, 0.25), [16]);
        assert_eq!(rows(11, 0.25), [8, 4]);
        assert_eq!(rows(70, 0.25), [32, 32, 8]);
        assert_eq!(rows(9, 1.0), [16]);
    }

    #[test]
    fn coarse_buckets_round_up_unless_told_otherwise() {
        let rows = |config: BucketConfig| -> Vec<usize> {
            let buckets = config.fit(256).unwrap();
            buckets.plan(22, 64, buckets.slack()).iter().map(|run| run.1.rows).collect()
        };
        assert_eq!(rows(BucketConfig::coarse()), [32]);
        assert_eq!(rows(BucketConfig::coarse().round_up(false)), [8, 8, 8]);
        assert_eq!(rows(BucketConfig::fine()), [16, 8]);
        assert_eq!(rows(BucketConfig::fine().round_up(true)), [32]);
    }

    #[test]
    fn a_smallest_row_count_above_one_is_filled_up() {
        let buckets = BucketConfig::coarse().rows([8, 32]).fit(256).unwrap();
        assert_eq!(buckets.plan(3, 16, 0.0), [(3, Shape { rows: 8, length: 16 })]);
    }

    #[test]
    fn unusable_lists_are_refused() {
        for rows in [vec![], vec![0, 1], vec![4, 2], vec![2, 2]] {
            let error = BucketConfig::fine().rows(rows.clone()).fit(64).unwrap_err();
            assert_eq!((error.name, error.value), ("rows", rows));
        }
        assert!(BucketConfig::fine().lengths([]).fit(64).is_err());
    }
}
