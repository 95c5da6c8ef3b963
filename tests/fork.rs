//! A forked child and the log of its parent: every call gives a typed error or works as documented,
//! nothing hangs, nothing changes in the directory, and the parent goes on, whatever the child drops and
//! however it ends.
//!
//! Each test forks in a process of its own ([`again`](common::again)), and a child that hangs is ended by
//! an alarm.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]
#![allow(unsafe_code)]

mod common;

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::IoSlice;
use std::mem::ManuallyDrop;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::pin::Pin;
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use common::{each_backend, role, run_again, say, small_options};
use uringlog::{
    AppendError, BackendChoice, CloseError, Cursor, CursorError, FollowError, Follower, Log, Lsn,
    OpenError, TrimError, TruncateError, WaitError,
};

const RECORDS: u64 = 2500;

fn record(number: u64) -> Vec<u8> {
    [&number.to_le_bytes()[..], &[number as u8; 3992]].concat()
}

/// Opens a log with some megabytes in it, and waits until nothing is written any more.
fn open(dir: &Path) -> Log {
    let (dir, ring) = match dir.file_name().unwrap().to_str().unwrap() {
        "by-ring" => (dir.parent().unwrap(), true),
        _ => (dir, false),
    };
    let choice = if ring { BackendChoice::Uring } else { BackendChoice::Psync };
    let log = small_options().buffered(true).backend(choice).open(dir).unwrap();
    while log.last_lsn().get() < RECORDS {
        log.append(&record(log.last_lsn().get() + 1)).unwrap();
    }
    log.sync().unwrap();
    log
}

/// Runs `test` in a process of its own, on every backend.
fn on_each_backend(test: &str) {
    each_backend(|case| {
        let is_ring = case.backend == uringlog::Backend::Uring;
        let dir = if is_ring { case.dir.join("by-ring") } else { case.dir.clone() };
        assert_eq!(run_again(test, "fork", dir), ["done"]);
        let log = case.open();
        let mut reader = log.reader(Lsn::FIRST).unwrap();
        for number in 1..=RECORDS {
            assert_eq!(reader.next_record().unwrap().unwrap().payload(), record(number));
        }
    });
}

/// Forks. What the child returns is its exit code; a child that hangs ends by a signal.
fn fork(child: impl FnOnce() -> u8) -> i32 {
    // SAFETY: the child does what a forked child of a process with threads should not, which is what is
    // tested; the C library's own locks are made free there.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: takes no pointers.
            unsafe { libc::alarm(30) };
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the child without running what the parent has to run.
            unsafe { libc::_exit(i32::from(outcome.unwrap_or(u8::MAX))) }
        }
        pid => {
            assert!(pid > 0);
            pid
        }
    }
}

fn status_of(pid: i32) -> ExitStatus {
    let mut status = 0;
    // SAFETY: `pid` is our own child, and `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    ExitStatus::from_raw(status)
}

/// Every file in the directory, but for the page that readers write a word of.
fn files(dir: &Path) -> BTreeMap<String, u64> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.ends_with("status") {
            continue;
        }
        let mut hasher = DefaultHasher::new();
        match std::fs::read(&path) {
            // A segment that was just made has got its name.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.unwrap().hash(&mut hasher),
        }
        files.insert(path.display().to_string(), hasher.finish());
    }
    files
}

