//! A loaded model's queue, and a call's way through it, whatever the call's items are.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use onelane::{BatchQueue, Engine, Request};

use crate::call::Call;
use crate::failure::{Failure, Kind};
use crate::group::{self, GroupError, Weighed};
use crate::rate::{Busy, Rate};

/// A loaded model's queue.
pub(crate) struct Lane<E: Engine> {
    pub(crate) queue: BatchQueue<E>,
    pub(crate) rate: Rate,
    pub(crate) busy: Busy,
    /// Names the queue among those of its device.
    pub(crate) place: (String, String),
}

impl<E: Engine> Lane<E> {
    /// Runs the items of a call; `part` names each in errors.
    ///
    /// # Errors
    /// It was refused, or the first item that failed.
    ///
    /// # Cancellation
    /// Dropping the future takes out of the queue what has not started.
    pub(crate) async fn answer(
        &self,
        items: Vec<E::Item>,
        call: Call,
        part: impl Fn(usize) -> String,
    ) -> Result<Vec<E::Output>, Failure> {
        let class = call.class(items.len());
        let prepare = |request: Request<E::Item>| {
            let request = request.priority(class);
            match call.deadline {
                Some(deadline) => request.deadline(deadline),
                None => request,
            }
        };
        let items = items.into_iter().map(|item| Weighed::new(item, prepare)).collect();
        let answers = group::run(&self.queue, items);
        match self.patience(&call) {
            Some(until) => tokio::time::timeout_at(until.into(), answers)
                .await
                .map_err(|_| Failure::new(Kind::Deadline, "the device has not answered in time"))?,
            None => answers.await,
        }
        .map_err(|error| match error {
            GroupError::Refused(refusal) => Failure::refused(&refusal, self.retry_after()),
            GroupError::Failed(index, error) => Failure::failed(&error, part(index)),
        })
    }

    /// A request that has started is delivered past its deadline; one in a batch that hangs is not
    /// waited for.
    fn patience(&self, call: &Call) -> Option<Instant> {
        call.deadline?.checked_add(self.queue.config().stall_after)
    }

    fn retry_after(&self) -> Duration {
        let stats = || {
            let stats = self.queue.stats();
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.insert(self.place.clone(), stats.waiting + stats.running > 0);
            stats
        };
        let shared_by = || {
            let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.iter().filter(|((device, _), busy)| **busy && *device == self.place.0).count()
        };
        self.rate.estimate(Instant::now(), stats, shared_by)
    }
}
