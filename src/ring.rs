//! One ring: bytes that many producers claim and fill, and that one writer drains.
//!
//! The bytes are cut into units of 64 (a cache line). Beside each unit stands a slot entry; the entry
//! of a slot's first unit says what the slot is. Payloads and entries never share memory, so that
//! no payload can pass for an entry, and nothing has to be zeroed behind the writer: an entry counts
//! only while its lap is the current one.
//!
//! ```text
//! entries   E . . E . E . . . . E .        units   0 ≤ head ≤ tail ≤ head + units
//! units     [  a  ][ b ][   c   ][ …       head: first unit not yet given back   (writer)
//!           ^head               ^tail      tail: first unit not yet claimed      (producers)
//! ```
//!
//! A slot's life: **claimed** (the tail is moved, then the entry is written), then **published**
//! (its number is known and the writer may read it) or **aborted**. Claims are in ring order,
//! publications are not. The model is Agrona's `ManyToOneRingBuffer`, with lap tags in place of its
//! zeroing.
#![allow(unsafe_code)]

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering, UnsafeCell};

/// Bytes of a unit, the granule of claims.
pub(crate) const UNIT_BYTES: usize = 64;

const UNITS_BITS: u32 = 24;
const STATE_BITS: u32 = 3;
const LAP_SHIFT: u32 = UNITS_BITS + STATE_BITS;
const LAP_MASK: u64 = (1 << (64 - LAP_SHIFT)) - 1;

const _: () = {
    // The largest ring (1 GiB) has units that an entry can count.
    assert!((1 << 30) / UNIT_BYTES <= 1 << UNITS_BITS);
    assert!((SlotState::Pad as u64) < 1 << STATE_BITS);
};

/// What a slot is. Zero is no state: a ring starts with zeroed entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum SlotState {
    /// Space is taken; the payload is being filled in.
    Claimed = 1,
    /// One record. `meta`: length, checksum.
    Record = 2,
    /// A batch, its payloads and its table laid out as in a segment. `meta`: count, payload bytes.
    Batch = 3,
    /// A pointer to a heap buffer. `meta`: count of records.
    Large = 4,
    /// Given up; no number was taken.
    Aborted = 5,
    /// Skipped: the rest before the wrap.
    Pad = 6,
}

/// Two 32-bit values that a published slot carries beside its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Meta(pub(crate) u32, pub(crate) u32);

/// What the writer sees at a position of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotView {
    pub(crate) state: SlotState,
    pub(crate) units: u64,
    /// Number of the first record; meaningful when published.
    pub(crate) lsn: u64,
    pub(crate) meta: Meta,
}

impl SlotView {
    /// How many numbers a published slot has.
    #[inline]
    pub(crate) fn count(&self) -> u64 {
        match self.state {
            SlotState::Record => 1,
            _ => u64::from(self.meta.0),
        }
    }
}

/// Space in a ring that one producer owns until it publishes or aborts. It must do one of the two,
/// or the space is lost: the owner's drop sees to that.
#[derive(Debug)]
pub(crate) struct Claim {
    position: u64,
    units: u64,
}

/// Owner: `word` and the rest belong to the claim's producer until it stores a final state; then to
/// the writer until the head passes the slot.
#[repr(align(32))]
struct SlotEntry {
    /// Lap (37 bits), state (3), units of the slot (24).
    word: AtomicU64,
    lsn: AtomicU64,
    meta: AtomicU64,
}

struct Tail {
    /// First unit not yet claimed; counts up for ever. Contended by producers.
    tail: AtomicU64,
    /// A head that some producer saw: never ahead of `head`, and as stale as the last time that a
    /// claim did not fit.
    head_seen: AtomicU64,
}

/// A ring. See the module's text.
pub(crate) struct Ring {
    tail: CachePadded<Tail>,
    /// First unit not yet given back; counts up for ever. Stored by the writer only.
    head: CachePadded<AtomicU64>,
    entries: Box<[SlotEntry]>,
    data: Box<[UnsafeCell<[u8; UNIT_BYTES]>]>,
    /// Units in the ring, a power of two.
    units: u64,
    lap_shift: u32,
}

