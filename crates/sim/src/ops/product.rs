//! Matrix products: linear, matmul, bmm (graphs).

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};

use super::{Step, dense};
use crate::error::SimResult;
use crate::tensor::Tensor;

/// A matrix within a slice, by its strides in elements.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) shape: (usize, usize),
    pub(super) strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// A dense matrix.
    pub(super) fn dense(data: &'a [f32], (rows, columns): (usize, usize)) -> Self {
        Self { data, shape: (rows, columns), strides: (columns, 1) }
    }

    /// The transposed matrix.
    pub(super) fn transposed(self) -> Self {
        Self {
            data: self.data,
            shape: (self.shape.1, self.shape.0),
            strides: (self.strides.1, self.strides.0),
        }
    }

    fn array(self) -> ArrayView2<'a, f32> {
        ArrayView2::from_shape(self.shape.strides(self.strides), self.data)
            .expect("the view lies within its buffer")
    }
}

/// `out = factor · a · b + keep · out`, with a dense `out`.
pub(super) fn multiply(a: Matrix<'_>, b: Matrix<'_>, (factor, keep): (f32, f32), out: &mut [f32]) {
    let shape = (a.shape.0, b.shape.1);
    let mut out = ArrayViewMut2::from_shape(shape, out).expect("the output has its size");
    general_mat_mul(factor, &a.array(), &b.array(), keep, &mut out);
}

impl Tensor {
    /// `x · weightᵀ + bias` (a graph): x (…, inputs), weight (outputs, inputs), bias (outputs) →
    /// (…, outputs).
    ///
    /// # Errors
    /// When the shapes do not fit, or the simulated process has failed.
    pub fn linear(&self, weight: &Tensor, bias: &Tensor) -> SimResult<Tensor> {
        let &[outputs, inputs] = weight.shape() else {
            return Err(self.misfit("linear", format_args!("weight {:?}", weight.shape())));
        };
        if self.shape().last() != Some(&inputs) || bias.shape() != [outputs] {
            return Err(self.misfit(
                "linear",
                format_args!("weight {:?}, bias {:?}", weight.shape(), bias.shape()),
            ));
        }
        let mut shape = self.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = outputs;
        }
        let views = [&self.view, &weight.view, &bias.view].map(Clone::clone);
        Step::graph("linear").run(
            &[self, weight, bias],
            &shape,
            Box::new(move |data, out| {
                let [x, weight, bias] = [0, 1, 2].map(|i| dense(&views[i], data[i]));
                for row in out.chunks_exact_mut(outputs) {
                    row.copy_from_slice(&bias);
                }
                let rows = x.len() / inputs.max(1);
                multiply(
                    Matrix::dense(&x, (rows, inputs)),
                    Matrix::dense(&weight, (outputs, inputs)).transposed(),
                    (1.0, 1.0),
                    out,
                );
            }),
        )
    }

    /// Matrix product (a graph): (m, k), (k, n) → (m, n).
    ///
    /// # Errors
    /// When the shapes do not fit, or the simulated process has failed.
    pub fn matmul(&self, other: &Tensor) -> SimResult<Tensor> {
        match (self.shape(), other.shape()) {
            (&[rows, inner], &[inner2, columns]) if inner == inner2 => {
                self.products("matmul", other, [1, rows, inner, columns], &[rows, columns])
            }
            (_, other) => Err(self.misfit("matmul", format_args!("cannot multiply {other:?}"))),
        }
    }

    /// Batched matrix product (a graph): (b, m, k), (b, k, n) → (b, m, n).
    ///
    /// # Errors
    /// When the shapes do not fit, or the simulated process has failed.
    pub fn bmm(&self, other: &Tensor) -> SimResult<Tensor> {
        match (self.shape(), other.shape()) {
            (&[batch, rows, inner], &[batch2, inner2, columns])
                if (batch, inner) == (batch2, inner2) =>
            {
                let sizes = [batch, rows, inner, columns];
                self.products("bmm", other, sizes, &[batch, rows, columns])
            }
            (_, other) => Err(self.misfit("bmm", format_args!("cannot multiply {other:?}"))),
        }
    }

    fn products(
        &self,
        name: &'static str,
        other: &Tensor,
        [batch, rows, inner, columns]: [usize; 4],
        shape: &[usize],
    ) -> SimResult<Tensor> {
        let views = [&self.view, &other.view].map(Clone::clone);
        Step::graph(name).run(
            &[self, other],
            shape,
            Box::new(move |data, out| {
                let [a, b] = [0, 1].map(|i| dense(&views[i], data[i]));
                for at in 0..batch {
                    let part =
                        |data: &'_ [f32], size: usize| at * size..(at + 1) * size.min(data.len());
                    multiply(
                        Matrix::dense(&a[part(&a, rows * inner)], (rows, inner)),
                        Matrix::dense(&b[part(&b, inner * columns)], (inner, columns)),
                        (1.0, 0.0),
                        &mut out[at * rows * columns..(at + 1) * rows * columns],
                    );
                }
            }),
        )
    }
}
