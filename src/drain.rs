//! The writer's side of the rings: bringing what was published, in ring order, into number order.
//!
//! Ring order is not number order. The writer looks at each ring's new slots once, puts the place of
//! every published one into a window by its number, and remembers those that are claimed but not
//! yet published, to look at them again. What it emits is the contiguous run from the next number:
//! so a stalled producer holds up only what truly comes after its number, and one that has no number
//! yet holds up nobody. A number beyond the window is kept in a heap, never stopped at: the number
//! that is missing may stand behind it.
#![allow(unsafe_code)]

#[cfg(all(test, not(uringlog_loom)))]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::batch::{BatchBuilder, Large};
use crate::frame::{BATCH_HEADER_BYTES, TableEntry};
use crate::frame::{TABLE_ENTRY_BYTES, table_offset};
use crate::numbers::Numbers;
use crate::probes::stage;
use crate::ring::{Meta, SlotState, SlotView, UNIT_BYTES};
use crate::rings::RingSet;

/// Payload bytes copied into a batch before their ring space is given back.
const GIVE_BACK_BYTES: usize = 128 << 10;

/// What stopped [`Drain::fill`].
pub(crate) enum Filled {
    /// Nothing further is published without a gap.
    All,
    /// The batch has no room for the next slot.
    Full,
    /// The next record is a disk batch of its own; its number comes with it.
    Large(u64, Box<Large>),
}

pub(crate) struct Drain {
    cursors: Vec<Cursor>,
    window: Window,
    /// The next number to emit.
    next_lsn: u64,
    /// As many numbers as are below it were found in the rings, and none of them twice.
    found: u64,
    stats: DrainStats,
}

/// What the drain counts; the writer publishes it.
#[derive(Clone, Copy, Default)]
pub(crate) struct DrainStats {
    /// Slots emitted.
    pub(crate) slots: u64,
    /// Records that lay beyond the window.
    pub(crate) beyond_window: u64,
    /// Rings replaced because a reservation pinned them.
    pub(crate) retired: u64,
}

impl Drain {
    /// `window_records` is a power of two.
    pub(crate) fn new(next_lsn: u64, window_records: usize) -> Self {
        Drain {
            cursors: Vec::new(),
            window: Window::new(window_records),
            next_lsn,
            found: next_lsn,
            stats: DrainStats::default(),
        }
    }

    /// The next number to emit: all before it are in batches.
    pub(crate) fn next_lsn(&self) -> u64 {
        self.next_lsn
    }

    /// The next number to emit is a lower one: the log was cut. Everything numbered was emitted.
    pub(crate) fn rewind(&mut self, next_lsn: u64) {
        debug_assert!(!self.window.is_occupied());
        (self.next_lsn, self.found) = (next_lsn, next_lsn);
    }

    /// Whether every number that was given out was found in a ring. Numbers are dense, so counting them is
    /// enough. If not, its record is published and the next scan finds it, or is about to be.
    pub(crate) fn has_seen_all(&self, numbers: &Numbers) -> bool {
        self.found > numbers.last()
    }

    /// Whether everything that has a number was emitted. While the gate is shut, that stays so: the
    /// log may end, or be cut, then and not before.
    pub(crate) fn has_all(&self, numbers: &Numbers) -> bool {
        self.next_lsn > numbers.last()
    }

    pub(crate) fn stats(&self) -> DrainStats {
        self.stats
    }

    /// Looks at everything new in every ring. Returns whether the next number can be emitted.
    pub(crate) fn scan(&mut self, rings: &RingSet) -> bool {
        self.scan_upto(rings, u64::MAX)
    }

    /// As [`scan`](Self::scan), until every number up to `last` was found, the highest that was given out when the
    /// caller looked just now. What was not looked at stays with its producer's core: it is about to write there,
    /// and would have to fetch the cache line back.
    pub(crate) fn scan_upto(&mut self, rings: &RingSet, last: u64) -> bool {
        // All that were found before were given out before, so none of them is above `last`.
        let mut missing = last.saturating_add(1).saturating_sub(self.found);
        for (id, ring) in rings.made().enumerate() {
            if missing == 0 {
                break;
            }
            if id == self.cursors.len() {
                self.cursors.push(Cursor::new(ring.capacity_units()));
            }
            let cursor = &mut self.cursors[id];
            let window = &mut self.window;
            let next = self.next_lsn;
            let (stats, found) = (&mut self.stats, &mut self.found);
            cursor.scan(ring, |view, position| {
                *found += view.count();
                // The numbers of a slot were given out together.
                if view.lsn <= last {
                    missing -= view.count();
                }
                let place = Place { ring: id, position };
                stats.beyond_window += u64::from(window.put(next, view.lsn, place));
                missing > 0
            });
        }
        self.window.has(self.next_lsn)
    }

