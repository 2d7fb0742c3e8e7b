//! [`HostTensor`]: dense fp32 tensors in host memory.

use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::xxh3_128;

use crate::memory::Words;

/// A dense, row-major fp32 tensor in host memory. A clone shares the data.
#[derive(Clone, Debug)]
pub struct HostTensor {
    shape: Vec<usize>,
    pub(crate) data: Words,
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

    /// The hash of the data.
    pub(crate) fn hash(&self) -> u128 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_differs_without_bound() {
        let host = |x: f32| HostTensor::new([2], vec![x, 1.0]);
        assert_eq!(host(1.0).max_difference(&host(1.5)), 0.5);
        assert_eq!(host(1.0).max_difference(&host(f32::NAN)), f32::INFINITY);
    }
}
