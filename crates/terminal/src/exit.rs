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
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
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
}
