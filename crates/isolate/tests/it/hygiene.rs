//! What a child has of its parent, and what is left when either dies.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use onelane_isolate::IsolationConfig;
use rustix::process::Signal;

use crate::world::*;

pub fn tests() -> Tests {
    let mut tests: Tests = vec![
        ("a_killed_parent_leaves_no_child", || parent_is_killed("busy", false)),
        ("a_killed_parent_leaves_no_spare", || parent_is_killed("busy_with_spare", false)),
        ("somebody_else_takes_the_statuses", statuses_are_stolen),
        ("a_child_has_a_group_and_ignores_signals_of_terminals", group_and_signals),
    ];
    // These read /proc.
    if cfg!(target_os = "linux") {
        let stopped: (_, fn()) =
            ("a_killed_parent_leaves_no_stopped_child", || parent_is_killed("busy", true));
        tests.push(stopped);
        tests.push(("descriptors_and_threads_are_the_same", descriptors_and_threads));
        tests.push(("a_child_has_no_descriptor_of_its_parent", no_descriptor_of_its_parent));
    }
    tests
}

fn parent(which: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env("ONELANE_TEST", "parent").env("ONELANE_TEST_PARENT", which);
    command
}

/// Kills itself when the test fails.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a test that fails leaves behind.
struct Orphans(Vec<u32>);

impl Drop for Orphans {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.iter().for_each(|&child| signal(child, Signal::KILL));
        }
    }
}

fn parent_is_killed(which: &str, stopped: bool) {
    let scratch = Scratch::new();
    let shared_memory = names("/dev/shm");
    let mut parent = parent(which);
    let elsewhere = Scratch::new();
    parent.env("TMPDIR", &scratch.0).env("ONELANE_TEST_RECORD", elsewhere.path("record"));
    parent.stdout(Stdio::piped());
    let mut parent = Kill(parent.spawn().expect("this program"));
    let lines = BufReader::new(parent.0.stdout.take().expect("piped")).lines();
    let lines = lines.map(|line| line.expect("UTF-8")).take_while(|line| line != "ready");
    let children: Vec<u32> = lines.map(|line| line.parse().expect("a pid")).collect();
    let _orphans = Orphans(children.clone());
    assert_eq!(children.len(), if which == "busy" { 1 } else { 2 });
    assert!(children.iter().all(|&child| exists(child)));
    if stopped {
        children.iter().for_each(|&child| signal(child, Signal::STOP));
        // The kernel looks for stopped ones when the parent ends.
        let stopped = || children.iter().all(|&child| is_stopped(child));
        eventually("the children are stopped", SOON, stopped);
    }
    parent.0.kill().expect("it is ours");
    parent.0.wait().expect("it is ours");
    let gone = || children.iter().all(|&child| !exists(child));
    eventually("the children are gone", Duration::from_secs(1), gone);
    assert_eq!(names(scratch.0.to_str().expect("UTF-8")), BTreeSet::new());
    let left: Vec<_> = names("/dev/shm").difference(&shared_memory).cloned().collect();
    assert!(!left.iter().any(|name| name.contains("onelane")), "{left:?}");
}

/// Whether all of its threads are stopped.
fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    threads.into_iter().all(|thread| {
        let stat = thread.map(|thread| std::fs::read_to_string(thread.path().join("stat")));
        let stat = stat.and_then(|stat| stat).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"))
    })
}

fn names(directory: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn descriptors_and_threads() {
    parent_is_content("counted");
}

fn statuses_are_stolen() {
    parent_is_content("robbed");
}

fn parent_is_content(which: &str) {
    let status = Kill(parent(which).spawn().expect("this program")).0.wait();
    assert!(status.expect("it is ours").success());
}

fn group_and_signals() {
    let world = world(IsolationConfig::default());
    let child = world.child();
    let group = rustix::process::getpgid(Some(pid(child))).expect("it lives");
    assert_eq!(group, pid(child), "the terminal's Ctrl-C goes to another group");
    signal(child, Signal::INT);
    signal(child, Signal::TERM);
    world.echoes(1);
    assert_eq!(world.child(), child);
    world.close();
}

fn no_descriptor_of_its_parent() {
    let other = world(IsolationConfig::default());
    let world = world(IsolationConfig::default());
    let child = world.child();
    let entries = std::fs::read_dir(format!("/proc/{child}/fd")).expect("it lives");
    let open: Vec<String> = entries
        .filter_map(|entry| std::fs::read_link(entry.expect("an entry").path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    let count = |start: &str| open.iter().filter(|target| target.starts_with(start)).count();
    assert_eq!(count("/memfd:onelane"), 1, "{open:?}");
    // The channel and its watching thread have a descriptor each of one socket.
    let sockets: BTreeSet<_> = open.iter().filter(|target| target.starts_with("socket:")).collect();
    assert_eq!(sockets.len(), 1, "{open:?}");
    let stdin = std::fs::read_link(format!("/proc/{child}/fd/0")).expect("it lives");
    assert_eq!(stdin.to_str(), Some("/dev/null"));
    other.close();
    world.close();
}