fn files_at_rest(dir: &Path) -> BTreeMap<String, u64> {
    loop {
        let before = files(dir);
        std::thread::sleep(Duration::from_millis(200));
        if files(dir) == before {
            return before;
        }
    }
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn every_call_of_a_child_ends_and_changes_nothing() {
    const TEST: &str = "every_call_of_a_child_ends_and_changes_nothing";
    let Some((_, role_dir)) = role() else { return on_each_backend(TEST) };
    let log = open(&role_dir);
    let dir = if role_dir.ends_with("by-ring") { role_dir.parent().unwrap() } else { &role_dir };
    let last = log.last_lsn();
    let beyond = Lsn::new(last.get() + 1);
    let done = log.append(&record(RECORDS + 1)).unwrap().into_owned();
    let mut polled = log.append(b"polled").unwrap().into_owned();
    log.sync().unwrap();
    let later = log.append(b"later").unwrap();
    let mut held = log.reserve(64).unwrap();
    held.fill(7);
    let mut held_large = log.reserve(100_000).unwrap();
    held_large.fill(8);
    let mut cursor = log.cursor("here").unwrap();
    let mut cursor_there = Cursor::open_dir(dir, "here").unwrap();
    let mut follower = log.follow(last).unwrap();
    follower.recv().unwrap().unwrap();
    let mut follower_there = Follower::open_dir(dir, last).unwrap();
    follower_there.recv().unwrap().unwrap();
    // By then a thread reads ahead.
    let mut reader = log.reader(Lsn::FIRST).unwrap();
    for _ in 0..1400 {
        reader.next_record().unwrap().unwrap();
    }
    log.sync().unwrap();
    let before = files_at_rest(dir);
    let append = |error: Option<AppendError>| matches!(error, Some(AppendError::Forked));
    let wait = |outcome: Result<Lsn, WaitError>| matches!(outcome, Err(WaitError::Forked));
    let child = fork(|| {
        let large = vec![1; 100_000];
        let far = Lsn::new(1 << 40);
        let second = Duration::from_secs(1);
        let mut ended = 1400;
        let mut checks = vec![
            append(log.append(b"x").err()),
            append(log.try_append(b"x").err()),
            append(log.append_timeout(b"x", second).err()),
            append(log.append(&large).err()),
            append(log.append_vectored(&[IoSlice::new(b"x"), IoSlice::new(b"y")]).err()),
            append(log.append_batch(&["x"]).err()),
            append(log.try_append_batch(&["x"]).err()),
            append(log.reserve(1).err()),
            append(log.try_reserve(100_000).err()),
            // 10
            append(held.publish().err()),
            append(held_large.try_publish().err()),
            wait(log.sync()),
            matches!(log.wait_durable(Lsn::FIRST), Err(WaitError::Forked)),
            matches!(log.wait_durable(far), Err(WaitError::Forked)),
            matches!(log.wait_durable_timeout(far, second), Err(WaitError::Forked)),
            wait(done.wait_timeout(second)),
            wait(done.wait()),
            matches!(poll(&mut polled), Poll::Ready(Err(WaitError::Forked))),
            later.is_done() || wait(later.wait()),
            // 20
            matches!(log.trim(last), Err(TrimError::Forked)),
            matches!(log.space(), Err(TrimError::Forked)),
            matches!(log.truncate_after(Lsn::FIRST), Err(TruncateError::Forked)),
            matches!(log.cursor("here").err(), Some(CursorError::Forked)),
            matches!(log.cursors().err(), Some(CursorError::Forked)),
            matches!(log.remove_cursor("here").err(), Some(CursorError::Forked)),
            matches!(cursor.advance(last).err(), Some(CursorError::Forked)),
            matches!(cursor.set(Lsn::FIRST).err(), Some(CursorError::Forked)),
            matches!(cursor_there.set(last).err(), Some(CursorError::Forked)),
            matches!(follower.recv().err(), Some(FollowError::Forked)),
            // 30
            matches!(follower.recv_timeout(second).err(), Some(FollowError::Forked)),
            matches!(follower.try_recv().err(), Some(FollowError::Forked)),
            // Readers of the disk, and what only looks, go on.
            follower_there.recv_timeout(second).is_ok(),
            log.last_lsn() >= beyond && log.durable_lsn() >= last,
            log.acknowledged_lsn() >= last && log.first_lsn() == Lsn::FIRST,
            log.stats().appends > 0 && log.poison().is_none(),
            log.batch_timing(last).is_none_or(|timing| timing.bytes > 0),
            !format!("{log:?} {:?}", log.housekeeping()).is_empty(),
            loop {
                match reader.next_record() {
                    Ok(Some(found)) if found.lsn().get() == ended + 1 => ended += 1,
                    other => break matches!(other, Ok(None)) && ended >= RECORDS,
                }
            },
            log.reader(last).is_ok_and(|mut own| own.next_record().is_ok()),
        ];
        // 40
        checks.push(matches!(log.clone().close(), Err(CloseError::Forked)));
        checks.iter().position(|&passed| !passed).map_or(0, |failed| failed as u8 + 1)
    });
    let status = status_of(child);
    assert_eq!(status.code(), Some(0), "the check of that number failed, or it hung: {status}");
    assert_eq!(files_at_rest(dir), before, "the child wrote into the directory");
    say("done");
}

#[test]
fn a_child_may_drop_everything_and_end_in_any_way() {
    const TEST: &str = "a_child_may_drop_everything_and_end_in_any_way";
    static KEPT: OnceLock<Log> = OnceLock::new();
    let Some((_, dir)) = role() else { return on_each_backend(TEST) };
    let log = open(&dir);
    KEPT.set(log.clone()).unwrap();
    // At the child's end too; the parent leaves by `_exit`.
    extern "C" fn drop_and_close() {
        if let Some(log) = KEPT.get() {
            drop(log.clone().close());
        }
    }
    // SAFETY: the function is there as long as the process, and unwinds nowhere.
    assert_eq!(unsafe { libc::atexit(drop_and_close) }, 0);
    for way in 0..2 {
        let mut ticket = log.append(b"behind").unwrap().into_owned();
        drop(poll(&mut ticket));
        let held = (log.reserve(10).unwrap(), log.reserve(100_000).unwrap());
        let follower = log.follow(Lsn::FIRST).unwrap();
        let cursor = log.cursor("c").unwrap();
        let mut reader = log.reader(Lsn::FIRST).unwrap();
        for _ in 0..1400 {
            reader.next_record().unwrap().unwrap();
        }
        let child = fork(|| {
            drop((ticket, held, follower, cursor, reader));
            match way {
                0 => 0,
                // With what runs at exit, Rust's and C's.
                _ => std::process::exit(0),
            }
        });
        assert_eq!(status_of(child).code(), Some(0), "way {way}");
        log.append(b"the parent goes on").unwrap().wait().unwrap();
    }
    let durable = log.durable_lsn();
    let copy = KEPT.get().unwrap().clone();
    drop(log);
    assert!(copy.close().unwrap().last_lsn >= durable);
    say("done");
    // SAFETY: ends the process; what the test says is said.
    unsafe { libc::_exit(0) }
}

#[test]
fn the_last_handle_dropped_in_a_child_ends_nothing_of_the_parent() {
    const TEST: &str = "the_last_handle_dropped_in_a_child_ends_nothing_of_the_parent";
    let Some((_, role_dir)) = role() else { return on_each_backend(TEST) };
    // No other handle may be there, or the child's drop would end nothing in any case.
    let mut log = ManuallyDrop::new(open(&role_dir));
    let dir = if role_dir.ends_with("by-ring") { role_dir.parent().unwrap() } else { &role_dir };
    for handle_first in [true, false] {
        let mut ticket = log.append(b"behind").unwrap().into_owned();
        drop(poll(&mut ticket));
        let follower = log.follow(Lsn::FIRST).unwrap();
        let cursor = log.cursor("c").unwrap();
        let reader = log.reader(Lsn::FIRST).unwrap();
        log.sync().unwrap();
        let before = files_at_rest(dir);
        let child = fork(|| {
            let others = (ticket, follower, cursor, reader);
            let others = if handle_first { Some(others) } else { None };
            // SAFETY: the child's copy of the handle is dropped once, and not used there again.
            unsafe { ManuallyDrop::drop(&mut log) };
            drop(others);
            0
        });
        let status = status_of(child);
        assert_eq!(status.code(), Some(0), "handle first: {handle_first}: {status}");
        assert_eq!(files_at_rest(dir), before, "the child wrote into the directory");
        let second = small_options().buffered(true).open(dir).err();
        assert!(matches!(second, Some(OpenError::Locked { .. })), "{second:?}");
        log.append(b"the parent goes on").unwrap().wait().unwrap();
    }
    let durable = log.durable_lsn();
    assert!(ManuallyDrop::into_inner(log).close().unwrap().last_lsn >= durable);
    say("done");
}

#[test]
fn children_forked_while_others_append_never_hang() {
    const TEST: &str = "children_forked_while_others_append_never_hang";
    let Some((_, dir)) = role() else { return on_each_backend(TEST) };
    let log = open(&dir);
    let stop = AtomicBool::new(false);
    let appended: u64 = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..4)
            .map(|id| {
                let (log, stop) = (&log, &stop);
                scope.spawn(move || {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let ticket = log.append(&[id; 300]).unwrap();
                        count += 1;
                        if count % 10 == 0 {
                            ticket.wait().unwrap();
                        }
                    }
                    count
                })
            })
            .collect();
        let mut children = Vec::new();
        for _ in 0..60 {
            children.push(fork(|| {
                let checks = [
                    matches!(log.append(b"x").err(), Some(AppendError::Forked)),
                    matches!(log.sync(), Err(WaitError::Forked)),
                    log.last_lsn() >= Lsn::new(RECORDS),
                    matches!(log.clone().close(), Err(CloseError::Forked)),
                ];
                checks.iter().position(|&passed| !passed).map_or(0, |failed| failed as u8 + 1)
            }));
            std::thread::sleep(Duration::from_millis(2));
        }
        for child in children {
            let status = status_of(child);
            assert_eq!(status.code(), Some(0), "{status}");
        }
        stop.store(true, Ordering::Relaxed);
        producers.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(log.close().unwrap().last_lsn.get(), RECORDS + appended);
    say("done");
}
