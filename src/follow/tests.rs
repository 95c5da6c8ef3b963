use std::path::Path;
use std::time::Duration;

use super::*;
use crate::options::{BackendChoice, Durability, Options};

fn options() -> Options {
    Options::new()
        .segment_bytes(1 << 20)
        .segments_ready(1)
        .rings(1)
        .ring_bytes(64 << 10)
        .batch_bytes_max(1 << 20)
        .large_bytes_max(1 << 20)
        .backend(BackendChoice::Psync)
        .buffered(true)
        .calibrate(false)
}

fn in_dir(test: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir_in(".").unwrap();
    test(&dir.path().join("log"));
}

fn from_memory(follower: &Follower) -> u64 {
    match &follower.source {
        Source::Here(here) => here.from_memory,
        Source::There(_) => 0,
    }
}

fn lsn(follower: &mut Follower) -> u64 {
    follower.recv().unwrap().unwrap().lsn().get()
}

#[test]
fn at_the_end_every_record_comes_from_memory() {
    in_dir(|dir| {
        let log = options().open(dir).unwrap();
        let mut follower = log.follow(Lsn::FIRST).unwrap();
        for number in 1..=200 {
            log.append(&[number as u8; 100]).unwrap().wait().unwrap();
            assert_eq!(lsn(&mut follower), number);
        }
        assert_eq!(from_memory(&follower), 200);
        log.close().unwrap();
        assert!(follower.recv().unwrap().is_none());
    });
}

#[test]
fn batches_of_many_records_are_followed_from_one_to_the_next() {
    in_dir(|dir| {
        let log = options().open(dir).unwrap();
        let mut follower = log.follow(Lsn::FIRST).unwrap();
        let payload = |number: u64| number.to_le_bytes().repeat(1 + number as usize % 5);
        for first in (1..=150).step_by(3) {
            let records = [payload(first), payload(first + 1), payload(first + 2)];
            log.append_batch(&records).unwrap().wait().unwrap();
            for number in first..first + 3 {
                let record = follower.recv().unwrap().unwrap();
                assert_eq!((record.lsn().get(), record.payload()), (number, &payload(number)[..]));
            }
        }
        assert!(from_memory(&follower) > 0);
    });
}

#[test]
fn over_the_seam_and_back() {
    in_dir(|dir| {
        let log = options().tail_bytes(64 << 10).open(dir).unwrap();
        for _ in 0..10 {
            log.append(&[7; 100]).unwrap().wait().unwrap();
        }
        let mut follower = log.follow(Lsn::FIRST).unwrap();
        for number in 1..=10 {
            assert_eq!(lsn(&mut follower), number);
        }
        assert_eq!(from_memory(&follower), 0, "there was no follower yet");
        let mut next = 11;
        for round in 0..3 {
            log.append(&[8; 100]).unwrap().wait().unwrap();
            assert_eq!(lsn(&mut follower), next);
            assert_eq!(from_memory(&follower), 1 + 2 * round, "caught up");
            // More than the window holds: the disk has to serve most of it.
            for _ in 0..40 {
                log.append(&[9; 8000]).unwrap().wait().unwrap();
            }
            let before = from_memory(&follower);
            for number in next + 1..=next + 40 {
                assert_eq!(lsn(&mut follower), number);
            }
            let served = from_memory(&follower) - before;
            assert!(served < 8, "{served} of 40 came from a window of 8");
            // What it joined at is not counted on above.
            if let Source::Here(here) = &mut follower.source {
                here.from_memory = 1 + 2 * round + 1;
            }
            next += 41;
        }
    });
}

#[test]
fn a_batch_too_large_for_the_window_is_passed_by_the_disk() {
    in_dir(|dir| {
        let log = options().open(dir).unwrap();
        let mut follower = log.follow(Lsn::FIRST).unwrap();
        for round in 0..5u64 {
            log.append(&[1; 10]).unwrap().wait().unwrap();
            log.append(&vec![2; 300 << 10]).unwrap().wait().unwrap();
            log.append(&[3; 10]).unwrap().wait().unwrap();
            for (at, len) in [(1, 10), (2, 300 << 10), (3, 10)] {
                let record = follower.recv().unwrap().unwrap();
                assert_eq!(record.lsn().get(), round * 3 + at);
                assert_eq!(record.payload(), vec![at as u8; len]);
            }
        }
        assert!(from_memory(&follower) >= 5);
    });
}

#[test]
fn written_is_not_given_before_it_is_synced_and_nobody_asks_for_it() {
    in_dir(|dir| {
        let options =
            options().durability(Durability::Written).vouch_after(Duration::from_secs(99));
        let log = options.open(dir).unwrap();
        let mut follower = log.follow(Lsn::FIRST).unwrap();
        log.append(b"one").unwrap().wait().unwrap();
        assert!(matches!(follower.try_recv(), Err(FollowError::TimedOut)));
        let patience = Duration::from_millis(50);
        assert!(matches!(follower.recv_timeout(patience), Err(FollowError::TimedOut)));
        assert_eq!((log.durable_lsn(), log.stats().syncs), (Lsn::NONE, 0), "it was asked for");
        log.sync().unwrap();
        assert_eq!(follower.try_recv().unwrap().unwrap().payload(), b"one");
        assert_eq!(from_memory(&follower), 1);
    });
}

