//! `onelane embed`: sentence embeddings of a file of texts, through a batch queue.
//!
//! A line is a text and every line has its line of output, in input order; see [`crew`] for how the
//! work flows, [`sink`] for the promise that an output file is whole or untouched.

mod crew;
mod lines;
mod sink;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use onelane::{
    BatchConfig, BatchQueue, DeviceExecutor, ExecutorConfig, Priority, QueueStats, Shutdown,
};
use onelane_engines::{DeviceName, EmbeddingConfig, EmbeddingModel, autorelease_pool};
use onelane_terminal::{at_least_one, causes, is_broken_pipe, thread_count};

use crew::{Client, Crew, Done};
use lines::Input;
use sink::Sink;

/// Batches' worth of texts that are under way at once, from the reader to the writer: enough that
/// every length bucket can fill its batches, and the bound of the memory that a run takes.
const BATCHES_UNDER_WAY: usize = 16;

/// Embeds texts with a BERT sentence model: one text a line in, one JSON object a line out.
///
/// FILE holds one text a line, in UTF-8; - reads standard input. Line N of the output belongs to
/// line N of the input: {"index": N, "embedding": [...]}, counted from 0, pooled and scaled as the
/// model's directory says. An empty line is an empty text and gets an embedding
/// too. A line that is not UTF-8, or that the engine refuses, gets {"index": N, "error": "..."}
/// instead, the others are not affected, and the exit code is 1. A text beyond the model's limit
/// loses its end, as the model's files say; the first one is named on stderr.
///
/// The texts go through a batch queue: many client threads tokenise and submit one text at a time,
/// and one worker thread runs those of similar length together.
///
/// Exit codes: 0 every text has its embedding, 1 some have not or the work broke off, 2 wrong usage
/// or a start that failed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model's directory, with config.json, tokenizer.json and model.safetensors
    #[arg(long, value_name = "DIR")]
    model: PathBuf,

    /// The device: cpu, metal[:N] or cuda[:N]
    #[arg(long, default_value_t = DeviceName::Cpu)]
    device: DeviceName,

    /// Client threads, which tokenise and submit
    #[arg(long, value_name = "N", default_value = "8", value_parser = thread_count)]
    threads: usize,

    /// The most texts that run together
    #[arg(long, value_name = "N", default_value = "32", value_parser = at_least_one)]
    max_batch_size: usize,

    /// How urgent the texts are: interactive, normal or bulk
    #[arg(long, default_value_t = Priority::Normal)]
    priority: Priority,

    /// Writes to this file, whole or not at all, instead of stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// The texts, one a line; - for standard input
    #[arg(value_name = "FILE")]
    input: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// When it could not start: input, output, device or model.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let input = Input::open(&args.input)?;
    let sink = Sink::open(args.output.as_deref())?;
    let model = EmbeddingModel::open(&args.model, args.device, EmbeddingConfig::default())?;

    let window = args
        .max_batch_size
        .saturating_mul(BATCHES_UNDER_WAY)
        .clamp(64, 1 << 14)
        .max(args.threads.saturating_mul(2));
    let config =
        BatchConfig::default().name("embed").max_batch_size(args.max_batch_size).capacity(window);
    let device = ExecutorConfig::new(args.device.to_string()).around(autorelease_pool);
    let device = DeviceExecutor::shared_with(device)?;
    let factory = model.clone();
    let queue = BatchQueue::new(&device, config, move || Ok(factory.load()?))
        .with_context(|| format!("cannot start on {}", args.device))?;

    let client = Client { model: model.clone(), queue: queue.clone(), priority: args.priority };
    let crew = Crew { threads: args.threads, window, client };
    let mut progress = Progress::new(input.bytes(), model.tokeniser().max_length());
    let written = write_all(&crew, input, sink, &mut progress);
    progress.bar.finish_and_clear();
    let stats = queue.stats();
    // Nothing waits any more; the worker drops the engine, on whose device it was made.
    let _ = queue.shutdown(Shutdown::Abort, Duration::from_secs(10));

    if let Err(error) = written {
        // main turns a broken pipe into a quiet end.
        if is_broken_pipe(&error) {
            return Err(error);
        }
        eprintln!("error: {}", causes(&error));
        return Ok(ExitCode::from(1));
    }
    eprintln!("{}", progress.summary(&stats, &model));
    Ok(ExitCode::from(u8::from(progress.failed > 0)))
}

fn write_all(
    crew: &Crew,
    input: Input,
    mut sink: Sink,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    crew.run(input, &mut sink, |done| progress.note(done))?;
    sink.finish()
}

/// What a run has done so far: a bar on stderr if that is a terminal, and the counts for the end.
struct Progress {
    bar: ProgressBar,
    started: Instant,
    /// Limit of the model in tokens.
    limit: usize,
    texts: u64,
    failed: u64,
    truncated: u64,
}

impl Progress {
    /// `bytes` is the size of the input, if it is known.
    fn new(bytes: Option<u64>, limit: usize) -> Self {
        let (bar, template) = match bytes {
            Some(bytes) => {
                (ProgressBar::new(bytes), "{elapsed_precise} {bar:30} {percent:>3}% {msg}")
            }
            None => (ProgressBar::new_spinner(), "{elapsed_precise} {spinner} {msg}"),
        };
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.expect("the template is a constant that parses"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, started: Instant::now(), limit, texts: 0, failed: 0, truncated: 0 }
    }

    /// Notes a line that has been written.
    fn note(&mut self, done: &Done) {
        self.texts += 1;
        if done.truncated {
            self.truncated += 1;
            if self.truncated == 1 {
                self.say(&format!(
                    "note: line {} is longer than the model's limit of {} tokens; its end is not \
                     embedded (said once, counted at the end)",
                    done.index + 1,
                    self.limit
                ));
            }
        }
        if let Err(error) = &done.outcome {
            self.failed += 1;
            if self.failed == 1 {
                self.say(&format!(
                    "error: line {}: {error} (said once, counted at the end)",
                    done.index + 1
                ));
            }
        }
        self.bar.set_position(done.offset);
        if self.texts.is_multiple_of(16) {
            self.bar.set_message(format!("{} texts, {:.1} texts/s", self.texts, self.rate()));
        }
    }

    /// Prints a line on stderr, above the bar if there is one.
    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    fn rate(&self) -> f64 {
        self.texts as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// The closing line.
    fn summary(&self, stats: &QueueStats, model: &EmbeddingModel) -> String {
        let rate = self.rate();
        let mut line = format!(
            "{} in {:.2} s ({rate:.1} texts/s), {}, {:.1} texts a batch, {:.1}% padding, {}",
            counted(self.texts, "text"),
            self.started.elapsed().as_secs_f64(),
            match stats.batches {
                1 => "1 batch".to_owned(),
                n => format!("{n} batches"),
            },
            stats.mean_batch_size(),
            stats.padding_waste() * 100.0,
            counted(model.shapes().len() as u64, "distinct shape"),
        );
        for (count, what) in [(self.truncated, "truncated"), (self.failed, "failed")] {
            if count > 0 {
                line.push_str(&format!(", {count} {what}"));
            }
        }
        line
    }
}

fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}
