//! [`OutputFile`]: a result file that is either written whole or not at all.
//!
//! Invariant: until the file is finished the target keeps what it held before, and nothing else is
//! left, also if a signal ends the process. (SIGKILL leaves a file `.onelane-*` beside it.)

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::NamedTempFile;

use crate::unfinished::Unfinished;

/// The longest chain of links that is followed, as in Linux.
const MOST_LINKS: usize = 40;

/// A path that was found writable, to be written later.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
}

impl OutputFile {
    /// Checks now, before the work is done, that the path can be written. A link stays a link: the
    /// file that it means is written, also where that does not exist yet.
    ///
    /// # Errors
    /// When it is a directory, when its directory does not exist, or when nothing may be written
    /// there.
    pub fn check(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot write {}", path.display());
        let path = followed(path).with_context(cannot)?;
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => bail!("{}: it is a directory", cannot()),
            Ok(metadata) if metadata.is_file() => {
                // A file that is write-protected is not replaced behind its owner's back.
                fs::OpenOptions::new().write(true).open(&path).with_context(cannot)?;
                probe(&path).with_context(cannot)?;
            }
            Ok(_) => {
                fs::OpenOptions::new().write(true).open(&path).with_context(cannot)?;
            }
            Err(_) => probe(&path).with_context(cannot)?,
        }
        Ok(Self { path })
    }

    /// Opens it for writing: a file in the making beside the one that it will replace, or a device
    /// or pipe itself.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(self) -> anyhow::Result<OutputWriter> {
        let open = || -> anyhow::Result<OutputWriter> {
            let old = fs::metadata(&self.path);
            if old.as_ref().is_ok_and(|old| !old.is_file()) {
                let device = fs::OpenOptions::new().write(true).open(&self.path)?;
                return Ok(OutputWriter::Direct(device));
            }
            let file = beside(&self.path)?;
            let unfinished = Unfinished::new(&std::path::absolute(file.path())?);
            if let Ok(old) = old {
                file.as_file().set_permissions(old.permissions())?;
            }
            Ok(OutputWriter::Staged { file, unfinished, target: self.path.clone() })
        };
        open().with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Writes the whole file.
    ///
    /// # Errors
    /// When the file system refuses, for example because it is full.
    pub fn write(self, contents: &[u8]) -> anyhow::Result<()> {
        let path = self.path.clone();
        let mut writer = self.open()?;
        let written = writer.write_all(contents).and_then(|()| writer.finish());
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A result file while it is written.
pub enum OutputWriter {
    /// A device or a pipe.
    Direct(File),
    /// A file beside the one that it will replace.
    Staged {
        /// The file in the making.
        file: NamedTempFile,
        /// Takes it along if a signal ends the process.
        unfinished: Unfinished,
        /// What it will replace.
        target: PathBuf,
    },
}

impl OutputWriter {
    /// Whether somebody may be reading what has been written.
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Direct(_))
    }

    /// Puts the file into its place.
    ///
    /// # Errors
    /// When the file system refuses; then the old file is still there.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        match self {
            Self::Direct(_) => Ok(()),
            Self::Staged { file, unfinished, target } => {
                file.as_file().sync_all()?;
                unfinished.finish(|| file.persist(target).map(drop).map_err(|error| error.error))
            }
        }
    }
}

impl Write for OutputWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Direct(file) => file.write(bytes),
            Self::Staged { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Direct(file) => file.flush(),
            Self::Staged { file, .. } => file.flush(),
        }
    }
}

/// The file that a symbolic link means, whether it exists or not.
fn followed(path: &Path) -> anyhow::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(path),
        }
    }
    bail!("it is a link that leads through more than {MOST_LINKS} others")
}

/// Makes a file beside `path` and removes it again.
fn probe(path: &Path) -> anyhow::Result<()> {
    Ok(beside(path)?.close()?)
}

fn beside(path: &Path) -> anyhow::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".onelane-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any new file; the process's umask takes its part off.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    if path.file_name().is_none() {
        bail!("it does not name a file");
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        bail!("there is no directory {}", directory.display());
    }
    Ok(builder.tempfile_in(directory)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        fs::write(&path, "old").unwrap();
        let output = OutputFile::check(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        output.write(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn says_what_is_wrong_with_a_path() {
        let directory = tempfile::tempdir().unwrap();
        let text = |path: &Path| format!("{:#}", OutputFile::check(path).unwrap_err());
        assert!(text(directory.path()).ends_with("it is a directory"));
        let missing = directory.path().join("missing").join("report.json");
        assert!(text(&missing).contains("there is no directory"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link_and_a_device_is_written_directly() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        OutputFile::check(&link).unwrap().write(b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        // What a link means need not be there yet.
        fs::remove_file(&file).unwrap();
        OutputFile::check(&link).unwrap().write(b"again").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "again");
        let (here, there) = (directory.path().join("here"), directory.path().join("there"));
        std::os::unix::fs::symlink(&here, &there).unwrap();
        std::os::unix::fs::symlink(&there, &here).unwrap();
        let error = format!("{:#}", OutputFile::check(&here).unwrap_err());
        assert!(error.contains("leads through more than 40 others"), "{error}");
        let null = Path::new("/dev/null");
        OutputFile::check(null).unwrap().write(b"gone").unwrap();
        assert!(!fs::metadata(null).unwrap().is_file());
    }
}
