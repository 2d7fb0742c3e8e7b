//! [`Hazard`]: the hazards besides wrong numbers, each with its cures, as a list of [`Finding`]s that a
//! person can read and a program can check.

use std::fmt;

use super::affinity::{Use, affinity};
use super::crash::{Crash, CrashTrial};
use super::growth::{Buckets, Growth, growth};
use super::in_flight::in_flight;
use crate::error::SimError;
use crate::profile::Profile;

/// A hazard besides wrong numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Hazard {
    /// H2: operations that touch a stream's encoder off its queue.
    OffQueue,
    /// H3: shader and graph caches without a lock.
    UnlockedCaches,
    /// H13: the graph cache grows with each shape.
    GraphCacheGrowth,
    /// H14: command buffers in flight.
    BuffersInFlight,
    /// H15: streams that belong to a thread.
    ThreadAffinity,
}

/// One way to the device, and what came of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The hazard.
    pub hazard: Hazard,
    /// Its number in `docs/simulated-device.md`, for example `H2`.
    pub number: &'static str,
    /// The profile whose rules held.
    pub profile: String,
    /// What the threads did.
    pub what: String,
    /// How they got to the device, or what was changed.
    pub way: String,
    /// Whether this way is meant to be a cure.
    pub cure: bool,
    /// What came of it.
    pub outcome: String,
    /// Whether that is what the rules give.
    pub as_expected: bool,
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hazard::OffQueue => "operations off the stream's queue",
            Hazard::UnlockedCaches => "unlocked caches",
            Hazard::GraphCacheGrowth => "graph cache growth",
            Hazard::BuffersInFlight => "command buffers in flight",
            Hazard::ThreadAffinity => "thread-affine streams",
        })
    }
}

/// Seeds of the crash scenarios, which are quick: some of them crash with a few seeds only.
const CRASH_SEEDS: u64 = 20;
/// Different input lengths of the growth scenario, as in the report.
const LENGTHS: usize = 315;

impl Hazard {
    /// All of them, in the order of their numbers.
    pub const ALL: [Hazard; 5] = [
        Hazard::OffQueue,
        Hazard::UnlockedCaches,
        Hazard::GraphCacheGrowth,
        Hazard::BuffersInFlight,
        Hazard::ThreadAffinity,
    ];

