//! Multi-head self-attention over sequences that lie in one buffer of tokens.
//!
//! Keys and values past a sequence's end are never read, so there is no mask and padding cannot
//! change a result. A task takes one sequence (or 64 queries of it, when there are few sequences)
//! through all heads: keys are transposed and values gathered once for each head, then four queries
//! at a time go over them in registers. Where a query sees a window only, keys outside are neither
//! gathered nor computed.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::math::{LANES, softmax};
use crate::config::BertConfig;
use crate::distances::Distances;
use crate::rotary::Rotary;

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
    /// Those of an encoder.
    pub fn of(config: &BertConfig) -> Self {
        let count = config.num_attention_heads;
        Self { count, size: config.hidden_size / count }
    }

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
    /// What queries and keys are turned by, in a model that does.
    pub rotary: Option<&'a Rotary>,
    /// How many tokens away a key may be; `None` sees all.
    pub window: Option<usize>,
}

impl Projected<'_> {
    /// The keys that some queries of a sequence of this length see together.
    #[inline(always)]
    fn keys_of(&self, queries: Range<usize>, length: usize) -> Range<usize> {
        match self.window {
            None => 0..length,
            Some(window) => {
                queries.start.saturating_sub(window)..queries.end.saturating_add(window).min(length)
            }
        }
    }
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
        let length = sequence.length;
        let seen = input.keys_of(first..first + out.len() / width, length);
        let keys = seen.len();
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
            load_head(input, sequence, (seen.clone(), column), scratch);
            for (tile, out) in out.chunks_mut(TILE * width).enumerate() {
                let count = out.len() / width;
                let start = first + tile * TILE;
                for (i, queries) in scratch.queries.chunks_exact_mut(size).enumerate() {
                    // A short last tile repeats its last query rather than read past the end.
                    load_query(input, sequence, (start + i.min(count - 1), column), queries);
                }
                let within = |keys: Range<usize>| keys.start - seen.start..keys.end - seen.start;
                let range = within(input.keys_of(start..start + count, length));
                scores(simd, &scratch.queries, &scratch.keys, &mut scratch.scores, range.clone());
                for (i, row) in scratch.scores.chunks_exact_mut(key_stride).enumerate() {
                    let query = start + i.min(count - 1);
                    let mine = input.keys_of(query..query + 1, length);
                    if let Some(distances) = input.distances {
                        let added = &distances.row(head, query)[mine.clone()];
                        let row = &mut row[within(mine.clone())];
                        row.iter_mut().zip(added).for_each(|(s, d)| *s += *d);
                    }
                    let mine = within(mine);
                    softmax(&mut row[mine.clone()]);
                    // What another query of the tile sees and this one does not.
                    row[range.start..mine.start].fill(0.0);
                    row[mine.end..range.end].fill(0.0);
                }
                let weights = Weights { rows: &scratch.scores, stride: key_stride, keys, range };
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

/// One query of one head, with its bias, turned to its place.
#[inline(always)]
fn load_query(
    input: Projected<'_>,
    sequence: Sequence,
    (query, column): (usize, usize),
    to: &mut [f32],
) {
    let size = to.len();
    let token = &input.qkv[(sequence.start + query) * 3 * input.heads.width()..];
    let (from, bias) = (&token[column..][..size], &input.bias[column..][..size]);
    for ((q, from), b) in to.iter_mut().zip(from).zip(bias) {
        *q = *from + *b;
    }
    if let Some(rotary) = input.rotary {
        let (cos, sin) = rotary.at(query);
        let (first, second) = to.split_at_mut(size / 2);
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Copies the keys (transposed) and values of one head that are `seen`, with their bias, into the
/// scratch buffers.
#[inline(always)]
fn load_head(
    input: Projected<'_>,
    sequence: Sequence,
    (seen, column): (Range<usize>, usize),
    scratch: &mut Scratch,
) {
    let (size, width) = (input.heads.size, input.heads.width());
    let key_stride = seen.len().next_multiple_of(LANES);
    let value_stride = size.next_multiple_of(LANES);
    let key_bias = &input.bias[width + column..][..size];
    let value_bias = &input.bias[2 * width + column..][..size];
    let tokens = input.qkv[(sequence.start + seen.start) * 3 * width..].chunks_exact(3 * width);
    for (i, token) in tokens.take(seen.len()).enumerate() {
        let keys = &token[width + column..][..size];
        match input.rotary {
            None => {
                for (t, (k, b)) in keys.iter().zip(key_bias).enumerate() {
                    scratch.keys[t * key_stride + i] = *k + *b;
                }
            }
            Some(rotary) => {
                let half = size / 2;
                let (cos, sin) = rotary.at(seen.start + i);
                for (t, (cos, sin)) in cos.iter().zip(sin).enumerate() {
                    let (a, b) = (keys[t] + key_bias[t], keys[t + half] + key_bias[t + half]);
                    scratch.keys[t * key_stride + i] = a * cos - b * sin;
                    scratch.keys[(t + half) * key_stride + i] = b * cos + a * sin;
                }
            }
        }
        let to = &mut scratch.values[i * value_stride..][..size];
        let values = &token[2 * width + column..][..size];
        for ((to, v), b) in to.iter_mut().zip(values).zip(value_bias) {
            *to = *v + *b;
        }
    }
}

/// `scores[i][key] = queries[i] . keys[..][key]` for `TILE` queries and the keys of a range; those
/// beside it that share its vectors are written too.
#[inline(always)]
fn scores<S: Simd>(
    simd: S,
    queries: &[f32],
    keys: &[f32],
    scores: &mut [f32],
    range: Range<usize>,
) {
    let size = queries.len() / TILE;
    let stride = scores.len() / TILE;
    let (keys, _) = S::as_simd_f32s(keys);
    let (scores, _) = S::as_mut_simd_f32s(scores);
    let per_row = stride / S::F32_LANES;
    let query: [&[f32]; TILE] = std::array::from_fn(|i| &queries[i * size..][..size]);
    let mut j = range.start / S::F32_LANES;
    let end = range.end.div_ceil(S::F32_LANES);
    while j < end {
        // With one vector left, the second column repeats the first.
        let second = (j + 1).min(end - 1);
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
struct Weights<'a> {
    /// (`TILE`, stride).
    rows: &'a [f32],
    stride: usize,
    /// How many of a row's elements are keys.
    keys: usize,
    /// Those that count.
    range: Range<usize>,
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
        for key in weights.range.clone() {
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
