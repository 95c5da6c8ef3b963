//! Recovery on hand-made logs: bounds, odd states, hostile bytes. What a crash of recovery itself
//! leaves: [`crashes`]. Sector by sector: [`sectors`]. After trims, truncations, recycling and clean
//! ends: [`trims`], [`generations`], [`lives`].

mod crashes;
mod generations;
mod leftovers;
mod lives;
mod sectors;
mod trims;

use std::sync::Arc;

use proptest::prelude::*;

use super::{SegmentState, inspect};
use crate::disk::Store;
use crate::error::OpenError;
use crate::frame::segment_name;
use crate::lsn::Lsn;
use crate::mark::MARK_NAME;
use crate::read::Reader;
use crate::segment::spare_name;
use crate::testing::{MemStore, Seeded, TestWriter, open};

const SEGMENT_BYTES: u64 = 64 << 10;

/// All records up to `last`, by a reader.
fn records(store: &Arc<MemStore>, last: u64) -> Vec<(u64, Vec<u8>)> {
    let store: Arc<dyn Store> = store.clone();
    let reader = Reader::new(store, Box::new(move || last), Lsn::NONE).expect("a reader");
    reader
        .map(|record| record.map(|(lsn, payload)| (lsn.get(), payload)).expect("intact records"))
        .collect()
}

fn payload(lsn: u64, bytes: usize) -> Vec<u8> {
    let random = Seeded::new(lsn);
    (0..bytes).map(|_| random.draw() as u8).collect()
}

/// A log of `vouched` + `rest` records, one a batch, of which the last `rest` are vouched by nobody.
fn crashed(store: &Arc<MemStore>, vouched: u64, rest: u64, bytes: usize) {
    let mut writer = TestWriter::open(store, SEGMENT_BYTES);
    writer.prepare(2);
    for _ in 0..vouched {
        writer.sync_then_batch(&[&payload(writer.next_lsn, bytes)]);
    }
    if vouched > 0 && rest == 0 {
        writer.sync_then_batch(&[]);
    }
    if rest > 0 {
        writer.sync_then_batch(&[&payload(writer.next_lsn, bytes)]);
    }
    for _ in 1..rest {
        writer.batch(&[&payload(writer.next_lsn, bytes)]);
    }
    writer.prepare(2);
}

fn check(store: &Arc<MemStore>, last: u64, bytes: usize) {
    let found = records(store, last);
    assert_eq!(found.len() as u64, last);
    for (index, (lsn, found)) in found.iter().enumerate() {
        assert_eq!(*lsn, index as u64 + 1);
        assert_eq!(*found, payload(*lsn, bytes), "record {lsn}");
    }
}

#[test]
fn a_new_log_opens_empty_and_again_in_place() {
    let store = MemStore::new(4096);
    let report = open(&store, SEGMENT_BYTES).expect("opens").report;
    assert!(report.created && report.clean);
    let again = open(&store, SEGMENT_BYTES).expect("opens");
    assert!(again.report.clean && !again.report.created);
    assert_eq!((again.next_lsn, again.offset, again.live.header.epoch), (1, 8192, 1));
    assert_eq!(store.names(), [segment_name(1), MARK_NAME.to_owned()]);
}

#[test]
fn without_leave_to_create_an_empty_directory_is_not_found() {
    let store = MemStore::new(4096);
    let dyn_store: Arc<dyn Store> = store.clone();
    let entropy = || Ok(1);
    let config = super::RecoverConfig {
        create: false,
        segment_bytes: SEGMENT_BYTES,
        wall_now_ns: 0,
        entropy: &entropy,
    };
    assert!(matches!(super::recover(&dyn_store, &config), Err(OpenError::NotFound { .. })));
    assert!(store.names().is_empty());
}

#[test]
fn a_clean_close_resumes_in_place_and_a_thousand_opens_stay_bounded() {
    let store = MemStore::new(4096);
    for round in 1..=1000 {
        let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
        assert_eq!(writer.next_lsn, round);
        writer.prepare(2);
        writer.batch(&[&payload(round, 100)]);
        writer.close();
    }
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    assert!(recovered.report.clean);
    assert_eq!(recovered.report.ready_segments, 2);
    check(&store, 1000, 100);
    // Two blocks a round, 14 to a segment, and what stands ready.
    assert!(store.names().len() <= 1000 / 7 + 4, "{}", store.names().len());
}

