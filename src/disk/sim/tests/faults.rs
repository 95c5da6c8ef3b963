//! Failures of every kind of operation, late completions, and what goes bad in silence.

use std::io;

use super::*;

/// Runs each operation of the kind several times; tells which of them failed.
fn attempt(op: SimOp, store: &Arc<dyn Store>, times: u64) -> Vec<bool> {
    let file = durable_file(store);
    let mut buf = block(0, 1);
    let mut one = |n: u64| -> io::Result<()> {
        let name = format!("x{n}");
        match op {
            SimOp::Read => file.read_at(0, &mut buf).map(drop),
            SimOp::Write | SimOp::ShortWrite => file.write_at(0, &block(9, 2)),
            SimOp::Sync => file.sync(),
            // After one that failed all later ones of the same store do: asked of the machine.
            SimOp::DirSync => Ok(()),
            SimOp::Create => store.create(&name).map(drop),
            SimOp::Open => store.open("f", Access::Read).map(drop),
            SimOp::Rename => store.rename("f", "f"),
            SimOp::Remove => store.remove("f"),
            SimOp::SetLen => file.set_len((5 + n) * BLOCK),
            SimOp::Lock => store.lock_cursors().map(drop).map_err(|error| error.source),
            SimOp::List => store.list().map(drop),
        }
    };
    (0..times).map(|n| one(n).is_err()).collect()
}

#[test]
fn every_kind_of_operation_fails_once_or_for_good() {
    for op in SimOp::ALL.into_iter().filter(|op| !matches!(op, SimOp::DirSync | SimOp::Remove)) {
        let (_disk, store) = machine(1);
        assert_eq!(attempt(op, &store, 4), [false; 4], "{op:?}");
        for stays in [false, true] {
            let (disk, store) = machine(1);
            // Its own file is made, sized, written and synced before.
            let made = match op {
                SimOp::Write | SimOp::ShortWrite | SimOp::Sync | SimOp::Create | SimOp::SetLen => 1,
                _ => 0,
            };
            match stays {
                false => disk.fail_at(op, made + 2, libc::ENOSPC),
                true => disk.fail_from(op, made + 2, libc::ENOSPC),
            }
            let failed = attempt(op, &store, 4);
            assert_eq!(failed, [false, true, stays, stays], "{op:?}");
            let struck = if stays { 3 } else { 1 };
            assert_eq!((disk.stats().failures, disk.stats().no_space), (struck, struck));
            disk.mend();
            assert!(store.create("works again").is_ok());
        }
    }
}

#[test]
fn a_failed_directory_sync_or_removal_changes_nothing() {
    let (disk, store) = machine(2);
    durable_file(&store);
    disk.fail_at(SimOp::Remove, 1, libc::EIO);
    assert_eq!(store.remove("f").unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(disk.files(), ["f"]);
    disk.fail_at(SimOp::DirSync, 1, libc::EIO);
    assert!(store.sync_dir().is_err() && store.sync_dir().is_err(), "not tried again");
    assert_eq!(disk.stats().failed_dir_syncs, 1);
}

#[test]
fn a_misdirected_write_is_somewhere_else_for_good() {
    let (mut same_file, mut other_file) = (0, 0);
    for seed in 0..SEEDS {
        let (disk, store) = machine(seed);
        let file = durable_file(&store);
        disk.write_raw("g", 0, &[5; 4 * BLOCK as usize]);
        disk.misdirect_write_at(1);
        assert!(file.write_at(BLOCK, &block(9, 1)).is_ok(), "it succeeds");
        disk.restart();
        let written = |name: &str| {
            let bytes = disk.read_raw(name).unwrap();
            bytes.iter().filter(|&&byte| byte == 9).count() as u64
        };
        let found = (written("f"), written("g"));
        let stats = disk.stats();
        assert_eq!(found.0 + found.1, stats.misdirected_bytes);
        assert_eq!(disk.read_raw("f").unwrap()[BLOCK as usize], 1, "its own place is as it was");
        same_file += u64::from(found.0 > 0);
        other_file += u64::from(found.1 > 0);
    }
    assert!(same_file > SEEDS / 4 && other_file > SEEDS / 4);
}

#[test]
fn chance_flips_spoils_and_fails() {
    let faults = SimFaults { flips: 4, latent_errors: 4, read_errors: 10, ..SimFaults::default() };
    let (disk, store) = machine(3);
    let file = durable_file(&store);
    disk.set_faults(faults);
    let mut buf = block(0, 1);
    for _ in 0..200 {
        file.write_at(0, &block(7, 1)).unwrap();
        if file.read_at(0, &mut buf).is_ok() && buf.iter().any(|&byte| byte != 7) {
            let flipped: u32 = buf.iter().map(|&byte| (byte ^ 7).count_ones()).sum();
            assert_eq!(flipped, 1, "one bit is another");
        }
    }
    let stats = disk.stats();
    assert!(stats.flips > 20 && stats.latent_errors > 20 && stats.failed_reads > 5, "{stats:?}");
}

#[test]
fn withheld_completions_come_after_later_ones_and_come() {
    let faults = SimFaults { delays: 2, ..SimFaults::default() };
    let options = SimOptions { depth: 4, faults, ..SimOptions::default() };
    let disk = SimDisk::new(4, options);
    let store = disk.store();
    let file = durable_file(&store);
    let mut queue = queue(&store);
    for _ in 0..100 {
        (0..4).for_each(|i| queue.submit(write(i, &file, i * BLOCK, i as u8, true)));
        assert_eq!(reap(&mut *queue, 4).len(), 4);
    }
    let stats = disk.stats();
    assert!(stats.withheld > 100 && stats.reordered > 100, "{stats:?}");
}
