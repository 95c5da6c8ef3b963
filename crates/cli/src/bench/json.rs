//! Results as one JSON object, for programs. Times say their unit in their name; bytes are bytes,
//! MB are 10^6 of them.

use serde_json::{Map, Value, json};

use super::Setting;
use super::async_rounds::Async;
use super::clock::{Latencies, median};
use super::log_rounds::{ClosedLoop, Stages};
use super::report::{async_cpu_us_per_append, cpu_us_per_append, ratio};
use super::rotation::Rotation;
use crate::choices::durability_name;

/// A closed-loop workload.
pub fn closed_loop(setting: &Setting, result: &ClosedLoop) -> Value {
    let workload = &result.workload;
    let rate = result.appends_per_s();
    let log = &result.stages.end_to_end;
    let mut object = head(setting, "closed-loop", workload.producers, workload.record_bytes);
    let rest = json!({
        "rate": workload.rate,
        "rounds": workload.rounds,
        "round_ms": workload.round.as_secs_f64() * 1e3,
        "appends": result.appends,
        "appends_per_s": round1(rate),
        "mb_per_s": round3(rate * workload.record_bytes as f64 / 1e6),
        "submit_ns": ns(&result.stages.submit),
        "durable_us": us(log),
        "stages_us": stages(&result.stages),
        "bare_us": us(&result.bare),
        "bare_commits_per_s": round1(result.bare_per_s()),
        "bare_bytes": result.bare_block_bytes,
        "ratio": {
            "p50": round3(ratio(log, &result.bare, 0.5)),
            "p99": round3(ratio(log, &result.bare, 0.99)),
            "appends_per_bare_commit": round3(rate / result.bare_per_s().max(1e-9)),
        },
        "records_per_batch": round3(result.appends as f64 / (result.batches as f64).max(1.0)),
        "disk_bytes": result.disk_bytes,
        "cpu_us_per_append": round3(cpu_us_per_append(result)),
    });
    extend(&mut object, rest);
    Value::Object(object)
}

/// What housekeeping costs an append.
pub fn rotation(setting: &Setting, record_bytes: usize, results: &[Rotation]) -> Value {
    let mut object = head(setting, "rotation", 1, record_bytes);
    let modes: Map<String, Value> = results
        .iter()
        .map(|result| {
            let causes: Map<String, Value> = result
                .causes
                .iter()
                .map(|(cause, latencies)| {
                    let mut value = us(latencies);
                    value["count"] = json!(latencies.count());
                    (cause.replace(' ', "_"), value)
                })
                .collect();
            let value = json!({
                "segment_bytes": result.segment_bytes,
                "rotations": result.rotations,
                "rotation_waits": result.waits,
                "seconds": round3(result.elapsed.as_secs_f64()),
                "steady_count": result.steady.count(),
                "tagged_count": result.tagged.count(),
                "steady_us": us(&result.steady),
                "tagged_us": us(&result.tagged),
                "causes_us": causes,
                "ratio_p999": round3(result.ratio()),
            });
            (result.mode.name().replace('-', "_"), value)
        })
        .collect();
    extend(&mut object, Value::Object(modes));
    Value::Object(object)
}

