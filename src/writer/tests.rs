//! The writer while a producer holds a reservation, or stands between its number and the publication:
//! neither the end of the log nor a truncation passes it by. And what readers are given.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::error::WaitError;
use crate::log::Log;
use crate::options::{Durability, Options};
use crate::ring::{Meta, SlotState};
use crate::sim::{self, SimDisk, SimOp, SimOptions, Stepper, Turn};
use crate::{Lsn, frame};

fn open() -> (SimDisk, Log, Stepper) {
    open_with(Durability::Durable)
}

fn open_with(durability: Durability) -> (SimDisk, Log, Stepper) {
    let disk = SimDisk::new(1, SimOptions::default());
    let options = Options::new().segment_bytes(1 << 20).rings(1).ring_bytes(1 << 16);
    let options = options.durability(durability);
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

/// Turns of the writer alone.
fn turn(stepper: &mut Stepper, count: usize) {
    for _ in 0..count {
        stepper.turn();
    }
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

/// A record that is being filled has no number yet: those that come later do not wait for it, and if it
/// is given up, no number is missing.
#[test]
fn a_reservation_that_is_held_delays_nobody_and_given_up_takes_no_number() {
    let (_disk, log, mut stepper) = open();
    let held = log.try_reserve(100).unwrap();
    let behind = log.try_append(b"behind").unwrap();
    turns(&mut stepper, 20);
    assert_eq!(
        (behind.lsn(), behind.is_done()),
        (Lsn::FIRST, true),
        "it waits for one that is held"
    );
    drop(held);
    let next = log.try_append(b"next").unwrap();
    turns(&mut stepper, 20);
    assert_eq!((next.lsn(), next.is_done()), (Lsn::new(2), true), "a number is missing");
    assert_eq!(log.last_lsn(), log.durable_lsn());
}

/// What is accepted, and what is written, but not synced, is for no reader.
#[test]
fn readers_see_what_is_synced_and_nothing_else() {
    let (_disk, log, mut stepper) = open_with(Durability::Written);
    let records = |log: &Log| log.reader(Lsn::NONE).unwrap().map(Result::unwrap).count();
    let ticket = log.try_append(b"record").unwrap();
    assert_eq!(records(&log), 0, "it is only accepted");
    turn(&mut stepper, 20);
    assert!(ticket.is_done());
    assert_eq!((log.acknowledged_lsn(), log.durable_lsn()), (Lsn::FIRST, Lsn::NONE));
    assert_eq!(records(&log), 0, "it is only written");
    assert!(log.wait_durable_timeout(Lsn::FIRST, Duration::ZERO).is_err(), "it asks for a sync");
    turn(&mut stepper, 20);
    assert_eq!((log.durable_lsn(), records(&log)), (Lsn::FIRST, 1));
}

/// A log of small segments whose preparer does nothing any more, with so many batches of one record.
fn filled(batches: usize) -> (Log, Stepper) {
    let options = Options::new()
        .segment_bytes(64 << 10)
        .segments_ready(1)
        .rings(1)
        .ring_bytes(4 << 10)
        .rings_retired_max(0)
        .batch_bytes_max(64 << 10)
        .large_bytes_max(64 << 10);
    let disk = SimDisk::new(1, SimOptions::default());
    let (log, mut stepper) = sim::open(&disk, options, 1, 1).unwrap();
    while stepper.prepare() {
        stepper.turn();
    }
    for _ in 0..batches {
        drop(log.try_append(b"before"));
        turn(&mut stepper, 10);
    }
    (log, stepper)
}

/// A large record that is accepted and not sealed yet will take its space: as long as it does, so much
/// less is there for others, who are refused before, not after.
#[test]
fn a_large_record_that_is_not_sealed_keeps_its_space() {
    // So many batches before it that it is just accepted.
    let fill = |batches: usize| {
        let (log, stepper) = filled(batches);
        let before = log.try_append(b"right before").is_ok();
        let large = log.try_append(&[7; 8000]).is_ok();
        (before && large, log, stepper)
    };
    let most = (0..100).take_while(|&batches| fill(batches).0).last().expect("there is space");
    assert!(most > 2 && most < 99, "{most}");
    let (_, log, mut stepper) = fill(most);
    // The first of the two goes to the disk; the large one waits for it.
    stepper.turn();
    assert_eq!(log.stats().batches, most as u64 + 1);
    assert!(log.try_append(b"behind").is_err(), "its space is given to another");
    turn(&mut stepper, 20);
    assert_eq!(log.durable_lsn(), Lsn::new(most as u64 + 2));
}

/// Behind a shut gate the space is reckoned for full batches: what is accepted waits a moment for what has
/// its number already, so that both go together.
#[test]
fn at_a_shut_gate_records_go_together() {
    let is_shut = |log: &Log| log.shared().numbers.shut_reason().is_some();
    let most = (0..100).take_while(|&batches| !is_shut(&filled(batches).0)).last().expect("space");
    assert!(most > 2 && most < 99, "{most}");
    let (log, mut stepper) = filled(most);
    let shared = log.shared().clone();
    let publish = |(ring, claim): (&crate::ring::Ring, _), lsn| {
        ring.publish(claim, SlotState::Record, lsn, Meta(0, frame::crc32c(b"")));
    };
    drop(log.try_append(b"shuts the gate"));
    let slots = [shared.rings.claim(1).unwrap(), shared.rings.claim(1).unwrap()];
    let lsns = [shared.numbers.take(1).unwrap(), shared.numbers.take(1).unwrap()];
    stepper.turn();
    assert!(is_shut(&log));
    let batches = log.stats().batches;
    let [first, second] = slots;
    publish(first, lsns[0]);
    turn(&mut stepper, 5);
    assert_eq!(log.stats().batches, batches, "one record has a batch of its own");
    publish(second, lsns[1]);
    turn(&mut stepper, 5);
    assert_eq!((log.stats().batches, log.durable_lsn().get()), (batches + 1, lsns[1]));
}

/// A sync that failed is not asked for again, though the next one would say that all is well; a write
/// neither. What was durable stays so, and nothing else becomes it.
#[test]
fn a_failed_write_or_sync_ends_writing() {
    for op in [SimOp::Sync, SimOp::Write, SimOp::ShortWrite] {
        for errno in [libc::EIO, libc::ENOSPC] {
            let (disk, log, mut stepper) = open_with(Durability::Written);
            drop(log.try_append(b"durable"));
            turn(&mut stepper, 10);
            assert!(log.wait_durable_timeout(Lsn::FIRST, Duration::ZERO).is_err());
            turn(&mut stepper, 10);
            assert_eq!(log.durable_lsn(), Lsn::FIRST);
            disk.fail_at(op, 1, errno);
            drop(log.try_append(b"not durable"));
            turn(&mut stepper, 10);
            assert!(log.wait_durable_timeout(Lsn::new(2), Duration::ZERO).is_err());
            assert!(turns(&mut stepper, 20), "{op:?} {errno} is passed over");
            let poison = log.poison().expect("it failed").clone();
            assert_eq!(poison.io_error().and_then(|e| e.source.raw_os_error()), Some(errno));
            assert_eq!(log.durable_lsn(), Lsn::FIRST, "{op:?}: it was tried again");
            assert!(log.try_append(b"behind").is_err());
            disk.restart();
            let (log, _stepper) = sim::open(&disk, Options::new().rings(1), 2, 2).unwrap();
            assert!(log.last_lsn() >= Lsn::FIRST, "what was durable is gone");
        }
    }
}

/// What each step of a truncation rests on is durable before it: the ready segment's lost name before its
/// file changes, the new file and the mark before the name that cuts, that name before anybody is told.
#[test]
fn a_truncation_goes_from_one_durable_step_to_the_next() {
    let disk = SimDisk::new(1, SimOptions { trace: true, ..SimOptions::default() });
    let options = Options::new().segment_bytes(64 << 10).segments_ready(1).rings(1);
    let (log, mut stepper) =
        sim::open(&disk, options.ring_bytes(4 << 10).batch_bytes_max(64 << 10), 1, 1).unwrap();
    while stepper.prepare() {
        stepper.turn();
    }
    for _ in 0..3 {
        drop(log.try_append(b"before"));
        turn(&mut stepper, 10);
    }
    log.cursor("ahead").unwrap().advance(Lsn::new(4)).unwrap();
    let before = disk.trace().len();
    let cut = sim::truncate_after(&log, Lsn::new(2));
    let outcome = loop {
        stepper.turn();
        if let Some(outcome) = cut.result() {
            break outcome;
        }
    };
    let trace = disk.trace().split_off(before);
    let find = |from: usize, what: &str| {
        let found = trace[from..].iter().position(|line| line.contains(what));
        from + found.unwrap_or_else(|| panic!("no {what} behind {from}: {trace:#?}"))
    };
    let taken = find(0, "to truncation.tmp");
    let lost_name = find(taken, "sync directory");
    let written = find(taken, "write file");
    assert!(lost_name < written, "{trace:#?}");
    let id = trace[written].split_whitespace().nth(3).expect("a file's number");
    let synced = find(written, &format!("sync file {id}"));
    let marked = find(synced, "write file");
    assert!(!trace[marked].contains(&format!("file {id} ")), "the mark is next: {trace:#?}");
    let mark_synced = find(marked, "sync file");
    let named = find(0, "rename truncation.tmp to");
    assert!(mark_synced < named, "{trace:#?}");
    assert!(!trace[synced..].iter().any(|line| line.contains(&format!("write file {id} "))));
    let name_synced = find(named, "sync directory");
    let given_up = trace.iter().position(|line| line.contains(".spare"));
    assert!(given_up.is_none_or(|given_up| name_synced < given_up), "{trace:#?}");
    assert_eq!((outcome.unwrap(), log.generation()), (Lsn::new(2), 1));
    let cursors = log.cursors().unwrap();
    assert_eq!(cursors[0].position, Lsn::new(3), "it stands behind the end");
    let records = log.reader(Lsn::NONE).unwrap().map(Result::unwrap).count();
    assert_eq!(records, 2);
}

#[test]
fn batches_and_what_vouches_for_them_are_counted() {
    let (_disk, log, mut stepper) = open();
    let before = log.stats();
    for _ in 0..2 {
        drop(log.try_append(&[1; 100]));
        drop(log.try_append(&[2; 100]));
        turn(&mut stepper, 20);
    }
    let stats = log.stats();
    assert_eq!(stats.batches - before.batches, 2);
    assert_eq!((stats.vouches - before.vouches, stats.payload_bytes), (0, 400));
    assert_eq!(stats.disk_bytes - before.disk_bytes, 2 * 4096);
    assert!(stats.padding_bytes > 2 * 3000 && stats.padding_bytes < 2 * 4096);
    // An empty batch, which vouches for the last one, is not one of records.
    stepper.advance(Duration::from_secs(1));
    assert_eq!(stepper.turn(), Turn::Busy, "it waits for the disk");
    assert_eq!(stepper.turn(), Turn::Idle);
    let idle = log.stats();
    assert_eq!((idle.batches, idle.vouches), (stats.batches, stats.vouches + 1));
}

struct Bell(AtomicBool);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Who waits for a record that a failure takes is woken, and told.
#[test]
fn who_waits_learns_of_the_end() {
    let (disk, log, mut stepper) = open();
    let mut ticket = log.try_append(b"never durable").unwrap().into_owned();
    let bell = Arc::new(Bell(AtomicBool::new(false)));
    let waker = Waker::from(bell.clone());
    let mut context = Context::from_waker(&waker);
    assert!(Pin::new(&mut ticket).poll(&mut context).is_pending());
    disk.fail_at(SimOp::Write, 1, libc::EIO);
    turn(&mut stepper, 10);
    assert!(log.poison().is_some());
    assert!(bell.0.load(Ordering::Relaxed), "nobody woke it");
    assert!(matches!(
        Pin::new(&mut ticket).poll(&mut context),
        Poll::Ready(Err(WaitError::Poisoned(_)))
    ));
}
