//! A value of the process, not shared with those that it is forked from.
//!
//! In the child of a fork a lock may be found taken by a thread that is not there, and a thread that
//! was started is not. So a child begins anew, with a value of its own, and leaves the parent's as it
//! is.

#![allow(clippy::disallowed_types, reason = "no lock: it is set once, by the first who asks")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// One value for each process of a line of forks.
pub struct PerProcess<T> {
    /// The process whose value this is; 0 until somebody asks.
    process: AtomicU32,
    value: T,
    /// Of the children.
    next: OnceLock<Box<Self>>,
}

impl<T: Default> PerProcess<T> {
    /// With the value of the first process that asks.
    pub const fn new(value: T) -> Self {
        Self { process: AtomicU32::new(0), value, next: OnceLock::new() }
    }

    /// The value of the present process.
    pub fn get(&self) -> &T {
        self.of(std::process::id())
    }

    fn of(&self, process: u32) -> &T {
        let mut one = self;
        loop {
            let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
            match one.process.compare_exchange(0, process, set, get) {
                Err(other) if other != process => {}
                _ => return &one.value,
            }
            one = one.next.get_or_init(|| Box::new(Self::new(T::default())));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::Mutex;

    #[test]
    fn a_child_finds_no_lock_taken_and_nothing_of_its_parent() {
        let values = PerProcess::<Mutex<u32>>::new(Mutex::new(1));
        let parents = values.of(10).lock();
        assert_eq!(*values.of(11).lock(), 0);
        *values.of(11).lock() = 7;
        assert_eq!((*values.of(11).lock(), *parents), (7, 1));
        let childs = values.of(11).lock();
        assert_eq!(*values.of(12).lock(), 0);
        drop((parents, childs));
    }
}
