//! Copies: `contiguous`, `clone`, `reshape` where it needs one, `cpu`; and `arange`, which makes data
//! from nothing.

use std::sync::Arc;

use super::{Step, gather};
use crate::command::Op;
use crate::device::SimDevice;
use crate::error::SimResult;
use crate::host::HostTensor;
use crate::memo::hash_text;
use crate::tensor::Tensor;

impl Tensor {
    /// The tensor itself when it is dense, else a dense copy (a kernel).
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn contiguous(&self) -> SimResult<Tensor> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        self.copied()
    }

    /// A dense copy (a kernel).
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn copied(&self) -> SimResult<Tensor> {
        let view = self.view.clone();
        let mut step = Step::kernel("copy");
        if view.is_dense() && view.elements() * 4 == self.buffer.bytes() {
            step.op = step.op.identity();
        }
        step.run(&[self], self.shape(), Box::new(move |inputs, out| gather(&view, inputs[0], out)))
    }

    /// The elements under another shape: a view where the strides allow it, else a dense copy
    /// (`torch.reshape`).
    ///
    /// # Errors
    /// When the size differs, or the simulated process has failed.
    pub fn reshape(&self, shape: &[usize]) -> SimResult<Tensor> {
        match self.resized("reshape", shape)? {
            Some(view) => Ok(view),
            None => self.contiguous()?.view(shape),
        }
    }

    /// Commits what is pending and copies the tensor to the host, as `.cpu()`: of a strided tensor, a
    /// dense copy is made on the device first.
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn download(&self) -> SimResult<HostTensor> {
        let dense = self.contiguous()?;
        let words = self.device().read_words(&dense.buffer)?;
        let (from, elements) = (dense.view.offset, dense.view.elements());
        let data = if from == 0 && words.len() == elements {
            words
        } else {
            Arc::new(words[from..from + elements].to_vec())
        };
        Ok(HostTensor::shared(self.view.shape.clone(), data))
    }
}

impl SimDevice {
    /// `0, 1, …, length - 1` (a kernel; up to PyTorch 2.14 encoded off the stream's queue).
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn arange(&self, length: usize) -> SimResult<Tensor> {
        let out = self.empty(&[length])?;
        let op = Op::kernel("arange").pure(hash_text("arange"));
        self.encode(op, &[], &[&out.buffer], |_, writes| {
            let out: &mut [f32] = bytemuck::cast_slice_mut(&mut *writes[0]);
            for (at, to) in out.iter_mut().enumerate() {
                *to = at as f32;
            }
        })?;
        Ok(out)
    }
}
