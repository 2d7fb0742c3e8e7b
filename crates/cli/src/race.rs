//! `onelane race`: the minimal reproducer of wrong numbers from many threads, and, on the simulated
//! device, one order of the steps of two threads that makes them.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use onelane_sim::scenario::{Counterexample, Program, Step, counterexample};
use onelane_sim::{Memo, Profile, SimConfig};
use onelane_suite::race::{RACE_CONTIGUOUS, RACE_TOLERANCE, RACE_VIEWS};
use onelane_suite::{
    CandleDevice, Device, DeviceKind, Outcome, Plan, SimMps, run_batched, run_direct,
};
use onelane_terminal::{DeviceArg, OutputFile, thread_count, times};
use serde::Serialize;

/// Bytes of results that the threads of a run keep for each other.
const MEMO_BYTES: usize = 256 << 20;

/// Runs the minimal reproducer: many threads project, copy (.contiguous()) and attend at once, and
/// compare with what the device gives when nobody else uses it.
///
/// Each thread: linear (768, 256) on (4, 128, 256), unpacked into query, key and value by a strided
/// view, one dense copy of it, attention of 4 heads, synchronise. A result may differ by 1e-3.
///
/// The device is simulated unless another one is named: sim-mps[:PROFILE], fork-2.9.1 without a
/// profile. There, the same program in two threads is also run in one given order of their steps, and
/// printed step by step.
///
/// Exit codes: 0 every result was right, 1 a result was wrong or did not come, 2 wrong usage or a
/// device that cannot be opened.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device: sim-mps[:PROFILE], which is simulated, or cpu, metal, metal:N, cuda, cuda:N.
    #[arg(long, default_value = "sim-mps")]
    device: DeviceArg,

    /// How many threads.
    #[arg(long, value_name = "N", default_value = "8", value_parser = thread_count)]
    threads: usize,

    /// How often each thread runs it.
    #[arg(long, value_name = "N", default_value = "30", value_parser = times)]
    iterations: usize,

    /// The seed of a simulated device's schedule, that is of the order in which threads run; 0
    /// unless given.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Leaves the dense copy out: the views hold the projection's memory until the attention has
    /// run.
    #[arg(long)]
    without_contiguous: bool,

    /// Submits to a batch queue, whose one worker alone calls the device.
    #[arg(long)]
    use_batching: bool,

    /// Prints JSON instead of text.
    #[arg(long)]
    json: bool,

    /// Writes what the simulated device did during the run as a Chrome trace, to be looked at in
    /// Perfetto or chrome://tracing.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Gives up as hung when no thread makes progress for this many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = times)]
    stall_after_s: usize,
}

/// What a run found, in the form that is printed as JSON.
#[derive(Debug, Serialize)]
struct Report {
    device: String,
    device_kind: DeviceKind,
    /// Absent for hardware.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    contiguous: bool,
    use_batching: bool,
    threads: usize,
    iterations: usize,
    /// Iterations in which every thread's result was right.
    passed_iterations: usize,
    max_diff: Option<f64>,
    tolerance: f32,
    errors: Vec<String>,
    /// Absent where it says nothing about the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    counterexample: Option<Directed>,
    /// Whether a result was wrong, or did not come.
    reproduced: bool,
}

/// The directed counterexample.
#[derive(Debug, Serialize)]
struct Directed {
    /// The greatest difference of thread T1's result; `null` when the process failed.
    max_diff: Option<f32>,
    reproduced: bool,
    error: Option<String>,
    steps: Vec<Step>,
}

