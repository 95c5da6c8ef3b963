//! Segments whose files were others before, clean ends that the mark tells of, and footers.

use std::sync::Arc;

use super::{SEGMENT_BYTES, SegmentState, check, inspect, payload, records};
use crate::disk::Store;
use crate::error::OpenError;
use crate::footer;
use crate::frame::segment_name;
use crate::lsn::Lsn;
use crate::mark::MARK_NAME;
use crate::segment::spare_name;
use crate::testing::{MemStore, TestWriter, open, seal};

/// Segment 1 was filled and trimmed, its file is segment 3 now, and stands ready. Segment 2 is live.
fn recycled(footers: bool) -> (Arc<MemStore>, TestWriter) {
    let store = MemStore::new(4096);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.keeps_footers = true;
    while writer.header.epoch == 1 {
        if footers {
            let at = footer::footer_offset(&writer.header);
            store.splice(&segment_name(1), at as usize, &writer.footer());
        }
        writer.sync_then_batch(&[&payload(writer.next_lsn, 2000)]);
    }
    let first = writer.next_lsn - 1;
    writer.trim(2, first).expect("trims");
    writer.recycle(&spare_name(1, 0));
    (store, writer)
}

/// Fills segment 2, so that the next batch goes to segment 3.
fn fill(writer: &mut TestWriter) {
    while writer.offset + 4096 <= footer::footer_offset(&writer.header) {
        writer.sync_then_batch(&[&payload(writer.next_lsn, 2000)]);
    }
}

#[test]
fn two_lives_of_a_file_never_mix() {
    for footers in [false, true] {
        for blocks in 0..4 {
            let (store, mut writer) = recycled(footers);
            fill(&mut writer);
            for _ in 0..blocks {
                writer.sync_then_batch(&[&payload(writer.next_lsn, 2000)]);
            }
            let (last, epoch) = (writer.next_lsn - 1, writer.header.epoch);
            assert_eq!(epoch, if blocks == 0 { 2 } else { 3 });
            let recovered = open(&store, SEGMENT_BYTES).expect("opens");
            let report = &recovered.report;
            assert_eq!((report.last_lsn.get(), report.torn.clone()), (last, None), "{blocks}");
            let found = records(&store, last);
            assert_eq!(found.last().map(|(lsn, _)| *lsn), Some(last));
            assert!(found.iter().all(|(lsn, found)| *found == payload(*lsn, 2000)));
            let mut writer = TestWriter::new(&store, SEGMENT_BYTES, recovered);
            writer.sync_then_batch(&[&payload(last + 1, 2000)]);
            assert_eq!(open(&store, SEGMENT_BYTES).expect("opens").next_lsn, last + 2);
        }
    }
}

#[test]
fn a_recycled_segment_that_stands_ready_is_used() {
    for clean in [false, true] {
        let (store, mut writer) = recycled(true);
        if clean {
            writer.close();
        } else {
            writer.sync_then_batch(&[]);
        }
        let recovered = open(&store, SEGMENT_BYTES).expect("opens");
        assert!(recovered.report.clean);
        let ready: Vec<_> = recovered.ready.iter().map(|ready| ready.header.epoch).collect();
        assert_eq!(ready, [3]);
        assert!(recovered.ready[0].header.recycled);
    }
}

/// What an earlier life left behind the end is no torn tail; a batch of this life is.
#[test]
fn behind_the_end_of_a_recycled_segment_only_this_life_counts() {
    let (store, mut writer) = recycled(false);
    fill(&mut writer);
    writer.sync_then_batch(&[&payload(writer.next_lsn, 2000)]);
    writer.sync_then_batch(&[]);
    let (last, end) = (writer.next_lsn - 1, writer.offset);
    assert_eq!(writer.header.epoch, 3);
    let recovered = open(&store.copy(4096), SEGMENT_BYTES).expect("opens");
    assert!(recovered.report.clean);
    assert_eq!((recovered.live.header.epoch, recovered.offset), (3, end));

    // The second of two writes under way, whose first was lost.
    writer.offset += 4096;
    writer.next_lsn += 1;
    let (bytes, _) = seal(&writer, &[b"lost"]);
    store.splice(&segment_name(3), writer.offset as usize, &bytes);
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    let torn = recovered.report.torn.expect("it is seen");
    assert_eq!((torn.offset, torn.bytes), (end, 8192));
    assert_eq!((recovered.report.last_lsn.get(), recovered.live.header.epoch), (last, 4));
}

