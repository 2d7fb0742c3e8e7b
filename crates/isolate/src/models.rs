//! Models of the supervisor and of the engine's life with its children: the code that ships
//! ([`Shared`], [`Serving`], the ledger of [`Children`]) over children that are told when to die.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p onelane-isolate --release --lib models`, or `make loom`.
//! Locks, threads and the spare's condition variable are loom's: each interleaving of the worker,
//! of the threads that start and end children, and of a shutdown is run, up to the bound on
//! preemptions. What one thread does alone, a batch with its losses and retries, is enumerated:
//! every sequence of fates of the first children.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use onelane::EngineError;

use crate::child::{Answer, Child, Interruption, RunError};
use crate::children::{Children, RecycleCause};
use crate::config::IsolationConfig;
use crate::error::{Activity, ChildLost, RemoteError, StderrTail};
use crate::process::Ended;
use crate::serving::Serving;
use crate::supervisor::{FactoryGuard, Shared};
use crate::sync::AtomicBool;

/// What becomes of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It answers.
    Lives,
    /// It dies while it starts.
    DiesStarting,
    /// Its engine cannot be built.
    NotBuilt,
    /// It dies when it is ready, before it is sent a batch.
    DiesIdle,
    /// It dies in its first batch.
    DiesInBatch,
    HangsInBatch,
    SendsGarbage,
    LosesItsEngine,
    /// The kernel kills it in its first batch, for want of memory.
    Starves,
    /// It answers once and dies in its second batch.
    DiesInSecondBatch,
    /// It is over a limit after its first batch.
    Outgrows,
}

const FATES: [Fate; 11] = [
    Fate::Lives,
    Fate::DiesStarting,
    Fate::NotBuilt,
    Fate::DiesIdle,
    Fate::DiesInBatch,
    Fate::HangsInBatch,
    Fate::SendsGarbage,
    Fate::LosesItsEngine,
    Fate::Starves,
    Fate::DiesInSecondBatch,
    Fate::Outgrows,
];

/// What the children of one run share. All threads of a model are one of the system's.
#[derive(Default)]
struct World {
    fates: Vec<Fate>,
    idempotent: bool,
    started: usize,
    /// Processes that have not been reaped.
    living: BTreeSet<usize>,
    /// Of these, the ones that are not to be asked any more.
    dead: BTreeSet<usize>,
    /// Which child has seen which batch.
    seen: Vec<(u64, usize)>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

fn begin(fates: &[Fate], idempotent: bool) {
    let fresh = World { fates: fates.to_vec(), idempotent, ..World::default() };
    WORLD.set(fresh);
}

fn world<R>(look: impl FnOnce(&mut World) -> R) -> R {
    WORLD.with_borrow_mut(look)
}

/// A child without a process.
struct Fake {
    number: usize,
    fate: Fate,
    batches: u64,
    idempotent: bool,
    children: Arc<Children>,
}

impl Fake {
    fn end(&self) {
        world(|world| {
            assert!(world.living.remove(&self.number), "{} ends twice", self.number);
        });
        self.children.gone(self.number as u32, Ended::Gone(None));
    }

    /// Runs batch `batch`, which is answered with its own number.
    fn run(&mut self, batch: u64) -> Result<Answer<u64>, RunError> {
        self.idle()?;
        self.batches += 1;
        let (number, batches) = (self.number, self.batches);
        world(|world| {
            assert!(world.living.contains(&number), "{number} has ended and is asked");
            assert!(!world.dead.contains(&number), "{number} is lost and is asked");
            world.seen.push((batch, number));
        });
        let interruption = match self.fate {
            Fate::DiesInBatch | Fate::Starves => Interruption::Ended,
            Fate::DiesInSecondBatch if batches == 2 => Interruption::Ended,
            Fate::HangsInBatch => Interruption::TimedOut(Duration::from_secs(1)),
            Fate::SendsGarbage => Interruption::Garbage("noise".to_owned()),
            Fate::LosesItsEngine => Interruption::EngineLost(RemoteError::new("lost", Vec::new())),
            _ => return Ok(Answer::Outputs { outputs: batch, cost: 1 }),
        };
        world(|world| world.dead.insert(number));
        Err(interruption.into())
    }
}

impl Child for Fake {
    fn start(children: &Arc<Children>, cancel: &AtomicBool) -> Result<Self, ChildLost> {
        let (number, fate, idempotent) = world(|world| {
            let number = world.started;
            world.started += 1;
            world.living.insert(number);
            (number, world.fates.get(number).copied().unwrap_or(Fate::Lives), world.idempotent)
        });
        children.spawned(number as u32);
        let children = Arc::clone(children);
        let fake = Self { number, fate, batches: 0, idempotent, children };
        if cancel.load(Ordering::Relaxed) {
            return Err(fake.lose(Interruption::Cancelled).0);
        }
        match fate {
            Fate::DiesStarting => Err(fake.lose(Interruption::Ended).0),
            Fate::NotBuilt => {
                let error = RemoteError::new("no such model", Vec::new());
                Err(fake.lose(Interruption::NotBuilt(error)).0)
            }
            _ => Ok(fake),
        }
    }

