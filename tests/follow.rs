//! Followers: every durable record once, in order, whatever the log goes through meanwhile.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use common::{Case, PATIENCE, again, each_backend, eventually, in_time, payload, role, said, say};
use futures_core::Stream;
use uringlog::{Cursor, CursorError, FollowError, Follower, Log, Lsn, ReadError};

/// The next item of a stream.
async fn next(follower: &mut Follower) -> Option<Result<(Lsn, Vec<u8>), FollowError>> {
    std::future::poll_fn(|context| pin!(&mut *follower).poll_next(context)).await
}

/// Receives `count` records from `first` on, each with the payload that belongs to its number.
fn expect(follower: &mut Follower, first: u64, count: u64) {
    for number in first..first + count {
        let record = follower.recv().unwrap().unwrap_or_else(|| panic!("no record {number}"));
        assert_eq!(record.lsn().get(), number);
        assert!(record.payload() == record_of(number), "record {number}");
    }
}

/// What the record with this number holds.
fn record_of(number: u64) -> Vec<u8> {
    payload(number as usize, (number * 7919 % 1500) as usize)
}

fn append(log: &Log, first: u64, count: u64) {
    for number in first..first + count {
        log.append(&record_of(number)).unwrap();
    }
}

#[test]
fn many_followers_each_at_its_own_pace() {
    each_backend(|case| {
        // Small segments, and a small window: they rotate, and fall off the window and join again.
        let options = case.options.clone().segment_bytes(256 << 10).tail_bytes(64 << 10);
        let log = case.open_with(options);
        const RECORDS: u64 = 3000;
        append(&log, 1, 100);
        log.sync().unwrap();
        let followers: Vec<_> = (0..4)
            .map(|index| {
                let mut follower = log.follow(Lsn::new(1 + index * 40)).unwrap();
                std::thread::spawn(move || {
                    for number in 1 + index * 40..=RECORDS {
                        expect(&mut follower, number, 1);
                        // Each sleeps at other places, one never.
                        if index > 0 && number.is_multiple_of(index * 150) {
                            std::thread::sleep(Duration::from_millis(2 * index));
                        }
                    }
                    follower.recv().unwrap().is_none()
                })
            })
            .collect();
        for first in (101..=RECORDS).step_by(20) {
            append(&log, first, 20.min(RECORDS + 1 - first));
            log.sync().unwrap();
        }
        log.close().unwrap();
        in_time(case.name, move || {
            for follower in followers {
                assert!(follower.join().unwrap(), "the end is given");
            }
        });
    });
}

#[test]
fn a_record_of_the_future_is_waited_for() {
    each_backend(|case| {
        let log = case.open();
        let mut follower = log.follow(Lsn::new(5)).unwrap();
        assert!(matches!(follower.try_recv(), Err(FollowError::TimedOut)));
        append(&log, 1, 4);
        log.sync().unwrap();
        let patience = Duration::from_millis(20);
        assert!(matches!(follower.recv_timeout(patience), Err(FollowError::TimedOut)));
        assert_eq!(follower.next_lsn(), Lsn::new(5));
        append(&log, 5, 1);
        log.sync().unwrap();
        expect(&mut follower, 5, 1);
        // None is the same as the first.
        expect(&mut log.follow(Lsn::NONE).unwrap(), 1, 5);
    });
}

