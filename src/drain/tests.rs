//! The drain alone: no thread, no disk, rings filled by hand.

use super::*;
use crate::frame;
use crate::mem::AlignedBuf;
use crate::mem::tests::buffers_alive;
use crate::ring::{Claim, Ring};

const RING_BYTES: usize = 16 * UNIT_BYTES;

/// One core, its ring, and one ring more at most.
fn one_ring() -> RingSet {
    RingSet::new(1, RING_BYTES, 1, 1 << 20)
}

fn batch() -> BatchBuilder {
    BatchBuilder::new(AlignedBuf::new(16 << 10).unwrap())
}

fn claim(rings: &RingSet) -> (&Ring, Claim) {
    rings.claim(1).expect("there is room")
}

fn publish((ring, mut claim): (&Ring, Claim), lsn: u64) {
    let payload = [lsn as u8; 5];
    ring.bytes_mut(&mut claim)[..5].copy_from_slice(&payload);
    ring.publish(claim, SlotState::Record, lsn, Meta(5, frame::crc32c(&payload)));
}

fn publish_large((ring, mut claim): (&Ring, Claim), lsn: u64) {
    let mut buf = AlignedBuf::new(8 << 10).unwrap();
    let content = crate::batch::Content::single(&mut buf, 5000);
    let large = Box::new(Large { buf, content });
    store_large(ring.bytes_mut(&mut claim), large);
    ring.publish(claim, SlotState::Large, lsn, Meta(1, 5000));
}

/// The numbers that come out, one batch after the other, until there is nothing more.
fn emitted(drain: &mut Drain, rings: &RingSet) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut batch = batch();
    loop {
        let before = drain.next_lsn();
        let filled = drain.fill(rings, &mut batch);
        match filled {
            Filled::All => {
                numbers.extend(before..drain.next_lsn());
                return numbers;
            }
            Filled::Full => {
                numbers.extend(before..drain.next_lsn());
                batch = self::batch();
            }
            Filled::Large(lsn, _) => {
                assert_eq!(lsn + 1, drain.next_lsn());
                numbers.extend(before..drain.next_lsn());
            }
        }
    }
}

#[test]
fn large_records_that_were_never_emitted_are_freed_at_the_end() {
    let before = buffers_alive();
    let rings = one_ring();
    let mut drain = Drain::new(1, 4);
    // Number 1 is missing: nothing comes out. 2 and 3 are in the window, 9 and 10 beyond it.
    let hole = claim(&rings);
    for lsn in [2, 9] {
        publish_large(claim(&rings), lsn);
    }
    drain.scan(&rings);
    assert!(matches!(drain.fill(&rings, &mut batch()), Filled::All));
    // Neither was looked at yet.
    for lsn in [3, 10] {
        publish_large(claim(&rings), lsn);
    }
    publish(claim(&rings), 4);
    assert_eq!(buffers_alive() - before, 4);
    drain.abandon(&rings);
    assert_eq!(buffers_alive() - before, 0, "buffers of large records are leaked");
    // Once: the places are forgotten.
    drain.abandon(&rings);
    assert!(!drain.window.is_occupied());
    rings.abort(hole.0, hole.1);
}

#[test]
fn a_large_record_that_was_emitted_is_not_freed_again() {
    let before = buffers_alive();
    let rings = one_ring();
    let mut drain = Drain::new(1, 4);
    publish_large(claim(&rings), 1);
    drain.scan(&rings);
    let Filled::Large(1, large) = drain.fill(&rings, &mut batch()) else { panic!("it is large") };
    drain.abandon(&rings);
    assert_eq!(buffers_alive() - before, 1);
    assert_eq!(large.content.payload_bytes, 5000);
}

#[test]
fn a_hole_is_a_number_that_is_missing_below_one_that_is_there() {
    let rings = one_ring();
    let mut drain = Drain::new(1, 4);
    drain.scan(&rings);
    assert!(!drain.has_hole(), "nothing is there");
    let first = claim(&rings);
    publish(claim(&rings), 2);
    assert!(!drain.scan(&rings), "the next number is missing");
    assert!(drain.has_hole());
    publish(first, 1);
    assert!(drain.scan(&rings));
    assert!(!drain.has_hole(), "1 and 2 are there");
    assert_eq!(emitted(&mut drain, &rings), [1, 2]);
    assert!(!drain.has_hole());
    // One beyond the window is one that is there.
    publish(claim(&rings), 7);
    drain.scan(&rings);
    assert!(drain.has_hole() && drain.is_window_full());
}

#[test]
fn a_scan_ends_where_all_numbers_are_found() {
    let rings = one_ring();
    let mut drain = Drain::new(1, 4);
    let reserved = claim(&rings);
    publish(claim(&rings), 1);
    publish(claim(&rings), 2);
    assert!(!drain.scan_upto(&rings, 0), "there is no number yet");
    assert!(drain.scan_upto(&rings, 1));
    assert_eq!(emitted(&mut drain, &rings), [1]);
    assert!(drain.scan_upto(&rings, 2));
    assert_eq!(emitted(&mut drain, &rings), [2]);
    // What was reserved before comes last, and what was passed over is not looked for again.
    publish(reserved, 3);
    publish(claim(&rings), 4);
    publish(claim(&rings), 5);
    assert!(drain.scan_upto(&rings, 3));
    assert_eq!(emitted(&mut drain, &rings), [3]);
    assert!(drain.scan_upto(&rings, 5));
    assert_eq!(emitted(&mut drain, &rings), [4, 5]);
}

