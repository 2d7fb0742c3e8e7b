//! Results as exit codes.

use std::io;
use std::process::ExitCode;

/// The exit code of a command; an error is printed to stderr.
pub fn exit(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        // Whoever read our output has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", causes(&error));
            ExitCode::from(2)
        }
    }
}

/// The text of an error and of its causes, each said once: many a text ends with that of its cause.
pub fn causes(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if said.is_empty() {
            said = cause;
        } else if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

/// Whether somebody stopped reading what we write.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn only_a_reader_that_has_gone_is_no_error() {
        let of = |kind: io::ErrorKind| exit(Err(io::Error::from(kind)).context("cannot write"));
        assert_eq!(of(io::ErrorKind::BrokenPipe), ExitCode::SUCCESS);
        assert_eq!(of(io::ErrorKind::StorageFull), ExitCode::from(2));
        assert_eq!(exit(Ok(ExitCode::FAILURE)), ExitCode::FAILURE);
    }

    #[test]
    fn no_cause_is_said_twice() {
        let error = anyhow::anyhow!("the disk is full").context("cannot write x: the disk is full");
        assert_eq!(causes(&error), "cannot write x: the disk is full");
        let error = anyhow::anyhow!("it is a directory").context("cannot write x");
        assert_eq!(causes(&error), "cannot write x: it is a directory");
    }
}
