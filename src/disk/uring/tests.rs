//! The ring on a real directory, and a flight driven by made-up completions.

use super::flight::{Round, Step};
use super::*;
use crate::disk::os::tests::{OsDir, reap_one, write_op};
use crate::disk::psync::Psync;
use crate::disk::{Access, Store};
use std::sync::Arc;
use std::time::Instant;

const RING_METHODS: [Method; 3] =
    [Method::RingDsync, Method::RingFdatasync, Method::RingLinkedFsync];

/// A directory for direct I/O, on a machine with io_uring.
fn ring_dir() -> Option<OsDir> {
    let dir = OsDir::new()?;
    match Uring::new(Method::RingDsync, 1, dir.store.facts()) {
        Ok(_) => Some(dir),
        Err(error) => {
            eprintln!("skipped: no io_uring: {error}");
            None
        }
    }
}

fn uring(dir: &OsDir, method: Method, depth: usize) -> Uring {
    Uring::new(method, depth, dir.store.facts()).unwrap()
}

#[test]
fn every_method_writes_and_syncs_with_every_set_of_flags() {
    let Some(dir) = ring_dir() else { return };
    for method in RING_METHODS {
        for level in 0..LEVELS.len() {
            let facts = dir.store.facts();
            let mut disk = Uring::with_level(method, 1, facts, level).unwrap();
            dir.check_writes(&mut disk, &format!("{method}-{level}"));
        }
    }
}

#[test]
fn completions_show_without_waiting() {
    let Some(dir) = ring_dir() else { return };
    let file = dir.file("a", 1 << 20);
    for method in RING_METHODS {
        for level in 0..LEVELS.len() {
            let facts = dir.store.facts();
            let mut disk = Uring::with_level(method, 1, facts, level).unwrap();
            disk.submit(write_op(5, &file, 0, 4096, 1, true));
            let mut done = Vec::new();
            let begun = Instant::now();
            while done.is_empty() {
                assert!(begun.elapsed() < Duration::from_secs(20), "{method} {level}");
                disk.reap(false, &mut done);
                std::thread::yield_now();
            }
            assert!(done[0].result.is_ok());
        }
    }
}

#[test]
fn several_writes_are_under_way_at_once() {
    let Some(dir) = ring_dir() else { return };
    let file = dir.file("a", 1 << 20);
    let mut disk = uring(&dir, Method::RingDsync, 4);
    let mut done = Vec::new();
    for round in 0..16 {
        for lane in 0..4 {
            disk.submit(write_op(lane, &file, lane * 65536, 65536, round + lane as u8, true));
        }
        while done.len() < 4 {
            disk.reap(true, &mut done);
        }
        assert!(done.iter().all(|done| done.result.is_ok()));
        let mut tokens: Vec<u64> = done.drain(..).map(|done| done.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [0, 1, 2, 3]);
        for lane in 0..4 {
            assert_eq!(dir.read(&file, lane * 65536, 65536), [round + lane as u8; 65536]);
        }
    }
}

#[test]
fn slots_follow_the_files() {
    let Some(dir) = ring_dir() else { return };
    let mut disk = uring(&dir, Method::RingDsync, 2);
    assert!(disk.registers_files());
    let kept = dir.file("kept", 1 << 20);
    for index in 0..20 {
        let file = dir.file(&format!("f{index}"), 1 << 16);
        disk.submit(write_op(1, &file, 0, 4096, index, true));
        disk.submit(write_op(2, &kept, u64::from(index) * 4096, 4096, index, true));
        let mut done = Vec::new();
        while done.len() < 2 {
            disk.reap(true, &mut done);
        }
        assert!(done.iter().all(|done| done.result.is_ok()));
        assert_eq!(dir.read(&file, 0, 4096), [index; 4096]);
        assert_eq!(dir.read(&kept, u64::from(index) * 4096, 4096), [index; 4096]);
        assert!(disk.files.slots.iter().all(|slot| slot.under_way == 0));
    }
    let held = disk.files.slots.iter().filter(|slot| slot.file.is_some()).count();
    assert!(held <= 3, "closed files are let go: {held}");
}

