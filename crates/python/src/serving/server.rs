//! A server that runs beside the interpreter, on threads of its own.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use onelane_server::{Listener, ServeError, Server as Core, ServerConfig, Signals, Stop};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;

use super::model::{ModelSpec, QueueSettings, optional_seconds};
use super::state::{Stage, State};
use crate::failure::from_build;
use crate::interpreter::{Step, wait};
use crate::waiting::{is_over, patience, seconds, until};

/// The settings of a server, by the names of `onelane serve`.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Settings {
    hostname: String,
    port: u16,
    uds_path: Option<PathBuf>,
    max_client_batch_size: usize,
    payload_limit: usize,
    auto_truncate: bool,
    matryoshka: bool,
    token_ids: bool,
    request_timeout: Option<f64>,
    api_key: Option<String>,
    cors_allow_origin: Vec<String>,
    self_check: bool,
    drain_delay: f64,
    drain_timeout: f64,
    stall_exit: Option<f64>,
}

impl Settings {
    fn config(&self) -> PyResult<ServerConfig> {
        Ok(ServerConfig::default()
            .max_texts(self.max_client_batch_size)
            .payload_limit(self.payload_limit)
            .auto_truncate(self.auto_truncate)
            .matryoshka(self.matryoshka)
            .token_ids(self.token_ids)
            .request_timeout(optional_seconds("request_timeout", self.request_timeout)?)
            .api_key(self.api_key.clone())
            .cors_origins(self.cors_allow_origin.clone())
            .self_check(self.self_check)
            .drain_delay(seconds("drain_delay", self.drain_delay)?)
            .drain_timeout(seconds("drain_timeout", self.drain_timeout)?)
            .stall_exit(optional_seconds("stall_exit", self.stall_exit)?))
    }
}

/// A running server. Dropping it does not end it.
#[pyclass(frozen, module = "onelane._onelane", name = "Server")]
pub(crate) struct Server {
    address: String,
    stop: Stop,
    state: Arc<State>,
}

#[pymethods]
impl Server {
    /// Listens, and starts to load the models.
    #[new]
    fn new(
        py: Python<'_>,
        models: Vec<ModelSpec>,
        queues: QueueSettings,
        settings: Settings,
    ) -> PyResult<Self> {
        let config = queues.config()?;
        let models = models.into_iter().map(|spec| spec.into_model(py, &config));
        let models = models.collect::<PyResult<Vec<_>>>()?;
        let server = Core::new(settings.config()?, models)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .worker_threads(cores)
            // They tokenise what is long: more of them than cores would only take memory.
            .max_blocking_threads(cores + 2)
            .thread_name("onelane-http")
            .build()?;
        let entered = runtime.enter();
        let listener = match &settings.uds_path {
            Some(path) => Listener::unix(path),
            None => Listener::host(&settings.hostname, settings.port),
        };
        let listener = listener.map_err(|error| cannot_listen(&error))?;
        drop(entered);
        let address = listener.to_string();
        let (stop, signals) = Signals::manual();
        let state = Arc::<State>::default();
        let running = Arc::clone(&state);
        std::thread::Builder::new().name("onelane-server".to_owned()).spawn(move || {
            let served = runtime.block_on(run(server, listener, signals, Arc::clone(&running)));
            // What still runs there has been told that it is over.
            runtime.shutdown_background();
            running.ended(served.err());
        })?;
        Ok(Self { address, stop, state })
    }

    /// Where it listens.
    #[getter]
    fn address(&self) -> &str {
        &self.address
    }

    /// Whether its models are loaded and checked, and it has not ended.
    fn is_ready(&self) -> bool {
        self.state.is_ready()
    }

    fn has_ended(&self) -> bool {
        self.state.has_ended()
    }

    /// Drains; a second time aborts.
    fn stop(&self) {
        self.stop.signal();
    }

    /// Waits until it is ready or has ended; raises why it ended.
    fn wait_ready(&self, py: Python<'_>) -> PyResult<()> {
        self.wait_for(py, |stage| !matches!(stage, Stage::Loading), None)?;
        self.raise(py)
    }

    /// Waits until it has ended; `False`: the time was over first. Raises why it ended.
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let ended = self.wait_for(py, |stage| matches!(stage, Stage::Ended), until(timeout)?)?;
        self.raise(py)?;
        Ok(ended)
    }
}

impl Server {
    fn wait_for(
        &self,
        py: Python<'_>,
        wanted: fn(&Stage) -> bool,
        until: Option<Instant>,
    ) -> PyResult<bool> {
        let state = &self.state;
        wait(py, (), move |(), slice| match state.wait(wanted, patience(until, slice)) {
            true => Step::Done(true),
            false if is_over(until) => Step::Done(false),
            false => Step::Again(()),
        })
    }

    fn raise(&self, py: Python<'_>) -> PyResult<()> {
        match self.state.error() {
            None => Ok(()),
            Some(ServeError::Load { source, .. }) => Err(from_build(py, &source)),
            Some(error @ (ServeError::Hung { .. } | ServeError::Aborted { .. })) => {
                Err(PyTimeoutError::new_err(error.to_string()))
            }
            Some(error) => Err(PyRuntimeError::new_err(error.to_string())),
        }
    }
}

async fn run(
    server: Core,
    listener: Listener,
    signals: Signals,
    state: Arc<State>,
) -> Result<(), ServeError> {
    let loaded = server.loaded();
    tokio::spawn(async move {
        if loaded.await {
            state.ready();
        }
    });
    server.serve(listener, signals).await
}

fn cannot_listen(error: &io::Error) -> PyErr {
    PyOSError::new_err(error.to_string())
}
