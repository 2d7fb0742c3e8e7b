//! Copies: `contiguous`, `clone`, and `arange`, which makes data from nothing.

use super::{Step, gather};
use crate::command::Op;
use crate::device::SimDevice;
use crate::error::SimResult;
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
