//! [`Ops`]: the operations that a device must offer for the suite to run on it.
//!
//! One value of [`Ops`] belongs to one thread: it is made by [`Device::attach`] on the thread that
//! uses it, and dropped there. Shapes follow PyTorch; all data is fp32.
//!
//! [`Device::attach`]: crate::Device::attach

use std::sync::Arc;

use crate::host::HostTensor;

/// An operation that the device refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation}: {source}")]
pub struct OpError {
    operation: String,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

impl OpError {
    /// An error of `operation`, caused by `source` (an error, or a text).
    pub fn new(
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { operation: operation.into(), source: Arc::from(source.into()) }
    }
}

/// What an operation gives.
pub type OpResult<T> = Result<T, OpError>;

/// A thread's view of a device: tensors on it, and the operations of the suite.
///
/// Tensors may be views. Every operation takes views of any strides, and gives the same numbers as
/// on a dense copy. Operations may be lazy: [`Ops::synchronise`] and [`Ops::download`] wait for
/// them.
///
/// # Errors
/// Every operation fails with [`OpError`] when the device fails, when memory is short, or when the
/// shapes do not fit.
pub trait Ops {
    /// A tensor on the device. A clone is another handle on the same memory.
    type Tensor: Clone;

    /// Copies a host tensor to the device.
    fn upload(&self, host: &HostTensor) -> OpResult<Self::Tensor>;

    /// Waits for `tensor` and copies it to the host, dense.
    fn download(&self, tensor: &Self::Tensor) -> OpResult<HostTensor>;

    /// Waits until everything that this thread asked of the device is done.
    fn synchronise(&self) -> OpResult<()>;

    /// `x · weightᵀ + bias`: x (…, inputs), weight (outputs, inputs), bias (outputs)
    /// → (…, outputs).
    fn linear(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
    ) -> OpResult<Self::Tensor>;

    /// Matrix product: (m, k), (k, n) → (m, n).
    fn matmul(&self, a: &Self::Tensor, b: &Self::Tensor) -> OpResult<Self::Tensor>;

    /// Batched matrix product: (b, m, k), (b, k, n) → (b, m, n).
    fn bmm(&self, a: &Self::Tensor, b: &Self::Tensor) -> OpResult<Self::Tensor>;

    /// Layer norm over the last dimension, ε = 1e-5: x (…, width), weight and bias (width).
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
    ) -> OpResult<Self::Tensor>;

    /// Softmax over the last dimension.
    fn softmax(&self, x: &Self::Tensor) -> OpResult<Self::Tensor>;

    /// 2-D cross-correlation, stride 1, with `padding` zeros on each side: x (b, c, h, w), weight
    /// (filters, c, kernel, kernel), bias (filters) → (b, filters, h', w').
    fn conv2d(
        &self,
        x: &Self::Tensor,
        weight: &Self::Tensor,
        bias: &Self::Tensor,
        padding: usize,
    ) -> OpResult<Self::Tensor>;

    /// GELU by the error function: `x · Φ(x)`.
    fn gelu(&self, x: &Self::Tensor) -> OpResult<Self::Tensor>;

    /// `max(x, 0)`.
    fn relu(&self, x: &Self::Tensor) -> OpResult<Self::Tensor>;

    /// Sum of two tensors of equal shape.
    fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> OpResult<Self::Tensor>;

    /// Scaled dot-product attention without a mask: q, k, v (batch, heads, length, width of a head)
    /// → the same shape; the scale is 1/√(width of a head).
    fn sdpa(&self, q: &Self::Tensor, k: &Self::Tensor, v: &Self::Tensor) -> OpResult<Self::Tensor>;

    /// The same elements under another shape of equal size: a view where the strides allow it, else
    /// a dense copy (`torch.reshape`).
    fn reshape(&self, x: &Self::Tensor, shape: &[usize]) -> OpResult<Self::Tensor>;

    /// A view with two dimensions exchanged.
    fn transpose(&self, x: &Self::Tensor, a: usize, b: usize) -> OpResult<Self::Tensor>;

    /// A view of `length` places of dimension `dim` from `start` on (`torch.narrow`, `chunk`).
    fn narrow(
        &self,
        x: &Self::Tensor,
        dim: usize,
        start: usize,
        length: usize,
    ) -> OpResult<Self::Tensor>;

    /// The tensor itself when it is dense, else a dense copy (`torch.contiguous`).
    fn contiguous(&self, x: &Self::Tensor) -> OpResult<Self::Tensor>;

    /// This thread is about to wait for something other than the device. A device that schedules
    /// its threads itself (a simulated one) lets the others run.
    fn pause(&self) {}

    /// This thread has stopped waiting, and will use the device again.
    fn resume(&self) {}
}
