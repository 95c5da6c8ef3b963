//! One producer that does not wait: bursts with one sync at the end, inside prepared space, in
//! turns with the disk's raw bandwidth, the plain reference log and the bare loop; submitting at
//! a steady pace; and the sustained rate into space that has to be prepared meanwhile.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uringlog::{Log, Lsn, Options};

use crate::bare::Bare;
use crate::clock::{Pace, cpu_time, median};
use crate::error::{Error, Stop};
use crate::latencies::{Latencies, round3};
use crate::plain;
use crate::raw::{Best, Raw};
use crate::rounds::Work;
use crate::scenario::{Bench, Setting, extend};
use crate::scratch::Scratch;
use crate::stages::Stages;
use crate::target::payload;

/// What to run.
#[derive(Clone, Copy)]
pub struct Workload {
    /// Payload bytes of a record.
    pub record_bytes: usize,
    /// Appends a second while submitting is measured.
    pub rate: f64,
    /// Exactly so many turns; as many as fit, and at least one, without.
    pub rounds: Option<u32>,
    /// Time for all turns together.
    pub seconds: Duration,
    /// Whether to measure the reference log too.
    pub reference: bool,
    /// Largest pre-written file and prepared segment in bytes.
    pub space_bytes: u64,
}

/// What it measured.
pub struct Async {
    /// What was run.
    pub workload: Workload,
    /// Size of a segment: a burst fits into one.
    pub segment_bytes: u64,
    /// Records of one burst.
    pub burst_records: u64,
    /// Appends a second of each burst, its sync included.
    pub bursts: Vec<f64>,
    /// CPU time of the process in the bursts, and their appends.
    pub cpu: Duration,
    /// See `cpu`.
    pub appends: u64,
    /// Of the appends at a steady pace; nobody waits for them, so `wake` is left empty.
    pub stages: Stages,
    /// Of the same, from the return of append to the end of its batch's sync.
    pub durable: Latencies,
    /// Their pace.
    pub paced_per_s: f64,
    /// Appends a second into space that was not prepared before.
    pub fresh_per_s: f64,
    /// The disk's own bandwidth.
    pub raw: Best,
    /// CPU time of the process in the reference log's turns.
    pub reference_cpu: Duration,
    /// Appends a second of the reference log's turns.
    pub reference: Vec<f64>,
    /// Commits of the bare loop, how long its turns were, and the bytes of one write.
    pub bare: Latencies,
    /// See `bare`.
    pub bare_elapsed: Duration,
    /// See `bare`.
    pub bare_block_bytes: usize,
}

impl Async {
    /// The median burst.
    pub fn appends_per_s(&self) -> f64 {
        median(&self.bursts)
    }

    /// The reference log's median burst, where it was measured.
    pub fn reference_per_s(&self) -> Option<f64> {
        (!self.reference.is_empty()).then(|| median(&self.reference))
    }

    /// CPU time of the bursts, by append.
    pub fn cpu_us_per_append(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / (self.appends as f64).max(1.0)
    }

    /// The same of the reference log, where it was measured.
    pub fn reference_cpu_us_per_append(&self) -> Option<f64> {
        let appends = self.reference.len() as f64 * self.burst_records as f64;
        (appends > 0.0).then(|| self.reference_cpu.as_secs_f64() * 1e6 / appends)
    }

