//! What the handles of one log, its writer and its preparer share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::commit::{Commit, Level};
use crate::disk::Store;
use crate::doorbell::Doorbell;
use crate::error::{AppendError, Poison, WaitError};
use crate::extent::Extent;
use crate::footer::footer_bytes;
use crate::fork::ForkGuard;
use crate::index::LiveIndex;
use crate::lsn::Lsn;
use crate::numbers::{Numbers, Shut};
use crate::options::{Durability, Idle, Options};
use crate::preparer::PreparerLink;
use crate::rings::RingSet;
use crate::stats::Counters;
use crate::status::StatusPage;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::tail::Tail;
use crate::timing::Timings;
use crate::truncate::TruncateQueue;

pub(crate) struct Shared {
    pub(crate) rings: RingSet,
    pub(crate) numbers: Numbers,
    pub(crate) commit: Commit,
    pub(crate) bell: Doorbell,
    pub(crate) counters: Counters,
    pub(crate) timings: Timings,
    pub(crate) clock: Clock,
    /// Random numbers, for salts.
    pub(crate) entropy: EntropySource,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) preparer: Arc<PreparerLink>,
    pub(crate) extent: Extent,
    pub(crate) live_index: LiveIndex,
    /// The last batches in memory, for followers.
    pub(crate) tail: Arc<Tail>,
    /// Where readers of other processes see what is durable; not on every file system.
    pub(crate) status: Option<StatusPage>,
    pub(crate) fork: ForkGuard,
    pub(crate) limits: Limits,
    pub(crate) durability: Durability,
    pub(crate) waiter_idle: Idle,
    /// What the writer is asked for; see the `ASK_` bits.
    asks: AtomicU32,
    /// The largest number that somebody wants synced, of a log that syncs only when asked.
    sync_target: AtomicU64,
    /// Prepared bytes not yet written, as of the writer's last batch.
    pub(crate) free_bytes: AtomicU64,
    /// Truncations asked for and not yet done.
    pub(crate) truncations: TruncateQueue,
    /// 1 while the preparer finds no space for a further segment.
    out_of_space: AtomicU32,
}

/// Close the log.
pub(crate) const ASK_CLOSE: u32 = 1;
/// A producer found no room: see whether a ring is pinned.
pub(crate) const ASK_ROOM: u32 = 2;
/// Cut the log; the request stands in `truncations`.
pub(crate) const ASK_TRUNCATE: u32 = 8;
/// The preparer has sent something, or a large record was given up: count the space again.
pub(crate) const ASK_SPACE: u32 = 4;

/// Sizes that follow from options and segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) block_bytes: usize,
    /// Largest slot that goes through a ring, in bytes.
    pub(crate) inline_bytes_max: usize,
    /// Largest disk batch of a large record, in bytes.
    pub(crate) large_disk_bytes_max: usize,
    /// Length of the writer's buffers.
    pub(crate) batch_bytes_max: usize,
    /// Ready segments that the options ask for.
    segments_ready_min: usize,
    segment_bytes: usize,
    ring_bytes: usize,
}

impl Limits {
    pub(crate) fn new(options: &Options, block_bytes: usize) -> Self {
        let segment_bytes = options.segment_bytes as usize;
        let usable = usable_bytes(segment_bytes, block_bytes);
        let largest = (segment_bytes / 2).min(options.large_bytes_max) / block_bytes * block_bytes;
        let batch_bytes_max = options.batch_bytes_max.min(usable / 2 / block_bytes * block_bytes);
        let inline_bytes_max = (options.ring_bytes / 8).min(batch_bytes_max / 4).min(largest / 2);
        Limits {
            block_bytes,
            inline_bytes_max,
            large_disk_bytes_max: largest,
            batch_bytes_max,
            segments_ready_min: options.segments_ready,
            segment_bytes,
            ring_bytes: options.ring_bytes,
        }
    }

    /// Prepared space without which no number is given out: the worst that accepted records can take
    /// on disk, with so many rings. A ring of smallest slots needs an eighth more for its table, and
    /// while the gate is shut, batches are sealed full. Each costs its header and padding; each
    /// segment's end costs what did not fit there.
    pub(crate) fn reserve_bytes(&self, rings: usize) -> u64 {
        let on_disk = rings * (self.ring_bytes + self.ring_bytes / 4);
        let batches = on_disk / (self.batch_bytes_max / 2) + 2;
        let ends = on_disk / self.usable_bytes() + 2;
        let lost = batches * 2 * self.block_bytes + ends * (self.batch_bytes_max / 2);
        (on_disk + lost + self.batch_bytes_max) as u64
    }

    /// Ready segments that the preparer keeps: what the options ask for, or more where the reserve
    /// and the large records need them: those under way, and the largest that may come.
    pub(crate) fn segments_ready(&self, rings: usize, large_bytes: u64) -> u64 {
        let large = large_bytes.max(self.large_disk_bytes_max as u64);
        let needed = self.reserve_bytes(rings) + 2 * large;
        (self.segments_ready_min as u64).max(needed.div_ceil(self.usable_bytes() as u64))
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes as u64
    }

    fn usable_bytes(&self) -> usize {
        usable_bytes(self.segment_bytes, self.block_bytes)
    }

    /// Largest payload of one record.
    pub(crate) fn record_bytes_max(&self) -> usize {
        use crate::frame::{BATCH_HEADER_BYTES, TABLE_ENTRY_BYTES};
        self.large_disk_bytes_max - BATCH_HEADER_BYTES - 2 * TABLE_ENTRY_BYTES
    }
}

/// Bytes for batches in a segment: without its headers and its footer.
fn usable_bytes(segment_bytes: usize, block_bytes: usize) -> usize {
    let footer = footer_bytes(segment_bytes as u64, block_bytes as u32) as usize;
    segment_bytes - 2 * block_bytes - footer
}

