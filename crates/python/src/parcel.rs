//! What crosses between parent and child: a batch of requests, or of responses, that Python has
//! pickled, with the memory of tensors and arrays beside the pickles.
//!
//! In the arena: the number of letters; for each, the number of its buffers and its pickle, then the
//! buffers; each with its length before it. A batch crosses as one piece: its first parcel has all of
//! it, the others stand for their requests.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use onelane::BatchItem;
use onelane_isolate::{Reader, Wire, WireError, Writer};
use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};

use crate::exported::Exported;
use crate::interpreter::drop_attached;

/// One pickle and the memory beside it, to be sent.
pub(crate) struct Letter {
    pickle: Exported,
    buffers: Vec<Exported>,
    /// The buffers cross as one, in order.
    joined: bool,
}

impl Letter {
    /// Of `(pickle, buffers, joined)`.
    fn new(letter: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (pickle, buffers, joined): (Bound<'_, PyAny>, Vec<Bound<'_, PyAny>>, bool) =
            letter.extract()?;
        let buffers = buffers.iter().map(Exported::of).collect::<PyResult<_>>()?;
        Ok(Self { pickle: Exported::of(&pickle)?, buffers, joined })
    }

    fn write(&self, to: &mut Writer<'_>) {
        to.length(if self.joined { 1 } else { self.buffers.len() });
        write_part(&self.pickle, to);
        if self.joined {
            to.length(self.buffers.iter().map(|buffer| buffer.bytes().len()).sum());
            self.buffers.iter().for_each(|buffer| to.bytes(buffer.bytes()));
        } else {
            self.buffers.iter().for_each(|buffer| write_part(buffer, to));
        }
    }
}

fn write_part(part: &Exported, to: &mut Writer<'_>) {
    let bytes = part.bytes();
    to.length(bytes.len());
    to.bytes(bytes);
}

/// One pickle and the memory beside it, as it came.
pub(crate) type Received = (Py<PyBytes>, Vec<Py<PyByteArray>>);

#[derive(Default)]
enum Content {
    /// The batch is in its first parcel.
    #[default]
    Elsewhere,
    Sent(RefCell<Vec<Letter>>),
    Received(Vec<Received>),
}

/// One request or response of a batch that crosses.
#[derive(Default)]
pub(crate) struct Parcel(Content);

impl Parcel {
    /// The parcels of a batch of `count`, given its letters: `[(pickle, buffers, joined), ...]`.
    pub(crate) fn batch(letters: &Bound<'_, PyAny>, count: usize) -> PyResult<Vec<Self>> {
        let letters = letters.try_iter()?.map(|letter| Letter::new(&letter?));
        let letters = letters.collect::<PyResult<Vec<_>>>()?;
        let mut parcels = Vec::with_capacity(count);
        parcels.resize_with(count, Self::default);
        if let Some(first) = parcels.first_mut() {
            first.0 = Content::Sent(RefCell::new(letters));
        }
        Ok(parcels)
    }

    /// Lets go of what a batch has sent; it is not sent again.
    pub(crate) fn release(_py: Python<'_>, parcels: &[Self]) {
        if let Some(Self(Content::Sent(letters))) = parcels.first() {
            drop(letters.take());
        }
    }

    /// The letters of a batch that has come: `[(pickle, buffers), ...]`.
    pub(crate) fn letters(py: Python<'_>, parcels: &[Self]) -> Vec<Received> {
        let Some(Self(Content::Received(letters))) = parcels.first() else {
            return Vec::new();
        };
        let copy = |(pickle, buffers): &Received| {
            (pickle.clone_ref(py), buffers.iter().map(|buffer| buffer.clone_ref(py)).collect())
        };
        letters.iter().map(copy).collect()
    }
}

impl BatchItem for Parcel {
    type Key = ();
    fn key(&self) {}
}

