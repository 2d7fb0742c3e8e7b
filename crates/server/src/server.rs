//! The server: models, listener and the way from the first load to the last answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use onelane::{BuildError, Health, Shutdown};
use tokio::sync::{mpsc, oneshot, watch};

use crate::acceptor::Acceptor;
use crate::app::App;
use crate::collector::Queues;
use crate::config::ServerConfig;
use crate::connection::Closing;
use crate::health;
use crate::life::{Phase, Signals};
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::rate::Busy;
use crate::registry::Registry;
use crate::routes;

/// How often it is looked whether a device hangs.
const WATCH: Duration = Duration::from_secs(1);

/// How long the answers to aborted calls may take to be written.
const FLUSH: Duration = Duration::from_secs(2);

/// Why a server could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The models cannot be served together.
    #[error("{0}")]
    Models(String),
    /// A model could not be loaded.
    #[error("cannot load the model {model}: {source}")]
    Load {
        /// Its name.
        model: String,
        /// What its engine said.
        source: BuildError,
    },
    /// A model computes wrongly.
    #[error(
        "the self-check of the model {model} failed: {reason}; --self-check=false serves it anyway"
    )]
    SelfCheck {
        /// Its name.
        model: String,
        /// What was found.
        reason: String,
    },
    /// A batch has hung for so long that only a restart helps. The worker cannot be waited for: end
    /// the process.
    #[error("a batch of the model {model} hangs: this process must be started again")]
    Hung {
        /// The model's name.
        model: String,
    },
    /// Not everything had been answered when the drain timeout passed or a second signal came; what
    /// was left was told so.
    #[error("the shutdown was cut short: {connections} connections were still open")]
    Aborted {
        /// How many connections were left.
        connections: usize,
    },
}

/// A server, ready to run.
///
/// Its engines are loaded when it runs; until then every call is told that it is loading.
pub struct Server {
    app: Arc<App>,
    router: Router,
}

impl Server {
    /// A server of these models. The first of each kind answers calls that name none.
    ///
    /// # Errors
    /// [`ServeError::Models`]: none, or two of one name.
    pub fn new(config: ServerConfig, models: Vec<Model>) -> Result<Self, ServeError> {
        let models = Registry::new(models).map_err(ServeError::Models)?;
        let app = Arc::new_cyclic(|app| App {
            config: Arc::new(config),
            models,
            metrics: Metrics::new(Box::new(Queues(app.clone()))),
            started: Instant::now(),
            phase: watch::Sender::new(Phase::Loading),
            busy: Busy::default(),
        });
        let router = routes::router(&app);
        Ok(Self { app, router })
    }

    /// Resolves when the models have been loaded and checked; `false` if the server has ended before.
    pub fn loaded(&self) -> impl Future<Output = bool> + Send + 'static {
        let mut phase = self.app.phase.subscribe();
        async move { phase.wait_for(|phase| *phase != Phase::Loading).await.is_ok() }
    }

    /// Listens, loads the models, answers until it is told to stop, and drains.
    ///
    /// When it is told to stop, `/ready` fails at once; for [`ServerConfig::drain_delay`] the server
    /// still accepts, so that whoever sends traffic notices; then it accepts what waits in the
    /// listener's backlog, closes it, and finishes what it has, for up to [`ServerConfig::drain_timeout`]. A second signal aborts.
    ///
    /// # Errors
    /// [`ServeError`]: a model that cannot be loaded or fails its check, a device that hangs, or a
    /// drain that was cut short.
    ///
    /// # Cancellation
    /// Dropping the future closes all connections; the queues drain by themselves.
    pub async fn serve(self, listener: Listener, mut signals: Signals) -> Result<(), ServeError> {
        let Self { app, router } = self;
        let (close, closing) = watch::channel(Closing::Open);
        let (alive, mut connections) = mpsc::channel(1);
        let _cut = CutAtEnd(&close);
        let config = Arc::clone(&app.config);
        let acceptor = Acceptor { listener, router, config, closing, alive };
        let (stop, stopped) = oneshot::channel();
        let accepting = Accepting { task: tokio::spawn(acceptor.run(stopped)), stop: Some(stop) };

        tokio::select! {
            loaded = load(&app) => loaded?,
            // Nothing has been promised to anybody yet.
            () = signals.next() => return Ok(()),
        }
        app.phase.send_replace(Phase::Serving);
        tracing::info!("ready");
        tokio::select! {
            () = signals.next() => {}
            model = watch_devices(&app) => {
                // Dropping the last handle to an executor waits for its worker, which hangs.
                std::mem::forget(Arc::clone(&app));
                return Err(ServeError::Hung { model });
            }
        }

        app.phase.send_replace(Phase::Draining);
        tracing::info!("shutting down");
        let in_time = tokio::select! {
            finished = drain(&app, accepting, &close, &mut connections) => finished,
            () = signals.next() => Err(()),
        };
        app.phase.send_replace(Phase::Closing);
        close.send_replace(Closing::Finish);
        let mode = if in_time.is_ok() { Shutdown::Drain } else { Shutdown::Abort };
        shut_queues(&app, mode).await;
        if in_time.is_err() {
            // Those that were aborted are told so, if their connections take it.
            let connections_left = close.receiver_count();
            let _ = tokio::time::timeout(FLUSH, ended(&mut connections)).await;
            return Err(ServeError::Aborted { connections: connections_left });
        }
        Ok(())
    }
}

