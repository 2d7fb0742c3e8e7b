//! `--scenario lengths`: texts of mixed lengths, one at a time from many threads, against one
//! thread that has them all, sorted by length, in whole batches.
//!
//! Both compute every text once a round, in turn, so that they do the same work; the figure is the
//! median of the rounds' ratios. Texts are tokenised beforehand.

use std::sync::Arc;
use std::time::Instant;

use onelane::{BatchItem, Engine};
use onelane_bench::generator::{ClosedLoop, Limit};
use onelane_bench::{median, median_ratio};
use onelane_terminal::bar;
use serde::Serialize;

use super::offline::sorted_batches;
use super::report::rate;
use super::run::threads;
use super::stage::Stage;
use super::strategy::Strategy;
use super::texts::Texts;
use super::workload::Workload;

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub device: String,
    pub max_batch_size: usize,
    pub rounds: usize,
    pub clients: usize,
    pub texts: usize,
    /// Real tokens of all texts.
    pub tokens: usize,
    pub shortest: usize,
    pub longest: usize,
    /// Real tokens per second: medians of the rounds.
    pub offline_tokens_per_second: f64,
    pub queue_tokens_per_second: f64,
    /// Median of the rounds' ratios.
    pub ratio_to_offline: f64,
    /// Part of what the queue's batches computed that was padding.
    pub padding_waste: f64,
    pub mean_batch: f64,
    /// Shapes that the device has seen, the warm-up's and offline's too.
    pub distinct_shapes: usize,
    pub wrong: u64,
    pub ok: bool,
}

/// What is wanted.
const KEPT: f64 = 0.95;
const WASTE: f64 = 0.10;
const SHAPES: usize = 16;

/// Measures, with so many client threads.
///
/// # Errors
/// When an engine fails.
pub fn measure(stage: &Arc<Stage<Texts>>, clients: usize, rounds: usize) -> anyhow::Result<Report> {
    let texts = stage.workload.items();
    let lengths = || texts.iter().map(BatchItem::cost);
    let tokens: usize = lengths().sum();
    let mut engine = stage.engine(Strategy::Offline)?;
    // As many as there are: no text is computed twice in a round.
    let batches = sorted_batches(texts, stage.max_batch.min(texts.len()));
    let batched: usize = batches.iter().flatten().map(BatchItem::cost).sum();
    let bar = bar(2 * rounds as u64 + 2);
    // Each text once.
    let limit = Limit::Requests(texts.len() as u64);
    let closed = ClosedLoop { clients, limit, warm_up: false };
    let (mut offline, mut queued, mut wrong) = (Vec::new(), Vec::new(), 0);
    // The first round warms up.
    for round in 0..=rounds {
        bar.set_message("offline");
        let started = Instant::now();
        for batch in &batches {
            std::hint::black_box(engine.infer(batch)?);
        }
        let offline_rate = batched as f64 / started.elapsed().as_secs_f64();
        bar.inc(1);
        bar.set_message(format!("queue, {clients} threads"));
        let run = threads(stage, Strategy::Queue, closed)?;
        anyhow::ensure!(run.seen.failed == 0, "{}", run.seen.error.unwrap_or_default());
        bar.inc(1);
        wrong += run.seen.wrong;
        if round > 0 {
            offline.push(offline_rate);
            queued.push(tokens as f64 / run.took.as_secs_f64());
        }
    }
    bar.finish_and_clear();
    let stats = stage.queue(Strategy::Queue).stats();
    let ratio = median_ratio(&queued, &offline).unwrap_or(0.0);
    let (waste, shapes) = (stats.padding_waste(), stage.workload.shapes());
    Ok(Report {
        device: String::new(),
        max_batch_size: stage.max_batch,
        rounds,
        clients,
        texts: texts.len(),
        tokens,
        shortest: lengths().min().unwrap_or(0),
        longest: lengths().max().unwrap_or(0),
        offline_tokens_per_second: median(offline).unwrap_or(0.0),
        queue_tokens_per_second: median(queued).unwrap_or(0.0),
        ratio_to_offline: ratio,
        padding_waste: waste,
        mean_batch: stats.mean_batch_size(),
        distinct_shapes: shapes,
        wrong,
        ok: ratio >= KEPT && waste <= WASTE && shapes <= SHAPES && wrong == 0,
    })
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let verdict = if self.ok { "holds" } else { "FAILED" };
        format!(
            "device {}, batches of at most {}, {} rounds, {} client threads\n\
             {} texts of {} to {} tokens, {:.1} on average\n\
             offline, sorted   {:>10} tokens/s\n\
             queue             {:>10} tokens/s, {:.1}% of it (at least {:.0}% is wanted)\n\
             padding           {:>9.1}% (at most {:.0}% is wanted)\n\
             distinct shapes   {:>10} (at most {SHAPES} are wanted)\n\
             mean batch        {:>10.1}\n\
             wrong answers     {:>10}\n\
             {verdict}\n",
            self.device,
            self.max_batch_size,
            self.rounds,
            self.clients,
            self.texts,
            self.shortest,
            self.longest,
            self.tokens as f64 / self.texts.max(1) as f64,
            rate(self.offline_tokens_per_second),
            rate(self.queue_tokens_per_second),
            100.0 * self.ratio_to_offline,
            100.0 * KEPT,
            100.0 * self.padding_waste,
            100.0 * WASTE,
            self.distinct_shapes,
            self.mean_batch,
            self.wrong,
        )
    }
}
