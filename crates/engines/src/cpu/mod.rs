//! The CPU kernels that candle lacks: fused, on all threads, vectorised, without `unsafe`.
//!
//! candle's own element-wise CPU operations run on one thread, allocate a tensor each and call the
//! scalar `erff`; in a small BERT they would cost more than the matrix products. Each function here
//! makes one pass over memory, splits its rows over rayon's threads, and is compiled once for each
//! instruction set, of which [`pulp`] picks one at run time: no build flag is needed.
//!
//! Invariant: what comes out for a token depends on its own sequence only, not on its neighbours
//! in the batch nor on the number of threads.

mod attention;
mod math;

use pulp::Arch;
use rayon::prelude::*;

pub(crate) use attention::{Heads, Projected, Sequence, attention};

use crate::activation::Activation;
use crate::sentence_settings::Pooling;
use math::{gelu_erf, gelu_tanh, sum};

/// Elements that make a task worth handing to another thread (about 10 microseconds of work).
const TASK_ELEMENTS: usize = 16 * 1024;

/// Splits a (rows, width) buffer into tasks of whole rows.
fn by_rows(x: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = (TASK_ELEMENTS / width).max(1);
    let task = |(task, chunk): (usize, &mut [f32])| {
        for (i, row) in chunk.chunks_exact_mut(width).enumerate() {
            f(task * rows + i, row);
        }
    };
    if x.len() <= TASK_ELEMENTS {
        task((0, x));
    } else {
        x.par_chunks_mut(rows * width).enumerate().for_each(task);
    }
}

/// `x = activation(x + bias)` in place; `x` is (tokens, width), `bias` is (width).
pub(crate) fn bias_activation(x: &mut [f32], bias: &[f32], activation: Activation) {
    let arch = Arch::new();
    by_rows(x, bias.len(), |_, row| match activation {
        Activation::GeluErf => arch.dispatch(|| map_row(row, bias, gelu_erf)),
        Activation::GeluTanh => arch.dispatch(|| map_row(row, bias, gelu_tanh)),
        Activation::Relu => arch.dispatch(|| map_row(row, bias, |v| v.max(0.0))),
    });
}

#[inline(always)]
fn map_row(row: &mut [f32], bias: &[f32], f: impl Fn(f32) -> f32) {
    for (v, b) in row.iter_mut().zip(bias) {
        *v = f(*v + *b);
    }
}

/// `out = activation(x) * gate`, where each row of `x` and its `bias` are (2 * width): what is
/// activated, then the gate. `out` is (tokens, width).
pub(crate) fn gated(x: &[f32], bias: &[f32], activation: Activation, out: &mut [f32]) {
    let arch = Arch::new();
    let width = bias.len() / 2;
    by_rows(out, width, |i, out| {
        let row = &x[i * 2 * width..][..2 * width];
        match activation {
            Activation::GeluErf => arch.dispatch(|| gate_row(row, bias, out, gelu_erf)),
            Activation::GeluTanh => arch.dispatch(|| gate_row(row, bias, out, gelu_tanh)),
            Activation::Relu => arch.dispatch(|| gate_row(row, bias, out, |v| v.max(0.0))),
        }
    });
}

#[inline(always)]
fn gate_row(row: &[f32], bias: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    let (values, gates) = row.split_at(out.len());
    let (value_bias, gate_bias) = bias.split_at(out.len());
    let values = values.iter().zip(value_bias);
    let gates = gates.iter().zip(gate_bias);
    for ((o, (v, vb)), (g, gb)) in out.iter_mut().zip(values).zip(gates) {
        *o = f(*v + *vb) * (*g + *gb);
    }
}

/// `x = x + y` in place; both are (tokens, width).
pub(crate) fn add(x: &mut [f32], y: &[f32], width: usize) {
    let arch = Arch::new();
    by_rows(x, width, |i, row| {
        let y = &y[i * width..][..width];
        arch.dispatch(|| row.iter_mut().zip(y).for_each(|(v, y)| *v += *y));
    });
}

/// Parameters of a layer normalisation, and the bias that its input still lacks.
#[derive(Clone, Copy)]
pub(crate) struct NormParams<'a> {
    /// Bias of the product before, (width).
    pub bias: &'a [f32],
    /// Scale, (width).
    pub gamma: &'a [f32],
    /// Shift, (width).
    pub beta: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// `x = LayerNorm(x + bias + residual)` in place; both are (tokens, width).
pub(crate) fn add_layer_norm(x: &mut [f32], residual: &[f32], params: NormParams<'_>) {
    let arch = Arch::new();
    let width = params.bias.len();
    by_rows(x, width, |i, row| {
        let residual = &residual[i * width..][..width];
        arch.dispatch(|| norm_row(row, residual, params));
    });
}

#[inline(always)]
fn norm_row(row: &mut [f32], residual: &[f32], params: NormParams<'_>) {
    for ((v, r), b) in row.iter_mut().zip(residual).zip(params.bias) {
        *v += *r + *b;
    }
    norm_sum(row, params);
}

/// `out = LayerNorm(x + bias)`; both are (tokens, width).
pub(crate) fn layer_norm(x: &[f32], params: NormParams<'_>, out: &mut [f32]) {
    let arch = Arch::new();
    let width = params.bias.len();
    by_rows(out, width, |i, out| {
        let row = &x[i * width..][..width];
        arch.dispatch(|| {
            for ((o, v), b) in out.iter_mut().zip(row).zip(params.bias) {
                *o = *v + *b;
            }
            norm_sum(out, params);
        });
    });
}

#[inline(always)]
fn norm_sum(row: &mut [f32], params: NormParams<'_>) {
    let width = row.len() as f32;
    let mean = sum(row, |v| v) / width;
    // Two passes: the one-pass formula loses the variance of a row with a large mean.
    let variance = sum(row, |v| (v - mean) * (v - mean)) / width;
    let scale = 1.0 / (variance + params.eps).sqrt();
    for ((v, g), b) in row.iter_mut().zip(params.gamma).zip(params.beta) {
        *v = (*v - mean) * scale * *g + *b;
    }
}

/// A vector for each sequence, scaled to length 1 where asked; `x` is (tokens, width).
pub(crate) fn pool(
    x: &[f32],
    width: usize,
    sequences: &[Sequence],
    pooling: Pooling,
    normalise: bool,
) -> Vec<Vec<f32>> {
    let arch = Arch::new();
    let pool = |sequence: &Sequence| {
        let tokens = &x[sequence.start * width..][..sequence.length * width];
        let mut out = match pooling {
            Pooling::First => tokens[..width].to_vec(),
            Pooling::Last => tokens[tokens.len() - width..].to_vec(),
            Pooling::Mean => vec![0_f32; width],
        };
        arch.dispatch(|| {
            if pooling == Pooling::Mean {
                for token in tokens.chunks_exact(width) {
                    for (o, v) in out.iter_mut().zip(token) {
                        *o += *v;
                    }
                }
                let share = 1.0 / sequence.length as f32;
                out.iter_mut().for_each(|o| *o *= share);
            }
            if normalise {
                math::normalise(&mut out);
            }
        });
        out
    };
    sequences.par_iter().map(pool).collect()
}

/// Scales a vector to length 1; a zero vector stays zero.
pub(crate) fn normalise(row: &mut [f32]) {
    Arch::new().dispatch(|| math::normalise(row));
}
