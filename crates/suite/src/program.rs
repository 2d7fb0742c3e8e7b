//! [`Program`]: what a case computes: its weights, its inputs and its forward pass over [`Ops`].

use crate::host::HostTensor;
use crate::layers::{Attention, encoder_layer, select_three, unpacked};
use crate::ops::{OpError, OpResult, Ops};
use crate::seed::Seeded;

/// A computation with its sizes. All of them take and give fp32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Program {
    /// `nn.Linear(inputs, outputs)` on (rows, inputs).
    Linear {
        /// Rows of the input.
        rows: usize,
        /// Features that come in.
        inputs: usize,
        /// Features that go out.
        outputs: usize,
    },
    /// (rows, inner) · (inner, columns).
    Matmul {
        /// Rows of the left operand.
        rows: usize,
        /// The dimension that is summed over.
        inner: usize,
        /// Columns of the right operand.
        columns: usize,
    },
    /// (batch, rows, inner) · (batch, inner, columns).
    Bmm {
        /// Matrices in each operand.
        batch: usize,
        /// Rows of a left matrix.
        rows: usize,
        /// The dimension that is summed over.
        inner: usize,
        /// Columns of a right matrix.
        columns: usize,
    },
    /// `nn.LayerNorm(shape[2])` on `shape`.
    LayerNorm {
        /// The input's shape.
        shape: [usize; 3],
    },
    /// Softmax over the last dimension of `shape`.
    Softmax {
        /// The input's shape.
        shape: [usize; 3],
    },
    /// `nn.Conv2d(shape[1], filters, kernel, padding=padding)` on `shape`.
    Conv2d {
        /// The input's shape: batch, channels, height, width.
        shape: [usize; 4],
        /// Channels that go out.
        filters: usize,
        /// Height and width of the kernel.
        kernel: usize,
        /// Zeros on each side.
        padding: usize,
    },
    /// GELU of every element of `shape`.
    Gelu {
        /// The input's shape.
        shape: [usize; 3],
    },
    /// `nn.TransformerEncoderLayer(width, heads, feed_forward, batch_first=True)`, eval mode, on
    /// (batch, length, width).
    TransformerBlock {
        /// The attention's sizes.
        attention: Attention,
        /// Features between the two linear layers.
        feed_forward: usize,
    },
    /// `nn.MultiheadAttention(width, heads, batch_first=True)` on (batch, length, width).
    MultiheadAttention(Attention),
    /// Linear, ReLU, linear on (rows, inputs).
    Mlp {
        /// Rows of the input.
        rows: usize,
        /// Features that come in.
        inputs: usize,
        /// Features between the layers.
        hidden: usize,
        /// Features that go out.
        outputs: usize,
    },
    /// The minimal race: a packed projection, its unpacking with or without a dense copy,
    /// attention. Weights are standard normal. On (batch, length, width), giving (batch, heads,
    /// length, width/heads).
    PackedProjection {
        /// The attention's sizes; the projection is always packed.
        attention: Attention,
        /// Whether the unpacked view is copied (`.contiguous()`).
        contiguous: bool,
    },
}

impl Program {
    /// Draws the weights, in the order that [`Program::forward`] takes them.
    pub fn weights(&self, seeded: &mut Seeded) -> Vec<HostTensor> {
        match *self {
            Program::Linear { inputs, outputs, .. } => seeded.linear(inputs, outputs).into(),
            Program::Matmul { .. }
            | Program::Bmm { .. }
            | Program::Softmax { .. }
            | Program::Gelu { .. } => Vec::new(),
            Program::LayerNorm { shape } => seeded.norm(shape[2]).into(),
            Program::Conv2d { shape, filters, kernel, .. } => {
                let bound = ((shape[1] * kernel * kernel) as f32).sqrt().recip();
                vec![
                    seeded.uniform([filters, shape[1], kernel, kernel], -bound, bound),
                    seeded.uniform([filters], -bound, bound),
                ]
            }
            Program::TransformerBlock { attention, feed_forward } => {
                let width = attention.width;
                let mut weights = attention_weights(width, seeded);
                weights.extend(seeded.linear(width, feed_forward));
                weights.extend(seeded.linear(feed_forward, width));
                weights.extend(seeded.norm(width));
                weights.extend(seeded.norm(width));
                weights
            }
            Program::MultiheadAttention(attention) => attention_weights(attention.width, seeded),
            Program::Mlp { inputs, hidden, outputs, .. } => {
                let mut weights = Vec::from(seeded.linear(inputs, hidden));
                weights.extend(seeded.linear(hidden, outputs));
                weights
            }
            Program::PackedProjection { attention, .. } => vec![
                seeded.normal([3 * attention.width, attention.width]),
                seeded.normal([3 * attention.width]),
            ],
        }
    }

