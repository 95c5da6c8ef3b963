//! Closed loop: producers that each wait for their record before they append the next, in turns
//! with the bare loop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use uringlog::{Log, Lsn};

use super::bare::Bare;
use super::clock::{Latencies, Pace, cpu_time};
use crate::exit::Failure;
use crate::signals::Interrupt;

/// What to run.
#[derive(Clone, Copy)]
pub struct Workload {
    pub producers: usize,
    pub record_bytes: usize,
    /// Appends a second of all producers together; as fast as they can without.
    pub rate: Option<f64>,
    /// Turns of the log, and as many of the bare loop.
    pub rounds: u32,
    /// Length of one turn.
    pub round: Duration,
}

/// What it measured.
pub struct ClosedLoop {
    pub workload: Workload,
    pub stages: Stages,
    /// Appends that were acknowledged, and how long the log's turns lasted.
    pub appends: u64,
    pub elapsed: Duration,
    /// CPU time of the process in the log's turns.
    pub cpu: Duration,
    /// Batches, and the bytes they took on disk.
    pub batches: u64,
    pub disk_bytes: u64,
    pub bare: Latencies,
    pub bare_elapsed: Duration,
    pub bare_block_bytes: usize,
}

impl ClosedLoop {
    /// Acknowledged appends a second.
    pub fn appends_per_s(&self) -> f64 {
        self.appends as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Commits a second of the bare loop.
    pub fn bare_per_s(&self) -> f64 {
        self.bare.count() as f64 / self.bare_elapsed.as_secs_f64().max(1e-9)
    }
}

/// Latencies of appends, end to end and by stage.
#[derive(Clone)]
pub struct Stages {
    /// From the call of append until its thread goes on with an acknowledged record.
    pub end_to_end: Latencies,
    /// The call of append, the timer's own cost taken off.
    pub submit: Latencies,
    /// From there until the record's batch was submitted.
    pub wait_for_writer: Latencies,
    /// From there until it was durable.
    pub write_sync: Latencies,
    /// From there until the thread that waits for it ran.
    pub wake_up: Latencies,
}

impl Stages {
    /// Nothing yet.
    pub fn new() -> Self {
        let none = Latencies::new;
        Stages {
            end_to_end: none(),
            submit: none(),
            wait_for_writer: none(),
            write_sync: none(),
            wake_up: none(),
        }
    }

    fn add(&mut self, other: &Stages) {
        self.end_to_end.add(&other.end_to_end);
        self.submit.add(&other.submit);
        self.wait_for_writer.add(&other.wait_for_writer);
        self.write_sync.add(&other.write_sync);
        self.wake_up.add(&other.wake_up);
    }

    /// Splits up what record `lsn` took, where the log still knows its batch: published at
    /// `published`, and its thread went on at `woken`.
    pub fn split(&mut self, log: &Log, lsn: Lsn, published: Instant, woken: Option<Instant>) {
        let Some(batch) = log.batch_timing(lsn) else { return };
        self.wait_for_writer.record(batch.submitted.saturating_duration_since(published));
        self.write_sync.record(batch.durable.saturating_duration_since(batch.submitted));
        if let Some(woken) = woken {
            self.wake_up.record(woken.saturating_duration_since(batch.durable));
        }
    }
}

/// One append in so many is split up by stage: asking the log takes time that is nobody's stage.
const SPLIT_EVERY: u64 = 4;
/// Untimed turn before the first.
const WARM_UP: Duration = Duration::from_millis(50);

/// Runs it.
pub fn run(
    log: &Log,
    bare: &mut Bare,
    workload: Workload,
    timer: Duration,
    interrupt: &Interrupt,
) -> Result<ClosedLoop, Failure> {
    let crew = Crew {
        log,
        workload,
        timer,
        barrier: Barrier::new(workload.producers + 1),
        running: AtomicBool::new(false),
        counting: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        sum: Mutex::new((Stages::new(), 0)),
        failure: Mutex::new(None),
    };
    let mut measured = (Duration::ZERO, Duration::ZERO);
    let stats = thread::scope(|scope| {
        for _ in 0..workload.producers {
            scope.spawn(|| crew.producer());
        }
        let result = turns(&crew, bare, &mut measured, interrupt);
        crew.ended.store(true, Ordering::Relaxed);
        crew.barrier.wait();
        result
    })?;
    if let Some(failure) = crew.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(failure);
    }
    let (stages, appends) = crew.sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (batches, disk_bytes) = stats;
    let bare_block_bytes = bare.block_bytes();
    let (bare, bare_elapsed) = bare.take();
    let (elapsed, cpu) = measured;
    Ok(ClosedLoop {
        workload,
        stages,
        appends,
        elapsed,
        cpu,
        batches,
        disk_bytes,
        bare,
        bare_elapsed,
        bare_block_bytes,
    })
}

