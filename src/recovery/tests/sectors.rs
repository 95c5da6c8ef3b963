//! Every sector of a small log is spoiled in turn, and the verdict compared with a table by the kind
//! of the sector: damage is never cut, a torn tail is never an error.

use std::sync::Arc;

use super::{SEGMENT_BYTES, inspect, payload};
use crate::disk::Store;
use crate::error::{OpenError, ReadError};
use crate::frame::segment_name;
use crate::lsn::Lsn;
use crate::mark::MARK_NAME;
use crate::read::Reader;
use crate::testing::{MemStore, TestWriter, open};

const SECTOR: u64 = 512;

/// What a sector belongs to.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    /// One copy of a segment's header: the other serves.
    HeaderCopy,
    /// A batch of an earlier segment, with its records: opening reads the tail only, reading finds
    /// the damage.
    Sealed { offset: u64, first: u64, last: u64 },
    /// Behind the last batch of an earlier segment: never looked at.
    SealedRest,
    /// A batch of the tail that holds acknowledged records, or stands before some.
    Vouched { offset: u64, first: u64 },
    /// The last batch, which nothing vouches for: cut as torn.
    Last { offset: u64, first: u64 },
    /// The empty batch at a clean end: nothing is lost, it is cut.
    FinalVouch { offset: u64 },
    /// Zeros behind the end of the tail: reported, nothing lost.
    Behind,
    /// Zeros of a ready segment: the same.
    Ready,
}

struct Image {
    store: Arc<MemStore>,
    /// Segment, start, end, kind; in order and without gaps.
    spans: Vec<(u64, u64, u64, Kind)>,
    end: u64,
    last: u64,
    vouched: u64,
    /// What the footer of segment 1 would be.
    footer: Vec<u8>,
}

/// The size of record `lsn` in bytes: small ones, and from time to time one of several blocks.
fn size(lsn: u64) -> usize {
    if lsn % 5 == 4 { 9_000 } else { 10 + 300 * (lsn as usize % 7) }
}

fn image(block_bytes: usize, clean: bool) -> Image {
    let store = MemStore::new(block_bytes);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.keeps_footers = true;
    let data_offset = writer.header.data_offset();
    let mut batches: Vec<(u64, u64, u64, u64, u64)> = Vec::new();
    let mut write = |writer: &mut TestWriter, count: u64| {
        let first = writer.next_lsn;
        let records: Vec<_> = (first..first + count).map(|lsn| payload(lsn, size(lsn))).collect();
        let offset =
            writer.sync_then_batch(&records.iter().map(|record| &**record).collect::<Vec<_>>());
        batches.push((writer.header.epoch, offset, writer.offset, first, first + count - 1));
    };
    let mut footer = Vec::new();
    while writer.header.epoch == 1 {
        footer = writer.footer();
        let count = 1 + writer.next_lsn % 3;
        write(&mut writer, count);
    }
    for count in [1, 3, 0, 2, 1] {
        write(&mut writer, count);
    }
    if clean {
        write(&mut writer, 0);
    }
    writer.prepare(1);
    let last = writer.next_lsn - 1;
    let vouched = if clean { last } else { writer.synced_lsn };

    let mut spans = Vec::new();
    for epoch in 1..=3 {
        let copy = data_offset / 2;
        spans.push((epoch, 0, copy, Kind::HeaderCopy));
        spans.push((epoch, copy, data_offset, Kind::HeaderCopy));
        let mut at = data_offset;
        for &(_, offset, end, first, last_in) in batches.iter().filter(|batch| batch.0 == epoch) {
            assert_eq!(offset, at);
            let is_last = epoch == 2 && end == writer.offset;
            let kind = match epoch {
                1 => Kind::Sealed { offset, first, last: last_in },
                _ if is_last && clean => Kind::FinalVouch { offset },
                _ if is_last => Kind::Last { offset, first },
                _ => Kind::Vouched { offset, first },
            };
            spans.push((epoch, offset, end, kind));
            at = end;
        }
        let rest = [Kind::SealedRest, Kind::Behind, Kind::Ready][epoch as usize - 1];
        spans.push((epoch, at, SEGMENT_BYTES, rest));
    }
    Image { store, spans, end: writer.offset, last, vouched, footer }
}

fn spoil(store: &MemStore, epoch: u64, sector: u64, pattern: usize) -> bool {
    spoil_file(store, &segment_name(epoch), sector, pattern)
}

