//! A repair is cut short between any two of its changes.

use super::*;

/// The states in which a repair may leave a log: as before, or repaired.
fn cut_short(image: &Image, damaged: &Arc<MemStore>, step: usize, what: &str) {
    let block = damaged.facts().block_bytes;
    let whole = damaged.copy(block);
    let Ok((expected, _)) = repair(&whole, Keep::Before) else { return };
    let (first, last) = (expected.first_lsn.get(), expected.last_lsn.get());
    for changes in (0..).step_by(step) {
        let what = format!("{what}, {changes} changes");
        let store = damaged.copy(block);
        store.stop_after(changes);
        let finished = repair(&store, Keep::Before).is_ok();
        store.stop_after(i64::MAX);
        let copy = store.copy(block);
        // An error says so, and otherwise the log is what it was or what it will be.
        if let Ok(recovered) = open(&copy, SEGMENT_BYTES) {
            let now = (recovered.report.first_lsn.get(), recovered.next_lsn - 1);
            assert!(
                // The mark may be there again, and the cut not made yet.
                now == (first, last)
                    || now == (image.first, image.last)
                    || now == (first, image.last),
                "{what}: {now:?}, not {first} to {last}"
            );
        }
        let (again, _) = repair(&store, Keep::Before).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!((again.first_lsn.get(), again.last_lsn.get()), (first, last), "{what}");
        check_opens(&store, first, last, &what);
        if finished {
            return;
        }
    }
}

#[test]
fn a_repair_cut_short_anywhere_is_done_by_the_next() {
    for seed in 0..8 {
        let image = image(seed);
        let block = image.store.facts().block_bytes;
        let random = Seeded::new(seed);
        for round in 0..4 {
            let damaged = image.store.copy(block);
            let batch = image.batches[random.draw() as usize % image.batches.len()];
            let name = crate::frame::segment_name(batch.epoch);
            match round {
                0 | 1 => {
                    spoil(&damaged, &name, batch.offset as usize, 0);
                }
                2 => damaged.alter(&name, 0, 2 * block, |_| 0),
                _ => {
                    damaged.alter(MARK_NAME, 0, 512, |byte| !byte);
                    damaged.alter(MARK_NAME, 65536, 512, |byte| !byte);
                    spoil(&damaged, &name, batch.offset as usize, 0);
                }
            }
            // Every boundary of some logs, and one in three of the others.
            let step = if seed < 3 { 1 } else { 3 };
            cut_short(&image, &damaged, step, &format!("seed {seed}, round {round}, {name}"));
        }
    }
}

/// By the mark alone it is known that the end is lost: until the cut stands, no opening may miss it.
#[test]
fn a_closed_log_without_its_end_is_not_opened_shorter_before_it_is_cut() {
    let image = crate::verify::tests::files::log(3);
    let of_three = || image.batches.iter().filter(|batch| batch.epoch == 3);
    let damages: [&dyn Fn(&MemStore); 2] =
        [&|store| store.remove(&crate::frame::segment_name(3)).expect("it is there"), &|store| {
            let name = crate::frame::segment_name(3);
            let from = of_three().next().expect("there is one").offset as usize;
            store.alter(&name, from, SEGMENT_BYTES as usize - from, |_| 0);
        }];
    for (n, damage) in damages.iter().enumerate() {
        let damaged = image.store.copy(512);
        damage(&damaged);
        assert!(open(&damaged.copy(512), SEGMENT_BYTES).is_err(), "{n}");
        let last = of_three().next().expect("there is one").first - 1;
        for changes in 0.. {
            let what = format!("case {n}, {changes} changes");
            let store = damaged.copy(512);
            store.stop_after(changes);
            let finished = repair(&store, Keep::Before).is_ok();
            store.stop_after(i64::MAX);
            let copy = store.copy(512);
            if open(&copy, SEGMENT_BYTES).is_ok() {
                let report = verify_store(&*copy).expect("a log");
                assert!(report.generation > 0, "{what}: shorter, and not truncated");
            }
            let (again, _) = repair(&store, Keep::Before).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(again.steps.is_empty() || again.after.is_some_and(|after| after.is_whole()));
            check_opens(&store, 1, last, &what);
            if finished {
                break;
            }
        }
    }
}
