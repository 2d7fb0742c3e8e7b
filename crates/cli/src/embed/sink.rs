//! [`Sink`]: where the lines go, as they come.
//!
//! Invariant: until [`Sink::finish`] has succeeded, an output file keeps what it held before, and
//! nothing else is left when the sink is dropped.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use onelane_terminal::{OutputFile, OutputWriter};

/// Standard output, or a result file.
pub struct Sink {
    writer: BufWriter<Target>,
    name: String,
}

enum Target {
    Stdout(io::Stdout),
    File(OutputWriter),
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write(bytes),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::File(file) => file.flush(),
        }
    }
}

impl Sink {
    /// Opens a file, or standard output.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let (target, name) = match path {
            None => (Target::Stdout(io::stdout()), "standard output".to_owned()),
            Some(path) => {
                (Target::File(OutputFile::check(path)?.open()?), path.display().to_string())
            }
        };
        Ok(Self { writer: BufWriter::with_capacity(1 << 16, target), name })
    }

    /// Writes a line and its end.
    ///
    /// # Errors
    /// When it cannot be written, for example because the disk is full.
    pub fn line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        let written = self.writer.write_all(line).and_then(|()| self.writer.write_all(b"\n"));
        written.with_context(|| format!("cannot write {}", self.name))
    }

    /// Hands on what was written, if somebody may be reading it already.
    ///
    /// # Errors
    /// As [`line`](Self::line).
    pub fn flush(&mut self) -> anyhow::Result<()> {
        if matches!(self.writer.get_ref(), Target::File(file) if !file.is_direct()) {
            return Ok(());
        }
        self.writer.flush().with_context(|| format!("cannot write {}", self.name))
    }

    /// Puts a result file into its place.
    ///
    /// # Errors
    /// When the file system refuses; then the old file is still there.
    pub fn finish(self) -> anyhow::Result<()> {
        let Self { writer, name } = self;
        let finish = || match writer.into_inner().map_err(io::IntoInnerError::into_error)? {
            Target::Stdout(mut stdout) => stdout.flush(),
            Target::File(file) => file.finish(),
        };
        finish().with_context(|| format!("cannot write {name}"))
    }
}
