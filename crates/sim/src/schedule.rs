//! [`Schedule`]: which simulated thread runs next. Pure: no thread, no lock, no clock.
//!
//! A choice is made at every yield point, and whenever the running thread blocks, leaves or ends.
//! Equal seeds and equal programs give equal choices.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::thread_id::ThreadId;
use crate::trace::ActionKind;

/// How the next thread is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schedule {
    /// Uniformly among the threads that can run, at every yield point.
    Random,
    /// Probabilistic concurrency testing (Burckhardt et al., 2010): random priorities, the highest
    /// runs, and at `depth - 1` random points the running thread's priority drops to the lowest. It
    /// makes the lopsided orders that [`Random`] hardly ever makes. A run here is many iterations long,
    /// so priorities and points are drawn anew every `length` choices.
    ///
    /// [`Random`]: Schedule::Random
    Pct {
        /// The number of ordering constraints to hit, at least 1.
        depth: u32,
        /// Choices after which everything is drawn anew: about the length of an iteration.
        length: u64,
    },
    /// The given turns in order; after the last one the lowest thread that can run.
    Script(Vec<Turn>),
}

impl Schedule {
    /// PCT of the given depth for iterations of about 1,000 choices.
    pub fn pct(depth: u32) -> Self {
        Schedule::Pct { depth, length: 1_000 }
    }
}

/// One turn of a scripted schedule: a thread runs until something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The name of the thread; the youngest, when several had it.
    pub thread: String,
    /// When its turn ends.
    pub until: Until,
}

/// When a [`Turn`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Until {
    /// After the thread was chosen this many times.
    Choices(u64),
    /// At the first yield point after the thread has done this many actions of this kind.
    Done(ActionKind, u64),
    /// When the thread ends, or blocks.
    Stopped,
}

impl Turn {
    /// `thread` runs until it has done `count` actions of a kind.
    pub fn done(thread: &str, kind: ActionKind, count: u64) -> Self {
        Self { thread: thread.to_owned(), until: Until::Done(kind, count) }
    }

    /// `thread` runs until it ends or blocks.
    pub fn stopped(thread: &str) -> Self {
        Self { thread: thread.to_owned(), until: Until::Stopped }
    }

    /// `thread` is chosen `count` times.
    pub fn choices(thread: &str, count: u64) -> Self {
        Self { thread: thread.to_owned(), until: Until::Choices(count) }
    }
}

/// What the chooser knows of the threads.
pub(crate) struct Candidates<'a> {
    /// The threads that can run, ascending; the running one among them when it yields.
    pub(crate) ready: &'a [ThreadId],
    /// The thread that ran up to now.
    pub(crate) current: Option<ThreadId>,
    /// Finds the youngest thread of a name: its id, and whether it has ended.
    pub(crate) named: &'a dyn Fn(&str) -> Option<(ThreadId, bool)>,
}

/// A schedule in use.
#[derive(Debug)]
pub(crate) enum Chooser {
    Random(ChaCha8Rng),
    Pct(Pct),
    Script(Script),
}

#[derive(Debug)]
pub(crate) struct Pct {
    rng: ChaCha8Rng,
    depth: u32,
    length: u64,
    priorities: BTreeMap<ThreadId, u64>,
    /// Ascending choices at which the running thread's priority drops.
    changes: Vec<u64>,
    used: usize,
    choices: u64,
}

#[derive(Debug)]
pub(crate) struct Script {
    turns: Vec<Turn>,
    at: usize,
    /// Progress within the current turn: choices, or actions of its kind.
    progress: u64,
}

impl Chooser {
    pub(crate) fn new(schedule: &Schedule, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        match schedule {
            Schedule::Random => Chooser::Random(rng),
            Schedule::Pct { depth, length } => {
                let mut pct = Pct {
                    rng,
                    depth: *depth,
                    length: (*length).max(1),
                    priorities: BTreeMap::new(),
                    changes: Vec::new(),
                    used: 0,
                    choices: 0,
                };
                pct.draw();
                Chooser::Pct(pct)
            }
            Schedule::Script(turns) => {
                Chooser::Script(Script { turns: turns.clone(), at: 0, progress: 0 })
            }
        }
    }

    /// Chooses among the candidates, of which there is at least one.
    pub(crate) fn choose(&mut self, candidates: &Candidates<'_>) -> Result<ThreadId, String> {
        match self {
            Chooser::Random(rng) => {
                let place = rng.next_u64() % candidates.ready.len() as u64;
                Ok(candidates.ready[place as usize])
            }
            Chooser::Pct(pct) => Ok(pct.choose(candidates)),
            Chooser::Script(script) => script.choose(candidates),
        }
    }

    /// The running thread did something.
    pub(crate) fn note(&mut self, kind: ActionKind) {
        if let Chooser::Script(script) = self {
            script.note(kind);
        }
    }
}

