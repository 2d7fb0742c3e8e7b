//! Loading a model directory on the CPU, weights too.

use std::path::Path;

use onelane_engines::{DeviceName, EmbeddingConfig, EmbeddingModel, LoadError};

pub fn load(path: &Path) -> Result<(), LoadError> {
    let model = EmbeddingModel::open(path, DeviceName::Cpu, EmbeddingConfig::default())?;
    model.load().map(drop)
}
