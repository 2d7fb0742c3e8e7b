//! Storage by slot, where somebody else says which slots are free: a request gets its slot when it is
//! accepted, before it is stored, so that whoever submitted it knows where it will be.

use std::ops::{Index, IndexMut};

/// Values by slot.
pub(crate) struct Slots<T> {
    slots: Vec<Option<T>>,
    taken: usize,
}

const TAKEN: &str = "a slot that is named holds a value";

impl<T> Slots<T> {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), taken: 0 }
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken == 0
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&T> {
        self.slots.get(slot)?.as_ref()
    }

    /// Puts a value into a free slot.
    #[inline]
    pub(crate) fn put(&mut self, slot: usize, value: T) {
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        let place = &mut self.slots[slot];
        debug_assert!(place.is_none(), "slot {slot} was given to two");
        *place = Some(value);
        self.taken += 1;
    }

    /// Takes the value out of a slot, which is free afterwards.
    #[inline]
    pub(crate) fn take(&mut self, slot: usize) -> T {
        self.taken -= 1;
        self.slots[slot].take().expect(TAKEN)
    }
}

impl<T> Index<usize> for Slots<T> {
    type Output = T;
    fn index(&self, slot: usize) -> &T {
        self.slots[slot].as_ref().expect(TAKEN)
    }
}

impl<T> IndexMut<usize> for Slots<T> {
    fn index_mut(&mut self, slot: usize) -> &mut T {
        self.slots[slot].as_mut().expect(TAKEN)
    }
}