#[test]
fn opens_without_records_add_nothing() {
    let store = MemStore::new(4096);
    crashed(&store, 3, 0, 100);
    let offset = open(&store, SEGMENT_BYTES).expect("opens").offset;
    for _ in 0..100 {
        let recovered = open(&store, SEGMENT_BYTES).expect("opens");
        assert!(recovered.report.clean);
        assert_eq!(recovered.offset, offset);
    }
}

#[test]
fn a_thousand_crashes_stay_bounded() {
    let store = MemStore::new(4096);
    for round in 1..=1000 {
        let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
        assert_eq!(writer.next_lsn, round);
        writer.prepare(2);
        writer.batch(&[&payload(round, 100)]);
    }
    let last = open(&store, SEGMENT_BYTES).expect("opens").next_lsn - 1;
    assert_eq!(last, 1000);
    check(&store, 1000, 100);
    // Each crash leaves two header blocks, one record, and one vouching batch.
    let whole = 4 * SEGMENT_BYTES as usize;
    assert!(store.total_bytes() <= 1000 * 5 * 4096 + whole, "{}", store.total_bytes());

    // Crashes that leave nothing but a torn tail leave nothing behind.
    let (files, bytes) = (store.names().len(), store.total_bytes());
    for _ in 0..100 {
        let recovered = open(&store, SEGMENT_BYTES).expect("opens");
        let name = segment_name(recovered.live.header.epoch);
        store.alter(&name, recovered.offset as usize, 512, |_| 0xAA);
        let recovered = open(&store, SEGMENT_BYTES).expect("opens");
        assert!(!recovered.report.clean && recovered.report.torn.is_some());
    }
    assert!(store.names().len() <= files + 1, "{} after {files}", store.names().len());
    assert!(store.total_bytes() <= bytes + whole);
    check(&store, 1000, 100);
}

#[test]
fn what_nothing_vouches_for_is_kept_and_written_again() {
    let store = MemStore::new(4096);
    crashed(&store, 3, 2, 5000);
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    let report = &recovered.report;
    assert!(!report.clean);
    assert_eq!((report.vouched_lsn.get(), report.last_lsn.get()), (3, 5));
    assert_eq!(report.rewritten_records, 2);
    assert_eq!(report.torn, None);
    assert_eq!(recovered.live.header.epoch, 2);
    assert_eq!(recovered.ready.len(), 1);
    // The superseded segment is cut to what counts: two header blocks, three batches of two blocks.
    assert_eq!(store.bytes(&segment_name(1)).len(), 8 * 4096);
    check(&store, 5, 5000);
    let again = open(&store, SEGMENT_BYTES).expect("opens");
    assert!(again.report.clean);
    assert_eq!((again.next_lsn, again.offset), (recovered.next_lsn, recovered.offset));
}

#[test]
fn a_lost_vouched_batch_under_several_writes_is_damage() {
    let store = MemStore::new(4096);
    crashed(&store, 5, 0, 40_000);
    store.alter(&segment_name(3), 8192, 4096, |_| 0);
    // The tail's first batch starts at the end of what is vouched for: opening reads no further.
    open(&store.copy(4096), SEGMENT_BYTES).expect("opens");
    store.alter(&segment_name(5), 8192, 4096, |_| 0);
    let Err(OpenError::Damaged(damage)) = open(&store, SEGMENT_BYTES) else {
        panic!("damage is not seen")
    };
    assert_eq!(damage.segment.file_name().and_then(|n| n.to_str()), Some(&*segment_name(5)));
    assert_eq!((damage.offset, damage.lost), (8192, Some((Lsn::new(5), Lsn::new(5)))));
}

#[test]
fn damage_to_what_recovery_wrote_is_never_torn() {
    let store = MemStore::new(4096);
    crashed(&store, 3, 1, 100);
    open(&store, SEGMENT_BYTES).expect("opens");
    let name = segment_name(2);
    let lost = Some((Lsn::new(4), Lsn::new(4)));
    // The batch with record 4, then also the one that vouches for it: then nothing tells what was
    // lost, but something was.
    for (offset, lost) in [(8192, lost), (12288, None)] {
        store.alter(&name, offset, 512, |byte| !byte);
        let Err(OpenError::Damaged(damage)) = open(&store, SEGMENT_BYTES) else {
            panic!("damage is not seen")
        };
        assert_eq!((damage.offset, damage.lost), (8192, lost));
        assert!(damage.segment.ends_with(&name));
    }
}

