//! Modules of PyTorch as it runs them on MPS, operation by operation.
//!
//! What matters here besides the operations is **when each temporary dies**: a name that is bound anew
//! frees its old value after the new one was made, an argument lives until the call returns, and the
//! locals of a function live until it returns. The `drop`s below stand where CPython drops the last
//! reference.

use crate::error::SimResult;
use crate::tensor::Tensor;

/// How the packed projection of self-attention is taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// As released: a strided view of three parts, copied by one `.contiguous()`.
    #[default]
    Packed,
    /// Patch 035: `chunk(3)`, and a `.contiguous()` of each.
    Chunked,
}

/// `nn.MultiheadAttention(width, heads, batch_first=True)` in eval mode, called as
/// `mha(x, x, x, need_weights=False)`.
#[derive(Clone, Debug)]
pub struct MultiheadAttention {
    /// Projection weight (3·width, width) and bias (3·width).
    pub projection: [Tensor; 2],
    /// Output weight (width, width) and bias (width).
    pub output: [Tensor; 2],
    /// The number of heads.
    pub heads: usize,
    /// How the projection is taken apart.
    pub packing: Packing,
}

impl MultiheadAttention {
    /// x (batch, length, width) → a view (batch, length, width) of a (length, batch, width) tensor.
    ///
    /// # Errors
    /// When shapes do not fit, or the simulated process has failed.
    pub fn forward(&self, x: &Tensor) -> SimResult<Tensor> {
        let query = x.transpose(0, 1)?;
        let &[length, batch, width] = query.shape() else {
            return Err(x.misfit("MultiheadAttention", format_args!("three dimensions are needed")));
        };
        let [q, k, v] = self.project(&query)?;
        let [q, k, v] = [q, k, v].map(|part| heads(part, [length, batch, self.heads]));
        let (q, k, v) = (q?, k?, v?);
        let mut attended = q.sdpa(&k, &v)?;
        // attn_output.permute(2, 0, 1, 3).contiguous().view(bsz * tgt_len, embed_dim)
        let view = attended.transpose(1, 2)?.transpose(0, 1)?;
        let copy = view.contiguous()?;
        drop(view);
        attended = copy.view(&[length * batch, width])?;
        drop(copy);
        let out = attended.linear(&self.output[0], &self.output[1])?;
        drop(attended);
        let out = out.view(&[length, batch, width])?;
        // multi_head_attention_forward returns: its q, k and v die.
        drop((q, k, v));
        out.transpose(0, 1)
    }

    /// `_in_projection_packed` for self-attention: query, key and value, (length, batch, width) each.
    fn project(&self, query: &Tensor) -> SimResult<[Tensor; 3]> {
        let &[length, batch, width] = query.shape() else {
            return Err(query.misfit("_in_projection_packed", format_args!("three dimensions")));
        };
        let projected = query.linear(&self.projection[0], &self.projection[1])?;
        match self.packing {
            Packing::Packed => {
                let copy = unpacked(&projected, [length, batch, width])?.contiguous()?;
                // `proj` is bound anew: the projection dies while the copy of it is pending.
                drop(projected);
                Ok([copy.select(0)?, copy.select(1)?, copy.select(2)?])
            }
            Packing::Chunked => {
                let part = |at: usize| projected.narrow(2, at * width, width)?.contiguous();
                // The projection dies when the function returns, while three copies are pending.
                Ok([part(0)?, part(1)?, part(2)?])
            }
        }
    }
}

/// `proj.unflatten(-1, (3, E)).unsqueeze(0).transpose(0, -2).squeeze(-2)` of a (outer, inner, 3·width)
/// projection: a view (3, outer, inner, width).
fn unpacked(projected: &Tensor, [outer, inner, width]: [usize; 3]) -> SimResult<Tensor> {
    projected.view(&[outer, inner, 3, width])?.transpose(0, 2)?.transpose(1, 2)
}

/// (length, batch, width) → (batch, heads, length, width of a head), by views alone.
fn heads(part: Tensor, [length, batch, heads]: [usize; 3]) -> SimResult<Tensor> {
    let width = part.shape()[2] / heads;
    part.view(&[length, batch * heads, width])?
        .transpose(0, 1)?
        .view(&[batch, heads, length, width])
}

