//! The arena: one file without a name, mapped by parent and child, through which payloads go.
//!
//! Invariants: nobody makes a reference into the mapping, because the other process may write to it
//! at any time: bytes are copied in and copied out, and only the copy is looked at. The file only
//! grows (on Linux it is sealed against shrinking), so what was mapped stays readable. What is
//! copied was checked against the length of the mapping.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytemuck::{AnyBitPattern, NoUninit};
use memmap2::{MmapOptions, MmapRaw};

use crate::error::WireError;

/// Sizes are powers of two up to this, and multiples of it above.
const LARGE_STEP: u64 = 64 << 20;
const SMALLEST: u64 = 64 << 10;

/// One end of the shared file.
pub(crate) struct Arena {
    file: OwnedFd,
    map: MmapRaw,
    limit: u64,
}

impl Arena {
    /// A new file of the smallest size.
    pub(crate) fn create(limit: u64) -> io::Result<Self> {
        let file = nameless_file()?;
        rustix::fs::ftruncate(&file, SMALLEST)?;
        Self::open(file, limit)
    }

    /// The file that the other process has made.
    pub(crate) fn open(file: OwnedFd, limit: u64) -> io::Result<Self> {
        let map = map(&file, file_len(&file)?.min(limit))?;
        Ok(Self { file, map, limit })
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Makes room for `needed` bytes; what is in it stays.
    fn grow(&mut self, needed: u64) -> Result<(), WireError> {
        if needed > self.limit {
            return Err(WireError::TooLarge { needed, limit: self.limit });
        }
        let size = if needed <= LARGE_STEP {
            needed.next_power_of_two()
        } else {
            needed.next_multiple_of(LARGE_STEP)
        };
        let no_memory = |error: io::Error| WireError::NoMemory { needed, error: error.to_string() };
        // The other side may have made it longer already, and it must never become shorter.
        let size = size.max(SMALLEST).min(self.limit).max(file_len(&self.file).map_err(no_memory)?);
        self.lengthen(size).map_err(no_memory)
    }

    fn lengthen(&mut self, size: u64) -> io::Result<()> {
        let old = file_len(&self.file)?;
        if size > old {
            rustix::fs::ftruncate(&self.file, size)?;
            // A file on a disk that is full would kill whoever writes to the mapping.
            #[cfg(not(target_os = "linux"))]
            rustix::fs::fallocate(
                &self.file,
                rustix::fs::FallocateFlags::empty(),
                old,
                size - old,
            )?;
        }
        self.map = map(&self.file, size)?;
        Ok(())
    }

    /// A writer from the start of the arena.
    pub(crate) fn writer(&mut self) -> Writer<'_> {
        Writer { arena: self, at: 0, error: None }
    }

