//! A three-layer perceptron with seeded weights: the smallest model that is worth batching.

use candle_core::{Device, Result, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use onelane::BatchItem;

use crate::config::Activation;
use crate::ops;

/// Width of a row, in and out.
pub const MLP_WIDTH: usize = 512;

/// Widths from layer to layer.
const WIDTHS: [usize; 4] = [MLP_WIDTH, 1024, 1024, MLP_WIDTH];

/// One row of [`MLP_WIDTH`] numbers: the input of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpRow(Vec<f32>);

/// A row of another length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of the MLP has {MLP_WIDTH} numbers, not {0}")]
pub struct MlpRowError(pub usize);

impl MlpRow {
    /// Takes a row.
    ///
    /// # Errors
    /// [`MlpRowError`] when it has not [`MLP_WIDTH`] numbers.
    pub fn new(row: Vec<f32>) -> std::result::Result<Self, MlpRowError> {
        if row.len() == MLP_WIDTH { Ok(Self(row)) } else { Err(MlpRowError(row.len())) }
    }

    /// Its numbers.
    pub fn values(&self) -> &[f32] {
        &self.0
    }
}

/// All rows share batches; each costs 1.
impl BatchItem for MlpRow {
    type Key = ();

    fn key(&self) {}
}

/// An MLP of 512, 1024, 1024 and 512 units with ReLU between them, in f32.
pub struct Mlp {
    device: Device,
    /// Weight (in, out) and bias (out) of each layer.
    layers: Vec<(Tensor, Tensor)>,
}

impl Mlp {
    /// Makes the model of a seed: weights and biases uniform within `1 / sqrt(inputs)`.
    ///
    /// The same seed gives the same weights, bit for bit, on every platform.
    ///
    /// # Errors
    /// candle's, when the device has no room.
    pub fn seeded(seed: u64, device: &Device) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut layers = Vec::new();
        for pair in WIDTHS.windows(2) {
            let (width_in, width_out) = (pair[0], pair[1]);
            let bound = 1.0 / (width_in as f32).sqrt();
            let mut uniform = |n| -> Vec<f32> {
                // 24 bits fill a float's mantissa exactly, so nothing is rounded.
                let unit = |bits: u32| (bits >> 8) as f32 / (1 << 24) as f32;
                (0..n).map(|_| bound * (2.0 * unit(rng.next_u32()) - 1.0)).collect()
            };
            let weight = uniform(width_in * width_out);
            let bias = uniform(width_out);
            layers.push((
                Tensor::from_vec(weight, (width_in, width_out), device)?,
                Tensor::from_vec(bias, width_out, device)?,
            ));
        }
        Ok(Self { device: device.clone(), layers })
    }

    /// Runs rows through the model: one upload, one download, host data out.
    ///
    /// # Errors
    /// candle's, among them out of memory.
    pub fn forward(&self, rows: &[MlpRow]) -> Result<Vec<Vec<f32>>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut packed = Vec::with_capacity(rows.len() * MLP_WIDTH);
        for row in rows {
            packed.extend_from_slice(row.values());
        }
        let mut x = Tensor::from_vec(packed, (rows.len(), MLP_WIDTH), &self.device)?;
        let last = self.layers.len() - 1;
        for (i, (weight, bias)) in self.layers.iter().enumerate() {
            x = x.matmul(weight)?;
            x = if i == last {
                x.broadcast_add(bias)?
            } else {
                ops::bias_activation(x, bias, Activation::Relu)?
            };
        }
        // Reading back waits for the device.
        x.to_vec2()
    }
}
