//! Scaled dot-product attention (a graph).

use super::Step;
use super::norm::softmax_row;
use super::product::{Matrix, multiply};
use crate::error::SimResult;
use crate::tensor::Tensor;
use crate::view::View;

impl Tensor {
    /// Attention without a mask (a graph): q, k, v (batch, heads, length, width of a head) → the same
    /// shape; the scale is 1/√(width of a head).
    ///
    /// As PyTorch's general MPS path it has the attention weights (batch, heads, length, length) as a
    /// second output, which is freed when the operation returns.
    ///
    /// # Errors
    /// When the shapes do not fit, or the simulated process has failed.
    pub fn sdpa(&self, keys: &Tensor, values: &Tensor) -> SimResult<Tensor> {
        let (&[batch, heads, length, width], true) =
            (self.shape(), keys.shape() == values.shape() && keys.shape() == self.shape())
        else {
            return Err(self.misfit(
                "scaled_dot_product_attention",
                format_args!("keys {:?}, values {:?}", keys.shape(), values.shape()),
            ));
        };
        let output = self.device().empty(self.shape())?;
        let weights = self.device().empty(&[batch, heads, length, length])?;
        let views = [&self.view, &keys.view, &values.view].map(Clone::clone);
        Step::graph("scaled_dot_product_attention").encode(
            &[self, keys, values],
            &output,
            &[&weights],
            Box::new(move |data, out| {
                let scale = (width as f32).sqrt().recip();
                let mut weights = vec![0.0; length * length];
                for (at, out) in out.chunks_exact_mut((length * width).max(1)).enumerate() {
                    let [q, k, v] =
                        [0, 1, 2].map(|i| head(&views[i], data[i], [at / heads, at % heads]));
                    multiply(q, k.transposed(), (scale, 0.0), &mut weights);
                    weights.chunks_exact_mut(length).for_each(softmax_row);
                    let weights = Matrix::dense(&weights, (length, length));
                    multiply(weights, v, (1.0, 0.0), out);
                }
            }),
        )?;
        Ok(output)
    }
}

/// One head of one batch row.
fn head<'a>(view: &View, data: &'a [f32], [batch, head]: [usize; 2]) -> Matrix<'a> {
    let from = view.offset + batch * view.strides[0] + head * view.strides[1];
    Matrix {
        data: &data[from..],
        shape: (view.shape[2], view.shape[3]),
        strides: (view.strides[2], view.strides[3]),
    }
}
