//! Structs that begin with their size, so that a program and a library of other versions agree.

use std::mem::{MaybeUninit, size_of};

use crate::error::{Failure, failure};
use crate::status::ONELANE_INVALID_ARGUMENT;

/// A struct of the ABI: `repr(C)`, begins with `struct_size: usize`, and all zeroes are a value of it.
///
/// # Safety
/// All of that holds.
pub(crate) unsafe trait Sized: Copy {
    /// The size that it had in the first version; fields after it are newer.
    const FIRST: usize;
    const NAME: &'static str;
}

/// More than any version of any of them will have.
const MOST: usize = 4096;

fn check<T: Sized>(at: *const T) -> Result<usize, Failure> {
    let name = T::NAME;
    if at.is_null() {
        return Err(failure(ONELANE_INVALID_ARGUMENT, format!("{name} is NULL")));
    }
    if !at.is_aligned() {
        return Err(failure(ONELANE_INVALID_ARGUMENT, format!("{name} is not aligned")));
    }
    // SAFETY: it is not NULL and aligned, and the caller passes a struct that begins with its size.
    let size = unsafe { at.cast::<usize>().read() };
    if !(T::FIRST..=MOST).contains(&size) {
        let text = format!(
            "{name}.struct_size is {size}: set it to sizeof({name}), which is {} in this version",
            size_of::<T>()
        );
        return Err(failure(ONELANE_INVALID_ARGUMENT, text));
    }
    Ok(size)
}

/// Reads a struct; fields that the caller's version lacks are zero.
///
/// # Safety
/// `at` is NULL or points to a struct of the size that it begins with.
pub(crate) unsafe fn read<T: Sized>(at: *const T) -> Result<T, Failure> {
    let size = check(at)?;
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the caller has `size` bytes there, of which no more are read than `value` has.
    unsafe { at.cast::<u8>().copy_to_nonoverlapping(value.as_mut_ptr().cast(), known) };
    // What this version does not know must not be asked for.
    for at_byte in known..size {
        // SAFETY: it is within the caller's `size` bytes.
        if unsafe { at.cast::<u8>().add(at_byte).read() } != 0 {
            let text = format!("{} has a field that this version does not know", T::NAME);
            return Err(failure(ONELANE_INVALID_ARGUMENT, text));
        }
    }
    // SAFETY: all zeroes are a value, and so is what a C program of this ABI has put over them.
    Ok(unsafe { value.assume_init() })
}

/// Writes a struct; the caller's version gets the fields that it knows, and keeps its size.
///
/// # Safety
/// As [`read`], and `at` may be written.
pub(crate) unsafe fn write<T: Sized>(at: *mut T, value: T) -> Result<(), Failure> {
    let size = check(at)?;
    let first = size_of::<usize>();
    let known = size.min(size_of::<T>()) - first;
    // SAFETY: both have that many bytes behind the size.
    unsafe {
        let from = (&raw const value).cast::<u8>().add(first);
        from.copy_to_nonoverlapping(at.cast::<u8>().add(first), known);
    }
    Ok(())
}

/// Checks that a struct can be written before something is done that cannot be taken back.
pub(crate) fn check_out<T>(at: *mut T, name: &'static str) -> Result<(), Failure> {
    if at.is_null() || !at.is_aligned() {
        return Err(failure(ONELANE_INVALID_ARGUMENT, format!("{name} is NULL or not aligned")));
    }
    Ok(())
}
