//! [`View`]: where a tensor's elements lie in its buffer, and which views share it.

use crate::memo::hash;

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
}
