//! How far the log is acknowledged and durable, who waits for it, and the first failure.
//!
//! Two watermarks move, both by the writer only and never back: `acked`, up to which records are
//! acknowledged at the log's own durability, and `synced`, up to which they survived a sync. In a
//! [`Durable`](crate::Durability::Durable) log they are the same.
//!
//! A thread that waits sleeps on a futex that it shares with those of neighbouring numbers (sleepers.rs). A
//! task makes a node with its waker, pushes it onto a lock-free stack, and looks at the watermark once more;
//! the writer moves the watermark, and then takes the stack. One of the two sees the other (the same argument
//! as in doorbell.rs). The writer keeps the nodes it took in heaps by number, and wakes just those that are
//! done (waiters.rs).
//!
//! The first failure latches here, and nothing moves after it.
#![allow(unsafe_code)]

use std::num::NonZero;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use crate::error::{Poison, WaitError};
use crate::options::Idle;
use crate::probes::stage;
use crate::sleepers::Sleepers;
use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
use crate::waiters::Node;

/// Which watermark a waiter waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    /// Acknowledged at the log's durability.
    Acked,
    /// Synced to the device.
    Synced,
}

/// Waiters are taken for a crowd when one batch wakes so many of them for each core. Then the cores are
/// busy with putting threads to sleep and waking them, and a waiter that lets the others run finds its record
/// done when its turn comes.
const CROWD_PER_CORE: usize = 6;
/// The same where they wait for a large batch: the next one is copied and checksummed between their waking up and
/// the disk, so that it counts more how soon they are back, and what the yields cost is spread over more bytes.
const CROWD_PER_CORE_IN_STREAM: usize = 3;
/// How often a waiter in a crowd yields before it sleeps: where the cores are not busy after all, it gives up
/// after some microseconds.
const CROWD_YIELDS: u32 = 32;
/// A yield that lasted so long went to others than producers: the cores are wanted by threads that compute, each of
/// which keeps a core for milliseconds once it has it.
pub(crate) const LONG_YIELD: Duration = Duration::from_millis(1);

const OPEN: u32 = 0;
const ENDED: u32 = 1;

pub(crate) struct Commit {
    acked: CachePadded<AtomicU64>,
    synced: CachePadded<AtomicU64>,
    acked_sleepers: Sleepers,
    synced_sleepers: Sleepers,
    /// Nodes of tasks that the writer has not taken yet: a stack linked through `Node::next`.
    incoming: CachePadded<AtomicPtr<Node>>,
    /// `ENDED` once neither watermark will move any more.
    state: AtomicU32,
    poison: OnceLock<Poison>,
    /// Whether the last batch had a crowd of waiters: 1 or 0, written by the writer, a hint.
    crowded: AtomicU32,
    /// Whether a yield lasted long since the writer looked.
    long_yield: AtomicU32,
    cores: usize,
    yields_in_crowd: bool,
}

impl Commit {
    pub(crate) fn new(durable: u64) -> Self {
        Commit {
            acked: CachePadded::new(AtomicU64::new(durable)),
            synced: CachePadded::new(AtomicU64::new(durable)),
            acked_sleepers: Sleepers::new(),
            synced_sleepers: Sleepers::new(),
            incoming: CachePadded::new(AtomicPtr::new(core::ptr::null_mut())),
            state: AtomicU32::new(OPEN),
            poison: OnceLock::new(),
            crowded: AtomicU32::new(0),
            long_yield: AtomicU32::new(0),
            cores: thread::available_parallelism().map_or(1, NonZero::get),
            yields_in_crowd: true,
        }
    }

    /// Whether waiters in a crowd yield before they sleep.
    pub(crate) fn with_yields_in_crowd(mut self, yields: bool) -> Self {
        self.yields_in_crowd = yields;
        self
    }

    /// The watermark of a level.
    #[inline]
    pub(crate) fn watermark(&self, level: Level) -> u64 {
        match level {
            // Acquire: partner is the Release in `advance`.
            Level::Acked => self.acked.load(Ordering::Acquire),
            Level::Synced => self.synced.load(Ordering::Acquire),
        }
    }