#[test]
fn closing_wakes_and_ends_a_follower_and_a_dropped_one_is_no_matter() {
    each_backend(|case| {
        let log = case.open();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let mut follower = log.follow(Lsn::FIRST).unwrap();
                std::thread::spawn(move || follower.recv().unwrap().is_none())
            })
            .collect();
        let mut dropped = log.follow(Lsn::FIRST).unwrap();
        assert!(dropped.recv_timeout(Duration::from_millis(5)).is_err());
        let mut polled = log.follow(Lsn::FIRST).unwrap();
        let waker = Arc::new(Counting::default());
        let poll = |follower: &mut Follower| {
            let waker = Waker::from(waker.clone());
            pin!(follower).poll_next(&mut Context::from_waker(&waker)).is_pending()
        };
        assert!(poll(&mut polled));
        assert_eq!(Arc::strong_count(&waker), 2);
        drop((dropped, polled));
        assert_eq!(Arc::strong_count(&waker), 1, "the waker is let go");
        std::thread::sleep(Duration::from_millis(5));
        log.close().unwrap();
        in_time(case.name, move || {
            assert!(waiting.into_iter().all(|thread| thread.join().unwrap()));
        });
        assert_eq!(waker.0.load(Ordering::Relaxed), 0);
    });
}

#[derive(Default)]
struct Counting(AtomicU64);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_stream_on_any_executor() {
    each_backend(|case| {
        let log = case.open();
        const RECORDS: u64 = 200;
        let check = |count: u64, item: Option<Result<(Lsn, Vec<u8>), FollowError>>| {
            let (lsn, found) = item.unwrap().unwrap();
            assert_eq!(lsn.get(), count);
            assert!(found == record_of(count));
        };
        let mut simple = log.follow(Lsn::FIRST).unwrap();
        let mut on_tokio = log.follow(Lsn::FIRST).unwrap();
        let mut remote = Follower::open_dir(&case.dir, Lsn::FIRST).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                futures_executor::block_on(async {
                    for number in 1..=RECORDS {
                        check(number, next(&mut simple).await);
                    }
                    assert!(next(&mut simple).await.is_none());
                    assert!(next(&mut simple).await.is_none(), "it stays ended");
                });
            });
            scope.spawn(|| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    for number in 1..=RECORDS {
                        let item = tokio::time::timeout(PATIENCE, next(&mut on_tokio));
                        check(number, item.await.unwrap());
                    }
                    assert!(next(&mut on_tokio).await.is_none());
                });
            });
            scope.spawn(|| {
                futures_executor::block_on(async {
                    for number in 1..=RECORDS {
                        check(number, next(&mut remote).await);
                    }
                });
            });
            for first in (1..=RECORDS).step_by(5) {
                append(&log, first, 5);
                log.sync().unwrap();
            }
            log.close().unwrap();
        });
    });
}

#[test]
fn a_log_in_the_same_process_is_followed_by_its_directory_too() {
    each_backend(|case| {
        let log = case.open_with(case.options.clone().segment_bytes(256 << 10));
        let mut follower = Follower::open_dir(&case.dir, Lsn::FIRST).unwrap();
        assert!(matches!(follower.try_recv(), Err(FollowError::TimedOut)));
        let writer = {
            let log = log.clone();
            std::thread::spawn(move || {
                for first in (1..=2000).step_by(10) {
                    append(&log, first, 10);
                    log.sync().unwrap();
                }
            })
        };
        let mut follower = in_time(case.name, move || {
            expect(&mut follower, 1, 2000);
            follower
        });
        writer.join().unwrap();
        log.close().unwrap();
        // It does not end: the writer may come back, and does.
        let patience = Duration::from_millis(20);
        assert!(matches!(follower.recv_timeout(patience), Err(FollowError::TimedOut)));
        let log = case.open();
        append(&log, 2001, 50);
        log.sync().unwrap();
        in_time(case.name, move || expect(&mut follower, 2001, 50));
    });
}

#[test]
fn without_a_page_it_is_found_by_looking() {
    each_backend(|case| {
        let log = case.open();
        std::fs::remove_file(case.dir.join("status")).ok();
        let mut follower = Follower::open_dir(&case.dir, Lsn::FIRST).unwrap();
        append(&log, 1, 100);
        log.sync().unwrap();
        in_time(case.name, move || expect(&mut follower, 1, 100));
        // A page that disappears under a follower, and one that is made again.
        let mut follower = Follower::open_dir(&case.dir, Lsn::new(50)).unwrap();
        expect(&mut follower, 50, 51);
        log.close().unwrap();
        let log = case.open();
        append(&log, 101, 10);
        log.sync().unwrap();
        let mut follower = in_time(case.name, move || {
            expect(&mut follower, 101, 10);
            follower
        });
        std::fs::write(case.dir.join("status"), b"not a page").unwrap();
        append(&log, 111, 10);
        log.sync().unwrap();
        in_time(case.name, move || expect(&mut follower, 111, 10));
    });
}

