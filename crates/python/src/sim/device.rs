//! [`SimDevice`]: the simulated device as `onelane.sim` calls it.
//!
//! A watcher hears of each action before it happens, on the thread that acts; what it raises keeps the
//! action from happening (a free happens all the same).

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use onelane_sim::sync;
use onelane_sim::{Op, OwnershipCheck, SimConfig, SimResult};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use super::block::SimBlock;
use super::copy::Copy;
use super::settings::Settings;
use super::threads::{SimBarrier, SimLock, SimParty, come_back, detached, go_outside};
use super::watch::Watch;

thread_local! {
    /// Whether the calling thread has told its name.
    static NAMED: Cell<bool> = const { Cell::new(false) };
}

/// What a command is: whether it is a graph, its name, the shapes that a graph is compiled for, and a
/// key of 16 bytes when its outputs are a pure function of its inputs.
type Command = (bool, String, String, Option<Vec<u8>>);

/// A simulated MPS device.
#[pyclass(frozen, module = "onelane._onelane")]
pub(crate) struct SimDevice {
    device: onelane_sim::SimDevice,
    id: u64,
    /// The first exception of a command since one was raised.
    failed: Arc<Mutex<Option<PyErr>>>,
    watch: Arc<Watch>,
}

#[pymethods]
impl SimDevice {
    #[new]
    fn new(settings: Settings) -> PyResult<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let config: SimConfig = settings.config()?;
        let device = onelane_sim::SimDevice::new(config);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { device, id, failed: Arc::default(), watch: Arc::default() })
    }

    /// Has `function(kind, operation)` called before each action, or nothing.
    fn watch(&self, function: Option<Py<PyAny>>) {
        self.watch.set(function);
    }

    /// A block of `nbytes` bytes; its contents are what it held before.
    fn alloc(&self, py: Python<'_>, nbytes: usize) -> PyResult<SimBlock> {
        let buffer = self.act(py, ("alloc", "alloc"), |device| device.alloc(nbytes))?;
        Ok(SimBlock::new(buffer, &self.watch))
    }

    /// Copies host memory, from `address` on, to the whole block.
    fn write(&self, py: Python<'_>, block: &Bound<'_, SimBlock>, address: usize) -> PyResult<()> {
        let buffer = block.get().buffer();
        let bytes = host(address, buffer.bytes())?;
        self.act(py, ("write", "write"), |device| device.write(buffer, bytes))
    }

    /// Copies a part of the block, `(offset, nbytes)`, to host memory at `address`.
    fn read(
        &self,
        py: Python<'_>,
        block: &Bound<'_, SimBlock>,
        part: (usize, usize),
        address: usize,
    ) -> PyResult<()> {
        let (offset, nbytes) = part;
        let buffer = block.get().buffer();
        let bytes = self.act(py, ("read", "read"), |device| device.read(buffer))?;
        let part = offset.checked_add(nbytes).and_then(|end| bytes.get(offset..end));
        let part = part.ok_or_else(|| PyValueError::new_err("that is not within the block"))?;
        host_mut(address, nbytes)?.copy_from_slice(part);
        Ok(())
    }

    /// Encodes a command; `work(reads, writes)` computes it when it is committed, given the address and
    /// length of each block's bytes.
    fn encode(
        &self,
        py: Python<'_>,
        command: Command,
        blocks: (Vec<Bound<'_, SimBlock>>, Vec<Bound<'_, SimBlock>>),
        work: Py<PyAny>,
    ) -> PyResult<()> {
        let failed = Arc::clone(&self.failed);
        let run = move |reads: &[&[u8]], writes: &mut [&mut [u8]]| {
            let reads: Vec<_> = reads.iter().map(|r| (r.as_ptr() as usize, r.len())).collect();
            let places = writes.iter_mut().map(|w| (w.as_mut_ptr() as usize, w.len()));
            let writes: Vec<_> = places.collect();
            let ran = Python::try_attach(|py| {
                let ran = work.call1(py, (reads, writes));
                drop(work);
                ran.map(drop)
            });
            if let Some(Err(error)) = ran {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        };
        self.encode_work(py, command, &blocks, run)
    }

    /// Encodes a strided copy between two blocks.
    fn copy(
        &self,
        py: Python<'_>,
        command: Command,
        blocks: (Bound<'_, SimBlock>, Bound<'_, SimBlock>),
        copy: Copy,
    ) -> PyResult<()> {
        let blocks = (vec![blocks.0], vec![blocks.1]);
        self.encode_work(py, command, &blocks, move |reads, writes| copy.run(reads[0], writes[0]))
    }

    /// Commits what is pending on the calling thread's stream.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        self.act(py, ("commit", "commit"), onelane_sim::SimDevice::commit)
    }

    /// Commits what is pending and waits for it.
    fn synchronise(&self, py: Python<'_>) -> PyResult<()> {
        self.act(py, ("synchronise", "synchronise"), onelane_sim::SimDevice::synchronise)
    }

    /// Empties the graph cache.
    fn empty_cache(&self, py: Python<'_>) -> PyResult<()> {
        self.act(py, ("empty_cache", "empty_cache"), onelane_sim::SimDevice::empty_cache)
    }

    /// The calling thread is an owner from now on; `check` is `off`, `record` or `assert`.
    fn own(&self, py: Python<'_>, check: &str) -> PyResult<()> {
        let check = match check {
            "off" => OwnershipCheck::Off,
            "record" => OwnershipCheck::Record,
            "assert" => OwnershipCheck::Assert,
            _ => return Err(PyValueError::new_err("check is off, record or assert")),
        };
        detached(py, || self.device.own(check))
    }

    /// Actions of threads that are not owners: thread, owner, kind, operation, step.
    fn violations(&self, py: Python<'_>) -> Vec<(String, String, String, String, u64)> {
        let violations = py.detach(|| self.device.violations());
        let kind =
            |kind| serde_json::to_value(kind).ok().and_then(|k| k.as_str().map(String::from));
        let fields = violations.into_iter().map(|violation| {
            let kind = kind(violation.kind).unwrap_or_default();
            (violation.thread, violation.owner, kind, violation.operation, violation.step)
        });
        fields.collect()
    }

    /// The counters, as JSON.
    fn stats(&self, py: Python<'_>) -> PyResult<String> {
        let stats = py.detach(|| serde_json::to_string(&self.device.stats()));
        stats.map_err(|error| PyRuntimeError::new_err(error.to_string()))
    }

    /// The trace in Chrome's format, as JSON.
    fn trace(&self, py: Python<'_>) -> String {
        py.detach(|| self.device.trace().to_chrome().to_string())
    }

    /// The text of the error that ended the simulated process, if one did.
    fn failure(&self, py: Python<'_>) -> Option<String> {
        py.detach(|| self.device.failure()).map(|error| error.to_string())
    }

    /// Threads that begin together, one for each name.
    fn party(&self, py: Python<'_>, names: Vec<String>) -> SimParty {
        let members = names.len();
        let party = py.detach(|| self.device.party(names.iter().map(String::as_str)));
        SimParty::new(party, members, self.id)
    }

    /// A simulated lock.
    fn lock(&self, name: &str) -> SimLock {
        SimLock(sync::SimLock::new(&self.device, name))
    }

    /// A simulated barrier for so many threads.
    fn barrier(&self, threads: usize) -> SimBarrier {
        SimBarrier(sync::SimBarrier::new(&self.device, threads))
    }

    /// The calling member of a party waits for something real from now on.
    fn go_outside(&self, py: Python<'_>) -> PyResult<()> {
        go_outside(py, self.id)
    }

    /// It comes back, and waits for its turn.
    fn come_back(&self, py: Python<'_>) -> PyResult<()> {
        come_back(py, self.id)
    }
}

