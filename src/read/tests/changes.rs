//! Readers while the log is trimmed and truncated under them: of the process that writes, and of others.

use super::*;
use crate::disk::os::OsStore;
use crate::testing::Seeded;
use crate::{Log, Options};

struct Fixture {
    log: Log,
    dir: tempfile::TempDir,
}

impl Fixture {
    /// A log of a few segments: 1000 records of 3000 bytes.
    fn new() -> Fixture {
        let dir = tempfile::tempdir().expect("a directory");
        let log = Options::new()
            .segment_bytes(1 << 20)
            .ring_bytes(64 << 10)
            .batch_bytes_max(64 << 10)
            .buffered(true)
            .open(dir.path())
            .expect("opens");
        let fixture = Fixture { log, dir };
        fixture.append(1, 1000);
        fixture
    }

    fn append(&self, life: u8, count: u64) {
        for _ in 0..count {
            let lsn = self.log.last_lsn().get() + 1;
            drop(self.log.append(&record(life, lsn)).expect("appends"));
        }
        self.log.sync().expect("syncs");
    }

    fn store(&self) -> Arc<dyn Store> {
        OsStore::open_read_only(self.dir.path()).expect("opens")
    }

    /// A reader that knows what is durable, and sees the rest as another process does.
    fn outside(&self, from: u64) -> Reader {
        let log = self.log.clone();
        let durable = Box::new(move || log.durable_lsn().get());
        Reader::new(self.store(), durable, Lsn::new(from)).expect("a reader")
    }

    fn inside(&self, from: u64) -> Reader {
        self.log.reader(Lsn::new(from)).expect("a reader")
    }

    /// Trims as the log does: first the mark, then the numbers that readers look at.
    fn trim(&self, before: u64) {
        let shared = self.log.shared();
        let view = self.inside(0).view;
        let mut files = shared.extent.files();
        let epoch = view.segment_of(before, &view.bounds().expect("bounds")).expect("reads");
        let mark = Mark { first_epoch: epoch, first_lsn: before, ..*files.mark.get() };
        files.mark.set(&*shared.store, mark).expect("is written");
        shared.extent.trimmed(before, epoch);
    }
}

fn record(life: u8, lsn: u64) -> Vec<u8> {
    let random = Seeded::new(lsn << 8 | u64::from(life));
    (0..375).flat_map(|_| random.draw().to_le_bytes()).collect()
}

/// Reads `count` records of that life, and returns the number of the last.
fn expect(reader: &mut Reader, life: u8, count: u64) -> u64 {
    let mut last = 0;
    for _ in 0..count {
        let next = reader.next_lsn();
        let found = reader.next_record().expect("reads").expect("a record");
        assert_eq!(found.lsn(), next);
        assert!(found.payload() == record(life, next.get()), "record {next}");
        last = next.get();
    }
    last
}

fn error(reader: &mut Reader) -> ReadError {
    loop {
        match reader.next_record() {
            Ok(record) => assert!(record.is_some(), "the reader ends without an error"),
            Err(error) => return error,
        }
    }
}

#[test]
fn a_reader_that_trimming_overtakes_is_told_where_the_log_starts() {
    for recycled in [false, true] {
        let fixture = Fixture::new();
        let mut readers = [fixture.inside(0), fixture.outside(0)];
        for reader in &mut readers {
            expect(reader, 1, 3);
        }
        fixture.trim(900);
        let epoch = fixture.log.shared().extent.first_epoch();
        assert!(epoch > 2);
        for reader in &mut readers {
            for epoch in 1..epoch {
                let path = fixture.dir.path().join(segment_name(epoch));
                match recycled {
                    // What is in the place of the file now is of another life.
                    true => std::fs::write(&path, vec![0x5A; 1 << 20]).expect("is written"),
                    // Housekeeping may have taken it away before.
                    false => drop(std::fs::remove_file(&path)),
                }
            }
            let first = reader.next_lsn().get();
            let told = error(reader);
            let is_trimmed = matches!(told, ReadError::Trimmed { first } if first.get() == 900);
            assert!(is_trimmed, "{told:?}");
            // Of another process, what was in memory may come.
            assert!(reader.next_lsn().get() < first + 400);
            assert!(matches!(error(reader), ReadError::Trimmed { first } if first.get() == 900));
        }
        for mut reader in [fixture.inside(900), fixture.outside(900), fixture.inside(0)] {
            assert_eq!(expect(&mut reader, 1, 101), 1000);
            assert!(reader.next_record().expect("reads").is_none());
        }
        assert!(matches!(fixture.log.reader(Lsn::new(899)), Err(ReadError::Trimmed { .. })));
        assert_eq!(fixture.log.reader_last(2000).expect("a reader").next_lsn().get(), 900);
        let first = fixture.log.reader_at(SystemTime::UNIX_EPOCH).expect("a reader");
        assert_eq!(first.next_lsn().get(), 900);
        let back = fixture.log.reader_back(Lsn::NONE).expect("a reader");
        let numbers: Vec<_> = back.map(|record| record.expect("reads").0.get()).collect();
        assert_eq!(numbers, (900..=1000).rev().collect::<Vec<_>>());
    }
}

