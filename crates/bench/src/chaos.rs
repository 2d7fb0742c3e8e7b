//! `onelane-bench chaos`: real threads and async tasks do everything at once that a program may do,
//! while engines fail, panic, run out of memory and are slow, and executors are shut down and made
//! anew.
//!
//! Every answer is checked against its request by value, every count against the others. Exit 1 on
//! any loss, duplicate, misroute, wrong error or hang. A seed gives each client the same choices;
//! the interleaving is the machine's.

mod args;
mod client;
#[cfg(target_os = "linux")]
pub mod isolated;
mod overload;
mod plot;
mod point;
mod resident;
mod tally;
mod watchdog;
mod world;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use onelane::Shutdown;
use serde::Serialize;

pub use args::Args;
use client::Cast;
use resident::resident_bytes;
use tally::{Counts, Tally};
use watchdog::Watchdog;
use world::World;

/// What a run came to.
#[derive(Debug, Serialize)]
struct Report {
    seconds: f64,
    seed: u64,
    threads: usize,
    tasks: usize,
    workers: usize,
    /// Executors that were made, used and shut down.
    lives: u64,
    /// Of these, ended when every client had left, and every count compared with the executor's.
    lives_balanced: u64,
    requests_per_second: f64,
    #[serde(flatten)]
    counts: Counts,
    /// Resident memory after the first life and at the end.
    rss_begin_bytes: usize,
    rss_end_bytes: usize,
    ok: bool,
}

/// Runs it.
///
/// # Errors
/// When an executor cannot be made, or a file not be written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.overload {
        return overload::run(&args);
    }
    if args.isolate {
        #[cfg(target_os = "linux")]
        return isolated::run(&args);
        #[cfg(not(target_os = "linux"))]
        anyhow::bail!("--isolate reads /proc: it is for Linux");
    }
    anyhow::ensure!(args.threads + args.tasks > 0, "--threads and --tasks are both 0: nobody asks");
    world::silence_expected_panics();
    let tally = Arc::new(Tally::default());
    let watchdog = Watchdog::start(Duration::from_secs(args.hang_after.max(1)));
    let first = World::new(&args, 0, &tally)?;
    let current = Arc::new(RwLock::new(Arc::new(first)));
    let cast = Cast::start(&args, &current, &tally, &watchdog)?;

    let started = Instant::now();
    let mut dice = fastrand::Rng::with_seed(args.seed);
    let (mut lives, mut lives_balanced, mut rss_begin_bytes) = (0, 0, 0);
    while started.elapsed() < Duration::from_secs(args.seconds) {
        std::thread::sleep(Duration::from_millis(dice.u64(50..400)));
        let next = Arc::new(World::new(&args, lives + 1, &tally)?);
        let old = std::mem::replace(&mut *current.write().expect(world::UNPOISONED), next);
        watchdog.controller(if old.quiet { "waits for clients to leave" } else { "interrupts" });
        end_of_life(&old, &mut dice, &tally, &watchdog)?;
        lives_balanced += u64::from(old.quiet);
        lives += 1;
        if lives == 3 {
            rss_begin_bytes = resident_bytes();
        }
    }
    watchdog.controller("lets the clients finish");
    if let Err(error) = cast.stop() {
        eprintln!("FAILED: {error}");
        return Ok(ExitCode::FAILURE);
    }
    let last = Arc::clone(&current.read().expect(world::UNPOISONED));
    lives_balanced += u64::from(last.quiet);
    if last.quiet {
        last.leave_quietly(&tally);
    }
    last.device.shutdown(Shutdown::Drain, Duration::from_secs(args.hang_after))?;
    watchdog.stop();

    let seconds = started.elapsed().as_secs_f64();
    let counts = tally.counts();
    let report = Report {
        seconds,
        seed: args.seed,
        threads: args.threads,
        tasks: args.tasks,
        workers: args.workers,
        lives: lives + 1,
        lives_balanced,
        requests_per_second: counts.offered as f64 / seconds,
        rss_begin_bytes,
        rss_end_bytes: resident_bytes(),
        ok: counts.is_sound(),
        counts,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends an executor: when everybody has left, so that all counts can be compared, or in the middle
/// of everything.
fn end_of_life(
    old: &World,
    dice: &mut fastrand::Rng,
    tally: &Tally,
    watchdog: &Watchdog,
) -> anyhow::Result<()> {
    old.ended.store(true, Ordering::SeqCst);
    if old.quiet {
        old.leave_quietly(tally);
    }
    let mode = if dice.bool() { Shutdown::Drain } else { Shutdown::Abort };
    if dice.u8(0..4) == 0 {
        // Queue by queue, before the executor.
        for queue in &old.queues {
            watchdog.controller(&format!("shuts down queue {}: {mode:?}", queue.config().name));
            queue.shutdown(mode, Duration::from_secs(60))?;
        }
    }
    watchdog.controller(&format!("shuts down the executor: {mode:?}"));
    old.device.shutdown(mode, Duration::from_secs(60))?;
    Ok(())
}

fn print(report: &Report) {
    let counts = &report.counts;
    println!(
        "{:.1} s, seed {}, {} threads, {} tasks, {} worker(s): {} executors, {} of them balanced",
        report.seconds,
        report.seed,
        report.threads,
        report.tasks,
        report.workers,
        report.lives,
        report.lives_balanced
    );
    println!("{:.0} requests/s", report.requests_per_second);
    for (name, value) in counts.rows() {
        println!("{name:>16} {value:>12}");
    }
    let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!(
        "resident memory: {:.1} MiB after the third executor, {:.1} MiB at the end",
        mebibytes(report.rss_begin_bytes),
        mebibytes(report.rss_end_bytes)
    );
    for fault in &counts.faults {
        println!("FAULT: {fault}");
    }
    println!("{}", if report.ok { "all accounted for" } else { "FAILED" });
}