impl SimDevice {
    /// An action on the device. Raises what a command raised, when this action committed it.
    fn act<R: Send>(
        &self,
        py: Python<'_>,
        (kind, operation): (&str, &str),
        action: impl FnOnce(&onelane_sim::SimDevice) -> SimResult<R> + Send,
    ) -> PyResult<R> {
        tell_name(py)?;
        self.watch.tell(py, kind, operation)?;
        let result = detached(py, || action(&self.device))?;
        self.raise_failed()?;
        Ok(result)
    }

    fn raise_failed(&self) -> PyResult<()> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(()), Err)
    }

    fn encode_work(
        &self,
        py: Python<'_>,
        (graph, name, shapes, key): Command,
        blocks: &(Vec<Bound<'_, SimBlock>>, Vec<Bound<'_, SimBlock>>),
        work: impl FnOnce(&[&[u8]], &mut [&mut [u8]]) + Send + 'static,
    ) -> PyResult<()> {
        tell_name(py)?;
        self.watch.tell(py, "encode", &name)?;
        let mut op = if graph { Op::graph(name) } else { Op::kernel(name) }.shapes(shapes);
        if let Some(key) = key {
            let key = <[u8; 16]>::try_from(key);
            let key = key.map_err(|_| PyValueError::new_err("a key has 16 bytes"))?;
            op = op.pure(u128::from_le_bytes(key)).remember();
        }
        let reads: Vec<_> = blocks.0.iter().map(|block| block.get().buffer()).collect();
        let writes: Vec<_> = blocks.1.iter().map(|block| block.get().buffer()).collect();
        detached(py, || self.device.encode(op, &reads, &writes, work))?;
        self.raise_failed()
    }
}

/// Gives the calling thread its Python name, once.
fn tell_name(py: Python<'_>) -> PyResult<()> {
    if !NAMED.replace(true) && std::thread::current().name().is_none() {
        let thread = py.import("threading")?.call_method0("current_thread")?;
        onelane_sim::name_thread(&thread.getattr("name")?.extract::<String>()?);
    }
    Ok(())
}

/// Host memory that the caller lends for the length of a call.
fn host<'a>(address: usize, length: usize) -> PyResult<&'a [u8]> {
    if length == 0 {
        return Ok(&[]);
    }
    if address == 0 {
        return Err(PyValueError::new_err("address 0 is no memory"));
    }
    // SAFETY: the caller, `onelane.sim`, gives the address and size of a contiguous CPU tensor that it
    // holds until the call returns, and that no other thread writes to.
    Ok(unsafe { std::slice::from_raw_parts(address as *const u8, length) })
}

/// As [`host`], to write to.
fn host_mut<'a>(address: usize, length: usize) -> PyResult<&'a mut [u8]> {
    if length == 0 {
        return Ok(&mut []);
    }
    if address == 0 {
        return Err(PyValueError::new_err("address 0 is no memory"));
    }
    // SAFETY: as in `host`; the tensor was made for this call, and nobody else has it.
    Ok(unsafe { std::slice::from_raw_parts_mut(address as *mut u8, length) })
}
