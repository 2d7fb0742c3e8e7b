//! fp32 operations on [`Tensor`](crate::Tensor)s, as PyTorch runs them on MPS.
//!
//! Each operation looks its kernel up, allocates its outputs and encodes; arithmetic runs at commit.
//! Which operations are kernels, and stay pending, and which are graphs, and are committed at once, is
//! rule R2: kernels are copies, binary operations, norms and relu; graphs are products, convolution,
//! attention, softmax and gelu. All of them read strided views directly.

mod attention;
mod conv;
mod copy;
mod norm;
mod pointwise;
mod product;

use std::borrow::Cow;

use crate::command::Op;
use crate::error::SimResult;
use crate::memo::{hash, hash_text};
use crate::tensor::Tensor;
use crate::view::View;

/// A kernel of floats: the inputs' elements, whole buffers, and the output's elements.
type Floats = Box<dyn FnOnce(&[&[f32]], &mut [f32]) + Send>;

/// What an operation computes, apart from its inputs.
struct Step {
    op: Op,
    /// The operation's parameters that are not shapes.
    parameters: u128,
}

impl Step {
    fn kernel(name: &'static str) -> Self {
        Self { op: Op::kernel(name), parameters: 0 }
    }

    fn graph(name: &'static str) -> Self {
        Self { op: Op::graph(name).remember(), parameters: 0 }
    }

    /// A kernel whose results are worth keeping.
    fn costly_kernel(name: &'static str) -> Self {
        Self { op: Op::kernel(name).remember(), parameters: 0 }
    }

    fn parameters(mut self, parameters: u128) -> Self {
        self.parameters = parameters;
        self
    }

    /// Allocates a dense output of `shape` and encodes.
    fn run(self, inputs: &[&Tensor], shape: &[usize], floats: Floats) -> SimResult<Tensor> {
        let first = inputs.first().expect("an operation has an input");
        let output = first.device().empty(shape)?;
        self.encode(inputs, &output, &[], floats)?;
        Ok(output)
    }

    /// Encodes into a dense output; `scratch` are further outputs, which are not written.
    fn encode(
        self,
        inputs: &[&Tensor],
        output: &Tensor,
        scratch: &[&Tensor],
        floats: Floats,
    ) -> SimResult<()> {
        let mut key = vec![hash_text(self.op.name()), self.parameters];
        key.extend(inputs.iter().map(|input| input.view.key()));
        let shapes = inputs.iter().map(|input| format!("{:?}", input.shape()));
        let op = self.op.shapes(shapes.collect::<Vec<_>>().join("x")).pure(hash(&key));
        let reads: Vec<_> = inputs.iter().map(|input| &*input.buffer).collect();
        let writes: Vec<_> = std::iter::once(output)
            .chain(scratch.iter().copied())
            .map(|tensor| &*tensor.buffer)
            .collect();
        output.device().encode(op, &reads, &writes, |reads, writes| {
            let reads: Vec<&[f32]> = reads.iter().map(|r| bytemuck::cast_slice(r)).collect();
            let (first, rest) = writes.split_first_mut().expect("there is an output");
            floats(&reads, bytemuck::cast_slice_mut(first));
            for scratch in rest {
                scratch.fill(0);
            }
        })
    }
}

/// The elements of a view in row-major order; borrowed when they already lie so.
fn dense<'a>(view: &View, data: &'a [f32]) -> Cow<'a, [f32]> {
    let elements = view.elements();
    if view.is_dense() {
        return Cow::Borrowed(&data[view.offset..view.offset + elements]);
    }
    let mut out = vec![0.0; elements];
    gather(view, data, &mut out);
    Cow::Owned(out)
}

/// Copies the elements of a view in row-major order.
fn gather(view: &View, data: &[f32], out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let dims = view.shape.len();
    if dims == 0 {
        out[0] = data[view.offset];
        return;
    }
    // The innermost dimension is a run; the others count like an odometer.
    let (run, stride) = (view.shape[dims - 1], view.strides[dims - 1]);
    let mut at = vec![0; dims - 1];
    let mut from = view.offset;
    for row in out.chunks_exact_mut(run) {
        if stride == 1 {
            row.copy_from_slice(&data[from..from + run]);
        } else {
            for (place, to) in row.iter_mut().enumerate() {
                *to = data[from + place * stride];
            }
        }
        for dim in (0..dims - 1).rev() {
            at[dim] += 1;
            from += view.strides[dim];
            if at[dim] < view.shape[dim] {
                break;
            }
            from -= view.strides[dim] * view.shape[dim];
            at[dim] = 0;
        }
    }
}
