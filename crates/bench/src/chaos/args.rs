//! The arguments of `onelane-bench chaos`.

use std::path::PathBuf;

/// Does everything at once, at random, and checks that no request is lost, doubled or misrouted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How long to go on.
    #[arg(long, default_value_t = 10)]
    pub(super) seconds: u64,
    /// Seed of the clients' and engines' choices.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Client threads that block.
    #[arg(long, default_value_t = 6)]
    pub(super) threads: usize,
    /// Async tasks, on two threads.
    #[arg(long, default_value_t = 64)]
    pub(super) tasks: usize,
    /// Worker threads of each executor.
    #[arg(long, default_value_t = 1)]
    pub(super) workers: usize,
    /// A client that gets nowhere for this long hangs.
    #[arg(long, default_value_t = 30)]
    pub(super) hang_after: u64,
    /// Prints JSON instead of text.
    #[arg(long)]
    pub(super) json: bool,
    /// Has the engine run in child processes that crash, hang, stop, grow, lie and are killed.
    #[arg(long, conflicts_with = "overload")]
    pub(super) isolate: bool,
    /// Measures goodput, refusals and latency at 0.5 to 4 times the capacity instead.
    #[arg(long)]
    pub(super) overload: bool,
    /// With --overload: writes the measurements as CSV.
    #[arg(long, requires = "overload")]
    pub(super) csv: Option<PathBuf>,
    /// With --overload: draws the measurements as SVG.
    #[arg(long, requires = "overload")]
    pub(super) svg: Option<PathBuf>,
}
