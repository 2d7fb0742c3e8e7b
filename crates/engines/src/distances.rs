//! MPNet's relative positions: what attention adds to a score for how far apart two tokens are.
//!
//! Near distances have a step each, far ones share steps whose width grows as the logarithm; tokens
//! before and after are told apart.

use candle_core::{Device, Result, Tensor};

/// From here on all distances are alike.
const FAR: f32 = 128.0;

/// What is added to the scores of all heads.
pub(crate) struct Distances {
    /// The most tokens of a text.
    longest: usize,
    /// (heads, 2 * longest - 1), on the host: at `longest - 1 + key - query`.
    rows: Vec<f32>,
    /// (heads, longest, longest), on the device: for each query and key. `None` on the CPU, which
    /// reads the rows.
    grid: Option<Tensor>,
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
        let mut distances = Self { longest, rows, grid: None };
        if !device.is_cpu() {
            let all = distances.grid_on_host(longest);
            let heads = Tensor::from_vec(all, (heads, longest, longest), device)?;
            distances.grid = Some(heads);
        }
        Ok(distances)
    }

    /// What is added for the first keys of one query of one head.
    pub(crate) fn row(&self, head: usize, query: usize) -> &[f32] {
        &self.rows[head * (2 * self.longest - 1)..][self.longest - 1 - query..][..self.longest]
    }

    /// (1, heads, length, length): for all queries and keys of rows of this length.
    pub(crate) fn grid(&self, length: usize) -> Result<Tensor> {
        let shape = (1, self.heads(), length, length);
        match &self.grid {
            Some(grid) => {
                grid.narrow(1, 0, length)?.narrow(2, 0, length)?.contiguous()?.reshape(shape)
            }
            None => Tensor::from_vec(self.grid_on_host(length), shape, &Device::Cpu),
        }
    }

    fn heads(&self) -> usize {
        self.rows.len() / (2 * self.longest - 1)
    }

    fn grid_on_host(&self, length: usize) -> Vec<f32> {
        (0..self.heads())
            .flat_map(|head| (0..length).map(move |query| (head, query)))
            .flat_map(|(head, query)| &self.row(head, query)[..length])
            .copied()
            .collect()
    }
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

    #[test]
    fn rows_and_grid_agree() {
        let numbers: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let weights = Tensor::from_vec(numbers, (32, 2), &Device::Cpu).unwrap();
        let distances = Distances::new(&weights, 40, &Device::Cpu).unwrap();
        let grid = distances.grid(9).unwrap().squeeze(0).unwrap();
        let grid = grid.to_vec3::<f32>().unwrap();
        for (head, query, key) in [(0, 0, 0), (1, 0, 8), (0, 8, 0), (1, 3, 5)] {
            let expected = (2 * step(key as isize - query as isize, 32) + head) as f32;
            assert_eq!(grid[head][query][key], expected);
            assert_eq!(distances.row(head, query)[key], expected);
        }
    }
}
