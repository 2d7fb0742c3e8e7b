//! CUDA for an engine that has the device to itself: no events where one stream needs none, and passes
//! that are recorded once, as CUDA graphs.
//!
//! The only file of this crate with `unsafe`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaGraph, CudaStream, HostSlice, PinnedHostSlice, SyncOnDrop,
};
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Device, Result, Storage, Tensor, bail};

/// Tells a device that was just opened that one stream is all there will be: it need not record two
/// events for each operation. Its tensors must stay where they are made: in an engine that waits for the
/// device before it returns.
pub(crate) fn keep_to_one_stream(device: &Device) {
    if let Device::Cuda(device) = device {
        // SAFETY: nobody else has this device object or a tensor of it. Loading, and each call that
        // succeeds, ends with waiting for the device; one that fails leaves at most work on tensors of
        // its own. So what the next call shares with it, the weights, is only read, whatever thread makes it.
        unsafe { device.disable_event_tracking() };
    }
}

/// The passes of a model that were recorded, each with host memory of its own that the device copies
/// from and to by itself.
///
/// A pass of hundreds of operations is one call of the driver then (docs/decisions has the figures).
pub(crate) struct Graphs<K> {
    device: CudaDevice,
    /// The thread that records and runs them. What candle uploads once for all passes, the shapes of
    /// tensors, lives as long as the thread that did.
    owner: ThreadId,
    /// `None`: that pass could not be recorded.
    recorded: Mutex<HashMap<K, Option<Recorded>>>,
}

impl<K: Eq + Hash> Graphs<K> {
    /// None yet, for a CUDA device; to be used by the calling thread.
    pub(crate) fn new(device: &Device) -> Option<Self> {
        let Device::Cuda(device) = device else { return None };
        let owner = std::thread::current().id();
        Some(Self { device: device.clone(), owner, recorded: Mutex::default() })
    }

    /// Runs the pass of `key`, which the first call records: sends `count` numbers, which `fill`
    /// writes, through `work`, and has `read` look at what came back. `None`: it has to be run
    /// otherwise.
    ///
    /// `fill` may leave numbers as the pass before had them.
    pub(crate) fn run<T>(
        &self,
        key: K,
        count: usize,
        fill: impl FnOnce(&mut [f32]),
        work: impl Fn(Tensor) -> Result<Tensor>,
        read: impl FnOnce(&[f32]) -> T,
    ) -> Result<Option<T>> {
        if std::thread::current().id() != self.owner {
            return Ok(None);
        }
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let pass = match recorded.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Recorded::new(&self.device, count, work)?),
        };
        pass.as_mut().map(|pass| pass.run(fill, read)).transpose()
    }
}

/// One pass: a copy to the device, the work, and a copy back.
struct Recorded {
    graph: CudaGraph,
    stream: Arc<CudaStream>,
    there: PinnedHostSlice<f32>,
    back: PinnedHostSlice<f32>,
}

// SAFETY: the driver wants calls with one graph to come one after another, from whatever thread. It is
// reached through the mutex of `Graphs`, or by who owns that.
unsafe impl Send for Recorded {}

impl Recorded {
    /// Runs `work` once, for what it may do only the first time, and records it. `None`: it cannot be
    /// recorded.
    fn new(
        device: &CudaDevice,
        count: usize,
        work: impl Fn(Tensor) -> Result<Tensor>,
    ) -> Result<Option<Self>> {
        let stream = device.cuda_stream();
        let mut there = pinned(&stream, count)?;
        let numbers = ByHand(there.as_mut_slice().w()?);
        // What is uploaded while this lives, the shapes of tensors, is uploaded once and kept.
        let _kept = device.enable_cuda_graph_htod_cache();
        let wanted = work(upload(device, &numbers)?)?.elem_count();
        stream.synchronize().w()?;
        let mut back = pinned(&stream, wanted)?;
        let mut answer = ByHand(back.as_mut_slice().w()?);
        let recording = Recording::begin(&stream)?;
        let pass = upload(device, &numbers)
            .and_then(work)
            .and_then(|y| download(&stream, &y.contiguous()?, &mut answer));
        let graph = recording.end();
        match pass.and(graph) {
            Ok(Some(graph)) => Ok(Some(Self { graph, stream, there, back })),
            Ok(None) => Ok(None),
            Err(error) => {
                tracing::warn!(%error, "a pass cannot be recorded as a CUDA graph: it will be slower");
                Ok(None)
            }
        }
    }