#[test]
fn a_reader_of_this_process_is_told_of_a_trim_at_once() {
    let fixture = Fixture::new();
    let mut reader = fixture.inside(1);
    expect(&mut reader, 1, 1);
    fixture.trim(1000);
    let batch = reader.batch.as_ref().expect("in a batch").batch.header.last_lsn();
    assert!(matches!(error(&mut reader), ReadError::Trimmed { first } if first.get() == 1000));
    assert!(reader.next_lsn().get() <= batch + 1);
}

#[test]
fn a_truncation_tells_readers_behind_it_and_passes_the_others() {
    for kept in [999u64, 700, 350, 1] {
        let fixture = Fixture::new();
        let make = |from| [fixture.inside(from), fixture.outside(from)];
        let (mut behind, mut at, mut before) = (make(kept + 1), make(kept + 1), make(1));
        let mut waiting = make(1500);
        for reader in &mut behind {
            expect(reader, 1, 1);
        }
        for reader in &mut before {
            expect(reader, 1, kept.min(300));
        }
        let mut back = fixture.log.reader_back(Lsn::NONE).expect("a reader");
        let mut back_before = fixture.log.reader_back(Lsn::new(kept)).expect("a reader");
        back.next_record().expect("reads").expect("a record");
        assert_eq!(fixture.log.truncate_after(Lsn::new(kept)).expect("truncates").get(), kept);
        let is_told = |error| matches!(error, ReadError::Truncated { last } if last.get() == kept);
        for reader in behind.iter_mut().chain(&mut waiting) {
            assert!(is_told(error(reader)));
            assert!(is_told(error(reader)), "it stays");
        }
        assert!(is_told(back.next_record().expect_err("cut")));
        for reader in &mut at {
            assert!(reader.next_record().expect("reads").is_none());
        }
        fixture.append(2, 400);
        for reader in at.iter_mut() {
            assert_eq!(expect(reader, 2, 400), kept + 400);
            assert!(reader.next_record().expect("reads").is_none());
        }
        // One of another process may have records in memory that are cut.
        let aware = if kept < 350 { 1 } else { 2 };
        for reader in before.iter_mut().take(aware) {
            expect(reader, 1, kept - kept.min(300));
            assert_eq!(expect(reader, 2, 400), kept + 400);
        }
        for mut reader in make(kept) {
            expect(&mut reader, 1, 1);
            assert_eq!(expect(&mut reader, 2, 400), kept + 400);
        }
        let down: Vec<_> = back_before.by_ref().map(|r| r.expect("reads").0.get()).collect();
        assert_eq!(down, (1..=kept).rev().collect::<Vec<_>>());
        let back = fixture.log.reader_back(Lsn::NONE).expect("a reader");
        for found in back {
            let (lsn, payload) = found.expect("reads");
            assert!(payload == record(if lsn.get() > kept { 2 } else { 1 }, lsn.get()));
        }
    }
}

/// Nothing is left of the generation that cut what the reader has read: its last records were taken over
/// by the one behind it, and the rest was trimmed.
#[test]
fn a_truncation_that_only_trimmed_segments_tell_of_is_not_passed_over() {
    let fixture = Fixture::new();
    let mut reader = fixture.outside(1);
    expect(&mut reader, 1, 900);
    fixture.log.truncate_after(Lsn::new(400)).expect("truncates");
    fixture.append(2, 489);
    let batch: Vec<_> = (890..910).map(|lsn| record(2, lsn)).collect();
    fixture.log.append_batch(&batch).expect("appends").wait().expect("waits");
    fixture.log.truncate_after(Lsn::new(905)).expect("truncates");
    fixture.trim(895);
    let at = fixture.outside(895);
    assert_eq!(at.view.bounds().expect("bounds").first_lsn, 895);
    assert_eq!(expect(&mut { at }, 2, 11), 905);
    assert!(matches!(error(&mut reader), ReadError::Truncated { last } if last.get() == 888));
}

#[test]
fn two_truncations_count_by_the_lower_one() {
    let fixture = Fixture::new();
    let mut readers = [fixture.inside(650), fixture.outside(650)];
    for reader in &mut readers {
        expect(reader, 1, 10);
    }
    fixture.log.truncate_after(Lsn::new(600)).expect("truncates");
    fixture.append(2, 300);
    fixture.log.truncate_after(Lsn::new(700)).expect("truncates");
    fixture.append(3, 10);
    for reader in &mut readers {
        assert!(matches!(error(reader), ReadError::Truncated { last } if last.get() == 600));
    }
    for mut reader in [fixture.inside(600), fixture.outside(600)] {
        expect(&mut reader, 1, 1);
        expect(&mut reader, 2, 100);
        assert_eq!(expect(&mut reader, 3, 10), 710);
    }
}

