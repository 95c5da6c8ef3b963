//! Results for people.

use super::Setting;
use super::async_rounds::Async;
use super::clock::{Latencies, median};
use super::log_rounds::ClosedLoop;
use super::rotation::Rotation;
use crate::choices::durability_name;
use crate::units;

/// Where and on what the run takes place.
pub fn setting(setting: &Setting) -> String {
    let backend = &setting.backend;
    let facts = &backend.facts;
    let unknown = |bytes: usize| if bytes == 0 { "?".to_owned() } else { bytes.to_string() };
    let fua = facts.fua.map_or("unknown", |fua| if fua { "yes" } else { "no" });
    let cache = match facts.write_cache.as_str() {
        "" => "unknown",
        cache => cache,
    };
    let meaning = match setting.durability {
        uringlog::Durability::Durable => "an acknowledged record survived a sync on the device",
        uringlog::Durability::Written => {
            "an acknowledged record was written, NOT synced: a power cut may take it"
        }
    };
    let mut rows = vec![
        ("directory", setting.dir.clone()),
        (
            "machine",
            format!(
                "{} cores, Linux {}, reading the clock costs {} ns",
                setting.cores,
                facts.kernel,
                setting.timer.as_nanos()
            ),
        ),
        (
            "device",
            format!(
                "{} on {}, sectors {}/{} B, write cache: {cache}, FUA: {fua}",
                facts.file_system,
                facts.device,
                unknown(facts.logical_sector_bytes),
                unknown(facts.physical_sector_bytes),
            ),
        ),
        (
            "log",
            format!(
                "{}, {}, depth {}, block {} B, {}, idle {}, memory {}",
                backend.backend,
                backend.method,
                backend.depth,
                facts.block_bytes,
                if facts.direct { "direct I/O" } else { "BUFFERED I/O" },
                setting.idle.name(),
                units::bytes(setting.memory_bytes),
            ),
        ),
        ("why", backend.why.clone()),
        ("durability", format!("{}: {meaning}", durability_name(setting.durability))),
    ];
    if facts.volatile {
        rows.push(("WARNING", "this file system is gone with the power; try --dir".to_owned()));
    }
    rows.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect()
}

/// Closed-loop workloads side by side.
pub fn closed_loops(results: &[ClosedLoop]) -> String {
    let Some(first) = results.first() else { return String::new() };
    let workload = first.workload;
    let pace = match workload.rate {
        Some(rate) => format!("at most {rate} appends/s"),
        None => "each as fast as it can".to_owned(),
    };
    let mut text = format!(
        "\nProducers that wait for each record, {} B, {pace}; the bare loop (one thread: aligned \
         write of {} B, fdatasync, pre-written file) in turns of {} ms\n\n",
        workload.record_bytes,
        first.bare_block_bytes,
        workload.round.as_millis(),
    );
    let mut table = Table::new(results.len());
    table.row("producers", results, |r| r.workload.producers.to_string());
    table.row("appends acknowledged /s", results, |r| units::count(r.appends_per_s() as u64));
    table.row("bare commits /s", results, |r| units::count(r.bare_per_s() as u64));
    table.row("appends per bare commit", results, |r| {
        format!("{:.2}", r.appends_per_s() / r.bare_per_s().max(1e-9))
    });
    table.row("records per batch", results, |r| {
        format!("{:.2}", r.appends as f64 / (r.batches as f64).max(1.0))
    });
    table.row("CPU us per append", results, |r| format!("{:.1}", cpu_us_per_append(r)));
    table.gap("latency, p50 / p99 / p99.9, us");
    table.row("  log, end to end", results, |r| three_us(&r.stages.end_to_end));
    table.row("  bare loop", results, |r| three_us(&r.bare));
    table.row("  ratio p50 / p99", results, |r| {
        let ratio = |q| ratio(&r.stages.end_to_end, &r.bare, q);
        format!("{:.2} / {:.2}", ratio(0.5), ratio(0.99))
    });
    table.gap("stages of the log's");
    table.row("  submit (append returns)", results, |r| three_us(&r.stages.submit));
    table.row("  wait for the writer", results, |r| three_us(&r.stages.wait_for_writer));
    table.row("  write + sync", results, |r| three_us(&r.stages.write_sync));
    table.row("  wake-up", results, |r| three_us(&r.stages.wake_up));
    text += &table.text;
    text
}

/// CPU time of the log's turns, by append.
pub fn cpu_us_per_append(result: &ClosedLoop) -> f64 {
    result.cpu.as_secs_f64() * 1e6 / (result.appends as f64).max(1.0)
}

