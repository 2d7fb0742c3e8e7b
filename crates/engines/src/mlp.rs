//! A three-layer perceptron with seeded weights: the smallest model that is worth batching.

use candle_core::{Device, Result, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use onelane::BatchItem;

use crate::activation::Activation;
use crate::ops;
use crate::pass::Passes;

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
    layers: Layers,
    /// By rows.
    passes: Passes<usize>,
}

/// Weights, in the form that is quickest on the device.
enum Layers {
    /// Weight (in, out) and bias (out) of each layer.
    Apart(Vec<(Tensor, Tensor)>),
    /// One matrix (in + [`ONES`], out + [`ONES`]) for each layer; the last has no columns for ones.
    ///
    /// A row is followed by a 1 and zeros. The bias is the row of weights that the 1 meets, and the
    /// 1 goes on to the next layer: ReLU leaves it alone. On a GPU with small batches a layer is
    /// launches more than work, and a bias that is added by itself takes three of them.
    Joined(Vec<Tensor>),
}

/// The numbers behind a row: more than one, so that rows stay aligned to 16 bytes.
const ONES: usize = 4;

impl Mlp {
    /// Makes the model of a seed: weights and biases uniform within `1 / sqrt(inputs)`.
    ///
    /// The same seed gives the same weights, bit for bit, on every platform.
    ///
    /// # Errors
    /// candle's, when the device has no room.
    pub fn seeded(seed: u64, device: &Device) -> Result<Self> {
        Self::new(seed, device, device.is_cuda())
    }

    fn new(seed: u64, device: &Device, joined: bool) -> Result<Self> {
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
            layers.push((weight, bias));
        }
        let tensor = |numbers, shape: &[usize]| Tensor::from_vec(numbers, shape, device);
        let last = layers.len() - 1;
        let layers = layers.into_iter().enumerate();
        let layers = match joined {
            true => Layers::Joined(
                layers
                    .map(|(i, (weight, bias))| {
                        let ones = if i == last { 0 } else { ONES };
                        let (rows, columns) = (WIDTHS[i] + ONES, bias.len() + ones);
                        tensor(join(&weight, &bias, ones), &[rows, columns])
                    })
                    .collect::<Result<_>>()?,
            ),
            false => Layers::Apart(
                layers
                    .map(|(i, (weight, bias))| {
                        let width = bias.len();
                        Ok((tensor(weight, &[WIDTHS[i], width])?, tensor(bias, &[width])?))
                    })
                    .collect::<Result<_>>()?,
            ),
        };
        // Whatever thread calls first, the weights are there.
        device.synchronize()?;
        Ok(Self { layers, passes: Passes::new(device) })
    }

    /// On CUDA, launches each operation of each batch: slower, and takes less memory.
    #[must_use]
    pub fn without_graphs(self) -> Self {
        Self { passes: self.passes.without_graphs(), ..self }
    }

    /// Runs rows through the model: one upload, one download, host data out.
    ///
    /// # Errors
    /// candle's, among them out of memory.
    pub fn forward(&self, rows: &[MlpRow]) -> Result<Vec<Vec<f32>>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (width, shape) = (MLP_WIDTH + self.ones(), self.shape(rows.len()));
        self.passes.run(
            shape,
            shape * width,
            |packed| pack(rows, width, packed),
            |x| self.apply(x.reshape((shape, width))?),
            |y| y.chunks_exact(MLP_WIDTH).take(rows.len()).map(<[f32]>::to_vec).collect(),
        )
    }

    /// How many rows a pass of so many has. On a GPU up to a quarter more: there are fewer passes to be
    /// recorded then, and it hardly takes longer.
    fn shape(&self, rows: usize) -> usize {
        match self.layers {
            Layers::Apart(_) => rows,
            Layers::Joined(_) => rows.next_multiple_of((rows.next_power_of_two() / 8).max(1)),
        }
    }

    /// How many numbers stand behind each row.
    fn ones(&self) -> usize {
        match self.layers {
            Layers::Apart(_) => 0,
            Layers::Joined(_) => ONES,
        }
    }

    /// The layers, on packed rows.
    fn apply(&self, mut x: Tensor) -> Result<Tensor> {
        match &self.layers {
            Layers::Apart(layers) => {
                let last = layers.len() - 1;
                for (i, (weight, bias)) in layers.iter().enumerate() {
                    x = x.matmul(weight)?;
                    x = if i == last {
                        x.broadcast_add(bias)?
                    } else {
                        ops::bias_activation(x, bias, Activation::Relu)?
                    };
                }
            }
            Layers::Joined(layers) => {
                for (i, layer) in layers.iter().enumerate() {
                    x = if i == 0 { x } else { x.relu()? }.matmul(layer)?;
                }
            }
        }
        Ok(x)
    }
}

