//! The arguments of `onelane-bench load`, and which of them go together.

use std::path::PathBuf;

use anyhow::ensure;
use clap::ValueEnum;
use onelane::Delivery;
use onelane_engines::DeviceName;
use onelane_terminal::{DeviceArg, at_least_one, thread_count};

use super::strategy::Strategy;
use super::texts::Lengths;

/// Measures throughput and latency of an engine that many clients use, by strategy.
///
/// Strategies: direct (every client thread has an engine of its own), lock (one engine under a
/// mutex), queue-1 (a batch queue that runs requests one by one), queue (a batch queue), offline
/// (one thread, whole batches made before: the limit). They take turns, round by round; rates are
/// medians of the rounds, ratios medians of the rounds' ratios, and latencies are of all rounds
/// together.
///
/// Closed loop (--threads, --tasks): each client asks, waits and asks again. Open load (--rate,
/// --load): requests arrive as a Poisson process whatever has become of those before, and latency
/// counts from when a request was meant to arrive. Answers are compared with those of the same
/// request alone.
///
/// Exit codes: 0 all is well, 1 an answer was wrong or failed, or a scenario does not hold, 2 wrong
/// usage or a start that failed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// null (no work), mlp (512-1024-1024-512, one row a request) or embedding (needs --model)
    #[arg(long, value_enum, default_value_t = EngineKind::Null, hide_possible_values = true)]
    pub(super) engine: EngineKind,

    /// The embedding model's directory
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<PathBuf>,

    /// Texts for the embedding engine, one a line; built-in ones by default
    #[arg(long, value_name = "FILE")]
    pub(super) texts: Option<PathBuf>,

    /// Makes texts of so many tokens, short ones more often, of the words of the others: 8-400
    #[arg(long, value_name = "MIN-MAX")]
    pub(super) lengths: Option<Lengths>,

    /// How many different texts
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least_one)]
    pub(super) text_count: usize,

    /// The device: cpu, metal[:N], cuda[:N], or sim-mps[:PROFILE] for the mlp
    #[arg(long, default_value = "cpu")]
    pub(super) device: DeviceArg,

    /// How long each batch of the null engine takes; 2 in the priority scenario
    #[arg(long, value_name = "MS", value_parser = not_negative, allow_negative_numbers = true)]
    pub(super) batch_time_ms: Option<f64>,

    /// load, priority (interactive requests beside bulk work) or lengths (texts of mixed lengths)
    #[arg(long, value_enum, default_value_t = Scenario::Load, hide_possible_values = true)]
    pub(super) scenario: Scenario,

    /// Which strategies, separated by commas
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true,
        default_value = "direct,lock,queue-1,queue,offline"
    )]
    pub(super) strategy: Vec<Strategy>,

    /// Numbers of client threads; 1,8,64,256 unless --tasks, --rate or --load is given
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = thread_count)]
    pub(super) threads: Vec<usize>,

    /// Numbers of async tasks; queues only
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = at_least_one)]
    pub(super) tasks: Vec<usize>,

    /// How many threads the tasks share; as many as there are cores by default
    #[arg(long, value_name = "N", value_parser = thread_count)]
    pub(super) task_threads: Option<usize>,

    /// Open load in requests per second
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = positive, allow_negative_numbers = true)]
    pub(super) rate: Vec<f64>,

    /// Open load in parts of what the batch queue can do, for example 0.5,0.8,0.95
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = positive, allow_negative_numbers = true)]
    pub(super) load: Vec<f64>,

    /// Client threads of direct and lock under open load
    #[arg(long, value_name = "N", default_value = "64", value_parser = thread_count)]
    pub(super) open_threads: usize,

    /// The most requests in a batch
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least_one)]
    pub(super) max_batch_size: usize,

    /// How many threads own the device, each with an engine; more than one only where its runtime
    /// is thread-safe
    #[arg(long, value_name = "N", default_value = "1", value_parser = thread_count)]
    pub(super) workers: usize,

    /// On CUDA: launches each operation, instead of recording what is done for a shape and
    /// replaying it
    #[arg(long)]
    pub(super) no_cuda_graphs: bool,

    /// Who hands answers over
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) delivery: DeliveryKind,

    /// How long each strategy's turn takes
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = positive,
          allow_negative_numbers = true)]
    pub(super) seconds: f64,

    /// How many requests a turn takes, instead of a time; closed loops only
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with_all = ["seconds", "rate", "load"])]
    pub(super) requests: Option<usize>,

    /// How often everything is repeated
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one)]
    pub(super) rounds: usize,

    /// Seed of the arrivals, and of the simulated device's schedule
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,

    /// Prints JSON instead of tables
    #[arg(long)]
    pub(super) json: bool,

    /// Writes a page with tables and plots
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,

    /// Writes the first round as Chrome trace events: requests, batches, engine time
    #[arg(long, value_name = "FILE")]
    pub(super) trace: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum EngineKind {
    Null,
    Mlp,
    Embedding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DeliveryKind {
    /// a thread beside the worker, for large batches, if there are processors to spare
    Auto,
    /// the worker
    Worker,
    /// a thread beside the worker
    Thread,
}

impl From<DeliveryKind> for Delivery {
    fn from(kind: DeliveryKind) -> Self {
        match kind {
            DeliveryKind::Auto => Self::Auto,
            DeliveryKind::Worker => Self::Worker,
            DeliveryKind::Thread => Self::Thread,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    Load,
    Priority,
    Lengths,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        // A month of seconds, and more requests than any machine sends.
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(number),
        _ => Err("must be a number above 0, at most 1000000000".to_owned()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if (0.0..=60_000.0).contains(&number) => Ok(number),
        _ => Err("must be a number from 0 to 60000".to_owned()),
    }
}

impl Args {
    /// Combinations that mean nothing.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let embedding = self.engine == EngineKind::Embedding;
        ensure!(
            !embedding || self.model.is_some(),
            "--engine embedding needs the model's directory: --model DIR"
        );
        for (given, flag) in [
            (self.model.is_some(), "--model"),
            (self.texts.is_some(), "--texts"),
            (self.lengths.is_some(), "--lengths"),
        ] {
            ensure!(embedding || !given, "{flag} is for --engine embedding");
        }
        ensure!(
            self.batch_time_ms.is_none() || self.engine == EngineKind::Null,
            "--batch-time-ms is for --engine null: the others take the time that they need"
        );
        ensure!(
            self.engine != EngineKind::Null || self.device == DeviceArg::Real(DeviceName::Cpu),
            "--engine null runs on no device: leave --device out, or use --engine mlp"
        );
        ensure!(
            !self.no_cuda_graphs || matches!(self.device, DeviceArg::Real(DeviceName::Cuda(_))),
            "--no-cuda-graphs is for --device cuda, not {}",
            self.device
        );
        ensure!(
            self.task_threads.is_none() || !self.tasks.is_empty(),
            "--task-threads is for --tasks: say how many of them"
        );
        let open = !self.rate.is_empty() || !self.load.is_empty();
        ensure!(
            !open || self.strategy != [Strategy::Offline],
            "--strategy offline has no clients: name another one for --rate or --load"
        );
        if self.scenario != Scenario::Load {
            let name = if self.scenario == Scenario::Priority { "priority" } else { "lengths" };
            for (given, flag) in [
                (self.html.is_some(), "--html"),
                (self.trace.is_some(), "--trace"),
                (!self.load.is_empty(), "--load"),
                (!self.tasks.is_empty(), "--tasks"),
                (self.task_threads.is_some(), "--task-threads"),
                (self.requests.is_some(), "--requests"),
            ] {
                ensure!(!given, "{flag} is not for --scenario {name}");
            }
        }
        ensure!(
            self.scenario != Scenario::Lengths || embedding,
            "--scenario lengths is for --engine embedding"
        );
        match self.scenario {
            Scenario::Priority => ensure!(
                self.rate.len() <= 1 && self.threads.is_empty(),
                "--scenario priority takes one --rate, of the interactive requests, and no --threads"
            ),
            Scenario::Lengths => ensure!(
                self.rate.is_empty() && self.threads.len() <= 1,
                "--scenario lengths takes one number of --threads, and no --rate"
            ),
            Scenario::Load => {}
        }
        Ok(())
    }
}