/// A batch of this life in a segment that stands ready: it is the log's last, or it is cut.
#[test]
fn a_recycled_segment_with_a_batch_of_this_life_is_not_ready() {
    let (store, mut writer) = recycled(false);
    fill(&mut writer);
    let last = writer.next_lsn - 1;
    // Two writes under way in the next segment; the first was lost.
    writer.header = writer.ready[0].header;
    writer.offset = writer.header.data_offset() + 4096;
    writer.next_lsn += 1;
    let (bytes, _) = seal(&writer, &[b"lost"]);
    store.splice(&segment_name(3), writer.offset as usize, &bytes);
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    assert_eq!(recovered.report.last_lsn.get(), last);
    assert!(recovered.report.torn.is_some() && recovered.ready.is_empty());
}

#[test]
fn a_clean_end_is_found_without_looking_further() {
    let store = MemStore::new(4096);
    let mut writer = TestWriter::open(&store, 16 * SEGMENT_BYTES);
    writer.prepare(2);
    writer.sync_then_batch(&[&payload(1, 2000)]);
    let crashed = store.copy(4096);
    writer.close();
    let read =
        |store: &Arc<MemStore>| open(store, 16 * SEGMENT_BYTES).expect("opens").report.bytes_read;
    let clean = open(&store.copy(4096), 16 * SEGMENT_BYTES).expect("opens");
    assert!(clean.report.clean);
    assert_eq!((clean.ready.len(), clean.mark.get().closed), (2, None));
    // The tail, wholly, and two more, against a window at each place.
    let looked = read(&crashed);
    assert!(looked >= 3 * 16 * SEGMENT_BYTES, "{looked}");
    assert!(clean.report.bytes_read < 6 * SEGMENT_BYTES, "{}", clean.report.bytes_read);
    // Opened without a close, it is looked at.
    let copy = store.copy(4096);
    open(&copy, 16 * SEGMENT_BYTES).expect("opens");
    assert!(read(&copy) >= 3 * 16 * SEGMENT_BYTES);
}

#[test]
fn a_new_log_that_is_closed_opens_again() {
    let store = MemStore::new(4096);
    TestWriter::open(&store, SEGMENT_BYTES).close();
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    assert!(recovered.report.clean);
    assert_eq!(recovered.next_lsn, 1);
}

/// The mark of an earlier close comes back, with whatever was written since.
#[test]
fn an_older_clean_end_is_not_believed() {
    let begin = || {
        let store = MemStore::new(4096);
        let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
        writer.prepare(1);
        writer.sync_then_batch(&[&payload(1, 2000)]);
        writer.close();
        let mark = store.bytes(MARK_NAME);
        (store, mark)
    };
    // More batches in the same segment, and in the next.
    for records in [1, 3, 30] {
        let (store, mark) = begin();
        let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
        for _ in 0..records {
            writer.sync_then_batch(&[&payload(writer.next_lsn, 2000)]);
        }
        let last = writer.next_lsn - 1;
        store.put(MARK_NAME, mark);
        let recovered = open(&store, SEGMENT_BYTES).expect("opens");
        assert_eq!(recovered.report.last_lsn.get(), last);
        check(&store, last, 2000);
    }
    // The next segment alone tells: this one was left with its end as it was.
    let (store, mark) = begin();
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    let end = writer.offset;
    writer.offset = SEGMENT_BYTES;
    writer.sync_then_batch(&[&payload(2, 2000)]);
    assert_eq!((writer.header.epoch, store.bytes(MARK_NAME) != mark), (2, true));
    store.put(MARK_NAME, mark.clone());
    assert_eq!(open(&store, SEGMENT_BYTES).expect("opens").report.last_lsn.get(), 2);
    // The end is not the same place, by offset or by checksum.
    let (store, _) = begin();
    for (offset, crc) in [(4096, 0), (0, 1)] {
        let copy = store.copy(4096);
        copy.alter(&segment_name(1), end as usize + 4096, 512, |_| 0x5A);
        let mut mark = crate::mark::MarkFile::open_or_create(
            &*copy,
            inspect(&*store).expect("a log").log_id,
            crate::mark::Mark::new(),
        )
        .expect("a mark");
        let closed = mark.get().closed.expect("it was closed");
        let closed = crate::mark::Closed {
            end_offset: closed.end_offset - offset,
            crc: closed.crc ^ crc,
            ..closed
        };
        mark.set(&*copy, crate::mark::Mark { closed: Some(closed), ..*mark.get() })
            .expect("writes");
        let report = open(&copy, SEGMENT_BYTES).expect("opens").report;
        assert!(!report.clean && report.torn.is_some(), "believed: {offset} {crc}");
    }
}

