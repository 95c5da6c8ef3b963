//! A producer's side: claim, copy, number, publish.
use std::hint::black_box;

use uringlog::internals::{OneRing, Rings, Window};

use super::{batch, payload};
use crate::part::{Part, Work, work};

const RECORDS: u64 = 1024;
/// More than twice what a pass takes.
const RING_BYTES: usize = 2 << 20;

pub fn parts() -> Vec<Part> {
    vec![
        Part::new("ring/claim_publish", RECORDS, claim_publish),
        Part::new("ring/append_64", RECORDS, append::<64, RECORDS>),
        Part::new("ring/append_256", RECORDS, append::<256, RECORDS>),
        Part::new("ring/append_4096", RECORDS / 4, append::<4096, { RECORDS / 4 }>),
    ]
}

/// The smallest slot, claimed and published, nothing copied.
fn claim_publish() -> Box<dyn Work> {
    let state = (OneRing::new(RING_BYTES), 0u64);
    work(
        state,
        |(ring, done)| ring.give_back(*done),
        |(ring, done)| {
            for _ in 0..RECORDS {
                *done += 1;
                assert!(ring.claim_publish(1, black_box(*done)), "the ring has room");
            }
        },
    )
}

/// All that an append does before it looks whether the writer sleeps.
fn append<const BYTES: usize, const RECORDS: u64>() -> Box<dyn Work> {
    let state = (Rings::new(2, RING_BYTES), Window::new(1, 1 << 15), payload::<BYTES>());
    work(
        state,
        |(rings, window, _)| empty(rings, window),
        |(rings, _, record)| {
            for _ in 0..RECORDS {
                assert!(rings.append(black_box(record)), "the ring has room");
            }
        },
    )
}

/// Drains all there is, and forgets it.
fn empty(rings: &Rings, window: &mut Window) {
    window.scan(rings);
    assert!(window.fill(rings, &mut batch()), "all that a pass appends fits into a batch");
}