#[test]
fn what_stands_behind_the_superseded_end_never_counts() {
    let store = MemStore::new(4096);
    crashed(&store, 3, 1, 100);
    // A batch that recovery did not find, and that turns up later.
    let late = MemStore::new(4096);
    crashed(&late, 3, 2, 100);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.sync_then_batch(&[&payload(5, 200)]);
    writer.close();
    store.put(&segment_name(1), late.bytes(&segment_name(1)));
    let found = records(&store, 5);
    assert_eq!(found[4].1, payload(5, 200));
    assert!(open(&store, SEGMENT_BYTES).expect("opens").report.clean);
    assert_eq!(store.bytes(&segment_name(1)).len(), 5 * 4096);
}

#[test]
fn a_missing_segment_is_damage_and_a_foreign_one_is_not_touched() {
    let store = MemStore::new(4096);
    crashed(&store, 5, 0, 40_000);
    let copy = store.copy(4096);
    copy.remove(&segment_name(2)).expect("removes");
    match open(&copy, SEGMENT_BYTES).map(drop) {
        Err(OpenError::Damaged(damage)) => {
            assert!(damage.segment.ends_with(segment_name(2)), "{damage}");
        }
        other => panic!("not told: {other:?}"),
    }

    let other = MemStore::new(4096);
    other.put("x", vec![0; 99]);
    crashed(&other, 0, 0, 10);
    let copy = store.copy(4096);
    copy.put(&segment_name(8), other.bytes(&segment_name(1)));
    let before = copy.total_bytes();
    assert!(matches!(open(&copy, SEGMENT_BYTES), Err(OpenError::Foreign { .. })));
    assert_eq!(copy.total_bytes(), before);
}

#[test]
fn a_device_with_a_larger_block_continues_in_a_fresh_segment() {
    let small = MemStore::new(512);
    crashed(&small, 5, 2, 700);
    for close_first in [false, true] {
        let small = small.copy(512);
        if close_first {
            open(&small, SEGMENT_BYTES).expect("opens");
        }
        let store = small.copy(4096);
        let recovered = open(&store, SEGMENT_BYTES).expect("opens");
        assert_eq!(recovered.live.header.block_bytes, 4096);
        assert!(recovered.ready.is_empty());
        check(&store, 7, 700);
        assert!(open(&store, SEGMENT_BYTES).expect("opens").report.clean);
        // And back: a larger block than needed is kept.
        let back = open(&store.copy(512), SEGMENT_BYTES).expect("opens");
        assert!(back.report.clean);
        assert_eq!(back.live.header.block_bytes, 4096);
    }
}

#[test]
fn more_unvouched_than_a_segment_takes_goes_into_a_larger_one() {
    let store = MemStore::new(4096);
    crashed(&store, 2, 40, 5000);
    let recovered = open(&store, SEGMENT_BYTES).expect("opens");
    assert!(recovered.live.header.segment_bytes > SEGMENT_BYTES);
    assert_eq!(recovered.report.rewritten_records, 40);
    check(&store, 42, 5000);
    let mut writer = TestWriter::new(&store, SEGMENT_BYTES, recovered);
    writer.sync_then_batch(&[&payload(43, 5000)]);
    writer.close();
    check(&store, 43, 5000);
}

#[test]
fn ready_segments_of_another_size_are_replaced() {
    let store = MemStore::new(4096);
    crashed(&store, 2, 0, 100);
    assert_eq!(store.names().len(), 4);
    let recovered = open(&store, 2 * SEGMENT_BYTES).expect("opens");
    assert!(recovered.report.clean && recovered.ready.is_empty());
    let spares = [2, 3].map(|epoch| (spare_name(epoch, 0), SEGMENT_BYTES));
    assert_eq!(recovered.spares, spares);
    let (segments, others): (Vec<_>, Vec<_>) =
        store.names().into_iter().partition(|name| name.ends_with(".seg"));
    assert_eq!(segments, [segment_name(1)]);
    assert_eq!(others, [spare_name(2, 0), spare_name(3, 0), MARK_NAME.to_owned()]);
}