    /// Whether records lie beyond the window.
    pub(crate) fn is_window_full(&self) -> bool {
        !self.window.beyond.is_empty()
    }

    /// Whether a slot was published (or claimed) that `scan` has not seen. The writer's last look
    /// before it sleeps.
    pub(crate) fn anything_new(&self, rings: &RingSet) -> bool {
        rings.made().enumerate().any(|(id, ring)| match self.cursors.get(id) {
            Some(cursor) => cursor.anything_new(ring),
            None => true,
        })
    }

    /// Whether a higher number is known while the next one is not: some producer stands between
    /// taking its number and publishing.
    pub(crate) fn has_hole(&self) -> bool {
        self.window.is_occupied() && !self.window.has(self.next_lsn)
    }

    /// Whether some ring's next slot is claimed, but its length not yet written.
    pub(crate) fn has_blind_claim(&self, rings: &RingSet) -> bool {
        rings.made().zip(&self.cursors).any(|(ring, cursor)| {
            ring.claimed_beyond(cursor.scanned) && ring.view(cursor.scanned).is_none()
        })
    }

    /// Moves the contiguous run of records into `batch` until it is full, and gives their space
    /// back.
    pub(crate) fn fill(&mut self, rings: &RingSet, batch: &mut BatchBuilder) -> Filled {
        let mut copied = 0;
        let mut touched = false;
        let outcome = loop {
            if copied > GIVE_BACK_BYTES {
                // Producers that wait for space go on while the rest is copied.
                self.give_back(rings);
                copied = 0;
            }
            let Some(place) = self.window.get(self.next_lsn) else { break Filled::All };
            let (Some(ring), Some(cursor)) =
                (rings.ring(place.ring), self.cursors.get_mut(place.ring))
            else {
                break Filled::All;
            };
            let Some(view) = ring.view(place.position) else { break Filled::All };
            let Meta(first, second) = view.meta;
            let (count, large) = match view.state {
                SlotState::Record => {
                    let (len, crc) = (first as usize, second);
                    if !batch.fits(len, 1) {
                        break Filled::Full;
                    }
                    // SAFETY: this is the writer, `scan` saw the slot published, its producer wrote
                    // `len` bytes of it, and it is given back only below.
                    let payload = unsafe { ring.bytes(place.position, len) };
                    batch.push(self.next_lsn, payload, crc);
                    stage!(batch, self.next_lsn, 1, len);
                    copied += len;
                    (1, None)
                }
                SlotState::Batch => {
                    let (count, payload_bytes) = (first as usize, second as usize);
                    if !batch.fits(payload_bytes, count) {
                        break Filled::Full;
                    }
                    let table_at = batch_slot_table_at(payload_bytes);
                    let len = table_at + count * TABLE_ENTRY_BYTES;
                    // SAFETY: as above.
                    let slot = unsafe { ring.bytes(place.position, len) };
                    batch.push_many(self.next_lsn, &slot[..payload_bytes], &slot[table_at..]);
                    stage!(batch, self.next_lsn, count, payload_bytes);
                    copied += payload_bytes;
                    (count as u64, None)
                }
                _ => {
                    if !batch.is_empty() {
                        break Filled::Full;
                    }
                    // SAFETY: as above; the slot is a `Large`, which holds one pointer.
                    let slot = unsafe { ring.bytes(place.position, size_of::<usize>()) };
                    // SAFETY: `store_large` put the pointer there, and this is the one time that it
                    // is taken out: the window forgets the place below.
                    let large = unsafe { take_large(slot) };
                    stage!(batch, self.next_lsn, large.content.count, large.content.payload_bytes);
                    (u64::from(large.content.count), Some(large))
                }
            };
            self.window.clear(self.next_lsn);
            cursor.done(place.position);
            touched = true;
            self.stats.slots += 1;
            let lsn = self.next_lsn;
            self.next_lsn += count;
            self.window.admit(self.next_lsn);
            if let Some(large) = large {
                break Filled::Large(lsn, large);
            }
        };
        if touched {
            self.give_back(rings);
        }
        outcome
    }

