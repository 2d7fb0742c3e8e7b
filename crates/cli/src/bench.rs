//! `onelane bench`: how fast an engine is in the hands of many clients, by strategy.
//!
//! [`load`] measures closed loops and open load, [`priority`] interactive requests beside bulk work,
//! [`lengths`] texts of mixed lengths. Everything is measured round by round, the strategies in turn,
//! and compared within a round.

mod closed;
mod latency;
mod lengths;
mod load;
mod observed;
mod open;
mod page;
mod priority;
mod report;
mod schedule;
mod strategy;
mod texts;
mod trace;
mod workload;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::ValueEnum;
use onelane::{Delivery, ExecutorConfig};
use onelane_engines::DeviceName;
use onelane_sim::SimConfig;
use serde::Serialize;

use crate::device_arg::DeviceArg;
use crate::output::OutputFile;
use closed::Limit;
use load::{Clients, Offer};
use report::Report;
use strategy::{Stage, Strategy};
use texts::{Lengths, TextSource, Texts};
use trace::Trace;
use workload::{Mlp, Null, SimMlp, Workload};

/// Measures throughput and latency of an engine that many clients use, by strategy.
///
/// Strategies: direct (every client thread has an engine of its own), lock (one engine under a mutex),
/// queue-1 (a batch queue that runs requests one by one), queue (a batch queue), offline (one thread,
/// whole batches made before: the limit). They take turns, round by round; rates are medians of the
/// rounds, ratios medians of the rounds' ratios, and latencies are of all rounds together.
///
/// Closed loop (--threads, --tasks): each client asks, waits and asks again. Open load (--rate,
/// --load): requests arrive as a Poisson process whatever has become of those before, and latency
/// counts from when a request was meant to arrive. Answers are compared with those of the same request
/// alone.
///
/// Exit codes: 0 all is well, 1 an answer was wrong or failed, or a scenario does not hold, 2 wrong
/// usage or a start that failed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// null (no work), mlp (512-1024-1024-512, one row a request) or embedding (needs --model)
    #[arg(long, value_enum, default_value_t = EngineKind::Null, hide_possible_values = true)]
    engine: EngineKind,

    /// The embedding model's directory
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Texts for the embedding engine, one a line; built-in ones by default
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,

    /// Makes texts of so many tokens, short ones more often, of the words of the others: 8-400
    #[arg(long, value_name = "MIN-MAX")]
    lengths: Option<Lengths>,

    /// How many different texts
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least_one)]
    text_count: usize,

    /// The device: cpu, metal[:N], cuda[:N], or sim-mps[:PROFILE] for the mlp
    #[arg(long, default_value = "cpu")]
    device: DeviceArg,

    /// How long each batch of the null engine takes; 2 in the priority scenario
    #[arg(long, value_name = "MS", value_parser = not_negative, allow_negative_numbers = true)]
    batch_time_ms: Option<f64>,

    /// load, priority (interactive requests beside bulk work) or lengths (texts of mixed lengths)
    #[arg(long, value_enum, default_value_t = Scenario::Load, hide_possible_values = true)]
    scenario: Scenario,

    /// Which strategies, separated by commas
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true,
        default_value = "direct,lock,queue-1,queue,offline"
    )]
    strategy: Vec<Strategy>,

    /// Numbers of client threads; 1,8,64,256 unless --tasks, --rate or --load is given
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = at_least_one)]
    threads: Vec<usize>,

    /// Numbers of async tasks; queues only
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = at_least_one)]
    tasks: Vec<usize>,

    /// How many threads the tasks share; as many as there are cores by default
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    task_threads: Option<usize>,

    /// Open load in requests per second
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = positive, allow_negative_numbers = true)]
    rate: Vec<f64>,

    /// Open load in parts of what the batch queue can do, for example 0.5,0.8,0.95
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = positive, allow_negative_numbers = true)]
    load: Vec<f64>,

    /// Client threads of direct and lock under open load
    #[arg(long, value_name = "N", default_value = "64", value_parser = at_least_one)]
    open_threads: usize,

    /// The most requests in a batch
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least_one)]
    max_batch_size: usize,

    /// How many threads own the device, each with an engine; more than one only where its runtime is
    /// thread-safe
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    workers: usize,

    /// On CUDA: launches each operation, instead of recording what is done for a shape and replaying it
    #[arg(long)]
    no_cuda_graphs: bool,

    /// Who hands answers over
    #[arg(long, value_enum, default_value = "auto")]
    delivery: DeliveryKind,

    /// How long each strategy's turn takes
    #[arg(long, value_name = "S", default_value_t = 0.5, value_parser = positive,
          allow_negative_numbers = true)]
    seconds: f64,

    /// How many requests a turn takes, instead of a time; closed loops only
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with_all = ["seconds", "rate", "load"])]
    requests: Option<usize>,

    /// How often everything is repeated
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one)]
    rounds: usize,

    /// Seed of the arrivals, and of the simulated device's schedule
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Prints JSON instead of tables
    #[arg(long)]
    json: bool,

    /// Writes a page with tables and plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Writes the first round as Chrome trace events: requests, batches, engine time
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineKind {
    Null,
    Mlp,
    Embedding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DeliveryKind {
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
enum Scenario {
    Load,
    Priority,
    Lengths,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("must be a whole number of at least 1".to_owned()),
    }
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

/// Hardware threads of this machine.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Runs the command.
///
/// # Errors
/// When it could not start: the device, the model, an output file; or when an engine fails.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.check()?;
    let html = args.html.as_deref().map(OutputFile::check).transpose()?;
    let trace = args.trace.as_deref().map(OutputFile::check).transpose()?;
    let files = Files { html, trace };
    match (args.engine, &args.device) {
        (EngineKind::Null, _) => {
            let default = if args.scenario == Scenario::Priority { 2.0 } else { 0.0 };
            let batch_ms = args.batch_time_ms.unwrap_or(default);
            args.run_workload(Null::new(Duration::from_secs_f64(batch_ms / 1e3)), files)
        }
        (EngineKind::Mlp, &DeviceArg::Real(device)) => {
            args.run_workload(Mlp::new(device, !args.no_cuda_graphs)?, files)
        }
        (EngineKind::Mlp, DeviceArg::Simulated(profile)) => {
            let config = SimConfig::new(profile.clone()).seed(args.seed);
            args.run_workload(SimMlp::new(config)?, files)
        }
        (EngineKind::Embedding, &DeviceArg::Real(device)) => {
            let texts = args.open_texts(device)?;
            if args.scenario == Scenario::Lengths {
                return args.run_lengths(texts);
            }
            args.run_workload(texts, files)
        }
        (EngineKind::Embedding, DeviceArg::Simulated(_)) => {
            bail!("{}: the simulated device runs the mlp only: use --engine mlp", args.device)
        }
    }
}

/// Where a page and a trace go.
struct Files {
    html: Option<OutputFile>,
    trace: Option<OutputFile>,
}

impl Args {
    /// Combinations that mean nothing.
    fn check(&self) -> anyhow::Result<()> {
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

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    fn task_threads(&self) -> usize {
        self.task_threads.unwrap_or_else(cores)
    }

    fn simulated(&self) -> bool {
        matches!(self.device, DeviceArg::Simulated(_))
    }

    fn engine_name(&self) -> String {
        let possible = self.engine.to_possible_value();
        possible.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn open_texts(&self, device: DeviceName) -> anyhow::Result<Texts> {
        let source = TextSource {
            file: self.texts.as_deref(),
            lengths: self.lengths.as_ref(),
            count: self.text_count,
        };
        let model = self.model.as_deref().unwrap_or_else(|| ".".as_ref());
        Texts::open(model, device, source, !self.no_cuda_graphs)
    }

    /// A stage with room for every client, and for the bulk work twice over.
    fn stage<W: Workload>(&self, workload: W) -> anyhow::Result<Stage<W>> {
        let most = self.threads.iter().chain(&self.tasks).copied().max().unwrap_or(256);
        let capacity = most.max(self.max_batch_size.saturating_mul(8)).max(1024);
        let device = match self.engine {
            EngineKind::Null => "null".to_owned(),
            EngineKind::Mlp | EngineKind::Embedding => self.device.to_string(),
        };
        let executor =
            ExecutorConfig::new(device).workers(self.workers).delivery(self.delivery.into());
        Stage::new(workload, executor, self.max_batch_size, capacity)
    }

    fn run_workload<W: Workload>(&self, workload: W, files: Files) -> anyhow::Result<ExitCode> {
        let stage = self.stage(workload)?;
        if self.scenario == Scenario::Priority {
            let plan = priority::Plan {
                rate: self.rate.first().copied(),
                rounds: self.rounds,
                time: self.time(),
                seed: self.seed,
            };
            let report = priority::Report {
                engine: self.engine_name(),
                device: self.device_name(),
                simulated: self.simulated(),
                ..priority::measure(&stage, plan)?
            };
            return self.print(&report, report.ok, || report.text());
        }
        let mut trace = files.trace.is_some().then(Trace::new);
        let measured = load::measure(&stage, &self.load_plan(), trace.as_mut())?;
        let mut report = Report {
            engine: self.engine_name(),
            device: self.device_name(),
            simulated: self.simulated(),
            max_batch_size: self.max_batch_size,
            workers: self.workers,
            delivery: format!("{:?}", self.delivery).to_lowercase(),
            rounds: self.rounds,
            cores: cores(),
            task_threads: (!self.tasks.is_empty()).then(|| self.task_threads()),
            capacity_per_second: measured.capacity,
            closed: measured.closed,
            open: measured.open,
            notes: measured.notes,
            ok: true,
        };
        if self.no_cuda_graphs {
            report.notes.push("without CUDA graphs".to_owned());
        }
        report.ok = report.faults().is_empty();
        if let (Some(file), Some(trace)) = (files.trace, trace) {
            file.write(trace.into_json().as_bytes())?;
        }
        if let Some(file) = files.html {
            file.write(page::html(&report)?.as_bytes())?;
        }
        self.print(&report, report.ok, || text(&report))
    }

    fn run_lengths(&self, texts: Texts) -> anyhow::Result<ExitCode> {
        let clients = self.threads.first().copied().unwrap_or(64);
        let report = lengths::measure(&self.stage(texts)?, clients, self.rounds)?;
        let report = lengths::Report { device: self.device_name(), ..report };
        self.print(&report, report.ok, || report.text())
    }

    fn device_name(&self) -> String {
        match self.engine {
            EngineKind::Null => "none".to_owned(),
            EngineKind::Mlp | EngineKind::Embedding => self.device.to_string(),
        }
    }

    fn load_plan(&self) -> load::Plan {
        let closed = !self.threads.is_empty() || !self.tasks.is_empty();
        let open = !self.rate.is_empty() || !self.load.is_empty();
        let threads = match closed || open {
            true => self.threads.clone(),
            false => vec![1, 8, 64, 256],
        };
        let tasks = self.tasks.iter().copied().map(Clients::Tasks);
        let rates = self.rate.iter().copied().map(Offer::Rate);
        load::Plan {
            strategies: {
                let chosen = |strategy: &Strategy| self.strategy.contains(strategy);
                Strategy::ALL.into_iter().filter(chosen).collect()
            },
            clients: threads.into_iter().map(Clients::Threads).chain(tasks).collect(),
            task_threads: self.task_threads(),
            offers: rates.chain(self.load.iter().copied().map(Offer::Load)).collect(),
            open_threads: self.open_threads,
            rounds: self.rounds,
            limit: match self.requests {
                Some(requests) => Limit::Requests(requests as u64),
                None => Limit::Time(self.time()),
            },
            seed: self.seed,
        }
    }

    fn print(
        &self,
        report: &impl Serialize,
        ok: bool,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<ExitCode> {
        let mut stdout = std::io::stdout().lock();
        if self.json {
            writeln!(stdout, "{}", serde_json::to_string_pretty(report)?)?;
        } else {
            write!(stdout, "{}", text())?;
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A benchmark of loads, for people.
fn text(report: &Report) -> String {
    let mut lines = vec![report.headline()];
    lines.extend(report.closed_table().map(|table| table.to_string()));
    if let Some(capacity) = report.capacity_per_second {
        lines.push(format!("capacity of the batch queue: {} requests/s", report::rate(capacity)));
    }
    lines.extend(report.open_table().map(|table| table.to_string()));
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines.extend(report.faults().into_iter().map(|fault| format!("FAIL {fault}")));
    lines.join("\n") + "\n"
}
