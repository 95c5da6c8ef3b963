//! The one number line, and the gate in it.
//!
//! A record's number is taken by one `fetch_add`, after its payload is in place and right before it
//! is published. The top bit of the counter is the gate: while it is set, what `fetch_add` returns is
//! no number. Setting it returns the counter's value, so the writer knows exactly which numbers were
//! given out before, and drains up to the last of them: nothing accepted is left behind. Opening the
//! gate stores that value back, which takes the refused attempts off the counter again.

use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU32, AtomicU64, Futex, Ordering, fence_for_loom, yield_now};

const SHUT: u64 = 1 << 63;

/// Why the gate is shut. Later reasons win over earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub(crate) enum Shut {
    /// The preparer is still busy with the next segments.
    Preparing = 1,
    /// The preparer found no space.
    NoSpace = 2,
    /// The log is closed. For good.
    Closed = 3,
    /// A write or sync failed. For good.
    Poisoned = 4,
}

pub(crate) struct Numbers {
    /// The next number, or anything under the `SHUT` bit. Contended by producers.
    next: CachePadded<AtomicU64>,
    /// While shut: the number that comes next when the gate opens. 0 while it is not known.
    held: AtomicU64,
    /// While shut: why. 0 otherwise; it may lag behind `next` by a few instructions.
    reason: AtomicU32,
    /// Counts openings and changes of the reason; producers that wait at the gate sleep on it.
    changed: Futex,
}

impl Numbers {
    pub(crate) fn new(next: u64) -> Self {
        Numbers {
            next: CachePadded::new(AtomicU64::new(next)),
            held: AtomicU64::new(0),
            reason: AtomicU32::new(0),
            changed: Futex::new(0),
        }
    }

    /// Takes `count` numbers and returns the first, or says why there are none. Wait-free.
    ///
    /// It also announces the record: the writer does not sleep while it has not seen a number that it finds
    /// given out ([`Doorbell::ring_announced`](crate::doorbell::Doorbell::ring_announced)).
    ///
    /// SeqCst, for that: partner is the load in `last`. Its Acquire is the partner of the Release in `open`:
    /// who has a number from behind a truncation sees the generation that came with it. The order of numbers
    /// needs none: it is the modification order of this one atomic, which agrees with every happens-before
    /// between appends; what the record holds is published by its slot.
    #[inline]
    pub(crate) fn take(&self, count: u64) -> Result<u64, Shut> {
        let first = self.next.fetch_add(count, Ordering::SeqCst);
        fence_for_loom();
        if first & SHUT == 0 { Ok(first) } else { Err(self.why()) }
    }

    /// The number of the last record accepted so far.
    pub(crate) fn last(&self) -> u64 {
        loop {
            // SeqCst: partner is the addition in `take`.
            let next = self.next.load(Ordering::SeqCst);
            if next & SHUT == 0 {
                return next - 1;
            }
            // Acquire: partner is the Release in `shut`.
            match self.held.load(Ordering::Acquire) {
                // The gate is just being shut or opened.
                0 => yield_now(),
                held => return held - 1,
            }
        }
    }

    /// As [`last`](Self::last), in a forked child: the writer is not there to finish what it was about to
    /// do with the gate, so nothing is waited for. Refused attempts may count for a moment.
    pub(crate) fn last_as_it_stands(&self) -> u64 {
        let next = self.next.load(Ordering::Acquire);
        match (next & SHUT, self.held.load(Ordering::Acquire)) {
            (0, _) | (_, 0) => (next & !SHUT) - 1,
            (_, held) => held - 1,
        }
    }

    /// Why the gate is shut, if it is.
    pub(crate) fn shut_reason(&self) -> Option<Shut> {
        (self.next.load(Ordering::Acquire) & SHUT != 0).then(|| self.why())
    }

    /// Shuts the gate, or makes its reason a stronger one. Returns the next number: all below it
    /// were given out, and none above will be until [`open`](Self::open). The writer's call only.
    pub(crate) fn shut(&self, reason: Shut) -> u64 {
        let before = self.next.fetch_or(SHUT, Ordering::AcqRel);
        if before & SHUT == 0 {
            // Release: partner is the Acquire in `last`.
            self.held.store(before, Ordering::Release);
        }
        // Relaxed: only the writer stores it.
        if self.reason.load(Ordering::Relaxed) < reason as u32 || before & SHUT == 0 {
            self.reason.store(reason as u32, Ordering::Release);
            self.bump();
        }
        self.held.load(Ordering::Relaxed)
    }

    /// Opens the gate, unless it is shut for good. The writer's call only.
    pub(crate) fn open(&self) {
        if self.next.load(Ordering::Relaxed) & SHUT == 0 || self.why() >= Shut::Closed {
            return;
        }
        self.reason.store(0, Ordering::Release);
        // Release: partner is the Acquire in `take`, `last` and `shut_reason`. A swap, not a store, so that
        // in the one order of this atomic every refused attempt stands wholly before it or after.
        let held = self.held.swap(0, Ordering::AcqRel);
        self.next.swap(held, Ordering::AcqRel);
        self.bump();
    }