/// The task that accepts connections; it ends with whoever holds this.
struct Accepting {
    task: tokio::task::JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
}

impl Accepting {
    /// Has it accept what waits, and close the listener: the port is free then.
    async fn finish(mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by a panic.
            let _ = stop.send(());
        }
        let _ = (&mut self.task).await;
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Loads and checks one model after the other, each open as soon as it is.
async fn load(app: &Arc<App>) -> Result<(), ServeError> {
    for model in app.models.all() {
        let (loading, busy) = (Arc::clone(model), Arc::clone(&app.busy));
        let name = model.name.clone();
        let load = tokio::task::spawn_blocking(move || loading.load(busy));
        let work = match load.await {
            Ok(Ok(work)) => work,
            Ok(Err(source)) => return Err(ServeError::Load { model: name, source }),
            Err(_) => {
                let source = BuildError::Panicked("its loader panicked".to_owned());
                return Err(ServeError::Load { model: name, source });
            }
        };
        if app.config.self_check {
            let checked = work.self_check().await;
            checked.map_err(|reason| ServeError::SelfCheck { model: name.clone(), reason })?;
        }
        tracing::info!(model = name, "loaded");
        model.open(work);
    }
    Ok(())
}

/// Ends with the name of a model whose batch has hung for too long.
async fn watch_devices(app: &App) -> String {
    let mut ticks = tokio::time::interval(WATCH);
    loop {
        ticks.tick().await;
        if let Some(model) = health::hung(app) {
            return model;
        }
    }
}

/// Goes on for the drain delay, closes the listener once what waits there is accepted, and waits until
/// every connection has ended; `Err` if that takes too long.
async fn drain(
    app: &App,
    accepting: Accepting,
    close: &watch::Sender<Closing>,
    connections: &mut mpsc::Receiver<()>,
) -> Result<(), ()> {
    tokio::time::sleep(app.config.drain_delay).await;
    accepting.finish().await;
    close.send_replace(Closing::Finish);
    tokio::time::timeout(app.config.drain_timeout, ended(connections)).await.map_err(drop)
}

/// Waits until every connection has ended. None of them sends anything: each holds a sender.
async fn ended(connections: &mut mpsc::Receiver<()>) {
    while connections.recv().await.is_some() {}
}

/// Cuts the connections that are left when a server ends, or is dropped.
struct CutAtEnd<'a>(&'a watch::Sender<Closing>);

impl Drop for CutAtEnd<'_> {
    fn drop(&mut self) {
        self.0.send_replace(Closing::Cut);
    }
}

async fn shut_queues(app: &Arc<App>, mode: Shutdown) {
    let app = Arc::clone(app);
    let shut = tokio::task::spawn_blocking(move || {
        for work in app.models.all().iter().filter_map(|model| model.queue()) {
            // A device that hangs is not waited for.
            let hangs = matches!(work.health(), Health::Stalled { .. });
            work.shutdown(mode, if hangs { Duration::ZERO } else { FLUSH });
        }
    });
    // A panic in there has been logged; there is nothing left to do for it.
    let _ = shut.await;
}
