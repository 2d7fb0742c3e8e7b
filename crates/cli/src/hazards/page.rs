//! The hazards as one HTML page that needs nothing else: no script, no font, no image from elsewhere.
//!
//! What colour tells is told by text, too.

use std::fmt::Write;

use onelane_sim::scenario::{Expectation, Finding};

use super::report::{CellReport, Report};
use super::timeline::{Segment, Timeline};

const STYLE: &str = include_str!("page.css");

/// Column heads of the table.
const HEADS: [&str; 9] = [
    "threads directly",
    "patch 035",
    "queue, 1 worker",
    "queue, 2 workers",
    "queue, 3 workers",
    "one lock",
    "allocator per_stream",
    "allocator retain",
    "one stream",
];

/// The whole page.
pub fn page(report: &Report) -> String {
    let mut page = String::new();
    let title = "One GPU runtime, many threads: what goes wrong, and what cures it";
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} (simulated)</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<p class=\"badge\">simulated</p>\n<h1>{title}</h1>\n\
         <p class=\"lead\">Every result on this page comes from a model of the runtime under PyTorch's \
         <code>mps</code> device. Nothing was run on a GPU. The model's rules, their sources and its \
         assumptions are in <code>docs/simulated-device.md</code>.</p>\n</header>\n"
    );
    table(&mut page, report);
    if let Some(timeline) = &report.timeline {
        order_of_steps(&mut page, timeline, report);
    }
    findings(&mut page, &report.findings);
    let _ = write!(
        page,
        "<footer>\n<p>{}</p>\n<p><code>onelane hazards --profile {} --seeds {} --iterations {}</code>, \
         onelane {}. A seed gives the same order of steps every time.</p>\n</footer>\n\
         </main>\n</body>\n</html>\n",
        match report.unexpected() {
            0 => "Everything is as the profile's rules must give it (simulated).".to_owned(),
            n => format!(
                "<strong class=\"bad\">{n} results are not as the profile's rules must give them \
                 (simulated).</strong>"
            ),
        },
        escaped(&report.profile),
        report.seeds,
        report.iterations,
        env!("CARGO_PKG_VERSION"),
    );
    page
}

fn table(page: &mut String, report: &Report) {
    let _ = write!(
        page,
        "<section aria-labelledby=\"table\">\n<h2 id=\"table\">Who gets right numbers</h2>\n\
         <p>Profile <code>{}</code>, simulated. {} threads compute the same thing at once, {} times, \
         with {} seed{}; a seed is an order in which the threads run. A cell counts the iterations in \
         which every thread's result was within {:.0e} of the serial one, from the lowest to the highest \
         seed.</p>\n<div class=\"scroll\" role=\"region\" aria-labelledby=\"table\" tabindex=\"0\">\n\
         <table class=\"grid\">\n<thead>\n<tr><td></td>",
        escaped(&report.profile),
        report.threads,
        report.iterations,
        report.seeds,
        if report.seeds == 1 { "" } else { "s" },
        report.tolerance,
    );
    for head in HEADS {
        let _ = write!(page, "<th scope=\"col\">{head}</th>");
    }
    page.push_str("</tr>\n</thead>\n<tbody>\n");
    for (row, cells) in report.rows() {
        let _ = write!(page, "<tr><th scope=\"row\">{row}</th>");
        for each in cells {
            cell(page, each, report.iterations);
        }
        page.push_str("</tr>\n");
    }
    page.push_str(
        "</tbody>\n</table>\n</div>\n<ul class=\"legend\">\n\
         <li><span class=\"chip pass\">✓</span> every iteration right with every seed</li>\n\
         <li><span class=\"chip fail\">✗</span> wrong numbers in some</li>\n\
         <li><span class=\"chip end\">■</span> the simulated process was aborted or hung</li>\n</ul>\n",
    );
    let mut ended = report.table.iter().filter(|cell| cell.ended_by.is_some()).peekable();
    if ended.peek().is_some() {
        page.push_str("<details>\n<summary>Why processes ended</summary>\n<ul>\n");
        for cell in ended {
            let _ = writeln!(
                page,
                "<li>{}, {}: {} of {} seeds: {}</li>",
                cell.row,
                cell.column,
                cell.ended_early,
                report.seeds,
                escaped(cell.ended_by.as_deref().unwrap_or_default())
            );
        }
        page.push_str("</ul>\n</details>\n");
    }
    page.push_str("</section>\n");
}

fn cell(page: &mut String, cell: &CellReport, iterations: usize) {
    let (class, sign, words) = match (cell.passes(iterations), cell.ended_early) {
        (true, _) => ("pass", "✓", "passes"),
        (false, 0) => ("fail", "✗", "fails for some"),
        (false, _) => ("end", "■", "aborted or hung"),
    };
    let range = cell.range().replace("..", "–");
    let mut title = format!("{words}; greatest difference {:.1e}", cell.max_diff);
    let mut mark = String::new();
    if !cell.as_expected {
        let must = match cell.expected {
            Expectation::AllPass => "must pass with every seed",
            Expectation::SomeFail => "must fail with some seed",
            _ => "anything may come",
        };
        let _ = write!(title, "; not as expected: {must}");
        mark =
            format!("<strong class=\"bad\">unexpected<span class=\"vh\">: {must}</span></strong>");
    }
    let _ = write!(
        page,
        "<td class=\"{class}\" title=\"{title}\"><span aria-hidden=\"true\">{sign}</span> {range}\
         <span class=\"vh\"> of {iterations}, {words}</span>{mark}</td>"
    );
}

