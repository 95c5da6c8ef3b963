//! What a repair must not do: take away what it did not keep, vouch for what nobody synced, act on notes.

use super::*;
use crate::frame::{SegmentHeader, segment_name};
use crate::repair::step::Step;
use crate::slots::{Kind, SlotFile};
use crate::testing::TestWriter;
use crate::verify::FindingKind;
use crate::verify::tests::files::log;
use crate::verify::tests::write;

/// The live segment, with no other ready behind it, under a foreign file.
#[test]
fn a_foreign_file_in_place_of_the_last_segment_is_damage() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    while writer.header.epoch < 3 {
        write(&mut writer, 3);
    }
    write(&mut writer, 0);
    let report = verify_store(&*store).expect("a log");
    let other = MemStore::new(512);
    TestWriter::open(&other, SEGMENT_BYTES);
    let mut foreign = other.bytes(&segment_name(1));
    let mut header = SegmentHeader::decode(&foreign).expect("a header");
    (header.log_id, header.epoch) = (crate::frame::LogId([9; 16]), 3);
    header.encode(&mut foreign[..512]);
    header.encode(&mut foreign[512..1024]);
    store.put(&segment_name(3), foreign);
    let found = verify_store(&*store).expect("a log");
    assert!(found.is_damaged(), "{:?}", found.findings);
    assert!(found.last_lsn < report.last_lsn);
    let (repaired, kept) = repair(&store, Keep::Before).expect("it is repaired");
    assert!(repaired.after.is_some_and(|after| after.is_whole()));
    assert!(kept.names().contains(&segment_name(3)));
    check_opens(&store, 1, found.last_lsn.get(), "repaired");
}

#[test]
fn a_stray_behind_the_end_of_a_closed_log_is_no_damage() {
    let image = log(2);
    let store = image.store.copy(512);
    store.put(&segment_name(3), store.bytes(&segment_name(1)));
    let found = verify_store(&*store).expect("a log");
    assert!(!found.is_damaged() && !found.is_whole(), "{:?}", found.findings);
    repair(&store, Keep::Before).expect("it is repaired");
    check_opens(&store, 1, image.last, "repaired");
}

#[test]
fn a_segment_that_gets_its_name_back_takes_no_other_file_away() {
    let image = log(4);
    let store = image.store.copy(512);
    let mut foreign = store.bytes(&segment_name(1));
    foreign[..1024].fill(7);
    let mut other = SegmentHeader::decode(&store.bytes(&segment_name(2))).expect("a header");
    other.log_id = crate::frame::LogId([9; 16]);
    other.encode(&mut foreign[..512]);
    other.encode(&mut foreign[512..1024]);
    store.rename(&segment_name(2), &segment_name(9)).expect("it is there");
    store.put(&segment_name(2), foreign.clone());
    let (report, kept) = repair(&store, Keep::Before).expect("it is repaired");
    let to = format!("{}.stray-1", segment_name(2));
    assert_eq!(report.renamed, [(segment_name(2), to.clone())]);
    assert_eq!(store.bytes(&to), foreign);
    let note = String::from_utf8(kept.bytes(NOTE_NAME)).expect("text");
    assert!(note.contains(&format!("rename {to} in the log to {}", segment_name(2))), "{note}");
    check_opens(&store, 1, image.last, "repaired");
}

#[test]
fn notes_alone_are_nothing_to_repair() {
    let store = log(3).store.copy(512);
    store.alter(MARK_NAME, 65536, 512, |byte| !byte);
    let found = verify_store(&*store).expect("a log");
    assert!(found.is_whole(), "{:?}", found.findings);
    assert!(found.findings.iter().any(|f| f.kind == FindingKind::Note));
    let (report, _) = repair(&store, Keep::Before).expect("a log");
    assert!(report.steps.is_empty(), "{:?}", report.steps);
    // Beside something else they are mended.
    store.alter(&segment_name(2), 0, 512, |byte| !byte);
    let (report, _) = repair(&store, Keep::Before).expect("a log");
    assert_eq!(report.steps.len(), 2, "{:?}", report.steps);
    let after = report.after.expect("it was done");
    assert!(after.findings.is_empty(), "{:?}", after.findings);
}

#[test]
fn a_log_that_no_file_names_is_left_alone() {
    let image = log(2);
    let store = image.store.copy(512);
    for name in segments(&image) {
        store.alter(&name, 0, 1024, |byte| !byte);
    }
    store.alter(MARK_NAME, 0, 512, |byte| !byte);
    store.alter(MARK_NAME, 65536, 512, |byte| !byte);
    assert!(matches!(repair(&store, Keep::Before), Err(RepairError::Unidentified)));
}

/// A cut makes a segment that vouches for all before it.
#[test]
fn what_nobody_synced_is_synced_before_a_cut() {
    let image = log(3);
    let store = image.store.copy(512);
    // The end is gone, with all that vouches for the last records before it.
    store.remove(&segment_name(3)).expect("it is there");
    let look = verify_store(&*store).expect("a log");
    assert!(look.vouched_lsn < look.last_lsn);
    let plan = Plan::make(&*store, Keep::Before).expect("a plan");
    let unsynced = plan.steps.iter().find_map(|step| match step {
        Step::Cut { unsynced, .. } => Some(unsynced.clone()),
        _ => None,
    });
    let unsynced = unsynced.expect("it is cut");
    let end = image.batches.iter().rfind(|batch| batch.epoch == 2).expect("there is one").end;
    assert_eq!(unsynced, [(2, end)]);
    // It is written and synced, not only looked at.
    let before = store.bytes(&segment_name(2));
    store.stop_after(1);
    assert!(super::super::carry_out::sync_again(&*store, 2, end).is_err(), "it is synced");
    store.stop_after(2);
    super::super::carry_out::sync_again(&*store, 2, end).expect("one write and a sync");
    store.stop_after(i64::MAX);
    assert_eq!(store.bytes(&segment_name(2)), before);
}

#[test]
fn a_slot_in_the_others_place_is_found_and_made_anew() {
    let image = log(2);
    let store = image.store.copy(512);
    let id = verify_store(&*store).expect("a log").log_id.expect("it has one");
    let position = 1u64.to_le_bytes();
    SlotFile::create(&*store, "a.cursor", Kind::Cursor, id, &position).expect("made");
    let first = store.bytes("a.cursor")[..512].to_vec();
    store.splice("a.cursor", 65536, &first);
    store.alter("a.cursor", 0, 512, |_| 0);
    let found = verify_store(&*store).expect("a log");
    assert!(found.is_damaged(), "{:?}", found.findings);
    let (report, _) = repair(&store, Keep::Before).expect("it is repaired");
    assert!(report.after.is_some_and(|after| after.is_whole()));
}
