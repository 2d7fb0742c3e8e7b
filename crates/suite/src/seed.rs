//! Seeded host data: the weights and inputs that every device and every mode shares.
//!
//! The numbers come from ChaCha8, so they are the same on every machine. They are not PyTorch's
//! numbers for the same seed: distributions and shapes are PyTorch's, the bit stream is ours.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use crate::host::HostTensor;

/// The seed of all weights and of the ten tests' inputs.
pub const SEED: u64 = 42;

/// A generator of host tensors; equal seed and stream give equal tensors.
pub struct Seeded(ChaCha8Rng);

impl Seeded {
    /// The stream that a case draws its weights from.
    pub fn weights(seed: u64) -> Self {
        Self::stream(seed, 0)
    }

    /// The stream that a case draws its inputs from, independent of the weights' stream.
    pub fn inputs(seed: u64) -> Self {
        Self::stream(seed, 1)
    }

    fn stream(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Draws from the standard normal distribution.
    pub fn normal(&mut self, shape: impl Into<Vec<usize>>) -> HostTensor {
        let rng = &mut self.0;
        fill(shape.into(), || StandardNormal.sample(rng))
    }

    /// Draws uniformly from `[low, high)`.
    pub fn uniform(&mut self, shape: impl Into<Vec<usize>>, low: f32, high: f32) -> HostTensor {
        let rng = &mut self.0;
        // The upper 24 bits are exactly the fractions that an f32 in [0, 1) can hold evenly.
        fill(shape.into(), || {
            let unit = (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
            low + (high - low) * unit
        })
    }

    /// Weight (outputs, inputs) and bias (outputs) of a linear layer, uniform within
    /// ±1/√inputs, as PyTorch initialises `nn.Linear`.
    pub fn linear(&mut self, inputs: usize, outputs: usize) -> [HostTensor; 2] {
        let bound = (inputs as f32).sqrt().recip();
        [self.uniform([outputs, inputs], -bound, bound), self.uniform([outputs], -bound, bound)]
    }

    /// Weight and bias of a layer norm, drawn around PyTorch's 1 and 0 so that an implementation
    /// that forgets them fails.
    pub fn norm(&mut self, width: usize) -> [HostTensor; 2] {
        [self.uniform([width], 0.5, 1.5), self.uniform([width], -0.5, 0.5)]
    }
}

fn fill(shape: Vec<usize>, mut draw: impl FnMut() -> f32) -> HostTensor {
    let elements = shape.iter().product();
    HostTensor::new(shape, std::iter::repeat_with(&mut draw).take(elements).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_data_and_others_do_not() {
        let draw = |mut seeded: Seeded| seeded.normal([64]);
        assert_eq!(draw(Seeded::inputs(42)), draw(Seeded::inputs(42)));
        assert_ne!(draw(Seeded::inputs(42)), draw(Seeded::inputs(43)));
        assert_ne!(draw(Seeded::inputs(42)), draw(Seeded::weights(42)));
    }

    #[test]
    fn distributions_have_their_moments() {
        let mut seeded = Seeded::inputs(42);
        let moments = |t: HostTensor| {
            let n = t.data().len() as f64;
            let mean = t.data().iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let square = t.data().iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
            (mean, square - mean * mean)
        };
        let (mean, variance) = moments(seeded.normal([100_000]));
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03);
        let (mean, variance) = moments(seeded.uniform([100_000], -1.0, 1.0));
        assert!(mean.abs() < 0.02 && (variance - 1.0 / 3.0).abs() < 0.01);
    }
}
