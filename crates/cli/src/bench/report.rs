//! Results for people.

use uringlog_perf::async_rounds::Async;
use uringlog_perf::rotation::Rotation;
use uringlog_perf::scaling::Scaled;
use uringlog_perf::sweep::Swept;
use uringlog_perf::waiting::{Waited, Waiting};
use uringlog_perf::{KNEE_P99, Latencies, Measured, Point, STAGES, Setting, durability_name, knee};

use crate::units;

/// Where and on what the run takes place.
pub fn setting(setting: &Setting) -> String {
    let backend = &setting.backend;
    let facts = &backend.facts;
    let environment = &setting.environment;
    let unknown = |bytes: usize| if bytes == 0 { "?".to_owned() } else { bytes.to_string() };
    let fua = facts.fua.map_or("unknown", |fua| if fua { "yes" } else { "no" });
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
                "{} x {}, Linux {}, clock {} ({} ns to read), huge pages {}, load {}",
                environment.cpus,
                environment.cpu,
                environment.kernel,
                environment.clock_source,
                setting.timer.as_nanos(),
                environment.huge_pages,
                environment.load,
            ),
        ),
        (
            "device",
            format!(
                "{} on {}, sectors {}/{} B, write cache: {}, FUA: {fua}, scheduler: {}",
                environment.file_system,
                environment.device,
                unknown(facts.logical_sector_bytes),
                unknown(facts.physical_sector_bytes),
                environment.write_cache,
                environment.scheduler,
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
                setting.idle,
                units::bytes(setting.memory_bytes),
            ),
        ),
        ("built", format!("from commit {}, with {}", environment.commit, environment.rustc)),
        ("why", backend.why.clone()),
        ("durability", format!("{}: {meaning}", durability_name(setting.durability))),
    ];
    if facts.volatile {
        rows.push(("WARNING", "this file system is gone with the power; try --dir".to_owned()));
    }
    rows.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect()
}

/// Producers that wait: loads side by side, and what the stages are.
pub fn waited(results: &[Waited]) -> String {
    results.first().map_or(String::new(), |first| table(results) + &legend(first))
}