impl Pct {
    /// Draws the change points; priorities are drawn when a thread is first seen.
    fn draw(&mut self) {
        self.priorities.clear();
        (self.used, self.choices) = (0, 0);
        let points = (1..self.depth).map(|_| 1 + self.rng.next_u64() % self.length);
        self.changes = points.collect();
        self.changes.sort_unstable();
    }

    fn choose(&mut self, candidates: &Candidates<'_>) -> ThreadId {
        // Fresh priorities lie above all dropped ones.
        const FRESH: u64 = 1 << 32;
        if self.choices == self.length {
            self.draw();
        }
        for thread in candidates.ready {
            let rng = &mut self.rng;
            self.priorities.entry(*thread).or_insert_with(|| FRESH + rng.next_u64() % FRESH);
        }
        self.choices += 1;
        while self.changes.get(self.used).is_some_and(|c| *c <= self.choices) {
            // Each drop goes below the earlier ones.
            let lowest = (self.changes.len() - self.used) as u64;
            if let Some(current) = candidates.current {
                self.priorities.insert(current, lowest);
            }
            self.used += 1;
        }
        let priority = |thread: &ThreadId| self.priorities.get(thread).copied().unwrap_or(0);
        let mut best = candidates.ready[0];
        for thread in candidates.ready {
            if priority(thread) > priority(&best) {
                best = *thread;
            }
        }
        best
    }
}

impl Script {
    fn choose(&mut self, candidates: &Candidates<'_>) -> Result<ThreadId, String> {
        while let Some(turn) = self.turns.get(self.at) {
            let Some((thread, ended)) = (candidates.named)(&turn.thread) else {
                return Err(format!(
                    "turn {} names `{}`, and there is no such thread",
                    self.at, turn.thread
                ));
            };
            let runs = candidates.ready.contains(&thread);
            let over = match turn.until {
                Until::Choices(count) | Until::Done(_, count) => self.progress >= count,
                Until::Stopped => self.progress > 0 && !runs,
            };
            if over || ended {
                self.at += 1;
                self.progress = 0;
                continue;
            }
            if !runs {
                return Err(format!("turn {} is `{}`'s, which cannot run", self.at, turn.thread));
            }
            match turn.until {
                Until::Choices(_) => self.progress += 1,
                Until::Stopped => self.progress = 1,
                Until::Done(..) => {}
            }
            return Ok(thread);
        }
        Ok(candidates.ready[0])
    }

    fn note(&mut self, kind: ActionKind) {
        if let Some(Turn { until: Until::Done(wanted, _), .. }) = self.turns.get(self.at)
            && *wanted == kind
        {
            self.progress += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREADS: [ThreadId; 3] = [ThreadId(0), ThreadId(1), ThreadId(2)];

    fn choices(schedule: &Schedule, seed: u64, count: usize) -> Vec<ThreadId> {
        let mut chooser = Chooser::new(schedule, seed);
        let mut current = None;
        let mut chosen = Vec::new();
        for _ in 0..count {
            let next = chooser.choose(&Candidates { ready: &THREADS, current, named: &|_| None });
            current = Some(next.unwrap());
            chosen.extend(current);
        }
        chosen
    }

    fn changes(chosen: &[ThreadId]) -> usize {
        chosen.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }

    #[test]
    fn equal_seeds_choose_alike_and_others_do_not() {
        for schedule in [Schedule::Random, Schedule::pct(5)] {
            let length = 3_000;
            let chosen = choices(&schedule, 7, length);
            assert_eq!(chosen, choices(&schedule, 7, length));
            assert_ne!(chosen, choices(&schedule, 8, length));
        }
    }

    #[test]
    fn random_gives_every_thread_about_its_share() {
        let chosen = choices(&Schedule::Random, 1, 3_000);
        for thread in THREADS {
            let share = chosen.iter().filter(|t| **t == thread).count();
            assert!((900..1100).contains(&share), "{share} of 3000");
        }
    }

    #[test]
    fn pct_changes_thread_only_at_its_points() {
        let schedule = Schedule::Pct { depth: 3, length: 1_000 };
        let most = (0..20).map(|seed| changes(&choices(&schedule, seed, 1_000)));
        let most: Vec<usize> = most.collect();
        assert!(most.iter().all(|changes| *changes <= 2), "{most:?}");
        assert!(most.contains(&2), "{most:?}");
        // Drawn anew for the next thousand.
        assert!(changes(&choices(&schedule, 1, 10_000)) > 2);
    }

    #[test]
    fn a_script_says_when_it_does_not_fit() {
        let mut chooser = Chooser::new(&Schedule::Script(vec![Turn::stopped("T9")]), 0);
        let candidates = Candidates { ready: &THREADS, current: None, named: &|_| None };
        let problem = chooser.choose(&candidates).unwrap_err();
        assert!(problem.contains("`T9`") && problem.contains("no such thread"));
    }
}
