//! Those who wait for a number: one node each, woken one by one.
//!
//! The protocol between a node and the watermarks is told in commit.rs. A node outlives its waiter:
//! one that gave up is marked abandoned, and the writer lets go of it in its own time.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::commit::{Commit, Level};
use crate::error::WaitError;
use crate::probes::stage;
use crate::sync::{AtomicPtr, Futex, Mutex, MutexGuard, Ordering};

/// The writer's side: nodes taken from the stack, by number.
#[derive(Default)]
pub(crate) struct Waiters {
    acked: BinaryHeap<Reverse<ByLsn>>,
    synced: BinaryHeap<Reverse<ByLsn>>,
    /// Nodes at which abandoned ones are thrown out.
    purge_at: usize,
}

impl Waiters {
    /// Moves every node whose number its watermark has reached into `done`.
    pub(crate) fn take_done(&mut self, commit: &Commit, done: &mut Vec<Arc<Node>>) {
        commit.take_incoming(|node| match node.level {
            Level::Acked => self.acked.push(Reverse(ByLsn(node))),
            Level::Synced => self.synced.push(Reverse(ByLsn(node))),
        });
        // The last in is woken first: one of those who follow, then those who appended, then the others
        // who follow. One wake-up is all that followers cost producers, and a lone follower is as early
        // as they are: behind them it would wait for a core (`benches/follow.rs`).
        let synced = commit.watermark(Level::Synced);
        let first = Self::pop_done(&mut self.synced, synced);
        while let Some(node) = Self::pop_done(&mut self.synced, synced) {
            done.push(node);
        }
        let acked = commit.watermark(Level::Acked);
        while let Some(node) = Self::pop_done(&mut self.acked, acked) {
            done.push(node);
        }
        done.extend(first);
        if self.acked.len() + self.synced.len() > self.purge_at {
            for heap in [&mut self.acked, &mut self.synced] {
                heap.retain(|Reverse(ByLsn(node))| !node.use_up());
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

    /// Moves every node into `done`: the log has ended.
    pub(crate) fn take_all(&mut self, commit: &Commit, done: &mut Vec<Arc<Node>>) {
        commit.take_incoming(|node| done.push(node));
        for heap in [&mut self.acked, &mut self.synced] {
            done.extend(heap.drain().map(|Reverse(ByLsn(node))| node));
        }
    }
}

const WAITING: u32 = 0;
const PARKED: u32 = 1;
const DONE: u32 = 2;
const ABANDONED: u32 = 3;

/// One waiter.
pub(crate) struct Node {
    /// Address of the `Commit` that a blocked thread waits at; only compared.
    owner: usize,
    lsn: u64,
    level: Level,
    state: Futex,
    /// Where a task waits instead of a thread. Locked for some instructions by the task's poll and
    /// by the writer's wake.
    waker: Mutex<Option<Waker>>,
    /// The next node on the stack of those that the writer has not taken yet.
    pub(crate) next: AtomicPtr<Node>,
}

impl Node {
    fn new(lsn: u64, level: Level) -> Self {
        Node {
            owner: 0,
            lsn,
            level,
            state: Futex::new(WAITING),
            waker: Mutex::new(None),
            next: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// A node for a blocking wait, and whether the writer still has to be told of it. It is this
    /// thread's last node, if the writer is through with it, or holds it for the very same wait
    /// (which timed out before): asking again and again leaves one node behind, not many.
    pub(crate) fn for_this_thread(commit: &Commit, lsn: u64, level: Level) -> (Arc<Node>, bool) {
        // A model's threads share one thread of the system: nothing is kept there.
        let keeps = !cfg!(uringlog_loom);
        let kept = LAST_NODE.try_with(|last| last.borrow_mut().take()).ok().flatten();
        let owner = core::ptr::from_ref(commit).addr();
        if let Some(mut node) = kept.filter(|_| keeps) {
            if let Some(reused) = Arc::get_mut(&mut node) {
                (reused.owner, reused.lsn, reused.level) = (owner, lsn, level);
                reused.state.word().store(WAITING, Ordering::Relaxed);
                return (node, true);
            }
            let same = (node.owner, node.lsn, node.level) == (owner, lsn, level);
            // AcqRel: partner is the swap in `wake`; if that came first, the node is used up.
            if same && node.rearm() {
                return (node, false);
            }
        }
        (Arc::new(Node { owner, ..Node::new(lsn, level) }), true)
    }

    fn rearm(&self) -> bool {
        let word = self.state.word();
        word.compare_exchange(ABANDONED, WAITING, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn keep_for_this_thread(node: Arc<Node>) {
        if cfg!(uringlog_loom) {
            return;
        }
        // At thread exit the store may be gone already, and with it the need to keep anything.
        let _kept = LAST_NODE.try_with(|last| *last.borrow_mut() = Some(node));
    }

    pub(crate) fn park(&self, timeout: Option<std::time::Duration>) {
        // AcqRel: partner is the swap in `wake`. One of the two sees the other's state.
        let _ = self.state.word().compare_exchange(
            WAITING,
            PARKED,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        self.state.wait(PARKED, timeout);
    }

    /// Whether the writer has woken it and let go of it.
    pub(crate) fn is_done(&self) -> bool {
        // Acquire: partner is the swap in `wake`.
        self.state.word().load(Ordering::Acquire) == DONE
    }

    pub(crate) fn abandon(&self) {
        self.state.word().store(ABANDONED, Ordering::Release);
    }

    /// Wakes the waiter, if it sleeps. The watermark, or the end, was made visible before.
    pub(crate) fn wake(&self) {
        stage!(wake, self.lsn);
        // AcqRel: partner is the exchange in `park`.
        if self.state.word().swap(DONE, Ordering::AcqRel) == PARKED {
            self.state.wake(1);
            return;
        }
        let waker = self.lock_waker().take();
        if let Some(waker) = waker {
            // The waker is the user's code, on the writer's thread: if it panics, the panic has been
            // reported, its task stays asleep, and everyone else's records go on.
            let _panicked = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }

    /// Whether the waiter gave up; then it cannot take the node up again.
    fn use_up(&self) -> bool {
        let word = self.state.word();
        // AcqRel: partner is the exchange in `rearm`; one of the two comes first.
        word.compare_exchange(ABANDONED, DONE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn lock_waker(&self) -> MutexGuard<'_, Option<Waker>> {
        // A waker that panicked while it was cloned left a whole value behind.
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    static LAST_NODE: RefCell<Option<Arc<Node>>> = const { RefCell::new(None) };
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
