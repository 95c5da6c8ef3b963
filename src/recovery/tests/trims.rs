//! Logs of which the beginning was trimmed: where they start, and what is left of what is gone.

use std::sync::Arc;

use super::{SEGMENT_BYTES, inspect, payload, records};
use crate::disk::Store;
use crate::error::{Damage, OpenError};
use crate::frame::segment_name;
use crate::lsn::Lsn;
use crate::mark::{MARK_NAME, Mark};
use crate::segment::list_segments;
use crate::testing::{MemStore, TestWriter, open};

/// Twenty records, seven to a segment.
fn filled() -> (Arc<MemStore>, TestWriter) {
    let store = MemStore::new(4096);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    for _ in 0..20 {
        writer.sync_then_batch(&[&payload(writer.next_lsn, 4000)]);
    }
    (store, writer)
}

fn damage(store: &Arc<MemStore>) -> Damage {
    match open(store, SEGMENT_BYTES) {
        Err(OpenError::Damaged(damage)) => damage,
        Ok(recovered) => panic!("no damage: {}", recovered.report),
        Err(error) => panic!("not damage: {error}"),
    }
}

#[test]
fn a_crash_between_any_two_changes_of_a_trim_leaves_the_old_start_or_the_new_one() {
    for (first_epoch, first_lsn) in [(1, 5), (2, 8), (2, 11), (3, 15), (3, 20), (3, 21)] {
        for changes in 0.. {
            let (store, mut writer) = filled();
            store.stop_after(changes);
            let done = writer.trim(first_epoch, first_lsn).is_ok();
            store.stop_after(i64::MAX);
            let what = format!("from {first_lsn}, {changes} changes");
            let seen = inspect(&*store).unwrap_or_else(|e| panic!("{what}: {e}"));
            // And recovery is cut short too.
            store.stop_after(changes);
            open(&store, SEGMENT_BYTES).ok();
            store.stop_after(i64::MAX);
            let recovered = open(&store, SEGMENT_BYTES).unwrap_or_else(|e| panic!("{what}: {e}"));
            let first = recovered.report.first_lsn.get();
            assert_eq!(seen.first_lsn.get(), first, "{what}");
            assert!(first == 1 || first == first_lsn, "{what}");
            assert!(!done || first == first_lsn, "{what}");
            assert_eq!(recovered.report.last_lsn.get(), 20, "{what}");
            let lowest = list_segments(&*store).expect("names")[0];
            assert_eq!(lowest, recovered.mark.get().first_epoch, "{what}");
            let gone = first_epoch - 1;
            assert_eq!(recovered.spares.len() as u64, if first == 1 { 0 } else { gone }, "{what}");
            let found = records(&store, 20);
            assert_eq!(found.last().map(|(lsn, _)| *lsn).unwrap_or(20), 20, "{what}");
            let mut writer = TestWriter::new(&store, SEGMENT_BYTES, recovered);
            writer.sync_then_batch(&[&payload(21, 10)]);
            writer.close();
            let report = open(&store, SEGMENT_BYTES).expect("opens").report;
            assert!(report.clean, "{what}");
            assert_eq!((report.first_lsn.get(), report.last_lsn.get()), (first, 21), "{what}");
            if done {
                break;
            }
        }
    }
}

#[test]
fn leftovers_are_not_read_and_their_names_do_not_collide() {
    let (store, mut writer) = filled();
    let old = store.bytes(&segment_name(1));
    writer.trim(3, 15).expect("trims");
    writer.close();
    // Garbage under the name of a trimmed segment, whose spare is there already.
    store.put(&segment_name(1), vec![0xAA; 5000]);
    store.put(&segment_name(2), old);
    let seen = inspect(&*store).expect("a log");
    assert_eq!(seen.segments[0].epoch, 3);
    assert_eq!((seen.spares.len(), seen.first_lsn.get()), (4, 15));
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    assert_eq!(recovered.report.segments, 1);
    assert_eq!(recovered.spares.len(), 4);
    assert!(recovered.spares.iter().any(|(_, bytes)| *bytes == 5000));
}