    fn idle(&self) -> Result<(), Interruption> {
        let dies = self.fate == Fate::DiesIdle;
        if dies { Err(Interruption::EndedBefore) } else { Ok(()) }
    }

    fn lose(self, interruption: Interruption) -> (ChildLost, bool) {
        self.end();
        let (activity, stderr) = (Activity::Idle, StderrTail::default());
        let lost = match interruption {
            Interruption::Ended | Interruption::EndedBefore => {
                ChildLost::Crashed { status: None, activity, stderr }
            }
            Interruption::TimedOut(after) => ChildLost::Hung { after, activity, stderr },
            Interruption::Garbage(what) => ChildLost::Protocol { what, activity, stderr },
            Interruption::EngineLost(error) => ChildLost::EngineLost { error, activity, stderr },
            Interruption::NotBuilt(error) => ChildLost::NotBuilt { error, stderr },
            Interruption::Cancelled => ChildLost::Cancelled,
        };
        let starved = self.fate == Fate::Starves;
        std::mem::forget(self);
        (lost, starved)
    }

    fn retire(self) {
        self.end();
        std::mem::forget(self);
    }

    fn idempotent(&self) -> bool {
        self.idempotent
    }

    fn memory(&self) -> u64 {
        0
    }

    fn recycle_cause(&self) -> Option<RecycleCause> {
        (self.fate == Fate::Outgrows && self.batches > 0).then_some(RecycleCause::Memory)
    }
}

/// As the process of a real one, which is killed.
impl Drop for Fake {
    fn drop(&mut self) {
        self.end();
    }
}

fn shared(config: IsolationConfig) -> Arc<Shared<Fake>> {
    Arc::new(Shared::new(Arc::new(Children::new(Box::new(|| Command::new("none")), config))))
}

fn config(spare: bool) -> IsolationConfig {
    IsolationConfig::default().spare(spare)
}

fn ask(serving: &mut Serving<Fake>, batch: u64, size: usize) -> Result<u64, EngineError> {
    let (answer, _) = serving.run(size, |fake| fake.run(batch))?;
    assert_eq!(answer, batch, "an answer of another batch");
    Ok(answer)
}

/// No process is left, and the ledger says so.
fn nothing_is_left(shared: &Shared<Fake>) {
    world(|world| assert_eq!(world.living, BTreeSet::new(), "children that are left"));
    assert!(shared.children.stats().children.is_empty());
}

/// Runs `body` in every interleaving with at most `preemptions` switches away from a thread that
/// could go on.
fn model(name: &str, preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    let more = std::env::var("LOOM_MORE").ok().and_then(|more| more.parse::<usize>().ok());
    let bound = preemptions + more.unwrap_or(0);
    builder.preemption_bound = Some(bound);
    builder.max_branches = 20_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    builder.check(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        body();
    });
    println!("{name}: {} interleavings, preemption bound {bound}", runs.load(Ordering::SeqCst));
}

/// Death in each step of a batch, and of the start after it: every sequence of fates of the first
/// three children, alone or with company, idempotent or not.
#[test]
fn death_in_each_step() {
    let mut sequences = 0;
    for at in 0..FATES.len().pow(3) {
        let fates = [at % 11, at / 11 % 11, at / 121].map(|at| FATES[at]);
        for (size, idempotent) in [(1, true), (1, false), (3, true), (3, false)] {
            loom::model(move || {
                begin(&fates, idempotent);
                live_and_die(&fates, size, idempotent);
            });
            sequences += 1;
        }
    }
    println!("death_in_each_step: {sequences} sequences of fates");
}

fn live_and_die(fates: &[Fate; 3], size: usize, idempotent: bool) {
    let shared = shared(config(false));
    let guard = FactoryGuard(Arc::clone(&shared));
    let Ok(mut serving) = Serving::new(&shared) else {
        // Nothing has been built before, so nothing is tried again.
        assert!(matches!(fates[0], Fate::DiesStarting | Fate::NotBuilt), "{fates:?}");
        drop(guard);
        return nothing_is_left(&shared);
    };
    for batch in 0..3 {
        let answer = ask(&mut serving, batch, size);
        let seen: Vec<usize> = world(|world| {
            world.seen.iter().filter(|(seen, _)| *seen == batch).map(|&(_, child)| child).collect()
        });
        // Again only what is alone and may be asked twice, and then once.
        let most = if size == 1 && idempotent { 2 } else { 1 };
        assert!(seen.len() <= most, "{fates:?}: batch {batch} was seen by {seen:?}");
        assert!(seen.is_sorted_by(|a, b| a < b), "{fates:?}: one child saw {batch} twice");
        let fate = |child: usize| fates.get(child).copied().unwrap_or(Fate::Lives);
        let is_dead = |child: usize| world(|world| world.dead.contains(&child));
        match answer {
            // The last who saw it has answered.
            Ok(_) => assert!(seen.last().is_some_and(|&child| !is_dead(child)), "{fates:?}"),
            Err(EngineError::OutOfMemory(_)) => {
                assert!(idempotent && size > 1, "{fates:?}: only these can be split");
                assert_eq!(seen.last().map(|&child| fate(child)), Some(Fate::Starves));
            }
            Err(EngineError::Lost(cause)) => {
                let lost = cause.downcast_ref::<ChildLost>().expect("it is the cause");
                let failed_start = matches!(lost, ChildLost::NotBuilt { .. });
                // It was tried as often as it may be, or there was no child to try it in.
                assert!(seen.len() == most || failed_start, "{fates:?}: {lost} after {seen:?}");
                assert!(seen.iter().all(|&child| is_dead(child)), "{fates:?}: {batch}");
            }
            Err(other) => panic!("{fates:?}: {other}"),
        }
    }
    drop(serving);
    drop(guard);
    nothing_is_left(&shared);
}

