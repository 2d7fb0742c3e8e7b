//! Whatever a child sends, its parent neither panics nor reads out of bounds: the child is lost.

use std::time::Duration;

use onelane_isolate::{ChildLost, IsolationConfig, Supervisor, this_program};

use crate::engine::{Act, Ask};
use crate::world::*;

pub fn tests() -> Tests {
    vec![
        ("garbage_at_the_start", garbage_at_the_start),
        ("the_truth_among_the_lies", the_truth),
        ("garbage_for_a_reply", garbage_for_a_reply),
        ("noise_for_a_reply", noise_for_a_reply),
        ("a_frame_unasked", a_frame_unasked),
        ("half_a_frame", half_a_frame),
        ("a_socket_closed_and_a_process_that_lives", a_socket_closed),
        ("a_socket_that_somebody_holds", a_socket_that_somebody_holds),
        ("a_child_in_python", a_child_in_python),
        ("large_payloads", large_payloads),
        ("too_large_payloads", too_large_payloads),
    ]
}

fn liar(lie: &str, hang: Duration) -> Supervisor {
    let lie = lie.to_owned();
    let command = move || {
        let mut command = this_program();
        command.env("ONELANE_TEST", "liar").env("ONELANE_TEST_LIE", &lie);
        command
    };
    let config = IsolationConfig::default().hang(hang).start(SOON).retries(0);
    Supervisor::new(command, config.max_payload(1 << 20)).expect("usable settings")
}

/// What comes of one request to a liar.
fn told(lie: &str) -> ChildLost {
    let world = try_world(liar(lie, Duration::from_secs(2))).expect("it says that it is ready");
    let error = world.ask(Act::Echo, 0).expect_err("a lie");
    let lost = lost(&error);
    assert!(!error.to_string().contains("panicked"), "{error}");
    world.close();
    lost
}

fn garbage_at_the_start() {
    let error = try_world(liar("start", SOON)).err().expect("garbage");
    assert!(error.to_string().contains("broke the protocol"), "{error}");
}

/// Bytes 1 to 17 of the request for an echo of 0 happen to be its right answer: without this one,
/// the lies next to it would be found out for another reason.
fn the_truth() {
    let world = try_world(liar("reply:2:0:1:1:16", SOON)).expect("it says that it is ready");
    world.echoes(0);
    world.close();
}

fn garbage_for_a_reply() {
    let max = u64::MAX;
    // Kind, sequence ahead, count, offset, length.
    for lie in [
        "reply:0:0:1:0:16".to_owned(),
        "reply:1:0:1:0:16".to_owned(),
        "reply:2:1:1:1:16".to_owned(),
        "reply:2:0:1:1:17".to_owned(),
        "reply:2:0:1:0:15".to_owned(),
        "reply:2:0:1:0:20".to_owned(),
        format!("reply:2:0:1:0:{max}"),
        format!("reply:2:0:1:{max}:{max}"),
        format!("reply:2:0:1:{}:16", 1 << 16),
        format!("reply:2:0:{}:0:65536", u32::MAX),
        format!("reply:2:0:1:0:{}", (1 << 20) + 1),
        format!("reply:3:0:1:8:{max}"),
        "reply:3:0:1:0:7".to_owned(),
        "reply:4:0:1:0:3".to_owned(),
        "reply:4:0:1:65535:1".to_owned(),
    ] {
        let lost = told(&lie);
        assert!(matches!(lost, ChildLost::Protocol { .. }), "{lie}: {lost}");
    }
}

fn noise_for_a_reply() {
    for seed in 1..=30 {
        let lost = told(&format!("noise:{seed}"));
        assert!(matches!(lost, ChildLost::Protocol { .. }), "{seed}: {lost}");
    }
}

fn a_frame_unasked() {
    let lost = told("unasked");
    assert!(matches!(lost, ChildLost::Protocol { .. }), "{lost}");
}

fn half_a_frame() {
    let lost = told("half:die");
    assert!(lost.to_string().contains("exit status: 7"), "{lost}");
    let lost = told("half:hang");
    assert!(matches!(lost, ChildLost::Hung { .. }), "{lost}");
}

/// There is no end of the socket then: the process itself is seen to have ended.
fn a_socket_that_somebody_holds() {
    let world = try_world(liar("held", SOON)).expect("it says that it is ready");
    let since = std::time::Instant::now();
    let error = world.ask(Act::Echo, 0).expect_err("it dies");
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert_eq!(lost(&error).signal(), Some(11), "{error}");
    world.close();
}

/// A child needs nothing of this crate.
fn a_child_in_python() {
    let command = || {
        let mut command = std::process::Command::new("python3");
        command.args(["-I", "-S", "-c", include_str!("child.py")]);
        command
    };
    let config = IsolationConfig::default().payload(b"with a payload".to_vec());
    let world = try_world(Supervisor::new(command, config).expect("usable")).expect("python3");
    for (value, floats) in [(1, 3), (2, 100_000), (3, 0)] {
        let mut ask = Ask::new(Act::Echo, value);
        ask.data = (0..floats).map(|i| i as f32).collect();
        let doubled: Vec<f32> = ask.data.iter().map(|x| x * 2.0).collect();
        assert_eq!(world.batch(vec![ask])[0].as_ref().expect("an echo"), &(value, doubled));
    }
    let error = world.ask(Act::Fail, 4).expect_err("it fails");
    assert!(error.to_string().contains("with a payload"), "{error}");
    let mut times: Vec<_> = (0..500)
        .map(|value| {
            let since = std::time::Instant::now();
            world.echoes(value);
            since.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("a request through a child in Python: {:?}", times[250]);
    let error = world.ask(Act::Abort, 5).expect_err("it aborts");
    assert_eq!(lost(&error).signal(), Some(6), "{error}");
    world.close();
}

fn a_socket_closed() {
    let lost = told("close");
    assert!(matches!(lost, ChildLost::Crashed { status: None, .. }), "{lost}");
}

fn large_payloads() {
    let world = world(IsolationConfig::default());
    // Larger and smaller ones in turn: the arena grows, on both sides, and stays right.
    for (value, floats) in [(1, 10), (2, 1 << 20), (3, 7), (4, 5 << 20), (5, 1 << 18), (6, 0)] {
        let mut ask = Ask::new(Act::Echo, value);
        ask.data = (0..floats).map(|i| i as f32).collect();
        let doubled: Vec<f32> = ask.data.iter().map(|x| x * 2.0).collect();
        let (echo, data) = world.queue.submit(ask).expect("open").wait().expect("an echo");
        assert!(echo == value && data == doubled, "{value}");
    }
    world.close();
}

fn too_large_payloads() {
    let world = world(IsolationConfig::default().max_payload(1 << 20));
    let ask = |floats: usize, value| {
        let mut ask = Ask::new(Act::Echo, value);
        ask.data = vec![1.0; floats];
        ask
    };
    // Each fits, all of them together do not: they run in parts.
    let answers = world.batch((0..8).map(|value| ask(100_000, value)).collect());
    assert!(answers.iter().all(Result::is_ok), "{:?}", answers.iter().find(|a| a.is_err()));
    let error = world.queue.submit(ask(300_000, 9)).expect("open").wait().expect_err("too large");
    assert!(error.to_string().contains("max_payload = 1048576"), "{error}");
    let error = world.ask(Act::Inflate, 10).expect_err("too large");
    assert!(error.to_string().contains("max_payload = 1048576"), "{error}");
    assert_eq!(world.supervisor.stats().starts, 1);
    world.close();
}
