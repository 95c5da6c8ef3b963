//! The set of rings: one for each core, spares for those that a leaked reservation pins, and the
//! budget of heap bytes for what no ring takes.
//!
//! Rings are never freed while the log lives, so producers follow plain references. A ring whose head
//! is pinned is *retired*: its core gets a spare, and it becomes a spare itself once the reservation
//! has ended and it is empty.

use std::sync::OnceLock;

use crossbeam_utils::CachePadded;

use crate::ring::{Claim, Ring};
use crate::sync::{AtomicU32, AtomicU64, Futex, Ordering, fence};

pub(crate) struct RingSet {
    /// All rings ever made, by id; the first `lanes` from the start, the others on retirement.
    rings: Box<[OnceLock<Box<Ring>>]>,
    /// Rings made so far: ids below it may be looked at by the writer.
    made: AtomicU32,
    /// The ring id of each lane. Read by every append, written on retirement only.
    lanes: Box<[AtomicU32]>,
    ring_bytes: usize,
    /// Moves when space was given back while somebody waited for it.
    space: Futex,
    /// Producers that wait for space.
    waiting: CachePadded<AtomicU32>,
    /// Heap bytes of large records not yet written.
    large_bytes: CachePadded<AtomicU64>,
    /// Those among them that are not sealed either: they will take so much of the prepared space.
    large_unsealed_bytes: AtomicU64,
    /// Producers that wait for the budget, or for prepared space for a large record.
    large_waiting: AtomicU32,
    large_bytes_max: u64,
}

impl RingSet {
    pub(crate) fn new(
        lanes: usize,
        ring_bytes: usize,
        spares: usize,
        large_bytes_max: usize,
    ) -> Self {
        let rings: Box<[OnceLock<Box<Ring>>]> =
            (0..lanes + spares).map(|_| OnceLock::new()).collect();
        for ring in &rings[..lanes] {
            ring.get_or_init(|| Box::new(Ring::new(ring_bytes)));
        }
        RingSet {
            rings,
            made: AtomicU32::new(lanes as u32),
            lanes: (0..lanes as u32).map(AtomicU32::new).collect(),
            ring_bytes,
            space: Futex::new(0),
            waiting: CachePadded::new(AtomicU32::new(0)),
            large_bytes: CachePadded::new(AtomicU64::new(0)),
            large_unsealed_bytes: AtomicU64::new(0),
            large_waiting: AtomicU32::new(0),
            large_bytes_max: large_bytes_max as u64,
        }
    }

    // ---- producers ----

    /// Claims space in the ring of this core, or else in the next one that has room.
    #[inline]
    pub(crate) fn claim(&self, units: u64) -> Option<(&Ring, Claim)> {
        let home = self.lane_of_this_core();
        let ring = self.lane(home)?;
        match ring.claim(units) {
            Some(claim) => Some((ring, claim)),
            None => self.claim_elsewhere(home, units),
        }
    }

    #[cold]
    fn claim_elsewhere(&self, home: usize, units: u64) -> Option<(&Ring, Claim)> {
        (1..self.lanes.len()).find_map(|step| {
            let ring = self.lane((home + step) % self.lanes.len())?;
            Some((ring, ring.claim(units)?))
        })
    }

    /// Gives up a claim in one of these rings. Returns whether a producer waits for its space: that
    /// comes back only when the writer is asked to look for it.
    pub(crate) fn abort(&self, ring: &Ring, claim: Claim) -> bool {
        ring.abort(claim);
        // Partner: the fence in `wait_for_space`. Orders the abort before the look at the count.
        fence(Ordering::SeqCst);
        self.is_waited_for()
    }

    #[inline]
    fn lane(&self, lane: usize) -> Option<&Ring> {
        // Acquire: partner is the Release in `retire`. A lane's ring is always made before.
        let id = self.lanes[lane].load(Ordering::Acquire) as usize;
        self.rings[id].get().map(|ring| &**ring)
    }

    #[inline]
    fn lane_of_this_core(&self) -> usize {
        if self.lanes.len() == 1 {
            return 0;
        }
        crate::cpu::current() % self.lanes.len()
    }

