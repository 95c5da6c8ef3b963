//! Who is to be woken: threads by ranges of numbers (sleepers.rs), tasks by a node each.
//!
//! The protocol between a node and the watermarks is told in commit.rs. A node outlives its task's wait:
//! one that gave up is marked abandoned, and the writer lets go of it in its own time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::commit::{Commit, Level};
use crate::error::WaitError;
use crate::probes::stage;
use crate::sleepers::Sleepers;
use crate::sync::{AtomicPtr, AtomicU32, Mutex, MutexGuard, Ordering, fence};

/// The writer's side.
#[derive(Default)]
pub(crate) struct Waiters {
    /// Nodes taken from the stack, by number.
    acked: BinaryHeap<Reverse<ByLsn>>,
    synced: BinaryHeap<Reverse<ByLsn>>,
    /// Nodes at which abandoned ones are thrown out.
    purge_at: usize,
    /// Nodes that are done, to be woken from the last to the first.
    done: Vec<Arc<Node>>,
    acked_threads: Threads,
    synced_threads: Threads,
}

/// The threads that wait for one watermark: those for numbers up to `woken` were woken, those up to `done` are to be.
#[derive(Default)]
struct Threads {
    woken: u64,
    done: u64,
}

impl Threads {
    fn look(&mut self, sleepers: &Sleepers, watermark: u64) {
        self.done = watermark;
        if self.woken < watermark && !sleepers.any(self.woken, watermark) {
            self.woken = watermark;
        }
    }

    fn any(&self) -> bool {
        self.woken < self.done
    }

    fn wake_one(&self, sleepers: &Sleepers) {
        if self.any() {
            sleepers.wake_one(self.woken, self.done);
        }
    }

    fn wake(&mut self, sleepers: &Sleepers) -> u32 {
        let waited = if self.any() { sleepers.wake(self.woken, self.done) } else { 0 };
        self.woken = self.done;
        waited
    }

    /// Wakes everyone; the watermark may have moved either way.
    fn wake_all(&mut self, sleepers: &Sleepers, watermark: u64) {
        sleepers.wake_all();
        (self.woken, self.done) = (watermark, watermark);
    }
}

impl Waiters {
    /// Nobody waits for what is acknowledged, or synced, already.
    pub(crate) fn new(acked: u64, synced: u64) -> Self {
        Waiters {
            acked_threads: Threads { woken: acked, done: acked },
            synced_threads: Threads { woken: synced, done: synced },
            ..Waiters::default()
        }
    }

    /// Looks who is done, now that a watermark has moved; [`wake_done`](Self::wake_done) wakes them.
    pub(crate) fn take_done(&mut self, commit: &Commit) {
        let (acked, synced) = (commit.watermark(Level::Acked), commit.watermark(Level::Synced));
        // Partner: the fences in `Sleepers::sleep` and `Commit::push`. Orders the watermarks' stores before the
        // looks at who waits: whoever comes later sees the watermarks.
        fence(Ordering::SeqCst);
        self.acked_threads.look(commit.sleepers(Level::Acked), acked);
        self.synced_threads.look(commit.sleepers(Level::Synced), synced);
        commit.take_incoming(|node| match node.level {
            Level::Acked => self.acked.push(Reverse(ByLsn(node))),
            Level::Synced => self.synced.push(Reverse(ByLsn(node))),
        });
        let first = Self::pop_done(&mut self.synced, synced);
        while let Some(node) = Self::pop_done(&mut self.synced, synced) {
            self.done.push(node);
        }
        while let Some(node) = Self::pop_done(&mut self.acked, acked) {
            self.done.push(node);
        }
        self.done.extend(first);
        if self.acked.len() + self.synced.len() > self.purge_at {
            for heap in [&mut self.acked, &mut self.synced] {
                heap.retain(|Reverse(ByLsn(node))| !node.is_abandoned());
            }
            self.purge_at = (2 * (self.acked.len() + self.synced.len())).max(1024);
        }
    }

    fn pop_done(heap: &mut BinaryHeap<Reverse<ByLsn>>, watermark: u64) -> Option<Arc<Node>> {
        if heap.peek()?.0.0.lsn > watermark {
            return None;
        }
        heap.pop().map(|Reverse(ByLsn(node))| node)
    }

    /// Whether there is anybody to be woken.
    pub(crate) fn any_done(&self) -> bool {
        !self.done.is_empty() || self.acked_threads.any() || self.synced_threads.any()
    }

