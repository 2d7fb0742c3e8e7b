//! A loaded model's queue, and a call's way through it, whatever the call's items are.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use onelane::{BatchQueue, Engine, Request};
use tracing::{Instrument, Span, field};

use crate::call::Call;
use crate::failure::{Failure, Kind};
use crate::group::{self, GroupError, Weighed};
use crate::rate::{Busy, Rate};
use crate::timed::{Timed, TimedOutput};

/// A loaded model's queue.
pub(crate) struct Lane<E: Engine> {
    pub(crate) queue: BatchQueue<Timed<E>>,
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
        let span = tracing::debug_span!(
            "infer",
            onelane.model = %self.place.1,
            onelane.device = %self.place.0,
            onelane.class = ?class,
            onelane.requests = items.len() as i64,
            onelane.wait_seconds = field::Empty,
            onelane.service_seconds = field::Empty,
        );
        let items = items.into_iter().map(|item| Weighed::new(item, prepare)).collect();
        let submitted = Instant::now();
        let answers = group::run(&self.queue, items).instrument(span.clone());
        let answers = match self.patience(&call) {
            Some(until) => tokio::time::timeout_at(until.into(), answers)
                .await
                .map_err(|_| Failure::new(Kind::Deadline, "the device has not answered in time"))?,
            None => answers.await,
        }
        .map_err(|error| match error {
            GroupError::Refused(refusal) => Failure::refused(&refusal, self.retry_after()),
            GroupError::Failed(index, error) => Failure::failed(&error, part(index)),
        })?;
        record(&span, submitted, &answers);
        Ok(answers.into_iter().map(|answer| answer.output).collect())
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

/// Says how long a call waited for the first of its batches, and how long its batches took.
fn record<T>(span: &Span, submitted: Instant, answers: &[TimedOutput<T>]) {
    if span.is_disabled() {
        return;
    }
    let first = answers.iter().map(|answer| answer.started).min();
    let last = answers.iter().map(|answer| answer.ended).max();
    if let (Some(first), Some(last)) = (first, last) {
        let wait = first.saturating_duration_since(submitted);
        span.record("onelane.wait_seconds", wait.as_secs_f64());
        span.record("onelane.service_seconds", (last - first).as_secs_f64());
    }
}
