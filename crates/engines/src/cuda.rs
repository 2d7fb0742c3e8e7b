//! CUDA for an engine that has the device to itself: copies through page-locked memory, and no events
//! where one stream needs none.
//!
//! The only file of this crate with `unsafe`.

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{
    CudaStream, HostSlice, PinnedHostSlice, SyncOnDrop,
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

/// Above so many bytes page-locked memory pays: the driver takes a smaller upload along with the
/// command (docs/performance.md has the figures).
const LARGE: usize = 64 << 10;

/// Page-locked memory, from and to which a device copies by itself. Ordinary memory is copied once more
/// on the way, by the processor.
pub(crate) struct PinnedMemory {
    device: CudaDevice,
    free: Mutex<Vec<PinnedHostSlice<f32>>>,
}

impl PinnedMemory {
    /// None yet, for a CUDA device.
    pub(crate) fn new(device: &Device) -> Option<Self> {
        let Device::Cuda(device) = device else { return None };
        Some(Self { device: device.clone(), free: Mutex::default() })
    }

    /// Whether so many numbers are worth it.
    pub(crate) fn pays(numbers: usize) -> bool {
        numbers * size_of::<f32>() > LARGE
    }

    /// Sends rows, which `fill` writes, through `work`, and has `read` look at what came back.
    pub(crate) fn round_trip<T>(
        &self,
        (rows, width): (usize, usize),
        fill: impl FnOnce(&mut [f32]),
        work: impl FnOnce(Tensor) -> Result<Tensor>,
        read: impl FnOnce(&[f32]) -> T,
    ) -> Result<T> {
        let mut there = self.lend(rows * width)?;
        fill(there.numbers()?);
        let y = work(self.upload(&mut there, (rows, width))?)?.contiguous()?;
        let mut back = self.lend(y.elem_count())?;
        self.download(&y, &mut back)?;
        self.device.cuda_stream().synchronize().w()?;
        (there.is_copied, back.is_copied) = (false, false);
        Ok(read(back.numbers()?))
    }

    /// Memory for so many numbers.
    fn lend(&self, count: usize) -> Result<Loan<'_>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = free.iter().position(|slice| slice.len() >= count) {
            return Ok(self.loan(free.swap_remove(at), count));
        }
        // What was too small once will be again.
        free.clear();
        drop(free);
        let room = count.next_power_of_two();
        let stream = self.device.cuda_stream();
        // SAFETY: it is written before anybody reads it.
        let mut slice = unsafe { stream.context().alloc_pinned_with_flags::<f32>(room, 0) }.w()?;
        // SAFETY: it has room for so many numbers, and zeros are numbers.
        unsafe { slice.as_mut_ptr().w()?.write_bytes(0, room) };
        Ok(self.loan(slice, count))
    }

    fn loan(&self, slice: PinnedHostSlice<f32>, count: usize) -> Loan<'_> {
        Loan { slice: Some(slice), count, is_copied: false, memory: self }
    }

    fn upload(&self, loan: &mut Loan<'_>, shape: (usize, usize)) -> Result<Tensor> {
        // SAFETY: the copy writes all of it, in the order of the stream, before anything reads it.
        let mut slice = unsafe { self.device.alloc::<f32>(loan.count) }?;
        loan.is_copied = true;
        self.device.memcpy_htod(&*loan, &mut slice)?;
        let storage = CudaStorage::wrap_cuda_slice(slice, self.device.clone());
        Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
    }

    /// A contiguous tensor that fills the loan.
    fn download(&self, tensor: &Tensor, loan: &mut Loan<'_>) -> Result<()> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a tensor that is not on the device") };
        let Some((from, to)) = layout.contiguous_offsets() else { bail!("a tensor with gaps") };
        loan.is_copied = true;
        self.device.memcpy_dtoh(&storage.as_cuda_slice::<f32>()?.slice(from..to), loan)
    }
}

/// Page-locked memory that is in use.
struct Loan<'a> {
    /// `None` in `drop` alone.
    slice: Option<PinnedHostSlice<f32>>,
    /// How much of it.
    count: usize,
    /// The device may be reading or writing it.
    is_copied: bool,
    memory: &'a PinnedMemory,
}

impl Loan<'_> {
    fn numbers(&mut self) -> Result<&mut [f32]> {
        let slice = self.slice.as_mut().expect("a loan has its memory until it is dropped");
        Ok(&mut slice.as_mut_slice().w()?[..self.count])
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let quiet = !self.is_copied || self.memory.device.cuda_stream().synchronize().is_ok();
        let slice = self.slice.take();
        if quiet {
            let mut free = self.memory.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.extend(slice);
        } else {
            // Better lost than written to when it is somebody else's.
            std::mem::forget(slice);
        }
    }
}

impl HostSlice<f32> for Loan<'_> {
    fn len(&self) -> usize {
        self.count
    }

    unsafe fn stream_synced_slice<'a>(
        &'a self,
        stream: &'a CudaStream,
    ) -> (&'a [f32], SyncOnDrop<'a>) {
        let slice = self.slice.as_ref().expect("a loan has its memory until it is dropped");
        // SAFETY: what is asked of the caller is the same.
        let (numbers, sync) = unsafe { slice.stream_synced_slice(stream) };
        (&numbers[..self.count], sync)
    }

    unsafe fn stream_synced_mut_slice<'a>(
        &'a mut self,
        stream: &'a CudaStream,
    ) -> (&'a mut [f32], SyncOnDrop<'a>) {
        let slice = self.slice.as_mut().expect("a loan has its memory until it is dropped");
        // SAFETY: what is asked of the caller is the same.
        let (numbers, sync) = unsafe { slice.stream_synced_mut_slice(stream) };
        (&mut numbers[..self.count], sync)
    }
}
