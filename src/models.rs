//! Loom models of the lock-free parts: the ring, the number line, the doorbell, the waiters; the end of
//! the log and its truncation ([`writer`]), waiting for room ([`space`]), waiting as a task ([`tasks`]).
//! Each runs the very code of the library through every interleaving, and through every value that a weak
//! memory order allows to be read; a comment lists the legal outcomes.
//!
//! Run: `RUSTFLAGS="--cfg uringlog_loom" cargo test --release --lib models`
#![allow(unsafe_code)]

mod looked_again;
mod space;
mod tasks;
mod writer;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use crate::commit::{Commit, Level};
use crate::doorbell::Doorbell;
use crate::numbers::{Numbers, Shut};
use crate::options::Idle;
use crate::ring::{Meta, Ring, SlotState, UNIT_BYTES};
use crate::sleepers::SPAN;
use crate::waiters::Waiters;

fn model(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(f);
}

fn publish(ring: &Ring, numbers: &Numbers, mark: u8) -> Option<u64> {
    let mut claim = ring.claim(1)?;
    ring.bytes_mut(&mut claim)[..8].fill(mark);
    let lsn = numbers.take(1).ok()?;
    ring.publish(claim, SlotState::Record, lsn, Meta(8, u32::from(mark)));
    Some(lsn)
}

/// Two producers on one ring, the writer reads as it goes. Legal: the writer sees any prefix of the
/// slots in ring order, each as claimed or published; a published one with all of its payload. The
/// numbers 1 and 2 are each given out once.
#[test]
fn what_is_published_is_whole() {
    model(3, || {
        let ring = Arc::new(Ring::new(4 * UNIT_BYTES));
        let numbers = Arc::new(Numbers::new(1));
        let producers: Vec<_> = [0x11, 0x22]
            .into_iter()
            .map(|mark| {
                let (ring, numbers) = (ring.clone(), numbers.clone());
                thread::spawn(move || publish(&ring, &numbers, mark))
            })
            .collect();
        check_published(&ring, 0);
        let mut lsns: Vec<_> = producers.into_iter().map(|p| p.join().unwrap()).collect();
        lsns.sort();
        assert_eq!(lsns, [Some(1), Some(2)]);
        assert!(check_published(&ring, 0) && check_published(&ring, 1));
    });
}

/// Whether a record is published at `position`; if so, its payload is whole.
fn check_published(ring: &Ring, position: u64) -> bool {
    let Some(view) = ring.view(position) else { return false };
    if view.state == SlotState::Claimed {
        return false;
    }
    assert_eq!(view.state, SlotState::Record);
    // SAFETY: the slot is published and was not given back.
    let payload = unsafe { ring.bytes(position, 8) };
    assert_eq!(payload, [view.meta.1 as u8; 8]);
    true
}

/// A ring of two units; three records pass through it, so that the third takes the space of the
/// first. Legal: each claim either finds room or does not; what the writer reads from a slot is
/// what was published there, never a later record's bytes; aborted space comes back too.
#[test]
fn space_is_reused_only_after_it_was_read() {
    model(3, || {
        let ring = Arc::new(Ring::new(2 * UNIT_BYTES));
        let numbers = Arc::new(Numbers::new(1));
        publish(&ring, &numbers, 1).unwrap();
        let aborted = ring.claim(1).unwrap();
        ring.abort(aborted);
        let producer = {
            let (ring, numbers) = (ring.clone(), numbers.clone());
            thread::spawn(move || publish(&ring, &numbers, 3))
        };
        assert!(check_published(&ring, 0));
        ring.give_back(1);
        assert_eq!(ring.view(1).map(|view| view.state), Some(SlotState::Aborted));
        ring.give_back(2);
        let third = producer.join().unwrap();
        assert_eq!(check_published(&ring, 2), third.is_some());
    });
}

/// A slot that does not fit before the end: the pad and the slot are both seen in order.
#[test]
fn a_wrap_is_seen_in_order() {
    model(3, || {
        let ring = Arc::new(Ring::new(4 * UNIT_BYTES));
        for _ in 0..3 {
            let claim = ring.claim(1).unwrap();
            ring.abort(claim);
        }
        ring.give_back(3);
        let producer = {
            let ring = ring.clone();
            thread::spawn(move || {
                let claim = ring.claim(2).unwrap();
                ring.publish(claim, SlotState::Record, 1, Meta(0, 0));
            })
        };
        // Legal: nothing yet; or the pad. Behind the pad: nothing yet, claimed, or published.
        if let Some(pad) = ring.view(3) {
            assert_eq!((pad.state, pad.units), (SlotState::Pad, 1));
            if let Some(slot) = ring.view(4) {
                assert_eq!(slot.units, 2);
            }
        }
        producer.join().unwrap();
        assert_eq!(ring.view(4).map(|view| view.state), Some(SlotState::Record));
    });
}

