//! A request that takes its child along fails alone, typed; the others are answered.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use onelane::{EngineError, Health, RequestError};
use onelane_isolate::{ChildLost, IsolationConfig, RemoteError};
use rustix::process::Signal;

use crate::engine::{Act, Ask};
use crate::world::*;

pub fn tests() -> Tests {
    let mut tests: Tests = vec![
        ("segfault", || culprit(Act::Segfault, "SIGSEGV", 1)),
        ("segfault_no_retry", || culprit(Act::Segfault, "SIGSEGV", 0)),
        ("abort", || culprit(Act::Abort, "SIGABRT", 1)),
        ("abort_no_retry", || culprit(Act::Abort, "SIGABRT", 0)),
        ("exit", || culprit(Act::Exit, "exit status: 41", 1)),
        ("exit_no_retry", || culprit(Act::Exit, "exit status: 41", 0)),
        ("kill", || culprit(Act::KillItself, "SIGKILL", 1)),
        ("kill_no_retry", || culprit(Act::KillItself, "SIGKILL", 0)),
        ("hang", || culprit(Act::Hang, "hung", 1)),
        ("hang_no_retry", || culprit(Act::Hang, "hung", 0)),
        ("poison", || culprit(Act::Poison, "device-side assert", 1)),
        ("poison_no_retry", || culprit(Act::Poison, "device-side assert", 0)),
        ("many_culprits", many_culprits),
        ("not_idempotent", not_idempotent),
        ("each_worker_has_a_child_of_its_own", each_worker_has_a_child),
        ("a_panic_and_a_slow_rebuild", a_panic_and_a_slow_rebuild),
        ("killed_from_outside", killed_from_outside),
        ("killed_from_outside_with_a_spare", killed_from_outside_with_a_spare),
        ("stopped_from_outside", stopped_from_outside),
        ("a_first_batch_is_named", a_first_batch_is_named),
        ("errors_cross_as_values", errors_cross_as_values),
        ("the_last_words_are_in_the_error", the_last_words_are_in_the_error),
        ("a_spare_takes_over_at_once", a_spare_takes_over_at_once),
    ];
    // It finds its socket in /proc.
    if cfg!(target_os = "linux") {
        tests.push(("died_mid_reply", || culprit(Act::DieMidReply, "SIGABRT", 1)));
    }
    tests
}

fn config() -> IsolationConfig {
    IsolationConfig::default().hang(Duration::from_secs(2))
}

/// 64 requests from 16 threads, one of which is the culprit.
fn culprit(act: Act, text: &str, retries: u32) {
    let world = world(config().retries(retries));
    let barrier = Barrier::new(16);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let thread = |thread: u64| {
            let (world, barrier) = (&world, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let ask = |i: u64| {
                    let value = thread * 4 + i;
                    let act = if value == 37 { act } else { Act::Echo };
                    (value, world.queue.submit(Ask::new(act, value)).expect("open"))
                };
                let handles = [0, 1, 2, 3].map(ask);
                handles.map(|(value, handle)| (value, handle.wait()))
            })
        };
        let threads: Vec<_> = (0..16).map(thread).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    for (value, answer) in answers {
        match answer {
            Ok((echo, _)) => assert!(echo == value && value != 37),
            Err(error) => {
                assert_eq!(value, 37, "{error}");
                assert!(error.to_string().contains(text), "{error}");
                assert!(error.to_string().contains("a batch of 1"), "{error}");
                lost(&error);
            }
        }
    }
    world.echoes(100);
    assert_eq!(world.queue.health(), Health::Ready);
    let stats = world.supervisor.stats();
    // Lost in a batch, or alone at once; then alone; and once more alone.
    assert!(stats.losses() <= 2 + u64::from(retries), "{stats:?}");
    assert_eq!(stats.starts, stats.losses() + 1, "{stats:?}");
    assert_eq!(stats.retries, u64::from(retries), "{stats:?}");
    world.close();
}

fn many_culprits() {
    let world = world(config());
    let act = |value| if value % 5 == 0 { Act::Abort } else { Act::Echo };
    let answers = world.batch((0..20).map(|value| Ask::new(act(value), value)).collect());
    for (value, answer) in (0..).zip(answers) {
        match answer {
            Ok((echo, _)) => assert!(echo == value && value % 5 != 0),
            Err(error) => assert!(value % 5 == 0 && lost(&error).signal() == Some(6), "{error}"),
        }
    }
    world.close();
}

