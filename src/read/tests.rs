//! Readers beside a writer, over segments, over recoveries, from any number.

use std::sync::atomic::{AtomicU64, Ordering};

use std::sync::Arc;

mod ahead;
mod back;
mod changes;
mod seek;

use super::*;
use crate::disk::Store;
use crate::footer::{Footer, footer_bytes, footer_offset};
use crate::frame::segment_name;
use crate::index::SegmentIndex;
use crate::mark::{Mark, MarkFile};
use crate::scan::Step;
use crate::testing::{MemStore, TestWriter, open};

const SEGMENT_BYTES: u64 = 64 << 10;

fn payload(lsn: u64) -> Vec<u8> {
    let bytes = if lsn.is_multiple_of(7) { 12_000 } else { (lsn % 400) as usize };
    vec![lsn as u8; bytes]
}

fn write(writer: &mut TestWriter, count: u64) {
    let records: Vec<_> = (writer.next_lsn..writer.next_lsn + count).map(payload).collect();
    writer.sync_then_batch(&records.iter().map(|record| &**record).collect::<Vec<_>>());
}

fn live(store: &Arc<MemStore>, from: u64, durable: u64) -> Reader {
    let store: Arc<dyn Store> = store.clone();
    Reader::new(store, Box::new(move || durable), Lsn::new(from)).expect("a reader")
}

fn vouched(store: &Arc<MemStore>, from: u64) -> Result<Reader, ReadError> {
    let store: Arc<dyn Store> = store.clone();
    Reader::with(store.clone(), Watermark::Vouched(store), open::From::Lsn(from))
}

/// Reads what is durable now and checks it; returns the numbers.
fn drain(reader: &mut Reader) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some(record) = reader.next_record().expect("intact records") {
        assert_eq!(record.payload(), payload(record.lsn().get()), "record {}", record.lsn());
        numbers.push(record.lsn().get());
    }
    numbers
}

fn log(batches: u64) -> (Arc<MemStore>, TestWriter) {
    let store = MemStore::new(4096);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.prepare(1);
    (0..batches).for_each(|batch| write(&mut writer, batch % 4));
    (store, writer)
}

/// Where the first batch of a segment is damaged, what is lost ends with that batch.
#[test]
fn damage_at_the_start_of_a_segment_ends_with_its_batch() {
    let (store, writer) = log(60);
    let last = writer.next_lsn - 1;
    let view = live(&store, 0, last).view;
    let (segment, file) = segment::Segment::open(&*store, 2).expect("a segment");
    let first = view.first_of(&segment, &file).expect("reads").expect("a batch").lsn;
    let cursor = view.locate(first).expect("reads").expect("is there").0;
    let mut cursor = cursor;
    let Step::Batch(batch) = cursor.peek_header().expect("reads") else { panic!("a batch") };
    assert_eq!(batch.header.first_lsn, first);
    store.alter(&segment_name(2), batch.header.offset as usize + 100, 1, |byte| byte ^ 1);
    let mut reader = live(&store, 1, last);
    let error = loop {
        match reader.next_record() {
            Ok(record) => assert!(record.is_some(), "the reader ends"),
            Err(error) => break error,
        }
    };
    let ReadError::Damaged(damage) = error else { panic!("{error}") };
    let lost = (Lsn::new(first), Lsn::new(batch.header.last_lsn()));
    assert_eq!((damage.lost, damage.offset), (Some(lost), batch.header.offset), "{damage}");
    assert!(lost.1.get() < last);
}

/// Writes the mark.
fn mark(store: &Arc<MemStore>, mark: Mark) {
    let view = live(store, 0, 0).view;
    let (segment, _) = segment::Segment::open(&*view.store, 2).expect("a segment");
    let mut file =
        MarkFile::open_or_create(&**store, segment.header.log_id, Mark::new()).expect("opens");
    file.set(&**store, mark).expect("writes");
}