/// What a closed log has lost at its end is damage, though nothing vouches for it any more but the mark;
/// but for the empty batch that closed it.
#[test]
fn a_closed_log_does_not_end_earlier() {
    let begin = || {
        let store = MemStore::new(4096);
        let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
        writer.prepare(2);
        for lsn in 1..=3 {
            writer.sync_then_batch(&[&payload(lsn, 2000)]);
        }
        let end = writer.offset as usize;
        writer.close();
        (store, end)
    };
    let (store, end) = begin();
    store.alter(&segment_name(1), end, 4096, |_| 0);
    assert_eq!(open(&store, SEGMENT_BYTES).expect("opens").report.last_lsn.get(), 3);
    for lost in [1, 2, 3] {
        let (store, end) = begin();
        store.alter(&segment_name(1), end - 4096 * lost, 4096 * (lost + 1), |_| 0);
        match open(&store, SEGMENT_BYTES).map(|recovered| recovered.report) {
            Err(OpenError::Damaged(damage)) => {
                assert_eq!(damage.offset as usize, end - 4096 * lost, "{damage}");
            }
            other => panic!("{lost} records are lost: {other:?}"),
        }
    }
    // The whole segment that it ended in, with all that stood ready.
    let (store, _) = begin();
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.prepare(1);
    writer.offset = SEGMENT_BYTES;
    writer.sync_then_batch(&[&payload(4, 2000)]);
    assert_eq!(writer.header.epoch, 2);
    writer.close();
    for epoch in 2..=3 {
        store.remove(&segment_name(epoch)).ok();
    }
    let outcome = open(&store, SEGMENT_BYTES).map(|recovered| recovered.report);
    assert!(matches!(outcome, Err(OpenError::Damaged(_))), "{outcome:?}");
}

/// A crash between the close and the end of the next recovery finds the same.
#[test]
fn a_crash_after_a_clean_close_is_recovered() {
    for changes in 0.. {
        let store = MemStore::new(4096);
        let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
        writer.prepare(2);
        writer.sync_then_batch(&[&payload(1, 2000)]);
        writer.close();
        // On a device with larger blocks writing goes on in a fresh segment.
        let store = store.copy(8192);
        store.stop_after(changes);
        let done = open(&store, SEGMENT_BYTES).is_ok();
        store.stop_after(i64::MAX);
        let recovered = open(&store, SEGMENT_BYTES).expect("opens");
        assert_eq!(recovered.next_lsn, 2);
        assert_eq!(recovered.mark.get().closed, None);
        check(&store, 1, 2000);
        if done {
            break;
        }
    }
}