#[test]
fn a_first_segment_that_is_missing_is_damage() {
    let (store, mut writer) = filled();
    writer.sync_then_batch(&[]);
    let copy = store.copy(4096);
    copy.remove(&segment_name(1)).expect("removes");
    let found = damage(&copy);
    assert!(found.segment.ends_with(segment_name(1)));
    assert_eq!(found.lost, Some((Lsn::new(1), Lsn::new(7))));
    assert!(inspect(&*copy).is_err());

    writer.trim(2, 10).expect("trims");
    for name in [segment_name(2), MARK_NAME.to_owned()] {
        let copy = store.copy(4096);
        copy.remove(&name).expect("removes");
        let found = damage(&copy);
        // Without the mark, a log starts with segment 1.
        let (epoch, lost) = if name == MARK_NAME { (1, (1, 7)) } else { (2, (10, 14)) };
        assert!(found.segment.ends_with(segment_name(epoch)), "{found}");
        assert_eq!(found.lost, Some((Lsn::new(lost.0), Lsn::new(lost.1))), "{found}");
    }
    let copy = store.copy(4096);
    for epoch in [2, 3] {
        copy.remove(&segment_name(epoch)).expect("removes");
    }
    assert!(damage(&copy).segment.ends_with(segment_name(2)));
}

/// Everything durable is trimmed while the first batch of the next segment is under way, and a crash
/// takes that away, or parts of it.
#[test]
fn a_log_trimmed_to_a_batch_that_was_lost_goes_on_at_its_start() {
    for torn in 0..4 {
        let (store, mut writer) = filled();
        let block = |epoch, at: usize| (segment_name(epoch), 8192 + at * 4096);
        writer.sync_then_batch(&[&payload(21, 4000)]);
        assert_eq!(writer.header.epoch, 3);
        writer.sync_then_batch(&[&payload(22, 5000)]);
        // Under way with it.
        writer.batch(&[&payload(23, 10)]);
        assert_eq!(writer.header.epoch, 4);
        writer.trim(4, 22).expect("trims");
        let wipe = |(name, at): (String, usize)| store.alter(&name, at, 4096, |_| 0);
        if torn != 1 {
            wipe(block(4, 0));
        }
        if torn != 2 {
            wipe(block(4, 1));
        }
        if torn != 3 {
            wipe(block(4, 2));
        }
        let recovered = open(&store, SEGMENT_BYTES).unwrap_or_else(|e| panic!("{torn}: {e}"));
        let report = &recovered.report;
        assert_eq!((report.first_lsn.get(), report.last_lsn.get()), (22, 21), "{torn}");
        assert_eq!(recovered.next_lsn, 22);
        let mut writer = TestWriter::new(&store, SEGMENT_BYTES, recovered);
        writer.sync_then_batch(&[b"again"]);
        writer.close();
        let report = open(&store, SEGMENT_BYTES).expect("opens").report;
        assert!(report.clean);
        assert_eq!((report.first_lsn.get(), report.last_lsn.get()), (22, 22));
        assert_eq!(records(&store, 22), [(22, b"again".to_vec())]);
    }
}

/// The start of the first segment is not needed by number, but by the chain: without it nothing tells
/// what else is lost.
#[test]
fn damage_before_the_first_record_of_the_first_segment_is_damage() {
    let (store, mut writer) = filled();
    writer.trim(3, 17).expect("trims");
    writer.sync_then_batch(&[]);
    store.alter(&segment_name(3), 8192, 4096, |_| 0);
    let found = damage(&store);
    assert_eq!(found.offset, 8192);
    assert_eq!(found.lost, Some((Lsn::new(17), Lsn::new(20))), "{found}");
}

/// What the mark says was durable must be there.
#[test]
fn a_log_that_ends_before_its_start_is_damage() {
    let (store, mut writer) = filled();
    writer.trim(3, 21).expect("trims");
    let last = writer.offset - 8192;
    store.alter(&segment_name(3), last as usize, 4096, |_| 0);
    assert_eq!(damage(&store).lost, Some((Lsn::new(20), Lsn::new(20))));
    let first = Mark::new();
    assert_eq!((first.first_epoch, first.first_lsn), (1, 1));
}