fn order_of_steps(page: &mut String, timeline: &Timeline, report: &Report) {
    let _ = write!(
        page,
        "<section aria-labelledby=\"order\">\n<h2 id=\"order\">Two threads, one order of steps: wrong \
         numbers</h2>\n<p>The minimal race on <code>fork-2.9.1</code>, simulated; time runs down. A command \
         refers to its blocks of memory and does not own them, and it reads them when its command buffer is \
         committed. T1 frees block #{block} while its copy of it is pending; the allocator gives the block \
         to T2; T1's copy then reads T2's numbers. Drawn from the trace of the run.</p>\n\
         <div class=\"scroll\" role=\"region\" aria-labelledby=\"order\" tabindex=\"0\">\n\
         <table class=\"steps\">\n<thead><tr><th scope=\"col\">step</th><th scope=\"col\" class=\"t1\">thread \
         T1</th><th scope=\"col\">T1's command buffer</th><th scope=\"col\">block #{block}</th>\
         <th scope=\"col\">T2's command buffer</th><th scope=\"col\" class=\"t2\">thread T2</th></tr></thead>\n\
         <tbody>\n",
        block = timeline.block,
    );
    let mut lanes = timeline.lanes.each_ref().map(|lane| Lane { segments: lane, left: 0 });
    for row in &timeline.rows {
        let note = row
            .note
            .as_deref()
            .map_or_else(String::new, |note| format!("<small>{}</small>", escaped(note)));
        let own = format!(
            "<td class=\"act {}{}\">{}{note}</td>",
            if row.first { "t1" } else { "t2" },
            if row.note.is_some() { " key" } else { "" },
            escaped(&row.what),
        );
        let (first, second) = match row.first {
            true => (own.as_str(), "<td></td>"),
            false => ("<td></td>", own.as_str()),
        };
        let [one, block, two] = &mut lanes;
        let _ = write!(page, "<tr><th scope=\"row\">{}</th>{first}", row.step);
        one.next(page);
        block.next(page);
        two.next(page);
        let _ = writeln!(page, "{second}</tr>");
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
    let _ = write!(
        page,
        "<table class=\"plain\">\n<caption>The same order under other rules (simulated)</caption>\n\
         <thead><tr><th scope=\"col\">rules</th><th scope=\"col\">T1's result</th></tr></thead>\n<tbody>\n"
    );
    for directed in &report.counterexamples {
        let (class, sign) = if directed.corrupts { ("fail", "✗") } else { ("pass", "✓") };
        let mark =
            if directed.as_expected { "" } else { " <strong class=\"bad\">unexpected</strong>" };
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{}</th><td class=\"{class}\"><span aria-hidden=\"true\">{sign}</span> \
             {}{mark}</td></tr>",
            escaped(&directed.rules),
            escaped(&directed.outcome())
        );
    }
    page.push_str("</tbody>\n</table>\n</section>\n");
}

/// A lane while its rows are written.
struct Lane<'a> {
    segments: &'a [Segment],
    /// Rows that the cell written last still covers.
    left: usize,
}

impl Lane<'_> {
    /// Writes the cell that begins in the next row, if one does.
    fn next(&mut self, page: &mut String) {
        if self.left == 0
            && let Some((segment, rest)) = self.segments.split_first()
        {
            let _ = write!(
                page,
                "<td class=\"lane {}\" rowspan=\"{}\">{}</td>",
                segment.state.class(),
                segment.rows,
                escaped(&segment.text)
            );
            self.segments = rest;
            self.left = segment.rows;
        }
        self.left = self.left.saturating_sub(1);
    }
}

fn findings(page: &mut String, findings: &[Finding]) {
    page.push_str(
        "<section aria-labelledby=\"others\">\n<h2 id=\"others\">The other hazards, and what cures \
         each</h2>\n<p>Simulated, each under the profile that has it.</p>\n\
         <div class=\"scroll\" role=\"region\" aria-labelledby=\"others\" tabindex=\"0\">\n\
         <table class=\"plain wide\">\n<thead><tr><th scope=\"col\">way</th><th scope=\"col\">profile</th>\
         <th scope=\"col\">outcome</th></tr></thead>\n",
    );
    let mut before: Option<&Finding> = None;
    for finding in findings {
        if before
            .is_none_or(|before| before.hazard != finding.hazard || before.what != finding.what)
        {
            if before.is_some() {
                page.push_str("</tbody>\n");
            }
            let _ = writeln!(
                page,
                "<tbody>\n<tr class=\"head\"><th scope=\"rowgroup\" colspan=\"3\"><b>{}</b> {}: {}</th></tr>",
                finding.number,
                finding.hazard,
                escaped(&finding.what)
            );
        }
        let (class, sign) = if finding.cure { ("pass", "✓ cure: ") } else { ("", "") };
        let mark =
            if finding.as_expected { "" } else { " <strong class=\"bad\">unexpected</strong>" };
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\" class=\"{class}\">{sign}{}</th><td><code>{}</code></td><td>{}{mark}</td></tr>",
            escaped(&finding.way),
            escaped(&finding.profile),
            escaped(&finding.outcome)
        );
        before = Some(finding);
    }
    if before.is_some() {
        page.push_str("</tbody>\n");
    }
    page.push_str("</table>\n</div>\n</section>\n");
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
