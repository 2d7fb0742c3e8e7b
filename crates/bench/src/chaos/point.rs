//! [`Point`]: what came of one offered load.

use serde::Serialize;

/// One offered load.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Point {
    /// Offered load in parts of the capacity, as it came out.
    pub(super) load: f64,
    pub(super) offered_per_second: f64,
    pub(super) goodput_per_second: f64,
    /// What the engine could have answered in this very run, by the time that its batches took: on
    /// a busy machine they take longer than they should.
    pub(super) possible_per_second: f64,
    pub(super) refused_per_second: f64,
    /// Latency of accepted requests, from the call of submit to the answer.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// What bounds that: the batches of a full queue and two more, each as slow as one in a
    /// hundred, and a quarter for what lies between batches.
    pub(super) bound_ms: f64,
    /// How long a refusal takes.
    pub(super) refusal_p99_us: f64,
    /// The most requests seen waiting.
    pub(super) waiting_max: usize,
    pub(super) rss_mib: f64,
}
