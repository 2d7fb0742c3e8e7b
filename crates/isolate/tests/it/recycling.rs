//! A child that is replaced costs no request.

use std::time::Duration;

use onelane_isolate::IsolationConfig;
use rustix::process::Signal;

use crate::engine::{Act, Ask};
use crate::world::*;

pub fn tests() -> Tests {
    vec![
        ("a_child_that_grows_stays_bounded", || grows(false)),
        ("a_child_that_grows_stays_bounded_with_a_spare", || grows(true)),
        ("recycled_after_batches_under_load", || recycled_under_load(false)),
        ("recycled_after_batches_under_load_with_a_spare", || recycled_under_load(true)),
        ("recycled_for_its_age", recycled_for_its_age),
        ("a_limit_below_its_own_size_is_borne", a_limit_below_its_own_size),
        ("a_spare_that_died_is_not_used", a_spare_that_died),
        ("a_spare_that_died_is_replaced", a_spare_that_died_is_replaced),
        ("the_old_child_drops_its_engine", the_old_child_drops_its_engine),
        ("one_that_does_not_end_is_killed", one_that_does_not_end),
    ]
}

const MIB: u64 = 1 << 20;

fn grows(spare: bool) {
    let config = IsolationConfig::default().max_memory(256 * MIB).spare(spare);
    let world = world(config);
    for value in 0..40 {
        // With a spare the old child goes on until that is ready; here it is to be.
        if spare {
            eventually("the spare is ready", SOON, || world.supervisor.stats().spare);
        }
        let (echo, _) = world.ask(Act::Grow(40), value).expect("no request fails");
        assert_eq!(echo, value);
    }
    let stats = world.supervisor.stats();
    assert!(stats.recycled_for_memory >= 4, "{stats:?}");
    // One batch may pass the limit: that is how it is known.
    assert!(stats.max_footprint > 256 * MIB, "{stats:?}");
    assert!(stats.max_footprint < (256 + 40 + 24) * MIB, "{stats:?}");
    assert_eq!(stats.losses(), 0);
    world.close();
}

fn recycled_under_load(spare: bool) {
    let world = world(IsolationConfig::default().recycle_batches(3).spare(spare));
    std::thread::scope(|scope| {
        for client in 0..8 {
            let world = &world;
            scope.spawn(move || (0..60).for_each(|i| world.echoes(client * 1000 + i)));
        }
    });
    if spare {
        eventually("it is recycled", SOON, || {
            world.echoes(1);
            world.supervisor.stats().recycled() > 0
        });
    }
    let stats = world.supervisor.stats();
    assert!(stats.recycled_for_batches > 0, "{stats:?}");
    assert_eq!((stats.losses(), stats.failed_starts), (0, 0), "{stats:?}");
    assert_eq!(world.queue.stats().failed, 0);
    if !spare {
        // The queue's batches are 3 a child, but for the last; the last answer comes before that.
        let due = world.queue.stats().batches / 3;
        let recycled = || world.supervisor.stats().recycled_for_batches;
        eventually("each is recycled", SOON, || recycled() == due);
    }
    world.close();
}

fn recycled_for_its_age() {
    let world = world(IsolationConfig::default().recycle_after(Duration::from_millis(200)));
    let first = world.child();
    eventually("it is recycled", SOON, || {
        world.echoes(1);
        world.supervisor.stats().recycled_for_age > 0
    });
    assert_ne!(world.child(), first);
    assert!(!exists(first));
    world.close();
}

fn a_limit_below_its_own_size() {
    let world = world(IsolationConfig::default().max_memory(1));
    (0..20).for_each(|value| world.echoes(value));
    assert_eq!(world.supervisor.stats().starts, 1, "it is not replaced after each batch");
    let before = world.supervisor.stats().footprint;
    assert!(before > 0 && before < 64 * MIB, "{before}");
    world.close();
}

fn a_spare_that_died() {
    let world = world(IsolationConfig::default().spare(true));
    let ready = || world.supervisor.stats().spare;
    eventually("the spare is ready", SOON, ready);
    for child in world.supervisor.stats().children {
        signal(child, Signal::KILL);
        eventually("it dies", SOON, || !exists(child));
    }
    assert!(
        world
            .batch((0..4).map(|value| Ask::new(Act::Echo, value)).collect())
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(world.supervisor.stats().crashes, 2);
    world.close();
}

fn a_spare_that_died_is_replaced() {
    let world = world(IsolationConfig::default().spare(true));
    let ready = || world.supervisor.stats().spare;
    eventually("the spare is ready", SOON, ready);
    let before = world.supervisor.stats().children;
    let spare = *before.iter().max().expect("two");
    signal(spare, Signal::KILL);
    eventually("it dies", SOON, || !exists(spare));
    eventually("there is another", SOON, || {
        world.echoes(1);
        let stats = world.supervisor.stats();
        stats.spare && !stats.children.contains(&spare) && stats.children.len() == 2
    });
    assert_eq!(world.queue.stats().failed, 0);
    world.close();
}

fn lines() -> (std::sync::Arc<std::sync::Mutex<Vec<String>>>, impl Fn(&str) + Send + Sync) {
    let lines = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
    let seen = std::sync::Arc::clone(&lines);
    (lines, move |line: &str| seen.lock().expect("no panic").push(line.to_owned()))
}

fn the_old_child_drops_its_engine() {
    let (lines, on_line) = lines();
    let config = IsolationConfig::default().recycle_batches(1).on_line(on_line);
    let world = world_with(config, &[("DROP", "say")]);
    (0..3).for_each(|value| world.echoes(value));
    world.close();
    // One that has ended has been read to its end.
    let lines = lines.lock().expect("no panic");
    let dropped = lines.iter().filter(|line| *line == "the engine was dropped").count();
    assert!(dropped >= 3, "{lines:?}");
}

fn one_that_does_not_end() {
    let config = IsolationConfig::default().grace(Duration::from_millis(100));
    let world = world_with(config, &[("DROP", "hang")]);
    world.echoes(1);
    world.close();
}
