//! The steps of an encoder's layer as candle operations: fused on the CPU, composed of candle's own
//! elsewhere. Both compute the same function, which the tests hold them to.

use candle_core::{
    CpuStorage, CustomOp2, D, InplaceOp2, InplaceOp3, Layout, Result, Shape, Tensor,
};

use crate::activation::Activation;
use crate::cpu::{self, Heads, NormParams, Projected, Sequence};
use crate::distances::{Distances, apart};
use crate::rotary::Rotary;

/// Added to the scores of keys that a query does not see: e to this power is zero.
pub(crate) const MASKED: f32 = -1e30;

/// The elements of a contiguous f32 tensor.
fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = contiguous(layout)?;
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The same, to write to.
fn elements_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let (start, end) = contiguous(layout)?;
    match storage {
        CpuStorage::F32(data) => Ok(&mut data[start..end]),
        _ => candle_core::bail!("expected a tensor of f32"),
    }
}

fn contiguous(layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(range) => Ok(range),
        None => candle_core::bail!("expected a contiguous tensor"),
    }
}

/// `activation(x + bias)` for x (tokens, width) and bias (width).
///
/// Takes x, which the CPU overwrites: it must be the only tensor on its storage.
pub(crate) fn bias_activation(x: Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.inplace_op2(bias, &BiasActivation(activation))?;
        return Ok(x);
    }
    bias_activation_composed(&x, bias, activation)
}

fn bias_activation_composed(x: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    activated(&x.broadcast_add(bias)?, activation)
}

fn activated(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::GeluErf => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
    }
}

/// `activation(value) * gate`, (tokens, width), of x (tokens, 2 * width): values, then gates, both
/// without their bias (2 * width).
pub(crate) fn gated(x: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.apply_op2_no_bwd(bias, &Gated(activation));
    }
    gated_composed(x, bias, activation)
}

fn gated_composed(x: &Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    let x = x.broadcast_add(bias)?;
    let width = x.dim(1)? / 2;
    let part = |i| x.narrow(1, i * width, width)?.contiguous();
    activated(&part(0)?, activation)? * part(1)?
}

struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, bias) = (elements(x, xl)?, elements(bias, bl)?);
        let mut out = vec![0_f32; x.len() / 2];
        cpu::gated(x, bias, self.0, &mut out);
        let shape = Shape::from((x.len() / bias.len(), bias.len() / 2));
        Ok((CpuStorage::F32(out), shape))
    }
}

/// `x + y`, both (tokens, width).
///
/// Takes x, which the CPU overwrites: nobody else may read its storage afterwards.
pub(crate) fn add(x: Tensor, y: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.inplace_op2(y, &Add(x.dim(1)?))?;
        return Ok(x);
    }
    x + y
}

/// With the width.
struct Add(usize);

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add-in-place"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout, y: &CpuStorage, yl: &Layout) -> Result<()> {
        cpu::add(elements_mut(x, xl)?, elements(y, yl)?, self.0);
        Ok(())
    }
}

struct BiasActivation(Activation);

impl InplaceOp2 for BiasActivation {
    fn name(&self) -> &'static str {
        "bias-activation"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout, b: &CpuStorage, bl: &Layout) -> Result<()> {
        cpu::bias_activation(elements_mut(x, xl)?, elements(b, bl)?, self.0);
        Ok(())
    }
}

/// "Add bias and residual, then normalise".
pub(crate) struct Norm {
    /// (3, width): the bias of the product before; scale; shift.
    params: Tensor,
    eps: f32,
}

impl Norm {
    /// From three tensors of (width).
    pub fn new(bias: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f64) -> Result<Self> {
        Ok(Self { params: Tensor::stack(&[bias, gamma, beta], 0)?, eps: eps as f32 })
    }

    /// `LayerNorm(x + bias + residual)`, all (tokens, width).
    ///
    /// Takes x, which the CPU overwrites: it must be the only tensor on its storage.
    pub fn add_forward(&self, x: Tensor, residual: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            x.inplace_op3(residual, &self.params, &AddNorm { eps: self.eps })?;
            return Ok(x);
        }
        self.add_composed(&x, residual)
    }

    /// `LayerNorm(x + bias)`, x (tokens, width).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            return x.apply_op2_no_bwd(&self.params, &PlainNorm { eps: self.eps });
        }
        self.composed(x)
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let param = |i| self.params.get(i);
        let x = x.broadcast_add(&param(0)?)?;
        candle_nn::ops::layer_norm(&x, &param(1)?, &param(2)?, self.eps)
    }

    fn add_composed(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let param = |i| self.params.get(i);
        let x = (x.broadcast_add(&param(0)?)? + residual)?;
        candle_nn::ops::layer_norm(&x, &param(1)?, &param(2)?, self.eps)
    }
}

struct AddNorm {
    eps: f32,
}

