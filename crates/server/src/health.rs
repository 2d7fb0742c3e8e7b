//! Whether the server lives, and whether it is ready.

use std::time::Duration;

use onelane::Health;

use crate::app::App;
use crate::life::Phase;
use crate::model::Model;

/// A model's health in one word: the label of the metric.
pub(crate) fn word(health: &Health) -> &'static str {
    match health {
        Health::Ready => "ready",
        Health::Rebuilding => "rebuilding",
        Health::Stalled { .. } => "stalled",
        Health::Failed(_) => "failed",
        Health::Closed => "closed",
        _ => "unknown",
    }
}

/// Every word that [`word`] says of a queue of today.
pub(crate) const WORDS: [&str; 5] = ["ready", "rebuilding", "stalled", "failed", "closed"];

/// Why a model cannot answer now; `Ok` if it can.
///
/// # Errors
/// The reason, in words.
pub(crate) fn model_ready(model: &Model) -> Result<(), String> {
    let name = &model.name;
    let Some(queue) = model.queue() else { return Err(format!("the model {name} is loading")) };
    match queue.health() {
        Health::Ready => Ok(()),
        Health::Rebuilding => Err(format!("the engine of {name} is being built again")),
        Health::Stalled { running_for, .. } => {
            let seconds = running_for.as_secs();
            Err(format!("a batch of {name} has run for {seconds} s: the device may hang"))
        }
        Health::Failed(reason) => Err(format!("{name} has failed: {reason}")),
        _ => Err(format!("{name} has been shut down")),
    }
}

/// Whether traffic should be sent here.
///
/// # Errors
/// Why not.
pub(crate) fn ready(app: &App) -> Result<(), String> {
    match app.phase() {
        Phase::Serving => app.models.all().iter().try_for_each(|model| model_ready(model)),
        Phase::Loading => Err("the models are loading".to_owned()),
        Phase::Draining | Phase::Closing => Err("the server is shutting down".to_owned()),
    }
}

/// Whether a restart is not called for.
///
/// # Errors
/// Why one is.
pub(crate) fn live(app: &App) -> Result<(), String> {
    for model in app.models.all() {
        let Some(queue) = model.queue() else { continue };
        match queue.health() {
            Health::Failed(reason) => return Err(format!("{} has failed: {reason}", model.name)),
            Health::Stalled { running_for, .. } if gives_up(app, running_for) => {
                let seconds = running_for.as_secs();
                return Err(format!("a batch of {} has run for {seconds} s", model.name));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a stalled batch has run for so long that the server ends.
pub(crate) fn gives_up(app: &App, running_for: Duration) -> bool {
    app.config.stall_exit.is_some_and(|limit| running_for >= limit)
}

/// The model whose batch has run too long, if there is one.
pub(crate) fn hung(app: &App) -> Option<String> {
    let hangs = |model: &Model| match model.queue().map(|queue| queue.health()) {
        Some(Health::Stalled { running_for, .. }) => gives_up(app, running_for),
        _ => false,
    };
    app.models.all().iter().find(|model| hangs(model)).map(|model| model.name.clone())
}