fn spoil_file(store: &MemStore, name: &str, sector: u64, pattern: usize) -> bool {
    let before = store.bytes(name);
    let (at, len) = (sector as usize, SECTOR as usize);
    match pattern {
        0 => store.alter(name, at, len, |byte| !byte),
        1 => store.alter(name, at, len, |_| 0),
        // One bit, in the sector's first, middle and last byte.
        2 => store.alter(name, at, 1, |byte| byte ^ 1),
        3 => store.alter(name, at + 200, 1, |byte| byte ^ 0x80),
        _ => store.alter(name, at + len - 1, 1, |byte| byte ^ 0x10),
    }
    store.bytes(name) != before
}

/// Everything from record 1 on that can be read, and the error that ended it.
fn read(store: &Arc<MemStore>, last: u64) -> (u64, Option<ReadError>) {
    let store: Arc<dyn Store> = store.clone();
    let mut reader = Reader::new(store, Box::new(move || last), Lsn::FIRST).expect("a reader");
    let mut read = 0;
    loop {
        match reader.next_record() {
            Ok(Some(record)) => {
                read += 1;
                assert_eq!(record.lsn().get(), read);
                assert_eq!(record.payload(), payload(read, size(read)), "record {read}");
            }
            Ok(None) => return (read, None),
            Err(error) => return (read, Some(error)),
        }
    }
}

fn verdict(image: &Image, epoch: u64, sector: u64, kind: Kind, pattern: usize) {
    let store = image.store.copy(image.store.facts().block_bytes);
    let changed = spoil(&store, epoch, sector, pattern);
    let what = format!("segment {epoch}, sector at {sector}, pattern {pattern}, {kind:?}");
    let opened = open(&store, SEGMENT_BYTES);
    if let (Kind::Vouched { offset, first }, true) = (kind, changed) {
        let Err(OpenError::Damaged(damage)) = opened else { panic!("{what}: no damage") };
        assert_eq!(damage.segment.file_name().unwrap().to_str(), Some(&*segment_name(epoch)));
        assert_eq!(damage.offset, offset, "{what}");
        let lost = Some((Lsn::new(first), Lsn::new(image.vouched)));
        assert_eq!(damage.lost, lost, "{what}: {damage}");
        // What stands before it can still be read.
        let (before, error) = read(&store, image.vouched);
        assert_eq!(before, first - 1, "{what}");
        assert!(matches!(error, Some(ReadError::Damaged(d)) if d.offset == offset), "{what}");
        return;
    }
    let recovered = opened.unwrap_or_else(|e| panic!("{what}: {e}"));
    let report = recovered.report;
    let torn = report
        .torn
        .as_ref()
        .map(|torn| (torn.segment.file_name().unwrap().to_str().unwrap().to_owned(), torn.offset));
    let mut expect_last = image.last;
    let expect_torn = match kind {
        _ if !changed => None,
        Kind::HeaderCopy | Kind::Sealed { .. } | Kind::SealedRest | Kind::Vouched { .. } => None,
        Kind::Last { offset, first } => {
            expect_last = first - 1;
            // Zeros over all of it leave nothing to report.
            Some(offset)
        }
        Kind::FinalVouch { offset } => Some(offset),
        Kind::Behind => Some(image.end),
        Kind::Ready => Some(image.store.facts().block_bytes as u64 * 2),
    };
    let gone = pattern == 1 && matches!(kind, Kind::Last { .. } | Kind::FinalVouch { .. });
    if !(gone && torn.is_none()) {
        assert_eq!(torn, expect_torn.map(|at| (segment_name(epoch), at)), "{what}");
    }
    assert_eq!(report.last_lsn.get(), expect_last, "{what}");
    let (found, error) = read(&store, expect_last);
    match kind {
        Kind::Sealed { offset, first, last } if changed => {
            assert_eq!(found, first - 1, "{what}");
            let Some(ReadError::Damaged(damage)) = error else { panic!("{what}: {error:?}") };
            assert_eq!(damage.offset, offset, "{what}");
            assert_eq!(damage.lost, Some((Lsn::new(first), Lsn::new(last))), "{what}");
            // Reading goes on behind what is lost.
            let dyn_store: Arc<dyn Store> = store.clone();
            let from = Lsn::new(last + 1);
            let reader = Reader::new(dyn_store, Box::new(move || expect_last), from).unwrap();
            let rest: Vec<_> = reader.map(|r| r.expect("intact").0.get()).collect();
            assert_eq!(rest, (last + 1..=expect_last).collect::<Vec<_>>(), "{what}");
        }
        _ => {
            assert!(error.is_none(), "{what}: {error:?}");
            assert_eq!(found, expect_last, "{what}");
        }
    }
    // Opened again, it is the same log with a clean end.
    let again = open(&store, SEGMENT_BYTES).unwrap_or_else(|e| panic!("{what}, again: {e}"));
    assert!(again.report.clean, "{what}");
    assert_eq!(again.report.last_lsn.get(), expect_last, "{what}");
    assert_eq!(again.report.torn, None, "{what}");
}