/// Writes the footer of every segment that another one follows, as `change` makes it.
fn write_footers(store: &Arc<MemStore>, last: u64, change: impl Fn(&mut Footer)) {
    let view = live(store, 0, last).view;
    let bounds = view.bounds().expect("bounds");
    let mut written = 0;
    for epoch in bounds.first_epoch..bounds.last_epoch {
        let place = view.place(epoch, &bounds).expect("reads").expect("is there");
        let header = place.segment.header;
        let mut index = SegmentIndex::new(&header, 0);
        let mut cursor = view.enter(&place).expect("memory");
        while let Step::Batch(batch) = cursor.peek_header().expect("reads") {
            index.add(&batch.header, batch.crc, batch.end);
            cursor.accept(&batch);
        }
        let mut footer = index.footer().clone();
        change(&mut footer);
        let mut bytes = vec![0; footer_bytes(header.segment_bytes, header.block_bytes) as usize];
        footer.encode(&mut bytes);
        let name = segment_name(epoch);
        let mut file = store.bytes(&name);
        let at = footer_offset(&header) as usize;
        if footer.end_offset <= at as u64 && file.len() as u64 == header.segment_bytes {
            file[at..].copy_from_slice(&bytes);
            store.put(&name, file);
            written += 1;
        }
    }
    assert!(written > 0, "footers have room");
}

/// A log with some segments whose sparse index has an entry for every few batches only.
fn sparse_log() -> (Arc<MemStore>, u64) {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, 1 << 20);
    for batch in 0..900 {
        writer.wall_ns += 10 * (batch % 3);
        write(&mut writer, batch % 4);
    }
    assert!(writer.header.epoch > 2, "several segments");
    let last = writer.next_lsn - 1;
    (store, last)
}

#[test]
fn from_every_number_to_the_end() {
    let (store, writer) = log(60);
    let last = writer.next_lsn - 1;
    assert!(writer.header.epoch > 3, "several segments");
    for from in 1..=last + 2 {
        let mut reader = live(&store, from, last);
        assert_eq!(drain(&mut reader), (from..=last).collect::<Vec<_>>());
        assert_eq!(reader.next_lsn().get(), from.max(last + 1));
    }
    assert_eq!(drain(&mut live(&store, 0, last)).len() as u64, last);
}

#[test]
fn only_what_is_durable_comes_even_inside_a_batch() {
    let (store, writer) = log(60);
    for durable in 0..writer.next_lsn {
        let numbers = drain(&mut live(&store, 1, durable));
        // A batch comes whole or not at all.
        let end = numbers.last().copied().unwrap_or(0);
        assert!(end <= durable && durable - end < 3, "{end} of {durable}");
    }
}

#[test]
fn a_follower_sees_each_record_as_it_becomes_durable() {
    let store = MemStore::new(4096);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    let durable = Arc::new(AtomicU64::new(0));
    let watermark = durable.clone();
    let dyn_store: Arc<dyn Store> = store.clone();
    let mut reader =
        Reader::new(dyn_store, Box::new(move || watermark.load(Ordering::Relaxed)), Lsn::FIRST)
            .expect("a reader");
    for round in 0..200u64 {
        let first = writer.next_lsn;
        let (name, offset) = (segment_name(writer.header.epoch), writer.offset as usize);
        // Half written: the reader must neither look at it nor remember it.
        if offset + 4096 <= SEGMENT_BYTES as usize {
            store.alter(&name, offset, 4096, |_| 0xEE);
            assert_eq!(drain(&mut reader), []);
            store.alter(&name, offset, 4096, |_| 0);
        }
        write(&mut writer, round % 3);
        assert_eq!(drain(&mut reader), []);
        durable.store(writer.next_lsn - 1, Ordering::Relaxed);
        assert_eq!(drain(&mut reader), (first..writer.next_lsn).collect::<Vec<_>>());
    }
}

#[test]
fn another_process_sees_what_is_vouched_for() {
    let store = MemStore::new(4096);
    assert!(matches!(vouched(&store, 0), Err(ReadError::NotFound { .. })));
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    let mut reader = vouched(&store, 0).expect("a reader");
    assert_eq!(drain(&mut reader), []);
    for _ in 0..50 {
        let vouched = writer.next_lsn - 1;
        write(&mut writer, 2);
        drain(&mut reader);
        assert_eq!(reader.next_lsn().get(), vouched + 1);
    }
    writer.sync_then_batch(&[]);
    assert_eq!(drain(&mut reader), [99, 100]);
}

