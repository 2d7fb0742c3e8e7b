//! The pieces of a transformer encoder, written over [`Ops`] step by step as PyTorch runs them.
//!
//! The order of views and copies is `torch.nn.functional.multi_head_attention_forward`'s, because
//! that order is what a race on a device depends on. For the same reason a name is assigned anew
//! where PyTorch does so: the old tensor is freed there, not at the end of the function.

use crate::ops::{OpResult, Ops};

/// How self-attention takes query, key and value out of the packed projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// One dense copy of the whole projection, then three views of it (PyTorch as released).
    Packed,
    /// Three views of the projection, then a dense copy of each (patch 035).
    Chunked,
}

/// The sizes of a multi-head self-attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Sequences in a batch.
    pub batch: usize,
    /// Tokens in a sequence.
    pub length: usize,
    /// Features of a token.
    pub width: usize,
    /// Heads that share the width.
    pub heads: usize,
    /// How query, key and value are taken out of the projection.
    pub projection: Projection,
}

impl Attention {
    /// `nn.MultiheadAttention(width, heads, batch_first=True)(x, x, x, need_weights=False)`.
    ///
    /// x (batch, length, width); weights: in-projection (3·width, width), its bias, out-projection
    /// (width, width), its bias → (batch, length, width).
    pub(crate) fn forward<O: Ops>(
        &self,
        ops: &O,
        weights: [&O::Tensor; 4],
        x: &O::Tensor,
    ) -> OpResult<O::Tensor> {
        let (batch, length, width, heads) = (self.batch, self.length, self.width, self.heads);
        let [in_weight, in_bias, out_weight, out_bias] = weights;
        let parts = self.project(ops, [in_weight, in_bias], x)?;
        let mut by_head = Vec::with_capacity(3);
        for part in &parts {
            let part = ops.reshape(part, &[length, batch * heads, width / heads])?;
            let part = ops.transpose(&part, 0, 1)?;
            by_head.push(ops.reshape(&part, &[batch, heads, length, width / heads])?);
        }
        let mut attended = ops.sdpa(&by_head[0], &by_head[1], &by_head[2])?;
        // permute(2, 0, 1, 3).contiguous()
        attended = ops.transpose(&attended, 0, 2)?;
        attended = ops.transpose(&attended, 1, 2)?;
        attended = ops.contiguous(&attended)?;
        attended = ops.reshape(&attended, &[length * batch, width])?;
        let out = ops.linear(&attended, out_weight, out_bias)?;
        let out = ops.reshape(&out, &[length, batch, width])?;
        ops.transpose(&out, 0, 1)
    }

    /// `torch.nn.functional._in_projection_packed`: query, key and value, each (length, batch,
    /// width) up to a leading 1. When it returns the projection is garbage, while the copies that
    /// read it may not have run yet.
    fn project<O: Ops>(
        &self,
        ops: &O,
        [weight, bias]: [&O::Tensor; 2],
        x: &O::Tensor,
    ) -> OpResult<Vec<O::Tensor>> {
        let time_first = ops.transpose(x, 0, 1)?;
        let mut projected = ops.linear(&time_first, weight, bias)?;
        match self.projection {
            Projection::Packed => {
                projected = unpacked(ops, &projected, [self.length, self.batch, self.width])?;
                projected = ops.contiguous(&projected)?;
                select_three(ops, &projected)
            }
            Projection::Chunked => (0..3)
                .map(|part| {
                    let chunk = ops.narrow(&projected, 2, part * self.width, self.width)?;
                    ops.contiguous(&chunk)
                })
                .collect(),
        }
    }
}

/// `projected.unflatten(-1, (3, width)).unsqueeze(0).transpose(0, -2).squeeze(-2)`: a view
/// (3, outer, inner, width) of a packed projection (outer, inner, 3·width).
pub(crate) fn unpacked<O: Ops>(
    ops: &O,
    projected: &O::Tensor,
    [outer, inner, width]: [usize; 3],
) -> OpResult<O::Tensor> {
    let view = ops.reshape(projected, &[outer, inner, 3, width])?;
    let view = ops.transpose(&view, 0, 2)?;
    ops.transpose(&view, 1, 2)
}

/// The three parts of a tensor (3, …), each still (1, …).
pub(crate) fn select_three<O: Ops>(ops: &O, packed: &O::Tensor) -> OpResult<Vec<O::Tensor>> {
    (0..3).map(|part| ops.narrow(packed, 0, part, 1)).collect()
}

/// `nn.TransformerEncoderLayer(width, heads, feed_forward, batch_first=True)` in eval mode:
/// post-norm, ReLU. The twelve weights stand in the order of its `state_dict`.
pub(crate) fn encoder_layer<O: Ops>(
    ops: &O,
    attention: &Attention,
    weights: &[O::Tensor; 12],
    x: &O::Tensor,
) -> OpResult<O::Tensor> {
    let [qkv, qkv_bias, out, out_bias, up, up_bias, down, down_bias, norm1, bias1, norm2, bias2] =
        weights;
    let mut sum = attention.forward(ops, [qkv, qkv_bias, out, out_bias], x)?;
    sum = ops.add(x, &sum)?;
    let x = ops.layer_norm(&sum, norm1, bias1)?;
    sum = ops.relu(&ops.linear(&x, up, up_bias)?)?;
    sum = ops.linear(&sum, down, down_bias)?;
    sum = ops.add(&x, &sum)?;
    ops.layer_norm(&sum, norm2, bias2)
}
