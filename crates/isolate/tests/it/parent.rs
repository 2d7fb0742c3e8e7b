//! Parents that are killed, counted, or forgetful: this program run once more.

use std::io::Write as _;
use std::time::Duration;

use onelane_isolate::IsolationConfig;

use crate::engine::{Act, Ask};
use crate::world::*;

/// Ends with the code 0 if all is well.
pub fn main() -> ! {
    match std::env::var("ONELANE_TEST_PARENT").as_deref() {
        Ok("busy") => busy(false),
        Ok("busy_with_spare") => busy(true),
        Ok("counted") => counted(),
        Ok("robbed") => robbed(),
        other => panic!("no such parent: {other:?}"),
    }
}

/// Says who its children are when one of them is in a batch that does not end.
fn busy(spare: bool) -> ! {
    let world = world_of_children(IsolationConfig::default().spare(spare));
    if spare {
        eventually("the spare is ready", SOON, || world.supervisor.stats().spare);
    }
    for child in world.supervisor.stats().children {
        println!("{child}");
    }
    let handle = world.queue.submit(Ask::new(Act::Hang, 1)).expect("open");
    let record = std::env::var("ONELANE_TEST_RECORD").expect("the test sets it");
    eventually("the batch runs", SOON, || std::path::Path::new(&record).exists());
    println!("ready");
    std::io::stdout().flush().expect("the test reads");
    panic!("it is killed before there is an answer: {:?}", handle.wait());
}

/// A child is this program too, but not this parent.
fn world_of_children(config: IsolationConfig) -> World {
    try_world(supervisor_of_children(config)).expect("a child")
}

fn supervisor_of_children(config: IsolationConfig) -> onelane_isolate::Supervisor {
    let command = || {
        let mut command = onelane_isolate::this_program();
        command.env_remove("ONELANE_TEST");
        command
    };
    onelane_isolate::Supervisor::new(command, config).expect("usable settings")
}

/// Does everything several times and has as many descriptors and threads afterwards as before.
fn counted() -> ! {
    let mut before = None;
    for round in 0..6 {
        one_of_each();
        let now = (count("/proc/self/fd"), count("/proc/self/task"));
        // The first round has opened what stays open: the clock, the allocator.
        if round > 0 {
            assert_eq!(*before.get_or_insert(now), now, "descriptors and threads, round {round}");
        }
    }
    std::process::exit(0);
}

fn one_of_each() {
    let config = IsolationConfig::default().hang(Duration::from_millis(300));
    for spare in [false, true] {
        let world = world_of_children(config.clone().spare(spare).recycle_batches(3));
        for act in [Act::Echo, Act::Segfault, Act::Hang, Act::Poison, Act::Panic, Act::Print] {
            let answers = world.batch(vec![Ask::new(Act::Echo, 1), Ask::new(act, 2)]);
            assert!(answers[0].is_ok());
        }
        world.close();
    }
    let command = || std::process::Command::new("/bin/false");
    let refused = onelane_isolate::Supervisor::new(command, config).expect("usable settings");
    assert!(try_world(refused).is_err());
}

/// Somebody in this process waits for any child, as programs do, and takes the statuses.
fn robbed() -> ! {
    std::thread::spawn(|| {
        loop {
            if rustix::process::wait(rustix::process::WaitOptions::empty()).is_err() {
                std::thread::yield_now();
            }
        }
    });
    let config = IsolationConfig::default().hang(Duration::from_millis(300));
    let world = world_of_children(config.clone());
    for act in [Act::Segfault, Act::Hang, Act::Echo, Act::Abort] {
        let answers = world.batch(vec![Ask::new(Act::Echo, 1), Ask::new(act, 2)]);
        assert!(answers[0].is_ok(), "{answers:?}");
        assert_eq!(answers[1].is_ok(), act == Act::Echo, "{answers:?}");
    }
    world.close();
    std::process::exit(0);
}

fn count(directory: &str) -> usize {
    let count = || std::fs::read_dir(directory).map_or(0, Iterator::count);
    // A thread that has been told to end, and one that has been joined, is counted for a moment
    // yet.
    let mut last = count();
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(2));
        let now = count();
        last = last.min(now);
    }
    last
}

/// A program that makes a queue without having asked whether it is a child.
pub fn forgetful() -> ! {
    match try_world(supervisor_of_children(IsolationConfig::default())) {
        Ok(_) => std::process::exit(0),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
