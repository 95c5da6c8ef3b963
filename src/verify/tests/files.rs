//! Whole files: swapped, strayed, of another log; a lost end; cursors.

use super::*;
use crate::frame::{LogId, segment_name};
use crate::slots::{Kind, SlotFile};
use crate::verify::FindingKind;

fn kinds(report: &VerifyReport) -> Vec<(FindingKind, String)> {
    let name = |finding: &crate::Finding| {
        finding.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    report.findings.iter().map(|finding| (finding.kind, name(finding))).collect()
}

/// A closed log of several segments.
pub(crate) fn log(count: u64) -> Image {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.keeps_footers = true;
    while writer.header.epoch < count {
        write(&mut writer, 3);
    }
    write(&mut writer, 2);
    let last = writer.next_lsn - 1;
    writer.close();
    Image::of(store, 1, last, last)
}

#[test]
fn a_stray_segment_is_named_and_nothing_is_lost_by_it() {
    let image = log(3);
    let store = image.store.copy(512);
    store.put(&segment_name(9), store.bytes(&segment_name(2)));
    let report = verify_store(&*store).expect("a log");
    assert_eq!(kinds(&report), [(FindingKind::Stray, segment_name(9))]);
    assert!(!report.is_damaged() && !report.is_whole());
    assert_eq!(report.records, image.last);
}

#[test]
fn swapped_segments_are_named_and_their_records_are_not_called_lost() {
    let image = log(4);
    let store = image.store.copy(512);
    let (two, three) = (store.bytes(&segment_name(2)), store.bytes(&segment_name(3)));
    store.put(&segment_name(2), three);
    store.put(&segment_name(3), two);
    let report = verify_store(&*store).expect("a log");
    assert!(report.is_damaged() && report.lost.is_empty(), "{:?}", report.findings);
    let strays = kinds(&report).into_iter().filter(|(kind, _)| *kind == FindingKind::Stray);
    assert_eq!(
        strays.map(|(_, name)| name).collect::<Vec<_>>(),
        [segment_name(2), segment_name(3)]
    );
}

/// Opening such a log gives an older one. The mark tells.
#[test]
fn a_closed_log_without_its_last_segment_is_damage() {
    let image = log(3);
    let store = image.store.copy(512);
    store.remove(&segment_name(3)).expect("it is there");
    let report = verify_store(&*store).expect("a log");
    assert!(report.is_damaged(), "{:?}", report.findings);
    let in_three = image.batches.iter().find(|batch| batch.epoch == 3).expect("there is one").first;
    // Nothing tells how many there were.
    assert!(report.lost.is_empty());
    assert!(report.findings[0].detail.contains(&format!("records from {in_three} on")));
    // A cursor does.
    let id = report.log_id.expect("it has one");
    let position = image.last.to_le_bytes();
    SlotFile::create(&*store, "a.cursor", Kind::Cursor, id, &position).expect("made");
    let report = verify_store(&*store).expect("a log");
    let least = format!("at least to {}, says cursor a", image.last - 1);
    assert!(report.findings[0].detail.ends_with(&least), "{:?}", report.findings);
    let note = &report.findings.last().expect("there is one").detail;
    assert!(note.contains(&format!("{in_three} to {} are gone", image.last - 1)), "{note}");
}

#[test]
fn cursors_that_cannot_be_read_are_named() {
    let image = log(2);
    let store = image.store.copy(512);
    let id = verify_store(&*store).expect("a log").log_id.expect("it has one");
    for (name, id) in [("good", id), ("bad", id), ("other", LogId([9; 16]))] {
        let file = format!("{name}.cursor");
        SlotFile::create(&*store, &file, Kind::Cursor, id, &1u64.to_le_bytes()).expect("made");
    }
    store.alter("bad.cursor", 0, 512, |byte| !byte);
    let report = verify_store(&*store).expect("a log");
    let named = [
        (FindingKind::Damage, "bad.cursor".to_owned()),
        (FindingKind::Stray, "other.cursor".to_owned()),
    ];
    assert_eq!(kinds(&report), named);
    assert!(report.lost.is_empty());
}

/// The empty batch that closes a log may be the first of a segment.
#[test]
fn a_closed_log_without_its_last_batch_has_lost_no_record() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    write(&mut writer, 3);
    // Fills the segment to its end.
    let left = |writer: &TestWriter| (SEGMENT_BYTES - writer.offset) as usize;
    let bytes = vec![7; left(&writer) - 512];
    writer.sync_then_batch(&[&bytes]);
    assert!(writer.header.epoch == 1 && left(&writer) < 512, "{}", left(&writer));
    let last = writer.next_lsn - 1;
    writer.close();
    store.remove(&segment_name(2)).expect("it is there");
    let report = verify_store(&*store).expect("a log");
    assert!(report.is_whole(), "{:?}", report.findings);
    assert_eq!(report.last_lsn.get(), last);
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    assert!(open(&store.copy(512), SEGMENT_BYTES).is_ok());
}
