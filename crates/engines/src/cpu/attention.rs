//! Multi-head self-attention over sequences that lie in one buffer of tokens.
//!
//! Keys and values past a sequence's end are never read, so there is no mask and padding cannot
//! change a result. A task takes one sequence (or 64 queries of it, when there are few sequences)
//! through all heads: keys are transposed and values gathered once for each head, then four queries
//! at a time go over them in registers.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::math::{LANES, softmax};
use crate::distances::Distances;

/// Queries that a task takes when there are too few sequences for the threads.
const QUERY_BLOCK: usize = 64;

/// Queries computed together, so that a key or value is loaded once for all of them.
const TILE: usize = 4;

/// Where one sequence lies in a buffer of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Its first token.
    pub start: usize,
    /// Its number of tokens.
    pub length: usize,
}

/// Sizes of a multi-head attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Width of a head.
    pub size: usize,
}

impl Heads {
    /// Width of a token's vector.
    pub fn width(self) -> usize {
        self.count * self.size
    }
}

/// What every task of one attention reads.
#[derive(Clone, Copy)]
pub(crate) struct Projected<'a> {
    /// (tokens, 3 * width): queries (already scaled), keys, values.
    pub qkv: &'a [f32],
    /// (3 * width): not yet added to them.
    pub bias: &'a [f32],
    /// How the width is divided.
    pub heads: Heads,
    /// What is added to the scores, in a model that does.
    pub distances: Option<&'a Distances>,
}

/// Attends each sequence to itself.
///
/// `sequences` are in order of `start` and do not overlap. Rows of `out`, (tokens, width), that
/// belong to no sequence are left as they are.
pub(crate) fn attention(input: Projected<'_>, sequences: &[Sequence], out: &mut [f32]) {
    let width = input.heads.width();
    let few = sequences.len() < 2 * rayon::current_num_threads();
    let block = if few { QUERY_BLOCK } else { usize::MAX };

    let mut tasks = Vec::with_capacity(sequences.len());
    let (mut rest, mut at) = (out, 0);
    for &sequence in sequences {
        (_, rest) = rest.split_at_mut((sequence.start - at) * width);
        let mut first = 0;
        while first < sequence.length {
            let queries = block.min(sequence.length - first);
            let (mine, others) = rest.split_at_mut(queries * width);
            tasks.push((sequence, first, mine));
            (rest, first) = (others, first + queries);
        }
        at = sequence.start + sequence.length;
    }

    let arch = Arch::new();
    tasks.into_par_iter().for_each_init(Scratch::default, |scratch, (sequence, first, out)| {
        arch.dispatch(Task { input, sequence, first, out, scratch });
    });
}

/// Buffers that a thread keeps between its tasks.
#[derive(Default)]
struct Scratch {
    /// Keys of one head, transposed: (size, keys rounded up to `LANES`).
    keys: Vec<f32>,
    /// Values of one head: (keys, size rounded up to `LANES`).
    values: Vec<f32>,
    /// (`TILE`, keys rounded up to `LANES`).
    scores: Vec<f32>,
    /// (`TILE`, size).
    queries: Vec<f32>,
}

/// Some queries of one sequence, all heads.
struct Task<'a> {
    input: Projected<'a>,
    sequence: Sequence,
    /// First query, counted from the sequence's start.
    first: usize,
    /// (queries, width).
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { input, sequence, first, out, scratch } = self;
        let (size, width) = (input.heads.size, input.heads.width());
        let keys = sequence.length;
        let key_stride = keys.next_multiple_of(LANES);
        let value_stride = size.next_multiple_of(LANES);
        // Zeroed, because vectors reach past the last key and the last column.
        for (buffer, len) in [
            (&mut scratch.keys, size * key_stride),
            (&mut scratch.values, keys * value_stride),
            (&mut scratch.scores, TILE * key_stride),
            (&mut scratch.queries, TILE * size),
        ] {
            buffer.clear();
            buffer.resize(len, 0.0);
        }

        for head in 0..input.heads.count {
            let column = head * size;
            load_head(input, sequence, column, scratch);
            let bias = &input.bias[column..][..size];
            for (tile, out) in out.chunks_mut(TILE * width).enumerate() {
                let count = out.len() / width;
                for (i, queries) in scratch.queries.chunks_exact_mut(size).enumerate() {
                    // A short last tile repeats its last query rather than read past the end.
                    let query = sequence.start + first + tile * TILE + i.min(count - 1);
                    let from = &input.qkv[query * 3 * width + column..];
                    for ((q, from), b) in queries.iter_mut().zip(from).zip(bias) {
                        *q = *from + *b;
                    }
                }
                scores(simd, &scratch.queries, &scratch.keys, &mut scratch.scores);
                for (i, row) in scratch.scores.chunks_exact_mut(key_stride).enumerate() {
                    let row = &mut row[..keys];
                    if let Some(distances) = input.distances {
                        let query = first + tile * TILE + i.min(count - 1);
                        row.iter_mut().zip(distances.row(head, query)).for_each(|(s, d)| *s += *d);
                    }
                    softmax(row);
                }
                let weights = Weights { rows: &scratch.scores, stride: key_stride, keys };
                weighted_sums(simd, weights, &scratch.values, |i, at, lanes| {
                    if i < count && at < size {
                        let lanes = &lanes[..lanes.len().min(size - at)];
                        out[i * width + column + at..][..lanes.len()].copy_from_slice(lanes);
                    }
                });
            }
        }
    }
}

