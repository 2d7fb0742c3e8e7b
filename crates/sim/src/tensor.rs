//! [`Tensor`]: fp32 tensors on a simulated device, and views of them.
//!
//! A tensor is a shape, strides and an offset over a shared buffer. When the last tensor of a buffer is
//! dropped the buffer's block is freed, at that moment, as in PyTorch. What computes or copies is in `ops`.

use std::fmt;
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::device::SimDevice;
use crate::error::{SimError, SimResult};
use crate::host::HostTensor;
use crate::view::View;

/// An fp32 tensor on a simulated device. A clone is another handle on the same memory.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) buffer: Arc<Buffer>,
    pub(crate) view: View,
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor")
            .field("block", &self.buffer.block())
            .field("view", &self.view)
            .finish()
    }
}

impl SimDevice {
    /// A tensor of `shape` with the contents of `host`: allocates, and copies by a blit that commits.
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn upload(&self, host: &HostTensor) -> SimResult<Tensor> {
        let tensor = self.empty(host.shape())?;
        self.write_words(&tensor.buffer, &host.data, host.hash())?;
        Ok(tensor)
    }

    /// A tensor whose memory holds what was there before.
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn empty(&self, shape: &[usize]) -> SimResult<Tensor> {
        let view = View::dense(shape);
        Ok(Tensor { buffer: Arc::new(self.alloc(view.elements() * 4)?), view })
    }
}

impl Tensor {
    /// The device that it is on.
    pub fn device(&self) -> &SimDevice {
        self.buffer.device()
    }

    /// The lengths of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.view.shape
    }

    /// The number of the block that its memory is in.
    pub fn block(&self) -> u32 {
        self.buffer.block()
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.view.is_dense()
    }

    /// A view with two dimensions exchanged.
    ///
    /// # Errors
    /// When there are no such dimensions.
    pub fn transpose(&self, a: usize, b: usize) -> SimResult<Tensor> {
        if a.max(b) >= self.view.shape.len() {
            return Err(self.misfit("transpose", format_args!("no dimensions {a} and {b}")));
        }
        let mut view = self.view.clone();
        view.shape.swap(a, b);
        view.strides.swap(a, b);
        Ok(self.viewed(view))
    }

    /// A view of `length` places of dimension `dim`, from `start` on.
    ///
    /// # Errors
    /// When there are no such places.
    pub fn narrow(&self, dim: usize, start: usize, length: usize) -> SimResult<Tensor> {
        if self.view.shape.get(dim).is_none_or(|n| start + length > *n) {
            let problem = format_args!("no places {start}+{length} in dimension {dim}");
            return Err(self.misfit("narrow", problem));
        }
        let mut view = self.view.clone();
        view.offset += start * view.strides[dim];
        view.shape[dim] = length;
        Ok(self.viewed(view))
    }

    /// A view of one place of the outermost dimension, without that dimension (`x[at]`).
    ///
    /// # Errors
    /// When there is no such place.
    pub fn select(&self, at: usize) -> SimResult<Tensor> {
        let mut narrowed = self.narrow(0, at, 1)?;
        narrowed.view.shape.remove(0);
        narrowed.view.strides.remove(0);
        Ok(narrowed)
    }

    /// A view with another shape (`torch.view`).
    ///
    /// # Errors
    /// When the size differs, or the strides need a copy.
    pub fn view(&self, shape: &[usize]) -> SimResult<Tensor> {
        self.resized("view", shape)?
            .ok_or_else(|| self.misfit("view", format_args!("{shape:?} needs a copy")))
    }

    /// A view with another shape, where the strides allow it without a copy.
    pub(crate) fn resized(
        &self,
        operation: &'static str,
        shape: &[usize],
    ) -> SimResult<Option<Tensor>> {
        if shape.iter().product::<usize>() != self.view.elements() {
            return Err(self.misfit(operation, format_args!("{shape:?} has another size")));
        }
        Ok(self.view.reshaped(shape).map(|view| self.viewed(view)))
    }

    fn viewed(&self, view: View) -> Tensor {
        Tensor { buffer: Arc::clone(&self.buffer), view }
    }

    pub(crate) fn misfit(&self, operation: &'static str, problem: fmt::Arguments<'_>) -> SimError {
        SimError::Shape {
            operation,
            problem: format!("{problem} (tensor of shape {:?})", self.view.shape),
        }
    }
}
