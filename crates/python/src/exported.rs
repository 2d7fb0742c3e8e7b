//! The memory of a Python object that exports it (`memoryview`, `bytes`), for as long as it is held:
//! to be copied from without the interpreter.
//!
//! Invariant: while an export is held, its object neither frees nor moves the memory. Another thread
//! may write to it: bytes are copied, and no reference into it is kept or looked at twice.

use std::ffi::{c_char, c_int, c_void};

use pyo3::ffi::{Py_ssize_t, PyObject};
use pyo3::prelude::*;

use crate::interpreter::drop_attached;

/// CPython's `Py_buffer`. It is part of the stable interface from Python 3.11 on, and has been as it
/// is since 3.3.
#[repr(C)]
struct RawBuffer {
    buf: *mut c_void,
    obj: *mut PyObject,
    len: Py_ssize_t,
    itemsize: Py_ssize_t,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut Py_ssize_t,
    strides: *mut Py_ssize_t,
    suboffsets: *mut Py_ssize_t,
    internal: *mut c_void,
}

/// `PyBUF_SIMPLE`: contiguous bytes, to be read.
const SIMPLE: c_int = 0;

unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut PyObject, view: *mut RawBuffer, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut RawBuffer);
}

/// The exported memory of one object. The buffer has an address of its own: exporters may keep it.
pub(crate) struct Exported(Option<Held>);

struct Held(Box<RawBuffer>);

// SAFETY: the pointers are of memory that the export keeps, on whatever thread; it is released
// attached (in `Exported::drop`).
unsafe impl Send for Held {}
// SAFETY: shared, it is only read.
unsafe impl Sync for Held {}

impl Exported {
    /// The memory of an object.
    ///
    /// # Errors
    /// It exports none, or not as contiguous bytes.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let null = std::ptr::null_mut();
        let mut buffer = Box::new(RawBuffer {
            buf: null,
            obj: std::ptr::null_mut(),
            len: 0,
            itemsize: 0,
            readonly: 0,
            ndim: 0,
            format: std::ptr::null_mut(),
            shape: std::ptr::null_mut(),
            strides: std::ptr::null_mut(),
            suboffsets: std::ptr::null_mut(),
            internal: null,
        });
        // SAFETY: attached (there is a `Bound`), the object lives, and the structure is one of those
        // that the call fills.
        let failed = unsafe { PyObject_GetBuffer(object.as_ptr(), &raw mut *buffer, SIMPLE) };
        if failed != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        Ok(Self(Some(Held(buffer))))
    }

    /// Its bytes, as they are now.
    pub(crate) fn bytes(&self) -> &[u8] {
        let buffer = &self.0.as_ref().expect("it is taken in drop alone").0;
        if buffer.buf.is_null() {
            return &[];
        }
        // SAFETY: the export says that there are `len` contiguous bytes, which stay while it is held.
        unsafe { std::slice::from_raw_parts(buffer.buf.cast::<u8>(), buffer.len.unsigned_abs()) }
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        drop_attached(self.0.take());
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: filled by `PyObject_GetBuffer`, released once, and attached: `drop_attached`.
        unsafe { PyBuffer_Release(&raw mut *self.0) }
    }
}