impl InplaceOp3 for AddNorm {
    fn name(&self) -> &'static str {
        "add-layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        xl: &Layout,
        residual: &CpuStorage,
        rl: &Layout,
        params: &CpuStorage,
        pl: &Layout,
    ) -> Result<()> {
        let params = norm_params(elements(params, pl)?, self.eps);
        cpu::add_layer_norm(elements_mut(x, xl)?, elements(residual, rl)?, params);
        Ok(())
    }
}

/// The rows of (3, width).
fn norm_params(params: &[f32], eps: f32) -> NormParams<'_> {
    let (bias, rest) = params.split_at(params.len() / 3);
    let (gamma, beta) = rest.split_at(bias.len());
    NormParams { bias, gamma, beta, eps }
}

struct PlainNorm {
    eps: f32,
}

impl CustomOp2 for PlainNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        params: &CpuStorage,
        pl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = elements(x, xl)?;
        let mut out = vec![0_f32; x.len()];
        cpu::layer_norm(x, norm_params(elements(params, pl)?, self.eps), &mut out);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

/// What an attention reads.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    /// (tokens, 3 * width): queries, keys and values, without their bias.
    pub qkv: &'a Tensor,
    /// (3 * width).
    pub bias: &'a Tensor,
    pub heads: Heads,
    /// What queries and keys are turned by, in a model that does.
    pub rotary: Option<&'a Rotary>,
}

/// Which keys a query of a sequence sees, and what is added to their scores.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scope<'a> {
    /// How many tokens away a key may be; `None` sees all.
    pub window: Option<usize>,
    /// What is added to the scores, in a model that does.
    pub distances: Option<&'a Distances>,
}

/// Self-attention of each sequence by the CPU kernel, which reads real tokens only; the result is
/// (tokens, width).
pub(crate) fn attention_ragged(
    input: Attention<'_>,
    scope: Scope<'_>,
    sequences: &[Sequence],
) -> Result<Tensor> {
    let Attention { qkv, bias, heads, rotary } = input;
    qkv.apply_op2_no_bwd(bias, &RaggedAttention { sequences, heads, rotary, scope })
}

struct RaggedAttention<'a> {
    sequences: &'a [Sequence],
    heads: Heads,
    rotary: Option<&'a Rotary>,
    scope: Scope<'a>,
}

impl CustomOp2 for RaggedAttention<'_> {
    fn name(&self) -> &'static str {
        "ragged-attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        ql: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let qkv = elements(qkv, ql)?;
        let width = self.heads.width();
        let tokens = qkv.len() / (3 * width);
        let mut out = vec![0_f32; tokens * width];
        let bias = elements(bias, bl)?;
        let Scope { window, distances } = self.scope;
        let (heads, rotary) = (self.heads, self.rotary);
        let input = Projected { qkv, bias, heads, distances, rotary, window };
        cpu::attention(input, self.sequences, &mut out);
        Ok((CpuStorage::F32(out), Shape::from((tokens, width))))
    }
}

/// Self-attention of padded rows by candle's own operations, on any device.
///
/// Tokens = rows * length; `mask` is (rows, 1, 1 or length, length): 0 for a key that the query sees,
/// a large negative number for another. `added` is (1, heads, length, length).
pub(crate) fn attention_padded(
    input: Attention<'_>,
    mask: &Tensor,
    added: Option<&Tensor>,
) -> Result<Tensor> {
    let Attention { qkv, bias, heads, rotary } = input;
    let (rows, _, _, length) = mask.dims4()?;
    let qkv = qkv.broadcast_add(bias)?.reshape((rows, length, 3, heads.count, heads.size))?;
    let part = |i| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
    let (mut q, mut k, v) = (part(0)?, part(1)?, part(2)?);
    if let Some(rotary) = rotary {
        (q, k) = (rotary.turn(&q)?, rotary.turn(&k)?);
    }
    let mut scores = q.matmul(&k.transpose(D::Minus2, D::Minus1)?)?.broadcast_add(mask)?;
    if let Some(added) = added {
        scores = scores.broadcast_add(added)?;
    }
    let out = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
    out.transpose(1, 2)?.contiguous()?.reshape((rows * length, heads.width()))
}