// SAFETY: the cells in `data` are written only by the producer that owns the claim over them and
// read only by the writer after it saw the claim published (release/acquire on the entry's word),
// and are claimed again only after the writer gave them back (release/acquire on `head`).
unsafe impl Sync for Ring {}
// SAFETY: as above; nothing in a ring is tied to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring of `bytes`, a power of two and at least one unit. All memory is touched here.
    pub(crate) fn new(bytes: usize) -> Self {
        let units = bytes / UNIT_BYTES;
        let entry = |_| SlotEntry {
            word: AtomicU64::new(0),
            lsn: AtomicU64::new(0),
            meta: AtomicU64::new(0),
        };
        Ring {
            tail: CachePadded::new(Tail { tail: AtomicU64::new(0), head_seen: AtomicU64::new(0) }),
            head: CachePadded::new(AtomicU64::new(0)),
            entries: (0..units).map(entry).collect(),
            // Not zero: zeroed memory may be the kernel's shared page, to be faulted in later.
            data: (0..units).map(|_| UnsafeCell::new([0xA5; UNIT_BYTES])).collect(),
            units: units as u64,
            lap_shift: units.trailing_zeros(),
        }
    }

    /// Units of a payload.
    #[inline]
    pub(crate) fn units_for(bytes: usize) -> u64 {
        (bytes.div_ceil(UNIT_BYTES) as u64).max(1)
    }

    /// Units in the ring.
    pub(crate) fn capacity_units(&self) -> u64 {
        self.units
    }

    // ---- producers ----

    /// Takes `units` contiguous units, or says that they are not free now. Lock-free. `units` is at
    /// most half of the ring.
    #[inline]
    pub(crate) fn claim(&self, units: u64) -> Option<Claim> {
        let mut tail = self.tail.tail.load(Ordering::Relaxed);
        loop {
            let to_end = self.units - (tail & (self.units - 1));
            let pad = if units > to_end { to_end } else { 0 };
            let end = tail + pad + units;
            // Acquire: partner is the Release below, and through it the writer's in `give_back`:
            // what the writer read from these units is read.
            if end.wrapping_sub(self.tail.head_seen.load(Ordering::Acquire)) > self.units {
                // Acquire: partner is the Release in `give_back`.
                let head = self.head.load(Ordering::Acquire);
                // `tail` may be older than `head`: then the exchange below fails.
                if end.saturating_sub(head) > self.units {
                    return None;
                }
                // Release: partner is the Acquire above, in other producers.
                self.tail.head_seen.store(head, Ordering::Release);
            }
            // Relaxed: the units pass between writer and producers through `head`, not here.
            match self.tail.tail.compare_exchange_weak(
                tail,
                end,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    if pad > 0 {
                        self.set_state(tail, pad, SlotState::Pad, Ordering::Relaxed);
                    }
                    let claim = Claim { position: tail + pad, units };
                    // Relaxed: the writer takes nothing from a claimed slot but its length.
                    self.set_state(claim.position, units, SlotState::Claimed, Ordering::Relaxed);
                    return Some(claim);
                }
                Err(now) => tail = now,
            }
        }
    }

    /// The claimed bytes, all units of them, with whatever stood there before.
    #[inline]
    pub(crate) fn bytes_mut<'a>(&'a self, claim: &'a mut Claim) -> &'a mut [u8] {
        let pointer = self.unit_mut(self.index(claim.position));
        // SAFETY: the claim's units are contiguous (a claim never wraps), lie inside `data`, and are
        // this producer's alone until it publishes or aborts, which both consume the claim.
        unsafe { core::slice::from_raw_parts_mut(pointer, claim.units as usize * UNIT_BYTES) }
    }

    /// The claimed bytes, to be looked at.
    pub(crate) fn claimed_bytes<'a>(&'a self, claim: &'a Claim) -> &'a [u8] {
        let pointer = self.unit(self.index(claim.position));
        // SAFETY: as in `bytes_mut`; the borrow of the claim keeps `bytes_mut` away.
        unsafe { core::slice::from_raw_parts(pointer, claim.units as usize * UNIT_BYTES) }
    }

    /// Hands a filled slot to the writer under the number `lsn`. No thread may wait between taking
    /// the number and this.
    #[inline]
    pub(crate) fn publish(&self, claim: Claim, state: SlotState, lsn: u64, meta: Meta) {
        let entry = &self.entries[self.index(claim.position)];
        entry.lsn.store(lsn, Ordering::Relaxed);
        entry.meta.store(u64::from(meta.0) | u64::from(meta.1) << 32, Ordering::Relaxed);
        // Release: partner is the Acquire in `view`. Payload, number and meta come with it.
        self.set_state(claim.position, claim.units, state, Ordering::Release);
        self.expect_claim(claim.position + claim.units, claim.units);
    }

    /// Gives a claim up. It takes no number.
    pub(crate) fn abort(&self, claim: Claim) {
        // Release: partner is the Acquire in `view`: whatever the producer wrote there is over.
        self.set_state(claim.position, claim.units, SlotState::Aborted, Ordering::Release);
    }

    // ---- the writer ----

    /// What stands at `position`; `None` while nothing was claimed there in this lap, as far as can
    /// be seen.
    #[inline]
    pub(crate) fn view(&self, position: u64) -> Option<SlotView> {
        let entry = &self.entries[self.index(position)];
        // Acquire: partner is the Release in `publish` and `abort`.
        let word = entry.word.load(Ordering::Acquire);
        if word >> LAP_SHIFT != self.lap(position) {
            return None;
        }
        let state = match (word >> UNITS_BITS) & ((1 << STATE_BITS) - 1) {
            1 => SlotState::Claimed,
            2 => SlotState::Record,
            3 => SlotState::Batch,
            4 => SlotState::Large,
            5 => SlotState::Aborted,
            _ => SlotState::Pad,
        };
        let meta = entry.meta.load(Ordering::Relaxed);
        Some(SlotView {
            state,
            units: word & ((1 << UNITS_BITS) - 1),
            lsn: entry.lsn.load(Ordering::Relaxed),
            meta: Meta(meta as u32, (meta >> 32) as u32),
        })
    }

    /// The first `len` bytes of the published slot at `position`.
    ///
    /// # Safety
    /// The caller is the writer, has seen the slot published by [`view`](Self::view), `len` is within
    /// the slot's units, and the slice is not used after [`give_back`](Self::give_back) passed it.
    #[inline]
    pub(crate) unsafe fn bytes(&self, position: u64, len: usize) -> &[u8] {
        let index = self.index(position);
        debug_assert!(index * UNIT_BYTES + len <= self.data.len() * UNIT_BYTES);
        let pointer = self.unit(index);
        // SAFETY: the slot is published, so that no producer writes to it any more, and by the
        // caller's word it lies inside the ring and is not given back meanwhile.
        unsafe { core::slice::from_raw_parts(pointer, len) }
    }

    /// Gives all units below `head` back to the producers.
    #[inline]
    pub(crate) fn give_back(&self, head: u64) {
        // Release: partner is the Acquire in `claim`: the writer's reads of these units are over.
        self.head.store(head, Ordering::Release);
    }

    /// Whether something is claimed at or behind `position`. May be stale.
    pub(crate) fn claimed_beyond(&self, position: u64) -> bool {
        self.tail.tail.load(Ordering::Relaxed) > position
    }

    /// Where a unit's bytes start. The pointer reaches over the whole of `data`.
    #[cfg(not(uringlog_loom))]
    fn unit_mut(&self, index: usize) -> *mut u8 {
        self.unit(index).cast_mut()
    }

    #[cfg(not(uringlog_loom))]
    fn unit(&self, index: usize) -> *const u8 {
        self.data.as_ptr().wrapping_add(index).cast::<u8>()
    }

    /// Under loom the access is reported to the model, which knows single units only.
    #[cfg(uringlog_loom)]
    fn unit_mut(&self, index: usize) -> *mut u8 {
        self.data[index].with_mut(|cell| cell.cast::<u8>())
    }

    #[cfg(uringlog_loom)]
    fn unit(&self, index: usize) -> *const u8 {
        self.data[index].with(|cell| cell.cast::<u8>())
    }

    /// Asks for the cache lines that the next claim will write, if it is as large as the last one. The writer
    /// has read them a lap ago, so they are shared between the cores, and the first store to each would wait for
    /// the other core: half of an append, or all of it (`benches/submit.rs`).
    #[inline]
    fn expect_claim(&self, position: u64, units: u64) {
        #[cfg(all(target_arch = "x86_64", not(miri), not(uringlog_loom)))]
        {
            let index = self.index(position);
            prefetch_for_write(self.entries.as_ptr().wrapping_add(index).cast());
            // The processor sees by itself where a longer run goes on.
            for line in 0..units.min(2) as usize {
                prefetch_for_write(self.unit(index).wrapping_add(line * UNIT_BYTES));
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri), not(uringlog_loom))))]
        let _not_here = (position, units);
    }

    #[inline]
    fn set_state(&self, position: u64, units: u64, state: SlotState, ordering: Ordering) {
        let word = self.lap(position) << LAP_SHIFT | (state as u64) << UNITS_BITS | units;
        self.entries[self.index(position)].word.store(word, ordering);
    }

    #[inline]
    fn index(&self, position: u64) -> usize {
        (position & (self.units - 1)) as usize
    }

    /// The lap of a position, from 1, cut to the bits that an entry has for it. An entry from 2^37
    /// laps ago looks current; at 4 KiB a lap that is half an exabyte through one ring.
    #[inline]
    fn lap(&self, position: u64) -> u64 {
        ((position >> self.lap_shift) + 1) & LAP_MASK
    }
}

