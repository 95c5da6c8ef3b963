//! Logs are damaged in every place, and the verdict compared with what opening and reading say.

pub(crate) mod files;

use std::sync::Arc;

use super::census::Census;
use super::{VerifyReport, first_of, salvage_store, verify_store, walk};
use crate::disk::Store;
use crate::error::{OpenError, ReadError};
use crate::lsn::Lsn;
use crate::read::Reader;
use crate::segment;
use crate::testing::{MemStore, Seeded, TestWriter, open};

pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;
const SECTOR: usize = 512;

/// A log, and where its batches stand.
pub(crate) struct Image {
    pub(crate) store: Arc<MemStore>,
    pub(crate) batches: Vec<Batch>,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) vouched: u64,
}

/// An intact batch: `last` before `first` where it is empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) end: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Bytes behind the records start here.
    padding: u64,
}

pub(crate) fn payload(lsn: u64) -> Vec<u8> {
    let random = Seeded::new(lsn * 7);
    let bytes = match lsn % 6 {
        0 => 9_000,
        1 => 0,
        n => 10 + 300 * n,
    };
    (0..bytes).map(|_| random.draw() as u8).collect()
}

/// Appends `count` records in one batch.
pub(crate) fn write(writer: &mut TestWriter, count: u64) {
    let first = writer.next_lsn;
    let records: Vec<_> = (first..first + count).map(payload).collect();
    writer.sync_then_batch(&records.iter().map(|record| &**record).collect::<Vec<_>>());
}

/// A log with several segments, trimmed, truncated and recycled as the seed says.
pub(crate) fn image(seed: u64) -> Image {
    let random = Seeded::new(seed);
    let below = |n: u64| random.draw() % n;
    let block = if below(2) == 0 { 512 } else { 4096 };
    let store = MemStore::new(block);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.keeps_footers = true;
    let mut first = 1;
    for step in 0..6 + below(20) {
        write(&mut writer, 1 + below(4));
        match below(12) {
            0 => write(&mut writer, 0),
            1 if step > 4 => {
                let after = first.max(writer.next_lsn - 1 - below(4)).min(writer.next_lsn - 1);
                writer.truncate(after).expect("it is truncated");
            }
            2 if writer.header.epoch > 2 => {
                let epoch = writer.header.epoch - 1;
                let header = segment::Segment::open(&*store, epoch).expect("it opens").0;
                let to = crate::recovery::first_lsn_of(&*store, &header).expect("it is read");
                if let Some(to) = to.filter(|to| *to > first) {
                    first = to + below(2).min(writer.next_lsn - 1 - to);
                    writer.trim(epoch, first).expect("it is trimmed");
                }
            }
            3 => {
                let spare = store.names().into_iter().find(|name| name.ends_with(".spare"));
                if let Some(spare) = spare.filter(|_| writer.ready.is_empty()) {
                    writer.recycle(&spare);
                }
            }
            4 => writer.prepare(1),
            _ => {}
        }
    }
    let (last, vouched) = (writer.next_lsn - 1, writer.synced_lsn);
    match below(3) {
        0 => {
            writer.close();
            Image::of(store, first, last, last)
        }
        1 => {
            writer.sync_then_batch(&[]);
            Image::of(store, first, last, last)
        }
        _ => Image::of(store, first, last, vouched),
    }
}

impl Image {
    fn of(store: Arc<MemStore>, first: u64, last: u64, vouched: u64) -> Image {
        let batches = map(&*store);
        let image = Image { store, batches, first, last, vouched };
        let report = verify_store(&*image.store).expect("it is a log");
        assert!(report.is_whole(), "{:?}", report.findings);
        assert!(report.lost.is_empty());
        assert_eq!((report.first_lsn.get(), report.last_lsn.get()), (first, last));
        assert_eq!(report.records, last + 1 - first);
        assert_eq!(report.vouched_lsn.get(), vouched);
        image.check_salvage(&image.store, &report);
        image
    }

    /// Salvage gives what is intact by the report, and the right bytes.
    pub(crate) fn check_salvage(&self, store: &MemStore, report: &VerifyReport) {
        let mut got = Vec::new();
        let again = salvage_store(store, |record| {
            assert_eq!(record.payload(), payload(record.lsn().get()), "record {}", record.lsn());
            got.push(record.lsn().get());
            true
        })
        .expect("it is a log");
        assert_eq!(got, numbers(&report.intact));
        assert_eq!(again.findings, report.findings);
    }
}