#[test]
fn more_files_than_slots_at_once_go_by_descriptor() {
    let Some(dir) = ring_dir() else { return };
    let mut disk = uring(&dir, Method::RingDsync, 8);
    let files: Vec<_> = (0..8).map(|index| dir.file(&format!("f{index}"), 65536)).collect();
    for (index, file) in files.iter().enumerate() {
        disk.submit(write_op(index as u64, file, 0, 4096, index as u8 + 1, true));
    }
    let mut done = Vec::new();
    while done.len() < 8 {
        disk.reap(true, &mut done);
    }
    assert!(done.iter().all(|done| done.result.is_ok()));
    for (index, file) in files.iter().enumerate() {
        assert_eq!(dir.read(file, 0, 4096), [index as u8 + 1; 4096]);
    }
}

#[test]
fn registered_buffers_are_known_by_identity_not_by_address() {
    let Some(dir) = ring_dir() else { return };
    let file = dir.file("a", 1 << 20);
    for method in RING_METHODS {
        let mut disk = uring(&dir, method, 1);
        let mut buf = AlignedBuf::new(65536).unwrap();
        if !disk.register_buffers(std::slice::from_ref(&buf)) {
            eprintln!("skipped: buffers cannot be registered here");
            return;
        }
        buf.fill(7);
        let (address, id) = (buf.as_ptr(), buf.id());
        let kind = OpKind::Write { offset: 0, buf, len: 65536, durable: true };
        disk.submit(Op { token: 1, file: Arc::clone(&file), kind });
        let done = reap_one(&mut disk);
        assert!(done.result.is_ok());
        assert_eq!(done.buf.as_ref().map(AlignedBuf::id), Some(id));
        assert_eq!(dir.read(&file, 0, 65536), [7; 65536]);
        drop(done);
        // The kernel still holds the first buffer's pages under index 0.
        let mut again = AlignedBuf::new(65536).unwrap();
        again.fill(8);
        let reused = again.as_ptr() == address;
        let kind = OpKind::Write { offset: 0, buf: again, len: 65536, durable: true };
        disk.submit(Op { token: 2, file: Arc::clone(&file), kind });
        assert!(reap_one(&mut disk).result.is_ok());
        assert_eq!(dir.read(&file, 0, 65536), [8; 65536], "address reused: {reused}");
    }
}

#[test]
fn a_failed_write_gives_the_buffer_back_and_the_ring_goes_on() {
    let Some(dir) = ring_dir() else { return };
    let file = dir.file("a", 65536);
    let read_only = dir.store.open("a", Access::Read).unwrap();
    for method in RING_METHODS {
        let mut disk = uring(&dir, method, 1);
        disk.submit(write_op(1, &read_only, 0, 4096, 7, true));
        let done = reap_one(&mut disk);
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EBADF), "{method}");
        assert!(done.buf.is_some());
        disk.submit(write_op(2, &file, 0, 4096, 7, true));
        assert!(reap_one(&mut disk).result.is_ok());
    }
}

#[test]
fn dropping_the_disk_waits_for_what_is_under_way() {
    let Some(dir) = ring_dir() else { return };
    for method in RING_METHODS {
        let file = dir.file(method.name(), 4 << 20);
        let mut disk = uring(&dir, method, 2);
        disk.submit(write_op(1, &file, 0, 2 << 20, 9, true));
        disk.submit(Op { token: 2, file: Arc::clone(&file), kind: OpKind::Sync });
        drop(disk);
        assert_eq!(Arc::strong_count(&file), 1);
        assert_eq!(dir.read(&file, 0, 2 << 20), vec![9; 2 << 20]);
    }
}

#[test]
fn a_ring_that_cannot_be_entered_fails_everything_and_leaks_what_was_handed_over() {
    let Some(dir) = ring_dir() else { return };
    let file = dir.file("a", 65536);
    let mut disk = uring(&dir, Method::RingDsync, 1);
    // The wrong thread: the kernel answers EEXIST to whoever did not make the ring.
    std::thread::spawn(move || {
        disk.submit(write_op(1, &file, 0, 4096, 7, true));
        let done = reap_one(&mut disk);
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert!(done.buf.is_none(), "the kernel may still use it");
        disk.submit(write_op(2, &file, 0, 4096, 7, true));
        let done = reap_one(&mut disk);
        assert!(done.result.is_err() && done.buf.is_some(), "never handed over");
    })
    .join()
    .unwrap();
}

