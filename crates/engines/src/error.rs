//! What can go wrong while a model is loaded, and how a device's errors become the core's.

use std::fmt;
use std::path::PathBuf;

use onelane::EngineError;
use onelane_isolate::sticky;

/// Why a model directory could not be loaded. Each names the file, and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The path is no directory.
    #[error(
        "{} is not a directory: give the directory that holds config.json, tokenizer.json and \
         model.safetensors",
        path.display()
    )]
    NotADirectory {
        /// What was given.
        path: PathBuf,
    },
    /// A needed file is absent.
    #[error(
        "{} does not exist: the model directory must hold config.json, tokenizer.json and \
         model.safetensors",
        path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Something else stands where a file should.
    #[error("{} is {found}, not a regular file: copy the model directory again", path.display())]
    NotAFile {
        /// Where.
        path: PathBuf,
        /// What stands there.
        found: &'static str,
    },
    /// A file is larger than any of its kind.
    #[error(
        "{} has {bytes} bytes, and no more than {most} are read: is it a {} at all?",
        path.display(),
        path.file_name().unwrap_or_default().display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        most: u64,
    },
    /// A file is there but cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged or of another format: {reason}; copy the model directory again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found wrong.
        reason: String,
    },
    /// A tensor is absent, or has another shape or type than `config.json` says.
    #[error(
        "{}: tensor {name} should be floats of shape {expected:?} by config.json, found {found}; \
         config.json and model.safetensors must come from the same model",
        path.display()
    )]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its shape by `config.json`.
        expected: Vec<usize>,
        /// Its shape and type in the file, or `none`.
        found: String,
    },
    /// The model asks for something that this crate does not compute.
    #[error("{}: {setting} = {found} is not supported (supported: {supported})", path.display())]
    Unsupported {
        /// The file that asks.
        path: PathBuf,
        /// The setting.
        setting: String,
        /// Its value.
        found: String,
        /// The values that work.
        supported: &'static str,
    },
    /// The length buckets cannot be used.
    #[error(transparent)]
    Buckets(#[from] onelane_tokeniser::BucketError),
    /// Padding cannot be skipped on this device.
    #[error("padding can be skipped on the cpu only, not on {device}: use Padding::Pad")]
    Padding {
        /// The device.
        device: String,
    },
    /// The device cannot be opened.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// The device refused the weights.
    #[error("cannot put the model on the device")]
    Upload(#[from] candle_core::Error),
}

impl LoadError {
    /// A file that does not hold what it should, in somebody's words.
    pub(crate) fn damaged(path: PathBuf, reason: &dyn fmt::Display) -> Self {
        Self::Damaged { path, reason: shown(&reason.to_string()) }
    }
}

/// The most characters of a stranger's text that an error repeats.
const SHOWN: usize = 200;

/// A stranger's text as an error repeats it: its start, and how much more there is.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}... ({} bytes in all)", &text[..end], text.len()),
    }
}

impl From<LoadError> for EngineError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Upload(error) => engine_error(error),
            error => Self::failed(error),
        }
    }
}

/// A candle error as the core's. Out of memory is told apart, since the core then splits the batch,
/// and so are errors after which the device answers nothing but errors: then the queue fails, or an
/// isolated worker is replaced.
pub(crate) fn engine_error(error: candle_core::Error) -> EngineError {
    let text = device_text(&error).unwrap_or_default();
    if is_out_of_memory(&text) {
        EngineError::out_of_memory(error)
    } else if sticky(&text).is_some() {
        EngineError::device_lost(error)
    } else {
        EngineError::failed(error)
    }
}

/// What the device's driver said; `None` if the error is not the driver's.
///
/// candle wraps the errors of its backends in boxes whose types exist only in builds with that
/// backend, and Metal reports text alone, so the texts are what is read.
fn device_text(error: &candle_core::Error) -> Option<String> {
    match error {
        // The one names the platform, the other the error.
        candle_core::Error::Cuda(source) => Some(format!("CUDA: {source} {source:?}")),
        candle_core::Error::Metal(source) => Some(format!("{source} {source:?}")),
        candle_core::Error::WithBacktrace { inner, .. }
        | candle_core::Error::Context { inner, .. } => device_text(inner),
        _ => None,
    }
}

/// Whether a device said that it has no memory left: CUDA's `CUDA_ERROR_OUT_OF_MEMORY`, cuBLAS's
/// `CUBLAS_STATUS_ALLOC_FAILED`, and what candle's Metal backend says when a buffer could not be
/// made.
fn is_out_of_memory(text: &str) -> bool {
    [
        "OUT_OF_MEMORY",
        "out of memory",
        "ALLOC_FAILED",
        "FailedToCreateResource",
        "OutOfMemory",
        "Insufficient Memory",
    ]
    .iter()
    .any(|said| text.contains(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_is_told_from_other_device_errors() {
        let cuda = |text: &str| candle_core::Error::Cuda(text.into());
        let said = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert!(matches!(engine_error(cuda(said)), EngineError::OutOfMemory(_)));
        assert!(matches!(engine_error(cuda(said).bt()), EngineError::OutOfMemory(_)));
        let other = cuda("DriverError(CUDA_ERROR_INVALID_VALUE)");
        assert!(matches!(engine_error(other), EngineError::Failed(_)));
        // A model's own text never counts.
        let text = candle_core::Error::Msg("out of memory".to_owned());
        assert!(matches!(engine_error(text), EngineError::Failed(_)));
    }

    #[test]
    fn a_device_that_answers_nothing_but_errors_is_lost() {
        let cuda = |text: &str| candle_core::Error::Cuda(text.into());
        for said in [
            "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")",
            "DriverError(CUDA_ERROR_ASSERT, \"device-side assert triggered\")",
            "unspecified launch failure",
        ] {
            assert!(matches!(engine_error(cuda(said)), EngineError::DeviceLost(_)), "{said}");
            assert!(matches!(engine_error(cuda(said).bt()), EngineError::DeviceLost(_)));
            // A model's own text never counts.
            let text = candle_core::Error::Msg(said.to_owned());
            assert!(matches!(engine_error(text), EngineError::Failed(_)));
        }
    }
}
