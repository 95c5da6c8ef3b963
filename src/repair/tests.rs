//! Damaged logs are repaired, and nothing is lost by that which was not lost before.

mod crashes;
mod findings;
mod old_headers;

use std::path::PathBuf;
use std::sync::Arc;

use super::plan::Plan;
use super::{Keep, RepairError, RepairReport, keep::NOTE_NAME, repair_store};
use crate::disk::Store;
use crate::frame::parse_segment_name;
use crate::lsn::Lsn;
use crate::mark::MARK_NAME;
use crate::read::Reader;
use crate::testing::{MemStore, Seeded, open};
use crate::verify::tests::{Image, SEGMENT_BYTES, image, lost_numbers, numbers, payload, spoil};
use crate::verify::{salvage_store, verify_store};

/// Repairs; gives the copy too.
fn repair(store: &Arc<MemStore>, keep: Keep) -> Result<(RepairReport, Arc<MemStore>), RepairError> {
    let plan = Plan::make(&**store, keep)?;
    let mut report = plan.report(&**store, PathBuf::from("kept"));
    let kept = store.beside();
    if !plan.is_empty() {
        report.after = Some(repair_store(&**store, &*kept, &plan, &report)?);
    }
    Ok((report, kept))
}

/// All records, by a reader, after an opening.
fn check_opens(store: &Arc<MemStore>, first: u64, last: u64, what: &str) {
    let recovered = open(store, SEGMENT_BYTES).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(recovered.next_lsn - 1, last, "{what}");
    assert_eq!(recovered.report.first_lsn.get(), first, "{what}");
    let dyn_store: Arc<dyn Store> = store.clone();
    let reader = Reader::new(dyn_store, Box::new(move || last), Lsn::NONE).expect("a reader");
    let mut next = first;
    for record in reader {
        let (lsn, bytes) = record.unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(lsn.get(), next, "{what}");
        assert_eq!(bytes, payload(next), "{what}: record {next}");
        next += 1;
    }
    assert_eq!(next, last + 1, "{what}");
    let report = verify_store(&**store).expect("a log");
    assert!(report.is_whole(), "{what}: {:?}", report.findings);
}

/// The copy undoes the repair.
fn check_undo(
    damaged: &MemStore,
    repaired: &MemStore,
    report: &RepairReport,
    kept: &MemStore,
    what: &str,
) {
    let names = kept.names();
    assert!(names.iter().any(|name| name == NOTE_NAME), "{what}");
    let undone = repaired.copy(512);
    for name in &report.made {
        undone.remove(name).expect("it is there");
    }
    for name in names.iter().filter(|name| *name != NOTE_NAME) {
        assert_eq!(kept.bytes(name), damaged.bytes(name), "{what}: {name}");
        undone.put(name, kept.bytes(name));
    }
    let of_log = |name: &String| !name.ends_with(".tmp");
    let all =
        |store: &MemStore| -> Vec<String> { store.names().into_iter().filter(of_log).collect() };
    let note = String::from_utf8(kept.bytes(NOTE_NAME)).expect("it is text");
    for name in &report.made {
        assert!(note.contains(&format!("remove {name} from the log\n")), "{what}: {note}");
    }
    assert_eq!(all(&undone), all(damaged), "{what}");
    for name in all(damaged) {
        assert!(undone.bytes(&name) == damaged.bytes(&name), "{what}: {name}");
    }
}

