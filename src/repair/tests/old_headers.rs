//! Segments under the header that their file had in an earlier life, where the write of the new one was lost. It must
//! not count, nor what it vouches for: a truncation cut that off.
//!
//! A log makes no segment of the file that had its number before (`spares.rs`), so the writer here does what it
//! would not.

use super::*;
use crate::error::ReadError;
use crate::frame::segment_name;
use crate::recovery::first_lsn_of;
use crate::segment::Segment;
use crate::testing::TestWriter;
use crate::verify::tests::write;

fn fill_upto(writer: &mut TestWriter, epoch: u64) {
    while writer.header.epoch < epoch {
        write(writer, 3);
    }
    write(writer, 2);
}

/// Makes the segments up to `last` of the files that had their numbers before.
fn recycle_upto(store: &MemStore, writer: &mut TestWriter, last: u64) {
    for epoch in writer.header.epoch + 1 + writer.ready.len() as u64..=last {
        let prefix = format!("{epoch:020}-");
        let spare = store.names().into_iter().find(|name| name.starts_with(&prefix));
        writer.recycle(&spare.expect("what was cut"));
    }
}

fn refusal(store: &Arc<MemStore>, what: &str) -> String {
    open(store, SEGMENT_BYTES).map(|_| ()).expect_err(what).to_string()
}

/// What the log was, where the truncation began, and how it ended.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// The segment whose header was lost.
    at: u64,
    /// Whether it had batches before the truncation, and after it.
    used: (bool, bool),
    /// The segment that the truncation began with is trimmed by now.
    trimmed: bool,
    closed: bool,
}

/// Returns the log, and its first and last record.
fn log_of(case: Case) -> (Arc<MemStore>, u64, u64) {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    fill_upto(&mut writer, if case.used.0 { 4 } else { 3 });
    writer.prepare(2);
    let old = store.bytes(&segment_name(case.at));
    writer.truncate(20).expect("it is truncated");
    assert_eq!((writer.header.epoch, writer.header.generation), (2, 1), "{case:?}");
    recycle_upto(&store, &mut writer, 4);
    writer.prepare(3);
    fill_upto(&mut writer, if case.used.1 { 4 } else { 3 });
    let mut first = 1;
    if case.trimmed {
        let (third, _) = Segment::open(&*store, 3).expect("it is there");
        first = first_lsn_of(&*store, &third).expect("it is read").expect("it is used");
        writer.trim(3, first).expect("it is trimmed");
    }
    write(&mut writer, 0);
    let last = writer.next_lsn - 1;
    match case.closed {
        true => writer.close(),
        false => drop(writer),
    }
    match case.used.1 {
        true => store.splice(&segment_name(case.at), 0, &old[..1024]),
        false => store.put(&segment_name(case.at), old),
    }
    (store, first, last)
}

/// The last file of all would be taken for one that was not given up yet, and is: so one stands behind it.
#[test]
fn an_old_header_is_damage_and_no_record_is_lost_by_it() {
    for (used, trimmed, closed) in [(false, false), (true, false), (false, true), (true, true)]
        .into_iter()
        .flat_map(|used| [(used, false, false), (used, true, false), (used, true, true)])
    {
        let case = Case { at: 4, used, trimmed, closed };
        let what = format!("{case:?}");
        let (store, first, last) = log_of(case);
        let refused = refusal(&store, &what);
        assert!(refused.contains("that began generation 1"), "{what}: {refused}");
        let found = verify_store(&*store).expect("a log");
        assert!(found.is_damaged(), "{what}: {:?}", found.findings);
        assert_eq!((found.last_lsn.get(), found.records), (last, last + 1 - first), "{what}");
        let (repaired, _) = repair(&store, Keep::Before).expect("it is repaired");
        assert!(repaired.after.is_some_and(|after| after.is_whole()), "{what}");
        check_opens(&store, first, last, &what);
    }
}

/// It stands before the last segment with batches, where an opening does not look.
#[test]
fn a_reader_finds_an_old_header() {
    let case = Case { at: 3, used: (true, true), trimmed: false, closed: false };
    let (store, _, last) = log_of(case);
    let dyn_store: Arc<dyn Store> = store.copy(512);
    let reader = Reader::new(dyn_store, Box::new(move || last), Lsn::NONE);
    let damaged = reader.expect("a reader").find_map(|record| record.err());
    assert!(matches!(damaged, Some(ReadError::Damaged(_))), "{damaged:?}");
    let found = verify_store(&*store).expect("a log");
    assert!(found.is_damaged(), "{:?}", found.findings);
    repair(&store, Keep::Before).expect("it is repaired");
    check_opens(&store, 1, last, "repaired");
}

/// What two truncations cut, one after the other, from under one number: the batches of the first life stand there still
/// where the second life's header is found in place of the third's.
#[test]
fn what_an_even_earlier_life_left_is_not_of_the_log() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    fill_upto(&mut writer, 4);
    for _ in 0..5 {
        write(&mut writer, 3);
    }
    writer.prepare(1);
    writer.truncate(20).expect("it is truncated");
    recycle_upto(&store, &mut writer, 5);
    fill_upto(&mut writer, 4);
    let second = store.bytes(&segment_name(4));
    writer.truncate(25).expect("it is truncated");
    assert_eq!(writer.header.epoch, 3);
    recycle_upto(&store, &mut writer, 5);
    write(&mut writer, 2);
    write(&mut writer, 0);
    let last = writer.next_lsn - 1;
    drop(writer);
    store.splice(&segment_name(4), 0, &second[..1024]);
    let refused = refusal(&store, "an old header");
    assert!(refused.contains("that began generation 2"), "{refused}");
    let found = verify_store(&*store).expect("a log");
    assert_eq!((found.last_lsn.get(), found.vouched_lsn.get()), (last, last), "{found:?}");
    let mut seen = 0;
    salvage_store(&*store, |record| {
        seen = record.lsn().get();
        true
    })
    .expect("a log");
    assert_eq!(seen, last, "salvage hands out what was cut");
    repair(&store, Keep::Before).expect("it is repaired");
    check_opens(&store, 1, last, "repaired");
}

/// Both copies of a header are intact, and one is that of an earlier life: it would count if the other went bad.
#[test]
fn copies_that_differ_are_mended() {
    let (store, _, last) =
        log_of(Case { at: 3, used: (true, true), trimmed: false, closed: false });
    let old = store.bytes(&segment_name(3))[..512].to_vec();
    repair(&store, Keep::Before).expect("it is repaired");
    store.splice(&segment_name(3), 512, &old);
    let found = verify_store(&*store).expect("a log");
    assert!(!found.is_damaged() && !found.is_whole(), "{:?}", found.findings);
    let (report, _) = repair(&store, Keep::Before).expect("it is repaired");
    assert!(report.after.is_some_and(|after| after.is_whole()));
    check_opens(&store, 1, last, "repaired");
}
