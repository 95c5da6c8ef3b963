//! What every scenario is run with, and where it stands.

use std::time::Duration;

use serde_json::{Map, Value, json};
use uringlog::{BackendInfo, Durability, Log, Options};

use crate::bare::Bare;
use crate::clock::timer_cost;
use crate::environment::Environment;
use crate::error::{Error, Stop};
use crate::rounds::Work;
use crate::scratch::{STEP_BYTES, Scratch};

/// What every scenario is run with.
pub struct Bench<'a> {
    /// To open the measured log with.
    pub options: Options,
    /// How its writer and its producers wait, by name: it goes into the results.
    pub idle: &'static str,
    /// Where logs and files are made.
    pub scratch: &'a Scratch,
    /// Ends a run early.
    pub stop: &'a Stop,
    /// Ties producer N to CPU N, around.
    pub pin: bool,
    /// Of each contender before anything counts; some hundredths of a second without.
    pub warm_up: Option<Duration>,
}

impl Bench<'_> {
    /// Opens the log that is measured.
    pub fn open(&self) -> Result<Log, Error> {
        Ok(self.options.clone().open(self.scratch.path().join("log"))?)
    }

    /// The bare loop that goes with a log: one block, more where a call's records do not fit into one.
    pub fn bare(&self, log: &Log, work: Work) -> Result<Bare, Error> {
        let facts = &log.backend().facts;
        let bytes = work.record_bytes.saturating_mul(work.batch).min(STEP_BYTES);
        let block_bytes = bytes.next_multiple_of(facts.block_bytes).max(facts.block_bytes);
        Bare::prepare(self.scratch.path(), block_bytes.min(STEP_BYTES), facts.direct)
    }
}

/// Where a run stands: what every result is printed with.
pub struct Setting {
    /// Which way the log takes, and what it knows of the device.
    pub backend: BackendInfo,
    /// What an acknowledgement means.
    pub durability: Durability,
    /// See [`Bench::idle`].
    pub idle: &'static str,
    /// See [`Bench::pin`].
    pub pinned: bool,
    /// The scratch directory.
    pub dir: String,
    /// What reading the clock costs, taken off where a call is timed.
    pub timer: Duration,
    /// What the log takes at most.
    pub memory_bytes: u64,
    /// The machine.
    pub environment: Environment,
}

impl Setting {
    /// That of `log`.
    pub fn of(log: &Log, bench: &Bench<'_>) -> Self {
        Setting {
            backend: log.backend().clone(),
            durability: log.durability(),
            idle: bench.idle,
            pinned: bench.pin,
            dir: bench.scratch.path().display().to_string(),
            timer: timer_cost(),
            memory_bytes: log.memory_bytes_max() as u64,
            environment: Environment::of(bench.scratch.path()),
        }
    }

    /// What every result starts with: `mode` names the scenario.
    pub(crate) fn head(&self, mode: &str, producers: usize, work: Work) -> Value {
        let backend = &self.backend;
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
        json!({
            "mode": mode,
            "backend": backend.backend.to_string(),
            "method": backend.method.name(),
            "depth": backend.depth,
            "why": backend.why,
            "durability": durability_name(self.durability),
            "producers": producers,
            "record_bytes": work.record_bytes,
            "batch": work.batch,
            "idle": self.idle,
            "pinned": self.pinned,
            "environment": self.environment.to_json(),
            "machine": {
                "dir": self.dir,
                "file_system": facts.file_system,
                "device": facts.device,
                "volatile": facts.volatile,
                "direct": facts.direct,
                "block_bytes": facts.block_bytes,
                "logical_sector_bytes": facts.logical_sector_bytes,
                "physical_sector_bytes": facts.physical_sector_bytes,
                "huge_pages": backend.huge_pages,
                "registered_buffers": backend.registered_buffers,
                "registered_files": backend.registered_files,
                "ring_flags": backend.ring_flags,
                "timer_ns": self.timer.as_nanos() as u64,
            },
            "probes": probes,
            "memory_bytes": self.memory_bytes,
        })
    }
}

/// The level's name, as the command takes and prints it.
pub fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::Durable => "durable",
        Durability::Written => "written",
    }
}

/// Adds the fields of `more` to the object `value`.
pub(crate) fn extend(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}

/// An object of named values.
pub(crate) fn object(fields: impl IntoIterator<Item = (String, Value)>) -> Value {
    Value::Object(fields.into_iter().collect::<Map<String, Value>>())
}
