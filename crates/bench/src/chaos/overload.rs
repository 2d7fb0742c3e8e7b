//! `onelane-bench chaos --overload`: what happens at 0.5 to 4 times the capacity. Requests are
//! offered at a steady rate whatever becomes of them, to an engine whose batches take a fixed time.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use onelane::{
    BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig,
};
use onelane_bench::generator::{
    Arrivals, Asked, Latencies, Observer, Process, QueueTarget, open_to_queue, saturate,
};
use serde::Serialize;

use super::args::Args;
use super::plot;
use super::point::Point;
use super::resident::resident_bytes;

/// The time that a batch takes, whatever is in it.
const SERVICE: Duration = Duration::from_millis(2);
const BATCH: usize = 16;
const CAPACITY: usize = 256;

struct Row;

impl BatchItem for Row {
    type Key = ();
    fn key(&self) {}
}

struct Fixed;

impl Engine for Fixed {
    type Item = Row;
    type Output = Instant;
    fn infer(&mut self, batch: &[Row]) -> Result<Vec<Instant>, EngineError> {
        std::thread::sleep(SERVICE);
        Ok(vec![Instant::now(); batch.len()])
    }
}

#[derive(Debug, Serialize)]
struct Report {
    capacity_per_second: f64,
    queue_capacity: usize,
    points: Vec<Point>,
    /// The worst goodput under overload over the best, each as a part of what was possible.
    goodput_kept: f64,
    ok: bool,
}

/// Latencies of accepted requests from the call of submit to when the engine had the answer, not to
/// when this program got round to it.
#[derive(Default)]
struct Answers {
    latencies: Latencies,
    in_time: u64,
    failed: u64,
    last: Option<Instant>,
}

impl Observer for Answers {
    type Reply = Result<Instant, String>;

    fn first(&mut self, _: &Asked, reply: Self::Reply) -> Result<(), String> {
        reply.map(drop)
    }

    fn note(&mut self, asked: &Asked, reply: Self::Reply, in_time: bool) {
        let Ok(at) = reply else {
            self.failed += 1;
            return;
        };
        self.latencies.record(asked.sent, at);
        self.in_time += u64::from(in_time);
        self.last = self.last.max(Some(at));
    }

    fn merge(&mut self, other: Self) {
        self.latencies.add(&other.latencies);
        self.in_time += other.in_time;
        self.failed += other.failed;
        self.last = self.last.max(other.last);
    }
}

fn queue() -> anyhow::Result<(BatchQueue<Fixed>, QueueTarget<Fixed>)> {
    let device = DeviceExecutor::new(ExecutorConfig::new("overload"))?;
    let config = BatchConfig::default().max_batch_size(BATCH).capacity(CAPACITY);
    let queue = BatchQueue::new(&device, config, || Ok(Fixed))?;
    let target = QueueTarget::new(&queue, |_| Row);
    Ok((queue, target))
}

/// Requests per second of a queue that is never empty.
fn measure_capacity(time: Duration) -> anyhow::Result<f64> {
    let (_queue, target) = queue()?;
    let started = Instant::now();
    let ran = saturate(&target, CAPACITY, Answers::default(), || started.elapsed() < time)?;
    ensure!(ran.observer.failed == 0, "{} requests failed", ran.observer.failed);
    Ok(ran.observer.in_time as f64 / ran.took.as_secs_f64())
}

fn offer(rate: f64, capacity: f64, time: Duration) -> anyhow::Result<Point> {
    let (queue, target) = queue()?;
    let (over, waiting_max) = (AtomicBool::new(false), AtomicUsize::new(0));
    let arrivals = Arrivals { rate, time, process: Process::Steady };
    let started = Instant::now();
    let offered = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Relaxed) {
                waiting_max.fetch_max(queue.stats().waiting, Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let offered = open_to_queue(&target, arrivals, Answers::default());
        over.store(true, Relaxed);
        offered
    })?;
    let (answers, sent) = (offered.observer, offered.sent);
    ensure!(answers.failed == 0, "{} requests failed", answers.failed);
    let sent_for = offered.sent_for.as_secs_f64();
    let answered_for = answers.last.map_or(sent_for, |last| (last - started).as_secs_f64());
    let service = queue.stats().service;
    Ok(Point {
        load: sent.offered as f64 / sent_for / capacity,
        offered_per_second: sent.offered as f64 / sent_for,
        goodput_per_second: answers.latencies.count() as f64 / answered_for.max(sent_for),
        possible_per_second: BATCH as f64 / service.mean.as_secs_f64().max(f64::MIN_POSITIVE),
        refused_per_second: sent.refused as f64 / sent_for,
        p50_ms: answers.latencies.quantile_us(0.5) / 1e3,
        p99_ms: answers.latencies.quantile_us(0.99) / 1e3,
        bound_ms: 1.25 * (CAPACITY / BATCH + 2) as f64 * service.p99.as_secs_f64() * 1e3,
        refusal_p99_us: sent.refusals.quantile_us(0.99),
        waiting_max: waiting_max.into_inner(),
        rss_mib: resident_bytes() as f64 / f64::from(1 << 20),
    })
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let loads = [0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0];
    let each = (args.seconds as f64 / (loads.len() + 1) as f64).max(0.5);
    let each = Duration::from_secs_f64(each);
    let capacity = measure_capacity(each)?;
    let mut points = Vec::new();
    for load in loads {
        points.push(offer(load * capacity, capacity, each)?);
    }
    let part = |point: &Point| point.goodput_per_second / point.possible_per_second;
    // More was offered than could be done, by what the batches of that very run took.
    let overloaded = || points.iter().filter(|p| p.offered_per_second >= p.possible_per_second);
    ensure!(overloaded().count() >= 3, "the load was never too much: run it for longer");
    let best = overloaded().map(part).fold(0.0, f64::max);
    let kept = overloaded().map(part).fold(f64::INFINITY, f64::min) / best;
    let latency_holds = points.iter().all(|point| point.p99_ms <= point.bound_ms);
    let is_bounded = points.iter().all(|point| point.waiting_max <= CAPACITY);
    let ok = latency_holds && is_bounded && kept >= 0.95;
    let report = Report {
        capacity_per_second: capacity,
        queue_capacity: CAPACITY,
        goodput_kept: kept,
        ok,
        points,
    };
    if let Some(path) = &args.csv {
        std::fs::write(path, csv(&report.points)).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = &args.svg {
        plot::draw(path, &report.points, capacity)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn csv(points: &[Point]) -> String {
    let mut text = String::from(
        "load,offered_per_second,goodput_per_second,possible_per_second,refused_per_second,p50_ms,p99_ms,bound_ms,\
         refusal_p99_us,waiting_max,rss_mib\n",
    );
    for p in points {
        let _ = writeln!(
            text,
            "{:.3},{:.0},{:.0},{:.0},{:.0},{:.2},{:.2},{:.2},{:.2},{},{:.1}",
            p.load,
            p.offered_per_second,
            p.goodput_per_second,
            p.possible_per_second,
            p.refused_per_second,
            p.p50_ms,
            p.p99_ms,
            p.bound_ms,
            p.refusal_p99_us,
            p.waiting_max,
            p.rss_mib
        );
    }
    text
}

fn print(report: &Report) {
    println!(
        "capacity {:.0} requests/s; {} may wait",
        report.capacity_per_second, report.queue_capacity
    );
    print!("{}", csv(&report.points).replace(',', "\t"));
    println!("goodput under overload: at worst {:.1}% of the best", 100.0 * report.goodput_kept);
    println!("{}", if report.ok { "goodput, memory and latency hold" } else { "FAILED" });
}
