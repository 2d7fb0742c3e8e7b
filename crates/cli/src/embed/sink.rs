//! [`Sink`]: where the lines go, as they come.
//!
//! Invariant: until [`Sink::finish`] has succeeded, an output file keeps what it held before, and
//! nothing else is left when the sink is dropped.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use onelane_terminal::OutputFile;
use tempfile::NamedTempFile;

/// Standard output, a file in the making, or a device or pipe that is written directly.
pub struct Sink {
    writer: BufWriter<Target>,
    name: String,
}

enum Target {
    Stdout(io::Stdout),
    Direct(File),
    /// A file beside the one that it will replace.
    Staged(NamedTempFile, PathBuf),
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write(bytes),
            Self::Direct(file) => file.write(bytes),
            Self::Staged(file, _) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::Direct(file) => file.flush(),
            Self::Staged(file, _) => file.flush(),
        }
    }
}

impl Sink {
    /// Opens a file, or standard output.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::new(Target::Stdout(io::stdout()), "standard output".to_owned()));
        };
        OutputFile::check(path)?;
        let name = path.display().to_string();
        let target = Self::target(path).with_context(|| format!("cannot write {name}"))?;
        Ok(Self::new(target, name))
    }

    fn new(target: Target, name: String) -> Self {
        Self { writer: BufWriter::with_capacity(1 << 16, target), name }
    }

    fn target(path: &Path) -> anyhow::Result<Target> {
        // A link stays a link: the file that it means is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let old = fs::metadata(&path);
        if old.as_ref().is_ok_and(|old| !old.is_file()) {
            return Ok(Target::Direct(fs::OpenOptions::new().write(true).open(&path)?));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".onelane-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any new file; the process's umask takes its part off.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let staged = builder.tempfile_in(directory.unwrap_or(Path::new(".")))?;
        if let Ok(old) = old {
            staged.as_file().set_permissions(old.permissions())?;
        }
        Ok(Target::Staged(staged, path))
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
        if matches!(self.writer.get_ref(), Target::Staged(..)) {
            return Ok(());
        }
        self.writer.flush().with_context(|| format!("cannot write {}", self.name))
    }

    /// Puts a staged file into its place.
    ///
    /// # Errors
    /// When the file system refuses; then the old file is still there.
    pub fn finish(self) -> anyhow::Result<()> {
        let Self { writer, name } = self;
        let finish = || -> anyhow::Result<()> {
            let mut target = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
            target.flush()?;
            if let Target::Staged(file, path) = target {
                file.as_file().sync_all()?;
                file.persist(path)?;
            }
            Ok(())
        };
        finish().with_context(|| format!("cannot write {name}"))
    }
}
