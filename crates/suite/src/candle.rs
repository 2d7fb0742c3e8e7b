//! candle as a device of the suite: CPU, Metal and CUDA.
//!
//! Attention is composed of products and a softmax, so that the same steps run on every backend.
//! Where a candle kernel takes dense tensors only, a dense copy is made first.

use candle_core::{Tensor, bail};

use crate::device::{Caller, Device};
use crate::host::HostTensor;
use crate::ops::{OpError, OpResult, Ops};

/// A candle device with the name that reports give it.
#[derive(Clone, Debug)]
pub struct CandleDevice {
    name: String,
    device: candle_core::Device,
}

impl CandleDevice {
    /// Wraps an open device.
    pub fn new(name: impl Into<String>, device: candle_core::Device) -> Self {
        Self { name: name.into(), device }
    }

    /// The CPU.
    pub fn cpu() -> Self {
        Self::new("cpu", candle_core::Device::Cpu)
    }
}

impl Device for CandleDevice {
    type Ops = CandleOps;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn attach(&self, _: Caller) -> OpResult<CandleOps> {
        // candle's devices are handles that threads share; there is no thread's own part to make.
        Ok(CandleOps(self.device.clone()))
    }
}

/// A thread's view of a candle device.
#[derive(Clone, Debug)]
pub struct CandleOps(candle_core::Device);

/// PyTorch's default.
const LAYER_NORM_EPSILON: f32 = 1e-5;

fn named<T>(operation: &'static str, result: candle_core::Result<T>) -> OpResult<T> {
    result.map_err(|error| OpError::new(operation, error))
}

impl Ops for CandleOps {
    type Tensor = Tensor;

    fn upload(&self, host: &HostTensor) -> OpResult<Tensor> {
        named("upload", Tensor::from_slice(host.data(), host.shape(), &self.0))
    }

    fn download(&self, tensor: &Tensor) -> OpResult<HostTensor> {
        let data = tensor.flatten_all().and_then(|flat| flat.to_vec1());
        Ok(HostTensor::new(tensor.dims(), named("download", data)?))
    }

    fn synchronise(&self) -> OpResult<()> {
        named("synchronise", self.0.synchronize())
    }

    fn linear(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> OpResult<Tensor> {
        let linear = || {
            use candle_nn::Module;
            candle_nn::Linear::new(weight.clone(), Some(bias.clone())).forward(&x.contiguous()?)
        };
        named("linear", linear())
    }

    fn matmul(&self, a: &Tensor, b: &Tensor) -> OpResult<Tensor> {
        named("matmul", a.matmul(b))
    }

    fn bmm(&self, a: &Tensor, b: &Tensor) -> OpResult<Tensor> {
        named("bmm", a.matmul(b))
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> OpResult<Tensor> {
        let normed = x
            .contiguous()
            .and_then(|x| candle_nn::ops::layer_norm(&x, weight, bias, LAYER_NORM_EPSILON));
        named("layer_norm", normed)
    }

    fn softmax(&self, x: &Tensor) -> OpResult<Tensor> {
        named("softmax", x.contiguous().and_then(|x| candle_nn::ops::softmax_last_dim(&x)))
    }

    fn conv2d(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        padding: usize,
    ) -> OpResult<Tensor> {
        let conv2d = || {
            let filters = bias.dims1()?;
            let out = x.conv2d(weight, padding, 1, 1, 1)?;
            out.broadcast_add(&bias.reshape((1, filters, 1, 1))?)
        };
        named("conv2d", conv2d())
    }

    fn gelu(&self, x: &Tensor) -> OpResult<Tensor> {
        named("gelu", x.gelu_erf())
    }

    fn relu(&self, x: &Tensor) -> OpResult<Tensor> {
        named("relu", x.relu())
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> OpResult<Tensor> {
        named("add", a.add(b))
    }

    fn sdpa(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> OpResult<Tensor> {
        let sdpa = || {
            let [_, _, _, width] = *q.dims() else {
                bail!("q has shape {:?}, not (batch, heads, length, width)", q.dims())
            };
            let scale = (width as f64).sqrt().recip();
            let scores = q.contiguous()?.matmul(&k.t()?.contiguous()?)?;
            let shares = candle_nn::ops::softmax_last_dim(&(scores * scale)?)?;
            shares.matmul(&v.contiguous()?)
        };
        named("sdpa", sdpa())
    }

    fn reshape(&self, x: &Tensor, shape: &[usize]) -> OpResult<Tensor> {
        named("reshape", x.reshape(shape))
    }

    fn transpose(&self, x: &Tensor, a: usize, b: usize) -> OpResult<Tensor> {
        named("transpose", x.transpose(a, b))
    }

    fn narrow(&self, x: &Tensor, dim: usize, start: usize, length: usize) -> OpResult<Tensor> {
        named("narrow", x.narrow(dim, start, length))
    }

    fn contiguous(&self, x: &Tensor) -> OpResult<Tensor> {
        named("contiguous", x.contiguous())
    }
}
