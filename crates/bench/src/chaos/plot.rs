//! The overload picture as SVG: goodput and refusals above, latency of accepted requests below.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

use super::point::Point;

/// A curve: its name, its colour and its points.
type Line<'a> = (&'a str, RGBColor, Vec<(f64, f64)>);

/// Draws the points.
pub(super) fn draw(path: &Path, points: &[Point], capacity: f64) -> anyhow::Result<()> {
    // The error type borrows from the backend; its text is what a person needs.
    chart(path, points, capacity).map_err(|error| anyhow!("{}: {error}", path.display()))
}

fn chart(path: &Path, points: &[Point], capacity: f64) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, (760, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(340);
    let greatest = points.iter().map(|point| point.load).fold(1.0, f64::max) * 1.05;
    let series = |value: fn(&Point) -> f64| -> Vec<(f64, f64)> {
        points.iter().map(|point| (point.load, value(point))).collect()
    };

    let top = points.iter().map(|point| point.offered_per_second).fold(capacity, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&upper)
        .caption("Offered load against goodput", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..greatest, 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("offered load / capacity")
        .y_desc("requests per second")
        .draw()?;
    let lines: [Line<'_>; 3] = [
        ("offered", RGBColor(150, 150, 150), series(|p| p.offered_per_second)),
        ("goodput", RGBColor(0, 110, 180), series(|p| p.goodput_per_second)),
        ("refused", RGBColor(200, 80, 0), series(|p| p.refused_per_second)),
    ];
    for (name, color, line) in lines {
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

    let top = points.iter().map(|p| p.p99_ms.max(p.bound_ms)).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&lower)
        .caption("Latency of accepted requests", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..greatest, 0.0..top)?;
    chart.configure_mesh().x_desc("offered load / capacity").y_desc("ms").draw()?;
    let lines: [Line<'_>; 3] = [
        ("p99", RGBColor(0, 110, 180), series(|p| p.p99_ms)),
        ("p50", RGBColor(90, 160, 90), series(|p| p.p50_ms)),
        ("bound: a full queue of slow batches", RGBColor(200, 80, 0), series(|p| p.bound_ms)),
    ];
    for (name, color, line) in lines {
        chart
            .draw_series(LineSeries::new(line, color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}
