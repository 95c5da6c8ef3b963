//! One test for each rule of the fault model.

mod crashes;
mod faults;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::disk::{Access, Disk, Done, File, LockError, Op, OpKind, Store};
use crate::mem::AlignedBuf;
use crate::options::Options;

const BLOCK: u64 = 4096;
const SEEDS: u64 = 200;

fn machine(seed: u64) -> (SimDisk, Arc<dyn Store>) {
    let disk = SimDisk::new(seed, SimOptions { depth: 4, ..SimOptions::default() });
    let store = disk.store();
    (disk, store)
}

/// `blocks` blocks of `byte`.
fn block(byte: u8, blocks: u64) -> AlignedBuf {
    let mut buf = AlignedBuf::new((blocks * BLOCK) as usize).unwrap();
    buf.fill(byte);
    buf
}

/// A file of four blocks of 1, durable in all respects.
fn durable_file(store: &Arc<dyn Store>) -> Arc<dyn File> {
    let file = store.create("f").unwrap();
    file.allocate(4 * BLOCK).unwrap();
    file.write_at(0, &block(1, 4)).unwrap();
    file.sync().unwrap();
    store.sync_dir().unwrap();
    file
}

fn queue(store: &Arc<dyn Store>) -> Box<dyn Disk> {
    store.clone().disk(&Options::default()).unwrap().0
}

fn write(token: u64, file: &Arc<dyn File>, offset: u64, byte: u8, durable: bool) -> Op {
    let kind = OpKind::Write { offset, buf: block(byte, 1), len: BLOCK as usize, durable };
    Op { token, file: file.clone(), kind }
}

fn sync(token: u64, file: &Arc<dyn File>) -> Op {
    Op { token, file: file.clone(), kind: OpKind::Sync }
}

/// Reaps until `count` operations are done.
fn reap(queue: &mut dyn Disk, count: usize) -> Vec<Done> {
    let mut done = Vec::new();
    while done.len() < count {
        queue.reap(true, &mut done);
    }
    done
}

/// The sectors of `f` by their first byte, after a power cut.
fn sectors_after_crash(disk: &SimDisk) -> Vec<u8> {
    disk.restart();
    let bytes = disk.read_raw("f").unwrap();
    for sector in bytes.chunks(512) {
        assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is torn");
    }
    bytes.chunks(512).map(|sector| sector[0]).collect()
}

#[test]
fn an_unsynced_write_is_kept_dropped_or_torn() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        file.write_at(BLOCK, &block(2, 1)).unwrap();
        let sectors = sectors_after_crash(&disk);
        assert!(sectors[..8].iter().chain(&sectors[16..]).all(|byte| *byte == 1));
        outcomes.insert(sectors[8..16].to_vec());
    }
    assert!(outcomes.contains(&vec![1; 8]), "never dropped");
    assert!(outcomes.contains(&vec![2; 8]), "never kept");
    assert!(outcomes.contains(&vec![2, 2, 2, 1, 1, 1, 1, 1]), "no prefix");
    assert!(outcomes.contains(&vec![1, 1, 1, 2, 2, 2, 2, 2]), "no suffix");
    assert!(outcomes.len() > 20, "only {} ways to tear", outcomes.len());
}

#[test]
fn a_synced_write_is_never_lost_nor_overwritten_by_an_older_one() {
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        file.write_at(0, &block(2, 2)).unwrap();
        file.write_at(0, &block(3, 1)).unwrap();
        file.sync().unwrap();
        let sectors = sectors_after_crash(&disk);
        assert_eq!(sectors, [vec![3; 8], vec![2; 8], vec![1; 16]].concat());
        assert_eq!(disk.stats().writes_dropped + disk.stats().writes_torn, 0);
    }
}

