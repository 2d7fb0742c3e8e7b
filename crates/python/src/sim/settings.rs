//! [`Settings`]: how Python asks for a simulated device.

use std::sync::OnceLock;
use std::time::Duration;

use onelane_sim::{Memo, Profile, Reuse, Schedule, SimConfig, StreamPolicy};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Results of pure commands that all devices of this process keep for each other, in bytes.
const MEMO_BYTES: usize = 768 << 20;

/// The settings, as a dict from `onelane.sim`.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Settings {
    profile: String,
    seed: u64,
    schedule: String,
    /// Of PCT: the number of ordering constraints to hit.
    depth: u32,
    trace: bool,
    hang_after: f64,
    reuse: Option<String>,
    streams: Option<String>,
    thread_cache: bool,
    /// Aborts, hangs and memory of the graph cache are the process's.
    real_faults: bool,
}

impl Settings {
    /// The device's configuration.
    ///
    /// # Errors
    /// `ValueError`, which names what there is.
    pub(crate) fn config(&self) -> PyResult<SimConfig> {
        let profile = self.profile.parse::<Profile>();
        let mut profile = profile.map_err(|error| PyValueError::new_err(error.to_string()))?;
        if let Some(reuse) = &self.reuse {
            profile = profile.with_reuse(match reuse.as_str() {
                "shared" => Reuse::Shared,
                "per_stream" => Reuse::PerStream,
                "retain" => Reuse::Retain,
                other => return Err(unknown("reuse", other, "shared, per_stream, retain")),
            });
        }
        if let Some(streams) = &self.streams {
            profile = profile.with_streams(match streams.as_str() {
                "shared" => StreamPolicy::Shared,
                "per_thread" => StreamPolicy::PerThread,
                other => return Err(unknown("streams", other, "shared, per_thread")),
            });
        }
        if !self.thread_cache {
            profile = profile.with_thread_cache(None);
        }
        profile = profile.with_real_faults(self.real_faults);
        let schedule = match self.schedule.as_str() {
            "random" => Schedule::Random,
            "pct" => Schedule::pct(self.depth),
            other => return Err(unknown("schedule", other, "random, pct")),
        };
        let hang_after = Duration::try_from_secs_f64(self.hang_after)
            .map_err(|error| PyValueError::new_err(format!("hang_after: {error}")))?;
        static MEMO: OnceLock<Memo> = OnceLock::new();
        let memo = MEMO.get_or_init(|| Memo::new(MEMO_BYTES)).clone();
        let config = SimConfig::new(profile).seed(self.seed).schedule(schedule).memo(memo);
        Ok(config.traced(self.trace).hang_after(hang_after))
    }
}

fn unknown(what: &str, given: &str, known: &str) -> PyErr {
    PyValueError::new_err(format!("there is no {what} `{given}`; there are {known}"))
}