    /// Gives back what is done at the head of every ring, and wakes who waits for it.
    pub(crate) fn give_back(&mut self, rings: &RingSet) {
        let mut freed = false;
        for (ring, cursor) in rings.made().zip(&mut self.cursors) {
            if let Some(head) = cursor.new_head() {
                ring.give_back(head);
                freed = true;
            }
        }
        if freed {
            rings.space_freed();
        }
    }

    /// For producers that found no room: replaces every ring whose head is pinned by a reservation
    /// that is neither published nor dropped. Returns whether one was replaced.
    pub(crate) fn retire_pinned(&mut self, rings: &RingSet) -> bool {
        let mut replaced = false;
        for id in 0..self.cursors.len() {
            let Some(lane) = rings.lane_of(id) else { continue };
            if !rings.ring(id).is_some_and(|ring| self.cursors[id].is_pinned(ring)) {
                continue;
            }
            let empty = (0..self.cursors.len()).find(|&other| {
                rings.lane_of(other).is_none()
                    && rings.ring(other).is_some_and(|ring| self.cursors[other].is_empty(ring))
            });
            if rings.replace(lane, empty) {
                self.stats.retired += 1;
                replaced = true;
            }
        }
        if replaced {
            rings.space_freed();
        }
        replaced
    }

    /// Frees the heap buffers of large records that were never emitted. After it the drain is over.
    pub(crate) fn abandon(&mut self, rings: &RingSet) {
        self.scan(rings);
        for (_, place) in self.window.take_all() {
            let Some(ring) = rings.ring(place.ring) else { continue };
            if ring.view(place.position).is_some_and(|view| view.state == SlotState::Large) {
                // SAFETY: as in `fill`: the slot is published, and its place was just taken out of
                // the window, where it stood once.
                drop(unsafe { take_large(ring.bytes(place.position, size_of::<usize>())) });
            }
        }
    }
}

/// Where the table of a batch slot stands in its slot: as far from the payloads as on disk.
pub(crate) fn batch_slot_table_at(payload_bytes: usize) -> usize {
    table_offset(payload_bytes) - BATCH_HEADER_BYTES
}

/// Puts a large record's pointer into a claimed slot.
pub(crate) fn store_large(slot: &mut [u8], large: Box<Large>) {
    let address = Box::into_raw(large).expose_provenance();
    slot[..size_of::<usize>()].copy_from_slice(&address.to_ne_bytes());
}

/// Takes a large record out of a slot.
///
/// # Safety
/// `slot` was filled by [`store_large`] and is taken from once.
pub(crate) unsafe fn take_large(slot: &[u8]) -> Box<Large> {
    let mut address = [0; size_of::<usize>()];
    address.copy_from_slice(&slot[..size_of::<usize>()]);
    let pointer = core::ptr::with_exposed_provenance_mut(usize::from_ne_bytes(address));
    // SAFETY: by the caller's word this is the pointer of a live box that nobody else owns.
    unsafe { Box::from_raw(pointer) }
}

/// Where a published slot stands.
#[derive(Clone, Copy)]
struct Place {
    ring: usize,
    position: u64,
}

/// The writer's progress in one ring.
struct Cursor {
    /// Everything before it was looked at.
    scanned: u64,
    /// Everything before it is given back.
    head: u64,
    /// For the first unit of each slot between `head` and `scanned`: its units, shifted by one, and
    /// whether the writer is done with it.
    spans: Vec<u32>,
    /// Claimed slots that were not yet published when they were last looked at.
    unpublished: Vec<u64>,
}

impl Cursor {
    fn new(units: u64) -> Self {
        Cursor { scanned: 0, head: 0, spans: vec![0; units as usize], unpublished: Vec::new() }
    }

    /// Until `found` says that it need not go on.
    fn scan(&mut self, ring: &crate::ring::Ring, mut found: impl FnMut(SlotView, u64) -> bool) {
        let spans = &mut self.spans;
        let mask = spans.len() as u64 - 1;
        let mut goes_on = true;
        self.unpublished.retain(|&position| match goes_on.then(|| ring.view(position)).flatten() {
            Some(view) if view.state == SlotState::Claimed => true,
            Some(view) if view.state == SlotState::Aborted => {
                spans[(position & mask) as usize] |= 1;
                false
            }
            Some(view) => {
                goes_on = found(view, position);
                false
            }
            // Not looked at any more: a scanned slot is current until it is given back.
            None => true,
        });
        while goes_on && let Some(view) = ring.view(self.scanned) {
            let span = &mut spans[(self.scanned & mask) as usize];
            *span = (view.units as u32) << 1;
            match view.state {
                SlotState::Claimed => self.unpublished.push(self.scanned),
                SlotState::Aborted | SlotState::Pad => *span |= 1,
                _ => goes_on = found(view, self.scanned),
            }
            self.scanned += view.units;
        }
    }

