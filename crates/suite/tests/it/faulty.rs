//! A device that does as another one, except that a hook sees every tensor on its way to the host:
//! it can change a number, fail, panic or never return.

use std::cell::Cell;
use std::sync::Arc;

use onelane_suite::{Caller, CandleDevice, CandleOps, Device, HostTensor, OpResult, Ops};

/// Called with who downloads, how many downloads that thread made before, and the data.
pub type Hook = dyn Fn(Caller, usize, &mut HostTensor) -> OpResult<()> + Send + Sync;

pub struct Faulty {
    inner: CandleDevice,
    hook: Arc<Hook>,
}

impl Faulty {
    pub fn new(
        hook: impl Fn(Caller, usize, &mut HostTensor) -> OpResult<()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { inner: CandleDevice::cpu(), hook: Arc::new(hook) })
    }
}

impl Device for Faulty {
    type Ops = FaultyOps;

    fn name(&self) -> String {
        "faulty".to_owned()
    }

    fn attach(&self, caller: Caller) -> OpResult<FaultyOps> {
        Ok(FaultyOps {
            inner: self.inner.attach(caller)?,
            hook: Arc::clone(&self.hook),
            caller,
            downloads: Cell::new(0),
        })
    }
}

pub struct FaultyOps {
    inner: CandleOps,
    hook: Arc<Hook>,
    caller: Caller,
    downloads: Cell<usize>,
}

type T = <CandleOps as Ops>::Tensor;

impl Ops for FaultyOps {
    type Tensor = T;

    fn download(&self, tensor: &T) -> OpResult<HostTensor> {
        let mut host = self.inner.download(tensor)?;
        let nth = self.downloads.replace(self.downloads.get() + 1);
        (self.hook)(self.caller, nth, &mut host)?;
        Ok(host)
    }

    fn upload(&self, host: &HostTensor) -> OpResult<T> {
        self.inner.upload(host)
    }
    fn synchronise(&self) -> OpResult<()> {
        self.inner.synchronise()
    }
    fn linear(&self, x: &T, weight: &T, bias: &T) -> OpResult<T> {
        self.inner.linear(x, weight, bias)
    }
    fn matmul(&self, a: &T, b: &T) -> OpResult<T> {
        self.inner.matmul(a, b)
    }
    fn bmm(&self, a: &T, b: &T) -> OpResult<T> {
        self.inner.bmm(a, b)
    }
    fn layer_norm(&self, x: &T, weight: &T, bias: &T) -> OpResult<T> {
        self.inner.layer_norm(x, weight, bias)
    }
    fn softmax(&self, x: &T) -> OpResult<T> {
        self.inner.softmax(x)
    }
    fn conv2d(&self, x: &T, weight: &T, bias: &T, padding: usize) -> OpResult<T> {
        self.inner.conv2d(x, weight, bias, padding)
    }
    fn gelu(&self, x: &T) -> OpResult<T> {
        self.inner.gelu(x)
    }
    fn relu(&self, x: &T) -> OpResult<T> {
        self.inner.relu(x)
    }
    fn add(&self, a: &T, b: &T) -> OpResult<T> {
        self.inner.add(a, b)
    }
    fn sdpa(&self, q: &T, k: &T, v: &T) -> OpResult<T> {
        self.inner.sdpa(q, k, v)
    }
    fn reshape(&self, x: &T, shape: &[usize]) -> OpResult<T> {
        self.inner.reshape(x, shape)
    }
    fn transpose(&self, x: &T, a: usize, b: usize) -> OpResult<T> {
        self.inner.transpose(x, a, b)
    }
    fn narrow(&self, x: &T, dim: usize, start: usize, length: usize) -> OpResult<T> {
        self.inner.narrow(x, dim, start, length)
    }
    fn contiguous(&self, x: &T) -> OpResult<T> {
        self.inner.contiguous(x)
    }
}