    /// As one object.
    pub fn to_json(&self, setting: &Setting) -> Value {
        let record_bytes = self.workload.record_bytes;
        let rate = self.appends_per_s();
        let mb = record_bytes as f64 / 1e6;
        let bare_per_s = self.bare.count() as f64 / self.bare_elapsed.as_secs_f64().max(1e-9);
        let raw = self.raw.mb_per_s.max(1e-9);
        let reference_cpu = self.reference_cpu_us_per_append();
        let over_bare = |quantile| {
            round3(self.durable.quantile_ns(quantile) / self.bare.quantile_ns(quantile).max(1.0))
        };
        let mut object = setting.head("async", 1, Work { record_bytes, batch: 1 });
        let rest = json!({
            "rounds": self.bursts.len(),
            "burst_records": self.burst_records,
            "segment_bytes": self.segment_bytes,
            "appends": self.appends,
            "appends_per_s": round3(rate),
            "mb_per_s": round3(rate * mb),
            "bursts_appends_per_s": self.bursts.iter().copied().map(round3).collect::<Vec<_>>(),
            "paced_appends_per_s": round3(self.paced_per_s),
            "submit_ns": self.stages.append_returns.to_json_ns(),
            "durable_us": self.durable.to_json_us(),
            "stages_us": self.stages.to_json_us(),
            "bare_us": self.bare.to_json_us(),
            "bare_commits_per_s": round3(bare_per_s),
            "bare_bytes": self.bare_block_bytes,
            "raw_mb_per_s": round3(self.raw.mb_per_s),
            "raw_chunk_bytes": self.raw.chunk_bytes,
            "raw_threads": self.raw.threads,
            "fresh_appends_per_s": round3(self.fresh_per_s),
            "fresh_mb_per_s": round3(self.fresh_per_s * mb),
            "reference_appends_per_s": self.reference_per_s().map(round3),
            "reference_cpu_us_per_append": reference_cpu.map(round3),
            "ratio": {
                "p50": over_bare(0.5),
                "p99": over_bare(0.99),
                "appends_per_bare_commit": round3(rate / bare_per_s.max(1e-9)),
                "mb_per_s": round3(rate * mb / raw),
                "fresh_mb_per_s": round3(self.fresh_per_s * mb / raw),
                "reference": self.reference_per_s().map(|per_s| round3(rate / per_s.max(1e-9))),
                "reference_cpu": reference_cpu.map(|us| round3(self.cpu_us_per_append() / us.max(1e-9))),
            },
            "cpu_us_per_append": round3(self.cpu_us_per_append()),
        });
        extend(&mut object, rest);
        object
    }
}

/// What a record takes in a batch beside its payload, at most, with its share of batch headers.
const RECORD_OVERHEAD_BYTES: u64 = 9;
/// Share of a segment that a burst fills.
const BURST_SHARE: f64 = 0.8;
/// Of each turn: submitting at a steady pace, and the bare loop.
const PACED: Duration = Duration::from_millis(150);
const BARE: Duration = Duration::from_millis(100);
/// Longest pass of the raw bandwidth, one way of writing.
const RAW: Duration = Duration::from_millis(150);
/// Longest run into fresh space.
const FRESH: Duration = Duration::from_millis(1000);

/// Runs it, on logs of its own.
pub fn run(
    bench: &Bench<'_>,
    bare: &Bare,
    workload: Workload,
    timer: Duration,
    direct: bool,
) -> Result<Async, Error> {
    let Bench { options, scratch, stop, .. } = bench;
    let started = Instant::now();
    // Raw file, two large segments, and room for what the fresh run writes.
    let space_bytes = workload.space_bytes.min(scratch.free_bytes() / 8);
    let mut raw = Raw::prepare(scratch.path(), space_bytes, direct)?;
    // As large as what a slow disk could pre-write in the given time.
    let segment_bytes = raw.file.bytes;
    stop.check()?;

    let mut bench = Bursts::open(options, scratch, segment_bytes, workload, timer)?;
    let mut round = 0;
    loop {
        raw.round(RAW)?;
        stop.check()?;
        bench.burst(stop)?;
        if workload.reference {
            bench.reference(&raw)?;
        }
        stop.check()?;
        bench.paced(PACED, stop)?;
        bench.result.bare_elapsed += bare.turn(BARE, None, &mut bench.result.bare, stop)?;
        stop.check()?;
        round += 1;
        let enough = match workload.rounds {
            Some(rounds) => round >= rounds,
            None => started.elapsed() >= workload.seconds,
        };
        if enough {
            break;
        }
        bench.next_segment(stop)?;
    }
    let mut result = bench.finish()?;
    result.fresh_per_s = fresh(options, scratch, segment_bytes, workload, stop)?;
    result.raw = raw.best();
    result.bare_block_bytes = bare.block_bytes();
    Ok(result)
}

