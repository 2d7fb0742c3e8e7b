//! The live page and the figures that it shows.

use onelane::{Priority, Summary};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::App;
use crate::health;
use crate::model::{Model, Task};

/// The page: one file, with nothing from elsewhere.
pub(crate) const HTML: &str = include_str!("page.html");

/// How the server is now. Times are in milliseconds, counts from the start.
#[derive(Serialize, ToSchema)]
pub(crate) struct Figures {
    version: &'static str,
    /// `loading`, `serving`, `draining` or `closing`.
    phase: &'static str,
    ready: bool,
    /// Why it is not ready.
    reason: Option<String>,
    uptime_ms: f64,
    models: Vec<ModelFigures>,
}

/// How a model is now.
#[derive(Serialize, ToSchema)]
pub(crate) struct ModelFigures {
    name: String,
    task: &'static str,
    device: String,
    health: &'static str,
    /// What is wrong, if something is.
    reason: Option<String>,
    waiting: Vec<ClassFigures>,
    waiting_tokens: usize,
    running: usize,
    completed: u64,
    failed: u64,
    refused: u64,
    cancelled: u64,
    expired: u64,
    batches: u64,
    tokens: u64,
    padded_tokens: u64,
    engine_losses: u64,
    device_ms: f64,
    batch_size: SummaryFigures,
    wait_ms: SummaryFigures,
    service_ms: SummaryFigures,
}

/// What waits of one priority class.
#[derive(Serialize, ToSchema)]
pub(crate) struct ClassFigures {
    class: &'static str,
    waiting: usize,
    oldest_ms: f64,
    wait_ms: SummaryFigures,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct SummaryFigures {
    mean: f64,
    p50: f64,
    p99: f64,
}

fn millis(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn summary<T: Copy>(of: &Summary<T>, number: impl Fn(T) -> f64) -> SummaryFigures {
    SummaryFigures { mean: number(of.mean), p50: number(of.p50), p99: number(of.p99) }
}

/// How the server is now.
pub(crate) fn figures(app: &App) -> Figures {
    let ready = health::ready(app);
    Figures {
        version: env!("CARGO_PKG_VERSION"),
        phase: app.phase().name(),
        ready: ready.is_ok(),
        reason: ready.err(),
        uptime_ms: millis(app.started.elapsed()),
        models: app.models.all().iter().map(|model| of_model(model)).collect(),
    }
}

fn of_model(model: &Model) -> ModelFigures {
    let work = model.queue();
    let stats = work.map(|work| work.stats()).unwrap_or_default();
    let class = |class: Priority| {
        let of = stats.class(class);
        ClassFigures {
            class: match class {
                Priority::Interactive => "interactive",
                Priority::Bulk => "bulk",
                _ => "normal",
            },
            waiting: of.waiting,
            oldest_ms: millis(of.oldest_wait),
            wait_ms: summary(&of.wait, millis),
        }
    };
    ModelFigures {
        name: model.name.clone(),
        task: match model.task {
            Task::Embed => "embed",
            Task::Rerank => "rerank",
            Task::Classify(_) => "classify",
            Task::Predict(_) => "predict",
        },
        device: model.device.clone(),
        health: work.map_or("loading", |work| health::word(&work.health())),
        reason: health::model_ready(model).err(),
        waiting: Priority::ALL.map(class).into(),
        waiting_tokens: stats.waiting_cost,
        running: stats.running,
        completed: stats.completed,
        failed: stats.failed,
        refused: stats.refused,
        cancelled: stats.cancelled,
        expired: stats.expired,
        batches: stats.batches,
        tokens: stats.cost,
        padded_tokens: stats.padded_cost,
        engine_losses: stats.engine_losses,
        device_ms: millis(stats.device_time),
        batch_size: summary(&stats.batch_size, |size| size),
        wait_ms: summary(&stats.wait, millis),
        service_ms: summary(&stats.service, millis),
    }
}