/// An asynchronous workload.
pub fn asynchronous(result: &Async) -> String {
    let mb = result.workload.record_bytes as f64 / 1e6;
    let rate = result.appends_per_s();
    let mut text = format!(
        "\nOne producer that does not wait, {} B; bursts ({}) of {} records, one sync at the end of each, \
         inside prepared space\n\n",
        result.workload.record_bytes,
        result.bursts.len(),
        units::count(result.burst_records),
    );
    let mut table = Table::new(1);
    let mut row = |name: &str, value: String| table.row(name, &[()], |()| value.clone());
    row("appends /s, median burst", units::count(rate as u64));
    row("MB/s, median burst", format!("{:.0}", rate * mb));
    row(
        "raw MB/s of the disk",
        format!(
            "{:.0} ({} at a time, {} under way, no sync)",
            result.raw.mb_per_s,
            units::bytes(result.raw.chunk_bytes as u64),
            result.raw.threads
        ),
    );
    row("ratio to raw", format!("{:.2}", rate * mb / result.raw.mb_per_s.max(1e-9)));
    if !result.reference.is_empty() {
        let reference = median(&result.reference);
        row("mutex + Vec + writer thread /s", units::count(reference as u64));
        row("ratio to it", format!("{:.2}", rate / reference.max(1e-9)));
    }
    row(
        "MB/s into fresh space",
        format!("{:.0} (prepared while it is used, default options)", result.fresh_per_s * mb),
    );
    row("CPU us per append", format!("{:.3}", async_cpu_us_per_append(result)));
    row(
        "submit, p50 / p99 / p99.9, ns",
        format!(
            "{:.0} / {:.0} / {:.0} (at {} appends/s)",
            result.stages.submit.quantile_ns(0.5),
            result.stages.submit.quantile_ns(0.99),
            result.stages.submit.quantile_ns(0.999),
            units::count(result.paced_per_s as u64)
        ),
    );
    row("  append to durable then, us", three_us(&result.durable));
    row("bare loop, p50 / p99 / p99.9, us", three_us(&result.bare));
    text += &table.text;
    text
}

/// CPU time of the bursts, by append.
pub fn async_cpu_us_per_append(result: &Async) -> f64 {
    result.cpu.as_secs_f64() * 1e6 / (result.appends as f64).max(1.0)
}

/// The ratio of two latencies at the same quantile.
pub fn ratio(log: &Latencies, bare: &Latencies, quantile: f64) -> f64 {
    log.quantile_ns(quantile) / bare.quantile_ns(quantile).max(1.0)
}

/// What housekeeping costs an append.
pub fn rotation(record_bytes: usize, results: &[Rotation]) -> String {
    let mut text = format!(
        "\nOne producer that waits for each record, {record_bytes} B; appends during which a rotation, a \
         preparation, a removal or a trim was under way, beside the others of the same run\n\n"
    );
    let mut table = Table::new(results.len());
    table.row("new segments come from", results, |r| r.mode.name().to_owned());
    table.row("segment size", results, |r| units::bytes(r.segment_bytes));
    table.row("rotations", results, |r| units::count(r.rotations));
    table.row("  the writer had to wait", results, |r| units::count(r.waits));
    table.row("appends, steady / tagged", results, |r| {
        format!("{} / {}", units::count(r.steady.count()), units::count(r.tagged.count()))
    });
    table.gap("latency, p50 / p99 / p99.9, us");
    table.row("  steady", results, |r| three_us(&r.steady));
    table.row("  tagged", results, |r| three_us(&r.tagged));
    for cause in 0..results.first().map_or(0, |r| r.causes.len()) {
        let name = results.first().map_or("", |r| r.causes[cause].0);
        table.row(&format!("    {name}"), results, |r| {
            let latencies = &r.causes[cause].1;
            format!("{} ({})", three_us(latencies), units::count(latencies.count()))
        });
    }
    table.row("p99.9 tagged over steady", results, |r| format!("{:.2}", r.ratio()));
    text += &table.text;
    text
}

fn three_us(latencies: &Latencies) -> String {
    let us = |quantile| {
        let us = latencies.quantile_ns(quantile) / 1e3;
        if us < 10.0 { format!("{us:.1}") } else { format!("{us:.0}") }
    };
    format!("{} / {} / {}", us(0.5), us(0.99), us(0.999))
}

/// Rows of a name and one value for each result, set in columns.
struct Table {
    columns: usize,
    text: String,
}

impl Table {
    fn new(columns: usize) -> Self {
        Table { columns, text: String::new() }
    }

    fn row<R>(&mut self, name: &str, results: &[R], value: impl Fn(&R) -> String) {
        self.text += &format!("{name:<33}");
        for result in results {
            match self.columns {
                1 => self.text += &value(result),
                _ => self.text += &format!("  {:>22}", value(result)),
            }
        }
        self.text += "\n";
    }

    fn gap(&mut self, title: &str) {
        self.text += &format!("{title}\n");
    }
}
