//! `onelane-bench load`: small runs.

use serde_json::Value;

use crate::binary::texts;
use crate::onelane_bench;

/// Runs `onelane-bench load` with these arguments; gives the exit code, stdout and stderr.
fn load(args: &str) -> (i32, String, String) {
    let output = onelane_bench(&format!("load {args}"));
    let (stdout, stderr) = texts(&output);
    (output.status.code().unwrap(), stdout.to_owned(), stderr.to_owned())
}

fn json(args: &str) -> Value {
    let (code, stdout, stderr) = load(&format!("{args} --json"));
    assert_eq!((code, stderr.as_str()), (0, ""), "{args}: {stdout}");
    serde_json::from_str(&stdout).unwrap()
}

fn number(cell: &Value, name: &str) -> f64 {
    cell[name].as_f64().unwrap_or_else(|| panic!("no number {name}: {cell}"))
}

#[test]
fn every_request_of_a_closed_loop_is_counted_once() {
    let report = json("--threads 1,5 --tasks 20 --requests 300 --rounds 2 --max-batch-size 4");
    let cells = report["closed"].as_array().unwrap();
    // Five strategies with threads, twice; with tasks those that do not block.
    assert_eq!(cells.len(), 5 + 5 + 3, "{report}");
    assert_eq!(report["notes"].as_array().unwrap().len(), 2, "{report}");
    for cell in cells {
        let counted = ["requests", "computed", "batches"].map(|name| cell[name].as_u64().unwrap());
        let [requests, computed, batches] = counted;
        assert_eq!([&cell["wrong"], &cell["failed"]], [0, 0], "{cell}");
        let mean = number(cell, "mean_batch");
        assert!((computed as f64 / batches as f64 - mean).abs() < 1e-9, "{cell}");
        assert!(mean <= 4.0, "{cell}");
        if cell["strategy"] == "offline" {
            assert_eq!(requests, batches, "its latencies are those of batches: {cell}");
            assert_eq!(cell["ratio_to_offline"], 1.0, "{cell}");
            continue;
        }
        assert_eq!([requests, computed], [600, 600], "{cell}");
        if cell["strategy"] != "queue" {
            assert_eq!(mean, 1.0, "{cell}");
        }
        let ascending = ["p50_us", "p99_us", "p999_us", "max_us"].map(|name| number(cell, name));
        assert!(ascending.is_sorted() && ascending[0] > 0.0, "{cell}");
        assert!(number(cell, "ratio_to_offline") > 0.0, "{cell}");
        assert!(number(cell, "requests_per_second") > 0.0, "{cell}");
    }
}

#[test]
fn the_threads_of_tasks_are_told() {
    let tasks = "--tasks 20 --requests 100 --rounds 1 --strategy queue";
    for (flag, threads) in [("--task-threads 3", Some(3)), ("", None)] {
        let report = json(&format!("{tasks} {flag}"));
        let cores = report["cores"].as_u64();
        assert_eq!(report["task_threads"].as_u64(), threads.or(cores), "{report}");
        assert_eq!(report["closed"][0]["requests"], 100, "{report}");
    }
    let (_, stdout, _) = load(&format!("{tasks} --task-threads 3"));
    assert!(stdout.contains(", tasks on 3 threads"), "{stdout}");
    let (code, _, stderr) = load("--threads 2 --task-threads 3");
    assert_eq!((code, stderr.contains("--task-threads is for --tasks")), (2, true), "{stderr}");
}

#[test]
fn every_arrival_under_open_load_ends_somehow() {
    let report = json("--rate 2000 --load 0.01 --seconds 0.2 --rounds 2 --open-threads 4");
    assert!(report["closed"].as_array().unwrap().is_empty(), "{report}");
    assert!(number(&report, "capacity_per_second") > 0.0);
    let cells = report["open"].as_array().unwrap();
    assert_eq!(cells.len(), 2 * 4, "offline has no clients: {report}");
    for cell in cells {
        let [offered, refused, not_begun, computed, requests] =
            ["offered", "refused", "not_begun", "computed", "requests"]
                .map(|name| cell[name].as_u64().unwrap());
        assert!(offered > 0, "{cell}");
        assert_eq!(offered, refused + not_begun + computed, "{cell}");
        assert_eq!(requests, offered - refused, "what was not begun has its age: {cell}");
    }
    // The same arrivals for every strategy.
    let of_rate = cells.iter().filter(|cell| cell["rate"] == 2000.0);
    let offered: Vec<_> = of_rate.map(|cell| cell["offered"].as_u64().unwrap()).collect();
    assert!(offered.windows(2).all(|pair| pair[0] == pair[1]), "{offered:?}");
}