    /// A reader of a part that the other process names; its bounds are checked.
    pub(crate) fn reader(&mut self, offset: u64, length: u64) -> Result<Reader<'_>, WireError> {
        let end = offset.checked_add(length).filter(|&end| end <= self.limit);
        let end = end.ok_or_else(|| {
            let limit = self.limit;
            WireError::Invalid(format!(
                "a payload of {length} bytes at {offset} does not fit in max_payload = {limit}"
            ))
        })?;
        if end > self.map.len() as u64 {
            let size =
                file_len(&self.file).map_err(|error| WireError::Invalid(error.to_string()))?;
            if end > size {
                return Err(WireError::Invalid(format!(
                    "a payload of {length} bytes at {offset} does not fit in an arena of {size}"
                )));
            }
            self.map = map(&self.file, size.min(self.limit))
                .map_err(|error| WireError::NoMemory { needed: end, error: error.to_string() })?;
        }
        // Both fit in the mapping, whose length is a usize.
        Ok(Reader { arena: self, at: offset as usize, end: end as usize })
    }

    fn copy_in(&mut self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.map.len()));
        // SAFETY: `at + bytes.len()` is within the mapping (asserted above), which lives as long as
        // `self`; the file is not shorter than the mapping, because it never shrinks. `bytes` is
        // memory of this process, so the two do not overlap, and no reference into the mapping
        // exists.
        unsafe {
            let to = self.map.as_mut_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Copies `count` values out, starting at `at`.
    fn copy_out<T: AnyBitPattern>(&self, at: usize, count: usize) -> Vec<T> {
        let length = count.checked_mul(size_of::<T>());
        let end = length.and_then(|length| at.checked_add(length));
        assert!(end.is_some_and(|end| end <= self.map.len()));
        let mut values = Vec::<T>::with_capacity(count);
        // SAFETY: the source is within the mapping (asserted above), which lives as long as `self`
        // and whose file never shrinks; the destination has room for `count` values and is new, so
        // the two do not overlap. The copy is by bytes, as the source need not be aligned. All
        // `count` values are initialised by the copy, and any bytes are a valid `T`
        // (`AnyBitPattern`), also those that another process changes meanwhile.
        unsafe {
            let from = self.map.as_ptr().add(at);
            let to = values.as_mut_ptr().cast::<u8>();
            std::ptr::copy_nonoverlapping(from, to, count * size_of::<T>());
            values.set_len(count);
        }
        values
    }

    /// Copies bytes out into memory of this process; all of it is initialised then.
    fn copy_to(&self, at: usize, to: &mut [MaybeUninit<u8>]) {
        assert!(at.checked_add(to.len()).is_some_and(|end| end <= self.map.len()));
        // SAFETY: as in `copy_out`; the destination is memory of this process that is borrowed
        // exclusively, so the two do not overlap.
        unsafe {
            let from = self.map.as_ptr().add(at);
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr().cast::<u8>(), to.len());
        }
    }

    fn copy_array<const N: usize>(&self, at: usize) -> [u8; N] {
        assert!(at.checked_add(N).is_some_and(|end| end <= self.map.len()));
        let mut bytes = [0; N];
        // SAFETY: as in `copy_out`; the destination is an array of `N` bytes on this stack.
        unsafe {
            std::ptr::copy_nonoverlapping(self.map.as_ptr().add(at), bytes.as_mut_ptr(), N);
        }
        bytes
    }
}

/// Writes the values of a batch into the arena, one after another. What does not fit makes the
/// arena grow; the first error is kept, and what comes after it is not written.
pub struct Writer<'a> {
    arena: &'a mut Arena,
    at: usize,
    error: Option<WireError>,
}

impl Writer<'_> {
    /// Writes bytes as they are; their number is not written.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if self.error.is_some() {
            return;
        }
        let end = self.at.saturating_add(bytes.len());
        if end > self.arena.map.len()
            && let Err(error) = self.arena.grow(end as u64)
        {
            self.error = Some(error);
            return;
        }
        self.arena.copy_in(self.at, bytes);
        self.at = end;
    }

    /// Writes numbers as they are in memory; their number is not written.
    pub fn numbers<T: NoUninit>(&mut self, numbers: &[T]) {
        self.bytes(bytemuck::cast_slice(numbers));
    }

    /// Writes a length.
    pub fn length(&mut self, length: usize) {
        self.bytes(&(length as u64).to_le_bytes());
    }

    /// Gives the writing up with an error, which the caller of the engine gets.
    pub fn fail(&mut self, error: WireError) {
        self.error.get_or_insert(error);
    }

    /// The number of bytes written.
    pub(crate) fn finish(self) -> Result<u64, WireError> {
        self.error.map_or(Ok(self.at as u64), Err)
    }
}

/// Reads the values of a batch out of the arena, one after another. All that it gives is a copy.
pub struct Reader<'a> {
    arena: &'a Arena,
    at: usize,
    end: usize,
}