#[test]
fn a_footer_is_neither_torn_nor_written_behind() {
    let store = MemStore::new(4096);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.keeps_footers = true;
    writer.prepare(2);
    writer.sync_then_batch(&[&payload(1, 2000)]);
    writer.sync_then_batch(&[]);
    let at = footer::footer_offset(&writer.header) as usize;
    store.splice(&segment_name(1), at, &writer.footer());
    // The log had moved on, and a crash took what was written then.
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    assert_eq!(recovered.report.torn, None);
    assert_eq!((recovered.live.header.epoch, recovered.next_lsn), (2, 2));
    check(&store, 1, 2000);
    assert!(open(&store, SEGMENT_BYTES).expect("opens").report.clean);
}

#[test]
fn inspection_tells_times_bytes_and_spares() {
    let (store, mut writer) = recycled(false);
    store.put(&spare_name(9, 3), vec![0; 100]);
    fill(&mut writer);
    let at = footer::footer_offset(&writer.header) as usize;
    store.splice(&segment_name(2), at, &writer.footer());
    let first = writer.mark.get().first_lsn;
    writer.sync_then_batch(&[&payload(writer.next_lsn, 2000)]);
    let seen = inspect(&*store).expect("a log");
    let sealed = &seen.segments[0];
    assert_eq!((sealed.state, sealed.epoch), (SegmentState::Sealed, 2));
    assert_eq!(seen.first_lsn.get(), first);
    let count = sealed.last_lsn.expect("records").get() - first + 1;
    assert_eq!(sealed.payload_bytes, Some(2000 * count));
    assert!(sealed.first_time.is_some() && sealed.last_time >= sealed.first_time);
    let live = &seen.segments[1];
    assert_eq!((live.state, live.payload_bytes), (SegmentState::Live, Some(2000)));
    assert!(live.last_time.is_some());
    let spares: Vec<_> = seen.spares.iter().map(|s| (s.epoch, s.state, s.bytes)).collect();
    assert_eq!(spares, [(9, SegmentState::Spare, 100)]);
    // Without the footer, the first batch tells its time, and nothing more.
    store.alter(&segment_name(2), at, 512, |_| 0);
    let seen = inspect(&*store).expect("a log");
    let sealed = &seen.segments[0];
    assert!(sealed.first_time.is_some());
    assert_eq!((sealed.last_time, sealed.payload_bytes), (None, None));
}

/// A footer may tell of batches that a truncation has cut since.
#[test]
fn inspection_does_not_believe_a_footer_of_what_was_cut() {
    let store = MemStore::new(4096);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.keeps_footers = true;
    let at = footer::footer_offset(&writer.header) as usize;
    let mut footer = Vec::new();
    while writer.header.epoch == 1 {
        footer = writer.footer();
        writer.sync_then_batch(&[&payload(writer.next_lsn, 2000)]);
    }
    store.splice(&segment_name(1), at, &footer);
    let sealed = |store: &Arc<MemStore>| inspect(&**store).expect("a log").segments.remove(0);
    let records = sealed(&store).last_lsn.expect("records").get();
    assert_eq!(sealed(&store).payload_bytes, Some(2000 * records));
    writer.truncate(3).expect("it is cut");
    writer.sync_then_batch(&[&payload(4, 2000)]);
    let cut = sealed(&store);
    assert_eq!(
        (cut.epoch, cut.state, cut.last_lsn.map(Lsn::get)),
        (1, SegmentState::Sealed, Some(3))
    );
    assert_eq!((cut.payload_bytes, cut.last_time), (None, None));
    assert!(cut.first_time.is_some());
}

/// However long the log is, opening reads its end.
#[test]
fn opening_reads_the_tail_only() {
    let mut reads = Vec::new();
    for segments in [2, 30] {
        let store = MemStore::new(4096);
        let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
        while writer.header.epoch < segments {
            writer.sync_then_batch(&[&payload(writer.next_lsn, 4000)]);
        }
        for epoch in 1..segments - 1 {
            // Not even the headers.
            store.alter(&segment_name(epoch), 0, 8192, |byte| !byte);
        }
        let recovered = open(&store, SEGMENT_BYTES).expect("opens");
        assert_eq!(recovered.report.segments as u64, segments + 1);
        reads.push(recovered.report.bytes_read);
    }
    assert_eq!(reads[0], reads[1]);
}
