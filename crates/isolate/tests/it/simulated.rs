//! A simulated device whose faults are real, in a child: what it does there to the process is
//! contained, and its text arrives. Everything here is simulated.

use std::time::Duration;

use onelane_isolate::{ChildLost, IsolationConfig};
use rustix::process::Signal;

use crate::engine::{Act, Ask, Simulated};
use crate::world::*;

pub fn tests() -> Tests {
    vec![
        ("a_simulated_abort_is_contained", abort),
        ("a_simulated_hang_is_contained", hang),
        ("memory_of_simulated_shapes_is_recycled", shapes),
    ]
}

fn company(culprit: Simulated) -> Vec<Ask> {
    let mut asks: Vec<_> = (0..4).map(|value| Ask::new(Act::Echo, value)).collect();
    asks[2].act = Act::Simulated(culprit);
    asks
}

/// The others are right; the loss of the culprit.
fn culprit(world: &World, what: Simulated) -> ChildLost {
    let mut found = None;
    for (value, answer) in (0..).zip(world.batch(company(what))) {
        match answer {
            Ok((echo, _)) => assert_eq!(echo, value),
            Err(error) => {
                assert_eq!(value, 2, "{error}");
                found = Some(lost(&error));
            }
        }
    }
    found.expect("the culprit fails")
}

fn abort() {
    let world = world(IsolationConfig::default());
    let lost = culprit(&world, Simulated::Race);
    assert_eq!(lost.signal(), Some(Signal::ABORT.as_raw()), "{lost}");
    // Apple's words, in the error's text and in what the child wrote.
    let text = lost.to_string();
    assert!(text.contains("SIGABRT") && text.contains("failed assertion `"), "{text}");
    assert!(lost.stderr().contains("failed assertion `"), "{}", lost.stderr());
    world.echoes(9);
    world.close();
}

fn hang() {
    let config = IsolationConfig::default().hang(Duration::from_secs(2)).retries(0);
    let world = world(config);
    let lost = culprit(&world, Simulated::Deadlock);
    assert!(matches!(lost, ChildLost::Hung { .. }), "{lost}");
    assert!(lost.stderr().contains("no simulated thread can go on"), "{}", lost.stderr());
    world.echoes(9);
    world.close();
}

/// PyTorch keeps a compiled graph for each shape: a child that meets new shapes only grows, and is
/// replaced in time.
fn shapes() {
    const LIMIT: u64 = 128 << 20;
    let world = world(IsolationConfig::default().max_memory(LIMIT));
    for rows in 1..60 {
        let act = Act::Simulated(Simulated::Shape(rows));
        assert_eq!(world.ask(act, 7).expect("no request fails").0, 7);
    }
    let stats = world.supervisor.stats();
    assert!(stats.recycled_for_memory >= 2, "{stats:?}");
    assert_eq!(stats.losses(), 0, "{stats:?}");
    // One graph more than the limit at most.
    let most = LIMIT + (16 << 20);
    assert!(stats.max_footprint > LIMIT && stats.max_footprint < most, "{stats:?}");
    world.close();
}