/// Asks for a line, to be written soon. A hint: it reads and writes nothing, and any address will do.
#[cfg(all(target_arch = "x86_64", not(miri), not(uringlog_loom)))]
#[inline]
fn prefetch_for_write(line: *const u8) {
    // PREFETCHW; the intrinsic becomes one for reading where the target does not say that there is it. Old
    // processors take it for a NOP (Intel's manual, volume 2, and AMD's, volume 3).
    // SAFETY: the instruction has no effect but on caches, and no address makes it fail.
    unsafe {
        core::arch::asm!(
            "prefetchw byte ptr [{line}]",
            line = in(reg) line,
            options(nostack, preserves_flags, readonly),
        );
    }
}

#[cfg(all(test, not(uringlog_loom)))]
mod tests {
    use super::*;

    fn write(ring: &Ring, payload: &[u8], lsn: u64) -> bool {
        let Some(mut claim) = ring.claim(Ring::units_for(payload.len())) else { return false };
        ring.bytes_mut(&mut claim)[..payload.len()].copy_from_slice(payload);
        ring.publish(claim, SlotState::Record, lsn, Meta(payload.len() as u32, 0));
        true
    }

    #[test]
    fn a_slot_is_seen_only_in_its_lap() {
        let ring = Ring::new(4 * UNIT_BYTES);
        assert_eq!(ring.view(0), None);
        for lsn in 1..=40 {
            assert!(write(&ring, b"x", lsn));
            let view = ring.view(lsn - 1).unwrap();
            assert_eq!((view.state, view.lsn), (SlotState::Record, lsn));
            assert_eq!(ring.view(lsn), None, "the entry of the lap before must not count");
            ring.give_back(lsn);
        }
    }

