//! What an append notices of the log's housekeeping: one producer waits for each record while small
//! segments fill up, new ones are prepared, and old ones are trimmed behind it. Appends during which
//! any of that was under way are told from the others of the same run.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uringlog::{Housekeeping, Log, Lsn, Options};

use crate::error::{Error, Stop};
use crate::latencies::{Latencies, round3};
use crate::rounds::Work;
use crate::scenario::{Setting, object};
use crate::target::payload;

/// How new segments come about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Trimmed segments are used again.
    Recycling,
    /// Trimmed segments are removed, and new ones filled with zeros.
    ZeroFilling,
}

impl Mode {
    /// The mode's name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Recycling => "recycling",
            Mode::ZeroFilling => "zero-filling",
        }
    }

    /// Small enough for many rotations; a segment that is filled needs time for it to be noticed.
    pub fn segment_bytes(self, asked: Option<u64>) -> u64 {
        asked.unwrap_or(match self {
            Mode::Recycling => 1 << 20,
            Mode::ZeroFilling => 4 << 20,
        })
    }

    /// The options that make the log work so.
    pub fn options(self, options: Options, segment_bytes: Option<u64>) -> Options {
        let options = options.segment_bytes(self.segment_bytes(segment_bytes));
        match self {
            Mode::Recycling => options.spares_max(32),
            Mode::ZeroFilling => options.spares_max(0),
        }
    }
}