/// Copies the keys (transposed) and values of one head, with their bias, into the scratch buffers.
#[inline(always)]
fn load_head(input: Projected<'_>, sequence: Sequence, column: usize, scratch: &mut Scratch) {
    let (size, width) = (input.heads.size, input.heads.width());
    let key_stride = sequence.length.next_multiple_of(LANES);
    let value_stride = size.next_multiple_of(LANES);
    let key_bias = &input.bias[width + column..][..size];
    let value_bias = &input.bias[2 * width + column..][..size];
    let tokens = input.qkv[sequence.start * 3 * width..].chunks_exact(3 * width);
    for (i, token) in tokens.take(sequence.length).enumerate() {
        let keys = &token[width + column..][..size];
        for (t, (k, b)) in keys.iter().zip(key_bias).enumerate() {
            scratch.keys[t * key_stride + i] = *k + *b;
        }
        let to = &mut scratch.values[i * value_stride..][..size];
        let values = &token[2 * width + column..][..size];
        for ((to, v), b) in to.iter_mut().zip(values).zip(value_bias) {
            *to = *v + *b;
        }
    }
}

/// `scores[i][key] = queries[i] . keys[..][key]` for `TILE` queries.
#[inline(always)]
fn scores<S: Simd>(simd: S, queries: &[f32], keys: &[f32], scores: &mut [f32]) {
    let size = queries.len() / TILE;
    let stride = scores.len() / TILE;
    let (keys, _) = S::as_simd_f32s(keys);
    let (scores, _) = S::as_mut_simd_f32s(scores);
    let per_row = stride / S::F32_LANES;
    let query: [&[f32]; TILE] = std::array::from_fn(|i| &queries[i * size..][..size]);
    let mut j = 0;
    while j < per_row {
        // With one vector left, the second column repeats the first.
        let second = (j + 1).min(per_row - 1);
        let mut sums = [[simd.splat_f32s(0.0); 2]; TILE];
        for t in 0..size {
            let row = &keys[t * per_row..][..per_row];
            let (k0, k1) = (row[j], row[second]);
            for (sums, query) in sums.iter_mut().zip(query) {
                let q = simd.splat_f32s(query[t]);
                sums[0] = simd.mul_add_e_f32s(q, k0, sums[0]);
                sums[1] = simd.mul_add_e_f32s(q, k1, sums[1]);
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            scores[i * per_row + second] = sums[1];
            scores[i * per_row + j] = sums[0];
        }
        j += 2;
    }
}

/// The scores of `TILE` queries after the softmax.
#[derive(Clone, Copy)]
struct Weights<'a> {
    /// (`TILE`, stride).
    rows: &'a [f32],
    stride: usize,
    /// How many of a row's elements are keys.
    keys: usize,
}

/// Calls `store(i, column, lanes)` with parts of `sum over key of weights[i][key] * values[key]`.
#[inline(always)]
fn weighted_sums<S: Simd>(
    simd: S,
    weights: Weights<'_>,
    values: &[f32],
    mut store: impl FnMut(usize, usize, &[f32]),
) {
    let (values, _) = S::as_simd_f32s(values);
    let per_row = values.len() / weights.keys;
    let weight: [&[f32]; TILE] =
        std::array::from_fn(|i| &weights.rows[i * weights.stride..][..weights.keys]);
    let mut j = 0;
    while j < per_row {
        let second = (j + 1).min(per_row - 1);
        let mut sums = [[simd.splat_f32s(0.0); 2]; TILE];
        for key in 0..weights.keys {
            let row = &values[key * per_row..][..per_row];
            let (v0, v1) = (row[j], row[second]);
            for (sums, weight) in sums.iter_mut().zip(weight) {
                let w = simd.splat_f32s(weight[key]);
                sums[0] = simd.mul_add_e_f32s(w, v0, sums[0]);
                sums[1] = simd.mul_add_e_f32s(w, v1, sums[1]);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (sum, at) in sums.iter().zip([j, second]) {
                let lanes = pulp::bytemuck::cast_slice(std::slice::from_ref(sum));
                store(i, at * S::F32_LANES, lanes);
            }
        }
        j += 2;
    }
}