/// An engine loses its child while another thread drops the factory, which ends the spare and its
/// threads.
#[test]
fn shutdown_against_rebuild() {
    for spare in [false, true] {
        model("shutdown_against_rebuild", 3, move || {
            begin(&[Fate::DiesInBatch], true);
            let shared = shared(config(spare));
            let guard = FactoryGuard(Arc::clone(&shared));
            let mut serving = Serving::new(&shared).expect("a child");
            let worker = loom::thread::spawn(move || {
                // The first child takes it along; the next one, the spare or a new one, answers.
                assert_eq!(ask(&mut serving, 7, 1).expect("an answer"), 7);
            });
            drop(guard);
            worker.join().expect("no panic");
            shared.close();
            nothing_is_left(&shared);
        });
    }
}

/// A child that outgrows its limit is replaced by the spare, which is started beside the batches.
#[test]
fn recycle_against_submit() {
    model("recycle_against_submit", 2, || {
        begin(&[Fate::Outgrows], false);
        let shared = shared(config(true));
        let guard = FactoryGuard(Arc::clone(&shared));
        let mut serving = Serving::new(&shared).expect("a child");
        for batch in 0..3 {
            // Nothing is lost by it, whether the spare is ready or not.
            assert_eq!(ask(&mut serving, batch, 2).expect("an answer"), batch);
            serving.recycle().expect("no error");
        }
        let stats = shared.children.stats();
        assert_eq!(stats.losses(), 0, "{stats:?}");
        assert!(stats.recycled_for_memory <= 1, "{stats:?}");
        drop(serving);
        drop(guard);
        nothing_is_left(&shared);
    });
}

/// The spare dies while nobody needs it: it is replaced, or it is not taken.
#[test]
fn death_of_the_spare_while_idle() {
    model("death_of_the_spare_while_idle", 3, || {
        begin(&[Fate::DiesInSecondBatch, Fate::DiesIdle], true);
        let shared = shared(config(true));
        let guard = FactoryGuard(Arc::clone(&shared));
        let mut serving = Serving::new(&shared).expect("a child");
        assert_eq!(ask(&mut serving, 0, 1).expect("an answer"), 0);
        shared.check_spare();
        // Its child dies in this one, and the spare, if it is that one, is dead.
        assert_eq!(ask(&mut serving, 1, 1).expect("an answer"), 1);
        drop(serving);
        drop(guard);
        nothing_is_left(&shared);
    });
}

/// Two engines of one supervisor: each child serves one of them.
#[test]
fn two_workers_and_a_spare() {
    model("two_workers_and_a_spare", 2, || {
        begin(&[Fate::DiesInBatch, Fate::Lives, Fate::Lives], true);
        let shared = shared(config(true));
        let guard = FactoryGuard(Arc::clone(&shared));
        let other = Arc::clone(&shared);
        let second = loom::thread::spawn(move || {
            let mut serving = Serving::new(&other).expect("a child");
            assert_eq!(ask(&mut serving, 1, 1).expect("an answer"), 1);
        });
        let mut serving = Serving::new(&shared).expect("a child");
        assert_eq!(ask(&mut serving, 2, 1).expect("an answer"), 2);
        drop(serving);
        second.join().expect("no panic");
        drop(guard);
        nothing_is_left(&shared);
    });
}

/// Statistics are read while children come and go.
#[test]
fn statistics_against_a_loss() {
    model("statistics_against_a_loss", 3, || {
        begin(&[Fate::DiesInBatch], true);
        let shared = shared(config(false));
        let guard = FactoryGuard(Arc::clone(&shared));
        let mut serving = Serving::new(&shared).expect("a child");
        let watched = Arc::clone(&shared.children);
        let watcher = loom::thread::spawn(move || {
            let stats = watched.stats();
            assert!(stats.children.len() <= 1, "{stats:?}");
            assert!(stats.crashes <= 1 && stats.retries <= stats.crashes, "{stats:?}");
        });
        assert_eq!(ask(&mut serving, 1, 1).expect("an answer"), 1);
        watcher.join().expect("no panic");
        drop(serving);
        drop(guard);
        nothing_is_left(&shared);
    });
}