#[test]
fn a_page_and_a_trace_are_written_whole() {
    let place = tempfile::tempdir().unwrap();
    let (page, trace) = (place.path().join("page.html"), place.path().join("trace.json"));
    let files = format!("--html {} --trace {}", page.display(), trace.display());
    let (code, stdout, stderr) =
        load(&format!("--threads 3 --requests 60 --rounds 2 --strategy lock,queue {files}"));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert_eq!(stdout.matches("| 3 threads | ").count(), 2, "{stdout}");
    let page = std::fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 2, "throughput and p99");
    let trace: Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let with = |process: &Value, name: &str| {
        let of = events.iter().filter(|e| e["pid"] == *process && e["name"] == name);
        of.collect::<Vec<_>>()
    };
    for named in events.iter().filter(|event| event["name"] == "process_name") {
        let process = &named["pid"];
        // Of the first round: a beginning and an end of each request, and its batch's number.
        let requests = with(process, "request");
        assert_eq!(requests.len(), 2 * 60, "{named}");
        let batches = with(process, "batch");
        let sizes: u64 = batches.iter().map(|e| e["args"]["size"].as_u64().unwrap()).sum();
        // Three more before the time is taken.
        assert_eq!(sizes, 60 + 3, "{named}");
        assert_eq!(batches.len(), with(process, "engine").len());
        for request in requests {
            let number = &request["args"]["batch"];
            assert!(batches.iter().any(|e| e["args"]["batch"] == *number), "{request}");
        }
    }
}

#[test]
fn the_mlp_gives_the_same_numbers_through_every_strategy() {
    for device in ["cpu", "sim-mps:upstream-2.15"] {
        let strategies = "direct,lock,queue-1,queue,offline";
        let report = json(&format!(
            "--engine mlp --device {device} --threads 4 --requests 40 --rounds 1 \
             --max-batch-size 8 --strategy {strategies}"
        ));
        assert_eq!(report["simulated"], device != "cpu");
        for cell in report["closed"].as_array().unwrap() {
            assert_eq!([&cell["wrong"], &cell["failed"]], [0, 0], "{cell}");
        }
    }
    let (_, stdout, _) =
        load("--engine mlp --device sim-mps:upstream-2.15 --threads 1 --requests 4 --rounds 1");
    assert!(stdout.contains("SIMULATED"), "{stdout}");
}

#[test]
fn the_priority_scenario_counts_both_kinds() {
    // Whether it holds depends on the machine; what it says has to fit together.
    let (code, stdout, stderr) = load(
        "--scenario priority --max-batch-size 8 --batch-time-ms 1 --rate 200 --seconds 0.3 \
         --rounds 1 --json",
    );
    let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
    let holds = number(&report, "interactive_p99_us") <= number(&report, "bound_us")
        && number(&report, "bulk_kept") >= 0.95;
    assert_eq!((report["ok"].as_bool(), code), (Some(holds), i32::from(!holds)), "{report}");
    assert!((20..=120).contains(&report["interactive_requests"].as_u64().unwrap()), "{report}");
    // A batch sleeps for 1 ms and holds 8 requests.
    let service = number(&report, "service_mean_us");
    assert!(service >= 1000.0 && number(&report, "service_p99_us") >= 1000.0, "{report}");
    assert!(number(&report, "bulk_alone_per_second") <= 8000.0, "{report}");
    let in_batches = number(&report, "interactive_p99_in_batches");
    assert!((in_batches * service / number(&report, "interactive_p99_us") - 1.0).abs() < 1e-6);
}
