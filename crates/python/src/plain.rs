//! The common request, read without running any Python code: one dense, contiguous CPU tensor,
//! whose first dimension is the batch's, from a thread without autocast.
//!
//! What two such requests must have in common to share a batch (dtype, trailing shape, the modes of
//! the thread and of the tensor) is looked up here; what is new is put to Python's collator once, so that both give equal
//! keys to equal requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

/// Dimensions that a signature has room for; a tensor of more is Python's to read.
const DIMS: usize = 6;
/// Signatures that are remembered; past that, all are forgotten.
const KINDS_KEPT: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Signature {
    /// The address of the dtype, which lives as long as its kind.
    dtype: usize,
    /// A bit each: grad mode, inference mode, an inference tensor.
    modes: u8,
    rank: u8,
    /// Without the first; the rest is zero.
    trailing: [i64; DIMS],
}

/// What requests that share a batch have in common.
pub(crate) struct Kind {
    pub(crate) key: u64,
    /// `onelane._modes.Modes`.
    pub(crate) modes: Py<PyAny>,
    _dtype: Py<PyAny>,
}

/// A request that is one tensor.
pub(crate) struct Plain {
    pub(crate) tensor: Py<PyAny>,
    pub(crate) rows: usize,
    pub(crate) kind: Arc<Kind>,
    /// The caller's `contextvars.Context`; `None` when there is nothing in it.
    pub(crate) context: Option<Py<PyAny>>,
}

impl Plain {
    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Self {
        Self {
            tensor: self.tensor.clone_ref(py),
            rows: self.rows,
            kind: Arc::clone(&self.kind),
            context: self.context.as_ref().map(|context| context.clone_ref(py)),
        }
    }
}

/// What of PyTorch, and of Python's front, is needed to read a plain request.
#[derive(FromPyObject)]
pub(crate) struct Torch {
    #[pyo3(item(0))]
    tensor_type: Py<PyType>,
    #[pyo3(item(1))]
    is_grad_enabled: Py<PyAny>,
    #[pyo3(item(2))]
    is_inference_mode_enabled: Py<PyAny>,
    #[pyo3(item(3))]
    is_any_autocast_enabled: Py<PyAny>,
    #[pyo3(item(4))]
    copy_context: Py<PyAny>,
    /// `(tensor) -> (key, modes)`; `None` for tensors that Python has to look at each time.
    #[pyo3(item(5))]
    new_kind: Py<PyAny>,
    /// `torch.strided`.
    #[pyo3(item(6))]
    strided: Py<PyAny>,
}

/// Reads plain requests of one queue.
pub(crate) struct Reader {
    torch: Torch,
    /// `None`: Python has to look at each one.
    kinds: Mutex<HashMap<Signature, Option<Arc<Kind>>>>,
}

impl Reader {
    pub(crate) fn new(torch: Torch) -> Self {
        Self { torch, kinds: Mutex::default() }
    }

    /// `None`: it is not that simple, Python has to look at it.
    pub(crate) fn read(&self, input: &Bound<'_, PyAny>) -> PyResult<Option<Plain>> {
        let py = input.py();
        if !input.get_type().is(&self.torch.tensor_type) {
            return Ok(None);
        }
        if !input.getattr(intern!(py, "is_cpu"))?.is_truthy()?
            || self.torch.is_any_autocast_enabled.bind(py).call0()?.is_truthy()?
        {
            return Ok(None);
        }
        // What changes the numbers of a neighbour, or what the model sees of it, is left to Python.
        if !input.getattr(intern!(py, "layout"))?.is(&self.torch.strided)
            || input.getattr(intern!(py, "requires_grad"))?.is_truthy()?
        {
            return Ok(None);
        }
        // A nested tensor has no shape.
        let Ok(shape) = input.getattr(intern!(py, "shape")) else { return Ok(None) };
        let Ok(shape) = shape.cast::<PyTuple>() else { return Ok(None) };
        let rank = shape.len();
        if rank == 0 || rank > DIMS {
            return Ok(None);
        }
        if !input.call_method0(intern!(py, "is_contiguous"))?.is_truthy()?
            || input.call_method0(intern!(py, "is_neg"))?.is_truthy()?
        {
            return Ok(None);
        }
        let rows: usize = shape.get_item(0)?.extract()?;
        let mut trailing = [0; DIMS];
        for (at, size) in trailing.iter_mut().zip(1..rank) {
            *at = shape.get_item(size)?.extract()?;
        }
        let grad = self.torch.is_grad_enabled.bind(py).call0()?.is_truthy()?;
        let inference = self.torch.is_inference_mode_enabled.bind(py).call0()?.is_truthy()?;
        let is_inference = input.call_method0(intern!(py, "is_inference"))?.is_truthy()?;
        let dtype = input.getattr(intern!(py, "dtype"))?;
        let signature = Signature {
            dtype: dtype.as_ptr() as usize,
            modes: u8::from(grad) | u8::from(inference) << 1 | u8::from(is_inference) << 2,
            rank: rank as u8,
            trailing,
        };
        let known = self.kinds().get(&signature).cloned();
        let kind = match known {
            Some(kind) => kind,
            None => self.learn(input, signature, dtype)?,
        };
        let Some(kind) = kind else { return Ok(None) };
        let context = self.torch.copy_context.bind(py).call0()?;
        let context = if context.len()? == 0 { None } else { Some(context.unbind()) };
        Ok(Some(Plain { tensor: input.clone().unbind(), rows, kind, context }))
    }

    fn kinds(&self) -> std::sync::MutexGuard<'_, HashMap<Signature, Option<Arc<Kind>>>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(
        &self,
        input: &Bound<'_, PyAny>,
        signature: Signature,
        dtype: Bound<'_, PyAny>,
    ) -> PyResult<Option<Arc<Kind>>> {
        let read: Option<(u64, Py<PyAny>)> =
            self.torch.new_kind.bind(input.py()).call1((input,))?.extract()?;
        let kind = read.map(|(key, modes)| Arc::new(Kind { key, modes, _dtype: dtype.unbind() }));
        let forgotten = {
            let mut kinds = self.kinds();
            let forgotten =
                if kinds.len() < KINDS_KEPT { None } else { Some(std::mem::take(&mut *kinds)) };
            kinds.insert(signature, kind.clone());
            forgotten
        };
        drop(forgotten);
        Ok(kind)
    }
}