    /// Wakes who is done, and returns for how many numbers somebody waited.
    pub(crate) fn wake_done(&mut self, commit: &Commit) -> usize {
        // One of those who follow comes first, then those who appended, then the others who follow. One
        // wake-up is all that followers cost producers, and a lone follower is as early as they are: behind
        // them it would wait for a core (`benches/follow.rs`).
        self.synced_threads.wake_one(commit.sleepers(Level::Synced));
        let tasks = self.done.len();
        if let Some(node) = self.done.pop() {
            node.wake();
        }
        let appended = self.acked_threads.wake(commit.sleepers(Level::Acked));
        while let Some(node) = self.done.pop() {
            node.wake();
        }
        let followed = self.synced_threads.wake(commit.sleepers(Level::Synced));
        tasks + appended as usize + followed as usize
    }

    /// Wakes everyone, to look again: the log has ended, or was cut.
    pub(crate) fn wake_all(&mut self, commit: &Commit) {
        // As in `take_done`: orders the change before the looks.
        fence(Ordering::SeqCst);
        self.acked_threads.wake_all(commit.sleepers(Level::Acked), commit.watermark(Level::Acked));
        self.synced_threads
            .wake_all(commit.sleepers(Level::Synced), commit.watermark(Level::Synced));
        commit.take_incoming(|node| self.done.push(node));
        for heap in [&mut self.acked, &mut self.synced] {
            self.done.extend(heap.drain().map(|Reverse(ByLsn(node))| node));
        }
        while let Some(node) = self.done.pop() {
            node.wake();
        }
    }
}

const WAITING: u32 = 0;
const DONE: u32 = 1;
const ABANDONED: u32 = 2;

/// One task that waits.
pub(crate) struct Node {
    lsn: u64,
    level: Level,
    state: AtomicU32,
    /// Locked for some instructions by the task's poll and by the writer's wake.
    waker: Mutex<Option<Waker>>,
    /// The next node on the stack of those that the writer has not taken yet.
    pub(crate) next: AtomicPtr<Node>,
}

impl Node {
    fn new(lsn: u64, level: Level) -> Self {
        Node {
            lsn,
            level,
            state: AtomicU32::new(WAITING),
            waker: Mutex::new(None),
            next: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// Whether the writer has woken it and let go of it.
    fn is_done(&self) -> bool {
        // Acquire: partner is the swap in `wake`.
        self.state.load(Ordering::Acquire) == DONE
    }

    /// Nobody waits any more. That the writer sees it is a matter of space only, and no other memory hangs on it.
    fn abandon(&self) {
        self.state.store(ABANDONED, Ordering::Relaxed);
    }

    /// Wakes the task. The watermark, or the end, was made visible before.
    fn wake(&self) {
        stage!(wake, self.lsn);
        // AcqRel: partner is the Acquire in `is_done`.
        self.state.swap(DONE, Ordering::AcqRel);
        let waker = self.lock_waker().take();
        if let Some(waker) = waker {
            // The waker is the user's code, on the writer's thread: if it panics, the panic has been
            // reported, its task stays asleep, and everyone else's records go on.
            let _panicked = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }

    fn is_abandoned(&self) -> bool {
        self.state.load(Ordering::Relaxed) == ABANDONED
    }

    fn lock_waker(&self) -> MutexGuard<'_, Option<Waker>> {
        // A waker that panicked while it was cloned left a whole value behind.
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Orders nodes by number.
struct ByLsn(Arc<Node>);

impl PartialEq for ByLsn {
    fn eq(&self, other: &Self) -> bool {
        self.0.lsn == other.0.lsn
    }
}

impl Eq for ByLsn {}

impl PartialOrd for ByLsn {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByLsn {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.0.lsn.cmp(&other.0.lsn)
    }
}

/// A wait as a future, for any runtime: it registers a waker once and replaces it on later polls.
pub(crate) struct Waiting {
    node: Option<Arc<Node>>,
}

impl Waiting {
    pub(crate) const fn new() -> Self {
        Waiting { node: None }
    }

    pub(crate) fn poll(
        &mut self,
        commit: &Commit,
        lsn: u64,
        level: Level,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), WaitError>> {
        if let Some(outcome) = commit.outcome(lsn, level) {
            return Poll::Ready(outcome);
        }
        if self.node.as_ref().is_some_and(|node| node.is_done()) {
            // The writer woke everyone, to look again.
            self.node = None;
        }
        let new = self.node.is_none();
        let node = self.node.get_or_insert_with(|| Arc::new(Node::new(lsn, level)));
        match &mut *node.lock_waker() {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        if new {
            commit.push(node.clone());
        }
        // Looked at again behind the lock: if the writer was there first and took an older waker,
        // the watermark that it had moved before is visible now.
        match commit.outcome(lsn, level) {
            Some(outcome) => Poll::Ready(outcome),
            None => {
                if node.is_done() {
                    // It may have been woken before the waker was there.
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Waiting {
    // Every ticket has one, and nearly none has a node.
    #[inline]
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            give_up(&node);
        }
    }
}

#[cold]
fn give_up(node: &Node) {
    node.abandon();
    // Dropped behind the lock: a waker may own anything.
    let waker = node.lock_waker().take();
    drop(waker);
}
