//! When the last batches were sealed, submitted and durable: for those who measure where a record's
//! time went. Written by the writer at each batch, read by anyone, without locks.

use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::lsn::Lsn;
use crate::sync::{AtomicU64, Ordering, fence};

/// Batches remembered.
const BATCHES: usize = 1024;
const FIELDS: usize = 7;

/// The times of one batch.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BatchTiming {
    /// Number of the batch's first record.
    pub first_lsn: Lsn,
    /// Number of its last record.
    pub last_lsn: Lsn,
    /// Bytes written to the disk for it.
    pub bytes: usize,
    /// When its header was made; records published later are in a later batch.
    pub sealed: Instant,
    /// When it had been handed to the disk: with io_uring after the system call that submits it, without it before the
    /// calls that write it.
    pub submitted: Instant,
    /// When it was acknowledged: after the sync, or after the write in a log that acknowledges
    /// written records.
    pub durable: Instant,
    /// How long the write itself took, where the sync was a separate step; zero where it was not.
    pub write_took: Duration,
}

/// The same in the writer's terms: nanoseconds of the log's clock.
#[derive(Clone, Copy, Default)]
pub(crate) struct RawTiming {
    pub(crate) first_lsn: u64,
    pub(crate) last_lsn: u64,
    pub(crate) bytes: u64,
    pub(crate) sealed_ns: u64,
    pub(crate) submitted_ns: u64,
    pub(crate) durable_ns: u64,
    pub(crate) write_took_ns: u64,
}

/// A ring of entries, each guarded by a sequence number that is odd while it is written.
pub(crate) struct Timings {
    entries: Box<[Entry]>,
    /// Batches recorded so far.
    recorded: AtomicU64,
}

struct Entry {
    sequence: AtomicU64,
    fields: [AtomicU64; FIELDS],
}

impl Timings {
    pub(crate) fn new() -> Self {
        let entry = |_| Entry {
            sequence: AtomicU64::new(0),
            fields: core::array::from_fn(|_| AtomicU64::new(0)),
        };
        Timings { entries: (0..BATCHES).map(entry).collect(), recorded: AtomicU64::new(0) }
    }

    /// Adds a batch. The writer's call only.
    pub(crate) fn record(&self, timing: &RawTiming) {
        let at = self.recorded.load(Ordering::Relaxed);
        let entry = &self.entries[at as usize % BATCHES];
        let sequence = entry.sequence.load(Ordering::Relaxed);
        entry.sequence.store(sequence + 1, Ordering::Relaxed);
        // Partner: the Acquire fence in `read`: who sees a field of this write sees the odd number.
        fence(Ordering::Release);
        let values = [
            timing.first_lsn,
            timing.last_lsn,
            timing.bytes,
            timing.sealed_ns,
            timing.submitted_ns,
            timing.durable_ns,
            timing.write_took_ns,
        ];
        for (field, value) in entry.fields.iter().zip(values) {
            field.store(value, Ordering::Relaxed);
        }
        // Release: partner is the first Acquire load in `read`.
        entry.sequence.store(sequence + 2, Ordering::Release);
        // Release: partner is the Acquire in `find`.
        self.recorded.store(at + 1, Ordering::Release);
    }

    /// The batch that holds `lsn`, if it is among the last ones.
    pub(crate) fn find(&self, lsn: Lsn, clock: &Clock) -> Option<BatchTiming> {
        let recorded = self.recorded.load(Ordering::Acquire);
        let oldest = recorded.saturating_sub(BATCHES as u64);
        let found = (oldest..recorded)
            .rev()
            .filter_map(|at| self.entries[at as usize % BATCHES].read())
            .find(|timing| timing.first_lsn <= lsn.get())?;
        if found.last_lsn < lsn.get() {
            return None;
        }
        Some(BatchTiming {
            first_lsn: Lsn::new(found.first_lsn),
            last_lsn: Lsn::new(found.last_lsn),
            bytes: found.bytes as usize,
            sealed: clock.instant(found.sealed_ns)?,
            submitted: clock.instant(found.submitted_ns)?,
            durable: clock.instant(found.durable_ns)?,
            write_took: Duration::from_nanos(found.write_took_ns),
        })
    }
}

impl Entry {
    /// The entry, unless it is being overwritten just now.
    fn read(&self) -> Option<RawTiming> {
        // Acquire: partner is the last store in `record`.
        let before = self.sequence.load(Ordering::Acquire);
        let mut values = [0; FIELDS];
        for (value, field) in values.iter_mut().zip(&self.fields) {
            *value = field.load(Ordering::Relaxed);
        }
        // Partner: the Release fence in `record`.
        fence(Ordering::Acquire);
        if before % 2 == 1 || self.sequence.load(Ordering::Relaxed) != before {
            return None;
        }
        let [first_lsn, last_lsn, bytes, sealed_ns, submitted_ns, durable_ns, write_took_ns] =
            values;
        Some(RawTiming {
            first_lsn,
            last_lsn,
            bytes,
            sealed_ns,
            submitted_ns,
            durable_ns,
            write_took_ns,
        })
    }
}
