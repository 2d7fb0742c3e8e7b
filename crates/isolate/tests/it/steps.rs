//! Death in each step of a child's life, and shutdown against all of it.

use std::process::Command;
use std::time::Duration;

use onelane::Shutdown;
use onelane_isolate::{IsolationConfig, Supervisor, this_program};
use rustix::process::Signal;

use crate::engine::{Act, Ask};
use crate::world::*;

pub fn tests() -> Tests {
    vec![
        ("a_program_that_does_not_exist", no_program),
        ("a_program_that_is_no_child", not_a_child),
        ("a_program_that_does_not_ask", a_program_that_does_not_ask),
        ("death_while_building", || start_fails("BUILD", "abort", "while it built its engine")),
        ("death_in_the_warm_up", || start_fails("WARMUP", "abort", "during its warm-up")),
        ("an_error_while_building", || start_fails("BUILD", "fail", "no such model")),
        ("a_panic_while_building", || start_fails("BUILD", "panic", "a model of the wrong shape")),
        ("an_error_in_the_warm_up", || start_fails("WARMUP", "fail", "no kernel")),
        ("a_start_that_hangs", || start_fails("BUILD", "hang", "hung while it built")),
        ("starts_that_fail_are_spaced", starts_that_fail_are_spaced),
        ("a_start_that_fails_once", a_start_that_fails_once),
        ("death_in_a_rebuild", || lost_in_a_rebuild("abort_on_rebuild")),
        ("hang_in_a_rebuild", || lost_in_a_rebuild("hang_on_rebuild")),
        ("death_while_idle", death_while_idle),
        ("shutdown_while_children_die", shutdown_while_children_die),
        ("shutdown_while_a_spare_starts", shutdown_while_a_spare_starts),
        ("settings_are_checked", settings_are_checked),
    ]
}

fn no_program() {
    let command = || Command::new("/no/such/program");
    let supervisor = Supervisor::new(command, IsolationConfig::default()).expect("usable");
    let error = try_world(supervisor.clone()).err().expect("no program");
    assert!(error.to_string().contains("could not be started"), "{error}");
    assert!(supervisor.stats().children.is_empty());
}

fn not_a_child() {
    let command = || {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo what is this >&2; exit 3"]);
        command
    };
    let supervisor = Supervisor::new(command, IsolationConfig::default()).expect("usable");
    let error = try_world(supervisor).err().expect("no child").to_string();
    assert!(error.contains("while it started (exit status: 3)"), "{error}");
    assert!(error.contains("what is this"), "{error}");
}

fn a_program_that_does_not_ask() {
    let command = || {
        let mut command = this_program();
        command.env("ONELANE_TEST", "forgetful");
        command
    };
    let supervisor = Supervisor::new(command, IsolationConfig::default()).expect("usable");
    let error = try_world(supervisor).err().expect("no child").to_string();
    assert!(error.contains("call it first in main"), "{error}");
}

fn start_fails(name: &'static str, value: &str, text: &str) {
    let config = IsolationConfig::default().start(Duration::from_secs(2));
    let supervisor = supervisor(config, [(name, value.to_owned())].into());
    let error = try_world(supervisor.clone()).err().expect("no child").to_string();
    assert!(error.contains(text), "{error}");
    let stats = supervisor.stats();
    assert_eq!((stats.starts, stats.failed_starts), (1, 1), "{stats:?}");
    assert!(stats.children.is_empty());
}

fn starts_that_fail_are_spaced() {
    let supervisor = supervisor(IsolationConfig::default(), [("BUILD", "fail".to_owned())].into());
    let since = std::time::Instant::now();
    for _ in 0..5 {
        assert!(try_world(supervisor.clone()).is_err());
    }
    // 50, 100, 200 and 400 ms lie between them.
    assert!(since.elapsed() >= Duration::from_millis(750), "{:?}", since.elapsed());
}

fn a_start_that_fails_once() {
    let scratch = Scratch::new();
    let marker = scratch.path("marker");
    let variables = [("BUILD", "fail_once".to_owned()), ("MARKER", marker)];
    let supervisor = supervisor(IsolationConfig::default(), variables.into());
    assert!(try_world(supervisor.clone()).is_err());
    let world = try_world(supervisor).expect("the second time");
    world.echoes(1);
    world.close();
}

/// As when somebody kills or stops a child on its way: the requests that wait for it are none the
/// worse.
fn lost_in_a_rebuild(build: &str) {
    let scratch = Scratch::new();
    let marker = scratch.path("marker");
    let variables = [("BUILD", build), ("MARKER", marker.as_str())];
    let config = IsolationConfig::default().start(Duration::from_secs(2));
    let world = world_with(config, &variables);
    let child = world.child();
    signal(child, Signal::KILL);
    eventually("it dies", SOON, || !exists(child));
    world.echoes(1);
    let stats = world.supervisor.stats();
    assert_eq!((stats.starts, stats.failed_starts), (3, 1), "{stats:?}");
    world.close();
}

fn death_while_idle() {
    let world = world(IsolationConfig::default().retries(0));
    for value in 0..5 {
        let child = world.child();
        signal(child, Signal::KILL);
        eventually("it dies", SOON, || !exists(child));
        world.echoes(value);
    }
    assert_eq!(world.supervisor.stats().crashes, 5);
    world.close();
}

fn shutdown_while_children_die() {
    for round in 0..24_u64 {
        let spare = round % 3 == 0;
        let world = world(IsolationConfig::default().spare(spare));
        let act = |value| if value % 7 == round % 7 { Act::Abort } else { Act::Echo };
        let submit = |value| world.queue.submit(Ask::new(act(value), value)).expect("open");
        let handles: Vec<_> = (0..12).map(submit).collect();
        for child in world.supervisor.stats().children {
            signal(child, Signal::KILL);
        }
        let mode = if round % 2 == 0 { Shutdown::Drain } else { Shutdown::Abort };
        world.queue.shutdown(mode, SOON).expect("in time");
        for (value, handle) in (0..).zip(handles) {
            match handle.wait() {
                Ok((echo, _)) => assert_eq!(echo, value),
                Err(error) => {
                    assert!(act(value) == Act::Abort || mode == Shutdown::Abort, "{value}: {error}")
                }
            }
        }
        let World { queue, supervisor, device } = world;
        drop((queue, device));
        assert!(supervisor.stats().children.is_empty(), "round {round}");
    }
}

fn shutdown_while_a_spare_starts() {
    let world = world_with(IsolationConfig::default().spare(true), &[("BUILD", "slow")]);
    world.echoes(1);
    let since = std::time::Instant::now();
    world.close();
    // A start takes 3 s: it is broken off.
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}

fn settings_are_checked() {
    let default = IsolationConfig::default;
    for (name, config) in [
        ("hang", default().hang(Duration::ZERO)),
        ("start", default().start(Duration::ZERO)),
        ("max_memory", default().max_memory(0)),
        ("recycle_batches", default().recycle_batches(0)),
        ("recycle_after", default().recycle_after(Duration::ZERO)),
        ("max_payload", default().max_payload(1)),
        ("payload", default().max_payload(1 << 16).payload(vec![0; 1 << 17])),
    ] {
        let error = Supervisor::new(this_program, config).expect_err(name);
        assert_eq!(error.name, name, "{error}");
    }
}
