//! A user's code that has to run under a lock, a key's `Eq`, must not ask this crate for anything:
//! that would wait for the lock for ever. It is told so instead, by a panic that is contained.

use std::cell::Cell;

use super::catch_panic::catch_panic;

std::thread_local! {
    static FORBIDDEN: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body`, under a lock; in it [`may_lock`] panics. A panic becomes its message.
pub(crate) fn forbid_locking<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    FORBIDDEN.set(true);
    let result = catch_panic(body);
    FORBIDDEN.set(false);
    result
}

/// Comes before each lock of an executor.
///
/// # Panics
/// In the `Eq` of a batch key.
#[inline]
pub(crate) fn may_lock() {
    assert!(!FORBIDDEN.get(), "the Eq of a batch key must not use a queue or an executor");
}
