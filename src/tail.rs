//! The tail: the writer's last batches in memory, so that a follower at the end of the log never
//! touches the disk.
//!
//! Batches are nodes in a list, oldest first. The writer alone holds the window of them, within a
//! bound; a follower holds the one node that it reads, and looks for the next through a weak link.
//! So a slow follower keeps one batch in memory at most: where the next one has left the window, it
//! goes on from the disk. Without a follower there is no window.
//!
//! The writer waits for nobody here. It links a batch before it moves the watermark over it: who
//! finds a number durable, and no link behind the batch before it, knows that there is none. What
//! stands here may be not durable yet: followers look at the watermark first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, TryLockError, Weak};

use crate::frame::{self, BATCH_HEADER_BYTES, BatchHeader, TABLE_ENTRY_BYTES};
use crate::sync::{AtomicU64, Ordering};

/// Largest batch that is kept, in bytes; what is read in larger ones is faster from the disk than
/// two copies more would be.
pub(crate) const BATCH_BYTES_MAX: usize = 256 << 10;

/// What the followers see of the window.
pub(crate) struct Tail {
    followers: AtomicU64,
    /// The first number of the node at `entry`, or more than any number: a look without a lock.
    entry_lsn: AtomicU64,
    /// Where followers join: the middle of the window, so that one that has just joined is not at
    /// its edge. The writer only ever tries the lock; while it fails, this lags behind.
    entry: Mutex<Weak<TailNode>>,
}

/// A batch in memory: as it stands on disk, up to the end of its table.
pub(crate) struct TailNode {
    header: BatchHeader,
    /// The log's generation when the batch was written.
    generation: u64,
    bytes: Vec<u8>,
    /// The batch that follows without a gap. Set once, before the batch is durable.
    next: OnceLock<Weak<TailNode>>,
}

impl Tail {
    pub(crate) fn new() -> Tail {
        Tail {
            followers: AtomicU64::new(0),
            entry_lsn: AtomicU64::new(u64::MAX),
            entry: Mutex::new(Weak::new()),
        }
    }

    /// Announces a follower: from its next batch on the writer keeps a window.
    pub(crate) fn join(&self) {
        // Relaxed, here and in the writer: until it is seen, followers read the disk.
        self.followers.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.followers.fetch_sub(1, Ordering::Relaxed);
    }

    /// The batch that holds `lsn`, if it stands at the entry or behind it.
    pub(crate) fn find(&self, lsn: u64) -> Option<Arc<TailNode>> {
        // Relaxed: a hint. What is found is looked at.
        if lsn < self.entry_lsn.load(Ordering::Relaxed) {
            return None;
        }
        let mut node = {
            let entry = self.entry.lock().unwrap_or_else(PoisonError::into_inner);
            entry.upgrade()?
        };
        if lsn < node.header.first_lsn {
            return None;
        }
        while lsn > node.header.last_lsn() {
            node = node.next()?;
        }
        Some(node)
    }

    /// Takes the way in away. For a truncation, after which what the window holds is not the log any
    /// more; batches of the new generation begin a new window.
    pub(crate) fn clear(&self) {
        *self.entry.lock().unwrap_or_else(PoisonError::into_inner) = Weak::new();
        self.entry_lsn.store(u64::MAX, Ordering::Relaxed);
    }