    fn run<T>(
        &mut self,
        fill: impl FnOnce(&mut [f32]),
        read: impl FnOnce(&[f32]) -> T,
    ) -> Result<T> {
        // One that failed may have left the device copying from it.
        self.stream.synchronize().w()?;
        fill(self.there.as_mut_slice().w()?);
        self.graph.launch().w()?;
        self.stream.synchronize().w()?;
        Ok(read(self.back.as_slice().w()?))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // The memory goes after this; the device must be done with it, whatever thread this is. If it
        // cannot say so it is lost, and copies no more.
        let _ = self.stream.context().synchronize();
    }
}

/// What is given to the stream while this lives is recorded and not done.
struct Recording<'a>(Option<&'a Arc<CudaStream>>);

impl<'a> Recording<'a> {
    fn begin(stream: &'a Arc<CudaStream>) -> Result<Self> {
        // Other threads may go on with what they do to the device.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).w()?;
        Ok(Self(Some(stream)))
    }

    fn end(mut self) -> Result<Option<CudaGraph>> {
        self.0.take().map_or(Ok(None), |stream| stream.end_capture(CUgraphInstantiate_flags(0)).w())
    }
}

/// A panic must not leave the stream recording: the engine that is built next on this thread has it too.
impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            let _ = stream.end_capture(CUgraphInstantiate_flags(0));
        }
    }
}

/// Page-locked memory, zeros.
fn pinned(stream: &CudaStream, count: usize) -> Result<PinnedHostSlice<f32>> {
    // SAFETY: it is written before anybody reads it.
    let mut slice = unsafe { stream.context().alloc_pinned_with_flags::<f32>(count, 0) }.w()?;
    // SAFETY: it has room for so many numbers, and zeros are numbers.
    unsafe { slice.as_mut_ptr().w()?.write_bytes(0, count) };
    Ok(slice)
}

fn upload(device: &CudaDevice, numbers: &ByHand<'_>) -> Result<Tensor> {
    let count = numbers.0.len();
    // SAFETY: the copy writes all of it, in the order of the stream, before anything reads it.
    let mut slice = unsafe { device.alloc::<f32>(count) }?;
    // Not through the device: it would keep them.
    device.cuda_stream().memcpy_htod(numbers, &mut slice).w()?;
    let storage = CudaStorage::wrap_cuda_slice(slice, device.clone());
    Ok(Tensor::from_storage(Storage::Cuda(storage), count, BackpropOp::none(), false))
}

/// Copies a contiguous tensor.
fn download(stream: &Arc<CudaStream>, tensor: &Tensor, to: &mut ByHand<'_>) -> Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { bail!("a tensor that is not on the device") };
    let Some((from, end)) = layout.contiguous_offsets() else { bail!("a tensor with gaps") };
    stream.memcpy_dtoh(&storage.as_cuda_slice::<f32>()?.slice(from..end), to).w()
}

/// Host memory whose copies [`Recorded`] waits for itself.
struct ByHand<'a>(&'a mut [f32]);

impl HostSlice<f32> for ByHand<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    unsafe fn stream_synced_slice<'a>(
        &'a self,
        _stream: &'a CudaStream,
    ) -> (&'a [f32], SyncOnDrop<'a>) {
        (self.0, SyncOnDrop::Sync(None))
    }

    unsafe fn stream_synced_mut_slice<'a>(
        &'a mut self,
        _stream: &'a CudaStream,
    ) -> (&'a mut [f32], SyncOnDrop<'a>) {
        (self.0, SyncOnDrop::Sync(None))
    }
}
