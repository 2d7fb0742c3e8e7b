//! `--scenario priority`: bulk work that keeps the device full, and interactive requests on top.
//!
//! Each round measures the bulk work alone, then with interactive requests that arrive as a Poisson
//! process. A latency counts from when the request was meant to arrive. In the best case an
//! interactive request waits for the batch that runs and goes with the next one: two batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use onelane::Priority;
use onelane_bench::generator::{
    Arrivals, Latencies, Process, Sent, open_to_queue, saturate, sleep_until,
};
use onelane_bench::{median, median_ratio};
use onelane_terminal::bar;
use serde::Serialize;

use super::judge::{Judge, Seen};
use super::report::{duration, rate};
use super::run::capacity;
use super::stage::Stage;
use super::strategy::Strategy;
use super::workload::Workload;

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Interactive requests per second; by default one for every ten batches.
    pub rate: Option<f64>,
    /// How often both are measured.
    pub rounds: usize,
    /// How long each time.
    pub time: Duration,
    /// Chooses arrivals.
    pub seed: u64,
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub engine: String,
    pub device: String,
    pub simulated: bool,
    pub max_batch_size: usize,
    pub rounds: usize,
    /// Medians of the rounds.
    pub bulk_alone_per_second: f64,
    pub bulk_beside_per_second: f64,
    /// Median of the rounds' ratios.
    pub bulk_kept: f64,
    pub interactive_per_second: f64,
    pub interactive_requests: u64,
    pub interactive_p50_us: f64,
    pub interactive_p99_us: f64,
    /// How late they were sent; part of their latencies.
    pub sent_late_p99_us: f64,
    /// Time of a batch of either kind.
    pub service_mean_us: f64,
    pub service_p99_us: f64,
    /// The interactive p99 in mean batch times.
    pub interactive_p99_in_batches: f64,
    /// Two batch times, each as slow as one in a hundred: what p99 must stay within.
    pub bound_us: f64,
    pub ok: bool,
}

/// What was seen in one phase.
#[derive(Default)]
struct Phase {
    bulk_rate: f64,
    /// Of the interactive requests.
    interactive: Latencies,
    sent: Sent,
    wrong: u64,
}

/// The part of the bulk work's throughput that must be left.
const KEPT: f64 = 0.95;

/// Measures.
///
/// # Errors
/// When the queue is gone, its engine fails, or an answer is wrong.
pub fn measure<W: Workload>(stage: &Arc<Stage<W>>, plan: Plan) -> anyhow::Result<Report> {
    let possible = capacity(stage, plan.time.min(Duration::from_millis(300)))?;
    let interactive_rate = plan.rate.unwrap_or(possible / stage.max_batch as f64 / 10.0);
    let bar = bar(2 * plan.rounds as u64);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let (mut interactive, mut lateness) = (Latencies::default(), Latencies::default());
    let mut wrong = 0;
    for round in 0..plan.rounds {
        bar.set_message("bulk alone");
        let phase = run_phase(stage, plan.time, None)?;
        alone.push(phase.bulk_rate);
        wrong += phase.wrong;
        bar.inc(1);
        bar.set_message("bulk and interactive");
        let seed = plan.seed.wrapping_add(round as u64);
        let (rate, process) = (interactive_rate, Process::Poisson { seed });
        let arrivals = Arrivals { rate, time: plan.time, process };
        let phase = run_phase(stage, plan.time, Some(arrivals))?;
        beside.push(phase.bulk_rate);
        interactive.add(&phase.interactive);
        lateness.add(&phase.sent.lateness);
        wrong += phase.wrong;
        bar.inc(1);
    }
    bar.finish_and_clear();
    ensure!(wrong == 0, "{wrong} answers differ from those of the request alone");
    ensure!(interactive.count() > 0, "no interactive request arrived: raise --rate or --seconds");
    let service = stage.queue(Strategy::Queue).stats().service;
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let bound_us = 2.0 * us(service.p99);
    let p99 = interactive.quantile_us(0.99);
    let bulk_kept = median_ratio(&beside, &alone).unwrap_or(0.0);
    Ok(Report {
        engine: String::new(),
        device: String::new(),
        simulated: false,
        max_batch_size: stage.max_batch,
        rounds: plan.rounds,
        bulk_alone_per_second: median(alone).unwrap_or(0.0),
        bulk_beside_per_second: median(beside).unwrap_or(0.0),
        bulk_kept,
        interactive_per_second: interactive_rate,
        interactive_requests: interactive.count(),
        interactive_p50_us: interactive.quantile_us(0.5),
        interactive_p99_us: p99,
        sent_late_p99_us: lateness.quantile_us(0.99),
        service_mean_us: us(service.mean),
        service_p99_us: us(service.p99),
        interactive_p99_in_batches: p99 / us(service.mean).max(1e-3),
        bound_us,
        ok: p99 <= bound_us && bulk_kept >= KEPT,
    })
}

