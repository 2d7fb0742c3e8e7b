//! `onelane correctness`: the ten tests on a device, from one thread, from many, or through a batch
//! queue.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use onelane::ExecutorConfig;
use onelane_suite::{CandleDevice, Case, Mode, SimMps, SuiteConfig, TEN, run_suite, test_named};
use onelane_terminal::{DeviceArg, OutputFile, at_least_one, thread_count, times};

use crate::progress::SuiteBar;
use crate::table;

/// Checks that a device computes the right numbers: ten tests, from a linear layer to a transformer
/// block.
///
/// By default one thread runs each test on the device and the result is compared with a plain
/// implementation on the CPU (within 1e-4). With --parallel many threads call the device at once,
/// each with its own copy of the data, and every result is compared with what the device gives when
/// nobody else uses it (within 1e-6). With --use-batching the threads submit to a batch queue
/// instead, whose worker is the only one to call the device (within 1e-5).
///
/// sim-mps is a simulated MPS device: a model of the runtime under PyTorch's mps device, which runs
/// anywhere. Its profiles are sets of rules (`onelane devices` lists them); without one it is
/// fork-2.9.1, a stream per thread and freed memory given to any of them. What it gives is always
/// called simulated.
///
/// Exit codes: 0 every test passed, 1 a test failed, 2 wrong usage or a device that cannot be
/// opened.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device: cpu, metal, metal:N, cuda, cuda:N, or sim-mps[:PROFILE], which is simulated.
    #[arg(long, default_value = "cpu")]
    device: DeviceArg,

    /// The seed of a simulated device's schedule, that is of the order in which threads run; 0
    /// unless given.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Runs each test in many threads at once.
    #[arg(long)]
    parallel: bool,

    /// How many threads; several numbers, separated by commas, run the tests once for each.
    #[arg(long, value_name = "N,...", default_value = "8", value_delimiter = ',')]
    #[arg(value_parser = thread_count, requires = "parallel")]
    threads: Vec<usize>,

    /// Submits to a batch queue, whose worker alone calls the device.
    #[arg(long, requires = "parallel")]
    use_batching: bool,

    /// Worker threads of the batch queue's device; 1 is right unless the device's runtime is
    /// thread-safe.
    #[arg(long, value_name = "N", default_value = "1")]
    #[arg(value_parser = workers, requires = "use_batching")]
    workers: usize,

    /// How often each thread runs each test.
    #[arg(long, value_name = "N", default_value = "10", value_parser = times)]
    iterations: usize,

    /// Runs only these tests.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = test)]
    #[arg(long_help = tests_help())]
    tests: Vec<Case>,

    /// Writes the report as JSON to this file, whole or not at all.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Prints the report as JSON instead of a table.
    #[arg(long)]
    json: bool,

    /// Fails a test as hung when no thread makes progress for this many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = times)]
    stall_after_s: usize,
}

impl Args {
    fn config(&self) -> SuiteConfig {
        let mode = match (self.parallel, self.use_batching) {
            (_, true) => Mode::Batched,
            (true, false) => Mode::Parallel,
            (false, false) => Mode::Single,
        };
        let tests = match &self.tests[..] {
            [] => TEN.to_vec(),
            tests => tests.to_vec(),
        };
        SuiteConfig::default()
            .mode(mode)
            .threads(self.threads.as_slice())
            .workers(self.workers)
            .iterations(self.iterations)
            .tests(tests)
            .stall_after(Duration::from_secs(self.stall_after_s as u64))
    }
}

/// Runs the command.
///
/// # Errors
/// When the device cannot be opened or the output not be written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.config();
    let seed = args.device.seed(args.seed)?;
    let output = args.output.as_deref().map(OutputFile::check).transpose()?;

    let threads: usize = match config.mode {
        Mode::Single => 1,
        Mode::Parallel | Mode::Batched => config.threads.iter().sum(),
    };
    let mut bar = SuiteBar::new((threads * config.tests.len() * config.iterations) as u64);
    let report = match args.device {
        DeviceArg::Real(name) => {
            let device = CandleDevice::new(name.to_string(), name.open()?);
            run_suite(&Arc::new(device), &config, &mut bar)?
        }
        DeviceArg::Simulated(profile) => {
            run_suite(&Arc::new(SimMps::new(profile, seed)), &config, &mut bar)?
        }
    };
    drop(bar);

    let json = || -> anyhow::Result<String> {
        let mut json =
            serde_json::to_string_pretty(&report).context("the report does not fit into JSON")?;
        json.push('\n');
        Ok(json)
    };
    if let Some(output) = output {
        output.write(json()?.as_bytes())?;
    }
    let text = if args.json { json()? } else { table::text(&report) };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read has seen enough; the exit code still tells the result.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot write to stdout")?,
    }
    Ok(ExitCode::from(u8::from(!report.all_passed())))
}

fn workers(text: &str) -> Result<usize, String> {
    let workers = at_least_one(text)?;
    match ExecutorConfig::new("any").workers(workers).validate() {
        Ok(()) => Ok(workers),
        Err(error) => Err(error.expected.to_owned()),
    }
}

fn test(name: &str) -> Result<Case, String> {
    test_named(name.trim())
        .ok_or_else(|| format!("there is no such test; the tests are {}", test_names()))
}

fn test_names() -> String {
    TEN.map(|case| case.name).join(", ")
}

fn tests_help() -> String {
    format!("Runs only these tests, of {}", test_names())
}