/// The same without what the stages are.
pub fn table(results: &[Waited]) -> String {
    let Some(first) = results.first() else { return String::new() };
    let Waiting { work, rate, .. } = first.request;
    let mut text = heading(first);
    let mut table = Table::new(results.len());
    table.row("producers", results, |r| r.request.producers.to_string());
    table.row("records acknowledged /s", results, |r| units::count(r.log.records_per_s() as u64));
    if rate.is_some() {
        table.row("  the schedule was kept", results, |r| kept(&r.log));
    }
    let with_plain: Vec<(&Waited, &Measured)> =
        results.iter().filter_map(|r| Some((r, r.plain.as_ref()?))).collect();
    if !with_plain.is_empty() {
        table.row("mutex + Vec + writer thread /s", &with_plain, |(_, plain)| {
            units::count(plain.records_per_s() as u64)
        });
        table.row("  log over it, records /s", &with_plain, |(r, plain)| {
            format!("{:.2}", r.log.records_per_s() / plain.records_per_s().max(1e-9))
        });
    }
    table.row("bare commits /s", results, |r| units::count(r.bare.calls_per_s() as u64));
    table.row("records per bare commit", results, |r| format!("{:.2}", r.per_bare_commit()));
    table.row("records per batch", results, |r| format!("{:.2}", r.records_per_batch()));
    table.row("CPU us per record, log", results, |r| format!("{:.1}", r.log.cpu_us_per_record()));
    if !with_plain.is_empty() {
        table.row("  mutex + writer thread", &with_plain, |(_, plain)| {
            format!("{:.1}", plain.cpu_us_per_record())
        });
    }
    let one = if work.batch > 1 { "batch" } else { "record" };
    let from = if rate.is_some() { ", from the intended start" } else { "" };
    table.gap(&format!("latency of a {one}{from}, p50 / p99 / p99.9, us"));
    table.row("  log", results, |r| three_us(&r.log.latencies));
    if !with_plain.is_empty() {
        let latencies = |(_, plain): &(&Waited, &Measured)| three_us(&plain.latencies);
        table.row("  mutex + Vec + writer thread", &with_plain, latencies);
    }
    table.row("  bare loop", results, |r| three_us(&r.bare.latencies));
    table.row("  ratio to bare, p50 / p99", results, |r| {
        let over = |q| ratio(&r.log.latencies, &r.bare.latencies, q);
        format!("{:.2} / {:.2}", over(0.5), over(0.99))
    });
    let with_beside: Vec<&Measured> = results.iter().filter_map(|r| r.beside.as_ref()).collect();
    if let [beside, ..] = &*with_beside {
        let name = format!("  log, {} producers", beside.producers);
        table.row(&name, &with_beside, |beside| three_us(&beside.latencies));
    }
    table.gap("the worst of the same: p99.99 / longest, us");
    table.row("  log", results, |r| worst_us(&r.log.latencies));
    table.row("  bare loop", results, |r| worst_us(&r.bare.latencies));
    let of_turns =
        |measured: &Measured| format!("{:.0}", measured.series.median_quantile_ns(0.999) / 1e3);
    table.gap(
        "p99.9 of half of the turns was no more than this, us: without the disk's rare stalls",
    );
    table.row("  log", results, |r| of_turns(&r.log));
    table.row("  bare loop", results, |r| of_turns(&r.bare));
    if let [beside, ..] = &*with_beside {
        let name = format!("  log, {} producers", beside.producers);
        table.row(&name, &with_beside, |beside| of_turns(beside));
    }
    table.gap("the machine's hiccups: a sleeper is late, p50 / p99 / longest, us");
    table.row("  in a quiet moment before", results, |r| hiccups_us(&r.jitter_quiet));
    table.row("  during the log's turns", results, |r| hiccups_us(&r.jitter));
    if rate.is_some() {
        table.row("  free producers started late", results, |r| hiccups_us(&r.log.lateness));
    }
    table.gap("stages of the log's, one after the other, p50 / p99 / p99.9, us");
    for stage in &STAGES {
        if results.iter().any(|r| (stage.of)(r.stages()).count() > 0) {
            table.row(&format!("  {}", stage.name), results, |r| three_us((stage.of)(r.stages())));
        }
    }
    text += &table.text;
    text
}

fn heading(first: &Waited) -> String {
    let Waiting { work, rate, .. } = first.request;
    let what = match work.batch {
        1 => format!("{} B", work.record_bytes),
        batch => format!("batches of {batch} x {} B", work.record_bytes),
    };
    let pace = match rate {
        Some(rate) if rate < 10.0 => format!("open loop, {rate} records/s offered"),
        Some(rate) => format!("open loop, {rate:.0} records/s offered"),
        None => "closed loop".to_owned(),
    };
    let bare = match first.bare.offered_per_s() {
        Some(_) => format!(" at {:.0} commits/s", first.bare.calls_per_s()),
        None => String::new(),
    };
    format!(
        "\nProducers that wait for each of their records, {what}, {pace}; the bare loop (one thread: \
         aligned write of {} B, fdatasync, pre-written file){bare} and the others in turns of {} ms\n\n",
        first.bare_block_bytes,
        first.turn.as_millis(),
    )
}

/// What each stage is.
fn legend(result: &Waited) -> String {
    let known = STAGES.iter().filter(|stage| (stage.of)(result.stages()).count() > 0);
    known.map(|stage| format!("    {:<10} {}\n", stage.name, stage.what)).collect()
}

fn kept(measured: &Measured) -> String {
    match (measured.kept_up(), measured.missed) {
        (true, _) => "yes".to_owned(),
        (false, 0) => "NO, too slow".to_owned(),
        (false, missed) => format!("NO, {} given up", units::count(missed)),
    }
}

