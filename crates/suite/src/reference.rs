//! The reference: plain Rust in f64, sharing no code with any engine.
//!
//! Single-threaded mode compares devices with it, the CPU engine too. Every operation is written as
//! its definition reads; only the loops' order is chosen for speed. Results are rounded to fp32
//! once, on download, so what lies between a device and the reference is the device's own rounding.
//!
//! Invariant: tensors are dense and row-major; a "view" is a copy.

use std::rc::Rc;

use rayon::prelude::*;

use crate::device::{Caller, Device};
use crate::host::HostTensor;
use crate::ops::{OpError, OpResult, Ops};

/// The reference as a device. Operations are spread over the CPU's cores.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Device for Reference {
    type Ops = ReferenceOps;

    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn attach(&self, _: Caller) -> OpResult<ReferenceOps> {
        Ok(ReferenceOps)
    }
}

/// A thread's view of the reference.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceOps;

/// A dense tensor of f64.
#[derive(Clone, Debug)]
pub struct ReferenceTensor {
    shape: Vec<usize>,
    data: Rc<Vec<f64>>,
}

/// PyTorch's default.
const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Rows of a product that share one pass over the right operand.
const ROWS_AT_ONCE: usize = 4;

impl ReferenceTensor {
    fn new(shape: Vec<usize>, data: Vec<f64>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Self { shape, data: Rc::new(data) }
    }

    fn last(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn map(&self, f: impl Fn(f64) -> f64 + Sync) -> Self {
        let data: &[f64] = &self.data;
        Self::new(self.shape.clone(), data.par_iter().map(|&x| f(x)).collect())
    }

    /// Rewrites each run of the last dimension.
    fn map_rows(&self, f: impl Fn(&mut [f64]) + Sync + Send) -> Self {
        let mut data = self.data.to_vec();
        data.par_chunks_mut(self.last().max(1)).for_each(f);
        Self::new(self.shape.clone(), data)
    }
}

fn misfit(operation: &str, operands: &[&ReferenceTensor]) -> OpError {
    let shapes: Vec<_> = operands.iter().map(|tensor| &tensor.shape).collect();
    OpError::new(operation, format!("the shapes do not fit: {shapes:?}"))
}

fn check(fits: bool, operation: &str, operands: &[&ReferenceTensor]) -> OpResult<()> {
    if fits { Ok(()) } else { Err(misfit(operation, operands)) }
}

/// (m, k) · (k, n) → (m, n).
fn product(a: &[f64], b: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    let blocks = out.par_chunks_mut(ROWS_AT_ONCE * n);
    blocks.enumerate().for_each(|(block, out)| {
        for inner in 0..k {
            let b = &b[inner * n..][..n];
            for (row, out) in out.chunks_mut(n).enumerate() {
                let a = a[(block * ROWS_AT_ONCE + row) * k + inner];
                for (out, b) in out.iter_mut().zip(b) {
                    *out += a * b;
                }
            }
        }
    });
    out
}

/// Exchanges two dimensions.
fn exchanged(x: &ReferenceTensor, a: usize, b: usize) -> ReferenceTensor {
    let rank = x.shape.len();
    let mut strides = vec![1; rank];
    for dim in (1..rank).rev() {
        strides[dim - 1] = strides[dim] * x.shape[dim];
    }
    let mut shape = x.shape.clone();
    shape.swap(a, b);
    strides.swap(a, b);
    let mut place = vec![0; rank];
    let mut data = Vec::with_capacity(x.data.len());
    for _ in 0..x.data.len() {
        let offset: usize = place.iter().zip(&strides).map(|(p, s)| p * s).sum();
        data.push(x.data[offset]);
        for dim in (0..rank).rev() {
            place[dim] += 1;
            if place[dim] < shape[dim] {
                break;
            }
            place[dim] = 0;
        }
    }
    ReferenceTensor::new(shape, data)
}

fn softmax_row(row: &mut [f64]) {
    let greatest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for x in &mut *row {
        *x = (*x - greatest).exp();
        sum += *x;
    }
    for x in row {
        *x /= sum;
    }
}

impl Ops for ReferenceOps {
    type Tensor = ReferenceTensor;

    fn upload(&self, host: &HostTensor) -> OpResult<ReferenceTensor> {
        let data = host.data().iter().map(|&x| f64::from(x)).collect();
        Ok(ReferenceTensor::new(host.shape().to_vec(), data))
    }