/// A log whose segments each take a whole burst, so that nothing is prepared while one runs.
struct Bursts {
    log: Log,
    dir: PathBuf,
    payload: Vec<u8>,
    timer: Duration,
    paced_elapsed: Duration,
    result: Async,
}

impl Bursts {
    fn open(
        options: &Options,
        scratch: &Scratch,
        segment_bytes: u64,
        workload: Workload,
        timer: Duration,
    ) -> Result<Self, Error> {
        let dir = scratch.path().join("bursts");
        let log = options
            .clone()
            .segment_bytes(segment_bytes)
            .segments_ready(1)
            // Between turns nothing is measured that a fast preparer could disturb.
            .prepare_bytes_per_s(1 << 40)
            .open(&dir)?;
        let record_bytes = workload.record_bytes as u64 + RECORD_OVERHEAD_BYTES;
        let burst_records = ((segment_bytes as f64 * BURST_SHARE) as u64 / record_bytes).max(1);
        // Buffers and rings are touched once before anything counts.
        let payload = payload(workload.record_bytes);
        for _ in 0..(burst_records / 16).max(1) {
            log.append(&payload)?.lsn();
        }
        log.sync()?;
        Ok(Bursts {
            payload,
            timer,
            log,
            paced_elapsed: Duration::ZERO,
            result: Async {
                workload,
                segment_bytes,
                burst_records,
                bursts: Vec::new(),
                cpu: Duration::ZERO,
                appends: 0,
                stages: Stages::new(),
                durable: Latencies::new(),
                paced_per_s: 0.0,
                fresh_per_s: 0.0,
                raw: Best { mb_per_s: 0.0, chunk_bytes: 0, threads: 0 },
                reference: Vec::new(),
                reference_cpu: Duration::ZERO,
                bare: Latencies::new(),
                bare_elapsed: Duration::ZERO,
                bare_block_bytes: 0,
            },
            dir,
        })
    }

    /// Appends a burst and syncs it.
    fn burst(&mut self, stop: &Stop) -> Result<(), Error> {
        let records = self.result.burst_records;
        wait_prepared(&self.dir, stop)?;
        let (cpu_before, started) = (cpu_time(), Instant::now());
        for _ in 0..records {
            self.log.append(&self.payload)?.lsn();
        }
        self.log.sync()?;
        self.result.bursts.push(records as f64 / started.elapsed().as_secs_f64());
        self.result.cpu += cpu_time().saturating_sub(cpu_before);
        self.result.appends += records;
        Ok(())
    }

    /// The same with the plain log.
    fn reference(&mut self, raw: &Raw) -> Result<(), Error> {
        let records = self.result.burst_records;
        let cpu_before = cpu_time();
        let took = plain::append(&raw.file, &self.payload, records)
            .map_err(|error| Error::file("write", &raw.file.path, error))?;
        self.result.reference_cpu += cpu_time().saturating_sub(cpu_before);
        self.result.reference.push(records as f64 / took.as_secs_f64());
        Ok(())
    }

    /// Submits at a steady pace, timing each call.
    fn paced(&mut self, length: Duration, stop: &Stop) -> Result<(), Error> {
        const FOLLOW_EVERY: u64 = 64;
        let mut followed: VecDeque<(Lsn, Instant)> = VecDeque::new();
        let mut pace = Pace::new(Some(self.result.workload.rate));
        let started = Instant::now();
        let mut appends = 0_u64;
        while started.elapsed() < length && !stop.is_raised() {
            pace.wait();
            let start = Instant::now();
            let lsn = self.log.append(&self.payload)?.lsn();
            let published = Instant::now();
            self.result.stages.append_returned(published - start, self.timer);
            // Some are followed until they are durable; asked about soon, for the log knows only
            // its last batches.
            match appends % FOLLOW_EVERY {
                0 => followed.push_back((lsn, published)),
                2 => self.settle(&mut followed),
                _ => {}
            }
            appends += 1;
        }
        self.paced_elapsed += started.elapsed();
        self.result.paced_per_s += appends as f64;
        self.log.sync()?;
        self.settle(&mut followed);
        Ok(())
    }

