//! Operations along the last dimension: layer norm (a kernel) and softmax (a graph).

use super::{Step, dense};
use crate::error::SimResult;
use crate::tensor::Tensor;

impl Tensor {
    /// Layer norm over the last dimension, ε = 1e-5 (a kernel): x (…, width), weight and bias (width).
    ///
    /// # Errors
    /// When the shapes do not fit, or the simulated process has failed.
    pub fn layer_norm(&self, weight: &Tensor, bias: &Tensor) -> SimResult<Tensor> {
        let width = self.shape().last().copied().unwrap_or(0);
        if weight.shape() != [width] || bias.shape() != [width] || width == 0 {
            return Err(self.misfit(
                "layer_norm",
                format_args!("weight {:?}, bias {:?}", weight.shape(), bias.shape()),
            ));
        }
        let views = [&self.view, &weight.view, &bias.view].map(Clone::clone);
        Step::costly_kernel("layer_norm").run(
            &[self, weight, bias],
            self.shape(),
            Box::new(move |inputs, out| {
                let [x, weight, bias] = [0, 1, 2].map(|i| dense(&views[i], inputs[i]));
                for (row, to) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                    let mean = row.iter().sum::<f32>() / width as f32;
                    let square = |x: &f32| (x - mean) * (x - mean);
                    let variance = row.iter().map(square).sum::<f32>() / width as f32;
                    let factor = (variance + 1e-5).sqrt().recip();
                    for (at, to) in to.iter_mut().enumerate() {
                        *to = (row[at] - mean) * factor * weight[at] + bias[at];
                    }
                }
            }),
        )
    }

    /// Softmax over the last dimension (a graph).
    ///
    /// # Errors
    /// When the tensor has no dimension, or the simulated process has failed.
    pub fn softmax(&self) -> SimResult<Tensor> {
        let Some(width) = self.shape().last().copied() else {
            return Err(self.misfit("softmax", format_args!("there is no last dimension")));
        };
        let view = self.view.clone();
        Step::graph("softmax").run(
            &[self],
            self.shape(),
            Box::new(move |inputs, out| {
                out.copy_from_slice(&dense(&view, inputs[0]));
                out.chunks_exact_mut(width.max(1)).for_each(softmax_row);
            }),
        )
    }
}

/// Softmax of one row, in place.
pub(super) fn softmax_row(row: &mut [f32]) {
    let most = row.iter().fold(f32::NEG_INFINITY, |most, x| most.max(*x));
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - most).exp();
        sum += *x;
    }
    let factor = sum.recip();
    for x in row {
        *x *= factor;
    }
}
