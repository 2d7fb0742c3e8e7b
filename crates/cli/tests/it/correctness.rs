//! `onelane correctness`, the real binary on the CPU.

use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::binary::{ended, finish, texts};
use crate::onelane;

const BATCHED: [&str; 9] = [
    "correctness",
    "--parallel",
    "--use-batching",
    "--workers=1",
    "--threads=2,3",
    "--iterations=2",
    "--tests=Linear,bmm",
    "--device=cpu",
    "--stall-after-s=100",
];

fn command(args: &[&[&str]]) -> Command {
    onelane(args.concat())
}

#[test]
fn a_batched_run_reports_every_test_and_count() {
    let output = finish(command(&[&BATCHED, &["--json"]]));
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "", "a progress bar is for terminals only");
    let report: Value = serde_json::from_str(stdout).unwrap();
    let fields =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let mut expected = vec![
        "device",
        "device_kind",
        "failed",
        "iterations",
        "mode",
        "passed",
        "results",
        "threads",
        "total",
        "workers",
    ];
    let mut found = fields(&report);
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(report["device"], "cpu");
    assert_eq!(report["device_kind"], "real");
    assert_eq!(report["mode"], "batched");
    assert_eq!(report["threads"], serde_json::json!([2, 3]));
    assert_eq!(report["workers"], 1);
    assert_eq!(report["iterations"], 2);
    assert_eq!(
        (&report["total"], &report["passed"], &report["failed"]),
        (&4.into(), &4.into(), &0.into())
    );
    let results = report["results"].as_array().unwrap();
    let runs: Vec<_> = results
        .iter()
        .map(|result| (result["name"].as_str().unwrap(), result["threads"].as_u64().unwrap()))
        .collect();
    assert_eq!(runs, [("Linear", 2), ("BMM", 2), ("Linear", 3), ("BMM", 3)]);
    expected = vec![
        "batches",
        "errors",
        "max_diff",
        "name",
        "passed",
        "seconds",
        "thread_diff",
        "threads",
        "tolerance",
    ];
    for result in results {
        let mut found = fields(result);
        found.sort();
        assert_eq!(found, expected);
        assert_eq!(result["passed"], true);
        assert_eq!(result["errors"], serde_json::json!([]));
        assert!(result["max_diff"].as_f64().unwrap() <= 1e-5);
        let batches = &result["batches"];
        let requests = batches["count"].as_f64().unwrap() * batches["mean_size"].as_f64().unwrap();
        assert_eq!(requests.round() as u64, result["threads"].as_u64().unwrap() * 2);
    }
}

#[test]
fn the_last_line_is_the_score() {
    let output = finish(command(&[&BATCHED]));
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let lines: Vec<_> = stdout.lines().collect();
    let score = ["2 threads: 2/2", "3 threads: 2/2", "all: 4/4"];
    assert_eq!(lines[lines.len() - 3..], score, "{stdout}");
    assert_eq!(stdout.matches(" PASS ").count(), 4);

    let one = ["correctness", "--parallel", "--threads=2", "--iterations=1", "--tests=Linear"];
    let output = finish(onelane(one));
    assert!(texts(&output).0.ends_with("\n2 threads: 1/1\n"));

    let single = ["correctness", "--iterations=1", "--tests=Linear"];
    let output = finish(onelane(single));
    assert!(texts(&output).0.ends_with("\n1 thread: 1/1\n"));
}

#[test]
fn the_report_is_written_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("report.json");
    let flag = format!("--output={}", path.display());
    let output = finish(command(&[&BATCHED, &[&flag]]));
    assert_eq!(output.status.code(), Some(0));
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(report["passed"], 4);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    assert!(texts(&output).0.contains("all: 4/4"), "the table is printed too");
}

#[test]
fn an_output_that_cannot_be_written_stops_before_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("missing").join("report.json");
    let flag = format!("--output={}", path.display());
    let output = finish(command(&[&BATCHED, &[&flag]]));
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout, "");
    assert!(stderr.starts_with("error: cannot write "), "{stderr}");
    assert!(stderr.contains("there is no directory"), "{stderr}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for json in [None, Some("--json")] {
        let args = BATCHED.iter().copied().chain(json);
        let mut command = onelane(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let (status, stderr) = ended(command, |command| {
            let mut child = command.spawn().unwrap();
            drop(child.stdout.take());
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            (child.wait().unwrap(), stderr)
        });
        assert_eq!(stderr, "");
        assert_eq!(status.code(), Some(0));
    }
}

/// A run that cannot have its threads fails its tests; that is exit 1, not a crash.
#[cfg(target_os = "linux")]
#[test]
fn a_failed_test_is_exit_code_1() {
    let mut command = Command::new("sh");
    let script = "ulimit -v 6000000; exec \"$0\" correctness --parallel --threads 4096 \
                  --iterations 1 --tests Linear";
    command.args(["-c", script, env!("CARGO_BIN_EXE_onelane")]);
    let output = finish(command);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stdout.contains(" FAIL "), "{stdout}");
    assert!(stdout.contains("could not be started"), "{stdout}");
    assert!(stdout.ends_with("4096 threads: 0/1\n"), "{stdout}");
}
