//! [`Workload`]: an engine and the requests that it is given; one without work and the MLP.

use std::time::Duration;

use onelane::{BatchItem, Engine, EngineError};
use onelane_engines::{DeviceName, MLP_WIDTH, MlpEngine, MlpRow};
use onelane_sim::{HostTensor, SimConfig, SimDevice, SimError, Tensor};

/// How far the numbers of a batched answer may be from those of the same request alone.
pub const TOLERANCE: f32 = 1e-4;

/// What a benchmark runs.
pub trait Workload: Send + Sync + 'static {
    /// The input of a request.
    type Item: BatchItem + Clone + Sync;
    /// The engine.
    type Engine: Engine<Item = Self::Item, Output: Sync> + Send;

    /// Makes an engine, on the thread that is to use it.
    ///
    /// # Errors
    /// The engine's.
    fn load(&self) -> Result<Self::Engine, EngineError>;

    /// The requests, which clients make over and over.
    fn items(&self) -> &[Self::Item];

    /// Whether two answers to one request are the same, within the tolerance.
    fn same(&self, a: &Output<Self>, b: &Output<Self>) -> bool;

    /// What one engine takes of memory, roughly, in bytes.
    fn engine_bytes(&self) -> u64;
}

/// What a workload's engine answers.
pub type Output<W> = <<W as Workload>::Engine as Engine>::Output;

/// Whether all numbers are equal within [`TOLERANCE`].
pub fn close(a: &[f32], b: &[f32]) -> bool {
    // Not a number is close to nothing.
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= TOLERANCE)
}

/// No work: each batch takes the same time, by default none.
pub struct Null {
    values: Vec<Value>,
    batch_time: Duration,
}

/// A number to be given back.
#[derive(Clone, Copy, Debug)]
pub struct Value(u64);

impl BatchItem for Value {
    type Key = ();

    fn key(&self) {}
}

impl Null {
    /// Batches that take `batch_time`.
    pub fn new(batch_time: Duration) -> Self {
        Self { values: (0..256).map(Value).collect(), batch_time }
    }
}

/// Sleeps, and gives values back.
pub struct NullEngine(Duration);

impl Engine for NullEngine {
    type Item = Value;
    type Output = u64;

    fn infer(&mut self, batch: &[Value]) -> Result<Vec<u64>, EngineError> {
        if !self.0.is_zero() {
            std::thread::sleep(self.0);
        }
        Ok(batch.iter().map(|value| value.0).collect())
    }
}

impl Workload for Null {
    type Item = Value;
    type Engine = NullEngine;

    fn load(&self) -> Result<NullEngine, EngineError> {
        Ok(NullEngine(self.batch_time))
    }

    fn items(&self) -> &[Value] {
        &self.values
    }

    fn same(&self, a: &u64, b: &u64) -> bool {
        a == b
    }

    fn engine_bytes(&self) -> u64 {
        0
    }
}

/// The widths of the MLP, and what its weights take.
const LAYERS: [(usize, usize); 3] = [(MLP_WIDTH, 1024), (1024, 1024), (1024, MLP_WIDTH)];
const MLP_BYTES: u64 = 2_099_712 * 4;

/// Rows that differ in every number.
fn rows(count: usize) -> Vec<Vec<f32>> {
    let mut dice = fastrand::Rng::with_seed(42);
    (0..count).map(|_| (0..MLP_WIDTH).map(|_| dice.f32() * 2.0 - 1.0).collect()).collect()
}

/// The MLP of 512, 1024, 1024 and 512 units on a real device.
pub struct Mlp {
    device: DeviceName,
    cuda_graphs: bool,
    rows: Vec<MlpRow>,
}

impl Mlp {
    /// One row a request. On CUDA, `cuda_graphs` says whether batches are recorded and replayed.
    ///
    /// # Errors
    /// When a row has another width than the model, which is a mistake in this file.
    pub fn new(device: DeviceName, cuda_graphs: bool) -> anyhow::Result<Self> {
        let rows = rows(64).into_iter().map(MlpRow::new).collect::<Result<_, _>>()?;
        Ok(Self { device, cuda_graphs, rows })
    }
}

impl Workload for Mlp {
    type Item = MlpRow;
    type Engine = MlpEngine;

    fn load(&self) -> Result<MlpEngine, EngineError> {
        let engine = MlpEngine::load(self.device, 42)?;
        Ok(if self.cuda_graphs { engine } else { engine.without_graphs() })
    }

