//! Truncations that a crash cut short, and what stands behind those that are complete.

use std::sync::Arc;

use super::{SEGMENT_BYTES, inspect, payload, records};
use crate::frame::segment_name;
use crate::mark::Mark;
use crate::segment::list_segments;
use crate::testing::{MemStore, TestWriter, open};

const RECORD_BYTES: usize = 3000;

/// Batches of two records over three segments, and two that stand ready.
fn filled(store: &Arc<MemStore>) -> TestWriter {
    let mut writer = TestWriter::open(store, SEGMENT_BYTES);
    writer.prepare(2);
    append(&mut writer, 18);
    writer.prepare(2);
    writer
}

fn append(writer: &mut TestWriter, batches: u64) {
    for _ in 0..batches {
        let (one, two) = (content(writer, 0), content(writer, 1));
        writer.sync_then_batch(&[&one, &two]);
    }
}

/// What a record holds tells its number and its generation.
fn content(writer: &TestWriter, ahead: u64) -> Vec<u8> {
    payload((writer.next_lsn + ahead) * 1000 + writer.header.generation, RECORD_BYTES)
}

/// All records up to `last`, each of the generation that wrote it.
fn check(store: &Arc<MemStore>, last: u64, generation: impl Fn(u64) -> u64, what: &str) {
    let found = records(store, last);
    assert_eq!(found.len() as u64, last, "{what}");
    for (lsn, found) in found {
        let expected = payload(lsn * 1000 + generation(lsn), RECORD_BYTES);
        assert!(found == expected, "{what}: record {lsn}");
    }
}

/// What has no place in the log must be gone when it is open, and its mark must say what it is.
fn check_settled(store: &Arc<MemStore>, recovered: &crate::recovery::Recovered, what: &str) {
    let epochs = list_segments(&**store).expect("names");
    let last = recovered.live.header.epoch + recovered.ready.len() as u64;
    assert_eq!(epochs.last(), Some(&last), "{what}");
    assert_eq!(recovered.mark.get().generation, recovered.live.header.generation, "{what}");
    assert_eq!(recovered.mark.get().closed, None, "{what}");
}

#[test]
fn a_crash_between_any_two_changes_of_a_truncation_cuts_all_or_nothing() {
    // In the live segment, through a batch and between two; in earlier ones; at their very start; at
    // the start of the log.
    for after in [35, 34, 33, 28, 20, 17, 14, 13, 7, 2, 1, 0] {
        for changes in 0.. {
            let store = MemStore::new(4096);
            let mut writer = filled(&store);
            assert_eq!((writer.next_lsn, writer.header.epoch), (37, 3));
            store.stop_after(changes);
            let done = writer.truncate(after).is_ok();
            store.stop_after(i64::MAX);
            let what = format!("after {after}, {changes} changes");
            let seen = inspect(&*store).unwrap_or_else(|e| panic!("{what}: {e}"));
            store.stop_after(changes % 11);
            open(&store, SEGMENT_BYTES).ok();
            store.stop_after(i64::MAX);
            let recovered = open(&store, SEGMENT_BYTES).unwrap_or_else(|e| panic!("{what}: {e}"));
            let last = recovered.next_lsn - 1;
            let generation = recovered.live.header.generation;
            assert_eq!((seen.last_lsn.get(), seen.generation), (last, generation), "{what}");
            assert!((last, generation) == (36, 0) || (last, generation) == (after, 1), "{what}");
            assert!(!done || generation == 1, "{what}");
            check_settled(&store, &recovered, &what);
            check(&store, last, |_| 0, &what);
            // It goes on, crashes, and is cut again.
            let mut writer = TestWriter::new(&store, SEGMENT_BYTES, recovered);
            append(&mut writer, 9);
            let name = segment_name(writer.header.epoch);
            if writer.offset + 512 <= SEGMENT_BYTES {
                store.alter(&name, writer.offset as usize, 512, |_| 0x5A);
            }
            let recovered = open(&store, SEGMENT_BYTES).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(recovered.live.header.generation, generation, "{what}");
            check_settled(&store, &recovered, &what);
            let written = |lsn| if lsn > last { generation } else { 0 };
            check(&store, last + 18, written, &what);
            let mut writer = TestWriter::new(&store, SEGMENT_BYTES, recovered);
            writer.truncate(last + 3).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(writer.header.generation > generation);
            let recovered = open(&store, SEGMENT_BYTES).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(recovered.report.clean, "{what}");
            check_settled(&store, &recovered, &what);
            check(&store, last + 3, written, &what);
            if done {
                break;
            }
        }
    }
}

