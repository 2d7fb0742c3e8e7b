//! Host tensors: the fp32 data that goes to a device and comes back from it.
//!
//! Invariant: `data.len()` is the product of `shape`; the data is dense and row-major.

use std::sync::Arc;

/// A dense, row-major fp32 tensor in host memory. A clone shares the data until one of them is written
/// to.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    shape: Vec<usize>,
    data: Arc<Vec<f32>>,
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
        assert!(
            elements == data.len(),
            "a tensor of shape {shape:?} needs {elements} elements, got {}",
            data.len()
        );
        Self { shape, data }
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

    /// The elements in row-major order, to write to.
    pub fn data_mut(&mut self) -> &mut [f32] {
        Arc::make_mut(&mut self.data).as_mut_slice()
    }

    /// The length of the outermost dimension (1 for a scalar).
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The same tensor with its outermost dimension rotated by `rows` places: row `i` moves to row
    /// `i + rows`.
    pub fn rotated(mut self, rows: usize) -> Self {
        if !self.data.is_empty() {
            let row = self.data.len() / self.rows();
            let by = rows % self.rows();
            self.data_mut().rotate_right(by * row);
        }
        self
    }

    /// Joins tensors along the outermost dimension. All must agree in the other dimensions.
    ///
    /// # Panics
    /// When `parts` is empty or the shapes do not agree.
    pub fn stacked(parts: &[&HostTensor]) -> Self {
        let first = parts.first().expect("a stack is made of at least one tensor");
        let mut shape = first.shape.clone();
        let mut data = Vec::with_capacity(parts.iter().map(|part| part.data.len()).sum());
        let mut rows = 0;
        for part in parts {
            assert!(
                part.shape.get(1..) == first.shape.get(1..),
                "cannot stack {:?} on {:?}",
                part.shape,
                first.shape
            );
            rows += part.rows();
            data.extend_from_slice(&part.data);
        }
        if let Some(outermost) = shape.first_mut() {
            *outermost = rows;
        }
        Self::new(shape, data)
    }

    /// Cuts the tensor along its outermost dimension into `parts` tensors of equal length; `None`
    /// when it does not divide.
    pub fn split(&self, parts: usize) -> Option<Vec<HostTensor>> {
        if parts == 0 || !self.rows().is_multiple_of(parts) || self.shape.is_empty() {
            return None;
        }
        let mut shape = self.shape.clone();
        shape[0] /= parts;
        let each = self.data.len() / parts;
        let piece = |at: usize| {
            HostTensor::new(shape.clone(), self.data[at * each..(at + 1) * each].to_vec())
        };
        Some((0..parts).map(piece).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize]) -> HostTensor {
        let elements: usize = shape.iter().product();
        HostTensor::new(shape, (0..elements).map(|i| i as f32).collect())
    }

    #[test]
    fn rotation_moves_whole_rows() {
        let rotated = counting(&[3, 2]).rotated(1);
        assert_eq!(rotated.data(), [4.0, 5.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!(counting(&[3, 2]).rotated(3), counting(&[3, 2]));
    }

    #[test]
    fn split_undoes_stacking() {
        let (a, b) = (counting(&[2, 3]), counting(&[2, 3]).rotated(1));
        let stack = HostTensor::stacked(&[&a, &b]);
        assert_eq!(stack.shape(), [4, 3]);
        assert_eq!(stack.split(2).unwrap(), [a, b]);
        assert!(stack.split(3).is_none());
    }

    #[test]
    #[should_panic(expected = "needs 6 elements, got 5")]
    fn shape_and_data_must_agree() {
        HostTensor::new([2, 3], vec![0.0; 5]);
    }
}
