//! `onelane hazards`, `race` and `correctness --device sim-mps`: the real binary. Everything here is
//! simulated.

use std::process::Output;

use serde_json::Value;

use crate::binary::{finish, texts};
use crate::onelane;

fn json(output: &Output) -> Value {
    let (stdout, stderr) = texts(output);
    serde_json::from_str(stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"))
}

/// Few iterations: without optimisation the arithmetic is slow.
#[test]
fn the_hazards_are_as_expected_and_the_page_needs_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.html");
    let flag = format!("--html={}", path.display());
    let output = finish(onelane(["hazards", "--seeds=1", "--iterations=6", "--json", &flag]));
    assert_eq!(texts(&output).1, "", "a progress bar is for terminals only");
    let report = json(&output);
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!((&report["simulated"], &report["as_expected"]), (&true.into(), &true.into()));
    assert_eq!(report["profile"], "fork-2.9.1");

    let cells = report["table"].as_array().unwrap();
    assert_eq!(cells.len(), 6 * 9);
    for cell in cells {
        assert_eq!(cell["passed"].as_array().unwrap().len(), 1);
        if cell["column"] == "queue, 1 worker" {
            assert_eq!(cell["lowest"], 6, "{cell}");
        }
    }
    let block = cells.iter().find(|c| c["row"] == "TransformerBlock" && c["column"] == "threads");
    assert!(block.unwrap()["lowest"].as_u64().unwrap() < 6);
    let corrupts: Vec<bool> = report["counterexamples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|directed| directed["corrupts"].as_bool().unwrap())
        .collect();
    assert_eq!(corrupts, [true, false, false, false]);
    for number in ["H2", "H3", "H13", "H14", "H15"] {
        let mut found = report["findings"].as_array().unwrap().iter();
        assert!(found.any(|finding| finding["number"] == number && finding["cure"] == true));
    }

    let page = std::fs::read_to_string(&path).unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    assert!(page.starts_with("<!doctype html>\n<html lang=\"en\">"));
    for outside in ["http:", "https:", "<script", "<img", "<link", "@import", "url("] {
        assert!(!page.contains(outside), "the page has {outside}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("free; T1's copy has not read it yet"));
    assert!(page.contains("T1's copy reads T2's projection"));
    assert!(page.matches("simulated").count() > 5);
    balanced(&page);
}

/// Every element of the page that is opened is closed, in order.
fn balanced(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in page.split('<').skip(1) {
        let name = tag.split([' ', '>', '\n']).next().unwrap();
        match name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if name == "!doctype" || name == "meta" => {}
            None => open.push(name),
        }
    }
    assert_eq!(open, [""; 0]);
}

#[test]
fn a_page_that_cannot_be_written_stops_before_the_run() {
    let output = finish(onelane(["hazards", "--html=/no/such/dir/report.html"]));
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), stdout), (Some(2), ""));
    assert!(stderr.starts_with("error: cannot write /no/such/dir/report.html"), "{stderr}");
}

const RACE: [&str; 3] = ["race", "--iterations=4", "--json"];

fn race(more: &[&str]) -> (Option<i32>, Value) {
    let output = finish(onelane(RACE.iter().chain(more)));
    (output.status.code(), json(&output))
}

#[test]
fn the_race_reproduces_with_contiguous_and_not_without_nor_through_a_queue() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.json");
    let (code, found) = race(&[&format!("--trace={}", path.display())]);
    assert_eq!((code, &found["reproduced"]), (Some(1), &true.into()), "{found:#}");
    assert_eq!(found["device_kind"], "simulated");
    assert_eq!(found["device"], "sim-mps:fork-2.9.1");
    assert!(found["passed_iterations"].as_u64().unwrap() < 4, "{found:#}");
    let steps = found["counterexample"]["steps"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["note"] == "T1's copy reads T2's numbers"));
    let trace: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|event| event["cat"] == "stale read"));

    for more in [
        &["--without-contiguous"][..],
        &["--use-batching"],
        &["--device=sim-mps:upstream-2.15"],
        &["--device=cpu", "--iterations=2"],
    ] {
        let more: Vec<&str> = more.to_vec();
        let base = if more.len() > 1 { &["race", "--json"][..] } else { &RACE };
        let output = finish(onelane(base.iter().chain(&more)));
        let found = json(&output);
        let code = output.status.code();
        assert_eq!((code, &found["reproduced"]), (Some(0), &false.into()), "{more:?}: {found:#}");
        assert_eq!(found["passed_iterations"], found["iterations"]);
    }
}

#[test]
fn the_counterexample_is_told_step_by_step() {
    let output = finish(onelane(["race", "--iterations=1", "--threads=2"]));
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), stderr), (Some(1), ""));
    assert!(stdout.starts_with("device sim-mps:fork-2.9.1 (SIMULATED), seed 0: 2 threads"));
    let story = ["its reader is still pending", "T1's block, given to T2", "STALE READ by copy"];
    let places = story.map(|words| stdout.find(words));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{stdout}");
    assert!(stdout.ends_with("\nREPRODUCED (simulated)\n"), "{stdout}");
}

#[test]
fn correctness_runs_in_all_modes_on_the_simulated_device() {
    let base = ["correctness", "--device=sim-mps", "--iterations=3", "--seed=3"];
    let run = |more: &[&str]| finish(onelane(base.iter().chain(more)));
    for (more, mode) in [
        (&["--tests=Linear,bmm"][..], "single"),
        (&["--tests=Linear,bmm", "--parallel"], "parallel"),
        (&["--tests=Linear,TransformerBlock", "--parallel", "--use-batching"], "batched"),
    ] {
        let output = run(&[more, &["--json"]].concat());
        let report = json(&output);
        assert_eq!(output.status.code(), Some(0), "{report:#}");
        assert_eq!(report["mode"], mode);
        assert_eq!(report["device"], "sim-mps:fork-2.9.1");
        assert_eq!((&report["device_kind"], &report["seed"]), (&"simulated".into(), &3.into()));
        assert_eq!((&report["passed"], &report["total"]), (&2.into(), &2.into()));
    }
    // The same seed fails the same way, and says so; hardware would not.
    let failing = ["--tests=TransformerBlock", "--parallel", "--json"];
    let outcome = || {
        let output = run(&failing);
        assert_eq!(output.status.code(), Some(1));
        let mut report = json(&output);
        report["results"][0]["seconds"].take();
        report
    };
    assert_eq!(outcome(), outcome());
}

#[test]
fn a_seed_is_for_simulated_devices() {
    for command in ["correctness", "race"] {
        let output = finish(onelane([command, "--device=cpu", "--seed=1"]));
        let (stdout, stderr) = texts(&output);
        assert_eq!((output.status.code(), stdout), (Some(2), ""));
        assert!(stderr.contains("--seed") && stderr.contains("cpu is a real one"), "{stderr}");
    }
}

#[test]
fn the_simulated_devices_are_listed() {
    let output = finish(onelane(["devices", "--json"]));
    let list = json(&output);
    let fork = list.as_array().unwrap().iter().find(|row| row["name"] == "sim-mps:fork-2.9.1");
    let fork = fork.unwrap();
    assert_eq!((&fork["usable"], &fork["simulated"]), (&true.into(), &true.into()));
    assert!(fork["detail"].as_str().unwrap().starts_with("simulated: "));
    let output = finish(onelane(["devices"]));
    assert_eq!(texts(&output).0.matches("simulated: ").count(), 6);
}