    fn show(&self, node: Option<&Arc<TailNode>>) {
        let mut entry = match self.entry.try_lock() {
            Ok(entry) => entry,
            Err(TryLockError::Poisoned(entry)) => entry.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        *entry = node.map_or_else(Weak::new, Arc::downgrade);
        let lsn = node.map_or(u64::MAX, |node| node.header.first_lsn);
        self.entry_lsn.store(lsn, Ordering::Relaxed);
    }
}

impl TailNode {
    pub(crate) fn header(&self) -> &BatchHeader {
        &self.header
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The batch that follows, while it is in the window. `None` for ever, where its number is
    /// durable.
    pub(crate) fn next(&self) -> Option<Arc<TailNode>> {
        let next = self.next.get()?.upgrade()?;
        debug_assert_eq!(next.header.first_lsn, self.header.last_lsn() + 1);
        Some(next)
    }

    /// The length of a record's payload, by its index in the batch.
    pub(crate) fn len_of(&self, index: u32) -> usize {
        let at = self.header.table_offset() + index as usize * TABLE_ENTRY_BYTES;
        match self.bytes.get(at..at + TABLE_ENTRY_BYTES) {
            Some(entry) => frame::table_entry(entry, 0, 0).len as usize,
            None => 0,
        }
    }

    /// Where the payloads start.
    pub(crate) const fn payloads_at() -> usize {
        BATCH_HEADER_BYTES
    }

    pub(crate) fn bytes(&self, part: std::ops::Range<usize>) -> &[u8] {
        self.bytes.get(part).unwrap_or_default()
    }
}

/// The writer's side: it alone owns the nodes, but for the one that each follower reads.
pub(crate) struct TailWindow {
    tail: Arc<Tail>,
    nodes: VecDeque<Arc<TailNode>>,
    /// Memory of the window, in bytes.
    bytes: usize,
    bytes_max: usize,
    /// A node that left the window and that nobody reads.
    spare: Option<Arc<TailNode>>,
}

impl TailWindow {
    pub(crate) fn new(tail: Arc<Tail>, bytes_max: usize) -> TailWindow {
        TailWindow { tail, nodes: VecDeque::new(), bytes: 0, bytes_max, spare: None }
    }

    /// Takes the next batch in, with its image on disk, if somebody follows. Called in the order of
    /// the log, before the watermark moves over the batch.
    pub(crate) fn push(&mut self, header: &BatchHeader, image: &[u8], generation: u64) {
        if header.count == 0 {
            return;
        }
        let content = image.get(..header.content_bytes() as usize).unwrap_or_default();
        let followed = self.tail.followers.load(Ordering::Relaxed) > 0;
        let fits = content.len() <= BATCH_BYTES_MAX.min(self.bytes_max) && !content.is_empty();
        if !followed || !fits {
            return self.clear();
        }
        let follows = self.nodes.back().is_some_and(|last| {
            last.header.last_lsn() + 1 == header.first_lsn && last.generation == generation
        });
        if !follows {
            self.clear();
        }
        while self.bytes + content.len() > self.bytes_max {
            self.drop_oldest();
        }
        let node = self.make(header, content, generation);
        if let Some(last) = self.nodes.back() {
            // It was not set before: it is set here only, once for each node that is the last.
            let _set = last.next.set(Arc::downgrade(&node));
        }
        self.bytes += node.bytes.capacity();
        self.nodes.push_back(node);
        // A vector that is larger than what it was taken for may have filled the window up.
        while self.bytes > self.bytes_max && self.nodes.len() > 1 {
            self.drop_oldest();
        }
        self.tail.show(self.nodes.get(self.nodes.len() / 2));
    }

    /// Lets the window go: what follows does not join on, or nobody follows.
    pub(crate) fn clear(&mut self) {
        if self.nodes.is_empty() && self.spare.is_none() {
            return;
        }
        self.tail.show(None);
        self.nodes.clear();
        self.bytes = 0;
        self.spare = None;
    }

    fn drop_oldest(&mut self) {
        let Some(mut node) = self.nodes.pop_front() else {
            self.bytes = 0;
            return;
        };
        self.bytes -= node.bytes.capacity();
        if let Some(alone) = Arc::get_mut(&mut node) {
            alone.next = OnceLock::new();
            self.spare = Some(node);
        }
    }