    /// Sets the next number back, while the gate is shut and everything given out was drained. The
    /// writer's call only.
    pub(crate) fn rewind(&self, next: u64) {
        debug_assert!(self.next.load(Ordering::Relaxed) & SHUT != 0);
        // Release: partner is the Acquire in `last`.
        self.held.store(next, Ordering::Release);
    }

    /// Replaces "still preparing" by "no space" and back, without opening. The writer's call only.
    pub(crate) fn set_space_reason(&self, reason: Shut) {
        if self.why() < Shut::Closed
            && self.reason.swap(reason as u32, Ordering::AcqRel) != reason as u32
        {
            self.bump();
        }
    }

    /// Sleeps until the gate changes, at the latest at `deadline`; may wake for no reason. Returns
    /// at once when the gate is not shut because of [`Shut::Preparing`].
    pub(crate) fn wait_for_change(&self, deadline: Option<Instant>) {
        let seen = self.changed.word().load(Ordering::Acquire);
        if self.shut_reason() != Some(Shut::Preparing) {
            return;
        }
        let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if timeout != Some(Duration::ZERO) {
            self.changed.wait(seen, timeout);
        }
    }

    fn bump(&self) {
        // Release: partner is the Acquire in `wait_for_change`.
        self.changed.word().fetch_add(1, Ordering::Release);
        self.changed.wake(u32::MAX >> 1);
    }

    fn why(&self) -> Shut {
        match self.reason.load(Ordering::Acquire) {
            2 => Shut::NoSpace,
            3 => Shut::Closed,
            4 => Shut::Poisoned,
            // 0: the bit is set and the reason is about to be, or the gate has just opened: the
            // caller tries again.
            _ => Shut::Preparing,
        }
    }
}

#[cfg(all(test, not(uringlog_loom)))]
mod tests {
    use super::*;

    #[test]
    fn refused_attempts_leave_no_gap() {
        let numbers = Numbers::new(1);
        assert_eq!(numbers.take(3), Ok(1));
        assert_eq!(numbers.shut(Shut::NoSpace), 4);
        assert_eq!(numbers.take(1), Err(Shut::NoSpace));
        assert_eq!(numbers.take(500), Err(Shut::NoSpace));
        assert_eq!(numbers.last(), 3);
        numbers.open();
        assert_eq!(numbers.take(1), Ok(4));
    }

    #[test]
    fn a_gate_that_is_being_moved_is_not_waited_for_in_a_child() {
        let numbers = Numbers::new(5);
        assert_eq!(numbers.last_as_it_stands(), 4);
        // The writer was forked away between its two stores.
        numbers.next.fetch_or(SHUT, Ordering::Relaxed);
        assert_eq!(numbers.last_as_it_stands(), 4);
        numbers.shut(Shut::NoSpace);
        numbers.held.store(5, Ordering::Relaxed);
        assert_eq!(numbers.take(3), Err(Shut::NoSpace));
        assert_eq!(numbers.last_as_it_stands(), 4);
    }

    #[test]
    fn numbers_are_given_out_again_after_a_rewind() {
        let numbers = Numbers::new(1);
        assert_eq!(numbers.take(10), Ok(1));
        numbers.shut(Shut::Preparing);
        assert_eq!(numbers.take(1), Err(Shut::Preparing));
        numbers.rewind(4);
        assert_eq!(numbers.last(), 3);
        numbers.open();
        assert_eq!(numbers.take(1), Ok(4));
    }

    #[test]
    fn a_gate_shut_for_good_does_not_open() {
        let numbers = Numbers::new(1);
        numbers.shut(Shut::Preparing);
        assert_eq!(numbers.shut(Shut::Closed), 1);
        numbers.open();
        numbers.set_space_reason(Shut::NoSpace);
        assert_eq!(numbers.take(1), Err(Shut::Closed));
        numbers.shut(Shut::Poisoned);
        assert_eq!(numbers.take(1), Err(Shut::Poisoned));
    }

    /// Who waits at the gate is woken by every change, and only a gate that is shut has a reason.
    #[test]
    fn every_change_of_the_gate_is_counted_and_nothing_else() {
        let numbers = Numbers::new(1);
        let changes = || numbers.changed.word().load(Ordering::Relaxed);
        assert_eq!(numbers.shut_reason(), None);
        // It is open: nobody sleeps.
        numbers.wait_for_change(None);
        numbers.open();
        assert_eq!(changes(), 0, "it was open");
        numbers.shut(Shut::Preparing);
        assert_eq!((numbers.shut_reason(), changes()), (Some(Shut::Preparing), 1));
        numbers.shut(Shut::Preparing);
        numbers.set_space_reason(Shut::Preparing);
        assert_eq!(changes(), 1, "nothing has changed");
        numbers.wait_for_change(Some(Instant::now() + Duration::from_millis(1)));
        numbers.set_space_reason(Shut::NoSpace);
        assert_eq!((numbers.shut_reason(), changes()), (Some(Shut::NoSpace), 2));
        // There is nothing to wait for.
        numbers.wait_for_change(None);
        numbers.open();
        assert_eq!((numbers.shut_reason(), changes()), (None, 3));
        numbers.shut(Shut::Closed);
        numbers.set_space_reason(Shut::NoSpace);
        assert_eq!((numbers.shut_reason(), changes()), (Some(Shut::Closed), 4));
    }
}