/// A mask of padding, (rows, 1, 1, length), and of keys further away than `window` tokens: (rows, 1,
/// length, length). `positions` is (length).
pub(crate) fn windowed(mask: &Tensor, positions: &Tensor, window: usize) -> Result<Tensor> {
    // By how many tokens a key is too far away. One is enough, and what is more does no harm.
    let beyond = apart(positions)?.abs()?.affine(1.0, -(window as f64))?.relu()?;
    mask.broadcast_add(&(beyond * f64::from(MASKED))?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Numbers in -1..1 that differ everywhere.
    fn tensor(shape: &[usize], seed: f32) -> Tensor {
        let n: usize = shape.iter().product();
        let data: Vec<f32> = (0..n).map(|i| ((i as f32 + seed) * 0.734_1 + seed).sin()).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    fn difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        flat(a).iter().zip(flat(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn fused_and_composed_activations_agree() {
        // 700 rows are several tasks; a width of 37 leaves a tail in every vector loop.
        for activation in [Activation::GeluErf, Activation::GeluTanh, Activation::Relu] {
            let x = (tensor(&[700, 37], 1.0) * 4.0).unwrap();
            let bias = tensor(&[37], 2.0);
            let composed = bias_activation_composed(&x, &bias, activation).unwrap();
            let fused = bias_activation(x.copy().unwrap(), &bias, activation).unwrap();
            assert!(difference(&fused, &composed) < 2e-6, "{activation:?}");
        }
    }

    #[test]
    fn fused_and_composed_normalisations_agree() {
        let (bias, gamma, beta) = (tensor(&[37], 1.0), tensor(&[37], 2.0), tensor(&[37], 3.0));
        let norm = Norm::new(&bias, &gamma, &beta, 1e-12).unwrap();
        let (x, residual) = (tensor(&[700, 37], 4.0), tensor(&[700, 37], 5.0));
        let composed = norm.add_composed(&x, &residual).unwrap();
        let fused = norm.add_forward(x.copy().unwrap(), &residual).unwrap();
        assert!(difference(&fused, &composed) < 5e-6);
        let composed = norm.composed(&x).unwrap();
        assert!(difference(&norm.forward(&x).unwrap(), &composed) < 5e-6);
    }

    #[test]
    fn fused_and_composed_gates_agree() {
        for activation in [Activation::GeluErf, Activation::GeluTanh, Activation::Relu] {
            let x = (tensor(&[700, 74], 1.0) * 4.0).unwrap();
            let bias = tensor(&[74], 2.0);
            let composed = gated_composed(&x, &bias, activation).unwrap();
            let fused = gated(&x, &bias, activation).unwrap();
            assert!(difference(&fused, &composed) < 1e-5, "{activation:?}");
        }
    }

    #[test]
    fn sums_in_place_are_sums() {
        let (x, y) = (tensor(&[700, 37], 1.0), tensor(&[700, 37], 2.0));
        let composed = (&x + &y).unwrap();
        assert_eq!(difference(&add(x.copy().unwrap(), &y).unwrap(), &composed), 0.0);
    }

    #[test]
    fn ragged_attention_is_padded_attention_without_the_padding() {
        // Head sizes below, at and above the width of a vector; lengths with every kind of tail;
        // windows of none, of less than a vector, of more than one, and of more than any text.
        for (count, size, apart, turned, window) in [
            (4, 8, false, false, None),
            (2, 16, false, false, None),
            (3, 20, true, false, None),
            (1, 64, false, true, None),
            (2, 16, true, false, None),
            (2, 16, false, true, Some(0)),
            (3, 20, false, true, Some(5)),
            (1, 64, true, false, Some(37)),
            (2, 6, false, true, Some(500)),
        ] {
            let heads = Heads { count, size };
            let lengths = [1, 3, 4, 16, 17, 70, 133];
            let length = 133;
            let qkv = tensor(&[lengths.len() * length, 3 * heads.width()], 0.5);
            let bias = tensor(&[3 * heads.width()], 1.5);
            let mask: Vec<f32> = lengths
                .iter()
                .flat_map(|&real| (0..length).map(move |i| if i < real { 0.0 } else { -1e30 }))
                .collect();
            let mask = Tensor::from_vec(mask, (lengths.len(), 1, 1, length), &Device::Cpu).unwrap();
            let positions = Tensor::arange(2_f32, 2.0 + length as f32, &Device::Cpu).unwrap();
            let mask = match window {
                Some(window) => windowed(&mask, &positions, window).unwrap(),
                None => mask,
            };
            let weights = (tensor(&[32, count], 2.5) * 3.0).unwrap();
            let distances = Distances::new(&weights, 140, &Device::Cpu).unwrap();
            let grid = distances.grid(&positions).unwrap();
            let rotary = Rotary::new(140, size, 100.0, &Device::Cpu).unwrap();
            let rotary = turned.then_some(&rotary);
            let input = Attention { qkv: &qkv, bias: &bias, heads, rotary };
            let padded = attention_padded(input, &mask, apart.then_some(&grid)).unwrap();
            let sequences = |few: bool| -> Vec<Sequence> {
                let all = lengths.iter().enumerate();
                let all = all.map(|(row, &real)| Sequence { start: row * length, length: real });
                // Few are cut into blocks of queries.
                all.skip(if few { lengths.len() - 1 } else { 0 }).collect()
            };
            let scope = Scope { window, distances: apart.then_some(&distances) };
            for sequences in [sequences(false), sequences(true)] {
                let ragged = attention_ragged(input, scope, &sequences).unwrap();
                for Sequence { start, length } in sequences {
                    let rows = |t: &Tensor| t.narrow(0, start, length).unwrap();
                    let off = difference(&rows(&ragged), &rows(&padded));
                    let what = format!("heads {count} x {size}, {apart}, {turned}, {window:?}");
                    assert!(off < 5e-6, "{what}, length {length}: {off}");
                }
            }
        }
    }
}