    /// Its number in `docs/simulated-device.md`.
    pub fn number(self) -> &'static str {
        match self {
            Hazard::OffQueue => "H2",
            Hazard::UnlockedCaches => "H3",
            Hazard::GraphCacheGrowth => "H13",
            Hazard::BuffersInFlight => "H14",
            Hazard::ThreadAffinity => "H15",
        }
    }

    /// Runs the hazard and its cures, with seeds 0 to `seeds - 1` where a schedule matters, and at least
    /// 20 of them for crashes.
    pub fn findings(self, seeds: u64) -> Vec<Finding> {
        match self {
            Hazard::OffQueue => {
                let mut found = self.crashes((Crash::Arange, 2), seeds);
                found.extend(self.crashes((Crash::Synchronise, 2), seeds));
                found
            }
            // With more threads, more of them meet in a cache.
            Hazard::UnlockedCaches => self.crashes((Crash::FirstUse, 4), seeds),
            Hazard::GraphCacheGrowth => self.growths(),
            Hazard::BuffersInFlight => self.in_flights(seeds),
            Hazard::ThreadAffinity => self.affinities(seeds),
        }
    }

    fn finding(self, profile: &Profile, what: impl Into<String>) -> Finding {
        Finding {
            hazard: self,
            number: self.number(),
            profile: profile.name.to_string(),
            what: what.into(),
            way: String::new(),
            cure: false,
            outcome: String::new(),
            as_expected: false,
        }
    }

    /// Threads on 2.14, the same through one worker, and the same on 2.15.
    fn crashes(self, (crash, threads): (Crash, usize), seeds: u64) -> Vec<Finding> {
        let what = format!("{threads} threads by 30 rounds: {crash}");
        let seeds = seeds.max(CRASH_SEEDS);
        let ways = [
            (Profile::upstream_2_14(), false),
            (Profile::upstream_2_14(), true),
            (Profile::upstream_2_15(), false),
        ];
        let finding = |(profile, worker): (Profile, bool)| {
            let mut trial = CrashTrial::new(profile.clone()).threads(threads);
            trial.worker = worker;
            let ended = (0..seeds).map(|seed| trial.clone().seed(seed).run(crash));
            let runs = Runs::of(ended.map(|run| match run {
                Ok(rounds) if rounds.wrong > 0 => Err(format!("{} wrong", rounds.wrong)),
                Ok(_) => Ok(()),
                Err(error) => Err(words(&error)),
            }));
            let cure = worker || profile.off_queue.is_empty();
            Finding {
                way: match (worker, cure) {
                    (true, _) => "through one worker".to_owned(),
                    (false, true) => "threads directly, on PyTorch 2.15".to_owned(),
                    (false, false) => "threads directly".to_owned(),
                },
                cure,
                outcome: runs.to_string(),
                as_expected: (runs.failed == 0) == cure,
                ..self.finding(&profile, what.clone())
            }
        };
        ways.map(finding).into()
    }

    fn growths(self) -> Vec<Finding> {
        let profile = Profile::upstream_2_15();
        let what = format!("an encoder layer on inputs of {LENGTHS} lengths");
        let run = |buckets| growth(profile.clone(), LENGTHS, buckets);
        let unbounded = run(Buckets::None);
        let finding = |(way, buckets): (&str, Buckets)| {
            let cure = buckets != Buckets::None;
            let grown = if cure { run(buckets) } else { unbounded.clone() };
            // A cure has to make it an order of magnitude less.
            let as_expected = match (&grown, &unbounded) {
                (Ok(grown), Ok(unbounded)) if cure => grown.bytes * 10 <= unbounded.bytes,
                (Ok(grown), Ok(_)) => grown.shapes == LENGTHS && grown.bytes_after_empty_cache == 0,
                _ => false,
            };
            Finding {
                way: way.to_owned(),
                cure,
                outcome: grown.map_or_else(|error| error.to_string(), |grown| grown.to_string()),
                as_expected,
                ..self.finding(&profile, what.clone())
            }
        };
        [
            ("every length as it comes", Buckets::None),
            ("lengths padded to multiples of 64", Buckets::Multiple(64)),
            ("lengths padded to powers of two", Buckets::PowerOfTwo),
        ]
        .map(finding)
        .into()
    }

    fn in_flights(self, seeds: u64) -> Vec<Finding> {
        let profile = Profile::candle_metal();
        let finding = |(threads, worker): (usize, bool)| {
            let ended = (0..seeds).map(|seed| in_flight(profile.clone(), (threads, worker), seed));
            let runs = Runs::of(ended.map(|run| match run {
                Ok(done) if done < threads => Err(format!("{done} of {threads} threads")),
                Ok(_) => Ok(()),
                Err(error) => Err(words(&error)),
            }));
            // The main thread has an open buffer, too.
            let too_many = !worker && threads >= profile.command_buffers;
            Finding {
                way: match worker {
                    true => format!("{threads} threads through one worker"),
                    false => format!("{threads} threads directly"),
                },
                cure: worker,
                outcome: runs.to_string(),
                as_expected: (runs.failed == seeds) == too_many && (too_many || runs.failed == 0),
                ..self.finding(&profile, "one operation per thread, a command buffer each")
            }
        };
        [(63, false), (64, false), (200, true)].map(finding).into()
    }

    fn affinities(self, seeds: u64) -> Vec<Finding> {
        let profile = Profile::mlx();
        let finding = |(way, how): (&str, Use)| {
            let ended = (0..seeds).map(|seed| affinity(profile.clone(), how, seed));
            let runs = Runs::of(ended.map(|run| run.map_err(|error| words(&error))));
            let cure = how == Use::Worker;
            Finding {
                way: way.to_owned(),
                cure,
                outcome: runs.to_string(),
                as_expected: if cure { runs.failed == 0 } else { runs.failed == seeds },
                ..self.finding(&profile, "an MLP")
            }
        };
        [
            ("built by the main thread, run by another", Use::OtherThread),
            ("the same, under one lock", Use::UnderLock),
            ("built and run by one worker", Use::Worker),
        ]
        .map(finding)
        .into()
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes as f64 / 1e9;
        write!(f, "{} shapes, {} graphs, {bytes:.2} GB", self.shapes, self.graphs)?;
        if self.padding > 0.0 {
            write!(f, ", {:.0}% of the tokens are padding", self.padding * 100.0)?;
        }
        Ok(())
    }
}

/// How the runs of several seeds ended.
struct Runs {
    all: u64,
    failed: u64,
    /// The first failure.
    first: Option<String>,
}

impl Runs {
    fn of(ended: impl Iterator<Item = Result<(), String>>) -> Self {
        let mut runs = Self { all: 0, failed: 0, first: None };
        for run in ended {
            runs.all += 1;
            if let Err(words) = run {
                runs.failed += 1;
                runs.first.get_or_insert(words);
            }
        }
        runs
    }
}

impl fmt::Display for Runs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.first {
            None => write!(f, "passes with {} of {} seeds", self.all, self.all),
            Some(words) => write!(f, "{} of {} seeds fail: {words}", self.failed, self.all),
        }
    }
}

/// The failure without the thread and step that it came up in.
fn words(error: &SimError) -> String {
    match error {
        SimError::Aborted(abort) => abort.fault.text().to_owned(),
        SimError::Hang(hang) => {
            let threads = hang.waiting.len();
            let first = hang.waiting.iter().find(|waiting| waiting.waits_for.contains("open"));
            match first {
                Some(waiting) => format!(
                    "deadlock of {threads} threads, `{}` waits for {}",
                    waiting.thread, waiting.waits_for
                ),
                None => format!("deadlock of {threads} threads"),
            }
        }
        other => other.to_string(),
    }
}
