//! The writer's side: what it takes out of the rings, and when it may end or cut the log.
//!
//! The writer's loop stands here in short: look at the rings, and sleep at the bell where every number that is
//! out was seen. Rings, gate, bell, and the rule for the end ([`Drain::has_all`]) are the library's own.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::model;
use crate::batch::BatchBuilder;
use crate::doorbell::Doorbell;
use crate::drain::{Drain, Filled};
use crate::frame::BATCH_HEADER_BYTES;
use crate::mem::AlignedBuf;
use crate::numbers::{Numbers, Shut};
use crate::ring::{Meta, Ring, SlotState, UNIT_BYTES};
use crate::rings::RingSet;

/// What producers and writer share.
pub(super) struct Parts {
    pub(super) rings: RingSet,
    pub(super) numbers: Numbers,
    pub(super) bell: Doorbell,
    /// The log's generation.
    generation: AtomicU64,
}

impl Parts {
    pub(super) fn new(lanes: usize, units: usize) -> Arc<Parts> {
        Arc::new(Parts {
            rings: RingSet::new(lanes, units * UNIT_BYTES, 1, 0),
            numbers: Numbers::new(1),
            bell: Doorbell::new(),
            generation: AtomicU64::new(0),
        })
    }

    /// One record, as `append` does it. Returns its number, and the generation read with it.
    fn append(&self, ring: &Ring, mark: u8) -> Option<(u64, u64)> {
        let mut claim = ring.claim(1)?;
        ring.bytes_mut(&mut claim)[..8].fill(mark);
        let lsn = loop {
            match self.numbers.take(1) {
                Ok(lsn) => break lsn,
                Err(Shut::Preparing) => self.numbers.wait_for_change(None),
                Err(_) => {
                    self.rings.abort(ring, claim);
                    return None;
                }
            }
        };
        let generation = self.generation.load(Ordering::Acquire);
        ring.publish(claim, SlotState::Record, lsn, Meta(8, u32::from(mark)));
        self.bell.ring_announced();
        Some((lsn, generation))
    }

    fn ring(&self, id: usize) -> &Ring {
        self.rings.ring(id).unwrap()
    }
}

/// The writer's loop, without a disk.
pub(super) struct Taker {
    pub(super) drain: Drain,
    batch: BatchBuilder,
}

impl Taker {
    pub(super) fn new() -> Taker {
        let batch = BatchBuilder::new(AlignedBuf::new(4096).unwrap());
        Taker { drain: Drain::new(1, 4), batch }
    }

    pub(super) fn gather(&mut self, parts: &Parts) {
        let last = parts.numbers.last();
        self.drain.scan_upto(&parts.rings, last);
        if self.drain.has_hole() {
            self.drain.scan_upto(&parts.rings, last);
        }
        let filled = self.drain.fill(&parts.rings, &mut self.batch);
        assert!(matches!(filled, Filled::All));
    }

    /// Takes what comes until `enough`.
    fn run(&mut self, parts: &Parts, enough: impl Fn(&Taker) -> bool) {
        loop {
            self.gather(parts);
            if enough(self) {
                return;
            }
            if self.drain.has_seen_all(&parts.numbers) {
                parts.bell.sleep(None, || !self.drain.has_seen_all(&parts.numbers));
            } else {
                thread::yield_now();
            }
        }
    }

    fn count(&self) -> usize {
        self.batch.count()
    }

    /// What was taken, a byte for each record.
    fn marks(mut self) -> Vec<u8> {
        let seal = crate::batch::Seal {
            context: crate::frame::BatchContext {
                log_id: crate::frame::LogId([0; 16]),
                epoch: 1,
                salt: 1,
            },
            offset: 0,
            first_lsn: 1,
            wall_ns: 0,
            synced_lsn: 0,
            prev_crc: 0,
            block_bytes: 512,
        };
        let count = self.batch.count();
        let sealed = self.batch.seal(&seal, AlignedBuf::new(4096).unwrap());
        let payloads = sealed.buf[BATCH_HEADER_BYTES..][..8 * count].chunks(8);
        payloads
            .map(|payload| {
                assert_eq!(payload, [payload[0]; 8], "a payload is whole");
                payload[0]
            })
            .collect()
    }
}

