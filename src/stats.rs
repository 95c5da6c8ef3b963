//! Counters of what the log did, and of every stall with its cause.

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};

/// Counts and times since the log was opened. A snapshot: the fields are read one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Records accepted.
    pub appends: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Records cut off again by [`truncate_after`](crate::Log::truncate_after).
    pub truncated_records: u64,
    /// Payload bytes in batches that were written.
    pub payload_bytes: u64,
    /// Bytes written to segments: payloads, headers, tables, padding.
    pub disk_bytes: u64,
    /// Bytes of padding to whole blocks among them.
    pub padding_bytes: u64,
    /// Batches written, with records in them.
    pub batches: u64,
    /// Empty batches written, to vouch for what stands before them.
    pub vouches: u64,
    /// Syncs apart from those of durable batches.
    pub syncs: u64,
    /// Segments that the log moved on to.
    pub rotations: u64,
    /// Times that the writer went to sleep.
    pub writer_sleeps: u64,
    /// Times that a producer had to wake the writer.
    pub writer_wakes: u64,
    /// Times that the writer waited for a batch to grow.
    pub lingers: u64,
    /// Appends that found all rings full and waited or were refused.
    pub ring_full: Stall,
    /// Appends that waited, or were refused, because the next segments were not ready.
    pub no_segment: Stall,
    /// Times that the writer had no next segment and waited for one.
    pub rotation_waits: Stall,
    /// Times that a number was taken and its record not yet published, which holds up all later
    /// ones.
    pub number_holds: Stall,
    /// Times that space was claimed and its length not yet written, which holds up later claims in
    /// that ring.
    pub claim_holds: Stall,
    /// Records found ahead of the reordering window, which go through a slower list.
    pub beyond_window: u64,
    /// Rings replaced because an unfinished reservation pinned them.
    pub rings_retired: u64,
    /// The slowest write and sync of a batch.
    pub sync_max: Duration,
    /// The sum over all batches of the time from submission to completion.
    pub sync_total: Duration,
}

/// How often something stalled, and for how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stall {
    /// Times.
    pub count: u64,
    /// Time in all.
    pub total: Duration,
    /// The longest one.
    pub max: Duration,
}

/// The counters behind [`Stats`].
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) payload_bytes: Counter,
    pub(crate) disk_bytes: Counter,
    pub(crate) padding_bytes: Counter,
    pub(crate) batches: Counter,
    pub(crate) vouches: Counter,
    pub(crate) syncs: Counter,
    pub(crate) rotations: Counter,
    pub(crate) writer_sleeps: Counter,
    pub(crate) writer_wakes: Counter,
    pub(crate) lingers: Counter,
    pub(crate) beyond_window: Counter,
    pub(crate) rings_retired: Counter,
    pub(crate) truncated_records: Counter,
    pub(crate) ring_full: StallCounter,
    pub(crate) no_segment: StallCounter,
    pub(crate) rotation_waits: StallCounter,
    pub(crate) number_holds: StallCounter,
    pub(crate) claim_holds: StallCounter,
    pub(crate) sync: StallCounter,
}

impl Counters {
    pub(crate) fn snapshot(&self, appends: u64, acknowledged: u64) -> Stats {
        let sync = self.sync.get();
        Stats {
            appends: appends + self.truncated_records.get(),
            acknowledged: acknowledged + self.truncated_records.get(),
            truncated_records: self.truncated_records.get(),
            payload_bytes: self.payload_bytes.get(),
            disk_bytes: self.disk_bytes.get(),
            padding_bytes: self.padding_bytes.get(),
            batches: self.batches.get(),
            vouches: self.vouches.get(),
            syncs: self.syncs.get(),
            rotations: self.rotations.get(),
            writer_sleeps: self.writer_sleeps.get(),
            writer_wakes: self.writer_wakes.get(),
            lingers: self.lingers.get(),
            ring_full: self.ring_full.get(),
            no_segment: self.no_segment.get(),
            rotation_waits: self.rotation_waits.get(),
            number_holds: self.number_holds.get(),
            claim_holds: self.claim_holds.get(),
            beyond_window: self.beyond_window.get(),
            rings_retired: self.rings_retired.get(),
            sync_max: sync.max,
            sync_total: sync.total,
        }
    }
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct StallCounter {
    count: AtomicU64,
    total_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl StallCounter {
    pub(crate) fn add(&self, ns: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.total_ns.fetch_add(ns, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
    }

    fn get(&self) -> Stall {
        Stall {
            count: self.count.load(Ordering::Relaxed),
            total: Duration::from_nanos(self.total_ns.load(Ordering::Relaxed)),
            max: Duration::from_nanos(self.max_ns.load(Ordering::Relaxed)),
        }
    }
}