fn not_idempotent() {
    let scratch = Scratch::new();
    let record = scratch.path("record");
    let world = world_with(config(), &[("IDEMPOTENT", "no"), ("RECORD", &record)]);
    let act = |value| if value == 5 { Act::Segfault } else { Act::Echo };
    let answers = world.batch((0..8).map(|value| Ask::new(act(value), value)).collect());
    for answer in answers {
        let error = answer.expect_err("all of them are of the batch");
        assert!(error.to_string().contains("SIGSEGV"), "{error}");
        assert!(error.to_string().contains("a batch of 8"), "{error}");
    }
    let error = world.ask(Act::Abort, 8).expect_err("it aborts");
    assert!(error.to_string().contains("a batch of 1"), "{error}");
    assert_eq!(world.supervisor.stats().retries, 0);
    world.echoes(9);
    // Killed while idle, it has not seen the next request, which may run after all.
    let child = world.child();
    signal(child, Signal::KILL);
    eventually("the child dies", SOON, || !exists(child));
    world.echoes(10);
    let ran = std::fs::read_to_string(&record).expect("a record");
    let ran: Vec<u64> = ran.lines().map(|line| line.parse().expect("a value")).collect();
    assert_eq!(ran, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "each once");
    world.close();
}

fn each_worker_has_a_child() {
    let world = try_world_of(supervisor(config(), Variables::new()), 3).expect("children");
    let before = world.supervisor.stats().children;
    assert_eq!(before.len(), 3, "{before:?}");
    std::thread::scope(|scope| {
        for client in 0..12 {
            let world = &world;
            scope.spawn(move || {
                for i in 0..20 {
                    let value = client * 100 + i;
                    if value == 307 {
                        let error = world.ask(Act::Segfault, value).expect_err("it is the culprit");
                        assert!(lost(&error).signal() == Some(11), "{error}");
                    } else {
                        world.echoes(value);
                    }
                }
            });
        }
    });
    let stats = world.supervisor.stats();
    assert!(stats.losses() <= 3, "{stats:?}");
    // A worker that has been lost is built again by its next batch.
    let kept = stats.children.iter().filter(|&child| before.contains(child)).count();
    assert!(kept >= 1, "{before:?} {stats:?}");
    world.close();
}

/// The rebuild may take as long as a start, which is longer than a batch may.
fn a_panic_and_a_slow_rebuild() {
    let config = IsolationConfig::default().hang(Duration::from_secs(1));
    let world = world_with(config, &[("BUILD", "slow")]);
    let child = world.child();
    let error = world.ask(Act::Panic, 1).expect_err("it panics");
    assert!(error.to_string().contains("no such token"), "{error}");
    world.echoes(2);
    assert_eq!(world.child(), child, "the same process, with a new engine");
    world.close();
}

/// On a busy machine a child starts slowly, and one request may meet several kills.
fn busy() -> IsolationConfig {
    IsolationConfig::default().hang(Duration::from_secs(1)).retries(5)
}

fn killed_from_outside() {
    killed(busy());
}

fn killed_from_outside_with_a_spare() {
    killed(busy().spare(true));
}

