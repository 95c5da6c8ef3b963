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
    /// Records found ahead of the reordering window. They go through a slower list; nobody waits
    /// for that.
    pub beyond_window: u64,
    /// Times that records stood in that list, and until it was empty again.
    pub window_full: Stall,
    /// Batches whose write and sync took a millisecond or more, and more than ten times what the
    /// batches before took on average.
    pub sync_slow: Stall,
    /// Segments prepared by filling a new file with zeros.
    pub prepared: Job,
    /// Segments prepared from a file that was a segment before.
    pub recycled: Job,
    /// Files removed that were segments before.
    pub removed: Job,
    /// Files that could not be given up, removed or used again, and were left for the next opening.
    pub spares_left: u64,
    /// Footers written to sealed segments.
    pub footers: u64,
    /// Footers that could not be written: reading there is slower, nothing else.
    pub footers_failed: u64,
    /// Times that the log's start moved: by [`trim`](crate::Log::trim), or by what the options say is
    /// to be kept.
    pub trims: u64,
    /// Records trimmed away by them.
    pub trimmed_records: u64,
    /// Times that what the options say is to be kept could not be looked after, because a file could
    /// not be read. Tried again every second.
    pub retention_failures: u64,
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

/// How often a piece of background work was finished, and how long that took, pauses included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Job {
    /// Times.
    pub count: u64,
    /// Time in all.
    pub total: Duration,
    /// The longest one.
    pub max: Duration,
}

/// What goes on in the background just now, and how much was done since the log was opened. Costs
/// a few loads: for who tags the samples of a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Housekeeping {
    /// Segments that the log moved on to.
    pub rotations: u64,
    /// Segments prepared by filling a new file with zeros.
    pub prepared: u64,
    /// Segments prepared from a file that was a segment before.
    pub recycled: u64,
    /// Files removed that were segments before.
    pub removed: u64,
    /// A file is being filled with zeros; also in the pauses between the steps.
    pub preparing: bool,
    /// A file is being made a segment again.
    pub recycling: bool,
    /// A file is being shortened and removed; also in the pauses between the steps.
    pub removing: bool,
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
    pub(crate) window_full: StallCounter,
    pub(crate) sync_slow: StallCounter,
    pub(crate) prepared: JobCounter,
    pub(crate) recycled: JobCounter,
    pub(crate) removed: JobCounter,
    pub(crate) spares_left: Counter,
    pub(crate) footers: Counter,
    pub(crate) footers_failed: Counter,
    pub(crate) trims: Counter,
    pub(crate) trimmed_records: Counter,
    pub(crate) retention_failures: Counter,
    /// What a batch takes, on the average of the last ones; the writer's note.
    sync_average_ns: Counter,
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
            window_full: self.window_full.get(),
            sync_slow: self.sync_slow.get(),
            prepared: self.prepared.get(),
            recycled: self.recycled.get(),
            removed: self.removed.get(),
            spares_left: self.spares_left.get(),
            footers: self.footers.get(),
            footers_failed: self.footers_failed.get(),
            trims: self.trims.get(),
            trimmed_records: self.trimmed_records.get(),
            retention_failures: self.retention_failures.get(),
            rings_retired: self.rings_retired.get(),
            sync_max: sync.max,
            sync_total: sync.total,
        }
    }

    pub(crate) fn housekeeping(&self) -> Housekeeping {
        Housekeeping {
            rotations: self.rotations.get(),
            prepared: self.prepared.done.count.load(Ordering::Relaxed),
            recycled: self.recycled.done.count.load(Ordering::Relaxed),
            removed: self.removed.done.count.load(Ordering::Relaxed),
            preparing: self.prepared.is_under_way(),
            recycling: self.recycled.is_under_way(),
            removing: self.removed.is_under_way(),
        }
    }

    /// A batch was written and synced. The writer's call only.
    pub(crate) fn synced(&self, took_ns: u64) {
        const SLOW_NS: u64 = 1_000_000;
        self.sync.add(took_ns);
        let average = self.sync_average_ns.get();
        if took_ns >= SLOW_NS && took_ns > average.saturating_mul(10) && average > 0 {
            self.sync_slow.add(took_ns);
        }
        let next = match average {
            0 => took_ns.max(1),
            _ => (average - average / 16 + took_ns / 16).max(1),
        };
        self.sync_average_ns.set(next);
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

/// A piece of background work: at most one of its kind at a time, by the preparer.
#[derive(Default)]
pub(crate) struct JobCounter {
    done: StallCounter,
    /// When the one that is under way began, and 1; 0 when none is.
    since: AtomicU64,
}

impl JobCounter {
    pub(crate) fn begin(&self, now_ns: u64) {
        self.since.store(now_ns + 1, Ordering::Relaxed);
    }

    pub(crate) fn finish(&self, now_ns: u64) {
        let since = self.since.swap(0, Ordering::Relaxed);
        self.done.add((now_ns + 1).saturating_sub(since));
    }

    pub(crate) fn give_up(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn is_under_way(&self) -> bool {
        self.since.load(Ordering::Relaxed) != 0
    }

    fn get(&self) -> Job {
        let Stall { count, total, max } = self.done.get();
        Job { count, total, max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_sync_is_one_of_its_kind() {
        let counters = Counters::default();
        counters.synced(5_000_000);
        assert_eq!(counters.sync_slow.get().count, 0, "nothing to compare it with");
        (0..200).for_each(|_| counters.synced(20_000));
        counters.synced(900_000);
        assert_eq!(counters.sync_slow.get().count, 0, "less than a millisecond");
        (0..200).for_each(|_| counters.synced(20_000));
        counters.synced(2_000_000);
        let slow = counters.sync_slow.get();
        assert_eq!((slow.count, slow.total), (1, Duration::from_millis(2)));
    }
}
