//! `onelane-bench chaos --isolate`: an engine in child processes that crash, hang, stop, exit,
//! grow, lie and are killed from outside, beside clients that cancel, time out, shut down and start
//! anew.
//!
//! Each answer is checked against its request by value; each error against what that request does.
//! A request that does no harm has to be answered, whoever dies. What this process has (descriptors,
//! threads, children, memory, names in `/dev/shm` and the temporary directory) is compared before
//! and after. Exit 1 on any difference, loss, misroute, wrong error or hang.

mod census;
mod client;
mod doomed;
mod engine;
mod tally;
mod world;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use onelane::Shutdown;
use onelane_isolate::{IsolationStats, serve};
use rustix::process::{Pid, Signal};

use self::census::Census;
use self::client::Client;
use self::engine::Faulty;
use self::tally::Tally;
use self::world::{UNPOISONED, World};
use super::args::Args;
use super::watchdog::Watchdog;

/// How long a shutdown may take: several batches that hang.
const SHUTDOWN: Duration = Duration::from_secs(90);

/// Runs the engine if this process is a child, and the parent that is to be killed if it is one.
/// Then it does not return.
pub fn play_part() {
    serve::<Faulty>(Faulty::new);
    doomed::play_part();
}

/// Kills and stops children from outside, now and then.
fn strike(current: &RwLock<Arc<World>>, over: &AtomicBool, seed: u64) -> u64 {
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut strikes = 0;
    while !over.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(dice.u64(400..1500)));
        let world = Arc::clone(&current.read().expect(UNPOISONED));
        let children = world.supervisor.stats().children;
        let Some(&child) = dice.choice(&children) else { continue };
        let signal = match dice.u8(0..8) {
            0 => Signal::STOP,
            1 => Signal::SEGV,
            2 => Signal::ABORT,
            _ => Signal::KILL,
        };
        if let Some(pid) = i32::try_from(child).ok().and_then(Pid::from_raw) {
            strikes += u64::from(rustix::process::kill_process(pid, signal).is_ok());
        }
    }
    strikes
}

/// Runs it.
///
/// # Errors
/// When an executor cannot be made.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let tally = Arc::new(Tally::default());
    let mut dice = fastrand::Rng::with_seed(args.seed);
    // What stays for good (the clock's thread, the allocator's arenas) is there after one life.
    end_of_life(&World::new(0, &mut dice)?, &mut dice, &tally)?;
    let before = Census::take();
    let watchdog = Watchdog::start(Duration::from_secs(args.hang_after.max(60)));
    let started = Instant::now();
    let (over, numbers) = (AtomicBool::new(false), AtomicU64::new(0));
    let current = RwLock::new(Arc::new(World::new(1, &mut dice)?));
    let (mut lives, mut orphans, mut sum) = (1, 0, Sum::default());
    let strikes = std::thread::scope(|scope| -> anyhow::Result<u64> {
        for thread in 0..args.threads {
            let client = Client {
                dice: fastrand::Rng::with_seed(args.seed ^ (thread as u64 + 1) << 32),
                current: &current,
                tally: &tally,
                over: &over,
                numbers: &numbers,
                steps: watchdog.watch(format!("thread {thread}")),
            };
            scope.spawn(move || client.run());
        }
        let striker = scope.spawn(|| strike(&current, &over, args.seed));
        let mut lived = || -> anyhow::Result<()> {
            while started.elapsed() < Duration::from_secs(args.seconds) {
                std::thread::sleep(Duration::from_millis(dice.u64(500..3000)));
                if lives % 3 == 0 {
                    watchdog.controller("kills a parent");
                    orphans += 1;
                    if let Err(fault) = doomed::kill_one() {
                        tally.fault(fault);
                    }
                }
                lives += 1;
                let next = Arc::new(World::new(lives, &mut dice)?);
                let old = std::mem::replace(&mut *current.write().expect(UNPOISONED), next);
                watchdog.controller("shuts an executor down");
                sum.add(&end_of_life(&old, &mut dice, &tally)?);
            }
            Ok(())
        };
        let result = lived();
        over.store(true, Ordering::SeqCst);
        watchdog.controller("lets the clients finish");
        result?;
        Ok(striker.join().expect("it does not panic"))
    })?;
    let last = current.into_inner().expect(UNPOISONED);
    sum.add(&end_of_life(&last, &mut dice, &tally)?);
    drop(last);
    watchdog.stop();
    for fault in before.compare(&Census::settled(&before)) {
        tally.fault(fault);
    }
    println!(
        "{:.1} s, seed {}, {} threads: {lives} executors, {strikes} signals from outside, {orphans} \
         parents killed",
        started.elapsed().as_secs_f64(),
        args.seed,
        args.threads
    );
    println!("{sum}");
    Ok(if tally.report(&before) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends an executor in the middle of everything; nothing of it may be left.
fn end_of_life(
    old: &World,
    dice: &mut fastrand::Rng,
    tally: &Tally,
) -> anyhow::Result<IsolationStats> {
    old.ended.store(true, Ordering::SeqCst);
    let mode = if dice.bool() { Shutdown::Drain } else { Shutdown::Abort };
    if dice.bool() {
        old.queue.shutdown(mode, SHUTDOWN)?;
    }
    old.device.shutdown(mode, SHUTDOWN)?;
    let stats = old.supervisor.stats();
    if !stats.children.is_empty() {
        tally.fault(format!("children are left after a shutdown: {:?}", stats.children));
    }
    Ok(stats)
}

/// What the supervisors counted, all together.
#[derive(Default)]
struct Sum {
    starts: u64,
    crashes: u64,
    hangs: u64,
    engine_losses: u64,
    protocol_errors: u64,
    retries: u64,
    recycled_for_memory: u64,
    recycled_for_batches: u64,
    stuck: u64,
    max_footprint: u64,
}

impl Sum {
    fn add(&mut self, stats: &IsolationStats) {
        self.starts += stats.starts;
        self.crashes += stats.crashes;
        self.hangs += stats.hangs;
        self.engine_losses += stats.engine_losses;
        self.protocol_errors += stats.protocol_errors;
        self.retries += stats.retries;
        self.recycled_for_memory += stats.recycled_for_memory;
        self.recycled_for_batches += stats.recycled_for_batches;
        self.stuck += stats.stuck;
        self.max_footprint = self.max_footprint.max(stats.max_footprint);
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "children: {} started, {} crashed, {} hung, {} lost their engine, {} lied, {} replaced \
             for memory, {} for batches, {} stuck; {} retries; largest {:.1} MiB",
            self.starts,
            self.crashes,
            self.hangs,
            self.engine_losses,
            self.protocol_errors,
            self.recycled_for_memory,
            self.recycled_for_batches,
            self.stuck,
            self.retries,
            self.max_footprint as f64 / f64::from(1 << 20)
        )
    }
}