/// Everything that must hold of a repair. `image` is the log before the damage.
fn check(image: &Image, damaged: &Arc<MemStore>, keep: Keep, what: &str) {
    let found = verify_store(&**damaged).expect("a log");
    let store = damaged.copy(damaged.facts().block_bytes);
    let (report, kept) = match repair(&store, keep) {
        Err(RepairError::NothingBehind) => return,
        Err(RepairError::NothingBefore) => {
            assert!(keep == Keep::Before && !found.intact.is_empty(), "{what}");
            return;
        }
        other => other.unwrap_or_else(|e| panic!("{what}: {e}")),
    };
    assert_eq!(report.lost, found.lost, "{what}");
    let lost = lost_numbers(&found);
    let left = numbers(&report.leaving);
    let (first, last) = (report.first_lsn.get(), report.last_lsn.get());
    let mut all: Vec<u64> = lost.iter().chain(&left).copied().chain(first..=last).collect();
    all.sort_unstable();
    let expected = numbers(&found.intact);
    let mut whole: Vec<u64> = expected.iter().chain(&lost).copied().collect();
    whole.sort_unstable();
    assert_eq!(all, whole, "{what}: {report:?}");
    // What vouched for the last records may be gone with them; then that is damage, or nothing is lost.
    let vouched = match found.is_damaged() {
        true => found.vouched_lsn.get().min(image.vouched),
        false => image.vouched,
    };
    assert!((image.first..=vouched).all(|lsn| whole.contains(&lsn)), "{what}");
    if report.steps.is_empty() {
        assert!(found.is_whole(), "{what}: {:?}", found.findings);
        return;
    }
    let after = report.after.as_ref().expect("it was done");
    assert!(after.is_whole(), "{what}: {:?}", after.findings);
    assert_eq!(after.last_lsn.get(), last, "{what}: {report:?}, {:?}", found.findings);
    check_undo(damaged, &store, &report, &kept, what);
    // What left the log can be had from the copy.
    let mut got = Vec::new();
    let salvaged = salvage_store(&*kept, |record| {
        assert_eq!(record.payload(), payload(record.lsn().get()), "{what}");
        got.push(record.lsn().get());
        true
    });
    assert!(salvaged.is_ok() || left.is_empty(), "{what}");
    assert!(left.iter().all(|lsn| got.contains(lsn)), "{what}: {left:?} of {got:?}");
    check_opens(&store, first, last, what);
}

fn segments(image: &Image) -> Vec<String> {
    let names = image.store.names().into_iter();
    names.filter(|name| parse_segment_name(name).is_some()).collect()
}

#[test]
fn every_batch_damaged_and_repaired_both_ways() {
    for seed in 0..10 {
        let image = image(seed);
        let random = Seeded::new(seed + 99);
        for batch in &image.batches {
            let name = crate::frame::segment_name(batch.epoch);
            for keep in [Keep::Before, Keep::After] {
                let damaged = image.store.copy(image.store.facts().block_bytes);
                let sectors = (batch.end - batch.offset) / 512;
                let at = batch.offset + 512 * (random.draw() % sectors);
                let pattern = random.draw() as usize % 5;
                if spoil(&damaged, &name, at as usize, pattern) {
                    check(
                        &image,
                        &damaged,
                        keep,
                        &format!("seed {seed}, {name} at {at}, {pattern}, {keep:?}"),
                    );
                }
            }
        }
    }
}

#[test]
fn headers_files_and_several_places() {
    for seed in 0..24 {
        let image = image(seed);
        let block = image.store.facts().block_bytes;
        for name in segments(&image) {
            let of = |n: usize| format!("seed {seed}, {name}, case {n}");
            let damaged = |change: &dyn Fn(&MemStore)| {
                let copy = image.store.copy(block);
                change(&copy);
                copy
            };
            let both = |store: &MemStore| store.alter(&name, 0, 2 * block, |_| 0);
            let cases: [&dyn Fn(&MemStore); 5] = [
                &|store| store.alter(&name, 0, 512, |_| 7),
                &both,
                &|store| store.remove(&name).expect("it is there"),
                &|store| {
                    let mut bytes = store.bytes(&name);
                    bytes.truncate(bytes.len() / 2 / block * block);
                    store.put(&name, bytes);
                },
                &|store| store.put(&name, Vec::new()),
            ];
            for (n, case) in cases.iter().enumerate() {
                let store = damaged(*case);
                let highest = segments(&image).last() == Some(&name);
                // Without the highest there is nothing that tells of it.
                if n == 2 && highest {
                    continue;
                }
                for keep in [Keep::Before, Keep::After] {
                    check(&image, &store, keep, &of(n));
                }
            }
        }
    }
}