#[test]
fn truncations_in_a_row_each_cut_short_and_recovered() {
    let cuts = [30, 31, 12, 12, 5, 0];
    for stop in 0..cuts.len() {
        for changes in 0.. {
            let store = MemStore::new(4096);
            let mut writer = filled(&store);
            let (mut writers, mut done) = (vec![0; 37], false);
            for (index, &after) in cuts.iter().enumerate() {
                if index == stop {
                    store.stop_after(changes);
                }
                let result = writer.truncate(after);
                store.stop_after(i64::MAX);
                let what = format!("cut {stop}, {changes} changes, at {index}");
                if index == stop {
                    done = result.is_ok();
                    let before = writers.len() as u64 - 1;
                    drop(writer);
                    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
                    let last = recovered.next_lsn - 1;
                    assert!(last == after.min(before) || (last == before && !done), "{what}");
                    check_settled(&store, &recovered, &what);
                    writer = TestWriter::new(&store, SEGMENT_BYTES, recovered);
                } else {
                    result.unwrap_or_else(|e| panic!("{what}: {e}"));
                }
                let last = writer.next_lsn - 1;
                writers.truncate(last as usize + 1);
                check(&store, last, |lsn| writers[lsn as usize], &what);
                append(&mut writer, 10);
                writers.resize(last as usize + 21, writer.header.generation);
            }
            let recovered = open(&store, SEGMENT_BYTES).expect("opens");
            let last = recovered.next_lsn - 1;
            assert_eq!(last + 1, writers.len() as u64);
            check(&store, last, |lsn| writers[lsn as usize], "at the end");
            if done {
                break;
            }
        }
    }
}

/// An intent that came to nothing must not count later, when the segment it names is trimmed away.
#[test]
fn a_truncation_that_never_happened_does_not_happen_later() {
    let store = MemStore::new(4096);
    let mut writer = filled(&store);
    let intent =
        Mark { generation: 1, generation_epoch: 2, truncated_after: 3, ..*writer.mark.get() };
    writer.mark.set(&*store, intent).expect("writes");
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    assert_eq!((recovered.next_lsn, recovered.mark.get().generation), (37, 0));
    let mut writer = TestWriter::new(&store, SEGMENT_BYTES, recovered);
    append(&mut writer, 1);
    writer.trim(3, 30).expect("trims");
    assert_eq!(open(&store, SEGMENT_BYTES).expect("opens").next_lsn, 39);
    // Not even when nobody has opened the log in between.
    let store = MemStore::new(4096);
    let mut writer = filled(&store);
    writer.mark.set(&*store, intent).expect("writes");
    writer.trim(3, 30).expect("trims");
    assert_eq!(open(&store, SEGMENT_BYTES).expect("opens").next_lsn, 37);
}

/// Stale segments may vouch for more than what is left: that is no damage, and they do not come back
/// when the mark is lost for good.
#[test]
fn stale_segments_are_spares_when_the_log_is_open() {
    let store = MemStore::new(4096);
    let mut writer = filled(&store);
    let old = [4, 5].map(|epoch| (segment_name(epoch), store.bytes(&segment_name(epoch))));
    let third = store.bytes(&segment_name(3));
    writer.truncate(3).expect("truncates");
    drop(writer);
    // As if the last step had not been taken.
    for (name, bytes) in old {
        store.put(&name, bytes);
    }
    store.put(&segment_name(3), third);
    let seen = inspect(&*store).expect("a log");
    assert_eq!((seen.last_lsn.get(), seen.generation), (3, 1));
    assert_eq!(seen.segments.len(), 2);
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    assert_eq!((recovered.next_lsn, recovered.ready.len()), (4, 0));
    assert_eq!(list_segments(&*store).expect("names"), [1, 2]);
    assert!(recovered.spares.len() >= 3, "{:?}", recovered.spares);
    check(&store, 3, |_| 0, "after the cut");
}