fn run_phase<W: Workload>(
    stage: &Arc<Stage<W>>,
    time: Duration,
    interactive: Option<Arrivals>,
) -> anyhow::Result<Phase> {
    let target = |priority| stage.queue_target(Strategy::Queue).priority(priority);
    let judge = || Judge::new(stage, Strategy::Queue);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| {
            let target = target(Priority::Bulk);
            saturate(&target, stage.depth(), judge(), || !over.load(Relaxed))
        });
        let started = Instant::now();
        let offered = interactive
            .map(|arrivals| open_to_queue(&target(Priority::Interactive), arrivals, judge()))
            .transpose();
        sleep_until(started + time);
        over.store(true, Relaxed);
        let bulk = bulk.join().map_err(|_| anyhow!("the bulk client panicked"))??;
        let bulk_rate = bulk.observer.seen.answered as f64 / bulk.took.as_secs_f64();
        let mut phase = Phase { bulk_rate, ..Phase::default() };
        phase.add("bulk", bulk.observer.seen)?;
        if let Some(offered) = offered? {
            let refused = offered.sent.refused;
            ensure!(refused == 0, "{refused} interactive requests were refused");
            phase.sent = offered.sent;
            phase.interactive = phase.add("interactive", offered.observer.seen)?;
        }
        Ok(phase)
    })
}

impl Phase {
    /// Counts the wrong answers of one kind of requests, and gives its latencies.
    fn add(&mut self, kind: &str, seen: Seen) -> anyhow::Result<Latencies> {
        let (failed, error) = (seen.failed, seen.error.unwrap_or_default());
        ensure!(failed == 0, "{failed} {kind} requests failed: {error}");
        self.wrong += seen.wrong;
        Ok(seen.latencies)
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let simulated = if self.simulated { " (SIMULATED)" } else { "" };
        let verdict = if self.ok { "holds" } else { "FAILED" };
        format!(
            "engine {}, device {}{simulated}, batches of at most {}, {} rounds\n\
             bulk alone        {:>12} requests/s\n\
             bulk beside       {:>12} requests/s, {:.1}% of it (at least {:.0}% is wanted)\n\
             interactive       {:>12} requests/s, {} in all\n\
             interactive p50   {:>12}\n\
             interactive p99   {:>12}, {:.2} mean batch times (at most {} is wanted: two batches, \
             each as slow as one in a hundred)\n\
             batch time        {:>12} on average, p99 {}\n\
             sent late, p99    {:>12}\n\
             {verdict}\n",
            self.engine,
            self.device,
            self.max_batch_size,
            self.rounds,
            rate(self.bulk_alone_per_second),
            rate(self.bulk_beside_per_second),
            100.0 * self.bulk_kept,
            100.0 * KEPT,
            rate(self.interactive_per_second),
            self.interactive_requests,
            duration(self.interactive_p50_us),
            duration(self.interactive_p99_us),
            self.interactive_p99_in_batches,
            duration(self.bound_us),
            duration(self.service_mean_us),
            duration(self.service_p99_us),
            duration(self.sent_late_p99_us),
        )
    }
}