impl Directed {
    fn of(profile: Profile) -> Self {
        match counterexample(profile, Program::Race) {
            Ok(found) => {
                let reproduced = found.reproduced();
                let Counterexample { worst, steps, .. } = found;
                Self { max_diff: Some(worst), reproduced, error: None, steps }
            }
            Err(error) => Self {
                max_diff: None,
                reproduced: true,
                error: Some(error.to_string()),
                steps: Vec::new(),
            },
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the device cannot be opened, or the output not be written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let seed = args.device.seed(args.seed)?;
    if let (DeviceArg::Real(name), Some(_)) = (&args.device, &args.trace) {
        bail!("--trace records a simulated device, and {name} is a real one: leave --trace out");
    }
    let trace = args.trace.as_deref().map(OutputFile::check).transpose()?;
    let report = match &args.device {
        DeviceArg::Real(name) => {
            let device = Arc::new(CandleDevice::new(name.to_string(), name.open()?));
            args.report(&device, None)
        }
        DeviceArg::Simulated(profile) => {
            let config = SimConfig::new(profile.clone()).seed(seed).memo(Memo::new(MEMO_BYTES));
            let device = Arc::new(SimMps::with(config.traced(trace.is_some())));
            // The order of steps is one of two threads that call the device themselves, and of a
            // program that frees its projection.
            let told = !args.use_batching && !args.without_contiguous;
            let directed = told.then(|| Directed::of(profile.clone()));
            let report = args.report(&device, directed);
            if let Some(trace) = trace {
                let chrome = serde_json::to_string(&device.trace().to_chrome());
                trace.write(chrome.context("the trace does not fit into JSON")?.as_bytes())?;
            }
            report
        }
    };
    let text = if args.json {
        let json = serde_json::to_string_pretty(&report);
        json.context("the report does not fit into JSON")? + "\n"
    } else {
        text(&report)
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read has seen enough; the exit code still tells the result.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot write to stdout")?,
    }
    Ok(ExitCode::from(u8::from(report.reproduced)))
}

impl Args {
    fn report<D: Device>(&self, device: &Arc<D>, directed: Option<Directed>) -> Report {
        let plan = Plan {
            case: if self.without_contiguous { RACE_VIEWS } else { RACE_CONTIGUOUS },
            threads: self.threads,
            iterations: self.iterations,
            tolerance: RACE_TOLERANCE,
            stall_after: Duration::from_secs(self.stall_after_s as u64),
        };
        let outcome: Outcome = if self.use_batching {
            run_batched(device, &plan, 1, &mut || ())
        } else {
            run_direct(device, &plan, &mut || ())
        };
        let corrupts = directed.as_ref().is_some_and(|directed| directed.reproduced);
        Report {
            device: device.name(),
            device_kind: device.kind(),
            seed: device.seed(),
            contiguous: !self.without_contiguous,
            use_batching: self.use_batching,
            threads: self.threads,
            iterations: self.iterations,
            passed_iterations: outcome.passed_iterations,
            max_diff: outcome.max_diff,
            tolerance: RACE_TOLERANCE.absolute,
            reproduced: !outcome.passed() || corrupts,
            errors: outcome.errors,
            counterexample: directed,
        }
    }
}

/// The report for people. Each statement about a simulated device says so.
fn text(report: &Report) -> String {
    let simulated = report.device_kind == DeviceKind::Simulated;
    let (loud, mark) = if simulated { (" (SIMULATED)", " (simulated)") } else { ("", "") };
    let mut text = format!("device {}{loud}", report.device);
    if let Some(seed) = report.seed {
        let _ = write!(text, ", seed {seed}");
    }
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let _ = writeln!(
        text,
        ": {} thread{} {}, {} iteration{}, {} the dense copy",
        report.threads,
        plural(report.threads),
        if report.use_batching {
            "submit to a batch queue with 1 worker"
        } else {
            "call the device"
        },
        report.iterations,
        plural(report.iterations),
        if report.contiguous { "with" } else { "without" },
    );
    let _ =
        write!(text, "{} of {} iterations pass{mark}", report.passed_iterations, report.iterations);
    match report.max_diff {
        Some(diff) => {
            let _ = writeln!(
                text,
                ", greatest difference {diff:.1e}, allowed {:.0e}",
                report.tolerance
            );
        }
        None => text.push('\n'),
    }
    for error in &report.errors {
        let _ = writeln!(text, "     {error}");
    }
    if let Some(directed) = &report.counterexample {
        text.push_str(&directed_text(directed));
    }
    let _ =
        writeln!(text, "{}{mark}", if report.reproduced { "REPRODUCED" } else { "not reproduced" });
    text
}

fn directed_text(directed: &Directed) -> String {
    let mut text = "\nThe same program in two threads and one order of their steps (simulated; \
                    #N is a block of device memory):\n"
        .to_owned();
    for step in &directed.steps {
        let _ = writeln!(text, "{step}");
    }
    let _ = match (&directed.error, directed.max_diff) {
        (Some(error), _) => writeln!(text, "The simulated process failed: {error}"),
        (None, diff) => writeln!(
            text,
            "T1's result differs from the serial one by {:.1e} (simulated)",
            diff.unwrap_or(0.0)
        ),
    };
    text.push('\n');
    text
}
