//! `onelane`: the command line. One file per command; this one parses, starts logging and turns
//! results into exit codes.
//!
//! Data goes to stdout, messages and progress to stderr. Exit codes: 0 all is well, 1 a check
//! failed, 2 wrong usage or a start that failed.

mod bench;
mod chaos;
mod correctness;
mod device_arg;
mod devices;
mod embed;
mod hazards;
mod output;
mod progress;
mod race;
mod table;

use std::io;
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs inference from any number of threads on a device whose runtime is not thread-safe: one
/// worker thread per device owns it, and requests that wait together run as one batch.
#[derive(Parser)]
#[command(name = "onelane", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// Says more on stderr: once for what happens, twice for details. RUST_LOG does the same by
    /// target.
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Correctness(correctness::Args),
    Race(race::Args),
    Hazards(hazards::Args),
    Embed(embed::Args),
    Bench(Box<bench::Args>),
    /// Lists the devices that this build and this machine can use.
    Devices(devices::Args),
    Chaos(chaos::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What fails in a chaos run is meant to.
    let default = match cli.command {
        Command::Chaos(_) => LevelFilter::OFF,
        _ => LevelFilter::WARN,
    };
    if let Err(error) = log_to_stderr(cli.verbose, default) {
        eprintln!("error: {error:#}");
        return ExitCode::from(2);
    }
    let result = match cli.command {
        Command::Correctness(args) => correctness::run(args),
        Command::Race(args) => race::run(args),
        Command::Hazards(args) => hazards::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Bench(args) => bench::run(*args),
        Command::Devices(args) => devices::run(args),
        Command::Chaos(args) => chaos::run(args),
    };
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

fn log_to_stderr(verbose: u8, default: LevelFilter) -> anyhow::Result<()> {
    let filter = match (verbose, std::env::var("RUST_LOG")) {
        (0, Ok(directives)) if !directives.is_empty() => directives
            .parse::<Targets>()
            .map_err(|error| anyhow::anyhow!("RUST_LOG={directives}: {error}"))?,
        (verbose, _) => {
            let level = match verbose {
                0 => default,
                1 => LevelFilter::INFO,
                2 => LevelFilter::DEBUG,
                _ => LevelFilter::TRACE,
            };
            // Other crates' details only where they are asked for by name.
            Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("onelane", level)
        }
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
