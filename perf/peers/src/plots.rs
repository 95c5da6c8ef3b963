//! The plots of a run: rates as bars, latencies as percentile curves.

use std::fs;
use std::path::Path;

use uringlog_perf::plot::{Axis, Line, Scale, lines_svg};

use crate::bars::{Bars, bars_svg};
use crate::peer::Error;
use crate::report::Report;
use crate::turn::nines;
use crate::workload::{Kind, Workload};

/// Writes peers-*.svg, of the work that was run.
pub fn save_all(report: &Report<'_>, dir: &Path) -> Result<(), Error> {
    let rates = [
        (Kind::Durable, "durable", "Durable appends of 256 B", "records/s", Per::Record),
        (Kind::Batch, "batch", "Durable batches of 64 x 256 B", "records/s", Per::Record),
        (Kind::Stream, "stream", "Stream of one thread, synced at the end", "MB/s", Per::Megabyte),
    ];
    for (kind, name, title, unit, per) in rates {
        let bars = rate_bars(report, kind, title, unit, per);
        if !bars.rows.is_empty() {
            save(report, &dir.join(format!("peers-{name}.svg")), &bars_svg(&bars)?)?;
        }
    }
    for work in report.workloads() {
        if let Some(svg) = latency_curves(report, work)? {
            save(report, &dir.join(format!("peers-{}-latency.svg", work.name)), &svg)?;
        }
    }
    Ok(())
}

/// Writes a plot, with the run's command and note in its head.
fn save(report: &Report<'_>, path: &Path, svg: &str) -> Result<(), Error> {
    let told = report.head().replace('&', "&amp;").replace('<', "&lt;");
    let (opening, rest) = svg.split_once(">\n").ok_or("not an SVG file")?;
    Ok(fs::write(path, format!("{opening}>\n<desc>{told}</desc>\n{rest}"))?)
}

#[derive(Clone, Copy)]
enum Per {
    Record,
    Megabyte,
}

fn rate_bars(report: &Report<'_>, kind: Kind, title: &str, unit: &str, per: Per) -> Bars {
    let works: Vec<&Workload> =
        report.workloads().iter().filter(|work| work.kind == kind).collect();
    let group = |work: &&Workload| match (kind, work.threads) {
        (Kind::Stream, _) => format!("{} B", work.record_bytes),
        (_, 1) => "1 thread".to_owned(),
        (_, threads) => format!("{threads} threads"),
    };
    let mut bars = Bars {
        title: title.to_owned(),
        unit: unit.to_owned(),
        groups: works.iter().map(group).collect(),
        rows: Vec::new(),
    };
    for (column, work) in works.iter().enumerate() {
        for (entry, medians) in report.results(work) {
            let value = match per {
                Per::Record => medians.records_per_s,
                Per::Megabyte => medians.records_per_s * work.record_bytes as f64 / 1e6,
            };
            let row = match bars.rows.iter().position(|(name, _)| name == entry.name) {
                Some(row) => row,
                None => {
                    bars.rows.push((entry.name.to_owned(), vec![None; works.len()]));
                    bars.rows.len() - 1
                }
            };
            bars.rows[row].1[column] = Some(value);
        }
    }
    bars
}

/// None where there are no latencies.
fn latency_curves(report: &Report<'_>, work: &Workload) -> Result<Option<String>, Error> {
    let (unit, unit_ns) = match work.kind {
        Kind::Submit => ("latency, ns", 1.0),
        _ => ("latency, us", 1e3),
    };
    let shown = |name: &str| name != "nothing";
    let lines: Vec<Line> = report
        .results(work)
        .into_iter()
        .filter(|(entry, medians)| !medians.latencies_ns.is_empty() && shown(entry.name))
        .map(|(entry, medians)| {
            // No point below a nanosecond, which a logarithmic axis has no room for.
            let ns = medians.latencies_ns.iter().map(|ns| ns.max(1.0) / unit_ns);
            Line {
                label: entry.name.to_owned(),
                points: nines().into_iter().zip(ns).collect(),
                // Shares its colour with the next, the other queue.
                dashed: entry.name == "ArrayQueue",
            }
        })
        .collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let x = Axis { label: "percentile", scale: Scale::Nines };
    let y = Axis { label: unit, scale: Scale::Log };
    Ok(Some(lines_svg(&work.told(), x, y, &lines)?))
}
