//! SVG plots: percentile curves, latency over time, throughput against latency, and plain lines.
//!
//! Each returns the text of an SVG file; [`save`] writes it.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;

use crate::error::Error;
use crate::knee::Point;
use crate::latencies::{Latencies, Series};

/// A line of a plot.
#[derive(Clone, Debug)]
pub struct Line {
    /// As the legend names it.
    pub label: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
    /// Drawn with dashes: a reference, a second quantile.
    pub dashed: bool,
}

/// An axis: what is on it, and how its numbers are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// With its unit.
    pub label: &'static str,
    /// How.
    pub scale: Scale,
}

/// How numbers are spread along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By powers of ten.
    Log,
    /// Numbers of nines, told as percentiles.
    Nines,
}

/// Percentile curves, by nines: how latency grows towards the worst.
pub fn percentiles(title: &str, curves: &[(&str, &Latencies)]) -> Result<String, Error> {
    let us = |curve: Vec<(f64, f64)>| curve.into_iter().map(|(x, ns)| (x, ns / 1e3)).collect();
    let lines: Vec<Line> = curves
        .iter()
        .map(|(label, latencies)| Line {
            label: (*label).to_owned(),
            points: us(latencies.curve()),
            dashed: false,
        })
        .collect();
    let x = Axis { label: "percentile", scale: Scale::Nines };
    lines_svg(title, x, Axis { label: "latency, us", scale: Scale::Log }, &lines)
}

/// Latency over time: p50 and p99 of every interval.
pub fn over_time(title: &str, series: &[(&str, &Series)]) -> Result<String, Error> {
    let mut lines = Vec::new();
    for (name, series) in series {
        for (quantile, told, dashed) in [(0.5, "p50", true), (0.99, "p99", false)] {
            let point = |interval: &crate::latencies::Interval| {
                (interval.start.as_secs_f64(), interval.latencies.quantile_us(quantile))
            };
            let full = series.intervals.iter().filter(|interval| interval.latencies.count() > 0);
            let label = format!("{name} {told}");
            lines.push(Line { label, points: full.map(point).collect(), dashed });
        }
    }
    let x = Axis { label: "time, s", scale: Scale::Linear };
    lines_svg(title, x, Axis { label: "latency, us", scale: Scale::Log }, &lines)
}

/// Throughput against latency: for each curve p50 and p99 at what was achieved. It ends with the first rate
/// that is too high: beyond it neither number says more.
pub fn throughput(title: &str, curves: &[(&str, &[Point])]) -> Result<String, Error> {
    let mut lines = Vec::new();
    for (name, points) in curves {
        let mut points = points.to_vec();
        points.sort_by(|a, b| a.offered.total_cmp(&b.offered));
        let last = points.iter().rposition(|point| point.kept_up);
        let ends = points.len().min(last.map_or(0, |last| last + 1) + 1);
        points.truncate(ends);
        // In between, a rate that a hiccup spoiled is none that was too high.
        let mut index = 0;
        points.retain(|point| {
            index += 1;
            point.kept_up || index == ends
        });
        let line = |told: &str, dashed, y: fn(&Point) -> f64| Line {
            label: format!("{name} {told}"),
            points: points.iter().map(|point| (point.achieved, y(point))).collect(),
            dashed,
        };
        lines.push(line("p50", true, |point| point.p50_us));
        lines.push(line("p99", false, |point| point.p99_us));
    }
    let x = Axis { label: "records acknowledged a second", scale: Scale::Linear };
    let y = Axis { label: "latency from the intended start, us", scale: Scale::Log };
    lines_svg(title, x, y, &lines)
}

/// Writes the text of a plot.
pub fn save(path: &Path, svg: &str) -> Result<(), Error> {
    std::fs::write(path, svg).map_err(|error| Error::file("write", path, error))
}

const SIZE: (u32, u32) = (960, 560);
const LEGEND_WIDTH: i32 = 230;
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x1f, 0x4e, 0x9c),
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x1b, 0x84, 0x4a),
    RGBColor(0xa0, 0x1c, 0x6a),
    RGBColor(0x6b, 0x4c, 0x35),
    RGBColor(0x00, 0x8b, 0x9b),
    RGBColor(0x80, 0x80, 0x80),
    RGBColor(0xb8, 0x86, 0x0b),
];

/// Any lines over two axes. Lines that differ only in being dashed follow each other and share a colour:
/// a dashed one takes that of the next line.
pub fn lines_svg(title: &str, x: Axis, y: Axis, lines: &[Line]) -> Result<String, Error> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    draw(&root, title, x, y, lines)
        .and_then(|()| root.present().map_err(|error| error.to_string()))
        .map_err(|error| Error::Failed(format!("cannot draw {title:?}: {error}")))?;
    drop(root);
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(root: &Area<'_>, title: &str, x: Axis, y: Axis, lines: &[Line]) -> Result<(), String> {
    root.fill(&WHITE).map_err(|error| error.to_string())?;
    let (plot, legend) = root.split_horizontally(SIZE.0 as i32 - LEGEND_WIDTH);
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let along_x = Along::new(x.scale, points().map(|point| point.0));
    let along_y = Along::new(y.scale, points().map(|point| point.1));
    let mut chart = ChartBuilder::on(&plot)
        .caption(title, (FONT, 19))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(78)
        .build_cartesian_2d(along_x, along_y)
        .map_err(|error| error.to_string())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(0xdd, 0xdd, 0xdd))
        .x_desc(x.label)
        .y_desc(y.label)
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 14))
        .x_label_formatter(&|at| x.scale.told(*at))
        .y_label_formatter(&|at| y.scale.told(*at))
        .draw()
        .map_err(|error| error.to_string())?;
    for (line, colour) in lines.iter().zip(colours(lines)) {
        let placed: Vec<(f64, f64)> =
            line.points.iter().map(|&(a, b)| (x.scale.place(a), y.scale.place(b))).collect();
        let style = colour.stroke_width(2);
        match line.dashed {
            true => chart.draw_series(DashedLineSeries::new(placed.clone(), 6, 4, style)).map(drop),
            false => chart.draw_series(LineSeries::new(placed.clone(), style)).map(drop),
        }
        .map_err(|error| error.to_string())?;
        // Few points are marked: a line alone hides where it was measured.
        if placed.len() <= 30 {
            let dots = placed.into_iter().map(|at| Circle::new(at, 3, colour.filled()));
            chart.draw_series(dots).map_err(|error| error.to_string())?;
        }
    }
    draw_legend(&legend, lines).map_err(|error| error.to_string())
}

