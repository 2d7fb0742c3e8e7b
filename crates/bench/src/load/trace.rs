//! [`Trace`]: what happened when, as Chrome trace events (`chrome://tracing`, Perfetto).
//!
//! Each run is a process of its own. In it each engine has a track with its batches (from the
//! engine's start to the last answer handed over) and, in each of them, the time of the engine
//! itself. Requests overlap, so they are asynchronous events, on their client's track: from when
//! they were due to when the client had the answer, with the number of the batch that it came from.

use std::time::Instant;

use serde_json::{Value, json};

use super::observed::BatchSpan;

/// One request, for the trace.
#[derive(Clone, Copy, Debug)]
pub struct RequestSpan {
    /// The client's number.
    pub client: usize,
    /// When it was due.
    pub due: Instant,
    /// When the client had the answer.
    pub answered: Instant,
    /// The batch that it was computed in.
    pub batch: u64,
}

/// Events since the trace was begun.
pub struct Trace {
    begun: Instant,
    events: Vec<Value>,
    processes: usize,
    requests: usize,
}

/// The track of the first client, behind those of the engines.
const FIRST_CLIENT: usize = 100_000;

/// A file that a viewer opens without trouble.
const MOST_EVENTS: usize = 400_000;

impl Trace {
    /// An empty trace; time counts from now.
    pub fn new() -> Self {
        Self { begun: Instant::now(), events: Vec::new(), processes: 0, requests: 0 }
    }

    /// Adds a run. Of many events the later ones are left out; the process's name says so.
    pub fn add(&mut self, name: &str, batches: &[BatchSpan], requests: &[RequestSpan]) {
        let process = self.processes;
        self.processes += 1;
        let room = MOST_EVENTS.saturating_sub(self.events.len());
        let whole = 2 * batches.len() + 2 * requests.len();
        let part = (room as f64 / whole.max(1) as f64).min(1.0);
        let keep = |count: usize| (count as f64 * part) as usize;
        let name = match part < 1.0 {
            true => format!("{name} (the first {:.0}% of it)", 100.0 * part),
            false => name.to_owned(),
        };
        self.meta("process_name", process, 0, &name);
        let mut engines: Vec<usize> = batches.iter().map(|batch| batch.engine).collect();
        engines.sort_unstable();
        engines.dedup();
        for engine in engines {
            self.meta("thread_name", process, engine, &format!("engine {engine}"));
        }
        for batch in batches.iter().take(keep(batches.len())) {
            let args = json!({"batch": batch.number, "size": batch.size});
            let end = batch.delivered.unwrap_or(batch.computed);
            let mut span = |name: &str, category: &str, end: Instant| {
                let event = json!({
                    "name": name, "cat": category, "ph": "X", "pid": process,
                    "tid": batch.engine,
                    "ts": self.at(batch.begun), "dur": self.at(end) - self.at(batch.begun),
                    "args": args,
                });
                self.events.push(event);
            };
            span("batch", "batch", end);
            span("engine", "engine", batch.computed);
        }
        for request in requests.iter().take(keep(requests.len())) {
            let id = self.requests;
            self.requests += 1;
            let track = FIRST_CLIENT + request.client;
            for (phase, at) in [("b", request.due), ("e", request.answered)] {
                let event = json!({
                    "name": "request", "cat": "request", "ph": phase, "id": id, "pid": process,
                    "tid": track, "ts": self.at(at), "args": {"batch": request.batch},
                });
                self.events.push(event);
            }
        }
    }

    fn meta(&mut self, what: &str, process: usize, track: usize, name: &str) {
        let args = json!({"name": name});
        let event = json!({"name": what, "ph": "M", "pid": process, "tid": track, "args": args});
        self.events.push(event);
    }

    /// Microseconds since the trace was begun.
    fn at(&self, instant: Instant) -> f64 {
        instant.saturating_duration_since(self.begun).as_nanos() as f64 / 1e3
    }

    /// The file.
    pub fn into_json(self) -> String {
        json!({"displayTimeUnit": "ms", "traceEvents": self.events}).to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_batch_holds_its_engine_time_and_a_request_names_its_batch() {
        let mut trace = Trace::new();
        let at = |us| trace.begun + Duration::from_micros(us);
        let batch = BatchSpan {
            number: 5,
            engine: 0,
            size: 2,
            begun: at(20),
            computed: at(50),
            delivered: Some(at(60)),
        };
        let request = RequestSpan { client: 3, due: at(10), answered: at(70), batch: 5 };
        trace.add("queue", &[batch], &[request]);
        let file: Value = serde_json::from_str(&trace.into_json()).unwrap();
        let events = file["traceEvents"].as_array().unwrap();
        let of = |name: &str, phase: &str| {
            let found = |e: &&Value| e["name"] == name && e["ph"] == phase;
            events.iter().find(found).unwrap_or_else(|| panic!("no {name} {phase}: {events:?}"))
        };
        let (batch, engine) = (of("batch", "X"), of("engine", "X"));
        assert_eq!((batch["ts"].as_f64(), batch["dur"].as_f64()), (Some(20.0), Some(40.0)));
        assert_eq!((engine["ts"].as_f64(), engine["dur"].as_f64()), (Some(20.0), Some(30.0)));
        let (begin, end) = (of("request", "b"), of("request", "e"));
        assert_eq!((begin["ts"].as_f64(), end["ts"].as_f64()), (Some(10.0), Some(70.0)));
        assert_eq!(
            (begin["args"]["batch"].as_u64(), batch["args"]["size"].as_u64()),
            (Some(5), Some(2))
        );
        assert_eq!(begin["id"], end["id"]);
    }
}