    /// Whether neither watermark will move any more.
    pub(crate) fn is_ended(&self) -> bool {
        // Acquire: partner is the Release in `end`.
        self.state.load(Ordering::Acquire) == ENDED
    }

    pub(crate) fn poison(&self) -> Option<&Poison> {
        self.poison.get()
    }

    /// Whether it is settled what becomes of `lsn`: done, or never.
    #[inline]
    pub(crate) fn outcome(&self, lsn: u64, level: Level) -> Option<Result<(), WaitError>> {
        if self.watermark(level) >= lsn {
            return Some(Ok(()));
        }
        // Acquire: partner is the Release in `end`. The watermarks do not move after it, so they
        // are looked at once more behind it.
        if self.state.load(Ordering::Acquire) == OPEN {
            return None;
        }
        if self.watermark(level) >= lsn {
            return Some(Ok(()));
        }
        Some(Err(match self.poison.get() {
            Some(poison) => WaitError::Poisoned(poison.clone()),
            None => WaitError::Closed,
        }))
    }

    /// Blocks until `lsn` is done, has failed, or the deadline has passed. `cut` says when the record
    /// was done and has been cut off again; it is asked first, each time.
    pub(crate) fn wait(
        &self,
        lsn: u64,
        level: Level,
        deadline: Option<Instant>,
        idle: Idle,
        cut: impl Fn() -> Option<WaitError>,
    ) -> Result<(), WaitError> {
        let settled = || match cut() {
            Some(error) => Some(Err(error)),
            None => self.outcome(lsn, level),
        };
        if let Some(outcome) = settled() {
            return outcome;
        }
        match idle {
            Idle::Park => self.wait_parked(lsn, level, deadline, settled),
            Idle::Spin => Self::wait_busy(deadline, core::hint::spin_loop, settled),
            Idle::Yield => Self::wait_busy(deadline, thread::yield_now, settled),
        }
    }

    fn wait_busy(
        deadline: Option<Instant>,
        pause: fn(),
        settled: impl Fn() -> Option<Result<(), WaitError>>,
    ) -> Result<(), WaitError> {
        loop {
            // The clock is read once in a while only.
            for _ in 0..64 {
                if let Some(outcome) = settled() {
                    return outcome;
                }
                pause();
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return Err(WaitError::TimedOut);
            }
        }
    }

