//! The hazards as text for a terminal. Every line that states a result stands under a heading that says
//! that it is simulated.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use onelane_sim::scenario::Finding;

use super::report::{CellReport, Report};

/// Column heads of the table, on two lines.
const HEADS: [&str; 9] = [
    "threads\ndirectly",
    "patch\n035",
    "queue\n1 worker",
    "queue\n2 workers",
    "queue\n3 workers",
    "one\nlock",
    "allocator\nper_stream",
    "allocator\nretain",
    "one\nstream",
];

/// The whole report.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    let plural = if report.seeds == 1 { "" } else { "s" };
    let _ = writeln!(
        text,
        "device sim-mps:{} (SIMULATED): {} threads, right iterations of {}, {} seed{plural}",
        report.profile, report.threads, report.iterations, report.seeds
    );
    let _ = writeln!(text, "{}", table(report));
    for ended_by in ends(report) {
        let _ = writeln!(text, "ended: {ended_by}");
    }
    text.push_str("\nH1  freed memory given away early: two threads, one order of steps (simulated; `onelane race` prints it)\n");
    for directed in &report.counterexamples {
        line(&mut text, (&directed.rules, &directed.outcome()), directed.as_expected);
    }
    findings(&mut text, &report.findings);
    let unexpected = report.unexpected();
    let _ = match unexpected {
        0 => writeln!(text, "\nall as the rules must give it (simulated)"),
        n => writeln!(text, "\nNOT AS EXPECTED: {n}, marked with ! (simulated)"),
    };
    text
}

/// Why simulated processes ended before their time, each reason once.
fn ends(report: &Report) -> Vec<&str> {
    let mut ends: Vec<&str> = Vec::new();
    for ended_by in report.table.iter().filter_map(|cell| cell.ended_by.as_deref()) {
        // Thread and step of the first one stand for the others.
        let reason =
            |text: &str| text.split(['(', ';']).next().map(|r| r.replace(char::is_numeric, ""));
        if !ends.iter().any(|known| reason(known) == reason(ended_by)) {
            ends.push(ended_by);
        }
    }
    ends
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(std::iter::once("").chain(HEADS));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (row, cells) in report.rows() {
        table.add_row(std::iter::once(row.to_string()).chain(cells.iter().map(cell)));
    }
    table.to_string()
}

fn cell(cell: &CellReport) -> String {
    let ended = if cell.ended_early > 0 { " ended" } else { "" };
    let mark = if cell.as_expected { "" } else { " !" };
    format!("{}{ended}{mark}", cell.range())
}

fn findings(text: &mut String, findings: &[Finding]) {
    let mut before: Option<&Finding> = None;
    for finding in findings {
        if before.is_none_or(|before| before.hazard != finding.hazard) {
            let _ = writeln!(text, "\n{}  {} (simulated)", finding.number, finding.hazard);
        }
        if before.is_none_or(|before| before.what != finding.what) {
            let _ = writeln!(text, "    {}", finding.what);
        }
        let cure = if finding.cure { "cure: " } else { "" };
        let way = format!("{cure}{}", finding.way);
        line(text, (&way, &finding.outcome), finding.as_expected);
        before = Some(finding);
    }
}

fn line(text: &mut String, (way, outcome): (&str, &str), as_expected: bool) {
    let mark = if as_expected { ' ' } else { '!' };
    let _ = writeln!(text, "  {mark}   {way:<46}  {outcome}");
}
