//! MPNet's relative positions: what attention adds to a score for how far apart two tokens are.
//!
//! Near distances have a step each, far ones share steps whose width grows as the logarithm; tokens
//! before and after are told apart.
//!
//! Invariant: what is kept grows with the longest text, not with its square; the square of a pass's
//! length is made for that pass, as its scores are.

use candle_core::{DType, Device, Result, Tensor};

/// From here on all distances are alike.
const FAR: f32 = 128.0;

/// What is added to the scores of all heads.
pub(crate) struct Distances {
    /// The most tokens of a text.
    longest: usize,
    /// (heads, 2 * longest - 1), on the host: at `longest - 1 + key - query`.
    rows: Vec<f32>,
    /// The same on the device.
    table: Tensor,
}

impl Distances {
    /// From the weights (steps, heads) on the host, for texts of up to `longest` tokens.
    pub(crate) fn new(weights: &Tensor, longest: usize, device: &Device) -> Result<Self> {
        let (steps, heads) = weights.dims2()?;
        let weights = weights.to_vec2::<f32>()?;
        let row = |head: usize| {
            let weights = &weights;
            let apart = 1 - longest as isize..longest as isize;
            apart.map(move |apart| weights[step(apart, steps)][head])
        };
        let rows: Vec<f32> = (0..heads).flat_map(row).collect();
        let table = Tensor::from_slice(&rows, (heads, 2 * longest - 1), device)?;
        Ok(Self { longest, rows, table })
    }

    /// What is added for the first keys of one query of one head.
    pub(crate) fn row(&self, head: usize, query: usize) -> &[f32] {
        &self.rows[head * (2 * self.longest - 1)..][self.longest - 1 - query..][..self.longest]
    }

    /// (1, heads, length, length): for all queries and keys of rows of the positions (length).
    pub(crate) fn grid(&self, positions: &Tensor) -> Result<Tensor> {
        let (heads, length) = (self.table.dim(0)?, positions.dim(0)?);
        let at = apart(positions)?.affine(1.0, (self.longest - 1) as f64)?;
        let at = at.flatten_all()?.to_dtype(DType::U32)?;
        self.table.index_select(&at, 1)?.reshape((1, heads, length, length))
    }
}

/// How far after each query (first dimension) each key (second) lies, (length, length), in rows of
/// these positions (length).
///
/// Made on the device of what the pass was given: an upload of its own could not be recorded.
pub(crate) fn apart(positions: &Tensor) -> Result<Tensor> {
    positions.unsqueeze(0)?.broadcast_sub(&positions.unsqueeze(1)?)
}

/// The step of a key that is `apart` tokens after the query.
fn step(apart: isize, steps: usize) -> usize {
    let half = steps / 2;
    let side = if apart > 0 { half } else { 0 };
    let (distance, near) = (apart.unsigned_abs(), half / 2);
    if distance < near {
        return side + distance;
    }
    let part = (distance as f32 / near as f32).ln() / (FAR / near as f32).ln();
    let far = near + (part * (half - near) as f32) as usize;
    side + far.min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_mpnet() {
        // By transformers' MPNetEncoder.relative_position_bucket.
        for (apart, expected) in [
            (0, 0),
            (-1, 1),
            (1, 17),
            (7, 23),
            (-7, 7),
            (8, 24),
            (-12, 9),
            (-60, 13),
            (100, 31),
            (-1000, 15),
            (1000, 31),
        ] {
            assert_eq!(step(apart, 32), expected, "{apart}");
        }
    }

    /// Numbers that differ everywhere, for texts of up to `longest` tokens.
    fn distances(longest: usize) -> Distances {
        let numbers: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let weights = Tensor::from_vec(numbers, (32, 2), &Device::Cpu).unwrap();
        Distances::new(&weights, longest, &Device::Cpu).unwrap()
    }

    /// Whatever the first position is, as the rows that it is given count theirs.
    fn grid(distances: &Distances, first: u32, length: u32) -> Vec<Vec<Vec<f32>>> {
        let positions: Vec<f32> = (first..first + length).map(|at| at as f32).collect();
        let positions = Tensor::new(positions, &Device::Cpu).unwrap();
        distances.grid(&positions).unwrap().squeeze(0).unwrap().to_vec3().unwrap()
    }

    #[test]
    fn rows_and_grid_agree() {
        let distances = distances(40);
        let grid = grid(&distances, 2, 9);
        for (head, query, key) in [(0, 0, 0), (1, 0, 8), (0, 8, 0), (1, 3, 5)] {
            let expected = (2 * step(key as isize - query as isize, 32) + head) as f32;
            assert_eq!(grid[head][query][key], expected);
            assert_eq!(distances.row(head, query)[key], expected);
        }
    }

    #[test]
    fn a_model_of_long_texts_takes_room_for_their_length_and_not_its_square() {
        // The square would be eight terabytes.
        let longest = 1 << 20;
        let distances = distances(longest);
        assert_eq!(distances.table.elem_count(), 2 * (2 * longest - 1));
        let grid = grid(&distances, 0, 7);
        assert_eq!(grid[1][6], distances.row(1, 6)[..7]);
        assert_eq!((grid.len(), grid[0].len()), (2, 7));
    }
}