/// The cut goes through a batch that the follower reads in memory.
#[test]
fn what_was_cut_is_not_given_from_memory() {
    in_dir(|dir| {
        let log = options().open(dir).unwrap();
        let mut follower = log.follow(Lsn::FIRST).unwrap();
        log.append_batch(&[b"old"; 10]).unwrap().wait().unwrap();
        (1..=4).for_each(|number| assert_eq!(lsn(&mut follower), number));
        assert!(from_memory(&follower) > 0);
        log.truncate_after(Lsn::new(8)).unwrap();
        (5..=8).for_each(|number| assert_eq!(lsn(&mut follower), number));
        log.append_batch(&[b"new"; 2]).unwrap().wait().unwrap();
        for number in 9..=10 {
            let record = follower.recv().unwrap().unwrap();
            assert_eq!((record.lsn().get(), record.payload()), (number, &b"new"[..]));
        }
    });
}

#[test]
fn a_cut_reaches_those_who_stood_behind_it() {
    in_dir(|dir| {
        let log = options().open(dir).unwrap();
        let mut behind = log.follow(Lsn::FIRST).unwrap();
        let mut before = log.follow(Lsn::FIRST).unwrap();
        for _ in 0..10 {
            log.append(b"old").unwrap().wait().unwrap();
        }
        (1..=10).for_each(|number| assert_eq!(lsn(&mut behind), number));
        (1..=4).for_each(|number| assert_eq!(lsn(&mut before), number));
        let waiting = std::thread::spawn(move || behind.recv().unwrap_err());
        std::thread::sleep(Duration::from_millis(20));
        log.truncate_after(Lsn::new(5)).unwrap();
        let error = waiting.join().unwrap();
        let cut = |error| match error {
            FollowError::Read(ReadError::Truncated { last }) => last.get(),
            other => panic!("{other}"),
        };
        assert_eq!(cut(error), 5);
        assert_eq!(lsn(&mut before), 5);
        assert!(matches!(before.try_recv(), Err(FollowError::TimedOut)));
        log.append(b"new").unwrap().wait().unwrap();
        let record = before.recv().unwrap().unwrap();
        assert_eq!((record.lsn().get(), record.payload()), (6, &b"new"[..]));
        // It holds a batch of before the cut, and has given none of what was cut.
        log.append(b"next").unwrap().wait().unwrap();
        assert_eq!(before.recv().unwrap().unwrap().payload(), b"next");
    });
}

#[test]
fn a_page_of_a_copied_directory_is_doubted_and_one_left_behind_is_too() {
    in_dir(|dir| {
        let log = options().open(dir).unwrap();
        for _ in 0..5 {
            log.append(b"early").unwrap().wait().unwrap();
        }
        log.close().unwrap();
        let copy = dir.with_file_name("copy");
        std::fs::create_dir(&copy).unwrap();
        let copy_all = |page: bool| {
            for entry in std::fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                if (entry.file_name() == "status") == page {
                    std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
                }
            }
        };
        if !dir.join("status").exists() {
            eprintln!("skipped: this file system has no status page");
            return;
        }
        copy_all(false);
        let log = options().open(dir).unwrap();
        for _ in 0..5 {
            log.append(b"late").unwrap().wait().unwrap();
        }
        copy_all(true);
        log.close().unwrap();
        // The page says 10, the segments have 5.
        let mut follower = Follower::open_dir(&copy, Lsn::FIRST).unwrap();
        (1..=5).for_each(|number| assert_eq!(lsn(&mut follower), number));
        let patience = Duration::from_millis(50);
        assert!(matches!(follower.recv_timeout(patience), Err(FollowError::TimedOut)));
        assert_eq!(follower.next_lsn().get(), 6);
        // The page says 10, the segments have 12, and nobody writes.
        let page = std::fs::read(copy.join("status")).unwrap();
        let log = options().open(dir).unwrap();
        for _ in 0..2 {
            log.append(b"later").unwrap().wait().unwrap();
        }
        log.close().unwrap();
        std::fs::write(dir.join("status"), page).unwrap();
        let mut follower = Follower::open_dir(dir, Lsn::FIRST).unwrap();
        (1..=12).for_each(|number| assert_eq!(lsn(&mut follower), number));
    });
}

#[test]
fn what_is_durable_is_in_memory_before() {
    in_dir(|dir| {
        let log = options().open(dir).unwrap();
        let mut follower = log.follow(Lsn::FIRST).unwrap();
        // It stands in memory when the race begins: who comes late, and begins behind, reads the disk first.
        log.append(&[1; 100]).unwrap().wait().unwrap();
        assert_eq!(lsn(&mut follower), 1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 1..500 {
                    log.append(&[1; 100]).unwrap().wait().unwrap();
                }
            });
            // It never sleeps: it looks between the writer's steps.
            while follower.next_lsn() <= Lsn::new(500) {
                match follower.try_recv() {
                    Ok(record) => assert!(record.is_some()),
                    Err(FollowError::TimedOut) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        });
        assert_eq!(from_memory(&follower), 500);
    });
}
