//! The preparer on a simulated disk: what it does with a failed sync, and when it touches a file.

use std::time::Duration;

use crate::error::AppendError;
use crate::log::Log;
use crate::lsn::Lsn;
use crate::options::{Durability, Options};
use crate::sim::{self, SimDisk, SimOp, SimOptions, Stepper};

const SEGMENT_BYTES: u64 = 64 << 10;

fn options() -> Options {
    Options::new()
        .segment_bytes(SEGMENT_BYTES)
        .segments_ready(1)
        .rings(1)
        .ring_bytes(4 << 10)
        .rings_retired_max(0)
        .batch_bytes_max(64 << 10)
        .large_bytes_max(64 << 10)
        .spares_max(1)
}

fn open(options: Options) -> (SimDisk, Log, Stepper) {
    let disk = SimDisk::new(1, SimOptions { trace: true, ..SimOptions::default() });
    let (log, stepper) = sim::open(&disk, options, 1, 1).unwrap();
    (disk, log, stepper)
}

/// Turns of the writer and steps of the preparer, with little time between them: nothing is vouched
/// for yet.
fn work(stepper: &mut Stepper) {
    for _ in 0..300 {
        stepper.prepare();
        stepper.turn();
        stepper.advance(Duration::from_micros(5));
    }
}

/// Appends until the log has moved on from its first segments so often.
fn append_until_rotated(log: &Log, stepper: &mut Stepper, rotations: u64) {
    while log.stats().rotations < rotations {
        match log.try_append(&[7; 700]) {
            Ok(_) | Err(AppendError::Full) => work(stepper),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Pages whose sync failed count as clean: a second sync of the same file would say that all is well.
/// So nothing is tried again, also where the errno sounds like a full disk, which otherwise may be.
#[test]
fn a_failed_sync_of_a_segment_or_of_its_name_ends_writing() {
    for op in [SimOp::Sync, SimOp::DirSync] {
        for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::ENOMEM] {
            let (disk, log, mut stepper) = open(options());
            disk.fail_at(op, 1, errno);
            work(&mut stepper);
            let poison = log.poison().unwrap_or_else(|| panic!("{op:?} {errno} is passed over"));
            let error = poison.io_error().expect("it failed by an error");
            assert_eq!(&*error.action, "prepare segment", "{op:?}");
            assert_eq!(error.source.raw_os_error(), Some(errno));
            assert_eq!(log.stats().prepared.count, 0, "it was tried again");
            assert!(matches!(log.try_append(b"x"), Err(AppendError::Poisoned(_))));
        }
    }
}

/// Where the space is short before the sync, it is tried again when there is some.
#[test]
fn a_full_disk_before_the_sync_is_tried_again() {
    for op in [SimOp::Create, SimOp::SetLen, SimOp::Write, SimOp::Rename] {
        let (disk, log, mut stepper) = open(options());
        let errno = if op == SimOp::Rename { libc::EIO } else { libc::ENOSPC };
        disk.fail_at(op, 1, errno);
        for _ in 0..3 {
            work(&mut stepper);
            stepper.advance(Duration::from_millis(200));
        }
        let prepared = log.stats().prepared.count;
        match op {
            // A name may have been given, or not.
            SimOp::Rename => assert!(log.poison().is_some() && prepared == 0),
            _ => assert!(log.poison().is_none() && prepared > 0, "{op:?}: {prepared}"),
        }
    }
}

/// The tail is looked for where no footer stands: so one is written when something behind its segment
/// is durable, and not because the log moved on.
#[test]
fn a_footer_is_written_only_when_something_behind_it_is_durable() {
    let (_disk, log, mut stepper) = open(options().durability(Durability::Written));
    append_until_rotated(&log, &mut stepper, 1);
    work(&mut stepper);
    assert!(
        log.acknowledged_lsn() > log.durable_lsn(),
        "what is in the next segment is not synced"
    );
    assert_eq!(log.stats().footers, 0, "a footer, and nothing behind it is durable");
    let last = log.last_lsn();
    assert!(log.wait_durable_timeout(last, Duration::ZERO).is_err(), "it asks for a sync");
    work(&mut stepper);
    assert_eq!(log.durable_lsn(), last);
    assert_eq!(log.stats().footers, 1);
}

/// Before a trimmed file is shortened, the name that it has as a spare is durable.
#[test]
fn a_spare_is_not_shortened_before_its_name_is_durable() {
    let (disk, log, mut stepper) = open(options().segment_bytes(1 << 20).spares_max(0));
    append_until_rotated(&log, &mut stepper, 2);
    work(&mut stepper);
    let before = disk.trace().len();
    let last = log.durable_lsn();
    assert!(log.trim(last).unwrap() > Lsn::FIRST);
    for _ in 0..20 {
        work(&mut stepper);
        stepper.advance(Duration::from_millis(50));
    }
    assert!(log.stats().removed.count > 0, "nothing was removed");
    let trace = disk.trace().split_off(before);
    let at = |what: &str| trace.iter().position(|line| line.contains(what));
    let renamed = at(".spare").expect("a file is given up");
    let shortened = at("set size").expect("it is shortened");
    let synced = trace[renamed..].iter().position(|line| line.contains("sync directory"));
    assert!(synced.is_some_and(|synced| renamed + synced < shortened), "{trace:#?}");
}

/// Of three files that wait, two become each other's segments, and the third could become only what it was. The disk is
/// full: its space is used, not the file.
#[test]
fn a_file_that_was_the_wanted_segment_gives_its_space() {
    let (disk, log, mut stepper) = open(options());
    append_until_rotated(&log, &mut stepper, 2);
    work(&mut stepper);
    // It begins segment 2, of a file that stood ready; what comes behind is cut off, and wanted again.
    let truncation = sim::truncate_after(&log, Lsn::FIRST);
    let cut = (0..100).find_map(|_| {
        stepper.turn();
        truncation.result()
    });
    assert_eq!(cut.expect("it is done").expect("nothing fails"), Lsn::FIRST);
    let ending = |ending: &'static str| -> Vec<String> {
        disk.files().into_iter().filter(|name| name.ends_with(ending)).collect()
    };
    let names = [3, 4, 5].map(|epoch| crate::segment::spare_name(epoch, 0));
    assert_eq!(ending(".spare"), names);
    disk.set_space(Some(disk.used_bytes()));
    for _ in 0..40 {
        work(&mut stepper);
        stepper.advance(Duration::from_millis(200));
    }
    let stats = log.stats();
    assert_eq!((stats.recycled.count, stats.removed.count), (2, 1));
    assert_eq!(ending(".seg"), [1, 2, 3, 4, 5].map(crate::frame::segment_name));
    let renamed = |name: &str, epoch: u64| {
        let line = format!("rename {name} to {}", crate::segment::tmp_name(epoch));
        disk.trace().iter().any(|at| at.ends_with(&line))
    };
    assert!(renamed(&names[1], 3) && renamed(&names[0], 4) && !renamed(&names[2], 5));
}
