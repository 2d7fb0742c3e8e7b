//! Operations on each element: relu and the binary ones are kernels, gelu is a graph.

use super::{Step, dense};
use crate::error::SimResult;
use crate::tensor::Tensor;

impl Tensor {
    /// `max(x, 0)` (a kernel).
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn relu(&self) -> SimResult<Tensor> {
        let view = self.view.clone();
        Step::kernel("relu").run(
            &[self],
            self.shape(),
            Box::new(move |inputs, out| {
                for (to, x) in out.iter_mut().zip(dense(&view, inputs[0]).iter()) {
                    *to = x.max(0.0);
                }
            }),
        )
    }

    /// GELU by the error function, `x · Φ(x)` (a graph).
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn gelu(&self) -> SimResult<Tensor> {
        let view = self.view.clone();
        Step::graph("gelu").run(
            &[self],
            self.shape(),
            Box::new(move |inputs, out| {
                for (to, x) in out.iter_mut().zip(dense(&view, inputs[0]).iter()) {
                    *to = 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
                }
            }),
        )
    }

    /// The sum of two tensors of equal shape (a kernel).
    ///
    /// # Errors
    /// When the shapes differ, or the simulated process has failed.
    pub fn add(&self, other: &Tensor) -> SimResult<Tensor> {
        if self.shape() != other.shape() {
            return Err(self.misfit("add", format_args!("cannot add {:?}", other.shape())));
        }
        let (left, right) = (self.view.clone(), other.view.clone());
        Step::kernel("add").run(
            &[self, other],
            self.shape(),
            Box::new(move |inputs, out| {
                let (left, right) = (dense(&left, inputs[0]), dense(&right, inputs[1]));
                for (to, (a, b)) in out.iter_mut().zip(left.iter().zip(right.iter())) {
                    *to = a + b;
                }
            }),
        )
    }

    /// The tensor times a number (a kernel).
    ///
    /// # Errors
    /// When the simulated process has failed.
    pub fn scale(&self, by: f32) -> SimResult<Tensor> {
        let view = self.view.clone();
        Step::kernel("mul").parameters(u128::from(by.to_bits())).run(
            &[self],
            self.shape(),
            Box::new(move |inputs, out| {
                for (to, x) in out.iter_mut().zip(dense(&view, inputs[0]).iter()) {
                    *to = x * by;
                }
            }),
        )
    }
}
