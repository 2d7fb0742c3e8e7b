//! The HTML page: tables and plots in one file that needs no other.

use std::fmt::Write as _;

use anyhow::anyhow;
use comfy_table::Table;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::{Closed, Loaded, Report};
use super::strategy::Strategy;

/// A curve: its name, its colour and its points.
type Line = (&'static str, RGBColor, Vec<(f64, f64)>);

const COLORS: [RGBColor; 5] = [
    RGBColor(150, 150, 150),
    RGBColor(200, 80, 0),
    RGBColor(120, 90, 160),
    RGBColor(0, 110, 180),
    RGBColor(40, 40, 40),
];

/// The whole page.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn html(report: &Report) -> anyhow::Result<String> {
    let mut body = format!("<p>{}</p>\n", escaped(&report.headline()));
    for kind in ["threads", "tasks"] {
        let cells: Vec<&Closed> =
            report.closed.iter().filter(|cell| cell.clients_are == kind).collect();
        let by_clients = |value: fn(&Closed) -> f64| {
            lines(&cells, |cell| (cell.strategy, cell.clients as f64, value(cell)))
        };
        if cells.is_empty() {
            continue;
        }
        let _ = writeln!(body, "<h2>Closed loop, {kind}</h2>");
        body += &plot(
            "Throughput",
            kind,
            "requests per second",
            by_clients(|cell| cell.figures.requests_per_second),
        )?;
        body += &plot("p99", kind, "ms", by_clients(|cell| cell.figures.p99_us / 1e3))?;
    }
    if let Some(table) = report.closed_table() {
        body += &table_html(&table);
    }
    if let Some(table) = report.open_table() {
        let cells: Vec<&Loaded> = report.open.iter().collect();
        let by_load = |value: fn(&Loaded) -> f64| {
            lines(&cells, |cell| (cell.strategy, cell.load.unwrap_or(cell.rate), value(cell)))
        };
        let axis = match report.open.iter().all(|cell| cell.load.is_some()) {
            true => "offered load / capacity of the batch queue",
            false => "offered requests per second",
        };
        body += "<h2>Open load</h2>\n<p>Latency from when a request was meant to arrive.</p>\n";
        body += &plot("p50", axis, "ms", by_load(|cell| cell.figures.p50_us / 1e3))?;
        body += &plot("p99", axis, "ms", by_load(|cell| cell.figures.p99_us / 1e3))?;
        body += &table_html(&table);
    }
    for line in report.notes.iter().chain(&report.faults()) {
        let _ = writeln!(body, "<p>{}</p>", escaped(line));
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <title>onelane-bench load</title>\n<style>\n\
         body {{ font-family: sans-serif; max-width: 64em; margin: 2em auto; padding: 0 1em; }}\n\
         table {{ border-collapse: collapse; margin: 1em 0; }}\n\
         td, th {{ padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }}\n\
         </style>\n</head>\n<body>\n<h1>onelane-bench load</h1>\n{body}</body>\n</html>\n"
    ))
}

/// The points of each strategy, in the order of tables.
fn lines<C>(cells: &[&C], point: impl Fn(&C) -> (&'static str, f64, f64)) -> Vec<Line> {
    let all = Strategy::ALL.into_iter().zip(COLORS);
    all.map(|(strategy, color)| {
        let of_strategy = cells.iter().map(|cell| point(cell)).filter(|p| p.0 == strategy.name());
        (strategy.name(), color, of_strategy.map(|(_, x, y)| (x, y)).collect::<Vec<_>>())
    })
    .filter(|(_, _, points)| !points.is_empty())
    .collect()
}

/// One plot as SVG, both axes logarithmic where the values span much.
fn plot(caption: &str, x: &str, y: &str, lines: Vec<Line>) -> anyhow::Result<String> {
    let mut svg = String::new();
    let drawn = {
        let root = SVGBackend::with_string(&mut svg, (760, 340)).into_drawing_area();
        draw(&root, [caption, x, y], lines)
    };
    // The error type borrows from the backend; its text is what a person needs.
    drawn.map_err(|error| anyhow!("cannot draw the plot of {caption}: {error}"))?;
    Ok(svg + "\n")
}

fn draw(
    root: &DrawingArea<SVGBackend<'_>, Shift>,
    [caption, x, y]: [&str; 3],
    lines: Vec<Line>,
) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    let points = || lines.iter().flat_map(|line| line.2.iter().copied());
    let span = |values: &mut dyn Iterator<Item = f64>| {
        let (least, most) = values
            .filter(|v| *v > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(l, m), v| (l.min(v), m.max(v)));
        if least > most { (0.5, 2.0) } else { (least / 1.3, most * 1.3) }
    };
    let (left, right) = span(&mut points().map(|p| p.0));
    let (bottom, top) = span(&mut points().map(|p| p.1));
    let mut chart = ChartBuilder::on(root)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(72)
        .build_cartesian_2d((left..right).log_scale(), (bottom..top).log_scale())?;
    chart.configure_mesh().x_desc(x).y_desc(y).draw()?;
    for (name, color, line) in lines {
        // What is not above zero has no place on a logarithmic axis.
        let line: Vec<_> = line.into_iter().filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
        chart
            .draw_series(LineSeries::new(line.clone(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        chart.draw_series(line.into_iter().map(|at| Circle::new(at, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

fn table_html(table: &Table) -> String {
    let mut html = String::from("<table>\n");
    let mut row = |cells: Vec<String>, tag: &str| {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
        let _ = writeln!(html, "<tr>{}</tr>", cells.collect::<String>());
    };
    if let Some(head) = table.header() {
        row(head.cell_iter().map(|cell| cell.content()).collect(), "th");
    }
    for line in table.row_iter() {
        row(line.cell_iter().map(|cell| cell.content()).collect(), "td");
    }
    html + "</table>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::report::Figures;

    #[test]
    fn the_page_has_a_plot_for_each_kind_of_load_and_needs_no_other_file() {
        let figures = |rate| Figures {
            requests_per_second: rate,
            p99_us: 900.0,
            p50_us: 80.0,
            ..Figures::default()
        };
        let closed = |clients, strategy, rate| Closed {
            clients_are: "threads",
            clients,
            strategy,
            figures: figures(rate),
            ratio_to_offline: None,
            ratio_to_offline_at_mean_batch: None,
        };
        let mut report = Report {
            engine: "null".to_owned(),
            device: "a <device>".to_owned(),
            simulated: false,
            max_batch_size: 8,
            workers: 1,
            delivery: "auto".to_owned(),
            rounds: 1,
            cores: 2,
            task_threads: None,
            capacity_per_second: None,
            closed: vec![closed(1, "lock", 5.0), closed(8, "lock", 4.0), closed(1, "queue", 0.0)],
            open: Vec::new(),
            notes: vec!["left out".to_owned()],
            ok: true,
        };
        let page = html(&report).unwrap();
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(page.contains("a &lt;device&gt;") && page.contains("<p>left out</p>"));
        assert!(!page.contains("src=") && !page.contains("href="), "{page}");
        report.open = vec![Loaded::of(Some(0.5), 100.0, "queue", &[])];
        assert_eq!(html(&report).unwrap().matches("<svg").count(), 4);
    }
}