/// Kills or stops a child every 100 ms, under load; for longer if a variable says so.
fn killed(config: IsolationConfig) {
    let world = world(config);
    let seconds = std::env::var("ONELANE_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(4));
    let mut signals = [Signal::KILL, Signal::ABORT, Signal::QUIT, Signal::STOP].into_iter().cycle();
    let asked: u64 = std::thread::scope(|scope| {
        let client = |client: u64| {
            let world = &world;
            scope.spawn(move || {
                let mut asked = 0;
                while Instant::now() < until {
                    let value = (client << 32) | asked;
                    let mut ask = Ask::new(Act::Echo, value);
                    ask.data = vec![value as f32; 100];
                    let answer = world.queue.submit(ask).expect("open").wait();
                    let (echo, data) = answer.expect("nothing is lost");
                    assert_eq!(echo, value);
                    assert_eq!(data, vec![value as f32 * 2.0; 100]);
                    asked += 1;
                }
                asked
            })
        };
        let clients: Vec<_> = (0..8).map(client).collect();
        for round in 0.. {
            if Instant::now() >= until {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            // With a spare, each is hit in its turn; a stopped spare hangs with what it is given.
            let children = world.supervisor.stats().children;
            if let Some(&child) = children.get(round % children.len().max(1)) {
                signal(child, signals.next().expect("a cycle"));
            }
        }
        clients.into_iter().map(|client| client.join().expect("no panic")).sum()
    });
    world.echoes(1);
    let stats = world.supervisor.stats();
    eprintln!("{asked} requests, {} losses, {} retries", stats.losses(), stats.retries);
    assert!(stats.losses() + stats.failed_starts >= 10, "{stats:?}");
    assert_eq!(world.queue.health(), Health::Ready);
    let queue = world.queue.stats();
    assert_eq!((queue.failed, queue.cancelled, queue.closed), (0, 0, 0), "{queue:?}");
    world.close();
}

fn stopped_from_outside() {
    let world = world(IsolationConfig::default().hang(Duration::from_secs(2)));
    signal(world.child(), Signal::STOP);
    let answers = world.batch((0..4).map(|value| Ask::new(Act::Echo, value)).collect());
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(world.supervisor.stats().hangs, 1);
    world.close();
}

/// What is loaded or compiled when an engine first runs counts as time of that batch.
fn a_first_batch_is_named() {
    let world = world(config().retries(0));
    world.echoes(1);
    for words in ["during a batch of 1 (", "during a batch of 1, its first ("] {
        let lost = lost(&world.ask(Act::Abort, 1).expect_err("it aborts"));
        assert!(lost.to_string().contains(words), "{lost}");
    }
    world.close();
}

fn errors_cross_as_values() {
    let world = world(config());
    let failed = |act| match world.ask(act, 1).expect_err("it fails") {
        RequestError::Engine(EngineError::Failed(source)) => {
            source.downcast_ref::<RemoteError>().expect("it is the source").clone()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(failed(Act::Fail), RemoteError::new("no such row", Vec::new()));
    assert_eq!(failed(Act::FailInDetail), RemoteError::new("typed", vec![1, 2, 3]));
    let panicked = failed(Act::Panic);
    assert!(panicked.panicked && panicked.text == "no such token", "{panicked:?}");
    assert_eq!(panicked.to_string(), "panicked in the isolated worker: no such token");
    let asks = (0..8).map(|value| Ask::new(Act::OutOfMemoryIfSeveral, value)).collect();
    assert!(world.batch(asks).iter().all(Result::is_ok));
    assert_eq!(world.supervisor.stats().starts, 1, "none of these costs a child");
    // One bad row among good ones fails alone, without a restart.
    let act = |value| if value == 3 { Act::Fail } else { Act::Echo };
    let answers = world.batch((0..8).map(|value| Ask::new(act(value), value)).collect());
    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
    assert!(answers[3].is_err());
    let stats = world.queue.stats();
    assert_eq!(stats.padded_cost, 3 * stats.cost, "as the engine in the child says");
    world.close();
}

fn the_last_words_are_in_the_error() {
    let lines = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&lines);
    let on_line = move |line: &str| seen.lock().expect("no panic").push(line.to_owned());
    let world = world(config().on_line(on_line));
    world.ask(Act::Print, 7).expect("it prints");
    let error = world.ask(Act::Abort, 1).expect_err("it aborts");
    assert!(error.to_string().contains("failed assertion"), "{error}");
    let lost = lost(&error);
    assert!(lost.stderr().contains("addCompletedHandler"), "{}", lost.stderr());
    assert!(matches!(lost, ChildLost::Crashed { .. }), "{lost:?}");
    let lines = lines.lock().expect("no panic").clone();
    assert!(lines.contains(&"to stdout: 7".to_owned()), "{lines:?}");
    assert!(lines.contains(&"to stderr: 7".to_owned()), "{lines:?}");
    world.close();
}

fn a_spare_takes_over_at_once() {
    // A start takes 3 s.
    let world = world_with(config().spare(true), &[("BUILD", "slow")]);
    eventually("the spare is ready", SOON, || world.supervisor.stats().spare);
    for value in 0..2 {
        // The older of the two serves.
        let child = world.supervisor.stats().children[0];
        signal(child, Signal::KILL);
        eventually("the child dies", SOON, || !exists(child));
        let since = Instant::now();
        world.echoes(value);
        assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
        eventually("the spare is ready", SOON, || world.supervisor.stats().spare);
    }
    world.close();
}
