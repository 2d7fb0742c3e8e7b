//! [`Tensor`]: fp32 tensors on a simulated device, and views of them.
//!
//! A tensor is a shape, strides and an offset over a shared buffer. When the last tensor of a buffer is
//! dropped the buffer's block is freed, at that moment, as in PyTorch.

use std::fmt;
use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::xxh3_128;

use crate::buffer::Buffer;
use crate::device::SimDevice;
use crate::error::{SimError, SimResult};
use crate::memo::hash;
use crate::memory::Words;

/// A dense, row-major fp32 tensor in host memory. A clone shares the data.
#[derive(Clone, Debug)]
pub struct HostTensor {
    shape: Vec<usize>,
    data: Words,
    /// The data's hash, once it was needed.
    hash: Arc<OnceLock<u128>>,
}

impl PartialEq for HostTensor {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.data == other.data
    }
}

impl HostTensor {
    /// Makes a tensor of `shape` from its elements in row-major order.
    ///
    /// # Panics
    /// When `data` does not hold exactly the product of `shape` elements.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        Self::shared(shape, Arc::new(data))
    }

    /// As [`HostTensor::new`], of data that others may hold too.
    ///
    /// # Panics
    /// When `data` does not hold exactly the product of `shape` elements.
    pub fn shared(shape: impl Into<Vec<usize>>, data: Arc<Vec<f32>>) -> Self {
        let shape = shape.into();
        let elements: usize = shape.iter().product();
        assert_eq!(elements, data.len(), "a tensor of shape {shape:?} has {elements} elements");
        Self { shape, data, hash: Arc::default() }
    }

    fn hash(&self) -> u128 {
        *self.hash.get_or_init(|| xxh3_128(bytemuck::cast_slice(&self.data)))
    }

    /// The lengths of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements in row-major order.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The elements in row-major order, shared.
    pub fn shared_data(&self) -> Arc<Vec<f32>> {
        Arc::clone(&self.data)
    }

    /// The largest absolute difference to `other`; infinite where one of them is not a number.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn max_difference(&self, other: &HostTensor) -> f32 {
        assert_eq!(self.shape, other.shape, "only equal shapes can be compared");
        if Arc::ptr_eq(&self.data, &other.data) {
            return 0.0;
        }
        let worst = |worst: f32, (a, b): (&f32, &f32)| {
            let difference = (a - b).abs();
            if difference.is_nan() { f32::INFINITY } else { worst.max(difference) }
        };
        self.data.iter().zip(other.data.iter()).fold(0.0, worst)
    }
}

/// Where a tensor's elements lie in its buffer. Strides and offset are in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
    pub(crate) offset: usize,
}

impl View {
    /// A dense view of the whole buffer.
    pub(crate) fn dense(shape: &[usize]) -> Self {
        let mut strides = vec![1; shape.len()];
        for at in (1..shape.len()).rev() {
            strides[at - 1] = strides[at] * shape[at];
        }
        Self { shape: shape.to_vec(), strides, offset: 0 }
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the elements lie in row-major order without gaps.
    pub(crate) fn is_dense(&self) -> bool {
        let mut expected = 1;
        for (length, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *length != 1 {
                if *stride != expected {
                    return false;
                }
                expected *= length;
            }
        }
        true
    }

    /// The view with another shape, where the strides allow it without a copy.
    pub(crate) fn reshaped(&self, shape: &[usize]) -> Option<View> {
        let mut strides = vec![0; shape.len()];
        // Old dimensions that can be walked as one, innermost first, are matched against new ones.
        let mut new = shape.len();
        let mut group = 1;
        let mut group_new = 1;
        let mut base = self.strides.last().copied().unwrap_or(1);
        for old in (0..self.shape.len()).rev() {
            group *= self.shape[old];
            let last_of_group =
                old == 0 || (self.shape[old - 1] != 1 && self.strides[old - 1] != group * base);
            if last_of_group {
                while new > 0 && (group_new < group || shape[new - 1] == 1) {
                    new -= 1;
                    strides[new] = group_new * base;
                    group_new *= shape[new];
                }
                if group_new != group {
                    return None;
                }
                if old > 0 {
                    base = self.strides[old - 1];
                    group = 1;
                    group_new = 1;
                }
            }
        }
        (new == 0).then(|| View { shape: shape.to_vec(), strides, offset: self.offset })
    }

    /// A number for the view, to key pure kernels with.
    pub(crate) fn key(&self) -> u128 {
        let numbers = [self.offset, self.shape.len()];
        let all = numbers.iter().chain(&self.shape).chain(&self.strides);
        hash(&all.map(|n| *n as u128).collect::<Vec<_>>())
    }
}

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

    fn resized(&self, operation: &'static str, shape: &[usize]) -> SimResult<Option<Tensor>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[usize], strides: &[usize]) -> View {
        View { shape: shape.to_vec(), strides: strides.to_vec(), offset: 0 }
    }

    #[test]
    fn density_ignores_dimensions_of_one() {
        assert!(View::dense(&[2, 3, 4]).is_dense());
        assert!(view(&[2, 1, 4], &[4, 99, 1]).is_dense());
        assert!(!view(&[3, 2], &[1, 3]).is_dense());
    }

    #[test]
    fn reshaping_splits_and_merges_as_strides_allow() {
        let dense = View::dense(&[4, 6]);
        assert_eq!(dense.reshaped(&[2, 2, 6]).unwrap().strides, [12, 6, 1]);
        assert_eq!(dense.reshaped(&[24]).unwrap().strides, [1]);
        // Rows of a wider matrix split, but do not merge with the dimension above them.
        let rows = view(&[4, 6], &[18, 1]);
        assert_eq!(rows.reshaped(&[4, 2, 3]).unwrap().strides, [18, 3, 1]);
        assert_eq!(rows.reshaped(&[2, 2, 6]).unwrap().strides, [36, 18, 1]);
        assert!(rows.reshaped(&[24]).is_none());
        assert!(view(&[3, 2], &[1, 3]).reshaped(&[6]).is_none());
    }

    #[test]
    fn reshaping_keeps_and_makes_dimensions_of_one() {
        let dense = View::dense(&[1, 4, 6]);
        assert_eq!(dense.reshaped(&[4, 1, 6]).unwrap().strides[0], 6);
        assert_eq!(dense.reshaped(&[4, 6, 1]).unwrap().elements(), 24);
    }

    #[test]
    fn a_number_that_is_none_differs_without_bound() {
        let host = |x: f32| HostTensor::new([2], vec![x, 1.0]);
        assert_eq!(host(1.0).max_difference(&host(1.5)), 0.5);
        assert_eq!(host(1.0).max_difference(&host(f32::NAN)), f32::INFINITY);
    }
}
