//! `onelane`: the command line. One file per command; this one parses.

mod correctness;
mod devices;
mod embed;
mod hazards;
mod progress;
mod race;
mod serve;
mod table;
mod traces;

use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use onelane_terminal::{Level, exit, log_and};

use traces::Traces;

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
    Serve(Box<serve::Args>),
    /// Lists the devices that this build and this machine can use.
    Devices(devices::Args),
}

fn main() -> ExitCode {
    serve::run_if_child();
    let cli = Cli::parse();
    exit(run(cli))
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let traces = Traces::start(matches!(cli.command, Command::Serve(_)))?;
    log_and(cli.verbose, Level::WARN, traces.layers())?;
    match cli.command {
        Command::Correctness(args) => correctness::run(args),
        Command::Race(args) => race::run(args),
        Command::Hazards(args) => hazards::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Serve(args) => serve::run(*args),
        Command::Devices(args) => devices::run(args),
    }
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
