//! The log as a [`Target`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uringlog::{Log, Stats};

use crate::error::Error;
use crate::rounds::{Producer, Target, Work};
use crate::stages::Stages;

/// A log whose appends are waited for.
pub struct LogTarget<'a> {
    log: &'a Log,
    timer: Duration,
    before: Mutex<Stats>,
    /// Turns that counted so far.
    turns: AtomicU64,
    batches: AtomicU64,
    disk_bytes: AtomicU64,
}

/// One append in so many, from the first of a turn on, is split up by stage: asking the log takes time that is nobody's stage.
const SPLIT_EVERY: u64 = 4;

impl<'a> LogTarget<'a> {
    /// `timer` is what reading the clock costs.
    pub fn new(log: &'a Log, timer: Duration) -> Self {
        LogTarget {
            log,
            timer,
            before: Mutex::new(log.stats()),
            turns: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(0),
        }
    }

    /// Batches written in its turns, and the bytes that they took on disk.
    pub fn written(&self) -> (u64, u64) {
        (self.batches.load(Ordering::Relaxed), self.disk_bytes.load(Ordering::Relaxed))
    }
}

impl Target for LogTarget<'_> {
    fn producer(&self, work: Work) -> Result<Box<dyn Producer + '_>, Error> {
        let payload = payload(work.record_bytes);
        let records = vec![payload.clone(); if work.batch > 1 { work.batch } else { 0 }];
        Ok(Box::new(LogProducer { target: self, payload, records, turn: 0, calls: 0 }))
    }

    fn turn_starts(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        *self.before.lock().unwrap_or_else(PoisonError::into_inner) = self.log.stats();
    }

    fn turn_ends(&self) {
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let after = self.log.stats();
        self.batches.fetch_add(after.batches - before.batches, Ordering::Relaxed);
        self.disk_bytes.fetch_add(after.disk_bytes - before.disk_bytes, Ordering::Relaxed);
    }
}

struct LogProducer<'a> {
    target: &'a LogTarget<'a>,
    payload: Vec<u8>,
    /// Of a batch; empty where each call appends one record.
    records: Vec<Vec<u8>>,
    /// Calls of this turn.
    calls: u64,
    turn: u64,
}

impl Producer for LogProducer<'_> {
    #[inline]
    fn append(&mut self, stages: &mut Stages) -> Result<(), Error> {
        let LogTarget { log, timer, turns, .. } = self.target;
        let turn = turns.load(Ordering::Relaxed);
        if turn != self.turn {
            (self.turn, self.calls) = (turn, 0);
        }
        let traced = self.calls.is_multiple_of(SPLIT_EVERY);
        self.calls += 1;
        let start = Instant::now();
        let ticket = if !self.records.is_empty() {
            log.append_batch(&self.records)?
        } else if traced {
            // Claim and publish apart: the same two steps as append's, with a look at the clock between.
            let mut space = log.reserve(self.payload.len())?;
            let claimed = Instant::now();
            space.copy_from_slice(&self.payload);
            let ticket = space.publish()?;
            let published = Instant::now();
            stages.claim.record((claimed - start).saturating_sub(*timer));
            stages.publish.record((published - claimed).saturating_sub(*timer));
            ticket
        } else {
            log.append(&self.payload)?
        };
        let published = Instant::now();
        if !traced || !self.records.is_empty() {
            stages.append_returned(published - start, *timer);
        }
        let lsn = ticket.wait()?;
        if traced {
            stages.split(log, lsn, published, Some(Instant::now()));
        }
        Ok(())
    }
}

/// A payload that is neither constant nor compressible at sight.
pub fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