#[test]
fn the_mark_is_made_anew() {
    for seed in 0..24 {
        let image = image(seed);
        let block = image.store.facts().block_bytes;
        let damaged = image.store.copy(block);
        damaged.alter(MARK_NAME, 0, 512, |byte| !byte);
        damaged.alter(MARK_NAME, 65536, 512, |byte| !byte);
        let what = format!("seed {seed}");
        if seed % 2 == 0 && segments(&image)[0] != crate::frame::segment_name(1) {
            let gone = damaged.copy(block);
            gone.remove(MARK_NAME).expect("it is there");
            let store = gone.copy(block);
            let (report, kept) = repair(&store, Keep::Before).expect("it is repaired");
            assert!(report.made.contains(&MARK_NAME.to_owned()), "{what}: {report:?}");
            check_undo(&gone, &store, &report, &kept, &what);
        }
        let (report, kept) = repair(&damaged, Keep::Before).expect("it is repaired");
        assert!(report.lost.is_empty() && report.leaving.is_empty(), "{what}: {report:?}");
        assert!(kept.names().contains(&MARK_NAME.to_owned()));
        let first = report.first_lsn.get();
        assert!(first <= image.first, "{what}");
        check_opens(&damaged, first, report.last_lsn.get(), &what);
        assert_eq!(report.last_lsn.get(), image.last, "{what}");
    }
}

#[test]
fn a_mark_of_another_log_takes_nothing_away() {
    for seed in 0..12 {
        let image = image(seed);
        let damaged = image.store.copy(image.store.facts().block_bytes);
        // It may speak of a later start, and of truncations.
        let id = crate::frame::LogId([9; 16]);
        let other =
            crate::mark::Mark { first_epoch: 7, first_lsn: 900, ..crate::mark::Mark::new() };
        damaged.remove(MARK_NAME).ok();
        crate::mark::MarkFile::replace(&*damaged, id, other).expect("it is made");
        let what = format!("seed {seed}");
        let before = damaged.copy(image.store.facts().block_bytes);
        let found = verify_store(&*damaged).expect("a log");
        assert!(found.findings.iter().any(|f| f.detail.starts_with("it is of log 0909")), "{what}");
        assert!(found.is_damaged() && found.last_lsn.get() == image.last, "{what}: {found:?}");
        let (report, kept) = repair(&damaged, Keep::Before).expect("it is repaired");
        assert!(report.lost.is_empty() && report.leaving.is_empty(), "{what}: {report:?}");
        check_undo(&before, &damaged, &report, &kept, &what);
        let first = report.first_lsn.get();
        assert!(first <= image.first, "{what}");
        check_opens(&damaged, first, image.last, &what);
    }
}

#[test]
fn swapped_segments_get_their_names_back_wherever_that_is_cut_short() {
    let image = (0..).map(image).find(|image| segments(image).len() > 3).expect("there is one");
    let names = segments(&image);
    let damaged = image.store.copy(image.store.facts().block_bytes);
    let bytes = [damaged.bytes(&names[0]), damaged.bytes(&names[1])];
    damaged.put(&names[1], bytes[0].clone());
    damaged.put(&names[0], bytes[1].clone());
    // One alone, so that its own name is free.
    let moved = image.store.copy(image.store.facts().block_bytes);
    moved.rename(&names[1], &crate::frame::segment_name(99)).expect("it is there");
    let store = moved.copy(moved.facts().block_bytes);
    let (report, kept) = repair(&store, Keep::Before).expect("it is repaired");
    assert_eq!(report.made, [names[1].clone()]);
    check_undo(&moved, &store, &report, &kept, "moved");
    for changes in 0.. {
        let store = damaged.copy(damaged.facts().block_bytes);
        store.stop_after(changes);
        let finished = repair(&store, Keep::Before).is_ok();
        store.stop_after(i64::MAX);
        let (report, _) = repair(&store, Keep::Before).expect("it is repaired");
        assert!(report.lost.is_empty() && report.leaving.is_empty(), "{changes}: {report:?}");
        check_opens(&store, image.first, image.last, &format!("{changes} changes"));
        if finished {
            return;
        }
    }
}

