//! `onelane chaos --overload`: what happens at 0.5 to 4 times the capacity. Requests are offered at
//! a steady rate whatever becomes of them, to an engine whose batches take a fixed time.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use onelane::{
    BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, EngineError, ExecutorConfig,
    ResponseHandle, SubmitError,
};
use serde::Serialize;

use super::{Args, plot};

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

/// One offered load.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Point {
    /// Offered load in parts of the capacity, as it came out.
    pub(super) load: f64,
    pub(super) offered_per_second: f64,
    pub(super) goodput_per_second: f64,
    /// What the engine could have answered in this very run, by the time that its batches took: on a
    /// busy machine they take longer than they should.
    pub(super) possible_per_second: f64,
    pub(super) refused_per_second: f64,
    /// Latency of accepted requests, from the call of submit to the answer.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    /// What bounds that: the batches of a full queue and two more, each as slow as one in a hundred,
    /// and a quarter for what lies between batches.
    pub(super) bound_ms: f64,
    /// How long a refusal takes.
    pub(super) refusal_p99_us: f64,
    /// The most requests seen waiting.
    pub(super) waiting_max: usize,
    pub(super) rss_mib: f64,
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

/// What the sender hands to whoever waits.
type Sent = (Instant, ResponseHandle<Instant>);

fn queue() -> anyhow::Result<(DeviceExecutor, BatchQueue<Fixed>)> {
    let device = DeviceExecutor::new(ExecutorConfig::new("overload"))?;
    let config = BatchConfig::default().max_batch_size(BATCH).capacity(CAPACITY);
    let queue = BatchQueue::new(&device, config, || Ok(Fixed))?;
    Ok((device, queue))
}

/// Requests per second of a queue that is never empty.
fn measure_capacity(seconds: f64) -> anyhow::Result<f64> {
    let (_device, queue) = queue()?;
    let started = Instant::now();
    let mut handles = std::collections::VecDeque::new();
    let mut answered = 0_u64;
    while started.elapsed().as_secs_f64() < seconds {
        handles.push_back(queue.submit(Row)?);
        if handles.len() > CAPACITY {
            handles.pop_front().context("just pushed")?.wait()?;
            answered += 1;
        }
    }
    let rate = answered as f64 / started.elapsed().as_secs_f64();
    for handle in handles {
        handle.wait()?;
    }
    Ok(rate)
}

fn offer(rate: f64, capacity: f64, seconds: f64) -> anyhow::Result<Point> {
    let (_device, queue) = queue()?;
    let histogram = || Histogram::<u64>::new_with_max(60_000_000_000, 3);
    let (sender, receiver) = mpsc::channel::<Sent>();
    let mut latencies = histogram()?;
    // Requests are answered in order, so waiting for them in order sees each as it comes; when it
    // came is what the engine says, not when this thread got round to it.
    let collector = std::thread::spawn(move || {
        let mut last = None;
        for (sent, handle) in receiver {
            let Ok(at) = handle.wait() else { continue };
            latencies.saturating_record((at - sent).as_nanos() as u64);
            last = Some(at);
        }
        (latencies, last)
    });
    let mut refusals = histogram()?;
    let (mut offered, mut refused, mut waiting_max) = (0_u64, 0_u64, 0);
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < seconds {
        std::thread::sleep(Duration::from_micros(500));
        let due = (started.elapsed().as_secs_f64() * rate) as u64;
        while offered < due {
            let sent = Instant::now();
            offered += 1;
            match queue.try_submit(Row) {
                Ok(handle) => sender.send((sent, handle)).context("the collector has gone")?,
                Err(SubmitError::Full(_)) => {
                    refused += 1;
                    refusals.saturating_record(sent.elapsed().as_nanos() as u64);
                }
                Err(other) => anyhow::bail!("{other}"),
            }
        }
        waiting_max = waiting_max.max(queue.stats().waiting);
    }
    let offered_for = started.elapsed().as_secs_f64();
    drop(sender);
    let (latencies, last) = collector.join().map_err(|_| anyhow::anyhow!("the collector died"))?;
    let answered_for = last.map_or(offered_for, |last| (last - started).as_secs_f64());
    let ms = |value: u64| value as f64 / 1e6;
    let service = queue.stats().service;
    Ok(Point {
        load: offered as f64 / offered_for / capacity,
        offered_per_second: offered as f64 / offered_for,
        goodput_per_second: latencies.len() as f64 / answered_for.max(offered_for),
        possible_per_second: BATCH as f64 / service.mean.as_secs_f64().max(f64::MIN_POSITIVE),
        refused_per_second: refused as f64 / offered_for,
        p50_ms: ms(latencies.value_at_quantile(0.5)),
        p99_ms: ms(latencies.value_at_quantile(0.99)),
        bound_ms: 1.25 * (CAPACITY / BATCH + 2) as f64 * service.p99.as_secs_f64() * 1e3,
        refusal_p99_us: refusals.value_at_quantile(0.99) as f64 / 1e3,
        waiting_max,
        rss_mib: super::rss() as f64 / f64::from(1 << 20),
    })
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let loads = [0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0];
    let each = (args.seconds as f64 / (loads.len() + 1) as f64).max(0.5);
    let capacity = measure_capacity(each)?;
    let mut points = Vec::new();
    for load in loads {
        points.push(offer(load * capacity, capacity, each)?);
    }
    let part = |point: &Point| point.goodput_per_second / point.possible_per_second;
    // More was offered than could be done, by what the batches of that very run took.
    let overloaded = || points.iter().filter(|p| p.offered_per_second >= p.possible_per_second);
    anyhow::ensure!(overloaded().count() >= 3, "the load was never too much: run it for longer");
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