/// Log and bare loop in turns. Adds up the time and CPU time of the log's; returns its batches and
/// their bytes.
fn turns(
    crew: &Crew<'_>,
    bare: &mut Bare,
    (elapsed, cpu): &mut (Duration, Duration),
    interrupt: &Interrupt,
) -> Result<(u64, u64), Failure> {
    let round = crew.workload.round;
    bare.round(WARM_UP, interrupt)?;
    crew.round(WARM_UP, interrupt);
    crew.counting.store(true, Ordering::Relaxed);
    bare.take();
    let before = crew.log.stats();
    for _ in 0..crew.workload.rounds {
        let (cpu_before, started) = (cpu_time(), Instant::now());
        crew.round(round, interrupt);
        *elapsed += started.elapsed();
        *cpu += cpu_time().saturating_sub(cpu_before);
        bare.round(round, interrupt)?;
        super::check(interrupt)?;
        if crew.failure.lock().is_ok_and(|failure| failure.is_some()) {
            break;
        }
    }
    let after = crew.log.stats();
    Ok((after.batches - before.batches, after.disk_bytes - before.disk_bytes))
}

/// The producers, and what they share.
struct Crew<'a> {
    log: &'a Log,
    workload: Workload,
    timer: Duration,
    /// Met by all at the start and at the end of each turn.
    barrier: Barrier,
    running: AtomicBool,
    /// Whether this turn counts.
    counting: AtomicBool,
    ended: AtomicBool,
    /// Latencies and number of the appends of all turns that counted.
    sum: Mutex<(Stages, u64)>,
    failure: Mutex<Option<Failure>>,
}

impl Crew<'_> {
    /// Lets the producers run for one turn.
    fn round(&self, length: Duration, interrupt: &Interrupt) {
        // Relaxed, here and below: the barrier orders it, and a late view of the end only
        // lengthens the turn.
        self.running.store(true, Ordering::Relaxed);
        self.barrier.wait();
        let started = Instant::now();
        while !interrupt.is_raised() && self.running.load(Ordering::Relaxed) {
            let left = length.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        self.running.store(false, Ordering::Relaxed);
        self.barrier.wait();
    }

    /// One producer thread.
    fn producer(&self) {
        let payload = super::payload(self.workload.record_bytes);
        let rate = self.workload.rate.map(|rate| rate / self.workload.producers as f64);
        loop {
            self.barrier.wait();
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let counted = self.counting.load(Ordering::Relaxed);
            let mut stages = Stages::new();
            let mut appends = 0;
            if let Err(error) = self.turn(&payload, Pace::new(rate), &mut stages, &mut appends) {
                self.running.store(false, Ordering::Relaxed);
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
            // The turn's end is met before the sums are: adding is not part of the turn.
            self.barrier.wait();
            if !counted {
                continue;
            }
            let mut sum = self.sum.lock().unwrap_or_else(PoisonError::into_inner);
            sum.0.add(&stages);
            sum.1 += appends;
        }
    }

    fn turn(
        &self,
        payload: &[u8],
        mut pace: Pace,
        stages: &mut Stages,
        appends: &mut u64,
    ) -> Result<(), Failure> {
        while self.running.load(Ordering::Relaxed) {
            pace.wait();
            let start = Instant::now();
            let ticket = self.log.append(payload)?;
            let published = Instant::now();
            let lsn = ticket.wait()?;
            let woken = Instant::now();
            stages.end_to_end.record(woken - start);
            stages.submit.record((published - start).saturating_sub(self.timer));
            if appends.is_multiple_of(SPLIT_EVERY) {
                stages.split(self.log, lsn, published, Some(woken));
            }
            *appends += 1;
        }
        Ok(())
    }
}