/// `nn.TransformerEncoderLayer(width, heads, feed_forward, batch_first=True)` in eval mode: post-norm,
/// relu, not the fast path.
#[derive(Clone, Debug)]
pub struct TransformerBlock {
    /// The attention.
    pub attention: MultiheadAttention,
    /// Weight and bias of the linear layer up.
    pub up: [Tensor; 2],
    /// Weight and bias of the linear layer down.
    pub down: [Tensor; 2],
    /// Weight and bias of the first norm.
    pub norm1: [Tensor; 2],
    /// Weight and bias of the second norm.
    pub norm2: [Tensor; 2],
}

impl TransformerBlock {
    /// x (batch, length, width) → the same shape.
    ///
    /// # Errors
    /// When shapes do not fit, or the simulated process has failed.
    pub fn forward(&self, x: &Tensor) -> SimResult<Tensor> {
        // x = self.norm1(x + self._sa_block(x))
        let attended = self.attention.forward(x)?;
        let sum = x.add(&attended)?;
        drop(attended);
        let normed = sum.layer_norm(&self.norm1[0], &self.norm1[1])?;
        drop(sum);
        // self.linear2(self.dropout(self.activation(self.linear1(x))))
        let hidden = normed.linear(&self.up[0], &self.up[1])?;
        let activated = hidden.relu()?;
        drop(hidden);
        let down = activated.linear(&self.down[0], &self.down[1])?;
        drop(activated);
        // x = self.norm2(x + self._ff_block(x))
        let sum = normed.add(&down)?;
        drop(down);
        let out = sum.layer_norm(&self.norm2[0], &self.norm2[1])?;
        drop(sum);
        drop(normed);
        Ok(out)
    }
}

/// Linear, relu, linear.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// Weight and bias of the first layer.
    pub up: [Tensor; 2],
    /// Weight and bias of the second layer.
    pub down: [Tensor; 2],
}

impl Mlp {
    /// x (rows, inputs) → (rows, outputs).
    ///
    /// # Errors
    /// When shapes do not fit, or the simulated process has failed.
    pub fn forward(&self, x: &Tensor) -> SimResult<Tensor> {
        let hidden = x.linear(&self.up[0], &self.up[1])?;
        let activated = hidden.relu()?;
        drop(hidden);
        activated.linear(&self.down[0], &self.down[1])
    }
}

/// The minimal race reported for `.contiguous()`: a packed projection, its view of three parts with or
/// without a dense copy, attention.
#[derive(Clone, Debug)]
pub struct PackedProjection {
    /// Weight (3·width, width) and bias (3·width).
    pub projection: [Tensor; 2],
    /// The number of heads.
    pub heads: usize,
    /// Whether the view is copied.
    pub contiguous: bool,
    /// Whether the projection is kept alive until after the attention (it is not, in the report).
    pub keep: bool,
}

impl PackedProjection {
    /// x (batch, length, width) → (batch, heads, length, width of a head).
    ///
    /// # Errors
    /// When shapes do not fit, or the simulated process has failed.
    pub fn forward(&self, x: &Tensor) -> SimResult<Tensor> {
        let &[batch, length, width] = x.shape() else {
            return Err(x.misfit("PackedProjection", format_args!("three dimensions are needed")));
        };
        let projected = x.linear(&self.projection[0], &self.projection[1])?;
        let kept = self.keep.then(|| projected.clone());
        let mut parts = unpacked(&projected, [batch, length, width])?;
        // `proj` is bound to the view; the projection lives as long as a view of it.
        drop(projected);
        if self.contiguous {
            parts = parts.contiguous()?;
        }
        let split = |at: usize| {
            parts
                .select(at)?
                .reshape(&[batch, length, self.heads, width / self.heads])?
                .transpose(1, 2)
        };
        let out = split(0)?.sdpa(&split(1)?, &split(2)?)?;
        drop(parts);
        drop(kept);
        Ok(out)
    }
}
