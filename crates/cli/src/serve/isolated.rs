//! Engines in child processes: this program once more, told by its environment what to load.

use std::path::Path;

use anyhow::Context;
use onelane::EngineError;
use onelane_engines::{ClassificationModel, DeviceName, EmbeddingConfig, EmbeddingModel};
use onelane_isolate::{IsolationConfig, Supervisor, this_program};

/// The environment of a child: its model's directory and device.
const MODEL: &str = "ONELANE_CHILD_MODEL";
const DEVICE: &str = "ONELANE_CHILD_DEVICE";

/// What starts the children of a model.
///
/// # Errors
/// When the directory has no absolute path, or no supervisor can be made.
pub fn supervisor(dir: &Path, device: DeviceName) -> anyhow::Result<Supervisor> {
    let dir = std::path::absolute(dir).with_context(|| dir.display().to_string())?;
    let command = move || {
        let mut command = this_program();
        command.env(MODEL, &dir).env(DEVICE, device.to_string());
        command
    };
    Ok(Supervisor::new(command, IsolationConfig::default())?)
}

/// If this process is a child of a server, serves its model to the end and does not return.
pub fn run_if_child() {
    let (Some(model), Ok(device)) = (std::env::var_os(MODEL), std::env::var(DEVICE)) else {
        return;
    };
    let device = || device.parse::<DeviceName>().map_err(EngineError::failed);
    let config = EmbeddingConfig::default;
    // A directory that cannot be read any more is told by what is served then.
    if ClassificationModel::is_in(&model).unwrap_or(false) {
        onelane_isolate::serve(|| {
            Ok(ClassificationModel::open(&model, device()?, config())?.load()?)
        });
    }
    onelane_isolate::serve(|| Ok(EmbeddingModel::open(&model, device()?, config())?.load()?));
}
