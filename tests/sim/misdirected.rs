//! A write that succeeds, and lands at another place: each write of a run, one at a time. Nothing wrong is
//! ever read, and what a later batch vouches for is not lost in silence.

use std::time::{Duration, SystemTime};

use uringlog::sim::{self, SimDisk, SimOptions, Stepper, Turn};
use uringlog::{Log, Lsn, OpenError, Options, ReadError};

const NOW_NS: u64 = 1_700_000_000_000_000_000;

fn open(disk: &SimDisk) -> Result<(Log, Stepper), OpenError> {
    let options = Options::new()
        .segment_bytes(64 << 10)
        .rings(1)
        .ring_bytes(4 << 10)
        .batch_bytes_max(64 << 10)
        .large_bytes_max(64 << 10);
    sim::open(disk, options, 5, NOW_NS)
}

fn settle(stepper: &mut Stepper) {
    for _ in 0..60 {
        if stepper.turn() == Turn::Ended {
            break;
        }
        stepper.prepare();
        stepper.advance(Duration::from_micros(10));
    }
}

fn append(log: &Log, stepper: &mut Stepper, generation: u64, last: u64) {
    while log.last_lsn().get() < last && log.poison().is_none() {
        let payload = payload(generation, log.last_lsn().get() + 1);
        if let Ok(ticket) = log.try_append(&payload) {
            let _owned = ticket.into_owned();
        }
        settle(stepper);
    }
}

fn payload(generation: u64, lsn: u64) -> Vec<u8> {
    format!("{generation} {lsn} ").repeat(300).into_bytes()
}

/// Reads what there is. Whatever is returned is right.
fn read(log: &Log, expected: impl Fn(u64) -> Vec<u8>) -> Result<u64, ReadError> {
    let mut reader = log.reader(Lsn::NONE)?;
    let mut last = 0;
    while let Some(record) = reader.next_record()? {
        last = record.lsn().get();
        assert!(record.payload() == expected(last), "record {last} is another one");
    }
    Ok(last)
}