#[test]
fn a_garbled_page_is_not_believed() {
    each_backend(|case| {
        let log = case.open();
        append(&log, 1, 20);
        log.close().unwrap();
        let path = case.dir.join("status");
        let Ok(page) = std::fs::read(&path) else {
            common::skipped("a garbled page", "there is none here");
            return;
        };
        assert_eq!(page.len(), 4096);
        let durable = u64::from_le_bytes(page[64..72].try_into().unwrap());
        assert_eq!(durable, 20);
        for (offset, value) in [(64, u64::MAX), (64, 1000), (64, 3), (0, 0), (16, 7), (48, 9)] {
            for with_checksum in [false, true] {
                let mut garbled = page.clone();
                garbled[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
                if with_checksum {
                    let checksum = crc32c(&garbled[..76]);
                    garbled[76..80].copy_from_slice(&checksum.to_le_bytes());
                }
                std::fs::write(&path, &garbled).unwrap();
                let mut follower = Follower::open_dir(&case.dir, Lsn::FIRST).unwrap();
                expect(&mut follower, 1, 20);
                let more = follower.recv_timeout(Duration::from_millis(5));
                assert!(matches!(more, Err(FollowError::TimedOut)), "{offset}: {value}");
            }
        }
        assert_eq!(crc32c(&page[..76]).to_le_bytes(), page[76..80]);
    });
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    })
}

// ---- a page that somebody writes over ----

/// Cuts the file and writes it again, over and over, as a copy onto it does, until `work` has returned.
fn while_it_is_written_over<T>(path: &Path, work: impl FnOnce() -> T + Send) -> T
where
    T: Send,
{
    let page = std::fs::read(path).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = common::Random::new(7);
            while !over.load(Ordering::Relaxed) {
                let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(0).unwrap();
                std::thread::sleep(Duration::from_micros(random.below(2000)));
                // Now and then it stays short.
                let len = if random.below(4) == 0 { random.below(200) } else { 4096 };
                std::fs::write(path, &page[..len as usize]).unwrap();
                std::thread::sleep(Duration::from_micros(random.below(2000)));
            }
        });
        // A child that fails must not leave the thread behind.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn poll_once(follower: &mut Follower) {
    let poll = pin!(follower).poll_next(&mut Context::from_waker(Waker::noop()));
    assert!(poll.is_pending());
}

#[test]
fn a_follower_outlives_a_page_that_is_written_over() {
    if let Some((_, dir)) = role() {
        let mut follower = Follower::open_dir(&dir, Lsn::FIRST).unwrap();
        let mut polled = Follower::open_dir(&dir, Lsn::new(21)).unwrap();
        expect(&mut follower, 1, 20);
        for _ in 0..300 {
            let more = follower.recv_timeout(Duration::from_millis(3));
            assert!(matches!(more, Err(FollowError::TimedOut)));
            poll_once(&mut polled);
        }
        return say("done");
    }
    each_backend(|case| {
        let log = case.open();
        append(&log, 1, 20);
        log.close().unwrap();
        let copy = case.dir("copy");
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(&case.dir).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
        let path = copy.join("status");
        if !path.exists() {
            common::skipped("a page that is written over", "there is none here");
            return;
        }
        let test = "a_follower_outlives_a_page_that_is_written_over";
        let said = while_it_is_written_over(&path, || common::run_again(test, "", &copy));
        assert_eq!(said, ["done"]);
    });
}

