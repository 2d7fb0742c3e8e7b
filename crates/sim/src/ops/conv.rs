//! 2-D convolution (a graph).

use super::product::{Matrix, multiply};
use super::{Step, dense};
use crate::error::SimResult;
use crate::tensor::Tensor;

impl Tensor {
    /// 2-D cross-correlation (a graph), stride 1, with `padding` zeros on each side: x (b, c, h, w),
    /// weight (filters, c, kernel, kernel), bias (filters) → (b, filters, h', w').
    ///
    /// # Errors
    /// When the shapes do not fit, or the simulated process has failed.
    pub fn conv2d(&self, weight: &Tensor, bias: &Tensor, padding: usize) -> SimResult<Tensor> {
        let sizes = match (self.shape(), weight.shape(), bias.shape()) {
            (&[batch, channels, height, width], &[filters, c, kernel, k], &[f])
                if c == channels
                    && k == kernel
                    && f == filters
                    && height.min(width) + 2 * padding >= kernel =>
            {
                Sizes { batch, channels, input: [height, width], filters, kernel, padding }
            }
            _ => {
                return Err(self.misfit(
                    "conv2d",
                    format_args!("weight {:?}, bias {:?}", weight.shape(), bias.shape()),
                ));
            }
        };
        let [height, width] = sizes.output();
        let shape = [sizes.batch, sizes.filters, height, width];
        let views = [&self.view, &weight.view, &bias.view].map(Clone::clone);
        Step::graph("conv2d").parameters(padding as u128).run(
            &[self, weight, bias],
            &shape,
            Box::new(move |data, out| {
                let [x, weight, bias] = [0, 1, 2].map(|i| dense(&views[i], data[i]));
                sizes.convolve(&x, (&weight, &bias), out);
            }),
        )
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    channels: usize,
    input: [usize; 2],
    filters: usize,
    kernel: usize,
    padding: usize,
}

impl Sizes {
    fn output(&self) -> [usize; 2] {
        self.input.map(|n| n + 2 * self.padding - self.kernel + 1)
    }

    /// A matrix product per image, over the input's patches as columns.
    fn convolve(&self, x: &[f32], (weight, bias): (&[f32], &[f32]), out: &mut [f32]) {
        let [height, width] = self.output();
        let pixels = height * width;
        let patch = self.channels * self.kernel * self.kernel;
        let image = self.channels * self.input[0] * self.input[1];
        let mut columns = vec![0.0; patch * pixels];
        for at in 0..self.batch {
            self.unfold(&x[at * image..(at + 1) * image], &mut columns);
            let out = &mut out[at * self.filters * pixels..(at + 1) * self.filters * pixels];
            for (plane, bias) in out.chunks_exact_mut(pixels).zip(bias) {
                plane.fill(*bias);
            }
            multiply(
                Matrix::dense(weight, (self.filters, patch)),
                Matrix::dense(&columns, (patch, pixels)),
                (1.0, 1.0),
                out,
            );
        }
    }

    /// Row (channel, dy, dx) of the columns holds the input under that place of the kernel.
    fn unfold(&self, image: &[f32], columns: &mut [f32]) {
        let [height, width] = self.output();
        let (rows, row_width) = (self.input[0], self.input[1]);
        let plane = rows * row_width;
        for (at, column) in columns.chunks_exact_mut(height * width).enumerate() {
            let (dx, rest) = (at % self.kernel, at / self.kernel);
            let (dy, channel) = (rest % self.kernel, rest / self.kernel);
            for (y, line) in column.chunks_exact_mut(width).enumerate() {
                let from = (y + dy).checked_sub(self.padding).filter(|from| *from < rows);
                let Some(from) = from else {
                    line.fill(0.0);
                    continue;
                };
                let source = &image[channel * plane + from * row_width..][..row_width];
                for (x, to) in line.iter_mut().enumerate() {
                    let from = (x + dx).checked_sub(self.padding);
                    *to = from.and_then(|from| source.get(from)).copied().unwrap_or(0.0);
                }
            }
        }
    }
}