#[test]
fn inspection_changes_nothing_and_tells_the_segments() {
    let store = MemStore::new(4096);
    assert!(inspect(&*store).is_err());
    crashed(&store, 16, 1, 4000);
    store.stop_after(0);
    let seen = inspect(&*store).expect("a log");
    assert_eq!((seen.first_lsn.get(), seen.vouched_lsn.get(), seen.last_lsn.get()), (1, 16, 17));
    assert_eq!(seen.torn, None);
    let rows: Vec<_> = seen
        .segments
        .iter()
        .map(|s| (s.epoch, s.first_lsn.map(Lsn::get), s.last_lsn.map(Lsn::get), s.state))
        .collect();
    let (sealed, live, ready) = (SegmentState::Sealed, SegmentState::Live, SegmentState::Ready);
    assert_eq!(
        rows,
        [
            (1, Some(1), Some(7), sealed),
            (2, Some(8), Some(14), sealed),
            (3, Some(15), Some(17), live),
            (4, None, None, ready),
            (5, None, None, ready),
        ]
    );
    assert_eq!(seen.segments[2].used_bytes, (2 + 3 * 2) * 4096);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is written comes back, in whatever batches, over closes and crashes.
    #[test]
    fn random_logs_come_back(
        lives in prop::collection::vec(
            (prop::collection::vec(prop::collection::vec(0usize..9000, 0..4), 0..12), 0u8..3),
            1..5,
        ),
        block_bits in 9u32..13,
    ) {
        let store = MemStore::new(1 << block_bits);
        let mut next = 1;
        let mut sizes = Vec::new();
        for (batches, end) in lives {
            let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
            prop_assert_eq!(writer.next_lsn, next);
            for batch in batches {
                let payloads: Vec<_> =
                    batch.iter().zip(next..).map(|(&bytes, lsn)| payload(lsn, bytes)).collect();
                next += payloads.len() as u64;
                sizes.extend(batch);
                writer.sync_then_batch(&payloads.iter().map(|p| &**p).collect::<Vec<_>>());
            }
            match end {
                0 => writer.close(),
                1 => {}
                _ => {
                    let name = segment_name(writer.header.epoch);
                    if writer.offset + 512 <= SEGMENT_BYTES {
                        store.alter(&name, writer.offset as usize, 512, |_| 0x5A);
                    }
                }
            }
        }
        open(&store, SEGMENT_BYTES).expect("opens");
        let found = records(&store, next - 1);
        prop_assert_eq!(found.len(), sizes.len());
        for ((lsn, found), bytes) in found.into_iter().zip(sizes) {
            prop_assert_eq!(found, payload(lsn, bytes));
        }
    }

    /// Random damage anywhere never panics, never loops, and never gives a wrong record.
    #[test]
    fn hostile_bytes_give_errors_or_the_truth(
        hits in prop::collection::vec((1u64..4, 0usize..(SEGMENT_BYTES as usize - 64), any::<u64>()), 1..6),
        cut in prop::option::of((1u64..4, 0usize..SEGMENT_BYTES as usize)),
    ) {
        let store = MemStore::new(512);
        crashed(&store, 60, 2, 1000);
        for (epoch, offset, seed) in hits {
            let random = Seeded::new(seed);
            let len = 1 + (seed % 64) as usize;
            store.alter(&segment_name(epoch), offset, len, |_| random.draw() as u8);
        }
        if let Some((epoch, len)) = cut {
            let mut bytes = store.bytes(&segment_name(epoch));
            bytes.truncate(len);
            store.put(&segment_name(epoch), bytes);
        }
        inspect(&*store).ok();
        let last = open(&store, SEGMENT_BYTES).map_or(62, |recovered| recovered.next_lsn - 1);
        let dyn_store: Arc<dyn Store> = store.clone();
        for from in [0, 1, 30, 61] {
            let Ok(reader) = Reader::new(dyn_store.clone(), Box::new(move || last), Lsn::new(from))
            else { continue };
            for (lsn, found) in reader.map_while(Result::ok) {
                prop_assert_eq!(found, payload(lsn.get(), 1000));
            }
        }
    }

    /// A segment of nothing but random bytes under a valid header, or without one.
    #[test]
    fn garbage_segments_never_panic(seed: u64, header: bool, blocks in 0usize..20) {
        let store = MemStore::new(512);
        crashed(&store, 3, 0, 10);
        let random = Seeded::new(seed);
        let mut bytes: Vec<u8> = (0..blocks * 512).map(|_| random.draw() as u8).collect();
        let name = segment_name(1 + seed % 3);
        if header {
            let whole = store.bytes(&name);
            bytes = whole[..1024].iter().copied().chain(bytes).collect();
        }
        store.put(&name, bytes);
        inspect(&*store).ok();
        open(&store, SEGMENT_BYTES).ok();
    }
}