impl Reader<'_> {
    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.end - self.at
    }

    /// Reads `N` bytes.
    ///
    /// # Errors
    /// [`WireError::TooShort`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.check(N)?;
        let bytes = self.arena.copy_array(self.at);
        self.at += N;
        Ok(bytes)
    }

    /// Reads `count` numbers as they are in memory. The count is checked against what is left
    /// before any memory is taken for them.
    ///
    /// # Errors
    /// [`WireError::TooShort`].
    pub fn numbers<T: AnyBitPattern>(&mut self, count: usize) -> Result<Vec<T>, WireError> {
        let length = count.saturating_mul(size_of::<T>());
        self.check(length)?;
        let numbers = self.arena.copy_out(self.at, count);
        self.at += length;
        Ok(numbers)
    }

    /// Reads bytes into memory that is there already, and fills all of it.
    ///
    /// # Errors
    /// [`WireError::TooShort`]; nothing is written then.
    pub fn bytes_into(&mut self, to: &mut [MaybeUninit<u8>]) -> Result<(), WireError> {
        self.check(to.len())?;
        self.arena.copy_to(self.at, to);
        self.at += to.len();
        Ok(())
    }

    /// Reads a length that [`Writer::length`] has written. It is not to be trusted: check it, or
    /// give it to [`numbers`](Self::numbers), which does.
    ///
    /// # Errors
    /// [`WireError`] if there is none, or none that this machine can have.
    pub fn length(&mut self) -> Result<usize, WireError> {
        let length = u64::from_le_bytes(self.array()?);
        usize::try_from(length)
            .map_err(|_| WireError::Invalid(format!("a length of {length} is impossible")))
    }

    fn check(&self, needed: usize) -> Result<(), WireError> {
        let left = self.remaining();
        if needed > left { Err(WireError::TooShort { needed, left }) } else { Ok(()) }
    }
}

fn map(file: &OwnedFd, len: u64) -> io::Result<MmapRaw> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    MmapOptions::new().len(len).map_raw(file)
}

fn file_len(file: &OwnedFd) -> io::Result<u64> {
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

#[cfg(target_os = "linux")]
fn nameless_file() -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("onelane", flags)?;
    // A child that made it shorter would kill the parent, by SIGBUS, at its next access.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(not(target_os = "linux"))]
fn nameless_file() -> io::Result<OwnedFd> {
    tempfile::tempfile().map(OwnedFd::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 20;

    #[test]
    fn what_is_written_is_read_on_the_other_side_and_it_grows() {
        let mut parent = Arena::create(LIMIT).unwrap();
        let mut child = Arena::open(parent.file().try_clone_to_owned().unwrap(), LIMIT).unwrap();
        let large: Vec<f32> = (0..200_000).map(|i| i as f32).collect();
        let mut writer = parent.writer();
        writer.bytes(b"head");
        writer.numbers(&large);
        let length = writer.finish().unwrap();
        assert_eq!(length, 800_004);
        let mut reader = child.reader(0, length).unwrap();
        assert_eq!(reader.array::<4>().unwrap(), *b"head");
        assert_eq!(reader.numbers::<f32>(200_000).unwrap(), large);
        assert_eq!(reader.remaining(), 0);
    }

    #[test]
    fn bounds_are_checked_before_use() {
        let mut arena = Arena::create(LIMIT).unwrap();
        for (offset, length) in
            [(0, SMALLEST + 1), (u64::MAX, 2), (SMALLEST, 1), (0, LIMIT + 1), (1 << 63, 1 << 63)]
        {
            assert!(arena.reader(offset, length).is_err(), "{offset} {length}");
        }
        let mut reader = arena.reader(SMALLEST - 4, 4).unwrap();
        let short = reader.numbers::<u64>(usize::MAX).unwrap_err();
        assert_eq!(short, WireError::TooShort { needed: usize::MAX, left: 4 });
        assert!(reader.array::<5>().is_err());
        assert!(reader.bytes_into(&mut [MaybeUninit::uninit(); 5]).is_err());
        let mut bytes = [MaybeUninit::new(7); 2];
        reader.bytes_into(&mut bytes).unwrap();
        assert_eq!(reader.array(), Ok([0; 2]));
    }

    #[test]
    fn more_than_the_limit_is_an_error() {
        let mut arena = Arena::create(LIMIT).unwrap();
        let mut writer = arena.writer();
        writer.bytes(&vec![1; 2 << 20]);
        writer.bytes(b"not written");
        let refused = WireError::TooLarge { needed: 2 << 20, limit: LIMIT };
        assert_eq!(writer.finish().unwrap_err(), refused);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn nobody_can_make_it_shorter() {
        let arena = Arena::create(LIMIT).unwrap();
        assert!(rustix::fs::ftruncate(arena.file(), 0).is_err());
    }
}
