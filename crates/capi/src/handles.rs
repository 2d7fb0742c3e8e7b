//! Handles: the names by which C knows executors, queues and tickets.
//!
//! A handle looks like a pointer, so that a C compiler tells the kinds apart, but it is a key: three
//! bits of kind, then a slab's key with its generation. It is looked up, never followed, so a stale or
//! made-up one is [`ONELANE_INVALID_HANDLE`](crate::ONELANE_INVALID_HANDLE).

use std::sync::LazyLock;

use sharded_slab::{Config, Slab};

use crate::error::{Failure, failure};
use crate::status::{ONELANE_INTERNAL, ONELANE_INVALID_HANDLE};

/// A device executor: the worker thread that owns one device. Released with onelane_executor_release.
pub struct Executor {
    _name: [u8; 0],
}

/// A batch queue: the front of one engine. Released with onelane_queue_release.
pub struct Queue {
    _name: [u8; 0],
}

/// Waits for the end of one request. Ended by onelane_ticket_wait, unless that gives ONELANE_TIMEOUT,
/// or by onelane_ticket_cancel.
pub struct Ticket {
    _name: [u8; 0],
}

const KIND_BITS: u32 = 3;
const KEY: usize = usize::MAX >> KIND_BITS;

struct Keys;

impl Config for Keys {
    // Of live threads that have submitted something.
    const MAX_THREADS: usize = 1 << 16;
    // 32 * 2^20 live handles a thread.
    const MAX_PAGES: usize = 20;
    const RESERVED_BITS: usize = KIND_BITS as usize;
}

/// All live handles of one kind.
pub(crate) struct Handles<T: 'static, H> {
    kind: usize,
    name: &'static str,
    slab: LazyLock<Slab<T, Keys>>,
    _handle: std::marker::PhantomData<fn() -> H>,
}

impl<T: Send + Sync + 'static, H> Handles<T, H> {
    /// `kind` is not 0, so that no handle is NULL.
    pub(crate) const fn new(kind: usize, name: &'static str) -> Self {
        let slab = LazyLock::new((|| Slab::new_with_config::<Keys>()) as fn() -> _);
        Self { kind: kind << KEY.count_ones(), name, slab, _handle: std::marker::PhantomData }
    }

    pub(crate) fn insert(&self, value: T) -> Result<*mut H, Failure> {
        let key = self.slab.insert(value);
        let key = key.ok_or_else(|| failure(ONELANE_INTERNAL, "there are too many handles"))?;
        Ok(std::ptr::without_provenance_mut(self.kind | key))
    }

    fn key(&self, handle: *mut H) -> Result<usize, Failure> {
        let name = handle.addr();
        if name & !KEY == self.kind { Ok(name & KEY) } else { Err(self.invalid()) }
    }

    fn invalid(&self) -> Failure {
        let text = format!("this is no {}, or one that was released or has ended", self.name);
        failure(ONELANE_INVALID_HANDLE, text)
    }

    /// A look at the value. It must be short: [`take`](Self::take) waits for it.
    pub(crate) fn with<R>(&self, handle: *mut H, look: impl FnOnce(&T) -> R) -> Result<R, Failure> {
        let entry = self.slab.get(self.key(handle)?).ok_or_else(|| self.invalid())?;
        Ok(look(&entry))
    }

    /// Ends the handle.
    pub(crate) fn take(&self, handle: *mut H) -> Result<T, Failure> {
        self.slab.take(self.key(handle)?).ok_or_else(|| self.invalid())
    }
}