#[test]
fn a_writer_outlives_a_page_that_is_written_over() {
    const RECORDS: u64 = 400;
    if let Some((_, dir)) = role() {
        let log = common::small_options().buffered(true).open(&dir).unwrap();
        // One that has the writer tell it at once.
        let mut follower = Follower::open_dir(&dir, Lsn::FIRST).unwrap();
        let reader = std::thread::spawn(move || expect(&mut follower, 1, RECORDS));
        for number in 1..=RECORDS {
            append(&log, number, 1);
            log.sync().unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
        in_time("all is followed", move || reader.join().unwrap());
        log.close().unwrap();
        return say("done");
    }
    each_backend(|case| {
        drop(case.open());
        let path = case.dir.join("status");
        if !path.exists() {
            common::skipped("a page that is written over", "there is none here");
            return;
        }
        let test = "a_writer_outlives_a_page_that_is_written_over";
        let said = while_it_is_written_over(&path, || common::run_again(test, "", &case.dir));
        assert_eq!(said, ["done"]);
        let log = case.open();
        assert_eq!(log.last_lsn().get(), RECORDS);
        // Whoever opens the log makes a page that is whole.
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
        let mut follower = Follower::open_dir(&case.dir, Lsn::FIRST).unwrap();
        in_time(case.name, move || expect(&mut follower, 1, RECORDS));
    });
}

#[test]
fn a_number_that_is_gone_is_an_error() {
    each_backend(|case| {
        let log = case.open();
        append(&log, 1, 10);
        log.sync().unwrap();
        let mut behind = log.follow(Lsn::NONE).unwrap();
        expect(&mut behind, 1, 10);
        let mut elsewhere = Follower::open_dir(&case.dir, Lsn::FIRST).unwrap();
        expect(&mut elsewhere, 1, 10);
        log.truncate_after(Lsn::new(4)).unwrap();
        assert!(matches!(
            behind.recv(),
            Err(FollowError::Read(ReadError::Truncated { last })) if last == Lsn::new(4)
        ));
        append(&log, 5, 3);
        log.sync().unwrap();
        expect(&mut log.follow(Lsn::new(5)).unwrap(), 5, 3);
        if case.dir.join("status").exists() {
            assert!(matches!(
                elsewhere.recv(),
                Err(FollowError::Read(ReadError::Truncated { last })) if last == Lsn::new(4)
            ));
        }
        assert!(matches!(
            Follower::open_dir(case.dir("nowhere"), Lsn::FIRST),
            Err(ReadError::NotFound { .. })
        ));
    });
}

// ---- a writer that is killed ----

const TEST: &str = "a_follower_outlives_the_writers_that_are_killed";
const LIVES: u64 = 6;

/// The writer: appends what belongs to each number, and says each number that was acknowledged.
fn write_until_killed(dir: &Path) {
    let log = common::small_options()
        .segment_bytes(256 << 10)
        .ring_bytes(16 << 10)
        .buffered(true)
        .open(dir)
        .unwrap();
    let mut number = log.last_lsn().get();
    loop {
        for _ in 0..1 + number % 5 {
            number += 1;
            log.append(&record_of(number)).unwrap();
        }
        log.sync().unwrap();
        say(number);
        if number.is_multiple_of(64) {
            std::thread::sleep(Duration::from_millis(8));
        }
    }
}

#[test]
fn a_follower_outlives_the_writers_that_are_killed() {
    if let Some((_, dir)) = role() {
        return write_until_killed(&dir);
    }
    each_backend(follow_killed_writers);
}

fn follow_killed_writers(case: &Case) {
    drop(case.open());
    let over = Arc::new(AtomicBool::new(false));
    let given = Arc::new(AtomicU64::new(0));
    let follower = {
        let (over, given) = (over.clone(), given.clone());
        let mut follower = Follower::open_dir(&case.dir, Lsn::FIRST).unwrap();
        std::thread::spawn(move || {
            let mut number = 0;
            loop {
                match follower.recv_timeout(Duration::from_millis(20)) {
                    Ok(Some(record)) => {
                        number += 1;
                        assert_eq!(record.lsn().get(), number);
                        assert!(record.payload() == record_of(number), "record {number}");
                        given.store(number, Ordering::Release);
                    }
                    Ok(None) => panic!("it ended"),
                    Err(FollowError::TimedOut) if over.load(Ordering::Acquire) => return number,
                    Err(FollowError::TimedOut) => {}
                    Err(error) => panic!("after record {number}: {error}"),
                }
            }
        })
    };
    let mut acknowledged = 0;
    for life in 1..=LIVES {
        let mut child =
            again(TEST, "", &case.dir).stderr(std::process::Stdio::inherit()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let started = Instant::now();
        let (mut line, mut said_here) = (String::new(), 0);
        // Killed in the middle of writing.
        while lines.read_line(&mut line).unwrap() > 0 {
            if let Some(word) = said(&line) {
                acknowledged = word.parse().unwrap();
                said_here += 1;
            }
            line.clear();
            if said_here == 40 * life {
                child.kill().unwrap();
            }
            assert!(started.elapsed() < PATIENCE);
        }
        child.wait().unwrap();
        // Nothing that was given may be missing when the log is opened again.
        let before = given.load(Ordering::Acquire);
        if life.is_multiple_of(2) {
            let log = case.open();
            assert!(log.last_lsn().get() >= before, "{before} was given, and was not durable");
            assert!(log.last_lsn().get() >= acknowledged);
        }
        eventually("what was acknowledged is given", || {
            given.load(Ordering::Acquire) >= acknowledged || follower.is_finished()
        });
    }
    over.store(true, Ordering::Release);
    let last = follower.join().unwrap();
    let log = case.open();
    assert!(last <= log.last_lsn().get());
    eprintln!("{}: {LIVES} kills, {last} records", case.name);
}

// ---- a consumer in another process ----

const CONSUMER_TEST: &str = "a_consumer_elsewhere_advances_over_what_it_was_given";

#[test]
fn a_consumer_elsewhere_advances_over_what_it_was_given() {
    if let Some((_, dir)) = role() {
        // A writer that vouches for nothing by itself: only the page tells.
        let log = common::small_options()
            .vouch_after(Duration::from_secs(3600))
            .buffered(true)
            .open(dir)
            .unwrap();
        for number in 1.. {
            log.append(&record_of(number)).unwrap().wait().unwrap();
            say(number);
            // One at a time, as they are asked for.
            while log.cursors().unwrap().iter().all(|at| at.position.get() <= number) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    each_backend(|case| {
        drop(case.open());
        let mut child = again(CONSUMER_TEST, "", &case.dir)
            .stderr(std::process::Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while said(&line).is_none() {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0);
        }
        if !case.dir.join("status").exists() {
            common::skipped("advancing at once", "there is no status page here");
        } else {
            let dir = case.dir.clone();
            in_time(case.name, move || {
                let mut follower = Follower::open_dir(&dir, Lsn::FIRST).unwrap();
                let mut cursor = Cursor::open_dir(&dir, "consumer").unwrap();
                for number in 1..=50 {
                    expect(&mut follower, number, 1);
                    let beyond = cursor.advance(Lsn::new(number + 2));
                    assert!(matches!(beyond, Err(CursorError::BeyondEnd { .. })), "{beyond:?}");
                    cursor.advance(follower.next_lsn()).unwrap();
                    assert_eq!(cursor.position(), Lsn::new(number + 1));
                }
            });
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // A page that says more than there is moves no cursor.
        let path = case.dir.join("status");
        if let Ok(mut page) = std::fs::read(&path) {
            page[64..72].copy_from_slice(&1000u64.to_le_bytes());
            std::fs::write(&path, &page).unwrap();
            let mut cursor = Cursor::open_dir(&case.dir, "consumer").unwrap();
            let beyond = cursor.advance(Lsn::new(1001));
            assert!(matches!(beyond, Err(CursorError::BeyondEnd { .. })), "{beyond:?}");
        }
    });
}
