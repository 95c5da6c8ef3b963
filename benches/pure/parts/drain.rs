//! The writer's side of the rings: from ring order to number order, and into a batch.
use uringlog::internals::{Batch, Rings, Window};

use super::{batch, payload};
use crate::part::{Part, Work, work};

const RECORDS: u64 = 1024;
const RING_BYTES: usize = 1 << 20;

pub fn parts() -> Vec<Part> {
    vec![
        Part::new("drain/scan_in_order", RECORDS, || scan(1 << 14, |_| 0, |at| at)),
        // Every second number is in the other ring.
        Part::new("drain/scan_two_rings", RECORDS, || scan(1 << 14, |at| at as usize % 2, |at| at)),
        // Late numbers come first, so that most lie beyond the window.
        Part::new("drain/scan_beyond_window", RECORDS, || scan(16, |_| 0, |at| RECORDS - 1 - at)),
        Part::new("drain/fill_64", RECORDS, fill::<64>),
        Part::new("drain/fill_256", RECORDS, fill::<256>),
    ]
}

struct State<const BYTES: usize> {
    rings: Rings,
    window: Window,
    batch: Batch,
    record: [u8; BYTES],
    /// In which ring the record with this index is published, and as which number after the next.
    ring_of: fn(u64) -> usize,
    number_of: fn(u64) -> u64,
}

impl<const BYTES: usize> State<BYTES> {
    fn new(window: usize, ring_of: fn(u64) -> usize, number_of: fn(u64) -> u64) -> Self {
        State {
            rings: Rings::new(2, RING_BYTES),
            window: Window::new(1, window),
            batch: batch(),
            record: payload(),
            ring_of,
            number_of,
        }
    }

    /// Empties what is there, and publishes records for one pass.
    fn publish(&mut self) {
        self.window.scan(&self.rings);
        self.fill();
        let next = self.window.next_lsn();
        for at in 0..RECORDS {
            let lsn = next + (self.number_of)(at);
            let ring = (self.ring_of)(at);
            assert!(self.rings.publish(ring, lsn, &self.record), "the ring has room");
        }
    }

    fn fill(&mut self) {
        assert!(self.window.fill(&self.rings, &mut self.batch), "a pass fits into a batch");
    }

    /// The next pass's batch starts empty.
    fn start_batch(&mut self) {
        self.batch.seal(&super::segment(), 8192, 0);
    }
}

fn scan(window: usize, ring_of: fn(u64) -> usize, number_of: fn(u64) -> u64) -> Box<dyn Work> {
    work(
        State::<64>::new(window, ring_of, number_of),
        |state| {
            state.publish();
            state.start_batch();
        },
        |state| assert!(state.window.scan(&state.rings), "the next number is there"),
    )
}

fn fill<const BYTES: usize>() -> Box<dyn Work> {
    work(
        State::<BYTES>::new(1 << 14, |at| at as usize % 2, |at| at),
        |state| {
            state.publish();
            state.start_batch();
            state.window.scan(&state.rings);
        },
        |state| state.fill(),
    )
}
