//! A call's requests as a group: admitted whole or refused whole, answered in order, and given up
//! together.
//!
//! A call that could never fit into the queue is fed to it a part at a time: the first part is
//! admitted or refused as any group; the others wait for room, at most one beside the one that
//! runs.

use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use onelane::{BatchItem, BatchQueue, Engine, Refusal, Request, RequestError, ResponseHandle};

/// Why a group has no answers.
#[derive(Debug)]
pub(crate) enum GroupError {
    /// It was not accepted.
    Refused(Refusal),
    /// The request of this number has no answer; the others were given up.
    Failed(usize, RequestError),
}

/// What is known of an item before it becomes a request.
pub(crate) struct Weighed<I> {
    pub(crate) cost: usize,
    pub(crate) request: Request<I>,
}

impl<I: BatchItem> Weighed<I> {
    /// `prepare` sets priority and deadline.
    pub(crate) fn new(item: I, prepare: impl FnOnce(Request<I>) -> Request<I>) -> Self {
        Self { cost: item.cost(), request: prepare(Request::new(item)) }
    }
}

/// Runs a group.
///
/// # Errors
/// [`GroupError`] with the first request, in time, that failed.
///
/// # Cancellation
/// Dropping the future takes out of the queue what has not started.
pub(crate) async fn run<E: Engine>(
    queue: &BatchQueue<E>,
    items: Vec<Weighed<E::Item>>,
) -> Result<Vec<E::Output>, GroupError> {
    let config = queue.config();
    let cost = items.iter().fold(0, |sum: usize, item| sum.saturating_add(item.cost));
    if items.len() <= config.capacity && cost <= config.capacity_cost {
        let handles = admit(queue, items)?;
        return answers(handles, 0).await;
    }
    let parts = cut(items, config.max_batch_size.min(config.capacity), config.capacity_cost);
    let answered = stream::iter(parts).map(|(start, part)| async move {
        let handles = if start == 0 {
            admit(queue, part)?
        } else {
            let requests = part.into_iter().map(|item| item.request);
            let submitted = queue.submit_group_async(requests).await;
            submitted.map_err(|error| GroupError::Refused(error.reason().clone()))?
        };
        answers(handles, start).await
    });
    let parts: Vec<Vec<E::Output>> = answered.buffered(2).try_collect().await?;
    Ok(parts.into_iter().flatten().collect())
}

fn admit<E: Engine>(
    queue: &BatchQueue<E>,
    items: Vec<Weighed<E::Item>>,
) -> Result<Vec<ResponseHandle<E::Output>>, GroupError> {
    let requests = items.into_iter().map(|item| item.request);
    let submitted = queue.try_submit_group(requests);
    submitted.map_err(|error| GroupError::Refused(error.reason().clone()))
}

/// All answers, or the first failure; then the other handles are dropped, which cancels them.
async fn answers<T: Send + 'static>(
    handles: Vec<ResponseHandle<T>>,
    start: usize,
) -> Result<Vec<T>, GroupError> {
    let named = handles.into_iter().enumerate().map(|(index, handle)| async move {
        handle.await.map_err(|error| GroupError::Failed(start + index, error))
    });
    try_join_all(named).await
}

/// Parts of at most `count` items and `cost`, each with the number of its first item.
fn cut<I>(items: Vec<Weighed<I>>, count: usize, cost: usize) -> Vec<(usize, Vec<Weighed<I>>)> {
    let mut parts: Vec<(usize, Vec<Weighed<I>>)> = Vec::new();
    let mut weight = 0_usize;
    for (index, item) in items.into_iter().enumerate() {
        weight = weight.saturating_add(item.cost);
        match parts.last_mut() {
            Some((_, part)) if part.len() < count && weight <= cost => part.push(item),
            _ => {
                weight = item.cost;
                parts.push((index, vec![item]));
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_respect_both_limits_and_keep_the_order() {
        let items = [3, 3, 3, 9, 1, 1, 1, 1]
            .map(|cost| Weighed { cost, request: Request::new(cost) })
            .into_iter()
            .collect();
        let parts = cut(items, 3, 6);
        let shape: Vec<(usize, Vec<usize>)> = parts
            .into_iter()
            .map(|(start, part)| (start, part.into_iter().map(|item| item.cost).collect()))
            .collect();
        let expected =
            [(0, vec![3, 3]), (2, vec![3]), (3, vec![9]), (4, vec![1, 1, 1]), (7, vec![1])];
        assert_eq!(shape, expected);
    }
}
