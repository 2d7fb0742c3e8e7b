//! Seeded host data. The numbers are the same on every machine; they are not PyTorch's numbers for the
//! same seed.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::host::HostTensor;

/// The seed of all weights.
pub(super) const WEIGHTS: u64 = 42;

/// A source of host tensors.
pub(super) struct Seeded(ChaCha8Rng);

impl Seeded {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Uniform in `[0, 1)`, from the upper 24 bits.
    fn unit(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1u32 << 24) as f32
    }

    /// Standard normal elements, by Box and Muller.
    pub(super) fn normal(&mut self, shape: &[usize]) -> HostTensor {
        let elements: usize = shape.iter().product();
        let mut data = Vec::with_capacity(elements + 1);
        while data.len() < elements {
            let radius = (-2.0 * libm::logf(1.0 - self.unit())).sqrt();
            let angle = std::f32::consts::TAU * self.unit();
            data.push(radius * libm::cosf(angle));
            data.push(radius * libm::sinf(angle));
        }
        data.truncate(elements);
        HostTensor::new(shape, data)
    }

    /// Elements uniform in `[low, high)`.
    pub(super) fn uniform(&mut self, shape: &[usize], (low, high): (f32, f32)) -> HostTensor {
        let elements = shape.iter().product();
        let data = (0..elements).map(|_| low + (high - low) * self.unit());
        HostTensor::new(shape, data.collect())
    }

    /// Weight (outputs, inputs) and bias (outputs), uniform within ±1/√inputs as in `nn.Linear`.
    pub(super) fn linear(&mut self, inputs: usize, outputs: usize) -> [HostTensor; 2] {
        let bound = (inputs as f32).sqrt().recip();
        [
            self.uniform(&[outputs, inputs], (-bound, bound)),
            self.uniform(&[outputs], (-bound, bound)),
        ]
    }

    /// Weight and bias of a layer norm, around 1 and 0.
    pub(super) fn norm(&mut self, width: usize) -> [HostTensor; 2] {
        [self.uniform(&[width], (0.5, 1.5)), self.uniform(&[width], (-0.5, 0.5))]
    }
}
