//! Order is real-time order: what was appended first, on any threads, has the smaller number and
//! is read first.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};

use common::{Random, each_backend};
use uringlog::{Log, Lsn};

const THREADS: u64 = 4;

/// Appends under a lock get their numbers in the order in which the lock was held: what a database
/// does that stamps its pages. Millions of them, waited for only at the end.
#[test]
fn under_a_shared_lock_numbers_are_in_lock_order() {
    each_backend(|case| {
        // Two million on a disk; memory proves the same with fewer.
        let count = if case.is_buffered() { 300_000 } else { 2_000_000 };
        let options = case.options.clone().segment_bytes(16 << 20).ring_bytes(256 << 10);
        let log = case.open_with(options.clone());
        let held = Mutex::new(0u64);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (log, held) = (&log, &held);
                scope.spawn(move || {
                    loop {
                        let mut counter = held.lock().unwrap();
                        if *counter == count {
                            return;
                        }
                        *counter += 1;
                        let (record, len) = record(thread, *counter);
                        let ticket = log.append(&record[..len]).unwrap();
                        // Nobody appends without the lock: the number is the counter.
                        assert_eq!(ticket.lsn().get(), *counter);
                        if *counter % 100_000 == 0 {
                            drop(counter);
                            ticket.wait().unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(log.sync().unwrap().get(), count);
        drop(log);
        let log = case.open_with(options);
        let mut reader = log.reader(Lsn::FIRST).unwrap();
        let mut read = 0;
        while let Some(found) = reader.next_record().unwrap() {
            read += 1;
            assert_eq!(found.lsn().get(), read, "numbers are dense");
            let thread = found.payload()[8];
            let (expected, len) = record(thread.into(), read);
            assert_eq!(found.payload(), &expected[..len], "record {read}");
        }
        assert_eq!(read, count);
    });
}

/// 16 to 64 bytes that follow from thread and counter.
fn record(thread: u64, counter: u64) -> ([u8; 64], usize) {
    let mut record = [counter as u8; 64];
    record[..8].copy_from_slice(&counter.to_le_bytes());
    record[8] = thread as u8;
    (record, 16 + (counter * 7 % 49) as usize)
}

/// Without a lock: each thread's own order, and whatever had returned before, on any thread.
#[test]
fn what_returned_before_has_a_smaller_number() {
    each_backend(|case| {
        let log = case.open();
        let largest_returned = AtomicU64::new(0);
        let each = 100_000u64;
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (log, largest_returned) = (&log, &largest_returned);
                scope.spawn(move || {
                    let mut random = Random::new(thread);
                    for index in 0..each {
                        let record = [thread.to_le_bytes(), index.to_le_bytes()].concat();
                        let before = largest_returned.load(Ordering::SeqCst);
                        let lsns = match random.below(8) {
                            0 => {
                                let mut filled = log.reserve(16).unwrap();
                                filled.copy_from_slice(&record);
                                filled.publish().unwrap().lsns()
                            }
                            1 => log.append_batch(&[&record, &record]).unwrap().lsns(),
                            _ => log.append(&record).unwrap().lsns(),
                        };
                        let (first, last) = (lsns.start().get(), lsns.end().get());
                        assert!(first > before, "{first} was given out after {before}");
                        largest_returned.fetch_max(last, Ordering::SeqCst);
                    }
                });
            }
        });
        let last = log.sync().unwrap();
        let mut next = [0; THREADS as usize];
        let mut read = 0;
        let mut repeated = false;
        let mut reader = log.reader(Lsn::FIRST).unwrap();
        while let Some(record) = reader.next_record().unwrap() {
            read += 1;
            assert_eq!(record.lsn().get(), read);
            let (thread, index) = record.payload().split_at(8);
            let thread = u64::from_le_bytes(thread.try_into().unwrap()) as usize;
            let index = u64::from_le_bytes(index.try_into().unwrap());
            // The second of a batch follows the first at once.
            repeated = !repeated && index + 1 == next[thread];
            if !repeated {
                assert_eq!(index, next[thread], "thread {thread} at record {read}");
                next[thread] += 1;
            }
        }
        assert_eq!((read, next), (last.get(), [each; THREADS as usize]));
    });
}

/// A hands a token to B after its append returned: B's number is larger.
#[test]
fn a_token_handed_on_carries_the_order() {
    each_backend(|case| {
        let log = case.open();
        let rounds = 2000;
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..THREADS).map(|_| mpsc::channel::<(u64, u64)>()).unzip();
        std::thread::scope(|scope| {
            for (index, tokens) in receivers.into_iter().enumerate() {
                let next = senders[(index + 1) % senders.len()].clone();
                let log = &log;
                scope.spawn(move || pass_on(log, &tokens, &next));
            }
            // Two tokens go round, so that appends also run side by side.
            senders[0].send((0, rounds)).unwrap();
            senders[2].send((0, rounds)).unwrap();
            drop(senders);
        });
        assert_eq!(log.sync().unwrap().get(), 2 * rounds);
    });
}

fn pass_on(log: &Log, tokens: &mpsc::Receiver<(u64, u64)>, next: &mpsc::Sender<(u64, u64)>) {
    while let Ok((before, left)) = tokens.recv() {
        if left == 0 {
            // Both tokens' ends go round and tell everyone to leave.
            next.send((0, 0)).ok();
            return;
        }
        let ticket = log.append(&before.to_le_bytes()).unwrap();
        assert!(ticket.lsn().get() > before);
        next.send((ticket.lsn().get(), left - 1)).ok();
    }
}