fn map(store: &dyn Store) -> Vec<Batch> {
    let census = Census::take(store).expect("a log");
    let mut batches = Vec::new();
    walk::walk(store, &census, first_of(&census), &mut |header, bytes| {
        batches.push(Batch {
            epoch: header.context.epoch,
            offset: header.offset,
            end: header.offset + bytes.len() as u64,
            first: header.first_lsn,
            last: header.last_lsn(),
            padding: header.offset + header.content_bytes(),
        });
        true
    })
    .expect("it is walked");
    batches
}

pub(crate) fn numbers(ranges: &[(Lsn, Lsn)]) -> Vec<u64> {
    ranges.iter().flat_map(|(first, last)| first.get()..=last.get()).collect()
}

pub(crate) fn lost_numbers(report: &VerifyReport) -> Vec<u64> {
    let ranges = report.lost.iter();
    let ranges: Vec<_> = ranges.map(|lost| (lost.first, lost.last.expect("it is known"))).collect();
    numbers(&ranges)
}

/// Whether opening and reading all of it meets damage.
pub(crate) fn is_refused(store: &Arc<MemStore>, first: u64, last: u64) -> bool {
    let copy = store.copy(store.facts().block_bytes);
    match open(&copy, SEGMENT_BYTES) {
        Err(OpenError::Damaged(_) | OpenError::Foreign { .. }) => return true,
        Err(error) => panic!("{error}"),
        Ok(recovered) => assert!(recovered.next_lsn > last, "LOST {last}"),
    }
    let dyn_store: Arc<dyn Store> = copy;
    let mut reader = match Reader::new(dyn_store, Box::new(move || last), Lsn::new(first)) {
        Ok(reader) => reader,
        Err(_) => return true,
    };
    loop {
        match reader.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(ReadError::Damaged(_)) => return true,
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) fn spoil(store: &MemStore, name: &str, at: usize, pattern: usize) -> bool {
    let before = store.bytes(name);
    match pattern {
        0 => store.alter(name, at, SECTOR, |byte| !byte),
        1 => store.alter(name, at, SECTOR, |_| 0),
        2 => store.alter(name, at, 1, |byte| byte ^ 1),
        3 => store.alter(name, at + 200, 1, |byte| byte ^ 0x80),
        _ => store.alter(name, at + SECTOR - 1, 1, |byte| byte ^ 0x10),
    }
    store.bytes(name) != before
}

/// What one damaged sector of a segment must come to.
fn sector(image: &Image, name: &str, epoch: u64, at: usize, pattern: usize) {
    let store = image.store.copy(image.store.facts().block_bytes);
    if !spoil(&store, name, at, pattern) {
        return;
    }
    let what = format!("{name} at {at}, pattern {pattern}");
    let report = verify_store(&*store).unwrap_or_else(|e| panic!("{what}: {e}"));
    let hit = image
        .batches
        .iter()
        .position(|batch| batch.epoch == epoch && (batch.offset..batch.end).contains(&(at as u64)));
    let mut expected = Vec::new();
    if let Some(hit) = hit.map(|index| image.batches[index]) {
        let changed = at as u64 + [0, 0, 0, 200, 511][pattern];
        let is_padding = hit.padding <= changed;
        if !is_padding && hit.first <= image.vouched {
            expected = (hit.first.max(image.first)..=hit.last).collect();
        }
    }
    assert_eq!(lost_numbers(&report), expected, "{what}: {:?}", report.findings);
    let is_damaged = !report.is_whole();
    if is_refused(&store, image.first, image.vouched) {
        assert!(is_damaged, "{what}: {:?}", report.findings);
    } else {
        assert!(!report.is_damaged(), "{what}: {:?}", report.findings);
    }
    let intact = numbers(&report.intact);
    let readable = |lsn: &u64| intact.binary_search(lsn).is_ok() || expected.contains(lsn);
    assert!((image.first..=image.vouched).all(|lsn| readable(&lsn)), "{what}");
    image.check_salvage(&store, &report);
}

fn every_sector(seed: u64) {
    let image = image(seed);
    for name in image.store.names() {
        let Some(epoch) = crate::frame::parse_segment_name(&name) else { continue };
        let bytes = image.store.bytes(&name).len();
        // Far from any batch, one sector stands for many.
        let used = |at: usize| {
            at < 20_000
                || at + 1024 > bytes
                || image
                    .batches
                    .iter()
                    .any(|b| b.epoch == epoch && (b.offset..b.end + 1024).contains(&(at as u64)))
        };
        for at in (0..bytes).step_by(SECTOR).filter(|&at| used(at)) {
            let pattern = (at / SECTOR + seed as usize) % 5;
            sector(&image, &name, epoch, at, pattern);
        }
    }
}

#[test]
fn every_sector_of_many_logs() {
    (0..12).for_each(every_sector);
}
