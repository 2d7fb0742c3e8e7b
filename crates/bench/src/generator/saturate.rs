//! [`saturate`]: a target that is never empty.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::bail;

use super::observer::{Asked, Observer, Ran};
use super::target::{Refused, Submit};

/// Keeps `depth` requests under way from one thread, as long as `go_on` says so. Answers that come
/// after that are noted as late.
///
/// # Errors
/// When the target is gone.
///
/// # Blocking
/// Until the last answer is there.
pub fn saturate<T: Submit, O: Observer<Reply = T::Reply>>(
    target: &T,
    depth: usize,
    mut observer: O,
    mut go_on: impl FnMut() -> bool,
) -> anyhow::Result<Ran<O>> {
    let mut under_way = VecDeque::with_capacity(depth);
    let mut numbers = 0..;
    let started = Instant::now();
    while go_on() {
        while under_way.len() < depth.max(1) {
            let number = numbers.next().unwrap_or(0);
            let sent = Instant::now();
            match target.submit(number) {
                Ok(pending) => {
                    under_way.push_back((Asked { client: 0, number, due: sent, sent }, pending));
                }
                Err(Refused::Full) => break,
                Err(Refused::Gone(error)) => bail!("{error}"),
            }
        }
        if let Some((asked, oldest)) = under_way.pop_front() {
            observer.note(&asked, target.wait(oldest), true);
        }
    }
    let took = started.elapsed();
    for (asked, pending) in under_way {
        observer.note(&asked, target.wait(pending), false);
    }
    Ok(Ran { observer, took })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{Ready, ready};

    use super::*;

    /// Answers when it is waited for; knows how many are under way.
    #[derive(Default)]
    struct Counting {
        under_way: Cell<usize>,
        most: Cell<usize>,
    }

    impl Submit for Counting {
        type Reply = u64;
        type Pending = Ready<u64>;

        fn submit(&self, number: u64) -> Result<Ready<u64>, Refused> {
            if number == 100 {
                return Err(Refused::Gone("it was enough".to_owned()));
            }
            self.under_way.set(self.under_way.get() + 1);
            self.most.set(self.most.get().max(self.under_way.get()));
            Ok(ready(number))
        }

        fn try_submit(&self, number: u64) -> Result<Ready<u64>, Refused> {
            self.submit(number)
        }

        fn wait(&self, pending: Ready<u64>) -> u64 {
            self.under_way.set(self.under_way.get() - 1);
            pending.into_inner()
        }
    }

    #[derive(Default)]
    struct Noted {
        in_time: Vec<u64>,
        late: Vec<u64>,
    }

    impl Observer for Noted {
        type Reply = u64;

        fn first(&mut self, _: &Asked, _: u64) -> Result<(), String> {
            Ok(())
        }

        fn note(&mut self, asked: &Asked, reply: u64, in_time: bool) {
            assert_eq!(asked.number, reply);
            if in_time { self.in_time.push(reply) } else { self.late.push(reply) }
        }

        fn merge(&mut self, _: Self) {}
    }

    #[test]
    fn so_many_are_under_way_and_all_are_answered() {
        let (target, mut rounds) = (Counting::default(), 10);
        let go_on = || {
            rounds -= 1;
            rounds >= 0
        };
        let ran = saturate(&target, 4, Noted::default(), go_on).unwrap();
        assert!(ran.observer.in_time.into_iter().eq(0..10), "the oldest first");
        assert!(ran.observer.late.into_iter().eq(10..13));
        assert_eq!((target.most.get(), target.under_way.get()), (4, 0));
    }

    #[test]
    fn a_target_that_is_gone_ends_it() {
        let error = saturate(&Counting::default(), 4, Noted::default(), || true).err();
        assert_eq!(error.unwrap().to_string(), "it was enough");
    }
}