/// Opens the log again and reads it: what there is is right, and nothing ends in silence. Returns the last record; none
/// where opening finds damage.
fn reopen(disk: &SimDisk, what: &str, expected: impl Fn(u64) -> Vec<u8>) -> Option<u64> {
    disk.restart();
    match open(disk) {
        Ok((log, _stepper)) => {
            let last = log.last_lsn().get();
            match read(&log, expected) {
                Ok(read) => assert_eq!(read, last, "{what}: a reader ends in silence"),
                Err(ReadError::Damaged(_)) => {}
                Err(error) => panic!("{what}: {error}"),
            }
            Some(last)
        }
        // It may have landed on the head of another segment.
        Err(OpenError::Damaged(_) | OpenError::Foreign { .. }) => None,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Nothing fails, and nothing is prepared meanwhile.
fn truncate(log: &Log, stepper: &mut Stepper, after: u64) {
    let truncation = sim::truncate_after(log, Lsn::new(after));
    let cut = (0..100).find_map(|_| {
        stepper.turn();
        truncation.result()
    });
    cut.expect("it is done").expect("nothing failed");
}

#[test]
fn a_misdirected_batch_is_found() {
    const RECORDS: u64 = 24;
    let (mut damaged, mut whole) = (0, 0);
    for at in 1..60 {
        for seed in 0..4 {
            let disk = SimDisk::new(seed, SimOptions::default());
            let (log, mut stepper) = open(&disk).expect("a new log");
            settle(&mut stepper);
            disk.misdirect_write_at(at);
            append(&log, &mut stepper, 0, RECORDS);
            // Where it was the header of a segment, the log has ended.
            let durable = log.durable_lsn().get();
            assert!(durable >= RECORDS - 1 || log.poison().is_some());
            drop((log, stepper));
            disk.restart();
            let opened = open(&disk).map(|(log, _stepper)| {
                assert!(log.last_lsn().get() + 1 >= durable, "more than the last one is gone");
                (read(&log, |lsn| payload(0, lsn)), log.last_lsn().get())
            });
            match opened {
                Ok((Ok(read), last)) => {
                    assert_eq!(read, last, "a reader ends in silence");
                    whole += 1;
                }
                Ok((Err(ReadError::Damaged(_)), _)) => damaged += 1,
                // The second where a header landed on another segment's.
                Err(OpenError::Damaged(_) | OpenError::Foreign { .. }) => damaged += 1,
                Ok((Err(error), _)) => panic!("write {at}: {error}"),
                Err(error) => panic!("write {at}: {error}"),
            }
        }
    }
    assert!(damaged > 60 && whole > 20, "{damaged} damaged, {whole} whole");
}

/// The file of a segment that stood ready has a header with the same epoch already: where the new one
/// goes elsewhere, the next opening would find what was cut.
#[test]
fn a_misdirected_write_undoes_no_truncation() {
    let mut refused = 0;
    for at in 1..12 {
        for seed in 0..6 {
            let disk = SimDisk::new(seed, SimOptions::default());
            let (log, mut stepper) = open(&disk).expect("a new log");
            settle(&mut stepper);
            append(&log, &mut stepper, 0, 20);
            settle(&mut stepper);
            disk.misdirect_write_at(at);
            let truncation = sim::truncate_after(&log, Lsn::new(7));
            settle(&mut stepper);
            let cut = truncation.result().expect("it is done");
            refused += u64::from(cut.is_err());
            assert!(cut.is_ok() || log.poison().is_some());
            append(&log, &mut stepper, 1, 9);
            drop((log, stepper));
            let what = format!("write {at}");
            let expected = |lsn| payload(u64::from(cut.is_ok() && lsn > 7), lsn);
            let Some(last) = reopen(&disk, &what, expected) else { continue };
            match cut {
                Ok(_) => assert!((7..=9).contains(&last), "{what}: {last}"),
                Err(_) => assert!([7, 20].contains(&last), "{what}: {last}"),
            }
        }
    }
    assert!(refused > 0, "the header's write was none of those");
}

/// The files that a truncation gave up become segments again: where the header of one goes elsewhere, what is written
/// to it could not be read, or its old header would vouch for what was cut.
#[test]
fn a_segment_whose_header_went_elsewhere_is_not_written_to() {
    let mut refused = 0;
    for at in 1..40 {
        for seed in 0..4 {
            let disk = SimDisk::new(seed, SimOptions::default());
            let (log, mut stepper) = open(&disk).expect("a new log");
            append(&log, &mut stepper, 0, 60);
            truncate(&log, &mut stepper, 7);
            disk.misdirect_write_at(at);
            append(&log, &mut stepper, 1, 60);
            settle(&mut stepper);
            refused += u64::from(log.poison().is_some());
            let durable = log.durable_lsn().get();
            drop((log, stepper));
            let what = format!("write {at}");
            let last = reopen(&disk, &what, |lsn| payload(u64::from(lsn > 7), lsn));
            assert!(last.is_none_or(|last| last + 1 >= durable), "{what}: {last:?} of {durable}");
        }
    }
    assert!(refused > 0, "the write of a header was none of those");
}

/// The empty batch that a truncation's segment begins with is gone, and no record with it: a reader finds the records
/// behind it by the index. A search by time goes by the headers, and must not take the place where they end for the one
/// that is looked for.
#[test]
fn a_time_behind_an_empty_batch_that_is_gone_is_found() {
    let disk = SimDisk::new(1, SimOptions::default());
    let (log, mut stepper) = open(&disk).expect("a new log");
    append(&log, &mut stepper, 0, 2);
    truncate(&log, &mut stepper, 1);
    for last in 2..=4 {
        append(&log, &mut stepper, 1, last);
        stepper.advance(Duration::from_millis(100));
    }
    assert!(disk.corrupt_sector("00000000000000000002.seg", 8192), "it stands there");
    for (after_ms, expected) in [(50, 3), (150, 4), (250, 5)] {
        let after = Duration::from_nanos(NOW_NS) + Duration::from_millis(after_ms);
        let time = SystemTime::UNIX_EPOCH + after;
        let mut reader = log.reader_at(time).expect("a reader");
        assert_eq!(reader.next_lsn().get(), expected, "{after_ms} ms");
        let record = reader.next_record().expect("it is whole");
        assert_eq!(record.is_some(), expected < 5);
        assert!(record.is_none_or(|record| record.written_at() >= time));
    }
}
