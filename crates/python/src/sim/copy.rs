//! Strided copies, computed on bytes: what `contiguous`, `clone` and `copy_` are on the device.

use pyo3::prelude::*;

/// A copy of elements between two strided views of one shape. Strides and offsets are in bytes; a
/// stride of zero repeats an element.
#[derive(Clone, FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Copy {
    itemsize: usize,
    shape: Vec<usize>,
    from: Vec<usize>,
    from_offset: usize,
    to: Vec<usize>,
    to_offset: usize,
}

impl Copy {
    /// Copies.
    ///
    /// # Panics
    /// When a view reaches out of its block, which the strides that PyTorch gives do not.
    pub(crate) fn run(&self, from: &[u8], to: &mut [u8]) {
        if !self.shape.contains(&0) {
            self.level((self.from_offset, from), (self.to_offset, to), 0);
        }
    }

    fn level(&self, (at, from): (usize, &[u8]), (place, to): (usize, &mut [u8]), dim: usize) {
        let size = self.itemsize;
        let Some(&length) = self.shape.get(dim) else {
            to[place..place + size].copy_from_slice(&from[at..at + size]);
            return;
        };
        let (step, stride) = (self.from[dim], self.to[dim]);
        if dim + 1 < self.shape.len() {
            for i in 0..length {
                self.level((at + i * step, from), (place + i * stride, to), dim + 1);
            }
        } else if step == size && stride == size {
            to[place..place + length * size].copy_from_slice(&from[at..at + length * size]);
        } else {
            for i in 0..length {
                let (at, place) = (at + i * step, place + i * stride);
                to[place..place + size].copy_from_slice(&from[at..at + size]);
            }
        }
    }
}