/// Beside the plot, where it hides nothing.
fn draw_legend(area: &Area<'_>, lines: &[Line]) -> Result<(), String> {
    for (index, (line, colour)) in lines.iter().zip(colours(lines)).enumerate() {
        let y = 64 + 24 * index as i32;
        let style = colour.stroke_width(3);
        let segments: &[(i32, i32)] = if line.dashed { &[(6, 14), (20, 28)] } else { &[(6, 28)] };
        for &(from, to) in segments {
            area.draw(&PathElement::new(vec![(from, y), (to, y)], style))
                .map_err(|error| error.to_string())?;
        }
        area.draw(&Text::new(line.label.clone(), (36, y - 8), (FONT, 14)))
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn colours(lines: &[Line]) -> Vec<RGBColor> {
    let mut next = 0;
    lines
        .iter()
        .map(|line| {
            let colour = COLOURS[next % COLOURS.len()];
            next += usize::from(!line.dashed);
            colour
        })
        .collect()
}

/// An axis as the plotting library wants it: a range of places, and those that are marked.
struct Along {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Along {
    fn new(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let (range, ticks) = scale.fit(values);
        Along { range, ticks }
    }
}

impl Ranged for Along {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, pixels: (i32, i32)) -> i32 {
        let share = (place - self.range.start) / (self.range.end - self.range.start);
        pixels.0 + (share * f64::from(pixels.1 - pixels.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl Scale {
    /// Where a number stands along the axis.
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear | Scale::Nines => value,
            Scale::Log => value.max(1e-9).log10(),
        }
    }

    /// A range along the axis that all numbers lie in, and where its ticks are.
    fn fit(self, values: impl Iterator<Item = f64>) -> (Range<f64>, Vec<f64>) {
        let placed: Vec<f64> = values
            .filter(|value| value.is_finite() && (self != Scale::Log || *value > 0.0))
            .map(|value| self.place(value))
            .collect();
        let min = placed.iter().copied().reduce(f64::min).unwrap_or(0.0);
        let max = placed.iter().copied().reduce(f64::max).unwrap_or(1.0);
        match self {
            Scale::Linear => {
                let step = round_step(max.max(1e-9) / 6.0);
                let end = (max / step).ceil().max(1.0) * step;
                let count = (end / step).round() as u32;
                (0.0..end, (0..=count).map(|index| f64::from(index) * step).collect())
            }
            Scale::Nines => {
                let end = max.max(1.0);
                (0.0..end, (0..=end.floor() as u32).map(f64::from).collect())
            }
            Scale::Log => log_ticks(min, max),
        }
    }

    /// How a tick is told.
    fn told(self, place: f64) -> String {
        match self {
            Scale::Linear => grouped(place),
            Scale::Log => grouped(10_f64.powf(place)),
            Scale::Nines => match place.round() as usize {
                0 => "0 %".to_owned(),
                1 => "90 %".to_owned(),
                2 => "99 %".to_owned(),
                nines => format!("99.{} %", "9".repeat(nines - 2)),
            },
        }
    }
}

/// 1, 2, 5, 10 and so on around the range.
fn log_ticks(min: f64, max: f64) -> (Range<f64>, Vec<f64>) {
    let steps: Vec<f64> = (min.floor() as i32..=max.ceil() as i32)
        .flat_map(|decade| [1.0_f64, 2.0, 5.0].map(|digit| f64::from(decade) + digit.log10()))
        .collect();
    let below = steps.iter().copied().filter(|&tick| tick <= min + 1e-9).reduce(f64::max);
    let above = steps.iter().copied().find(|&tick| tick >= max - 1e-9 && tick > min);
    let range = below.unwrap_or(min)..above.unwrap_or(max + 1.0);
    let mut ticks: Vec<f64> =
        steps.into_iter().filter(|tick| range.start <= *tick && *tick <= range.end).collect();
    // Over many decades only the powers of ten have room.
    if ticks.len() > 14 {
        ticks.retain(|tick| (tick - tick.round()).abs() < 1e-9);
    }
    (range, ticks)
}

/// 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|step| *step >= least * 0.999)
        .unwrap_or(power)
}

/// A number with its thousands set apart, and no more digits than it needs.
fn grouped(value: f64) -> String {
    if value.abs() < 10.0 {
        let text = format!("{value:.2}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
