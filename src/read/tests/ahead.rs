//! Reading ahead, on real files.

use super::*;
use crate::{Log, Options};

fn payload_of(lsn: u64) -> Vec<u8> {
    let bytes = match lsn % 500 {
        0 => 3_000_000,
        250 => 700_000,
        _ => 1024 + (lsn % 13) as usize,
    };
    (lsn..).flat_map(|word| word.to_le_bytes()).take(bytes).collect()
}

fn log() -> (tempfile::TempDir, Log) {
    let dir = tempfile::tempdir().expect("a directory");
    let log =
        Options::new().segment_bytes(12 << 20).buffered(true).open(dir.path()).expect("opens");
    for lsn in 1..=16_000u64 {
        drop(log.append(&payload_of(lsn)).expect("appends"));
    }
    log.sync().expect("syncs");
    (dir, log)
}

#[test]
fn a_long_scan_is_read_ahead_over_segments_and_gives_the_same() {
    let (dir, log) = log();
    let store = crate::disk::os::OsStore::open_read_only(dir.path()).expect("opens");
    let durable = Box::new(|| 16_000);
    let outside = Reader::new(store, durable, Lsn::FIRST).expect("a reader");
    for mut reader in [log.reader(Lsn::FIRST).expect("a reader"), outside] {
        let (mut ahead, mut crossed_ahead, mut epoch) = (false, 0, 0);
        for lsn in 1..=16_000 {
            let record = reader.next_record().expect("reads").expect("a record");
            assert_eq!(record.lsn().get(), lsn);
            assert!(record.payload() == payload_of(lsn), "record {lsn}");
            let cursor = reader.cursor.as_ref().expect("is there");
            if cursor.segment().epoch != epoch {
                epoch = cursor.segment().epoch;
                crossed_ahead += u64::from(ahead && cursor.is_ahead());
            }
            ahead = cursor.is_ahead();
            assert!(lsn > 500 || !ahead, "a short scan costs no thread");
        }
        assert!(crossed_ahead > 1, "it is read ahead over the ends of segments");
        assert!(reader.next_record().expect("reads").is_none());
        // What follows the live segment's last place that is settled comes as ever.
    }
    let mut follower = log.reader(Lsn::FIRST).expect("a reader");
    while follower.next_record().expect("reads").is_some() {}
    for lsn in 16_001..=16_020u64 {
        log.append(&payload_of(lsn)).expect("appends").wait().expect("is durable");
        let record = follower.next_record().expect("reads").expect("a record");
        assert!(record.payload() == payload_of(lsn));
    }
    assert!(follower.cursor.as_ref().is_some_and(|cursor| !cursor.is_ahead()), "it has caught up");
}

#[test]
fn what_was_read_ahead_of_a_file_that_is_another_now_does_not_count() {
    let (dir, log) = log();
    let shared = log.shared();
    let mut reader = log.reader(Lsn::FIRST).expect("a reader");
    while !reader.cursor.as_ref().is_some_and(BatchCursor::is_ahead) {
        reader.next_record().expect("reads").expect("a record");
    }
    let live = shared.extent.live_epoch();
    let view = log.reader(Lsn::NONE).expect("a reader").view;
    let place =
        view.place(live, &view.bounds().expect("bounds")).expect("reads").expect("is there");
    let first = view.first_of(&place.segment, &place.file).expect("reads").expect("starts").lsn;
    {
        let mut files = shared.extent.files();
        let mark = Mark { first_epoch: live, first_lsn: first, ..*files.mark.get() };
        files.mark.set(&*shared.store, mark).expect("is written");
        shared.extent.trimmed(first, live);
    }
    for epoch in 1..live {
        let bytes = vec![0x11; 12 << 20];
        std::fs::write(dir.path().join(segment_name(epoch)), bytes).expect("is written");
    }
    let error = loop {
        match reader.next_record() {
            Ok(record) => {
                let record = record.expect("an error comes");
                assert!(record.payload() == payload_of(record.lsn().get()));
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReadError::Trimmed { first: f } if f.get() == first));
    drop(reader);
    // A truncation: what was read ahead is not there any more.
    let mut reader = log.reader(Lsn::new(first)).expect("a reader");
    reader.next_record().expect("reads").expect("a record");
    log.truncate_after(Lsn::new(first + 5)).expect("truncates");
    log.append(b"new").expect("appends").wait().expect("is durable");
    for lsn in first + 1..=first + 5 {
        let record = reader.next_record().expect("reads").expect("a record");
        assert!(record.payload() == payload_of(lsn));
    }
    assert_eq!(reader.next_record().expect("reads").expect("a record").payload(), b"new");
    assert!(reader.next_record().expect("reads").is_none());
}
