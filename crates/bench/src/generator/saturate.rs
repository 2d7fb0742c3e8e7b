//! [`saturate`]: a target that is never empty.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::bail;

use super::observer::{Asked, Observer, Ran};
use super::target::{Refused, Submit};

/// Keeps `depth` requests under way from one thread, as long as `go_on` says so. Answers that come after
/// that are noted as late.
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