/// A sweep: one row a rate.
pub fn swept(result: &Swept) -> String {
    let work = result.request.work;
    let mut text = format!(
        "\nOpen loops at rising rates, {} producers, {} B, batches of {}; in a closed loop the log takes {} \
         records/s\nlatency from the intended start, p50 / p99 / p99.9, us (* the schedule was not kept)\n\n\
         {:>12}  {:>26}  {:>26}  {:>26}\n",
        result.request.producers,
        work.record_bytes,
        work.batch,
        units::count(result.closed_per_s as u64),
        "records/s",
        "log",
        "mutex + Vec + thread",
        "bare loop",
    );
    for (index, point) in result.log.iter().enumerate() {
        let cell = |points: &[Point]| points.get(index).map_or("-".to_owned(), point_us);
        text += &format!(
            "{:>12}  {:>26}  {:>26}  {:>26}\n",
            units::count(point.offered as u64),
            point_us(point),
            cell(&result.plain),
            cell(&result.bare),
        );
    }
    let told = |points: &[Point]| {
        knee(points).map_or("none".to_owned(), |at| units::count(at.offered as u64))
    };
    text += &format!(
        "\nknee (highest rate kept up with at a p99 of at most {KNEE_P99} times that of low rates): log {}, mutex + \
         Vec + thread {}, bare loop {} records/s\n",
        told(&result.log),
        told(&result.plain),
        told(&result.bare),
    );
    text
}

fn point_us(point: &Point) -> String {
    let us = |us: f64| if us < 10.0 { format!("{us:.1}") } else { format!("{us:.0}") };
    let mark = if point.kept_up { "" } else { " *" };
    format!("{} / {} / {}{mark}", us(point.p50_us), us(point.p99_us), us(point.p999_us))
}

/// What an append costs its caller.
pub fn scaled(result: &Scaled) -> String {
    let mut text = format!(
        "\nAppends of {} B that nobody waits for, in bursts of {}, each producer on a CPU of its own as far as \
         there are enough\n\n{:>12}  {:>10}  {:>22}  {:>22}\n",
        result.record_bytes,
        result.burst,
        "producers",
        "ns each",
        "records/s of each",
        "lost to the others",
    );
    for step in &result.steps {
        text += &format!(
            "{:>12}  {:>10.1}  {:>22}  {:>20.0} %\n",
            step.producers,
            step.append_ns,
            units::count((1e9 / step.append_ns.max(1e-9)) as u64),
            step.loss * 100.0,
        );
    }
    text
}

/// A contender's name for people.
pub fn told(name: &str) -> &str {
    match name {
        "bare" => "bare loop",
        "plain" => "mutex + Vec + thread",
        "beside" => "log, other producers",
        name => name,
    }
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
    if let Some(reference) = result.reference_per_s() {
        row("mutex + Vec + writer thread /s", units::count(reference as u64));
        row("ratio to it", format!("{:.2}", rate / reference.max(1e-9)));
    }
    row(
        "MB/s into fresh space",
        format!("{:.0} (prepared while it is used, default options)", result.fresh_per_s * mb),
    );
    row("CPU us per append", format!("{:.3}", result.cpu_us_per_append()));
    row(
        "submit, p50 / p99 / p99.9, ns",
        format!(
            "{:.0} / {:.0} / {:.0} (at {} appends/s)",
            result.stages.append_returns.quantile_ns(0.5),
            result.stages.append_returns.quantile_ns(0.99),
            result.stages.append_returns.quantile_ns(0.999),
            units::count(result.paced_per_s as u64)
        ),
    );
    row("  append to durable then, us", three_us(&result.durable));
    row("bare loop, p50 / p99 / p99.9, us", three_us(&result.bare));
    text += &table.text;
    text
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

fn worst_us(latencies: &Latencies) -> String {
    format!("{:.0} / {:.0}", latencies.quantile_us(0.9999), latencies.max_ns() / 1e3)
}

fn hiccups_us(latencies: &Latencies) -> String {
    let us = |quantile| latencies.quantile_us(quantile);
    format!("{:.0} / {:.0} / {:.0}", us(0.5), us(0.99), latencies.max_ns() / 1e3)
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
