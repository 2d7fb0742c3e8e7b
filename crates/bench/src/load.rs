//! `onelane-bench load`: how fast an engine is in the hands of many clients, by strategy.
//!
//! [`sweep`] measures closed loops and open load, [`priority`] interactive requests beside bulk
//! work, [`lengths`] texts of mixed lengths. Everything is measured round by round, the strategies
//! in turn, and compared within a round.

mod args;
mod judge;
mod lengths;
mod observed;
mod offline;
mod page;
mod priority;
mod report;
mod run;
mod stage;
mod strategy;
mod sweep;
mod texts;
mod trace;
mod workload;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use onelane::ExecutorConfig;
use onelane_bench::generator::Limit;
use onelane_engines::DeviceName;
use onelane_sim::SimConfig;
use onelane_terminal::{DeviceArg, OutputFile};
use serde::Serialize;

pub use args::Args;
use args::{EngineKind, Scenario};
use report::Report;
use stage::Stage;
use strategy::Strategy;
use sweep::{Clients, Offer};
use texts::{TextSource, Texts};
use trace::Trace;
use workload::{Mlp, Null, SimMlp, Workload};

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
    fn stage<W: Workload>(&self, workload: W) -> anyhow::Result<Arc<Stage<W>>> {
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
        let measured = sweep::measure(&stage, &self.sweep_plan(), trace.as_mut())?;
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

    fn sweep_plan(&self) -> sweep::Plan {
        let closed = !self.threads.is_empty() || !self.tasks.is_empty();
        let open = !self.rate.is_empty() || !self.load.is_empty();
        let threads = match closed || open {
            true => self.threads.clone(),
            false => vec![1, 8, 64, 256],
        };
        let tasks = self.tasks.iter().copied().map(Clients::Tasks);
        let rates = self.rate.iter().copied().map(Offer::Rate);
        sweep::Plan {
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