    fn wait_parked(
        &self,
        lsn: u64,
        level: Level,
        deadline: Option<Instant>,
        settled: impl Fn() -> Option<Result<(), WaitError>>,
    ) -> Result<(), WaitError> {
        // A yield may last as long as others run: who has a deadline sleeps.
        if deadline.is_none() && self.is_crowded() {
            self.sleepers(level).count_in(lsn);
            for _ in 0..CROWD_YIELDS {
                if settled().is_some() {
                    break;
                }
                let before = Instant::now();
                thread::yield_now();
                if before.elapsed() >= LONG_YIELD {
                    self.long_yield.store(1, Ordering::Relaxed);
                    break;
                }
            }
        }
        loop {
            if let Some(outcome) = settled() {
                stage!(resume, lsn);
                return outcome;
            }
            let timeout = match deadline {
                None => None,
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(WaitError::TimedOut);
                    }
                    Some(left)
                }
            };
            self.sleepers(level).sleep(lsn, timeout, || settled().is_some());
        }
    }

    /// The threads that wait for a watermark.
    pub(crate) fn sleepers(&self, level: Level) -> &Sleepers {
        match level {
            Level::Acked => &self.acked_sleepers,
            Level::Synced => &self.synced_sleepers,
        }
    }

    fn is_crowded(&self) -> bool {
        // A model's threads have nothing to gain.
        !cfg!(uringlog_loom) && self.crowded.load(Ordering::Relaxed) == 1
    }

    /// Hands a node to the writer. The caller looks at the outcome afterwards, before it sleeps.
    pub(crate) fn push(&self, node: Arc<Node>) {
        let pointer = Arc::into_raw(node).cast_mut();
        let mut head = self.incoming.load(Ordering::Relaxed);
        loop {
            // SAFETY: the pointer is that of a live Arc whose count this stack holds, and nobody
            // else follows `next` before the exchange below published the node.
            unsafe { &*pointer }.next.store(head, Ordering::Relaxed);
            // Release: partner is the Acquire in `take_incoming`.
            match self.incoming.compare_exchange_weak(
                head,
                pointer,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        // Partner: the fences of `Waiters`. Orders the push before the caller's look at the
        // watermark.
        fence(Ordering::SeqCst);
    }

    // ---- the writer ----

    /// Whether a yield of a waiter in a crowd lasted long ([`LONG_YIELD`]) since the last look.
    pub(crate) fn take_long_yield(&self) -> bool {
        self.long_yield.load(Ordering::Relaxed) == 1
            && self.long_yield.swap(0, Ordering::Relaxed) == 1
    }

    /// Says how many waiters a batch had, and whether it was a large one.
    pub(crate) fn tell_crowd(&self, waiters: usize, in_stream: bool) {
        let per_core = if in_stream { CROWD_PER_CORE_IN_STREAM } else { CROWD_PER_CORE };
        let is_crowd = self.yields_in_crowd && waiters >= per_core * self.cores;
        self.crowded.store(is_crowd.into(), Ordering::Relaxed);
    }

    /// Moves a watermark. Wake the waiters afterwards, by `Waiters`.
    pub(crate) fn advance(&self, level: Level, lsn: u64) {
        debug_assert!(self.watermark(level) <= lsn);
        // Release: partner is the Acquire in `watermark`: who sees the number sees the record.
        match level {
            Level::Acked => self.acked.store(lsn, Ordering::Release),
            Level::Synced => self.synced.store(lsn, Ordering::Release),
        }
    }

    /// Moves both watermarks back: what stood behind `lsn` was cut off. Nobody waits for a number
    /// that was done, and whoever asks for one is told by the generation, which was moved before.
    pub(crate) fn clamp(&self, lsn: u64) {
        // Release: partner is the Acquire in `watermark`.
        self.acked.store(lsn, Ordering::Release);
        self.synced.store(lsn, Ordering::Release);
    }

    /// Ends the log's life, with the failure that ended it if one did. Wake everyone afterwards.
    pub(crate) fn end(&self, poison: Option<Poison>) {
        if let Some(poison) = poison {
            // The first one stays; there is only one writer, and it ends once.
            let _first_stays = self.poison.set(poison);
        }
        // Release: partner is the Acquire in `outcome`.
        self.state.store(ENDED, Ordering::Release);
    }

    /// Takes all nodes pushed so far. [`Waiters`](crate::waiters::Waiters) fences before.
    pub(crate) fn take_incoming(&self, mut each: impl FnMut(Arc<Node>)) {
        if self.incoming.load(Ordering::Relaxed).is_null() {
            return;
        }
        // Acquire: partner is the Release in `push`.
        let mut pointer = self.incoming.swap(core::ptr::null_mut(), Ordering::Acquire);
        while !pointer.is_null() {
            // SAFETY: the stack held one count of each node on it, which passes to us.
            let node = unsafe { Arc::from_raw(pointer) };
            pointer = node.next.load(Ordering::Relaxed);
            each(node);
        }
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        self.take_incoming(drop);
    }
}

#[cfg(all(test, not(uringlog_loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_a_crowd_is_depends_on_cores_and_bytes() {
        let mut commit = Commit::new(0);
        commit.cores = 2;
        for (waiters, in_stream, crowded) in
            [(11, false, false), (12, false, true), (5, true, false), (6, true, true)]
        {
            commit.tell_crowd(waiters, in_stream);
            assert_eq!(commit.is_crowded(), crowded, "{waiters}, {in_stream}");
        }
        let commit = Commit::new(0).with_yields_in_crowd(false);
        commit.tell_crowd(1_000_000, true);
        assert!(!commit.is_crowded());
    }
}