/// A producer publishes while the writer goes to sleep. Legal: the writer finds the record before it
/// sleeps, or is woken. Illegal, and found by loom as a deadlock: it sleeps for ever.
#[test]
fn no_wake_up_is_lost() {
    model(3, || {
        let ring = Arc::new(Ring::new(2 * UNIT_BYTES));
        let bell = Arc::new(Doorbell::new());
        let numbers = Arc::new(Numbers::new(1));
        let producer = {
            let (ring, bell, numbers) = (ring.clone(), bell.clone(), numbers.clone());
            thread::spawn(move || {
                publish(&ring, &numbers, 1).unwrap();
                bell.ring();
            })
        };
        while !check_published(&ring, 0) {
            bell.sleep(None, || check_published(&ring, 0));
        }
        producer.join().unwrap();
    });
}

/// The gate is shut while two producers take numbers. Legal: each gets a number below the held one,
/// or is refused; the held number is one more than those given out; after opening, it is the next.
#[test]
fn the_gate_counts_exactly() {
    model(3, || {
        let numbers = Arc::new(Numbers::new(1));
        let producers: Vec<_> = (0..2)
            .map(|_| {
                let numbers = numbers.clone();
                thread::spawn(move || numbers.take(1))
            })
            .collect();
        let held = numbers.shut(Shut::NoSpace);
        let taken: Vec<_> = producers.into_iter().map(|p| p.join().unwrap()).collect();
        let given = taken.iter().flatten().count() as u64;
        assert!(taken.iter().flatten().all(|&lsn| lsn < held));
        assert_eq!(held, 1 + given);
        assert_eq!(numbers.last(), given);
        numbers.open();
        assert_eq!(numbers.take(1), Ok(held));
    });
}

/// Shutting races with opening's counterpart, a refused producer that tries again: it gets the held
/// number or is refused, never a number twice.
#[test]
fn a_refused_attempt_takes_no_number() {
    model(3, || {
        let numbers = Arc::new(Numbers::new(1));
        numbers.shut(Shut::Preparing);
        let producer = {
            let numbers = numbers.clone();
            thread::spawn(move || numbers.take(1).or_else(|_| numbers.take(1)))
        };
        numbers.open();
        let first = producer.join().unwrap();
        let second = numbers.take(1).unwrap();
        // Legal: (refused, 1), (1, 2).
        assert!(matches!((first, second), (Err(_), 1) | (Ok(1), 2)));
    });
}

/// A thread waits for a number while the writer makes it durable. Legal: it returns Ok. Illegal, and
/// found as a deadlock: it registered after the writer looked, and sleeps for ever.
#[test]
fn a_waiter_is_never_left_behind() {
    model(2, || {
        let commit = Arc::new(Commit::new(0));
        let data = Arc::new(AtomicU64::new(0));
        let waiter = {
            let (commit, data) = (commit.clone(), data.clone());
            thread::spawn(move || {
                commit.wait(1, Level::Acked, None, Idle::Park, || None).unwrap();
                assert_eq!(
                    data.load(Ordering::Relaxed),
                    7,
                    "the watermark publishes what it covers"
                );
            })
        };
        data.store(7, Ordering::Relaxed);
        commit.advance(Level::Acked, 1);
        wake_done(&commit);
        waiter.join().unwrap();
    });
}

/// Two threads wait for numbers that share a bit, and one of them is done first. Legal: each returns when its own
/// number is done. Illegal, and found as a deadlock: the wake-up for the one takes the other's bit away, which
/// then sleeps for ever.
#[test]
fn who_shares_a_bit_is_not_left_behind() {
    model(2, || {
        let commit = Arc::new(Commit::new(0));
        let waiter = |lsn| {
            let commit = commit.clone();
            thread::spawn(move || {
                commit.wait(lsn, Level::Acked, None, Idle::Park, || None).unwrap();
                assert!(commit.watermark(Level::Acked) >= lsn);
            })
        };
        let waiters = [1, 1 + SPAN].map(waiter);
        let mut writer = Waiters::default();
        for lsn in [1, 1 + SPAN] {
            commit.advance(Level::Acked, lsn);
            writer.take_done(&commit);
            writer.wake_done(&commit);
        }
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

/// A thread waits for a number when the log ends: legal is Ok for what is done, an error for the rest, for a waiter
/// before and after it.
#[test]
fn the_end_reaches_everyone() {
    model(2, || {
        let commit = Arc::new(Commit::new(1));
        let waiter = {
            let commit = commit.clone();
            thread::spawn(move || {
                assert!(commit.wait(2, Level::Acked, None, Idle::Park, || None).is_err());
                assert!(commit.wait(1, Level::Acked, None, Idle::Park, || None).is_ok());
            })
        };
        commit.end(None);
        Waiters::default().wake_all(&commit);
        waiter.join().unwrap();
    });
}

fn wake_done(commit: &Commit) {
    let mut waiters = Waiters::default();
    waiters.take_done(commit);
    waiters.wake_done(commit);
}
