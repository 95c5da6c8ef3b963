//! The writer while a producer stands between its number and the publication: neither the end of the
//! log nor a truncation passes it by.

use std::time::Duration;

use crate::log::Log;
use crate::options::Options;
use crate::ring::{Meta, SlotState};
use crate::sim::{self, SimDisk, SimOptions, Stepper, Turn};
use crate::{Lsn, frame};

fn open() -> (SimDisk, Log, Stepper) {
    let disk = SimDisk::new(1, SimOptions::default());
    let options = Options::new().segment_bytes(1 << 20).rings(1).ring_bytes(1 << 16);
    let (log, mut stepper) = sim::open(&disk, options, 1, 1).unwrap();
    for _ in 0..100 {
        while stepper.prepare() {}
        stepper.turn();
    }
    (disk, log, stepper)
}

fn turns(stepper: &mut Stepper, count: usize) -> bool {
    (0..count).any(|_| {
        stepper.advance(Duration::from_millis(10));
        stepper.prepare();
        stepper.turn() == Turn::Ended
    })
}

#[test]
fn the_log_does_not_end_while_a_number_is_not_published() {
    let (_disk, log, mut stepper) = open();
    let shared = log.shared().clone();
    let before = log.try_append(b"before").unwrap();
    let (ring, mut claim) = shared.rings.claim(1).unwrap();
    ring.bytes_mut(&mut claim)[..5].copy_from_slice(b"stood");
    let lsn = shared.numbers.take(1).unwrap();
    // Without threads it only asks.
    log.clone().close().unwrap();
    assert!(!turns(&mut stepper, 200), "it ended while a producer stood there");
    assert!(before.is_done());
    ring.publish(claim, SlotState::Record, lsn, Meta(5, frame::crc32c(b"stood")));
    assert!(turns(&mut stepper, 200));
    assert_eq!((lsn, log.durable_lsn()), (2, Lsn::new(2)));
}

#[test]
fn the_log_is_not_cut_while_a_number_is_not_published() {
    let (_disk, log, mut stepper) = open();
    let shared = log.shared().clone();
    for _ in 0..3 {
        assert!(!log.try_append(b"before").unwrap().is_done());
    }
    let (ring, mut claim) = shared.rings.claim(1).unwrap();
    ring.bytes_mut(&mut claim)[..5].copy_from_slice(b"stood");
    let lsn = shared.numbers.take(1).unwrap();
    let cut = sim::truncate_after(&log, Lsn::new(2));
    turns(&mut stepper, 200);
    assert!(cut.result().is_none(), "it was cut while a producer stood there");
    ring.publish(claim, SlotState::Record, lsn, Meta(5, frame::crc32c(b"stood")));
    turns(&mut stepper, 200);
    assert_eq!(cut.result().unwrap().unwrap(), Lsn::new(2));
    assert_eq!(log.try_append(b"behind").unwrap().lsn(), Lsn::new(3));
}