    fn download(&self, tensor: &ReferenceTensor) -> OpResult<HostTensor> {
        let data = tensor.data.iter().map(|&x| x as f32).collect();
        Ok(HostTensor::new(tensor.shape.clone(), data))
    }

    fn synchronise(&self) -> OpResult<()> {
        Ok(())
    }

    fn linear(
        &self,
        x: &ReferenceTensor,
        weight: &ReferenceTensor,
        bias: &ReferenceTensor,
    ) -> OpResult<ReferenceTensor> {
        let fits = weight.shape == [bias.last(), x.last()] && bias.shape.len() == 1;
        check(fits, "linear", &[x, weight, bias])?;
        let (inputs, outputs) = (x.last(), bias.last());
        let rows = x.data.len() / inputs;
        let turned = exchanged(weight, 0, 1);
        let mut out = product(&x.data, &turned.data, [rows, inputs, outputs]);
        let bias: &[f64] = &bias.data;
        for row in out.chunks_mut(outputs) {
            for (out, bias) in row.iter_mut().zip(bias) {
                *out += bias;
            }
        }
        let mut shape = x.shape.clone();
        shape.pop();
        shape.push(outputs);
        Ok(ReferenceTensor::new(shape, out))
    }

    fn matmul(&self, a: &ReferenceTensor, b: &ReferenceTensor) -> OpResult<ReferenceTensor> {
        let (&[m, k], &[inner, n]) = (&a.shape[..], &b.shape[..]) else {
            return Err(misfit("matmul", &[a, b]));
        };
        check(k == inner, "matmul", &[a, b])?;
        Ok(ReferenceTensor::new(vec![m, n], product(&a.data, &b.data, [m, k, n])))
    }

    fn bmm(&self, a: &ReferenceTensor, b: &ReferenceTensor) -> OpResult<ReferenceTensor> {
        let (&[batch, m, k], &[other, inner, n]) = (&a.shape[..], &b.shape[..]) else {
            return Err(misfit("bmm", &[a, b]));
        };
        check(batch == other && k == inner, "bmm", &[a, b])?;
        let mut out = Vec::with_capacity(batch * m * n);
        for at in 0..batch {
            let a = &a.data[at * m * k..][..m * k];
            let b = &b.data[at * k * n..][..k * n];
            out.extend(product(a, b, [m, k, n]));
        }
        Ok(ReferenceTensor::new(vec![batch, m, n], out))
    }

    fn layer_norm(
        &self,
        x: &ReferenceTensor,
        weight: &ReferenceTensor,
        bias: &ReferenceTensor,
    ) -> OpResult<ReferenceTensor> {
        let fits = weight.shape == [x.last()] && bias.shape == [x.last()];
        check(fits, "layer_norm", &[x, weight, bias])?;
        let (weight, bias): (&[f64], &[f64]) = (&weight.data, &bias.data);
        Ok(x.map_rows(|row| {
            let n = row.len() as f64;
            let mean = row.iter().sum::<f64>() / n;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let scale = (variance + LAYER_NORM_EPSILON).sqrt().recip();
            for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
                *x = (*x - mean) * scale * weight + bias;
            }
        }))
    }

    fn softmax(&self, x: &ReferenceTensor) -> OpResult<ReferenceTensor> {
        Ok(x.map_rows(softmax_row))
    }

    fn conv2d(
        &self,
        x: &ReferenceTensor,
        weight: &ReferenceTensor,
        bias: &ReferenceTensor,
        padding: usize,
    ) -> OpResult<ReferenceTensor> {
        let (&[batch, channels, height, width], &[filters, depth, kernel_h, kernel_w]) =
            (&x.shape[..], &weight.shape[..])
        else {
            return Err(misfit("conv2d", &[x, weight, bias]));
        };
        let fits = channels == depth
            && bias.shape == [filters]
            && height + 2 * padding >= kernel_h
            && width + 2 * padding >= kernel_w;
        check(fits, "conv2d", &[x, weight, bias])?;
        let out_h = height + 2 * padding - kernel_h + 1;
        let out_w = width + 2 * padding - kernel_w + 1;
        let mut out = vec![0.0; batch * filters * out_h * out_w];
        let (x, weight, bias): (&[f64], &[f64], &[f64]) = (&x.data, &weight.data, &bias.data);
        let planes = out.par_chunks_mut(out_h * out_w).enumerate();
        planes.for_each(|(plane, out)| {
            let (item, filter) = (plane / filters, plane % filters);
            out.fill(bias[filter]);
            for channel in 0..channels {
                let image = &x[(item * channels + channel) * height * width..][..height * width];
                let image = Image { data: image, width };
                for ky in 0..kernel_h {
                    for kx in 0..kernel_w {
                        let at = ((filter * channels + channel) * kernel_h + ky) * kernel_w + kx;
                        let shift = [ky, kx].map(|k| k as isize - padding as isize);
                        image.add_to(out, out_w, shift, weight[at]);
                    }
                }
            }
        });
        Ok(ReferenceTensor::new(vec![batch, filters, out_h, out_w], out))
    }