    /// A node with these bytes, from the spare where its memory is about right.
    fn make(&mut self, header: &BatchHeader, content: &[u8], generation: u64) -> Arc<TailNode> {
        if let Some(mut spare) = self.spare.take()
            && let Some(node) = Arc::get_mut(&mut spare)
            && (content.len()..=content.len() * 4).contains(&node.bytes.capacity())
        {
            node.header = *header;
            node.generation = generation;
            node.bytes.clear();
            node.bytes.extend_from_slice(content);
            return spare;
        }
        Arc::new(TailNode {
            header: *header,
            generation,
            bytes: content.to_vec(),
            next: OnceLock::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{BatchContext, LogId};

    fn header(first_lsn: u64, count: u32, payload_bytes: u32) -> BatchHeader {
        BatchHeader {
            context: BatchContext { log_id: LogId([0; 16]), epoch: 1, salt: 2 },
            offset: 0,
            first_lsn,
            count,
            payload_bytes,
            wall_ns: 0,
            synced_lsn: 0,
            prev_crc: 0,
            table_crc: 0,
        }
    }

    fn push(window: &mut TailWindow, first_lsn: u64, payload_bytes: u32) {
        let header = header(first_lsn, 1, payload_bytes);
        let mut image = vec![first_lsn as u8; header.content_bytes() as usize];
        image[header.table_offset()..][..4].copy_from_slice(&payload_bytes.to_le_bytes());
        window.push(&header, &image, 0);
    }

    fn followed(bytes_max: usize) -> (Arc<Tail>, TailWindow) {
        let tail = Arc::new(Tail::new());
        tail.join();
        (tail.clone(), TailWindow::new(tail, bytes_max))
    }

    #[test]
    fn a_window_keeps_the_last_batches_within_its_bound() {
        let (tail, mut window) = followed(10_000);
        for lsn in 1..=100 {
            push(&mut window, lsn, 900);
        }
        assert!(window.bytes <= 10_000, "{}", window.bytes);
        assert_eq!(window.nodes.len(), 9, "1008 bytes each");
        let entry = tail.entry_lsn.load(Ordering::Relaxed);
        assert_eq!(entry, 96, "the middle");
        assert!(tail.find(entry - 1).is_none());
        let node = tail.find(99).unwrap();
        assert_eq!((node.header().first_lsn, node.len_of(0)), (99, 900));
        assert!(node.bytes(96..996).iter().all(|&byte| byte == 99));
        assert_eq!(node.next().unwrap().header().first_lsn, 100);
        assert!(node.next().unwrap().next().is_none());
        assert!(tail.find(101).is_none());
    }

    #[test]
    fn memory_is_used_again() {
        let (_tail, mut window) = followed(10_000);
        for lsn in 1..=20 {
            push(&mut window, lsn, 900);
        }
        let seen: Vec<_> = window.nodes.iter().map(Arc::as_ptr).collect();
        for lsn in 21..=100 {
            push(&mut window, lsn, 900);
            let new = Arc::as_ptr(window.nodes.back().unwrap());
            assert!(seen.contains(&new), "record {lsn} took new memory");
        }
    }

    #[test]
    fn a_follower_keeps_its_own_batch_only() {
        let (tail, mut window) = followed(10_000);
        for lsn in 1..=5 {
            push(&mut window, lsn, 900);
        }
        let held = tail.find(3).unwrap();
        let later = Arc::downgrade(&held.next().unwrap());
        for lsn in 6..=100 {
            push(&mut window, lsn, 900);
        }
        assert_eq!(held.header().first_lsn, 3);
        assert!(held.bytes(96..996).iter().all(|&byte| byte == 3), "it was written again");
        // The node of record 4 is gone, or holds another record by now and has no way from here.
        assert!(held.next().is_none());
        assert!(later.upgrade().is_none_or(|node| node.header().first_lsn > 90));
    }

    #[test]
    fn what_does_not_join_on_begins_a_new_window() {
        let (tail, mut window) = followed(1 << 20);
        push(&mut window, 1, 10);
        let before = tail.find(1).unwrap();
        // Batch 2 is too large.
        push(&mut window, 2, BATCH_BYTES_MAX as u32);
        assert!(window.nodes.is_empty() && tail.find(1).is_none());
        push(&mut window, 3, 10);
        assert!(before.next().is_none());
        assert!(tail.find(2).is_none());
        let third = tail.find(3).unwrap();
        // The same after a truncation: record 4 of generation 0 is not the one before 5 of 1.
        push(&mut window, 4, 10);
        let fourth = third.next().unwrap();
        assert_eq!(fourth.header().first_lsn, 4);
        window.push(&header(5, 1, 8), &[0; 200], 1);
        assert!(fourth.next().is_none() && tail.find(5).is_some());
        tail.clear();
        assert!(tail.find(5).is_none());
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let (tail, mut window) = followed(1 << 20);
        push(&mut window, 1, 10);
        tail.leave();
        push(&mut window, 2, 10);
        assert!(window.nodes.is_empty() && window.bytes == 0);
        assert!(tail.find(1).is_none());
        let (tail, mut window) = followed(0);
        push(&mut window, 1, 10);
        assert!(window.nodes.is_empty() && tail.find(1).is_none());
    }
}