    /// Takes `bytes` of the budget for large records, if `spare_space_bytes` of prepared space, beyond
    /// the reserve, cover them and all others that are not sealed yet, twice: a segment's end may
    /// be lost for each. `false` when they do not now. One that is larger than the whole budget is
    /// refused by its caller before.
    pub(crate) fn take_large(&self, bytes: u64, spare_space_bytes: u64) -> bool {
        let in_budget = |taken: u64| Some(taken + bytes).filter(|&sum| sum <= self.large_bytes_max);
        let covered = |taken: u64| Some(taken + bytes).filter(|&sum| 2 * sum <= spare_space_bytes);
        let relaxed = Ordering::Relaxed;
        if self.large_bytes.fetch_update(relaxed, relaxed, in_budget).is_err() {
            return false;
        }
        if self.large_unsealed_bytes.fetch_update(relaxed, relaxed, covered).is_err() {
            self.return_large(bytes);
            return false;
        }
        true
    }

    /// Large records are given up: takes back [`take_large`](Self::take_large).
    pub(crate) fn give_up_large(&self, bytes: u64) {
        self.large_sealed(bytes);
        self.return_large(bytes);
    }

    /// The space for them is taken. The writer's call.
    pub(crate) fn large_sealed(&self, bytes: u64) {
        self.large_unsealed_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns bytes to the budget: the buffer is free.
    pub(crate) fn return_large(&self, bytes: u64) {
        self.large_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes of large records that will take prepared space.
    pub(crate) fn large_unsealed_bytes(&self) -> u64 {
        self.large_unsealed_bytes.load(Ordering::Relaxed)
    }

    /// Says that a producer waits for a large record's room, until the guard is dropped.
    pub(crate) fn wait_for_large(&self) -> LargeWait<'_> {
        self.large_waiting.fetch_add(1, Ordering::Relaxed);
        LargeWait(self)
    }

    pub(crate) fn is_large_waiting(&self) -> bool {
        self.large_waiting.load(Ordering::Relaxed) > 0
    }

    /// Says that this producer waits for space, until the guard is dropped.
    pub(crate) fn wait_for_space(&self) -> SpaceWait<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Partner: the fence in `space_freed`. Orders the count before the caller's next claim.
        fence(Ordering::SeqCst);
        SpaceWait { set: self, seen: self.space.word().load(Ordering::Acquire) }
    }

    /// Whether a producer waits for space.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    // ---- the writer ----

    /// How many rings were made so far.
    pub(crate) fn made_count(&self) -> usize {
        self.made.load(Ordering::Relaxed) as usize
    }

    /// Rings made so far, by id.
    pub(crate) fn made(&self) -> impl Iterator<Item = &Ring> {
        self.rings[..self.made_count()].iter().filter_map(|ring| ring.get().map(|ring| &**ring))
    }

    pub(crate) fn ring(&self, id: usize) -> Option<&Ring> {
        self.rings.get(id)?.get().map(|ring| &**ring)
    }

    /// The lane that uses this ring; `None` for a retired one.
    pub(crate) fn lane_of(&self, id: usize) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.load(Ordering::Relaxed) as usize == id)
    }

    /// Gives the lane another ring: one that stood retired and is empty (the writer names it), or
    /// one made now. `false` when the bound on retired rings is reached.
    pub(crate) fn replace(&self, lane: usize, empty: Option<usize>) -> bool {
        let id = match empty {
            Some(id) => id,
            None => {
                let id = self.made.load(Ordering::Relaxed) as usize;
                let Some(slot) = self.rings.get(id) else { return false };
                slot.get_or_init(|| Box::new(Ring::new(self.ring_bytes)));
                self.made.store(id as u32 + 1, Ordering::Relaxed);
                id
            }
        };
        // Release: partner is the Acquire in `lane`: the ring is made before it is used.
        self.lanes[lane].store(id as u32, Ordering::Release);
        true
    }

    /// Wakes producers that wait for space. Call after space was given back.
    pub(crate) fn space_freed(&self) {
        // Partner: the fence in `wait_for_space`. Orders giving back before the look at the count.
        fence(Ordering::SeqCst);
        if self.is_waited_for() {
            self.wake_all();
        }
    }

    /// Wakes every producer that waits, space or not: the gate was shut for good.
    pub(crate) fn wake_all(&self) {
        // Release: partner is the Acquire in `wait_for_space` and `SpaceWait::sleep`.
        self.space.word().fetch_add(1, Ordering::Release);
        self.space.wake(u32::MAX >> 1);
    }
}

/// A producer's wait for space: it tries again after having said that it waits, then sleeps.
pub(crate) struct SpaceWait<'a> {
    set: &'a RingSet,
    seen: u32,
}

impl SpaceWait<'_> {
    /// Sleeps until space was given back since this was last looked at, or the time is over.
    pub(crate) fn sleep(&mut self, timeout: Option<std::time::Duration>) {
        self.set.space.wait(self.seen, timeout);
        self.seen = self.set.space.word().load(Ordering::Acquire);
    }
}

