//! A model directory: where its files are, and reading them without trusting them.
//!
//! Needed: `config.json`, `tokenizer.json`, `model.safetensors`. [`SentenceSettings`] says what else
//! is read if it is there. Nothing is ever fetched from elsewhere, nor read from outside.
//!
//! Invariant: only regular files of a bounded size are read. A pipe would wait for a writer that
//! never comes, and a device never ends.
//!
//! [`SentenceSettings`]: crate::SentenceSettings

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::{LoadError, shown};

/// The most bytes of a settings file. A `tokenizer_config.json` that lists thousands of added
/// tokens has about one million.
const SETTINGS_BYTES: u64 = 8 << 20;

/// A directory that was seen to hold the needed files.
#[derive(Clone, Debug)]
pub struct ModelDir {
    path: PathBuf,
}

impl ModelDir {
    /// Takes a path as a model directory.
    ///
    /// # Errors
    /// [`LoadError::NotADirectory`]; [`LoadError::Missing`] or [`LoadError::NotAFile`] naming the
    /// first needed file that is absent or no regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref().to_path_buf();
        if !path.is_dir() {
            return Err(LoadError::NotADirectory { path });
        }
        let dir = Self { path };
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            dir.bytes(name)?;
        }
        Ok(dir)
    }

    /// The directory's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The path of a folder in it that one of its files names.
    ///
    /// # Errors
    /// When it is no plain relative path, so that it may lead out of the directory. `by` is the file
    /// that names it.
    pub(crate) fn folder(&self, name: &str, by: &str) -> Result<String, LoadError> {
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        // The longest path that Linux takes.
        if inside && (1..4096).contains(&name.len()) {
            return Ok(name.to_owned());
        }
        Err(LoadError::Unsupported {
            path: self.file(by),
            setting: "path".to_owned(),
            found: shown(name),
            supported: "a folder inside the model directory",
        })
    }

    /// The size of a file.
    pub(crate) fn bytes(&self, name: &str) -> Result<u64, LoadError> {
        let path = self.file(name);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
            Ok(metadata) => Err(LoadError::NotAFile { path, found: kind(&metadata) }),
            Err(source) => Err(LoadError::unreadable(path, source)),
        }
    }

    /// Opens a file, and says how many bytes it has.
    pub(crate) fn open_file(&self, name: &str) -> Result<(File, u64), LoadError> {
        let bytes = self.bytes(name)?;
        let path = self.file(name);
        let file = File::open(&path).map_err(|source| LoadError::unreadable(path, source))?;
        Ok((file, bytes))
    }

    /// Reads a whole file of at most `most` bytes.
    pub(crate) fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, LoadError> {
        let (file, bytes) = self.open_file(name)?;
        if bytes > most {
            return Err(LoadError::TooLarge { path: self.file(name), bytes, most });
        }
        let mut contents = Vec::new();
        // It may grow while it is read.
        match file.take(most).read_to_end(&mut contents) {
            Ok(_) => Ok(contents),
            Err(source) => Err(LoadError::unreadable(self.file(name), source)),
        }
    }

    /// Reads a JSON file of a known form; what is wrong in it is named by its key.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, LoadError> {
        let text = self.read(name, SETTINGS_BYTES)?;
        let mut json = serde_json::Deserializer::from_slice(&text);
        let value = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| LoadError::damaged(self.file(name), &error))?;
        json.end().map_err(|error| LoadError::damaged(self.file(name), &error))?;
        Ok(value)
    }

    /// Reads a JSON file that may be absent.
    pub(crate) fn read_json_if_there<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, LoadError> {
        match self.read_json(name) {
            Ok(value) => Ok(Some(value)),
            Err(LoadError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl LoadError {
    /// What the system said about a file.
    fn unreadable(path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Unreadable { path, source },
        }
    }
}

/// What something is that is no regular file.
fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_dir() {
        return "a directory";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    "something else"
}
