//! One turn: a peer under one work for some time, in a process of its own, so that what a peer leaves behind
//! (threads, settings, memory, a panic) meets nobody else, and its CPU time is its own.

use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use uringlog_perf::{Latencies, Pace, cpu_time, payload, timer_cost};

use crate::peer::{Entry, Error, Peer, Producer};
use crate::workload::{BATCH_RECORDS, Kind, STREAM_BYTES_MAX, SUBMIT_RATE, Workload};

/// What a turn measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Turn {
    pub records: u64,
    pub seconds: f64,
    /// CPU time of the whole process meanwhile, io_uring's workers included, in seconds. Where records are submitted
    /// at a steady pace, without that of the thread that submits, which spins.
    pub cpu_seconds: f64,
    /// Latencies of the calls in ns, at the places of [`nines`]. Empty for a stream.
    pub latencies_ns: Vec<f64>,
}

/// Where a latency curve is looked at: at these numbers of nines, 0.1 apart. The fourth is the median.
pub fn nines() -> Vec<f64> {
    let step = |step| if step == 3 { 2_f64.log10() } else { f64::from(step) / 10.0 };
    (0..=40).map(step).collect()
}

/// Places in a latency curve.
pub const P50: usize = 3;
pub const P90: usize = 10;
pub const P99: usize = 20;
pub const P999: usize = 30;

fn curve(latencies: &Latencies) -> Vec<f64> {
    let quantile = |nines: f64| 1.0 - 10_f64.powf(-nines);
    nines().into_iter().map(|nines| latencies.quantile_ns(quantile(nines))).collect()
}

impl Turn {
    pub fn records_per_s(&self) -> f64 {
        self.records as f64 / self.seconds.max(1e-9)
    }

    pub fn cpu_us_per_record(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.records.max(1) as f64
    }
}

/// Runs it in `dir`, which is empty.
pub fn run(entry: &Entry, work: Workload, time: Duration, dir: &Path) -> Result<Turn, Error> {
    let peer = (entry.open)(dir, work.kind)?;
    match work.kind {
        Kind::Durable | Kind::Batch => closed_loop(&*peer, work, time),
        Kind::Stream => stream(&*peer, work, time),
        Kind::Submit => paced(&*peer, work, time),
    }
}

/// Every thread appends, waits, and appends again. The first eighth does not count; of the latencies those count
/// whose calls began later, of the records those that were acknowledged later.
fn closed_loop(peer: &dyn Peer, work: Workload, time: Duration) -> Result<Turn, Error> {
    let started = Barrier::new(work.threads + 1);
    let mut turn = Turn::default();
    let mut all = Latencies::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..work.threads)
            .map(|index| {
                scope.spawn({
                    let started = &started;
                    move || one_thread(peer, index, work, time, started)
                })
            })
            .collect();
        started.wait();
        thread::sleep(time / 8);
        let cpu = cpu_time();
        thread::sleep(time - time / 8);
        turn.cpu_seconds = (cpu_time() - cpu).as_secs_f64();
        for thread in threads {
            let (latencies, in_time) = thread.join().map_err(|_| "a thread panicked")??;
            all.add(&latencies);
            turn.records += in_time;
        }
        Ok::<(), Error>(())
    })?;
    turn.seconds = (time - time / 8).as_secs_f64();
    turn.latencies_ns = curve(&all);
    Ok(turn)
}

fn one_thread(
    peer: &dyn Peer,
    index: usize,
    work: Workload,
    time: Duration,
    started: &Barrier,
) -> Result<(Latencies, u64), Error> {
    let record = payload(work.record_bytes);
    let batch = vec![&record[..]; BATCH_RECORDS];
    let each = if work.kind == Kind::Batch { BATCH_RECORDS as u64 } else { 1 };
    let (mut latencies, mut in_time) = (Latencies::new(), 0);
    let producer = peer.producer(index);
    started.wait();
    let mut producer = producer?;
    let start = Instant::now();
    let (counts_from, end) = (start + time / 8, start + time);
    let mut before = start;
    while before < end {
        match work.kind {
            Kind::Batch => producer.append_batch(&batch)?,
            _ => producer.append(&record)?,
        }
        let after = Instant::now();
        // The last call counts as slow, but not as done in time.
        if before >= counts_from {
            latencies.record(after - before);
        }
        if after >= counts_from && after <= end {
            in_time += each;
        }
        before = after;
    }
    Ok((latencies, in_time))
}

/// One thread submits as fast as it can; the sync at the end counts.
fn stream(peer: &dyn Peer, work: Workload, time: Duration) -> Result<Turn, Error> {
    const LOOK_EVERY: u64 = 64;
    let record = payload(work.record_bytes);
    let mut producer = peer.producer(0)?;
    // Buffers are touched once before anything counts.
    let warm_up = STREAM_BYTES_MAX / 16 / work.record_bytes as u64;
    (0..warm_up).try_for_each(|_| producer.submit(&record))?;
    let producer = synced(peer, producer)?;
    let most = STREAM_BYTES_MAX / work.record_bytes as u64;
    let (cpu, start) = (cpu_time(), Instant::now());
    let mut records = 0;
    let mut producer = producer;
    while records < most && start.elapsed() < time {
        for _ in 0..LOOK_EVERY {
            producer.submit(&record)?;
        }
        records += LOOK_EVERY;
    }
    drop(producer);
    peer.sync()?;
    Ok(Turn {
        records,
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: (cpu_time() - cpu).as_secs_f64(),
        latencies_ns: Vec::new(),
    })
}

/// Has all of it on the device, and goes on with a new producer.
fn synced<'a>(
    peer: &'a dyn Peer,
    producer: Box<dyn Producer + 'a>,
) -> Result<Box<dyn Producer + 'a>, Error> {
    drop(producer);
    peer.sync()?;
    peer.producer(0)
}

/// One thread submits at a steady pace. What reading the clock costs is taken off.
fn paced(peer: &dyn Peer, work: Workload, time: Duration) -> Result<Turn, Error> {
    let record = payload(work.record_bytes);
    let timer = timer_cost();
    let mut producer = peer.producer(0)?;
    for _ in 0..10_000 {
        producer.submit(&record)?;
    }
    let mut latencies = Latencies::new();
    let mut pace = Pace::new(Some(SUBMIT_RATE));
    let others_cpu = || cpu_time().saturating_sub(own_cpu_time());
    let (cpu, start) = (others_cpu(), Instant::now());
    while start.elapsed() < time {
        pace.wait();
        let before = Instant::now();
        producer.submit(&record)?;
        let took = before.elapsed();
        latencies.record(took.saturating_sub(timer));
    }
    Ok(Turn {
        records: latencies.count(),
        seconds: start.elapsed().as_secs_f64(),
        cpu_seconds: others_cpu().saturating_sub(cpu).as_secs_f64(),
        latencies_ns: curve(&latencies),
    })
}

/// CPU time of this thread.
fn own_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
