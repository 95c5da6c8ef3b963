//! Recovery is cut short between any two of its changes, and what it changes has the right order.

use std::sync::Arc;

use super::{SEGMENT_BYTES, check, crashed, payload};
use crate::frame::segment_name;
use crate::mark::MARK_NAME;
use crate::segment::spare_name;
use crate::testing::{MemStore, TestWriter, open};

/// Logs that a crash left in different states, the number of records that must survive, and the
/// size of each.
fn images() -> Vec<(Arc<MemStore>, u64, usize)> {
    let mut images = Vec::new();
    for (vouched, rest, bytes) in [
        (0, 0, 10),
        (0, 1, 10),
        (5, 0, 100),
        (5, 3, 100),
        (14, 0, 4000),
        (13, 1, 4000),
        (3, 2, 20000),
    ] {
        let store = MemStore::new(4096);
        crashed(&store, vouched, rest, bytes);
        images.push((store, vouched + rest, bytes));
    }
    // A torn write behind the end.
    let store = MemStore::new(4096);
    crashed(&store, 4, 1, 100);
    store.alter(&segment_name(1), 40960, 512, |_| 0x55);
    images.push((store, 5, 100));
    // Several writes under way, each in a segment of its own; one of them was lost.
    for torn in 1..=4u64 {
        let store = MemStore::new(4096);
        crashed(&store, 0, 5, 40_000);
        store.alter(&segment_name(torn), 8192, 4096, |_| 0);
        images.push((store, torn - 1, 40_000));
    }
    // The last segment was superseded before, and again nothing in it counts.
    let store = MemStore::new(4096);
    crashed(&store, 4, 1, 100);
    open(&store, SEGMENT_BYTES).expect("opens");
    store.alter(&segment_name(2), 20480, 512, |_| 0x55);
    images.push((store, 5, 100));
    images
}

#[test]
fn a_crash_between_any_two_changes_of_recovery_is_recovered() {
    for (image, (store, last, bytes)) in images().into_iter().enumerate() {
        let mut changes = 0;
        loop {
            let copy = store.copy(4096);
            copy.stop_after(changes);
            let finished = open(&copy, SEGMENT_BYTES).is_ok();
            // And a second one, in the midst of the next attempt.
            copy.stop_after(changes / 2);
            open(&copy, SEGMENT_BYTES).ok();
            copy.stop_after(i64::MAX);
            let recovered = open(&copy, SEGMENT_BYTES)
                .unwrap_or_else(|e| panic!("image {image}, {changes} changes: {e}"));
            assert_eq!(recovered.next_lsn - 1, last, "image {image}, {changes} changes");
            check(&copy, last, bytes);
            let mut writer = TestWriter::new(&copy, SEGMENT_BYTES, recovered);
            writer.sync_then_batch(&[&payload(last + 1, bytes)]);
            writer.close();
            let recovered = open(&copy, SEGMENT_BYTES).expect("opens");
            assert!(recovered.report.clean, "image {image}, {changes} changes");
            check(&copy, last + 1, bytes);
            assert!(copy.names().iter().all(|name| !name.ends_with(".tmp")));
            if finished {
                break;
            }
            changes += 1;
        }
        assert!(image == 0 || changes > 1, "image {image} changes nothing");
    }
}

/// Names are made durable in the order in which they must not be missed. A store that loses any of
/// the changes that were not synced is the simulated disk's matter; this is the order itself.
#[test]
fn names_change_in_an_order_that_no_crash_can_mistake() {
    let store = MemStore::new(4096);
    crashed(&store, 0, 5, 40_000);
    store.alter(&segment_name(2), 8192, 4096, |_| 0);
    store.take_names_done();
    open(&store, SEGMENT_BYTES).expect("opens");
    let name = |verb: &str, epoch| format!("{verb} {}", segment_name(epoch));
    let sync = || "sync".to_owned();
    let mut expected = vec![
        // What a killed process renamed may not be durable yet.
        sync(),
        // The fresh segment, which holds record 1: only then the segments that it supersedes, each
        // gone for good before the one below it, so that no gap can be seen below a segment.
        name("rename", 1),
        sync(),
    ];
    for epoch in [7, 6, 5, 4, 3, 2] {
        expected.extend([format!("rename {}", spare_name(epoch, 0)), sync()]);
    }
    assert_eq!(store.take_names_done(), expected);
}

/// Nothing vouches for the empty batch at a clean end, and the next batch links to it: opening must
/// not succeed before it is written again and synced.
#[test]
fn the_empty_batch_at_a_clean_end_is_written_again_and_synced() {
    let store = MemStore::new(4096);
    crashed(&store, 3, 0, 100);
    // The directory is synced, each slot of the mark written and synced, the batch written, the file synced.
    for changes in 0..7 {
        let copy = store.copy(4096);
        copy.stop_after(changes);
        assert!(open(&copy, SEGMENT_BYTES).is_err(), "{changes} changes");
    }
    let copy = store.copy(4096);
    copy.stop_after(7);
    assert!(open(&copy, SEGMENT_BYTES).expect("seven changes are enough").report.clean);
    for name in store.names().iter().filter(|name| *name != MARK_NAME) {
        assert_eq!(copy.bytes(name), store.bytes(name), "the same bytes are written");
    }
}
