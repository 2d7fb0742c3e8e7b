//! The supervisor of an isolated queue's children, as Python's front has it.

use std::process::Command;
use std::time::Duration;

use onelane_isolate::{IsolationConfig, Supervisor as Core};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::failure::forked;
use crate::interpreter::generation;

/// Starts and watches the children of one queue.
#[pyclass(frozen, module = "onelane._onelane", name = "Supervisor")]
pub(crate) struct Supervisor {
    /// `None` in `drop` alone.
    core: Option<Core>,
    codec: Py<PyAny>,
    generation: u64,
}

#[pymethods]
impl Supervisor {
    /// command: the program and its arguments; env: what is set beside this process's variables;
    /// payload: what the child is to build; codec: see `RemoteFactory`; on_line: called with each
    /// line that a child writes, on a thread of its own.
    #[new]
    #[pyo3(signature = (command, env, payload, codec, on_line, **settings))]
    fn new(
        command: Vec<String>,
        env: Vec<(String, String)>,
        payload: Vec<u8>,
        codec: Py<PyAny>,
        on_line: Py<PyAny>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(PyValueError::new_err("the command of an isolated worker is empty"));
        };
        let (program, arguments) = (program.clone(), arguments.to_vec());
        let make = move || {
            let mut command = Command::new(&program);
            command.args(&arguments).envs(env.iter().map(|(name, value)| (name, value)));
            command
        };
        let config = read(settings)?.payload(payload).on_line(move |line| hand_on(&on_line, line));
        let core = Core::new(make, config);
        let core = core.map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self { core: Some(core), codec, generation: generation() })
    }

    /// The counters, as a dict.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.core(py)?.stats();
        let dict = PyDict::new(py);
        dict.set_item("starts", stats.starts)?;
        dict.set_item("failed_starts", stats.failed_starts)?;
        dict.set_item("crashes", stats.crashes)?;
        dict.set_item("hangs", stats.hangs)?;
        dict.set_item("poisonings", stats.engine_losses)?;
        dict.set_item("protocol_errors", stats.protocol_errors)?;
        dict.set_item("retries", stats.retries)?;
        dict.set_item("recycled_for_memory", stats.recycled_for_memory)?;
        dict.set_item("recycled_for_batches", stats.recycled_for_batches)?;
        dict.set_item("recycled_for_age", stats.recycled_for_age)?;
        dict.set_item("stuck", stats.stuck)?;
        dict.set_item("footprint", stats.footprint)?;
        dict.set_item("max_footprint", stats.max_footprint)?;
        dict.set_item("last_start_s", stats.last_start.as_secs_f64())?;
        dict.set_item("pids", stats.children)?;
        dict.set_item("spare", stats.spare)?;
        Ok(dict)
    }
}

impl Supervisor {
    pub(crate) fn core(&self, py: Python<'_>) -> PyResult<&Core> {
        match &self.core {
            Some(core) if self.generation == generation() => Ok(core),
            _ => Err(forked(py, "isolated worker")),
        }
    }

    pub(crate) fn codec(&self, py: Python<'_>) -> Py<PyAny> {
        self.codec.clone_ref(py)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if self.generation != generation() {
            // The children are the parent's: dropping them here would kill them.
            std::mem::forget(self.core.take());
        }
    }
}

/// Gives a line to Python; one that comes when the interpreter is ending goes to stderr.
fn hand_on(on_line: &Py<PyAny>, line: &str) {
    let handed = Python::try_attach(|py| {
        if let Err(error) = on_line.call1(py, (line,)) {
            error.write_unraisable(py, None);
        }
    });
    if handed.is_none() {
        eprintln!("{line}");
    }
}

fn read(settings: Option<&Bound<'_, PyDict>>) -> PyResult<IsolationConfig> {
    let mut config = IsolationConfig::default();
    let Some(settings) = settings else {
        return Ok(config);
    };
    for (name, value) in settings.iter() {
        if value.is_none() {
            continue;
        }
        let name: String = name.extract()?;
        let seconds = || -> PyResult<Duration> {
            let value: f64 = value.extract()?;
            Duration::try_from_secs_f64(value)
                .map_err(|error| PyValueError::new_err(format!("{name}={value}: {error}")))
        };
        config = match name.as_str() {
            "hang_s" => config.hang(seconds()?),
            "start_s" => config.start(seconds()?),
            "abort_grace_s" => config.abort_grace(seconds()?),
            "max_memory" => config.max_memory(value.extract::<u64>()?),
            "recycle_batches" => config.recycle_batches(value.extract::<u64>()?),
            "recycle_s" => config.recycle_after(seconds()?),
            "spare" => config.spare(value.extract::<bool>()?),
            "retries" => config.retries(value.extract::<u32>()?),
            "max_payload" => config.max_payload(value.extract::<u64>()?),
            _ => return Err(PyValueError::new_err(format!("unknown setting {name:?}"))),
        };
    }
    Ok(config)
}