/// An asynchronous workload.
pub fn asynchronous(setting: &Setting, result: &Async) -> Value {
    let workload = &result.workload;
    let rate = result.appends_per_s();
    let mb_per_s = rate * workload.record_bytes as f64 / 1e6;
    let bare_per_s = result.bare.count() as f64 / result.bare_elapsed.as_secs_f64().max(1e-9);
    let reference = (!result.reference.is_empty()).then(|| median(&result.reference));
    let mut object = head(setting, "async", 1, workload.record_bytes);
    let rest = json!({
        "rounds": result.bursts.len(),
        "burst_records": result.burst_records,
        "segment_bytes": result.segment_bytes,
        "appends": result.appends,
        "appends_per_s": round1(rate),
        "mb_per_s": round3(mb_per_s),
        "bursts_appends_per_s": result.bursts.iter().copied().map(round1).collect::<Vec<_>>(),
        "paced_appends_per_s": round1(result.paced_per_s),
        "submit_ns": ns(&result.stages.submit),
        "durable_us": us(&result.durable),
        "stages_us": stages(&result.stages),
        "bare_us": us(&result.bare),
        "bare_commits_per_s": round1(bare_per_s),
        "bare_bytes": result.bare_block_bytes,
        "raw_mb_per_s": round3(result.raw.mb_per_s),
        "raw_chunk_bytes": result.raw.chunk_bytes,
        "raw_threads": result.raw.threads,
        "fresh_appends_per_s": round1(result.fresh_per_s),
        "fresh_mb_per_s": round3(result.fresh_per_s * workload.record_bytes as f64 / 1e6),
        "reference_appends_per_s": reference.map(round1),
        "ratio": {
            "p50": round3(ratio(&result.durable, &result.bare, 0.5)),
            "p99": round3(ratio(&result.durable, &result.bare, 0.99)),
            "appends_per_bare_commit": round3(rate / bare_per_s.max(1e-9)),
            "mb_per_s": round3(mb_per_s / result.raw.mb_per_s.max(1e-9)),
            "fresh_mb_per_s": round3(
                result.fresh_per_s * workload.record_bytes as f64 / 1e6
                    / result.raw.mb_per_s.max(1e-9)
            ),
            "reference": reference.map(|reference| round3(rate / reference.max(1e-9))),
        },
        "cpu_us_per_append": round3(async_cpu_us_per_append(result)),
    });
    extend(&mut object, rest);
    Value::Object(object)
}

/// What every result starts with.
fn head(
    setting: &Setting,
    mode: &str,
    producers: usize,
    record_bytes: usize,
) -> Map<String, Value> {
    let backend = &setting.backend;
    let facts = &backend.facts;
    let probes: Vec<Value> = backend
        .probes
        .iter()
        .map(|probe| {
            json!({
                "method": probe.method.name(),
                "depth": probe.depth,
                "p50_us": probe.p50_us,
                "p99_us": probe.p99_us,
                "refused": probe.refused,
            })
        })
        .collect();
    let mut object = Map::new();
    extend(
        &mut object,
        json!({
            "mode": mode,
            "backend": backend.backend.to_string(),
            "method": backend.method.name(),
            "depth": backend.depth,
            "why": backend.why,
            "durability": durability_name(setting.durability),
            "producers": producers,
            "record_bytes": record_bytes,
            "idle": setting.idle.name(),
            "machine": {
                "cores": setting.cores,
                "kernel": facts.kernel,
                "dir": setting.dir,
                "device": facts.device,
                "file_system": facts.file_system,
                "volatile": facts.volatile,
                "direct": facts.direct,
                "block_bytes": facts.block_bytes,
                "logical_sector_bytes": facts.logical_sector_bytes,
                "physical_sector_bytes": facts.physical_sector_bytes,
                "write_cache": facts.write_cache,
                "fua": facts.fua,
                "huge_pages": backend.huge_pages,
                "registered_buffers": backend.registered_buffers,
                "registered_files": backend.registered_files,
                "ring_flags": backend.ring_flags,
                "timer_ns": setting.timer.as_nanos() as u64,
            },
            "probes": probes,
            "memory_bytes": setting.memory_bytes,
        }),
    );
    object
}

fn extend(object: &mut Map<String, Value>, more: Value) {
    if let Value::Object(more) = more {
        object.extend(more);
    }
}

fn stages(stages: &Stages) -> Value {
    json!({
        "submit": us(&stages.submit),
        "wait_for_writer": us(&stages.wait_for_writer),
        "write_sync": us(&stages.write_sync),
        "wake_up": us(&stages.wake_up),
    })
}

fn us(latencies: &Latencies) -> Value {
    percentiles(latencies, 1e3)
}

fn ns(latencies: &Latencies) -> Value {
    percentiles(latencies, 1.0)
}

fn percentiles(latencies: &Latencies, unit_ns: f64) -> Value {
    let at = |quantile| round3(latencies.quantile_ns(quantile) / unit_ns);
    json!({
        "p50": at(0.5),
        "p90": at(0.9),
        "p99": at(0.99),
        "p999": at(0.999),
        "max": round3(latencies.max_ns() / unit_ns),
    })
}

fn round1(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