impl Drop for SpaceWait<'_> {
    fn drop(&mut self) {
        self.set.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See [`RingSet::wait_for_large`].
pub(crate) struct LargeWait<'a>(&'a RingSet);

impl Drop for LargeWait<'_> {
    fn drop(&mut self) {
        self.0.large_waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(uringlog_loom)))]
mod tests {
    use super::*;
    use crate::ring::UNIT_BYTES;

    #[test]
    fn who_waits_is_counted_as_long_as_it_waits() {
        let rings = RingSet::new(1, 4 * UNIT_BYTES, 0, 0);
        assert!(!rings.is_waited_for() && !rings.is_large_waiting());
        let (ring, claim) = rings.claim(1).unwrap();
        let waiting = rings.wait_for_space();
        assert!(rings.is_waited_for() && rings.abort(ring, claim), "the writer is to look for it");
        drop(waiting);
        let (ring, claim) = rings.claim(1).unwrap();
        assert!(!rings.is_waited_for() && !rings.abort(ring, claim));
        let waiting = rings.wait_for_large();
        assert!(rings.is_large_waiting());
        drop(waiting);
        assert!(!rings.is_large_waiting());
    }

    /// Space for large records counts twice until it is taken, and the budget once until it is written.
    #[test]
    fn large_records_are_accepted_as_far_as_space_and_budget_go() {
        let rings = RingSet::new(1, 4 * UNIT_BYTES, 0, 100);
        assert!(!rings.take_large(101, 1000), "more than the budget");
        assert!(!rings.take_large(60, 119), "more than half of the space");
        assert!(rings.take_large(60, 120));
        assert_eq!(rings.large_unsealed_bytes(), 60);
        assert!(!rings.take_large(20, 159), "both together are more");
        assert!(rings.take_large(20, 160));
        assert!(!rings.take_large(21, 1000), "more than is left of the budget");
        rings.large_sealed(60);
        assert_eq!(rings.large_unsealed_bytes(), 20);
        assert!(!rings.take_large(21, 1000), "it is not written yet");
        rings.return_large(60);
        assert!(rings.take_large(80, 200));
        rings.give_up_large(80);
        rings.give_up_large(20);
        assert_eq!(rings.large_unsealed_bytes(), 0);
        assert!(rings.take_large(100, 200), "all of it is there again");
    }

    #[test]
    fn a_lane_gets_another_ring_as_long_as_there_may_be_more() {
        let rings = RingSet::new(2, 4 * UNIT_BYTES, 1, 0);
        assert_eq!((rings.made_count(), rings.made().count()), (2, 2));
        assert_eq!([0, 1, 2].map(|id| rings.lane_of(id)), [Some(0), Some(1), None]);
        assert!(rings.ring(2).is_none());
        assert!(rings.replace(0, None));
        assert_eq!((rings.made_count(), rings.made().count()), (3, 3));
        assert_eq!([0, 1, 2].map(|id| rings.lane_of(id)), [None, Some(1), Some(0)]);
        assert!(!rings.replace(1, None), "no more may be made");
        assert!(rings.replace(1, Some(0)));
        assert_eq!([0, 1, 2].map(|id| rings.lane_of(id)), [Some(1), None, Some(0)]);
    }

    #[cfg(feature = "sim")]
    #[test]
    fn every_core_has_a_ring_and_goes_to_the_next_when_it_is_full() {
        let rings = RingSet::new(3, 2 * UNIT_BYTES, 0, 0);
        let lane_on = |core| {
            crate::cpu::SIMULATED.set(Some(core));
            let (ring, claim) = rings.claim(1).expect("there is room");
            let lane = (0..3).find(|&id| core::ptr::eq(ring, rings.ring(id).unwrap()));
            (lane.unwrap(), ring, claim)
        };
        for core in 0..20 {
            let (lane, ring, claim) = lane_on(core);
            assert_eq!(lane, core % 3, "core {core}");
            // As the writer does: each ring had one claim in each round.
            ring.abort(claim);
            ring.give_back(core as u64 / 3 + 1);
        }
        let rings = RingSet::new(3, 2 * UNIT_BYTES, 0, 0);
        crate::cpu::SIMULATED.set(Some(1));
        let mut lanes = Vec::new();
        while let Some((ring, _leaked)) = rings.claim(1) {
            lanes.extend((0..3).find(|&id| core::ptr::eq(ring, rings.ring(id).unwrap())));
        }
        assert_eq!(lanes, [1, 1, 2, 2, 0, 0]);
        crate::cpu::SIMULATED.set(None);
    }
}
