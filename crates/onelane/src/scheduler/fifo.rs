//! First-in-first-out lists threaded through the values of one storage, so that an entry can stand in
//! two lists at once and leave both from the middle in constant time.

use std::num::NonZeroU32;

use slab::Slab;

/// An index, one added. With `None` it takes four bytes where an `Option<usize>` takes sixteen; each
/// entry has four, and the fewer bytes wait, the more of them stay in the processor's caches.
#[derive(Clone, Copy, Debug)]
struct At(NonZeroU32);

impl At {
    #[inline]
    fn new(index: usize) -> Self {
        let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("fewer than four thousand million requests wait"))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// The neighbours of an entry in one list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Links {
    previous: Option<At>,
    next: Option<At>,
}

/// An entry that stands in `LISTS` lists.
pub(crate) trait Linked<const LISTS: usize> {
    fn links(&mut self) -> &mut [Links; LISTS];
    fn next(&self, list: usize) -> Option<usize>;
}

/// Access for implementors of [`Linked`].
impl Links {
    pub(crate) fn following(&self) -> Option<usize> {
        self.next.map(At::index)
    }
}

/// A list by its ends; `list` says which of an entry's links belong to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fifo {
    list: usize,
    head: Option<usize>,
    tail: Option<usize>,
}

impl Fifo {
    pub(crate) const fn new(list: usize) -> Self {
        Self { list, head: None, tail: None }
    }

    pub(crate) fn head(&self) -> Option<usize> {
        self.head
    }

    pub(crate) fn push_back<T: Linked<N>, const N: usize>(
        &mut self,
        slots: &mut Slab<T>,
        index: usize,
    ) {
        slots[index].links()[self.list] = Links { previous: self.tail.map(At::new), next: None };
        match self.tail {
            Some(tail) => slots[tail].links()[self.list].next = Some(At::new(index)),
            None => self.head = Some(index),
        }
        self.tail = Some(index);
    }

    /// Takes `index`, which stands in this list, out of it.
    pub(crate) fn unlink<T: Linked<N>, const N: usize>(
        &mut self,
        slots: &mut Slab<T>,
        index: usize,
    ) {
        let Links { previous, next } = std::mem::take(&mut slots[index].links()[self.list]);
        match previous {
            Some(previous) => slots[previous.index()].links()[self.list].next = next,
            None => self.head = next.map(At::index),
        }
        match next {
            Some(next) => slots[next.index()].links()[self.list].previous = previous,
            None => self.tail = previous.map(At::index),
        }
    }

    /// The slots in order.
    pub(crate) fn iter<'a, T: Linked<N>, const N: usize>(
        &self,
        slots: &'a Slab<T>,
    ) -> impl Iterator<Item = usize> + use<'a, T, N> {
        let list = self.list;
        std::iter::successors(self.head, move |&index| slots[index].next(list))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Node(usize, [Links; 2]);

    impl Linked<2> for Node {
        fn links(&mut self) -> &mut [Links; 2] {
            &mut self.1
        }
        fn next(&self, list: usize) -> Option<usize> {
            self.1[list].following()
        }
    }

    #[test]
    fn an_entry_leaves_both_lists_from_anywhere() {
        for victim in 0..4 {
            let mut slots = Slab::new();
            let mut lists = [Fifo::new(0), Fifo::new(1)];
            for index in 0..4 {
                slots.insert(Node(index, Default::default()));
                for list in &mut lists {
                    list.push_back(&mut slots, index);
                }
            }
            for list in &mut lists {
                list.unlink(&mut slots, victim);
                let left: Vec<usize> = list.iter(&slots).map(|index| slots[index].0).collect();
                let expected: Vec<usize> = (0..4).filter(|&v| v != victim).collect();
                assert_eq!(left, expected);
            }
        }
    }
}
