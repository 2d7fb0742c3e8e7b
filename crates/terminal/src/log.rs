//! Logs on stderr.

use std::io;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

pub use tracing_subscriber::filter::LevelFilter as Level;

/// Starts logging, once in a process: at `default`, at INFO and more when `verbose` is 1 and more,
/// or as `RUST_LOG` says when it is 0.
///
/// # Errors
/// When `RUST_LOG` names no levels.
pub fn log_to_stderr(verbose: u8, default: Level) -> anyhow::Result<()> {
    log_and(verbose, default, Vec::new())
}

/// What else gets spans and events, by a filter of its own.
pub type Also = Box<dyn Layer<Registry> + Send + Sync>;

/// As [`log_to_stderr`], and for these, too.
///
/// # Errors
/// As there.
pub fn log_and(verbose: u8, default: Level, mut also: Vec<Also>) -> anyhow::Result<()> {
    let filter = match (verbose, std::env::var("RUST_LOG")) {
        (0, Ok(directives)) if !directives.is_empty() => directives
            .parse::<Targets>()
            .map_err(|error| anyhow::anyhow!("RUST_LOG={directives}: {error}"))?,
        (verbose, _) => {
            let level = match verbose {
                0 => default,
                1 => Level::INFO,
                2 => Level::DEBUG,
                _ => Level::TRACE,
            };
            // Other crates' details only where they are asked for by name.
            Targets::new().with_default(level.min(Level::WARN)).with_target("onelane", level)
        }
    };
    if also.is_empty() {
        let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
        tracing_subscriber::registry().with(filter).with(lines).init();
    } else {
        let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
        also.push(lines.with_filter(filter).boxed());
        tracing_subscriber::registry().with(also).init();
    }
    Ok(())
}
