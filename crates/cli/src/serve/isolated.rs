//! Engines in child processes: this program once more, told by its environment what to load.

use std::path::Path;

use anyhow::Context;
use onelane::EngineError;
use onelane_engines::{DeviceName, EmbeddingConfig, EmbeddingEngine, EmbeddingModel};
use onelane_isolate::{Isolated, IsolationConfig, Supervisor, this_program};

use super::embedding::Embedding;

/// The environment of a child: its model's directory and device.
const MODEL: &str = "ONELANE_CHILD_MODEL";
const DEVICE: &str = "ONELANE_CHILD_DEVICE";

/// An embedding model whose engine runs in a child process.
///
/// # Errors
/// When the directory has no absolute path, or no supervisor can be made.
pub fn embedding(
    model: EmbeddingModel,
    dir: &Path,
    device: DeviceName,
) -> anyhow::Result<Embedding<Isolated<EmbeddingEngine>>> {
    let dir = std::path::absolute(dir).with_context(|| dir.display().to_string())?;
    let command = move || {
        let mut command = this_program();
        command.env(MODEL, &dir).env(DEVICE, device.to_string());
        command
    };
    let supervisor = Supervisor::new(command, IsolationConfig::default())?;
    Ok(Embedding::with(model, Isolated::<EmbeddingEngine>::factory(&supervisor)))
}

/// If this process is a child of a server, serves its model to the end and does not return.
pub fn run_if_child() {
    let (Some(model), Ok(device)) = (std::env::var_os(MODEL), std::env::var(DEVICE)) else {
        return;
    };
    onelane_isolate::serve(|| {
        let device: DeviceName = device.parse().map_err(EngineError::failed)?;
        Ok(EmbeddingModel::open(&model, device, EmbeddingConfig::default())?.load()?)
    });
}