fn every_sector(block_bytes: usize, clean: bool) {
    let image = image(block_bytes, clean);
    let mut covered = [0u64; 3];
    for &(epoch, start, end, kind) in &image.spans {
        assert_eq!(covered[epoch as usize - 1], start);
        covered[epoch as usize - 1] = end;
        for sector in (start..end).step_by(SECTOR as usize) {
            (0..5).for_each(|pattern| verdict(&image, epoch, sector, kind, pattern));
        }
    }
    assert_eq!(covered, [SEGMENT_BYTES; 3], "a sector was left out");
}

#[test]
fn every_sector_of_a_closed_log() {
    every_sector(4096, true);
}

#[test]
fn every_sector_of_a_crashed_log() {
    every_sector(4096, false);
}

#[test]
fn every_sector_of_a_closed_log_of_small_blocks() {
    every_sector(512, true);
}

#[test]
fn every_sector_of_a_crashed_log_of_small_blocks() {
    every_sector(512, false);
}

/// Both copies of a header gone: the segment cannot be read. Opening does not look at one before
/// the tail; who reads there finds out.
#[test]
fn both_copies_of_a_header_are_damage() {
    let image = image(4096, true);
    for epoch in 1..=3 {
        for pattern in [0, 1, 2] {
            let store = image.store.copy(4096);
            spoil(&store, epoch, 0, pattern);
            spoil(&store, epoch, 4096, pattern);
            let before = store.total_bytes();
            let damage = match open(&store, SEGMENT_BYTES) {
                Ok(_) if epoch == 1 => {
                    let dyn_store: Arc<dyn Store> = store.clone();
                    let last = image.last;
                    let reader = Reader::new(dyn_store, Box::new(move || last), Lsn::FIRST);
                    match reader.and_then(|mut reader| reader.next_record().map(|_| ())) {
                        Err(ReadError::Damaged(damage)) => damage,
                        other => panic!("no damage: {other:?}"),
                    }
                }
                Err(OpenError::Damaged(damage)) => {
                    assert_eq!(store.total_bytes(), before);
                    damage
                }
                other => panic!("segment {epoch}: no damage: {:?}", other.map(|r| r.report)),
            };
            assert_eq!(damage.offset, 0);
            assert_eq!(damage.segment.file_name().unwrap().to_str(), Some(&*segment_name(epoch)));
        }
    }
}

/// Of the mark, both slots say the same: each serves alone, and without both nothing tells what the
/// log holds.
#[test]
fn every_sector_of_the_mark() {
    for block_bytes in [512, 4096] {
        let image = image(block_bytes, true);
        let bytes = image.store.bytes(MARK_NAME).len() as u64;
        let slots = [0, 65536];
        for pattern in 0..5 {
            for sector in (0..bytes).step_by(SECTOR as usize) {
                let store = image.store.copy(block_bytes);
                spoil_file(&store, MARK_NAME, sector, pattern);
                let report = open(&store, SEGMENT_BYTES).expect("the other slot serves").report;
                assert!(report.clean && report.torn.is_none());
                assert_eq!(report.last_lsn.get(), image.last);
                assert_eq!(read(&store, image.last).0, image.last);
            }
            let store = image.store.copy(block_bytes);
            let changed = slots.map(|at| spoil_file(&store, MARK_NAME, at, pattern));
            if changed != [true; 2] {
                continue;
            }
            let before = store.total_bytes();
            let Err(OpenError::Damaged(damage)) = open(&store, SEGMENT_BYTES) else {
                panic!("no damage")
            };
            assert!(damage.segment.ends_with(MARK_NAME), "{damage}");
            assert_eq!(store.total_bytes(), before);
        }
    }
}

/// A footer is a cache: whatever becomes of it, the log opens and reads the same.
#[test]
fn every_sector_of_a_footer() {
    for block_bytes in [512, 4096] {
        let image = image(block_bytes, true);
        let name = segment_name(1);
        let mut footer = image.footer.clone();
        footer.resize(block_bytes, 0);
        let at = SEGMENT_BYTES - block_bytes as u64;
        image.store.splice(&name, at as usize, &footer);
        for sector in (at..SEGMENT_BYTES).step_by(SECTOR as usize) {
            for pattern in 0..5 {
                let store = image.store.copy(block_bytes);
                spoil(&store, 1, sector, pattern);
                let report = open(&store, SEGMENT_BYTES).expect("opens").report;
                assert!(report.clean && report.torn.is_none());
                assert_eq!(read(&store, image.last).0, image.last);
                let seen = inspect(&*store).expect("a log");
                assert_eq!(seen.segments[0].first_lsn, Some(Lsn::FIRST));
            }
        }
    }
}