#[test]
fn a_durable_write_covers_itself_alone() {
    let (mut dropped, mut kept) = (false, false);
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        // An older write both under the durable one and beside it.
        file.write_at(0, &block(2, 2)).unwrap();
        let mut queue = queue(&store);
        queue.submit(write(7, &file, 0, 3, true));
        assert!(reap(&mut *queue, 1)[0].result.is_ok());
        let sectors = sectors_after_crash(&disk);
        assert_eq!(sectors[..8], [3; 8]);
        dropped |= sectors[8..16] == [1; 8];
        kept |= sectors[8..16] == [2; 8];
    }
    assert!(dropped && kept);
}

#[test]
fn with_flush_all_a_durable_write_covers_what_completed_before() {
    for seed in 0..SEEDS {
        let options = SimOptions { flush_all: true, ..SimOptions::default() };
        let disk = SimDisk::new(seed, options);
        let store = disk.store();
        let file = durable_file(&store);
        file.write_at(BLOCK, &block(2, 1)).unwrap();
        let mut queue = queue(&store);
        queue.submit(write(7, &file, 0, 3, true));
        assert!(reap(&mut *queue, 1)[0].result.is_ok());
        assert_eq!(sectors_after_crash(&disk), [vec![3; 8], vec![2; 8], vec![1; 16]].concat());
    }
}

#[test]
fn a_sync_covers_only_writes_that_completed_before_it_was_submitted() {
    let (mut dropped, mut late) = (0, 0);
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        let mut queue = queue(&store);
        let syncs = disk.stats().syncs;
        queue.submit(write(1, &file, 0, 2, false));
        queue.submit(sync(2, &file));
        let mut done = reap(&mut *queue, 1);
        // Only where the write was complete before the sync did anything is the case hard.
        let is_late = done.len() == 1 && done[0].token == 1 && disk.stats().syncs == syncs;
        let missing = 2 - done.len();
        done.extend(reap(&mut *queue, missing));
        assert!(done.iter().all(|done| done.result.is_ok()));
        let other = disk.fork(seed);
        let is_dropped = sectors_after_crash(&disk)[..8] == [1; 8];
        late += u64::from(is_late);
        dropped += u64::from(is_late && is_dropped);

        // The same, with a sync submitted after the completion.
        let file = other.store().open("f", Access::Write).unwrap();
        file.sync().unwrap();
        assert_eq!(sectors_after_crash(&other)[..8], [2; 8]);
    }
    assert!(late > 20 && dropped > late / 10, "{dropped} of {late}");
}

#[test]
fn a_sync_covers_no_other_file() {
    let lost = (0..SEEDS).filter(|&seed| {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        let other = store.create("g").unwrap();
        file.write_at(0, &block(2, 1)).unwrap();
        other.sync().unwrap();
        sectors_after_crash(&disk)[..8] != [2; 8]
    });
    assert!(lost.count() > 50);
}

#[test]
fn writes_in_flight_may_reach_the_disk_at_a_crash() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        let mut queue = queue(&store);
        queue.submit(write(1, &file, 0, 2, true));
        queue.submit(write(2, &file, BLOCK, 3, true));
        disk.crash();
        let done = reap(&mut *queue, 2);
        assert!(done.iter().all(|done| done.result.is_err() && done.buf.is_some()));
        let sectors = sectors_after_crash(&disk);
        outcomes.insert((sectors[0] == 2, sectors[8] == 3));
    }
    assert_eq!(outcomes.len(), 4, "the second may be there without the first");
}

#[test]
fn operations_complete_in_any_order_and_keep_their_buffers() {
    let mut orders = BTreeSet::new();
    for seed in 0..SEEDS {
        let (_disk, store) = machine(seed);
        let file = durable_file(&store);
        let mut queue = queue(&store);
        assert_eq!(queue.depth_max(), 4);
        (0..3).for_each(|i| queue.submit(write(i, &file, i * BLOCK, 5, true)));
        let mut done = Vec::new();
        queue.reap(false, &mut done);
        let early = done.len();
        done.extend(reap(&mut *queue, 3 - early));
        assert!(done.iter().all(|done| done.result.is_ok()));
        assert!(done.iter().all(|done| done.buf.as_ref().is_some_and(|buf| buf[0] == 5)));
        orders.insert((early, done.iter().map(|done| done.token).collect::<Vec<_>>()));
        queue.reap(true, &mut done);
        assert_eq!(done.len(), 3, "an idle queue does not block");
    }
    assert!(orders.len() > 12, "{orders:?}");
}