/// Writes rows one after the other, each `width` numbers with what stands behind it.
fn pack(rows: &[MlpRow], width: usize, packed: &mut [f32]) {
    for (row, packed) in rows.iter().zip(packed.chunks_exact_mut(width)) {
        let (numbers, behind) = packed.split_at_mut(MLP_WIDTH);
        numbers.copy_from_slice(row.values());
        for (at, number) in behind.iter_mut().enumerate() {
            *number = one(at);
        }
    }
}

/// What stands behind a row: 1, 0, 0, ...
fn one(at: usize) -> f32 {
    if at == 0 { 1.0 } else { 0.0 }
}

/// The matrix of a layer whose rows are followed by [`ONES`], with as many columns of its own as
/// `ones` says.
fn join(weight: &[f32], bias: &[f32], ones: usize) -> Vec<f32> {
    let rows = weight.len() / bias.len();
    let mut joined = Vec::with_capacity((rows + ONES) * (bias.len() + ones));
    for row in weight.chunks(bias.len()) {
        joined.extend_from_slice(row);
        joined.extend(std::iter::repeat_n(0.0, ones));
    }
    joined.extend_from_slice(bias);
    joined.extend((0..ones).map(one));
    joined.extend(std::iter::repeat_n(0.0, (ONES - 1) * (bias.len() + ones)));
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_pass_before_is_in_a_row() {
        let rows = [MlpRow(vec![0.5; MLP_WIDTH]), MlpRow(vec![0.25; MLP_WIDTH])];
        let width = MLP_WIDTH + ONES;
        let [dirty, clean] = [f32::NAN, 0.0].map(|before| {
            let mut packed = vec![before; rows.len() * width];
            pack(&rows, width, &mut packed);
            packed
        });
        assert_eq!(dirty, clean);
        assert_eq!(clean[width..][..MLP_WIDTH], [0.25; MLP_WIDTH]);
        assert_eq!(clean[MLP_WIDTH..width], [1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn weights_and_biases_in_one_matrix_are_the_same_model() {
        let apart = Mlp::new(42, &Device::Cpu, false).unwrap();
        let joined = Mlp::new(42, &Device::Cpu, true).unwrap();
        let number = |row: usize| move |i: usize| ((i * 37 + row * 101) as f32 * 0.137).sin() * 3.0;
        let rows: Vec<MlpRow> =
            (0..33).map(|row| MlpRow((0..MLP_WIDTH).map(number(row)).collect())).collect();
        for size in [1, 2, 33] {
            let (a, b) = (apart.forward(&rows[..size]).unwrap(), joined.forward(&rows[..size]));
            let b = b.unwrap();
            assert_eq!((a.len(), b.len()), (size, size));
            for (a, b) in a.iter().zip(&b) {
                assert_eq!((a.len(), b.len()), (MLP_WIDTH, MLP_WIDTH));
                let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 1e-5, "{off}");
                assert!(a.iter().any(|v| v.abs() > 1e-2), "the model gives something");
            }
        }
        assert!(joined.forward(&[]).unwrap().is_empty());
    }
}