#[test]
fn cursors_and_strays_are_put_right() {
    let image = image(2);
    let block = image.store.facts().block_bytes;
    let store = image.store.copy(block);
    let id = verify_store(&*store).expect("a log").log_id.expect("it has one");
    let position = image.last.to_le_bytes();
    let kind = crate::slots::Kind::Cursor;
    crate::slots::SlotFile::create(&*store, "a.cursor", kind, id, &position).expect("made");
    store.alter("a.cursor", 0, 512, |byte| !byte);
    let stray = crate::frame::segment_name(99);
    store.put(&stray, store.bytes(&segments(&image)[0]));
    let (report, kept) = repair(&store, Keep::Before).expect("it is repaired");
    assert!(report.after.as_ref().is_some_and(|after| after.is_whole()), "{report:?}");
    assert!(report.leaving.is_empty() && report.lost.is_empty());
    assert!(kept.names().contains(&stray) && !store.names().contains(&stray));
    let all = crate::cursor::examine(&*store, Some(id)).expect("it is read");
    assert_eq!(all[0].position, Some(image.first), "it holds what its consumer may need");
    check_opens(&store, image.first, image.last, "repaired");
}

#[test]
fn a_cut_names_the_cursors_that_it_sets_back() {
    let image = (0..).map(image).find(|image| segments(image).len() > 3).expect("there is one");
    let store = image.store.copy(image.store.facts().block_bytes);
    let id = verify_store(&*store).expect("a log").log_id.expect("it has one");
    for (file, position) in [("a.cursor", image.vouched), ("b.cursor", image.first)] {
        let kind = crate::slots::Kind::Cursor;
        let bytes = position.to_le_bytes();
        crate::slots::SlotFile::create(&*store, file, kind, id, &bytes).expect("made");
    }
    let hit = image.batches.iter().rev().find(|batch| batch.last + 2 < image.vouched);
    let hit = hit.expect("there is one");
    store.alter(&crate::frame::segment_name(hit.epoch), hit.offset as usize, 512, |byte| !byte);
    let (report, _) = repair(&store, Keep::Before).expect("it is repaired");
    let to = report.last_lsn.get() + 1;
    let moved: Vec<_> = report.steps.iter().filter(|s| s.file.ends_with("a.cursor")).collect();
    let says = format!("set back from {} to {to}", image.vouched);
    assert!(moved.len() == 1 && moved[0].what.contains(&says), "{report:?}");
    assert!(!report.steps.iter().any(|step| step.file.ends_with("b.cursor")), "{report:?}");
    let all = crate::cursor::examine(&*store, Some(id)).expect("it is read");
    assert_eq!((all[0].position, all[1].position), (Some(to), Some(image.first)));
}

#[test]
fn the_first_segment_gets_its_header_back_or_nothing_is_dropped_unasked() {
    let (mut rebuilt, mut refused) = (0, 0);
    for seed in 0..48 {
        let image = image(seed);
        let block = image.store.facts().block_bytes;
        let damaged = image.store.copy(block);
        damaged.alter(&segments(&image)[0], 0, 2 * block, |_| 0);
        let what = format!("seed {seed}");
        check(&image, &damaged, Keep::Before, &what);
        match repair(&damaged, Keep::Before) {
            Ok((report, _)) => {
                let any = !report.leaving.is_empty() && report.last_lsn >= report.first_lsn;
                assert!(!any, "{what}: {report:?}");
                rebuilt += u32::from(report.leaving.is_empty() && report.lost.is_empty());
            }
            Err(error) => {
                assert!(matches!(error, RepairError::NothingBefore), "{what}: {error}");
                refused += 1;
            }
        }
    }
    assert!(rebuilt > 10 && refused < rebuilt, "{rebuilt} rebuilt, {refused} refused");
}