#[test]
fn names_need_a_directory_sync() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        durable_file(&store);
        let new = store.create("new.tmp").unwrap();
        new.write_at(0, &block(9, 1)).unwrap();
        new.sync().unwrap();
        store.rename("new.tmp", "f").unwrap();
        disk.restart();
        outcomes.insert((disk.files(), disk.read_raw("f").map(|bytes| bytes[0])));
    }
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let expected = BTreeSet::from([
        (names(&["f"]), Some(1)),
        (names(&["f", "new.tmp"]), Some(1)),
        (names(&["f"]), Some(9)),
    ]);
    assert_eq!(outcomes, expected);

    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        durable_file(&store);
        store.rename("f", "g").unwrap();
        store.create("h").unwrap();
        store.remove("h").unwrap();
        store.sync_dir().unwrap();
        disk.restart();
        assert_eq!(disk.files(), ["g"]);
        assert_eq!(disk.read_raw("g").unwrap().len() as u64, 4 * BLOCK);
    }
}

#[test]
fn sizes_need_a_sync_of_the_file() {
    let mut lens = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        file.set_len(BLOCK).unwrap();
        file.set_len(2 * BLOCK).unwrap();
        assert_eq!(disk.read_raw("f").unwrap()[BLOCK as usize], 0, "a cut leaves zeros");
        let synced = disk.fork(seed);
        disk.restart();
        lens.insert(disk.read_raw("f").unwrap().len() as u64 / BLOCK);

        let file = synced.store().open("f", Access::Write).unwrap();
        file.sync().unwrap();
        assert_eq!(sectors_after_crash(&synced), [[1; 8], [0; 8]].concat());
    }
    assert_eq!(lens, BTreeSet::from([1, 2, 4]));
}