    fn items(&self) -> &[MlpRow] {
        &self.rows
    }

    fn same(&self, a: &Vec<f32>, b: &Vec<f32>) -> bool {
        close(a, b)
    }

    fn engine_bytes(&self) -> u64 {
        MLP_BYTES
    }
}

/// The same MLP on the simulated device: real arithmetic, simulated memory and streams. Its times
/// say nothing of a GPU.
pub struct SimMlp {
    device: SimDevice,
    rows: Vec<MlpRow>,
}

impl SimMlp {
    /// A simulated device with these settings.
    ///
    /// # Errors
    /// As [`Mlp::new`].
    pub fn new(config: SimConfig) -> anyhow::Result<Self> {
        let rows = rows(16).into_iter().map(MlpRow::new).collect::<Result<_, _>>()?;
        Ok(Self { device: SimDevice::new(config), rows })
    }
}

/// Weights on the simulated device.
pub struct SimMlpEngine {
    device: SimDevice,
    layers: Vec<[Tensor; 2]>,
}

fn failed(error: SimError) -> EngineError {
    EngineError::failed(error)
}

impl Engine for SimMlpEngine {
    type Item = MlpRow;
    type Output = Vec<f32>;

    fn infer(&mut self, batch: &[MlpRow]) -> Result<Vec<Vec<f32>>, EngineError> {
        let packed: Vec<f32> = batch.iter().flat_map(|row| row.values()).copied().collect();
        let rows = HostTensor::new([batch.len(), MLP_WIDTH], packed);
        let mut x = self.device.upload(&rows).map_err(failed)?;
        for (i, [weight, bias]) in self.layers.iter().enumerate() {
            x = x.linear(weight, bias).map_err(failed)?;
            if i + 1 < self.layers.len() {
                x = x.relu().map_err(failed)?;
            }
        }
        let y = x.download().map_err(failed)?;
        Ok(y.data().chunks(MLP_WIDTH).map(<[f32]>::to_vec).collect())
    }
}

impl Workload for SimMlp {
    type Item = MlpRow;
    type Engine = SimMlpEngine;

    fn load(&self) -> Result<SimMlpEngine, EngineError> {
        let mut dice = fastrand::Rng::with_seed(7);
        let mut layers = Vec::new();
        for (inputs, outputs) in LAYERS {
            let bound = 1.0 / (inputs as f32).sqrt();
            let mut upload = |shape: Vec<usize>| {
                let count = shape.iter().product();
                let numbers = (0..count).map(|_| bound * (dice.f32() * 2.0 - 1.0)).collect();
                self.device.upload(&HostTensor::new(shape, numbers)).map_err(failed)
            };
            layers.push([upload(vec![outputs, inputs])?, upload(vec![outputs])?]);
        }
        Ok(SimMlpEngine { device: self.device.clone(), layers })
    }

    fn items(&self) -> &[MlpRow] {
        &self.rows
    }

    fn same(&self, a: &Vec<f32>, b: &Vec<f32>) -> bool {
        close(a, b)
    }

    fn engine_bytes(&self) -> u64 {
        MLP_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onelane_sim::Profile;

    #[test]
    fn the_mlp_has_as_many_weights_as_are_counted() {
        let weights: usize = LAYERS.iter().map(|(inputs, outputs)| (inputs + 1) * outputs).sum();
        assert_eq!(weights as u64 * 4, MLP_BYTES);
    }

    #[test]
    fn answers_of_a_batch_are_those_of_each_request_alone() {
        fn check<W: Workload>(workload: &W) {
            let mut engine = workload.load().unwrap();
            let items = &workload.items()[..9];
            let together = engine.infer(items).unwrap();
            for (item, output) in items.iter().zip(&together) {
                let alone = engine.infer(std::slice::from_ref(item)).unwrap();
                assert!(workload.same(&alone[0], output));
            }
            // A request that got another's answer is found.
            assert!(!workload.same(&together[0], &together[1]));
        }
        check(&Null::new(Duration::ZERO));
        check(&Mlp::new(DeviceName::Cpu, true).unwrap());
        check(&SimMlp::new(SimConfig::new(Profile::upstream_2_15())).unwrap());
    }

    #[test]
    fn not_a_number_is_close_to_nothing() {
        assert!(close(&[1.0], &[1.00005]));
        assert!(!close(&[1.0], &[1.001]) && !close(&[f32::NAN], &[f32::NAN]));
        assert!(!close(&[1.0], &[1.0, 2.0]));
    }
}
