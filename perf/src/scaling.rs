//! What appending costs its caller when more of them do it at once: bursts that nobody waits for, each
//! producer on a CPU of its own as far as there are enough.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uringlog::Log;

use crate::clock::median;
use crate::error::Error;
use crate::latencies::round3;
use crate::rounds::{Work, pin};
use crate::scenario::{Bench, Setting, extend};
use crate::target::payload;
use crate::threads::Threads;

/// What was measured with one number of producers.
#[derive(Clone, Debug)]
pub struct Step {
    /// Producers at once.
    pub producers: usize,
    /// ns of one append: the median of all bursts of all producers.
    pub append_ns: f64,
    /// Of the rate that a producer has alone, what it lost.
    pub loss: f64,
}

/// What it measured.
pub struct Scaled {
    /// Payload bytes of a record.
    pub record_bytes: usize,
    /// Appends of one burst: they fit into a ring.
    pub burst: usize,
    /// One producer first.
    pub steps: Vec<Step>,
}

/// Bytes that a burst takes in a ring, at most: well below the smallest ring.
const BURST_BYTES: usize = 48 << 10;
/// What a record takes in a ring beside its payload, about.
const OVERHEAD_BYTES: usize = 16;

/// Measures 1, 2, 4 and so on up to `producers_max`, for `time` in all.
pub fn measure(
    bench: &Bench<'_>,
    log: &Log,
    record_bytes: usize,
    producers_max: usize,
    time: Duration,
) -> Result<Scaled, Error> {
    let burst = (BURST_BYTES / (record_bytes + OVERHEAD_BYTES)).clamp(1, 1024);
    let numbers: Vec<usize> = steps(producers_max);
    // All numbers in turns, like contenders.
    const ROUNDS: u32 = 5;
    let each = time / (ROUNDS * numbers.len() as u32);
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); numbers.len()];
    for _ in 0..ROUNDS {
        for (producers, samples) in numbers.iter().zip(&mut samples) {
            bench.stop.check()?;
            samples.extend(bursts(log, record_bytes, burst, *producers, each)?);
        }
    }
    let append_ns: Vec<f64> = samples.iter().map(|samples| median(samples)).collect();
    let alone = append_ns.first().copied().unwrap_or(0.0);
    let step = |(&producers, &append_ns): (&usize, &f64)| Step {
        producers,
        append_ns,
        loss: 1.0 - alone / append_ns.max(1e-9),
    };
    Ok(Scaled { record_bytes, burst, steps: numbers.iter().zip(&append_ns).map(step).collect() })
}

/// 1, 2, 4 and so on, and the last.
fn steps(producers_max: usize) -> Vec<usize> {
    let max = producers_max.max(1);
    let mut numbers: Vec<usize> =
        std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n < max).collect();
    numbers.push(max);
    numbers
}

/// ns of one append in each burst of each producer.
fn bursts(
    log: &Log,
    record_bytes: usize,
    burst: usize,
    producers: usize,
    time: Duration,
) -> Result<Vec<f64>, Error> {
    let start = Start { arrived: AtomicUsize::new(0), producers, ended: AtomicBool::new(false) };
    let all = Mutex::new((Vec::new(), None));
    let started = Instant::now();
    let threads = Threads::default();
    thread::scope(|scope| {
        let work = |index| {
            let (start, all) = (&start, &all);
            move || {
                pin(index);
                let record = payload(record_bytes);
                let mut samples = Vec::new();
                let mut round = 0;
                let result = loop {
                    // The first says when it is over, before all start together.
                    if index == 0 && started.elapsed() >= time {
                        start.ended.store(true, Ordering::Relaxed);
                    }
                    round += 1;
                    start.wait(round);
                    if start.ended.load(Ordering::Relaxed) {
                        break Ok(());
                    }
                    let begun = Instant::now();
                    let appended = (0..burst).try_for_each(|_| log.append(&record).map(drop));
                    samples.push(begun.elapsed().as_nanos() as f64 / burst as f64);
                    // What was appended is gone before the next burst: a full ring is another matter.
                    let synced = appended.map_err(Error::from).and_then(|()| Ok(log.sync()?));
                    if let Err(error) = synced {
                        start.ended.store(true, Ordering::Relaxed);
                        break Err(error);
                    }
                };
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.0.append(&mut samples);
                all.1 = all.1.take().or(result.err());
            }
        };
        threads.start(scope, (0..producers).map(work))
    })?;
    match all.into_inner().unwrap_or_else(PoisonError::into_inner) {
        (_, Some(error)) => Err(error),
        (samples, None) => Ok(samples),
    }
}

/// Where producers meet: awake, for one that has to be woken would start after the others have ended.
struct Start {
    arrived: AtomicUsize,
    producers: usize,
    ended: AtomicBool,
}

impl Start {
    /// Returns when all have come `round` times, or when it is over.
    fn wait(&self, round: usize) {
        // AcqRel and Acquire: who returns sees what the others did before they came, the end included.
        self.arrived.fetch_add(1, Ordering::AcqRel);
        while self.arrived.load(Ordering::Acquire) < round * self.producers {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            thread::yield_now();
        }
    }
}

impl Scaled {
    /// As one object.
    pub fn to_json(&self, setting: &Setting) -> Value {
        let producers = self.steps.last().map_or(0, |step| step.producers);
        let work = Work { record_bytes: self.record_bytes, batch: 1 };
        let mut object = setting.head("scaling", producers, work);
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| {
                json!({
                    "name": format!("{}_producers", step.producers),
                    "producers": step.producers,
                    "append_ns": round3(step.append_ns),
                    "appends_per_s_each": round3(1e9 / step.append_ns.max(1e-9)),
                    "loss": round3(step.loss),
                })
            })
            .collect();
        extend(&mut object, json!({ "burst": self.burst, "steps": steps }));
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_double_and_end_with_the_last() {
        assert_eq!(steps(1), [1]);
        assert_eq!(steps(2), [1, 2]);
        assert_eq!(steps(6), [1, 2, 4, 6]);
        assert_eq!(steps(16), [1, 2, 4, 8, 16]);
    }

    #[test]
    fn producers_meet() {
        let start =
            Start { arrived: AtomicUsize::new(0), producers: 3, ended: AtomicBool::new(false) };
        let passed = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 1..=100 {
                        start.wait(round);
                        // Nobody is more than a round ahead.
                        let before = passed.fetch_add(1, Ordering::SeqCst);
                        assert!(before < 3 * round);
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 300);
    }
}