impl Shared {
    pub(crate) fn ask(&self, what: u32) {
        // Release: partner is the Acquire in `asked`.
        self.asks.fetch_or(what, Ordering::Release);
        self.bell.ring();
    }

    /// What the writer is asked for. Bits stay set until [`answered`](Self::answered).
    pub(crate) fn asked(&self) -> u32 {
        self.asks.load(Ordering::Acquire)
    }

    pub(crate) fn answered(&self, what: u32) {
        self.asks.fetch_and(!what, Ordering::AcqRel);
    }

    /// Prepared space without which no number is given out.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.limits.reserve_bytes(self.rings.made_count())
    }

    pub(crate) fn is_out_of_space(&self) -> bool {
        self.out_of_space.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn set_out_of_space(&self, out: bool) {
        self.out_of_space.store(u32::from(out), Ordering::Relaxed);
    }

    /// Why appends are refused for good, or for want of space.
    pub(crate) fn refusal(&self, shut: Shut) -> Option<AppendError> {
        match shut {
            Shut::Preparing => None,
            Shut::NoSpace => Some(AppendError::NoSpace),
            Shut::Closed => Some(AppendError::Closed),
            Shut::Poisoned => Some(match self.commit.poison() {
                Some(poison) => AppendError::Poisoned(poison.clone()),
                // The gate shuts an instant before the cause is stored; a closed log is as true.
                None => AppendError::Closed,
            }),
        }
    }

    pub(crate) fn poison(&self) -> Option<&Poison> {
        self.commit.poison()
    }

    /// Waits until `lsn` has reached `level`. The number is that of a record of the generation
    /// `since`, or only a number: then one that is reached while the wait lasts.
    pub(crate) fn wait(
        &self,
        lsn: u64,
        level: Level,
        since: Option<u64>,
        timeout: Option<Duration>,
    ) -> Result<(), WaitError> {
        if self.fork.forked() {
            return Err(WaitError::Forked);
        }
        self.ask_for_sync(lsn, level);
        // A timeout beyond what the clock can say is no timeout.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let generation = since.unwrap_or_else(|| self.extent.generation());
        let cut = || self.cut_off(lsn, generation);
        self.commit.wait(lsn, level, deadline, self.waiter_idle, cut)
    }

    /// The error of whoever waits for a record that was cut off since `generation`.
    #[inline]
    pub(crate) fn cut_off(&self, lsn: u64, generation: u64) -> Option<WaitError> {
        let last = Lsn::new(self.extent.cut_off(lsn, generation)?);
        Some(WaitError::Truncated { last })
    }

    /// A log that syncs only when asked is asked.
    pub(crate) fn ask_for_sync(&self, lsn: u64, level: Level) {
        if self.durability == Durability::Written
            && level == Level::Synced
            && self.commit.watermark(Level::Synced) < lsn
        {
            // Relaxed: the bell's fence orders it before the look at the sleeping writer.
            self.sync_target.fetch_max(lsn, Ordering::Relaxed);
            self.bell.ring();
        }
    }

    /// As [`wait`](Self::wait) for a synced number, but a log that syncs only when asked is not asked,
    /// and any truncation since `generation` ends the wait.
    pub(crate) fn wait_unasked(
        &self,
        lsn: u64,
        generation: u64,
        deadline: Option<Instant>,
    ) -> Result<(), WaitError> {
        if self.fork.forked() {
            return Err(WaitError::Forked);
        }
        let cut = || {
            let is_cut = self.extent.generation() != generation;
            is_cut.then_some(WaitError::Truncated { last: Lsn::NONE })
        };
        self.commit.wait(lsn, Level::Synced, deadline, self.waiter_idle, cut)
    }

    /// Shows readers of other processes what is durable now, and the generation.
    pub(crate) fn show_status(&self) {
        if let Some(status) = &self.status {
            status.show(self.clock.now_ns(), self.commit.watermark(Level::Synced), &self.extent);
        }
    }

    pub(crate) fn sync_target(&self) -> u64 {
        self.sync_target.load(Ordering::Relaxed)
    }

    pub(crate) fn new(parts: SharedParts, options: &Options) -> Self {
        Shared {
            rings: parts.rings,
            numbers: Numbers::new(parts.next_lsn),
            commit: Commit::new(parts.next_lsn - 1).with_yields_in_crowd(options.yields_in_crowd),
            bell: Doorbell::new(),
            counters: Counters::default(),
            timings: Timings::new(),
            clock: parts.clock,
            entropy: parts.entropy,
            store: parts.store,
            preparer: parts.preparer,
            extent: parts.extent,
            live_index: parts.live_index,
            tail: Arc::new(Tail::new()),
            status: parts.status,
            fork: ForkGuard::new(),
            limits: parts.limits,
            durability: options.durability,
            waiter_idle: options.waiter_idle,
            asks: AtomicU32::new(0),
            sync_target: AtomicU64::new(0),
            free_bytes: AtomicU64::new(0),
            truncations: TruncateQueue::default(),
            out_of_space: AtomicU32::new(0),
        }
    }
}

/// Where random numbers come from: the system, or a seeded simulation.
pub(crate) type EntropySource = Arc<dyn Fn() -> std::io::Result<u64> + Send + Sync>;

pub(crate) struct SharedParts {
    pub(crate) rings: RingSet,
    pub(crate) next_lsn: u64,
    pub(crate) clock: Clock,
    pub(crate) entropy: EntropySource,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) preparer: Arc<PreparerLink>,
    pub(crate) extent: Extent,
    pub(crate) live_index: LiveIndex,
    pub(crate) status: Option<StatusPage>,
    pub(crate) limits: Limits,
}