impl Wire for Parcel {
    fn write(&self, to: &mut Writer<'_>) {
        Self::write_slice(std::slice::from_ref(self), to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut read = Self::read_vec(1, from)?;
        Ok(read.pop().unwrap_or_default())
    }

    fn write_slice(parcels: &[Self], to: &mut Writer<'_>) {
        let Some(Self(Content::Sent(letters))) = parcels.first() else {
            return to.length(0);
        };
        let letters = letters.borrow();
        to.length(letters.len());
        letters.iter().for_each(|letter| letter.write(to));
    }

    fn read_vec(count: usize, from: &mut Reader<'_>) -> Result<Vec<Self>, WireError> {
        let read = Python::try_attach(|py| read_letters(py, count, from));
        let letters = read.unwrap_or_else(|| Err(interpreter_ending()))?;
        let mut parcels = Vec::with_capacity(count);
        parcels.resize_with(count, Self::default);
        if let Some(first) = parcels.first_mut() {
            first.0 = Content::Received(letters);
        }
        Ok(parcels)
    }
}

/// Reads the letters of a batch of so many requests or responses: `[(pickle, buffers), ...]`.
pub(crate) fn read_letters(
    py: Python<'_>,
    batch: usize,
    from: &mut Reader<'_>,
) -> Result<Vec<Received>, WireError> {
    let mut letters = Vec::new();
    // Each is in some letter, but one letter may hold many: at least a byte of its pickle for each.
    let mut most = 0_usize;
    for _ in 0..bounded(from)? {
        let count = bounded(from)?;
        let length = from.length()?;
        let pickle = PyBytes::new(py, &from.numbers::<u8>(length)?).unbind();
        most = most.saturating_add(length);
        let mut buffers = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            buffers.push(read_buffer(py, from)?);
        }
        letters.push((pickle, buffers));
    }
    if batch > most {
        return Err(invalid(format!("{batch} requests in a batch without letters")));
    }
    Ok(letters)
}

pub(crate) fn interpreter_ending() -> WireError {
    invalid("the interpreter is ending")
}

/// A number of things that take eight bytes at least.
fn bounded(from: &mut Reader<'_>) -> Result<usize, WireError> {
    let count = from.length()?;
    let left = from.remaining();
    if count > left / 8 {
        return Err(WireError::TooShort { needed: count.saturating_mul(8), left });
    }
    Ok(count)
}

/// Memory of the interpreter's, filled from the arena: this is the one copy on this side.
fn read_buffer(py: Python<'_>, from: &mut Reader<'_>) -> Result<Py<PyByteArray>, WireError> {
    let length = from.length()?;
    let left = from.remaining();
    if length > left {
        return Err(WireError::TooShort { needed: length, left });
    }
    let no_memory =
        |error: PyErr| WireError::NoMemory { needed: length as u64, error: error.to_string() };
    let size = ffi::Py_ssize_t::try_from(length)
        .map_err(|error| no_memory(PyMemoryError::new_err(error.to_string())))?;
    // SAFETY: attached; without bytes to start from, the new object's memory is not initialised.
    let made = unsafe {
        let object = ffi::PyByteArray_FromStringAndSize(std::ptr::null(), size);
        Bound::<PyAny>::from_owned_ptr_or_err(py, object)
    };
    let made = made.map_err(no_memory)?;
    // SAFETY: it is a new bytearray of `length` bytes that nobody else has seen: the memory is there
    // and is borrowed by nobody. All of it is filled below; if that fails, the object is dropped
    // unread. Memory that is not initialised is what `MaybeUninit` allows.
    let memory = unsafe {
        let start = ffi::PyByteArray_AsString(made.as_ptr()).cast::<MaybeUninit<u8>>();
        std::slice::from_raw_parts_mut(start, length)
    };
    from.bytes_into(memory)?;
    let made = made.cast_into::<PyByteArray>().map_err(|error| invalid(error.to_string()))?;
    Ok(made.unbind())
}

fn invalid(text: impl Into<String>) -> WireError {
    WireError::Invalid(text.into())
}

impl Drop for Parcel {
    fn drop(&mut self) {
        if !matches!(self.0, Content::Elsewhere) {
            drop_attached(std::mem::take(&mut self.0));
        }
    }
}