    /// Records how long those took that are durable by now.
    fn settle(&mut self, followed: &mut VecDeque<(Lsn, Instant)>) {
        let durable = self.log.durable_lsn();
        while let Some(&(lsn, published)) = followed.front().filter(|(lsn, _)| *lsn <= durable) {
            followed.pop_front();
            if let Some(batch) = self.log.batch_timing(lsn) {
                self.result.durable.record(batch.durable.saturating_duration_since(published));
            }
            self.result.stages.split(&self.log, lsn, published, None);
        }
    }

    /// Fills the live segment up, so that the next burst starts in a prepared one.
    fn next_segment(&mut self, stop: &Stop) -> Result<(), Error> {
        let filler = vec![0; 64 << 10];
        let before = self.log.stats().rotations;
        while self.log.stats().rotations == before {
            stop.check()?;
            self.log.append(&filler)?.lsn();
            self.log.sync()?;
        }
        Ok(())
    }

    fn finish(self) -> Result<Async, Error> {
        let mut result = self.result;
        result.paced_per_s /= self.paced_elapsed.as_secs_f64().max(1e-9);
        self.log.close()?;
        Ok(result)
    }
}

/// Waits until the background thread has nothing more to prepare in `dir`: no unfinished file, and
/// no new one for a while. Gives up after some seconds, on disks that are slow.
fn wait_prepared(dir: &Path, stop: &Stop) -> Result<(), Error> {
    const CALM: Duration = Duration::from_millis(60);
    const PATIENCE: Duration = Duration::from_secs(5);
    let started = Instant::now();
    let mut calm = Instant::now();
    let mut before = Vec::new();
    while calm.elapsed() < CALM && started.elapsed() < PATIENCE {
        stop.check()?;
        let mut names: Vec<_> = fs::read_dir(dir)
            .map_err(|error| Error::file("read", dir, error))?
            .filter_map(|entry| Some(entry.ok()?.file_name()))
            .collect();
        names.sort_unstable();
        let unfinished = names.iter().any(|name| name.to_string_lossy().ends_with(".tmp"));
        if unfinished || names != before {
            calm = Instant::now();
        }
        before = names;
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Appends a second into space that has to be prepared while it is used, with default options: the
/// space that open prepared is used up first.
fn fresh(
    options: &Options,
    scratch: &Scratch,
    segment_bytes: u64,
    workload: Workload,
    stop: &Stop,
) -> Result<f64, Error> {
    const BATCH: u64 = 64;
    let segment_bytes = segment_bytes.min(64 << 20);
    let log = options.clone().segment_bytes(segment_bytes).open(scratch.path().join("fresh"))?;
    let payload = payload(workload.record_bytes);
    let append = |records: u64| {
        (0..records).try_for_each(|_| log.append(&payload).map(|_| ())).map_err(Error::from)
    };
    while log.stats().rotations < 3 {
        stop.check()?;
        append(BATCH)?;
    }
    let length = FRESH.min(workload.seconds / 5);
    let bytes_max = (1 << 30).min(scratch.free_bytes() / 4);
    let (started, mut records) = (Instant::now(), 0);
    while started.elapsed() < length && records * (payload.len() as u64) < bytes_max {
        stop.check()?;
        append(BATCH)?;
        records += BATCH;
    }
    log.sync()?;
    let rate = records as f64 / started.elapsed().as_secs_f64();
    log.close()?;
    Ok(rate)
}