/// Two producers, each in a ring of its own, append while the log is closed. Legal: each record is
/// accepted, and then taken before the writer ends, or is refused. Illegal: the writer ends while a
/// producer stands between its number and the publication; or sleeps for ever, waiting for it.
#[test]
fn what_was_accepted_is_taken_before_the_end() {
    model(2, || {
        let parts = Parts::new(2, 2);
        let producers: Vec<_> = (0..2)
            .map(|id| {
                let parts = parts.clone();
                thread::spawn(move || parts.append(parts.ring(id), id as u8 + 1))
            })
            .collect();
        let mut writer = Taker::new();
        parts.numbers.shut(Shut::Closed);
        writer.run(&parts, |writer| writer.drain.has_all(&parts.numbers));
        // In the order of their numbers.
        let mut accepted: Vec<_> = (1..)
            .zip(producers)
            .filter_map(|(mark, producer)| Some((producer.join().unwrap()?.0, mark)))
            .collect();
        accepted.sort();
        assert_eq!(parts.numbers.last(), accepted.len() as u64);
        let marks: Vec<u8> = accepted.iter().map(|&(_, mark)| mark).collect();
        assert_eq!(writer.marks(), marks);
    });
}

/// A record is appended while the log is cut to nothing. Legal: it came before the cut, was taken, and
/// knows the generation before it; or it waited at the gate and has its number, generation and place
/// behind the cut. Illegal: a number of the one with the generation of the other, by which its ticket
/// would report it lost, or never miss it.
#[test]
fn a_record_knows_on_which_side_of_a_cut_it_stands() {
    model(2, || {
        let parts = Parts::new(1, 2);
        let producer = {
            let parts = parts.clone();
            thread::spawn(move || parts.append(parts.ring(0), 1).unwrap())
        };
        let mut writer = Taker::new();
        parts.numbers.shut(Shut::Preparing);
        writer.run(&parts, |writer| writer.drain.has_all(&parts.numbers));
        let taken_before = writer.count();
        // As the writer does it: the generation before the numbers.
        parts.generation.store(1, Ordering::Release);
        parts.numbers.rewind(1);
        writer.drain.rewind(1);
        parts.numbers.open();
        writer.run(&parts, |writer| writer.count() == 1);
        let (lsn, generation) = producer.join().unwrap();
        assert_eq!(lsn, 1);
        assert_eq!(generation, 1 - taken_before as u64);
    });
}

/// A producer gives its claim up, in front of another's record; behind both, the ring is full. Legal:
/// the record is taken, whenever the claim ends; once it has, both units come back, and a third
/// producer may write where the first one did.
#[test]
fn an_aborted_claim_is_stepped_over_and_its_space_comes_back() {
    model(3, || {
        let parts = Parts::new(1, 2);
        let mut given_up = parts.ring(0).claim(1).unwrap();
        let aborter = {
            let parts = parts.clone();
            thread::spawn(move || {
                parts.ring(0).bytes_mut(&mut given_up)[..8].fill(9);
                parts.rings.abort(parts.ring(0), given_up);
            })
        };
        let producer = {
            let parts = parts.clone();
            thread::spawn(move || {
                parts.append(parts.ring(0), 1).unwrap();
                // Refused while the claim pins the head, as it may be for ever.
                parts.append(parts.ring(0), 2)
            })
        };
        let mut writer = Taker::new();
        writer.run(&parts, |writer| writer.count() > 0);
        aborter.join().unwrap();
        let second = producer.join().unwrap();
        writer.gather(&parts);
        assert_eq!(writer.count(), 1 + usize::from(second.is_some()));
        // As for a producer that asks for room.
        writer.drain.scan(&parts.rings);
        writer.drain.give_back(&parts.rings);
        // Everything that was claimed is given back.
        let free = 2 - (3 + u64::from(second.is_some())).next_multiple_of(2) % 2;
        let claims: Vec<_> = (0..free).map(|_| parts.ring(0).claim(1)).collect();
        assert!(claims.iter().all(Option::is_some) && parts.ring(0).claim(1).is_none());
    });
}
