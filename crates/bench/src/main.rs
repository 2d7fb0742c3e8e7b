//! `onelane-bench`: measures onelane, and tries to break it. One file per command; this one parses.

mod chaos;
mod load;

use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use onelane_terminal::{Level, exit, log_to_stderr};

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures onelane, and tries to break it: engines in the hands of many clients, everything at
/// once at random, overload.
#[derive(Parser)]
#[command(name = "onelane-bench", version, propagate_version = true, arg_required_else_help = true)]
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
    Load(Box<load::Args>),
    Chaos(chaos::Args),
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    chaos::isolated::play_part();
    let cli = Cli::parse();
    // What fails in a chaos run is meant to.
    let default = match cli.command {
        Command::Chaos(_) => Level::OFF,
        Command::Load(_) => Level::WARN,
    };
    exit(log_to_stderr(cli.verbose, default).and_then(|()| match cli.command {
        Command::Load(args) => load::run(*args),
        Command::Chaos(args) => chaos::run(args),
    }))
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
