//! The MLP engine: rows in, rows out.

use onelane::{Engine, EngineError};

use crate::device_name::DeviceName;
use crate::error::{LoadError, engine_error};
use crate::mlp::{MLP_WIDTH, Mlp, MlpRow};

/// Runs an [`Mlp`] of seeded weights.
///
/// ```
/// use onelane::{BatchConfig, BatchQueue, DeviceExecutor};
/// use onelane_engines::{DeviceName, MlpEngine, MlpRow};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let name = DeviceName::Cpu;
/// let device = DeviceExecutor::shared(&name.to_string())?;
/// let config = BatchConfig::default();
/// let queue = BatchQueue::new(&device, config, move || Ok(MlpEngine::load(name, 42)?))?;
///
/// let y: Vec<f32> = queue.submit(MlpRow::new(vec![0.5; 512])?)?.wait()?;
/// assert_eq!(y.len(), 512);
/// # Ok(())
/// # }
/// ```
pub struct MlpEngine {
    mlp: Mlp,
}

impl MlpEngine {
    /// Opens the device and makes the model of a seed on it. Call it in a queue's factory, so that
    /// it runs on the worker.
    ///
    /// # Errors
    /// [`LoadError`] when the device cannot be opened or has no room.
    pub fn load(device: DeviceName, seed: u64) -> Result<Self, LoadError> {
        Ok(Self { mlp: Mlp::seeded(seed, &device.open_for_engine()?)? })
    }

    /// As [`Mlp::without_graphs`].
    #[must_use]
    pub fn without_graphs(self) -> Self {
        Self { mlp: self.mlp.without_graphs() }
    }
}

impl Engine for MlpEngine {
    type Item = MlpRow;
    /// A row of [`MLP_WIDTH`] numbers.
    type Output = Vec<f32>;

    fn infer(&mut self, batch: &[MlpRow]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.mlp.forward(batch).map_err(engine_error)
    }

    fn warmup(&mut self) -> Result<(), EngineError> {
        let zeros = MlpRow::new(vec![0.0; MLP_WIDTH]).map_err(EngineError::failed)?;
        self.infer(&[zeros]).map(drop)
    }
}
