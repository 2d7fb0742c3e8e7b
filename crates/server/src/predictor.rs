//! What runs tensors, as the server sees it.

use onelane::{Engine, EngineError};

use crate::row::Row;
use crate::signature::Signature;
use crate::tensor::Tensor;
use crate::tensor_error::TensorError;

/// A model of tensors, which the Open Inference Protocol's routes serve.
///
/// Each row of a call is a request of its own: rows of many calls whose types and trailing shapes
/// agree run in one batch, and the first row that fails is named. Its engine lives on the device's
/// worker; the predictor itself is shared by all threads.
///
/// ```
/// use onelane::{BatchConfig, DeviceExecutor, Engine, EngineError};
/// use onelane_server::{Datatype, Model, Predictor, Row, Signature, Tensor, TensorSpec};
///
/// struct Negate;
///
/// impl Engine for Negate {
///     type Item = Row;
///     type Output = Row;
///     fn infer(&mut self, batch: &[Row]) -> Result<Vec<Row>, EngineError> {
///         let outputs = Row::gather(batch).into_iter().map(|x| {
///             let negated = x.data().iter().map(|byte| !byte).collect();
///             Tensor::new("y", x.datatype(), x.shape(), negated).map_err(EngineError::failed)
///         });
///         Row::scatter(batch, outputs.collect::<Result<_, _>>()?)
///     }
/// }
///
/// impl Predictor for Negate {
///     type Engine = Self;
///     fn load(&self) -> Result<Self, EngineError> {
///         Ok(Self)
///     }
///     fn signature(&self) -> Signature {
///         let spec = |name| vec![TensorSpec::new(name, Datatype::Uint8, [-1, 4])];
///         Signature::rows(spec("x"), spec("y")).expect("names differ, and each begins with -1")
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = DeviceExecutor::shared("doc-predictor")?;
/// let model = Model::predictor("negate", Negate, &device, BatchConfig::default());
/// # Ok(())
/// # }
/// ```
pub trait Predictor: Send + Sync + 'static {
    /// What runs a batch: [`Row::gather`] makes tensors of it, [`Row::scatter`] gives their rows
    /// back.
    type Engine: Engine<Item = Row, Output = Row>;

    /// Builds the engine; called on the worker, again after each loss.
    ///
    /// # Errors
    /// Why it cannot be built.
    fn load(&self) -> Result<Self::Engine, EngineError>;

    /// What it takes and gives. It is asked once.
    fn signature(&self) -> Signature;

    /// Looks at an input beyond what the signature says, before its call is accepted.
    ///
    /// # Errors
    /// [`TensorError`] says why the input is refused.
    fn check(&self, input: &Tensor) -> Result<(), TensorError> {
        let _ = input;
        Ok(())
    }
}