#[test]
fn another_process_follows_over_crashes() {
    let store = MemStore::new(4096);
    open(&store, SEGMENT_BYTES).expect("opens");
    let mut reader = vouched(&store, 1).expect("a reader");
    let mut seen = Vec::new();
    for round in 0..60u64 {
        let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
        writer.prepare(2);
        if round % 3 != 0 {
            seen.extend(drain(&mut reader));
        }
        for batch in 0..round % 4 {
            write(&mut writer, batch + 1);
        }
        seen.extend(drain(&mut reader));
        match round % 5 {
            0 => writer.close(),
            1 => {
                let name = segment_name(writer.header.epoch);
                if writer.offset < SEGMENT_BYTES {
                    store.alter(&name, writer.offset as usize, 512, |_| 0x33);
                }
            }
            _ => {}
        }
        if round % 2 == 0 {
            seen.extend(drain(&mut reader));
        }
    }
    let last = open(&store, SEGMENT_BYTES).expect("opens").next_lsn - 1;
    seen.extend(drain(&mut reader));
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
}

#[test]
fn a_log_that_starts_later_says_where() {
    let (store, writer) = log(60);
    let last = writer.next_lsn - 1;
    let second = live(&store, 1, last).view.bounds().expect("bounds");
    let place = live(&store, 1, last).view.place(2, &second).expect("reads").expect("is there");
    let view = live(&store, 1, last).view;
    let starts = view.first_of(&place.segment, &place.file).expect("reads").expect("starts").lsn;
    // The trim point may stand inside the first segment.
    for first in starts..starts + 3 {
        mark(&store, Mark { first_epoch: 2, first_lsn: first, ..Mark::new() });
        for from in 1..first {
            let dyn_store: Arc<dyn Store> = store.clone();
            let reader = Reader::new(dyn_store, Box::new(move || last), Lsn::new(from));
            assert!(matches!(reader, Err(ReadError::Trimmed { first: f }) if f.get() == first));
        }
        assert_eq!(drain(&mut live(&store, 0, last)), (first..=last).collect::<Vec<_>>());
    }
    // What is left below is not looked at, nor missed.
    store.alter(&segment_name(1), 0, 9000, |_| 0x77);
    assert_eq!(drain(&mut live(&store, starts + 2, last)).len() as u64, last - starts - 1);
    store.remove(&segment_name(1)).expect("removes");
    assert_eq!(drain(&mut live(&store, starts + 2, last)).len() as u64, last - starts - 1);
    store.remove(&segment_name(2)).expect("removes");
    let dyn_store: Arc<dyn Store> = store.clone();
    let reader = Reader::new(dyn_store, Box::new(move || last), Lsn::NONE);
    assert!(matches!(reader, Err(ReadError::Damaged(damage)) if damage.lost.is_none()));
}

#[test]
fn an_error_stays_and_ends_the_iterator() {
    let (store, writer) = log(60);
    let last = writer.next_lsn - 1;
    store.alter(&segment_name(2), 8192 + 50, 1, |byte| byte ^ 1);
    let mut reader = live(&store, 1, last);
    let mut read = 0;
    let first = loop {
        match reader.next_record() {
            Ok(record) => read = record.expect("damage comes before the end").lsn().get(),
            Err(ReadError::Damaged(damage)) => break damage,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(matches!(reader.next_record(), Err(ReadError::Damaged(d)) if d == first));
    let (lost_from, lost_to) = first.lost.expect("known");
    assert_eq!(lost_from.get(), read + 1);
    assert!(lost_to < Lsn::new(last));
    let mut reader = live(&store, 1, last);
    assert_eq!(reader.by_ref().filter(Result::is_ok).count() as u64, read);
    assert!(reader.next().is_none());
    let rest = drain(&mut live(&store, lost_to.get() + 1, last));
    assert_eq!(rest, (lost_to.get() + 1..=last).collect::<Vec<_>>());
}

#[test]
fn clocks_come_from_the_batches() {
    let store = MemStore::new(4096);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.wall_ns = 5_000_000_000;
    write(&mut writer, 2);
    let mut reader = live(&store, 2, 2);
    let record = reader.next_record().expect("reads").expect("a record");
    assert_eq!(record.written_at(), SystemTime::UNIX_EPOCH + Duration::from_secs(5));
}