    fn anything_new(&self, ring: &crate::ring::Ring) -> bool {
        let published =
            |position| ring.view(position).is_some_and(|view| view.state != SlotState::Claimed);
        ring.view(self.scanned).is_some() || self.unpublished.iter().any(|&at| published(at))
    }

    fn done(&mut self, position: u64) {
        let mask = self.spans.len() as u64 - 1;
        self.spans[(position & mask) as usize] |= 1;
    }

    /// The head after everything that is done in front, where it moved.
    fn new_head(&mut self) -> Option<u64> {
        let mask = self.spans.len() as u64 - 1;
        let before = self.head;
        while self.head < self.scanned {
            let span = self.spans[(self.head & mask) as usize];
            if span & 1 == 0 {
                break;
            }
            self.head += u64::from(span >> 1);
        }
        (self.head != before).then_some(self.head)
    }

    /// Whether an unpublished slot stands at the head of a ring that has no room for every claim:
    /// nothing behind it can be given back.
    fn is_pinned(&self, ring: &crate::ring::Ring) -> bool {
        let units = ring.capacity_units();
        self.head < self.scanned
            && ring.claimed_beyond(self.head + units - units / 8)
            && ring.view(self.head).is_some_and(|view| view.state == SlotState::Claimed)
    }

    fn is_empty(&self, ring: &crate::ring::Ring) -> bool {
        self.head == self.scanned && !ring.claimed_beyond(self.scanned)
    }
}

/// Places by number: an array for the near ones, a heap for those beyond.
struct Window {
    /// Slot `lsn % len`: the number that is there (0: none) and its place.
    near: Box<[(u64, Place)]>,
    occupied: usize,
    /// Numbers at least one window ahead of the next when they were found.
    beyond: BinaryHeap<Reverse<(u64, u64, usize)>>,
}

impl Window {
    fn new(records: usize) -> Self {
        let none = (0, Place { ring: 0, position: 0 });
        Window { near: vec![none; records].into(), occupied: 0, beyond: BinaryHeap::new() }
    }

    /// Puts a place; returns whether it lay beyond the window.
    fn put(&mut self, next: u64, lsn: u64, place: Place) -> bool {
        debug_assert!(lsn >= next);
        if lsn - next >= self.near.len() as u64 {
            self.beyond.push(Reverse((lsn, place.position, place.ring)));
            return true;
        }
        let index = self.index(lsn);
        self.near[index] = (lsn, place);
        self.occupied += 1;
        false
    }

    #[inline]
    fn get(&self, lsn: u64) -> Option<Place> {
        let (found, place) = self.near[self.index(lsn)];
        (found == lsn).then_some(place)
    }

    fn has(&self, lsn: u64) -> bool {
        self.get(lsn).is_some()
    }

    fn is_occupied(&self) -> bool {
        self.occupied > 0 || !self.beyond.is_empty()
    }

    fn clear(&mut self, lsn: u64) {
        let index = self.index(lsn);
        self.near[index].0 = 0;
        self.occupied -= 1;
    }

    /// Takes in what the window reaches now that `next` has moved.
    #[inline]
    fn admit(&mut self, next: u64) {
        while let Some(&Reverse((lsn, position, ring))) = self.beyond.peek() {
            if lsn - next >= self.near.len() as u64 {
                break;
            }
            self.beyond.pop();
            let index = self.index(lsn);
            self.near[index] = (lsn, Place { ring, position });
            self.occupied += 1;
        }
    }

    fn take_all(&mut self) -> Vec<(u64, Place)> {
        let mut all: Vec<_> = self.near.iter().copied().filter(|&(lsn, _)| lsn != 0).collect();
        all.extend(
            self.beyond
                .drain()
                .map(|Reverse((lsn, position, ring))| (lsn, Place { ring, position })),
        );
        self.near.iter_mut().for_each(|entry| entry.0 = 0);
        self.occupied = 0;
        all
    }

    #[inline]
    fn index(&self, lsn: u64) -> usize {
        (lsn & (self.near.len() as u64 - 1)) as usize
    }
}

const _: () = {
    assert!(UNIT_BYTES >= size_of::<usize>(), "a pointer fits into the smallest slot");
    assert!(size_of::<TableEntry>() == TABLE_ENTRY_BYTES);
};