    fn gelu(&self, x: &ReferenceTensor) -> OpResult<ReferenceTensor> {
        Ok(x.map(|x| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))))
    }

    fn relu(&self, x: &ReferenceTensor) -> OpResult<ReferenceTensor> {
        Ok(x.map(|x| x.max(0.0)))
    }

    fn add(&self, a: &ReferenceTensor, b: &ReferenceTensor) -> OpResult<ReferenceTensor> {
        check(a.shape == b.shape, "add", &[a, b])?;
        let sum = a.data.iter().zip(&*b.data).map(|(a, b)| a + b).collect();
        Ok(ReferenceTensor::new(a.shape.clone(), sum))
    }

    fn sdpa(
        &self,
        q: &ReferenceTensor,
        k: &ReferenceTensor,
        v: &ReferenceTensor,
    ) -> OpResult<ReferenceTensor> {
        let &[batch, heads, length, width] = &q.shape[..] else {
            return Err(misfit("sdpa", &[q, k, v]));
        };
        check(k.shape == v.shape, "sdpa", &[q, k, v])?;
        let groups = [batch * heads, length, width];
        let q = self.reshape(q, &groups)?;
        let (k, v) = (self.reshape(k, &groups)?, self.reshape(v, &groups)?);
        let scale = (width as f64).sqrt().recip();
        let scores = self.bmm(&q, &exchanged(&k, 1, 2))?.map(|x| x * scale);
        let attended = self.bmm(&self.softmax(&scores)?, &v)?;
        self.reshape(&attended, &[batch, heads, length, width])
    }

    fn reshape(&self, x: &ReferenceTensor, shape: &[usize]) -> OpResult<ReferenceTensor> {
        if shape.iter().product::<usize>() != x.data.len() {
            let text = format!("{:?} does not fit into {shape:?}", x.shape);
            return Err(OpError::new("reshape", text));
        }
        Ok(ReferenceTensor { shape: shape.to_vec(), data: Rc::clone(&x.data) })
    }

    fn transpose(&self, x: &ReferenceTensor, a: usize, b: usize) -> OpResult<ReferenceTensor> {
        check(a.max(b) < x.shape.len(), "transpose", &[x])?;
        Ok(exchanged(x, a, b))
    }

    fn narrow(
        &self,
        x: &ReferenceTensor,
        dim: usize,
        start: usize,
        length: usize,
    ) -> OpResult<ReferenceTensor> {
        let fits = x.shape.get(dim).is_some_and(|&n| start + length <= n);
        check(fits, "narrow", &[x])?;
        let inner: usize = x.shape[dim + 1..].iter().product();
        let mut data = Vec::with_capacity(x.data.len() / x.shape[dim] * length);
        for outer in x.data.chunks(x.shape[dim] * inner) {
            data.extend_from_slice(&outer[start * inner..(start + length) * inner]);
        }
        let mut shape = x.shape.clone();
        shape[dim] = length;
        Ok(ReferenceTensor::new(shape, data))
    }

    fn contiguous(&self, x: &ReferenceTensor) -> OpResult<ReferenceTensor> {
        Ok(x.clone())
    }
}

/// One channel of one image.
#[derive(Clone, Copy)]
struct Image<'a> {
    data: &'a [f64],
    width: usize,
}