/// What was measured in one mode.
pub struct Rotation {
    /// The mode.
    pub mode: Mode,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Appends during which nothing else went on.
    pub steady: Latencies,
    /// Appends during which anything did.
    pub tagged: Latencies,
    /// The same by what it was; an append may count for several.
    pub causes: [(&'static str, Latencies); CAUSES],
    /// Segments that the log moved on to.
    pub rotations: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Times that the writer had no segment to go on in.
    pub waits: u64,
}

impl Rotation {
    /// Tagged p99.9 over steady p99.9.
    pub fn ratio(&self) -> f64 {
        self.tagged.quantile_ns(0.999) / self.steady.quantile_ns(0.999).max(1.0)
    }
}

/// All modes' results as one object.
pub fn to_json(setting: &Setting, record_bytes: usize, results: &[Rotation]) -> Value {
    let mut value = setting.head("rotation", 1, Work { record_bytes, batch: 1 });
    for result in results {
        let causes = object(result.causes.iter().map(|(cause, latencies)| {
            let mut value = latencies.to_json_us();
            value["count"] = json!(latencies.count());
            (cause.replace(' ', "_"), value)
        }));
        value[result.mode.name().replace('-', "_")] = json!({
            "segment_bytes": result.segment_bytes,
            "rotations": result.rotations,
            "rotation_waits": result.waits,
            "seconds": round3(result.elapsed.as_secs_f64()),
            "steady_count": result.steady.count(),
            "tagged_count": result.tagged.count(),
            "steady_us": result.steady.to_json_us(),
            "tagged_us": result.tagged.to_json_us(),
            "causes_us": causes,
            "ratio_p999": round3(result.ratio()),
        });
    }
    value
}

const CAUSES: usize = 5;
/// Samples of each kind without which a p99.9 says little.
const SAMPLES_MIN: u64 = 10_000;
/// A slow disk ends it with fewer.
const TIME_MAX: Duration = Duration::from_secs(60);
/// How often what was written is trimmed away.
const TRIM_EVERY: Duration = Duration::from_millis(250);
/// Records left in the log.
const KEPT: u64 = 64;

/// Runs one mode for `time`, and longer until there are samples enough.
pub fn run(
    log: &Log,
    mode: Mode,
    segment_bytes: u64,
    record_bytes: usize,
    time: Duration,
    stop: &Stop,
) -> Result<Rotation, Error> {
    let (ended, trimming) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = log.stats();
    let started = Instant::now();
    let mut measured = thread::scope(|scope| {
        let trimmer = scope.spawn(|| trim_behind(log, &ended, &trimming));
        let warm = warm_up(log, mode, record_bytes, stop);
        let measured = append(log, record_bytes, time, &trimming, stop);
        ended.store(true, Ordering::Relaxed);
        let trimmed =
            trimmer.join().unwrap_or_else(|_| Err(Error::Failed("the trimmer died".to_owned())));
        trimmed.and(warm).and(measured)
    })?;
    let after = log.stats();
    measured.mode = mode;
    measured.segment_bytes = segment_bytes;
    measured.rotations = after.rotations - before.rotations;
    measured.waits = after.rotation_waits.count - before.rotation_waits.count;
    measured.elapsed = started.elapsed();
    Ok(measured)
}

/// Trims all but the last records again and again. `trimming` is odd while a trim is under way.
fn trim_behind(log: &Log, ended: &AtomicBool, trimming: &AtomicU64) -> Result<(), Error> {
    let mut rotations = 0;
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(TRIM_EVERY);
        let now = log.housekeeping().rotations;
        if now == rotations {
            continue;
        }
        rotations = now;
        let before = log.durable_lsn().get().saturating_sub(KEPT);
        trimming.fetch_add(1, Ordering::SeqCst);
        let trimmed = log.trim(Lsn::new(before));
        trimming.fetch_add(1, Ordering::SeqCst);
        trimmed?;
    }
    Ok(())
}

/// Until segments come about in the way of this mode: the first ones are all filled with zeros.
fn warm_up(log: &Log, mode: Mode, record_bytes: usize, stop: &Stop) -> Result<(), Error> {
    let payload = payload(record_bytes);
    let started = Instant::now();
    let is_warm = |now: Housekeeping| match mode {
        Mode::Recycling => now.recycled >= 8,
        Mode::ZeroFilling => now.removed >= 1,
    };
    while !is_warm(log.housekeeping()) && started.elapsed() < TIME_MAX {
        log.append(&payload)?.wait()?;
        stop.check()?;
    }
    Ok(())
}

fn append(
    log: &Log,
    record_bytes: usize,
    time: Duration,
    trimming: &AtomicU64,
    stop: &Stop,
) -> Result<Rotation, Error> {
    let payload = payload(record_bytes);
    let causes = ["rotation", "filling with zeros", "recycling", "removal", "trim"];
    let mut measured = Rotation {
        mode: Mode::Recycling,
        segment_bytes: 0,
        steady: Latencies::new(),
        tagged: Latencies::new(),
        causes: causes.map(|cause| (cause, Latencies::new())),
        rotations: 0,
        elapsed: Duration::ZERO,
        waits: 0,
    };
    let started = Instant::now();
    let mut before = (log.housekeeping(), trimming.load(Ordering::SeqCst));
    loop {
        let start = Instant::now();
        log.append(&payload)?.wait()?;
        let took = start.elapsed();
        let after = (log.housekeeping(), trimming.load(Ordering::SeqCst));
        let hits = hits(&before.0, &after.0, before.1, after.1);
        if hits.contains(&true) {
            measured.tagged.record(took);
        } else {
            measured.steady.record(took);
        }
        for ((_, latencies), hit) in measured.causes.iter_mut().zip(hits) {
            if hit {
                latencies.record(took);
            }
        }
        before = after;
        let samples = measured.tagged.count().min(measured.steady.count());
        let enough = started.elapsed() >= time && samples >= SAMPLES_MIN;
        if enough || started.elapsed() >= TIME_MAX {
            return Ok(measured);
        }
        stop.check()?;
    }
}

/// What was under way at the beginning or at the end, or came and went in between.
fn hits(
    before: &Housekeeping,
    after: &Housekeeping,
    trims_before: u64,
    trims_after: u64,
) -> [bool; CAUSES] {
    [
        before.rotations != after.rotations,
        before.preparing || after.preparing || before.prepared != after.prepared,
        before.recycling || after.recycling || before.recycled != after.recycled,
        before.removing || after.removing || before.removed != after.removed,
        trims_before % 2 == 1 || trims_before != trims_after,
    ]
}
