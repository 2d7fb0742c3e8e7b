//! The report of a run of the suite as text for people.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use onelane_suite::{DeviceKind, Mode, Report, TestResult};

/// The whole report: what was run, a table, the errors, and the score as the last line.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    line(headline(report));
    line(table(report));
    for result in report.results.iter().filter(|result| !result.passed) {
        line(format!("FAIL {} ({}){}", result.name, threads(result.threads), mark(report)));
        for error in &result.errors {
            line(format!("     {error}"));
        }
    }
    for &count in &report.threads {
        let (passed, total) = report.score(count);
        line(format!("{}: {passed}/{total}{}", threads(count), mark(report)));
    }
    if report.threads.len() > 1 {
        line(format!("all: {}/{}{}", report.passed, report.total, mark(report)));
    }
    text
}

/// What follows a score that is no hardware's.
fn mark(report: &Report) -> &'static str {
    match report.device_kind {
        DeviceKind::Real => "",
        DeviceKind::Simulated => " (simulated)",
    }
}

fn headline(report: &Report) -> String {
    let mut text = match report.device_kind {
        DeviceKind::Real => format!("device {}", report.device),
        DeviceKind::Simulated => format!("device {} (SIMULATED)", report.device),
    };
    let mode = match report.mode {
        Mode::Single => "one thread, against the reference on the CPU",
        Mode::Parallel => "threads call the device, against the same device run sequentially",
        Mode::Batched => {
            "threads submit to a batch queue, against the same device run sequentially"
        }
    };
    let _ = write!(text, ": {mode}");
    if let Some(workers) = report.workers {
        let plural = if workers == 1 { "" } else { "s" };
        let _ = write!(text, ", {workers} worker{plural}");
    }
    let plural = if report.iterations == 1 { "" } else { "s" };
    let _ = write!(text, ", {} iteration{plural}", report.iterations);
    if let Some(seed) = report.seed {
        let _ = write!(text, ", seed {seed}");
    }
    text
}

fn table(report: &Report) -> String {
    let mut head = vec!["test", "threads", "result", "max diff", "rtol = atol"];
    if report.mode != Mode::Single {
        head.push("between threads");
    }
    if report.mode == Mode::Batched {
        head.push("mean batch");
    }
    head.push("time");
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(&head);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for result in &report.results {
        table.add_row(row(report.mode, result));
    }
    table.to_string()
}

fn row(mode: Mode, result: &TestResult) -> Vec<String> {
    let mut row = vec![
        result.name.clone(),
        result.threads.to_string(),
        if result.passed { "PASS" } else { "FAIL" }.to_owned(),
        diff(result.max_diff),
        format!("{:.0e}", result.tolerance),
    ];
    if mode != Mode::Single {
        row.push(diff(result.thread_diff));
    }
    if mode == Mode::Batched {
        let mean = result.batches.map(|batches| batches.mean_size);
        row.push(mean.map_or_else(|| "-".to_owned(), |mean| format!("{mean:.1}")));
    }
    row.push(format!("{:.2} s", result.seconds));
    row
}

/// A difference; exactly equal is `0`, and nothing to compare is `-`.
fn diff(diff: Option<f64>) -> String {
    match diff {
        None => "-".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(diff) => format!("{diff:.1e}"),
    }
}

fn threads(count: usize) -> String {
    match count {
        1 => "1 thread".to_owned(),
        n => format!("{n} threads"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kind: &str) -> Report {
        let result = |threads: usize, passed: bool| {
            serde_json::json!({
                "name": "Linear", "threads": threads, "passed": passed,
                "max_diff": if passed { Some(0.0) } else { None }, "thread_diff": 2.4e-7,
                "tolerance": 1e-5, "seconds": 0.25,
                "batches": {"count": 4, "mean_size": 2.5},
                "errors": if passed { vec![] } else { vec!["thread 1, iteration 0: not finite"] },
            })
        };
        serde_json::from_value(serde_json::json!({
            "device": "mps", "device_kind": kind, "mode": "batched", "threads": [2, 16], "workers": 1,
            "iterations": 10, "total": 2, "passed": 1, "failed": 1,
            "results": [result(2, true), result(16, false)],
        }))
        .unwrap()
    }

    #[test]
    fn failures_have_their_errors_and_every_count_its_score() {
        let text = text(&report("real"));
        let lines: Vec<_> = text.lines().collect();
        assert!(text.contains("| Linear |      16 |   FAIL |        - |"), "{text}");
        assert!(lines.contains(&"FAIL Linear (16 threads)"), "{text}");
        assert!(lines.contains(&"     thread 1, iteration 0: not finite"), "{text}");
        let score = ["2 threads: 1/1", "16 threads: 0/1", "all: 1/2"];
        assert_eq!(lines[lines.len() - 3..], score);
    }

    #[test]
    fn a_simulated_result_says_so() {
        let simulated = text(&report("simulated"));
        assert!(simulated.starts_with("device mps (SIMULATED): "));
        assert!(simulated.ends_with("\n16 threads: 0/1 (simulated)\nall: 1/2 (simulated)\n"));
        assert!(!text(&report("real")).to_lowercase().contains("simulated"));
    }
}
