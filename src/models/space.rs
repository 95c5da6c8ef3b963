//! Waiting for room in a full ring, and rings that take another's place.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use super::model;
use super::writer::{Parts, Taker};
use crate::ring::{Claim, Meta, Ring, SlotState, UNIT_BYTES};

/// A producer waits for room in a full ring while the writer gives it back. Legal: it finds the room,
/// at once or after being woken. Illegal, and found as a deadlock: it sleeps for ever.
#[test]
fn who_waits_for_room_is_woken() {
    model(3, || {
        let parts = Parts::new(1, 1);
        let claim = parts.rings.claim(1).unwrap().1;
        let lsn = parts.numbers.take(1).unwrap();
        parts.rings.ring(0).unwrap().publish(claim, SlotState::Record, lsn, Meta(8, 0));
        let producer = {
            let parts = parts.clone();
            thread::spawn(move || wait_for_room(&parts, || {}))
        };
        Taker::new().gather(&parts);
        producer.join().unwrap();
    });
}

/// As `append` waits: it says that it waits, tries, and sleeps.
fn wait_for_room(parts: &Parts, ask: impl Fn()) -> Claim {
    let mut waiting = parts.rings.wait_for_space();
    loop {
        if let Some((_, claim)) = parts.rings.claim(1) {
            return claim;
        }
        ask();
        waiting.sleep(None);
    }
}

/// The room is a reservation's that is dropped while the producer waits and the writer sleeps: nobody
/// publishes anything. Legal: whoever comes second of the two has the writer look; the producer finds
/// the room. Illegal: all three sleep.
#[test]
fn a_dropped_reservation_lets_the_one_who_waits_go_on() {
    model(2, || {
        let parts = Parts::new(1, 1);
        // The writer's asks, as in `Shared`.
        let asks = Arc::new(AtomicU32::new(0));
        let ask = |parts: &Parts, asks: &AtomicU32, what: u32| {
            asks.fetch_or(what, Ordering::Release);
            parts.bell.ring();
        };
        let held = parts.rings.claim(1).unwrap().1;
        let holder = {
            let (parts, asks) = (parts.clone(), asks.clone());
            thread::spawn(move || {
                if parts.rings.abort(parts.rings.ring(0).unwrap(), held) {
                    ask(&parts, &asks, 1);
                }
            })
        };
        let producer = {
            let (parts, asks) = (parts.clone(), asks.clone());
            thread::spawn(move || {
                wait_for_room(&parts, || ask(&parts, &asks, 1));
                ask(&parts, &asks, 2);
            })
        };
        let mut writer = Taker::new();
        while asks.load(Ordering::Acquire) & 2 == 0 {
            if asks.load(Ordering::Acquire) & 1 != 0 {
                asks.fetch_and(!1, Ordering::AcqRel);
                writer.drain.scan(&parts.rings);
                writer.drain.give_back(&parts.rings);
            }
            parts.bell.sleep(None, || asks.load(Ordering::Acquire) != 0);
        }
        holder.join().unwrap();
        producer.join().unwrap();
    });
}

/// A ring is replaced while a producer looks for room. Legal: it has room in the ring that was there
/// from the start, or in the new one, which is whole.
#[test]
fn a_ring_in_anothers_place_is_whole() {
    model(3, || {
        let parts = Parts::new(1, 1);
        let producer = {
            let parts = parts.clone();
            thread::spawn(move || {
                let (ring, mut claim) = parts.rings.claim(1).unwrap();
                ring.bytes_mut(&mut claim).fill(1);
                ring.publish(claim, SlotState::Record, 1, Meta(8, 0));
            })
        };
        assert!(parts.rings.replace(0, None));
        producer.join().unwrap();
        let published =
            parts.rings.made().filter(|ring| ring.view(0).is_some_and(|slot| slot.lsn == 1));
        assert_eq!(published.count(), 1);
    });
}

/// A claim that was written to is given up, and its space goes to another. Legal: the writer sees the abort
/// or not yet; where it does, whatever the first producer wrote there is over.
#[test]
fn what_was_written_before_an_abort_is_over() {
    model(2, || {
        let ring = Arc::new(Ring::new(2 * UNIT_BYTES));
        let mut given_up = ring.claim(1).unwrap();
        let producer = {
            let ring = ring.clone();
            thread::spawn(move || {
                ring.bytes_mut(&mut given_up)[..8].fill(1);
                ring.abort(given_up);
            })
        };
        let behind = ring.claim(1).unwrap();
        if ring.view(0).is_some_and(|slot| slot.state == SlotState::Aborted) {
            ring.give_back(1);
            let mut again = ring.claim(1).unwrap();
            ring.bytes_mut(&mut again)[..8].fill(2);
            ring.publish(again, SlotState::Record, 1, Meta(8, 2));
        }
        ring.abort(behind);
        producer.join().unwrap();
    });
}