    #[test]
    fn a_full_ring_refuses_and_takes_again_after_giving_back() {
        let ring = Ring::new(4 * UNIT_BYTES);
        for lsn in 1..=4 {
            assert!(write(&ring, b"x", lsn));
        }
        assert!(ring.claim(1).is_none());
        ring.give_back(1);
        assert!(write(&ring, b"x", 5));
        assert!(ring.claim(1).is_none());
    }

    #[test]
    fn a_claim_never_wraps() {
        let ring = Ring::new(8 * UNIT_BYTES);
        for lsn in 1..=6 {
            assert!(write(&ring, b"x", lsn));
        }
        ring.give_back(6);
        assert!(write(&ring, &[7; 3 * UNIT_BYTES], 7), "two units are skipped before the wrap");
        let pad = ring.view(6).unwrap();
        assert_eq!((pad.state, pad.units), (SlotState::Pad, 2));
        let slot = ring.view(8).unwrap();
        assert_eq!((slot.state, slot.units, slot.lsn), (SlotState::Record, 3, 7));
        // SAFETY: this thread is the writer and the slot is published.
        assert_eq!(unsafe { ring.bytes(8, 3 * UNIT_BYTES) }, &[7; 3 * UNIT_BYTES]);
    }

    #[test]
    fn what_is_filled_in_can_be_looked_at_whole() {
        let ring = Ring::new(8 * UNIT_BYTES);
        let mut first = ring.claim(2).unwrap();
        let mut second = ring.claim(3).unwrap();
        ring.bytes_mut(&mut first).fill(1);
        ring.bytes_mut(&mut second).fill(2);
        assert_eq!(ring.claimed_bytes(&first), [1; 2 * UNIT_BYTES]);
        assert_eq!(ring.claimed_bytes(&second), [2; 3 * UNIT_BYTES]);
        ring.abort(first);
        ring.abort(second);
    }

    #[test]
    fn an_aborted_slot_is_seen_as_such() {
        let ring = Ring::new(4 * UNIT_BYTES);
        let claim = ring.claim(2).unwrap();
        assert_eq!(ring.view(0).unwrap().state, SlotState::Claimed);
        ring.abort(claim);
        assert_eq!(ring.view(0).unwrap().state, SlotState::Aborted);
    }
}
