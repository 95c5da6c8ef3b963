//! The machine's own hiccups, to be seen beside the log's latencies.
//!
//! A thread sleeps for five milliseconds again and again and records how late it woke up. It sleeps rather
//! than spins: a spinning thread would take a core away from what is measured, or, in short spins a few
//! times a second, look at only some hundredths of the time. A sleeper costs 200 wake-ups a second (some
//! thousandths of a core), sees every hiccup that is longer than its sleep, and meets what the measured threads meet:
//! the timer, the scheduler, a hypervisor that runs somebody else. While a log is under load the load
//! itself makes it late too; so the same is recorded for a quiet moment before the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::clock;
use crate::latencies::Latencies;
use crate::schedule::sleep_precisely;

/// The thread, and where it records at the moment.
pub struct Jitter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Vec<Latencies>>>,
}

struct Shared {
    slot: AtomicUsize,
    ended: AtomicBool,
    /// CPU time that the thread itself took, in ns.
    cpu_ns: AtomicU64,
}

const SLEEP: Duration = Duration::from_millis(5);

impl Jitter {
    /// Starts it, with `slots` histograms. It records into none until [`Jitter::record_into`]. Where no
    /// thread can be had, it records nothing.
    pub fn start(slots: usize) -> Self {
        let shared = Arc::new(Shared {
            slot: AtomicUsize::new(slots),
            ended: AtomicBool::new(false),
            cpu_ns: AtomicU64::new(0),
        });
        let seen = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("jitter".to_owned())
            .spawn(move || watch(&seen, slots))
            .ok();
        Jitter { shared, thread }
    }

    /// From now on it records into histogram `slot`; into none, where there is no such slot.
    pub fn record_into(&self, slot: usize) {
        self.shared.slot.store(slot, Ordering::Relaxed);
    }

    /// Records for `time` into `slot` while the caller does nothing.
    pub fn quiet(&self, slot: usize, time: Duration) {
        self.record_into(slot);
        thread::sleep(time);
        self.record_into(usize::MAX);
    }

    /// CPU time that its thread has taken: not to be charged to what is measured.
    pub fn cpu_time(&self) -> Duration {
        Duration::from_nanos(self.shared.cpu_ns.load(Ordering::Relaxed))
    }

    /// Ends it, and returns the histograms.
    pub fn finish(mut self) -> Vec<Latencies> {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Jitter {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
    }
}

fn watch(shared: &Shared, slots: usize) -> Vec<Latencies> {
    sleep_precisely();
    let mut slots: Vec<Latencies> = (0..slots).map(|_| Latencies::new()).collect();
    while !shared.ended.load(Ordering::Relaxed) {
        let slot = shared.slot.load(Ordering::Relaxed);
        let start = Instant::now();
        thread::sleep(SLEEP);
        let late = start.elapsed().saturating_sub(SLEEP);
        if let Some(latencies) = slots.get_mut(slot) {
            latencies.record(late);
        }
        let cpu = clock::thread_cpu_time().as_nanos();
        shared.cpu_ns.store(u64::try_from(cpu).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_records_into_the_slot_that_is_named() {
        let jitter = Jitter::start(2);
        jitter.quiet(1, Duration::from_millis(30));
        let slots = jitter.finish();
        assert_eq!(slots.len(), 2);
        assert_eq!(slots[0].count(), 0);
        assert!(slots[1].count() > 0);
    }
}