#[test]
fn a_stale_segment_is_not_read_and_an_intent_alone_cuts_nothing() {
    let fixture = Fixture::new();
    let path = |epoch| fixture.dir.path().join(segment_name(epoch));
    let view = fixture.inside(0).view;
    let bounds = view.bounds().expect("bounds");
    let held = view.segment_of(400, &bounds).expect("reads");
    let stale = std::fs::read(path(held + 2)).expect("is there");
    let place = view.place(held + 2, &bounds).expect("reads").expect("is there");
    let cut = view.first_of(&place.segment, &place.file).expect("reads").expect("starts").lsn;
    fixture.log.truncate_after(Lsn::new(400)).expect("truncates");
    // As a crash leaves it, between the rename that cuts and those that give segments up.
    let keep = std::fs::read(path(held + 2)).ok();
    std::fs::write(path(held + 2), &stale).expect("is written");
    for mut reader in [fixture.outside(0), fixture.outside(390)] {
        let from = reader.next_lsn().get();
        assert_eq!(expect(&mut reader, 1, 401 - from), 400);
        assert!(reader.next_record().expect("reads").is_none());
    }
    let log = fixture.log.clone();
    let durable = Box::new(move || log.durable_lsn().get() + 600);
    let mut over = Reader::new(fixture.store(), durable, Lsn::new(395)).expect("a reader");
    expect(&mut over, 1, 6);
    // Even where somebody says that they are durable.
    assert!(!matches!(over.next_record(), Ok(Some(_))));
    for from in [cut, cut + 1] {
        let durable = Box::new(|| 1000);
        let mut reader = Reader::new(fixture.store(), durable, Lsn::new(from)).expect("a reader");
        assert!(!matches!(reader.next_record(), Ok(Some(_))));
    }
    match keep {
        Some(bytes) => std::fs::write(path(held + 2), bytes).expect("is written"),
        None => std::fs::remove_file(path(held + 2)).expect("is removed"),
    }
    fixture.append(2, 100);
    let shared = fixture.log.shared();
    let mark = *shared.extent.files().mark.get();
    let intent = Mark {
        generation: mark.generation + 1,
        generation_epoch: mark.generation_epoch + 1,
        truncated_after: 10,
        ..mark
    };
    let mut reader = fixture.outside(350);
    shared.extent.files().mark.set(&*shared.store, intent).expect("is written");
    for reader in [&mut reader, &mut fixture.outside(350)] {
        expect(reader, 1, 51);
        assert_eq!(expect(reader, 2, 100), 500);
    }
}

#[test]
fn what_was_cut_is_cut_though_a_stale_segment_stands_above() {
    let fixture = Fixture::new();
    fixture.append(1, 600);
    let path = |epoch| fixture.dir.path().join(segment_name(epoch));
    let before = fixture.outside(400).view;
    let view = fixture.inside(0).view;
    let held = view.segment_of(400, &view.bounds().expect("bounds")).expect("reads");
    let stale = std::fs::read(path(held + 3)).expect("is there");
    // The second one leaves more than the first did.
    fixture.log.truncate_after(Lsn::new(390)).expect("truncates");
    fixture.append(2, 50);
    fixture.log.truncate_after(Lsn::new(430)).expect("truncates");
    fixture.log.clone().close().expect("closes");
    // As a crash leaves it, before what was cut is given up.
    std::fs::write(path(held + 3), &stale).expect("is written");
    let view = fixture.outside(0).view;
    let bounds = view.bounds().expect("bounds");
    assert!(bounds.last_epoch >= held + 3);
    assert!(view.open(held + 2, &bounds).expect("reads").is_some());
    assert!(view.open(held + 3, &bounds).expect("reads").is_none(), "it is stale");
    // Who stood between the two has seen what the first one cut.
    let cut = before.cut(&bounds).expect("reads").expect("was cut");
    assert_eq!((cut.generation, cut.after), (2, 390));
}

#[test]
fn every_segment_has_a_salt_of_its_own() {
    let fixture = Fixture::new();
    fixture.append(1, 600);
    let mut salts: Vec<u64> = (1..=4)
        .map(|epoch| {
            crate::segment::Segment::open(&*fixture.store(), epoch).expect("opens").0.header.salt
        })
        .collect();
    salts.sort_unstable();
    salts.dedup();
    assert_eq!(salts.len(), 4);
}
