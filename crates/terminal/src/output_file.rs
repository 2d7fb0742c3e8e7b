//! [`OutputFile`]: a result file that is either written whole or not at all.
//!
//! Invariant: until [`OutputFile::write`] has succeeded the target keeps what it held before.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// A path that was found writable, to be written later.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
}

impl OutputFile {
    /// Checks now, before the work is done, that the path can be written.
    ///
    /// # Errors
    /// When it is a directory, when its directory does not exist, or when nothing may be written
    /// there.
    pub fn check(path: &Path) -> anyhow::Result<Self> {
        let path = followed(path);
        let cannot = || format!("cannot write {}", path.display());
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

    /// Writes the file: under another name first, which then takes the place of the old one. A
    /// device or a pipe is written directly.
    ///
    /// # Errors
    /// When the file system refuses, for example because it is full.
    pub fn write(self, contents: &[u8]) -> anyhow::Result<()> {
        let write = || -> anyhow::Result<()> {
            if fs::metadata(&self.path).is_ok_and(|metadata| !metadata.is_file()) {
                return Ok(fs::write(&self.path, contents)?);
            }
            let mut file = beside(&self.path)?;
            if let Ok(metadata) = fs::metadata(&self.path) {
                file.as_file().set_permissions(metadata.permissions())?;
            }
            file.write_all(contents)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The file that a symbolic link means, so that the link stays one.
fn followed(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Makes a file beside `path` and removes it again.
fn probe(path: &Path) -> anyhow::Result<()> {
    Ok(beside(path)?.close()?)
}

fn beside(path: &Path) -> anyhow::Result<tempfile::NamedTempFile> {
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
        let null = Path::new("/dev/null");
        OutputFile::check(null).unwrap().write(b"gone").unwrap();
        assert!(!fs::metadata(null).unwrap().is_file());
    }
}