/// What a flight does next when its completions bring these results.
fn flight(dir: &OsDir) -> Flight {
    let file = dir.store.create(&format!("{:?}", Instant::now())).unwrap();
    Flight::new(write_op(1, &file, 0, 16384, 1, true), None)
}

#[test]
fn a_short_write_is_finished_and_synced_again() {
    let dir = OsDir::buffered();
    let mut linked = flight(&dir);
    let method = Method::RingLinkedFsync;
    assert!(matches!(linked.round(method), Some(Round::WriteLinkedSync)));
    linked.complete(Step::Write { dsync: false }, 5000, 4096);
    linked.complete(Step::Sync, -libc::ECANCELED, 4096);
    linked.end_round();
    assert_eq!((linked.written, linked.unsynced), (4096, true));
    assert!(matches!(linked.round(method), Some(Round::WriteLinkedSync)));
    // A kernel that syncs in spite of the short write has not synced what was missing.
    linked.complete(Step::Write { dsync: false }, 4096, 4096);
    linked.complete(Step::Sync, 0, 4096);
    linked.end_round();
    assert_eq!((linked.written, linked.unsynced), (8192, true));
    linked.complete(Step::Write { dsync: false }, 8192, 4096);
    linked.complete(Step::Sync, -libc::ECANCELED, 4096);
    linked.end_round();
    assert!(matches!(linked.round(method), Some(Round::Sync)), "cancelled is not synced");
    linked.complete(Step::Sync, 0, 4096);
    linked.end_round();
    assert!(linked.round(method).is_none() && linked.error.is_none());

    let mut dsync = flight(&dir);
    dsync.complete(Step::Write { dsync: true }, 8192, 4096);
    dsync.end_round();
    assert!(matches!(dsync.round(Method::RingDsync), Some(Round::Write { dsync: true })));
    dsync.complete(Step::Write { dsync: true }, 8192, 4096);
    dsync.end_round();
    assert!(dsync.round(Method::RingDsync).is_none() && dsync.error.is_none());
}

#[test]
fn interrupted_writes_are_tried_again_and_failed_syncs_are_not() {
    let dir = OsDir::buffered();
    let mut again = flight(&dir);
    again.complete(Step::Write { dsync: true }, -libc::EAGAIN, 4096);
    again.complete(Step::Write { dsync: true }, -libc::EINTR, 4096);
    again.end_round();
    assert!(matches!(again.round(Method::RingDsync), Some(Round::Write { dsync: true })));
    for errno in [libc::EINTR, libc::EAGAIN, libc::EIO] {
        let mut failed = flight(&dir);
        failed.complete(Step::Write { dsync: false }, 16384, 4096);
        failed.complete(Step::Sync, -errno, 4096);
        failed.end_round();
        assert!(failed.round(Method::RingLinkedFsync).is_none());
        assert_eq!(failed.error.unwrap().raw_os_error(), Some(errno));
    }
    let mut stuck = flight(&dir);
    stuck.complete(Step::Write { dsync: true }, 100, 4096);
    assert_eq!(stuck.error.unwrap().kind(), io::ErrorKind::WriteZero);
}

#[test]
fn a_write_cut_by_the_file_size_limit_is_an_error_not_a_success() {
    // In a process of its own, since the limit is the whole process'.
    let test = "disk::uring::tests::under_a_file_size_limit";
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--test-threads=1"])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn under_a_file_size_limit() {
    let Some(dir) = ring_dir() else { return };
    let file = dir.file("a", 1 << 20);
    let limit = libc::rlimit { rlim_cur: (1 << 20) + 8192, rlim_max: (1 << 20) + 8192 };
    // SAFETY: plain system calls of a process that runs only this test.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
    }
    let disks = RING_METHODS.map(|method| Box::new(uring(&dir, method, 1)) as Box<dyn Disk>);
    let plain = [Method::PwriteDsync, Method::PwriteFdatasync]
        .map(|method| Box::new(Psync::new(method, dir.store.facts())) as Box<dyn Disk>);
    for mut disk in disks.into_iter().chain(plain) {
        file.set_len(1 << 20).unwrap();
        disk.submit(write_op(1, &file, 1 << 20, 65536, 7, true));
        let error = reap_one(&mut *disk).result.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
        assert_eq!(file.len().unwrap(), (1 << 20) + 8192, "it did end short first");
    }
}