#[test]
fn a_durable_write_behind_an_unsynced_cut_stays() {
    for seed in 0..SEEDS {
        for regrown in [0, 4 * BLOCK] {
            let (disk, store) = machine(seed);
            let file = durable_file(&store);
            file.set_len(0).unwrap();
            file.set_len(regrown).unwrap();
            let mut queue = queue(&store);
            queue.submit(write(1, &file, BLOCK, 3, true));
            assert!(reap(&mut *queue, 1)[0].result.is_ok());
            let sectors = sectors_after_crash(&disk);
            assert_eq!(sectors[..16], [[0; 8], [3; 8]].concat());
            assert!(sectors[16..].iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn what_a_synced_cut_took_does_not_come_back() {
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        file.write_at(BLOCK, &block(2, 3)).unwrap();
        disk.fail_sync_at(1, libc::EIO);
        file.sync().unwrap_err();
        file.set_len(BLOCK).unwrap();
        file.set_len(4 * BLOCK).unwrap();
        file.sync().unwrap();
        assert_eq!(sectors_after_crash(&disk), [vec![1; 8], vec![0; 24]].concat());
    }
}

#[test]
fn what_a_failed_sync_covered_is_not_saved_by_a_later_one() {
    let mut lost = false;
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        file.write_at(0, &block(2, 2)).unwrap();
        disk.fail_sync_at(1, libc::EIO);
        assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(disk.read_raw("f").unwrap()[0], 2, "it stays visible");
        file.write_at(0, &block(3, 1)).unwrap();
        file.sync().unwrap();
        let sectors = sectors_after_crash(&disk);
        assert_eq!(sectors[..8], [3; 8], "what was written again is durable");
        lost |= sectors[8..16] == [1; 8];
    }
    assert!(lost);
}

#[test]
fn failed_writes_leave_a_part_behind() {
    let mut parts = BTreeSet::new();
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        disk.fail_write_at(2, libc::EIO);
        let mut queue = queue(&store);
        queue.submit(write(1, &file, 0, 2, true));
        assert!(reap(&mut *queue, 1)[0].result.is_ok());
        queue.submit(write(2, &file, 0, 3, true));
        let error = reap(&mut *queue, 1).remove(0).result.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let threes = disk.read_raw("f").unwrap().chunks(512).filter(|s| s[0] == 3).count();
        parts.insert(threes);

        disk.short_write_at(1, libc::EIO);
        file.write_at(BLOCK, &block(4, 1)).unwrap_err();
        let fours: Vec<bool> =
            disk.read_raw("f").unwrap()[4096..8192].chunks(512).map(|s| s[0] == 4).collect();
        assert!(fours[0] && !fours[7] && fours.is_sorted_by(|a, b| a >= b), "{fours:?}");
    }
    assert!(parts.contains(&0) && parts.contains(&8) && parts.len() > 4, "{parts:?}");
}

#[test]
fn space_runs_out() {
    let (disk, store) = machine(1);
    let file = durable_file(&store);
    disk.set_space(Some(5 * BLOCK));
    let full = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(full(file.allocate(6 * BLOCK)), Some(libc::ENOSPC));
    assert_eq!(full(file.write_at(5 * BLOCK, &block(2, 1))), Some(libc::ENOSPC));
    assert_eq!(file.len().unwrap(), 4 * BLOCK);
    file.write_at(4 * BLOCK, &block(2, 1)).unwrap();
    assert_eq!(disk.used_bytes(), 5 * BLOCK);
    store.remove("f").unwrap();
    assert_eq!(disk.used_bytes(), 5 * BLOCK, "an open file keeps its space");
    drop(file);
    assert_eq!(disk.used_bytes(), 0);
}

#[test]
fn reads_fail_where_sectors_are_spoiled_and_show_what_was_flipped() {
    let (disk, store) = machine(1);
    let file = durable_file(&store);
    let mut buf = block(0, 1);
    assert!(disk.spoil("f", 512, 1) && disk.flip("f", BLOCK + 7));
    assert_eq!(file.read_at(0, &mut buf).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(file.read_at(BLOCK, &mut buf).unwrap(), BLOCK as usize);
    assert_eq!(buf[6..9], [1, 0, 1]);
    file.write_at(0, &block(5, 1)).unwrap();
    assert_eq!(file.read_at(0, &mut buf).unwrap(), BLOCK as usize);
    disk.fail_read_at(1, libc::EIO);
    assert!(file.read_at(0, &mut buf).is_err());
    assert_eq!(file.read_at(4 * BLOCK, &mut buf).unwrap(), 0);
    assert!(!disk.flip("f", 4 * BLOCK) && !disk.flip("none", 0));

    disk.write_raw("foreign", 10, b"text");
    disk.restart();
    assert_eq!(disk.read_raw("foreign").unwrap(), [&[0; 10][..], b"text"].concat());
    assert_eq!(disk.read_raw("f").unwrap()[4103], 0, "a flip is at rest");
    assert!(disk.remove_raw("foreign") && !disk.remove_raw("foreign"));
}

#[test]
fn misuse_is_refused() {
    let (_disk, store) = machine(1);
    let file = durable_file(&store);
    let buf = block(1, 2);
    assert!(file.write_at(512, &buf).is_err());
    assert!(file.write_at(0, &buf[..512]).is_err());
    assert!(file.write_at(0, &buf[512..4608]).is_err());
    let reader = store.open("f", Access::Read).unwrap();
    assert_eq!(reader.write_at(0, &buf).unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert!(store.create("f").is_err() && store.open("g", Access::Read).is_err());
    let mut queue = queue(&store);
    (0..5).for_each(|token| queue.submit(sync(token, &file)));
    let done = reap(&mut *queue, 5);
    let failed: Vec<_> = done.iter().filter(|d| d.result.is_err()).map(|d| d.token).collect();
    assert_eq!(failed, [4], "one more than the depth");
}
