//! [`Judge`]: compares each answer with that of the same request alone, and counts.

use std::sync::Arc;
use std::time::Instant;

use onelane_bench::generator::{Asked, Latencies, Observer};

use super::stage::{Answered, Stage};
use super::strategy::Strategy;
use super::trace::RequestSpan;
use super::workload::Workload;

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Requests answered rightly before the end.
    pub answered: u64,
    /// Of all requests that have been answered rightly, those after the end too, and the ages of
    /// those that were missed.
    pub latencies: Latencies,
    /// Answers that were not right.
    pub wrong: u64,
    /// Requests that had an error for an answer.
    pub failed: u64,
    /// The first of these errors.
    pub error: Option<String>,
    /// A span for each request, if the strategy's meter is tracing.
    pub spans: Vec<RequestSpan>,
}

/// The observer of one client.
pub struct Judge<W: Workload> {
    stage: Arc<Stage<W>>,
    traced: bool,
    /// What it saw.
    pub seen: Seen,
}

impl<W: Workload> Judge<W> {
    /// Of a client of this strategy.
    pub fn new(stage: &Arc<Stage<W>>, strategy: Strategy) -> Self {
        let traced = stage.meter(strategy).is_tracing();
        Self { stage: Arc::clone(stage), traced, seen: Seen::default() }
    }
}

impl<W: Workload> Observer for Judge<W> {
    type Reply = Result<Answered<W>, String>;

    fn first(&mut self, _: &Asked, reply: Self::Reply) -> Result<(), String> {
        reply.map(drop)
    }

    fn note(&mut self, asked: &Asked, reply: Self::Reply, in_time: bool) {
        let now = Instant::now();
        let seen = &mut self.seen;
        match reply {
            Ok(answer) if self.stage.is_right(asked.number, &answer) => {
                seen.answered += u64::from(in_time);
                seen.latencies.record(asked.due, now);
                if self.traced {
                    seen.spans.push(RequestSpan {
                        client: asked.client,
                        due: asked.due,
                        answered: now,
                        batch: answer.batch,
                    });
                }
            }
            Ok(_) => seen.wrong += 1,
            Err(error) => {
                seen.failed += 1;
                seen.error.get_or_insert(error);
            }
        }
    }

    fn missed(&mut self, asked: &Asked, over: Instant) {
        self.seen.latencies.record(asked.due, over);
    }

    fn merge(&mut self, other: Self) {
        let (seen, other) = (&mut self.seen, other.seen);
        seen.answered += other.answered;
        seen.latencies.add(&other.latencies);
        seen.wrong += other.wrong;
        seen.failed += other.failed;
        seen.error = seen.error.take().or(other.error);
        seen.spans.extend(other.spans);
    }
}