impl Image<'_> {
    /// Adds `factor · self[y + shift_y][x + shift_x]` to every `out[y][x]`, rows of `out_w`;
    /// outside the image there are zeros.
    fn add_to(&self, out: &mut [f64], out_w: usize, shift: [isize; 2], factor: f64) {
        let [shift_y, shift_x] = shift;
        let height = (self.data.len() / self.width) as isize;
        let first_x = (-shift_x).max(0) as usize;
        let end_x = (self.width as isize - shift_x).clamp(0, out_w as isize) as usize;
        for (y, out) in out.chunks_mut(out_w).enumerate() {
            let from = y as isize + shift_y;
            if from < 0 || from >= height || first_x >= end_x {
                continue;
            }
            let row = &self.data[from as usize * self.width..][..self.width];
            let row = &row[(first_x as isize + shift_x) as usize..];
            for (out, x) in out[first_x..end_x].iter_mut().zip(row) {
                *out += factor * x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], data: &[f64]) -> ReferenceTensor {
        ReferenceTensor::new(shape.to_vec(), data.to_vec())
    }

    /// 0, 1, 2, …
    fn counting(shape: &[usize]) -> ReferenceTensor {
        let data: Vec<f64> = (0..shape.iter().product()).map(|i| i as f64).collect();
        tensor(shape, &data)
    }

    fn close(found: &ReferenceTensor, expected: &[f64]) {
        assert_eq!(found.data.len(), expected.len());
        for (found, expected) in found.data.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    #[test]
    fn products_by_hand() {
        let ops = ReferenceOps;
        let (a, b) = (counting(&[2, 3]), counting(&[3, 2]));
        close(&ops.matmul(&a, &b).unwrap(), &[10.0, 13.0, 28.0, 40.0]);
        let out = ops.linear(&a, &counting(&[2, 3]), &tensor(&[2], &[1.0, -1.0]));
        close(&out.unwrap(), &[6.0, 13.0, 15.0, 49.0]);
        // More rows than one block holds.
        let tall = ops.matmul(&counting(&[5, 1]), &tensor(&[1, 1], &[2.0]));
        close(&tall.unwrap(), &[0.0, 2.0, 4.0, 6.0, 8.0]);
        let out = ops.bmm(&counting(&[2, 1, 2]), &counting(&[2, 2, 1]));
        close(&out.unwrap(), &[1.0, 13.0]);
    }

    #[test]
    fn convolution_by_hand() {
        let out = ReferenceOps.conv2d(
            &counting(&[1, 1, 3, 3]),
            &tensor(&[1, 1, 3, 3], &[1.0, 0.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 100.0]),
            &tensor(&[1], &[0.5]),
            1,
        );
        // Upper left · 1, centre · 10, lower right · 100, and the bias.
        let expected = [400.5, 510.5, 20.5, 730.5, 840.5, 51.5, 60.5, 73.5, 84.5];
        close(&out.unwrap(), &expected);
    }

    #[test]
    fn activations_and_norms_by_hand() {
        let ops = ReferenceOps;
        let x = tensor(&[1, 3], &[-1.0, 0.0, 1.0]);
        close(&ops.gelu(&x).unwrap(), &[-0.158_655_25, 0.0, 0.841_344_75]);
        close(&ops.softmax(&x).unwrap(), &[0.090_030_57, 0.244_728_47, 0.665_240_96]);
        let (weight, bias) = (tensor(&[3], &[1.0, 1.0, 2.0]), tensor(&[3], &[0.0, 0.0, 1.0]));
        let normed = ops.layer_norm(&x, &weight, &bias).unwrap();
        close(&normed, &[-1.224_735_69, 0.0, 3.449_471_37]);
    }

    #[test]
    fn views_by_hand() {
        let ops = ReferenceOps;
        let x = counting(&[2, 3, 2]);
        let turned = ops.transpose(&x, 0, 2).unwrap();
        assert_eq!(turned.shape, [2, 3, 2]);
        let expected = [0.0, 6.0, 2.0, 8.0, 4.0, 10.0, 1.0, 7.0, 3.0, 9.0, 5.0, 11.0];
        close(&turned, &expected);
        close(&ops.narrow(&x, 1, 2, 1).unwrap(), &[4.0, 5.0, 10.0, 11.0]);
    }

    #[test]
    fn attention_with_equal_keys_averages() {
        let q = counting(&[1, 1, 2, 2]);
        let v = tensor(&[1, 1, 2, 2], &[1.0, 2.0, 3.0, 6.0]);
        let k = tensor(&[1, 1, 2, 2], &[1.0, 1.0, 1.0, 1.0]);
        let out = ReferenceOps.sdpa(&q, &k, &v).unwrap();
        close(&out, &[2.0, 4.0, 2.0, 4.0]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let ops = ReferenceOps;
        let error = ops.matmul(&counting(&[2, 3]), &counting(&[2, 3])).unwrap_err();
        assert_eq!(error.to_string(), "matmul: the shapes do not fit: [[2, 3], [2, 3]]");
        assert!(ops.narrow(&counting(&[2]), 0, 1, 2).is_err());
        assert!(ops.reshape(&counting(&[2]), &[3]).is_err());
    }
}