    /// Draws the inputs, standard normal, in the order that [`Program::forward`] takes them.
    pub fn inputs(&self, seeded: &mut Seeded) -> Vec<HostTensor> {
        match *self {
            Program::Linear { rows, inputs, .. } | Program::Mlp { rows, inputs, .. } => {
                vec![seeded.normal([rows, inputs])]
            }
            Program::Matmul { rows, inner, columns } => {
                vec![seeded.normal([rows, inner]), seeded.normal([inner, columns])]
            }
            Program::Bmm { batch, rows, inner, columns } => {
                vec![seeded.normal([batch, rows, inner]), seeded.normal([batch, inner, columns])]
            }
            Program::LayerNorm { shape } | Program::Softmax { shape } | Program::Gelu { shape } => {
                vec![seeded.normal(shape)]
            }
            Program::Conv2d { shape, .. } => vec![seeded.normal(shape)],
            Program::TransformerBlock { attention, .. }
            | Program::MultiheadAttention(attention)
            | Program::PackedProjection { attention, .. } => {
                vec![seeded.normal([attention.batch, attention.length, attention.width])]
            }
        }
    }

    /// Whether several requests can run as one along the outermost dimension of every input, each
    /// taking its own rows of the result. A plain matrix product cannot: each request brings its
    /// own right operand.
    pub fn stacks(&self) -> bool {
        !matches!(self, Program::Matmul { .. })
    }

    /// The program for `requests` requests stacked along the outermost dimension.
    ///
    /// Only meaningful where [`Program::stacks`] holds.
    pub fn stacked(&self, requests: usize) -> Program {
        let mut program = *self;
        match &mut program {
            Program::Linear { rows, .. } | Program::Mlp { rows, .. } => *rows *= requests,
            Program::Matmul { .. } => {}
            Program::Bmm { batch, .. } => *batch *= requests,
            Program::LayerNorm { shape } | Program::Softmax { shape } | Program::Gelu { shape } => {
                shape[0] *= requests
            }
            Program::Conv2d { shape, .. } => shape[0] *= requests,
            Program::TransformerBlock { attention, .. }
            | Program::MultiheadAttention(attention)
            | Program::PackedProjection { attention, .. } => attention.batch *= requests,
        }
        program
    }

    /// Runs the program on a device.
    ///
    /// # Errors
    /// When an operation fails, or when the weights or inputs are not this program's.
    pub fn forward<O: Ops>(
        &self,
        ops: &O,
        weights: &[O::Tensor],
        inputs: &[O::Tensor],
    ) -> OpResult<O::Tensor> {
        match (self, weights, inputs) {
            (Program::Linear { .. }, [weight, bias], [x]) => ops.linear(x, weight, bias),
            (Program::Matmul { .. }, [], [a, b]) => ops.matmul(a, b),
            (Program::Bmm { .. }, [], [a, b]) => ops.bmm(a, b),
            (Program::LayerNorm { .. }, [weight, bias], [x]) => ops.layer_norm(x, weight, bias),
            (Program::Softmax { .. }, [], [x]) => ops.softmax(x),
            (Program::Conv2d { padding, .. }, [weight, bias], [x]) => {
                ops.conv2d(x, weight, bias, *padding)
            }
            (Program::Gelu { .. }, [], [x]) => ops.gelu(x),
            (Program::TransformerBlock { attention, .. }, weights, [x]) => {
                let weights = weights.try_into().map_err(|_| misuse(self))?;
                encoder_layer(ops, attention, weights, x)
            }
            (Program::MultiheadAttention(attention), [a, b, c, d], [x]) => {
                attention.forward(ops, [a, b, c, d], x)
            }
            (Program::Mlp { .. }, [up, up_bias, down, down_bias], [x]) => {
                let hidden = ops.relu(&ops.linear(x, up, up_bias)?)?;
                ops.linear(&hidden, down, down_bias)
            }
            (Program::PackedProjection { attention, contiguous }, [weight, bias], [x]) => {
                packed_projection(ops, attention, *contiguous, [weight, bias, x])
            }
            _ => Err(misuse(self)),
        }
    }
}

fn attention_weights(width: usize, seeded: &mut Seeded) -> Vec<HostTensor> {
    // Xavier's bound for a (3·width, width) matrix; PyTorch sets both biases to zero, which would
    // hide a bias that is left out.
    let bound = (6.0 / (4 * width) as f32).sqrt();
    let mut weights = vec![
        seeded.uniform([3 * width, width], -bound, bound),
        seeded.uniform([3 * width], -0.1, 0.1),
    ];
    weights.extend(seeded.linear(width, width));
    weights
}

fn packed_projection<O: Ops>(
    ops: &O,
    attention: &Attention,
    contiguous: bool,
    [weight, bias, x]: [&O::Tensor; 3],
) -> OpResult<O::Tensor> {
    let (batch, length, width, heads) =
        (attention.batch, attention.length, attention.width, attention.heads);
    let mut packed = ops.linear(x, weight, bias)?;
    packed = unpacked(ops, &packed, [batch, length, width])?;
    if contiguous {
        // Here the projection's memory becomes free while the copy may be pending; without the copy
        // the views hold it until attention has run.
        packed = ops.contiguous(&packed)?;
    }
    let mut by_head = Vec::with_capacity(3);
    for part in select_three(ops, &packed)? {
        let part = ops.reshape(&part, &[batch, length, heads, width / heads])?;
        by_head.push(ops.transpose(&part, 1, 2)?);
    }
    ops.sdpa(&by_head[0], &by_head[1], &by_head[2])
}

fn misuse(program: &Program) -> OpError {
    OpError::new("forward", format!("the weights or inputs are not those of {program:?}"))
}
