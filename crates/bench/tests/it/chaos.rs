//! `onelane-bench chaos`: small runs.

use serde_json::Value;

use crate::binary::texts;
use crate::onelane_bench;

#[test]
fn every_request_is_accounted_for() {
    for more in ["", "--workers 2", "--tasks 0", "--threads 0 --tasks 7"] {
        let output = onelane_bench(&format!("chaos --seconds 1 --seed 3 --json {more}"));
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{more}: {stdout}{stderr}");
        let report: Value = serde_json::from_str(stdout).unwrap();
        let sum = |names: &[&str]| names.iter().map(|&n| report[n].as_u64().unwrap()).sum::<u64>();
        let refused = ["refused_full", "refused_closed", "refused_failed", "refused_heavy"];
        assert_eq!(sum(&["offered"]), sum(&["accepted"]) + sum(&refused), "{report}");
        let ends = ["completed", "errors", "cancelled", "expired", "closed"];
        assert_eq!(sum(&["accepted"]), sum(&ends), "{report}");
        assert!(sum(&["completed"]) > 0 && sum(&["lives"]) > 1, "{report}");
    }
}

#[test]
fn nobody_asks_without_clients() {
    let output = onelane_bench("chaos --threads 0 --tasks 0");
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--threads and --tasks are both 0"), "{stderr}");
}

/// Whether it holds depends on the machine; what it says has to fit together.
#[test]
fn the_overload_run_measures_each_load() {
    let place = tempfile::tempdir().unwrap();
    let (csv, svg) = (place.path().join("points.csv"), place.path().join("points.svg"));
    let files = format!("--csv {} --svg {}", csv.display(), svg.display());
    let output = onelane_bench(&format!("chaos --overload --seconds 5 --json {files}"));
    let (stdout, stderr) = texts(&output);
    let report: Value = serde_json::from_str(stdout).unwrap_or_else(|_| panic!("{stderr}"));
    let ok = report["ok"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!ok)), "{report}");
    let points = report["points"].as_array().unwrap();
    assert_eq!(points.len(), 9);
    for point in points {
        let of = |name: &str| point[name].as_f64().unwrap();
        assert!(of("waiting_max") <= 256.0, "{point}");
        assert!(of("p50_ms") >= 1.9 && of("p50_ms") <= of("p99_ms"), "a batch takes 2 ms: {point}");
        let answered = of("goodput_per_second") + of("refused_per_second");
        assert!(answered <= 1.01 * of("offered_per_second"), "{point}");
        assert!(of("goodput_per_second") <= 8000.0, "16 in 2 ms: {point}");
    }
    let last = &points[8];
    assert!(last["refused_per_second"].as_f64().unwrap() > 0.0, "{last}");
    assert_eq!(std::fs::read_to_string(csv).unwrap().lines().count(), 10);
    assert!(std::fs::read_to_string(svg).unwrap().contains("Offered load against goodput"));
}
