//! The simulated MPS device as a device of the suite. Every number that it gives is simulated.
//!
//! Threads of a crew join the device as a party: the schedule, and not the operating system, decides in
//! which order they run, so that equal seeds give equal outcomes. A worker of a queue is a simulated
//! thread too, and is outside of the device while it waits for requests; which requests make up a batch
//! is the operating system's choice. With one worker that changes no result. With several it decides what
//! they do at once, so that their failures come and go from run to run.

use std::sync::{Arc, Mutex, PoisonError};

use onelane_sim::sync::SimBarrier;
use onelane_sim::{
    Attachment, HostTensor as SimHostTensor, Memo, Party, Profile, SimConfig, SimDevice, SimResult,
    SimStats, Tensor, Trace,
};

use crate::device::{Caller, Device, DeviceKind, Rendezvous};
use crate::host::HostTensor;
use crate::ops::{OpError, OpResult, Ops};

/// Bytes of results that the devices of one run keep for each other: the golden results of the largest
/// of the ten tests, and some more.
const MEMO_BYTES: usize = 512 << 20;

/// A simulated MPS device with its profile and the seed of its schedule.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use onelane_suite::{DeviceKind, Mode, SimMps, SuiteConfig, run_suite, test_named};
///
/// let device = Arc::new(SimMps::new("fork-2.9.1".parse()?, 0));
/// let bmm = test_named("BMM").expect("one of the ten");
/// let config = SuiteConfig::default().mode(Mode::Parallel).threads([2]).tests([bmm]);
/// let report = run_suite(&device, &config, &mut ())?;
/// assert_eq!(report.device_kind, DeviceKind::Simulated);
/// assert!(report.all_passed());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SimMps {
    config: SimConfig,
    device: SimDevice,
    /// The threads that run at once, once their number is known.
    party: Mutex<Option<Arc<Party>>>,
}

impl SimMps {
    /// A device of a profile; the seed chooses the order in which its threads run.
    pub fn new(profile: Profile, seed: u64) -> Self {
        Self::with(SimConfig::new(profile).seed(seed).memo(Memo::new(MEMO_BYTES)))
    }

    /// A device of a configuration: with another schedule, with a trace, or without a memo.
    pub fn with(config: SimConfig) -> Self {
        Self { device: SimDevice::new(config.clone()), config, party: Mutex::default() }
    }

    /// The simulated device itself.
    pub fn device(&self) -> &SimDevice {
        &self.device
    }

    /// What the device counted.
    pub fn stats(&self) -> SimStats {
        self.device.stats()
    }

    /// The device's events; empty unless its configuration says that they are recorded.
    pub fn trace(&self) -> Trace {
        self.device.trace()
    }

    fn party(&self) -> Option<Arc<Party>> {
        self.party.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn named<T>(operation: &'static str, result: SimResult<T>) -> OpResult<T> {
    result.map_err(|error| OpError::new(operation, error))
}

impl Device for SimMps {
    type Ops = SimOps;

    fn name(&self) -> String {
        format!("sim-mps:{}", self.config.profile.name)
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Simulated
    }

    fn seed(&self) -> Option<u64> {
        Some(self.config.seed)
    }

    fn attach(&self, caller: Caller) -> OpResult<SimOps> {
        let attachment = match (caller, self.party()) {
            (Caller::Thread(index), Some(party)) => party.join(index),
            (Caller::Thread(index), None) => self.device.attach(&format!("t{index}")),
            (Caller::Golden, _) => self.device.attach("golden"),
            (Caller::Worker, _) => self.device.attach("worker"),
        };
        Ok(SimOps { device: self.device.clone(), attachment: named("attach", attachment)? })
    }

    fn rendezvous(&self, threads: usize) -> Arc<dyn Rendezvous> {
        let names: Vec<String> = (0..threads).map(|thread| format!("t{thread}")).collect();
        let party = self.device.party(names.iter().map(String::as_str));
        *self.party.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(party));
        Arc::new(Meeting(SimBarrier::new(&self.device, threads)))
    }

    fn fresh(self: &Arc<Self>) -> OpResult<Arc<Self>> {
        Ok(Arc::new(Self::with(self.config.clone())))
    }
}

struct Meeting(SimBarrier);

impl Rendezvous for Meeting {
    fn meet(&self) {
        // When the simulated process has failed nobody waits: each thread's next call says why.
        let _ = self.0.wait();
    }
}

/// A thread's view of a simulated device. The thread is a simulated one for as long as this lives.
#[derive(Debug)]
pub struct SimOps {
    device: SimDevice,
    attachment: Attachment,
}

impl Ops for SimOps {
    type Tensor = Tensor;

    fn upload(&self, host: &HostTensor) -> OpResult<Tensor> {
        let host = SimHostTensor::shared(host.shape(), host.shared_data());
        named("upload", self.device.upload(&host))
    }

    fn download(&self, tensor: &Tensor) -> OpResult<HostTensor> {
        let host = named("download", tensor.download())?;
        Ok(HostTensor::shared(host.shape(), host.shared_data()))
    }

    fn synchronise(&self) -> OpResult<()> {
        named("synchronise", self.device.synchronise())
    }

    fn linear(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> OpResult<Tensor> {
        named("linear", x.linear(weight, bias))
    }

    fn matmul(&self, a: &Tensor, b: &Tensor) -> OpResult<Tensor> {
        named("matmul", a.matmul(b))
    }

    fn bmm(&self, a: &Tensor, b: &Tensor) -> OpResult<Tensor> {
        named("bmm", a.bmm(b))
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> OpResult<Tensor> {
        named("layer_norm", x.layer_norm(weight, bias))
    }

    fn softmax(&self, x: &Tensor) -> OpResult<Tensor> {
        named("softmax", x.softmax())
    }

    fn conv2d(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        padding: usize,
    ) -> OpResult<Tensor> {
        named("conv2d", x.conv2d(weight, bias, padding))
    }

    fn gelu(&self, x: &Tensor) -> OpResult<Tensor> {
        named("gelu", x.gelu())
    }

    fn relu(&self, x: &Tensor) -> OpResult<Tensor> {
        named("relu", x.relu())
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> OpResult<Tensor> {
        named("add", a.add(b))
    }

    fn sdpa(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> OpResult<Tensor> {
        named("sdpa", q.sdpa(k, v))
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

    fn pause(&self) {
        self.attachment.leave();
    }

    fn resume(&self) {
        // When the simulated process has failed, the next call says why.
        let _ = self.attachment.enter();
    }
}