#[test]
fn a_newer_number_does_not_stand_for_one_that_is_looked_for() {
    let rings = RingSet::new(2, RING_BYTES, 1, 1 << 20);
    let on = |ring: usize| {
        let ring = rings.ring(ring).unwrap();
        (ring, ring.claim(1).expect("there is room"))
    };
    let mut drain = Drain::new(1, 8);
    publish(on(1), 1);
    // Published after the writer looked how far the numbers go, in the ring that it looks at first.
    publish(on(0), 2);
    assert!(drain.scan_upto(&rings, 1));
    assert_eq!(emitted(&mut drain, &rings), [1, 2]);
}

#[test]
fn numbers_beyond_the_window_come_out_in_order() {
    let rings = one_ring();
    let mut drain = Drain::new(1, 4);
    let order = [12, 5, 9, 1, 4, 2, 8, 3, 7, 6, 11, 10];
    for lsn in order {
        publish(claim(&rings), lsn);
        drain.scan(&rings);
        assert!(drain.is_window_full());
    }
    // At the time when they were found, with 1 the next: 5 to 12.
    assert_eq!(drain.stats().beyond_window, 8);
    assert_eq!(emitted(&mut drain, &rings), (1..=12).collect::<Vec<_>>());
    assert!(!drain.is_window_full());
    assert_eq!(drain.stats().slots, 12);
}

#[test]
fn space_comes_back_in_ring_order_only() {
    let rings = one_ring();
    let mut drain = Drain::new(1, 64);
    let stalled = claim(&rings);
    for lsn in 1..=15 {
        publish(claim(&rings), lsn);
    }
    assert!(rings.claim(1).is_none(), "the ring is full");
    drain.scan(&rings);
    assert_eq!(emitted(&mut drain, &rings).len(), 15);
    assert!(rings.claim(1).is_none(), "an unpublished slot stands in front");
    publish(stalled, 16);
    drain.scan(&rings);
    assert_eq!(emitted(&mut drain, &rings), [16]);
    // Nothing is lost and nothing comes twice, lap after lap.
    for lsn in 17..200 {
        publish(claim(&rings), lsn);
        drain.scan(&rings);
        assert_eq!(emitted(&mut drain, &rings), [lsn]);
    }
}

#[test]
fn a_slot_is_given_back_only_when_it_was_emitted() {
    let rings = one_ring();
    let mut drain = Drain::new(1, 64);
    // Number 1 stands last in the ring: until it is there, nothing was copied.
    for lsn in 2..=16 {
        publish(claim(&rings), lsn);
    }
    let first = claim(&rings);
    drain.scan(&rings);
    drain.give_back(&rings);
    assert!(rings.claim(1).is_none(), "no slot was read, and one was given back");
    publish(first, 1);
    drain.scan(&rings);
    drain.give_back(&rings);
    assert!(rings.claim(1).is_none(), "no slot was read, and one was given back");
    assert_eq!(emitted(&mut drain, &rings).len(), 16);
    for lsn in 17..=32 {
        publish(claim(&rings), lsn);
    }
    assert!(rings.claim(1).is_none(), "more came back than there is");
}

#[test]
fn a_ring_that_a_reservation_pins_is_replaced_and_used_again() {
    let rings = one_ring();
    let mut drain = Drain::new(1, 64);
    let leaked = claim(&rings);
    for lsn in 1..=10 {
        publish(claim(&rings), lsn);
    }
    drain.scan(&rings);
    assert_eq!(emitted(&mut drain, &rings).len(), 10);
    assert!(!drain.retire_pinned(&rings), "there is room yet");
    for lsn in 11..=15 {
        publish(claim(&rings), lsn);
    }
    drain.scan(&rings);
    assert_eq!(emitted(&mut drain, &rings).len(), 5);
    assert!(drain.retire_pinned(&rings));
    assert_eq!((rings.made_count(), drain.stats().retired), (2, 1));
    // The other ring is pinned too, and there is no third; the first one is not empty.
    let other = claim(&rings);
    assert!(!core::ptr::eq(leaked.0, other.0));
    for lsn in 16..=30 {
        publish(claim(&rings), lsn);
    }
    drain.scan(&rings);
    assert_eq!(emitted(&mut drain, &rings).len(), 15);
    assert!(!drain.retire_pinned(&rings) && drain.stats().retired == 1);
    // Its reservation has ended: it is empty, and used again.
    leaked.0.abort(leaked.1);
    drain.scan(&rings);
    drain.give_back(&rings);
    assert!(drain.retire_pinned(&rings));
    assert_eq!((rings.made_count(), drain.stats().retired), (2, 2));
    for lsn in 31..=46 {
        publish(claim(&rings), lsn);
    }
    drain.scan(&rings);
    assert_eq!(emitted(&mut drain, &rings), (31..=46).collect::<Vec<_>>());
    rings.abort(other.0, other.1);
}

#[test]
fn what_is_claimed_and_not_published_is_no_news_and_what_is_published_is() {
    let rings = one_ring();
    let mut drain = Drain::new(1, 64);
    assert!(drain.anything_new(&rings), "a ring that it never looked at");
    drain.scan(&rings);
    assert!(!drain.anything_new(&rings));
    assert!(!drain.has_blind_claim(&rings), "nothing is claimed");
    let first = claim(&rings);
    assert!(drain.anything_new(&rings), "a claim that it never looked at");
    assert!(!drain.has_blind_claim(&rings), "its length is written");
    drain.scan(&rings);
    assert!(!drain.anything_new(&rings));
    publish(first, 1);
    assert!(drain.anything_new(&rings));
    drain.scan(&rings);
    assert!(!drain.anything_new(&rings));
    let second = claim(&rings);
    drain.scan(&rings);
    rings.abort(second.0, second.1);
    assert!(drain.anything_new(&rings), "its space is to be given back");
}
