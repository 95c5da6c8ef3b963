//! The rings under stress: threads that move, too few rings, reservations that are never finished,
//! records larger than a ring, windows smaller than the rings.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use common::{Random, cores, each_backend, eventually, in_time, move_to, read_all, small_options};
use uringlog::{AppendError, Log, Lsn, Options};

/// `threads` threads append `each` records, now and then a batch or a large one, some waiting;
/// `between` runs between two appends. Checks that all are there in each thread's order.
fn hammer(log: &Log, threads: u64, each: u64, between: impl Fn(u64) + Sync) {
    let before = log.last_lsn().get();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let between = &between;
            scope.spawn(move || {
                let mut random = Random::new(thread);
                for index in 0..each {
                    between(index);
                    let body = if random.below(200) == 0 { 20_000 } else { random.below(200) };
                    let record = record(thread, index, body as usize);
                    let ticket = match random.below(50) {
                        0 => log.append_batch(&[&record, &record, &record]),
                        1 => {
                            let mut filled = log.reserve(record.len()).unwrap();
                            filled.copy_from_slice(&record);
                            filled.publish()
                        }
                        2 => {
                            drop(log.reserve(record.len()).unwrap());
                            log.append(&record)
                        }
                        _ => log.append(&record),
                    }
                    .unwrap();
                    if random.below(64) == 0 {
                        ticket.wait().unwrap();
                    }
                }
            });
        }
    });
    let last = log.sync().unwrap().get();
    let mut next = vec![0; threads as usize];
    let mut read = before;
    let mut reader = log.reader(Lsn::new(before + 1)).unwrap();
    while let Some(found) = reader.next_record().unwrap() {
        read += 1;
        assert_eq!(found.lsn().get(), read, "numbers are dense");
        let word = |at: usize| u64::from_le_bytes(found.payload()[at..at + 8].try_into().unwrap());
        let (thread, index) = (word(0) as usize, word(8));
        let expected = record(thread as u64, index, found.payload().len() - 16);
        assert!(found.payload() == expected, "record {read}");
        assert!(index == next[thread] || index + 1 == next[thread], "thread {thread}");
        next[thread] = index + 1;
    }
    assert_eq!(read, last);
    assert_eq!(next, vec![each; threads as usize], "every record is there");
}

fn record(thread: u64, index: u64, body: usize) -> Vec<u8> {
    let mut record = [thread.to_le_bytes(), index.to_le_bytes()].concat();
    record.extend(std::iter::repeat_n((thread + index) as u8 | 1, body));
    record
}

#[test]
fn more_threads_than_cores() {
    each_backend(|case| hammer(&case.open(), 64, 400, |_| {}));
}

#[test]
fn threads_that_move_between_cores() {
    let cores = cores();
    if cores.len() < 2 {
        common::skipped("moving threads", "there is only one core");
        return;
    }
    each_backend(|case| {
        let log = case.open();
        hammer(&log, 8, 4000, |index| {
            if index % 50 == 0 {
                move_to(cores[(index / 50) as usize % cores.len()]);
            }
        });
    });
}

#[test]
fn one_ring_for_all_cores() {
    each_backend(|case| {
        let log = case.open_with(case.options.clone().rings(1).ring_bytes(4096));
        hammer(&log, 8, 2000, |_| {});
    });
}

#[test]
fn more_rings_than_cores() {
    each_backend(|case| {
        let log = case.open_with(case.options.clone().rings(16).ring_bytes(4096));
        hammer(&log, 8, 2000, |_| {});
    });
}

#[test]
fn a_window_smaller_than_the_rings() {
    each_backend(|case| {
        let log = case.open_with(case.options.clone().window_records(16));
        for _ in 0..20 {
            for _ in 0..500 {
                log.append(b"").unwrap();
            }
            log.sync().unwrap();
        }
        assert!(log.stats().beyond_window > 0, "the window was never too small");
        hammer(&log, 8, 2000, |_| {});
        let batch = vec![b"in a batch larger than the window"; 100];
        log.append_batch(&batch).unwrap().wait().unwrap();
        log.append(b"behind").unwrap().wait().unwrap();
    });
}

/// Leaks a reservation in the ring of every core that has one of its own.
fn leak_in_every_ring(log: &Log) -> u64 {
    let cores = cores();
    let lanes = cores.len().min(2);
    for &core in &cores[..lanes] {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                move_to(core);
                let mut leaked = log.reserve(40).unwrap();
                leaked.fill(0xEE);
                std::mem::forget(leaked);
            });
        });
    }
    lanes as u64
}

#[test]
fn a_leaked_reservation_in_every_ring_stops_nobody() {
    each_backend(|case| {
        let log = case.open();
        let leaked = leak_in_every_ring(&log);
        let record = [1; 500];
        let ten_times = 10 * 2 * (64 << 10) / 512;
        let writer = log.clone();
        in_time("append ten times the rings' capacity", move || {
            // From every core, so that every ring is filled.
            std::thread::scope(|scope| {
                for core in cores() {
                    let writer = &writer;
                    scope.spawn(move || {
                        move_to(core);
                        for _ in 0..ten_times {
                            writer.append(&record).unwrap();
                        }
                    });
                }
            });
            writer.sync().unwrap();
        });
        let stats = log.stats();
        assert_eq!(stats.appends, ten_times * cores().len() as u64);
        assert!((1..=leaked).contains(&stats.rings_retired), "{stats:?}");
        assert!(read_all(&log).iter().all(|found| *found == record));
        let closing = log.clone();
        drop(log);
        in_time("close with leaked reservations", move || closing.close()).unwrap();
        assert_eq!(case.open().recovery().last_lsn.get(), stats.appends);
    });
}

#[test]
fn leaks_beyond_the_bound_push_back_and_lose_nothing() {
    each_backend(|case| {
        let options = case.options.clone().rings(1).ring_bytes(4096).rings_retired_max(1);
        let log = case.open_with(options);
        // 63 places behind the first leak, 63 behind the second in the spare ring.
        for leaked in 1..=2 {
            std::mem::forget(log.reserve(1).unwrap());
            for _ in 0..63 {
                log.append(b"kept").unwrap();
            }
            assert_eq!(log.sync().unwrap().get(), leaked * 63);
        }
        assert_eq!(log.stats().rings_retired, 1);
        assert!(matches!(log.try_append(b"x").err(), Some(AppendError::Full)));
        let timed_out = log.append_timeout(b"x", Duration::from_millis(20)).err();
        assert!(matches!(timed_out, Some(AppendError::TimedOut)));
        assert_eq!(log.close().unwrap().last_lsn.get(), 126);
        let log = case.open();
        assert_eq!(read_all(&log), vec![b"kept"; 126]);
        log.append(b"and on").unwrap().wait().unwrap();
    });
}

#[test]
fn a_retired_ring_serves_again_once_its_reservation_ends() {
    each_backend(|case| {
        let options = case.options.clone().rings(1).ring_bytes(4096).rings_retired_max(1);
        let log = case.open_with(options);
        for round in 1..=20 {
            let held = log.reserve(1).unwrap();
            for _ in 0..200 {
                log.append_timeout(b"x", common::PATIENCE).unwrap();
            }
            if round % 2 == 0 {
                drop(held);
            } else {
                held.publish().unwrap();
            }
            log.sync().unwrap();
            assert_eq!(log.stats().rings_retired, round, "the two rings take turns");
        }
        assert_eq!(log.last_lsn().get(), 20 * 200 + 10);
    });
}

#[test]
fn records_and_batches_larger_than_a_ring() {
    each_backend(|case| {
        let log = case.open_with(case.options.clone().ring_bytes(4096));
        let sent: Vec<Vec<Vec<u8>>> = (0..40usize)
            .map(|seed| match seed % 4 {
                0 => vec![vec![seed as u8; 5000]],
                1 => (0..300).map(|index| vec![index as u8; 50]).collect(),
                2 => vec![vec![seed as u8; 60]],
                _ => vec![vec![seed as u8; 300_000]],
            })
            .collect();
        for batch in &sent {
            match &batch[..] {
                [one] => log.append(one).unwrap(),
                several => log.append_batch(several).unwrap(),
            };
        }
        log.sync().unwrap();
        assert!(read_all(&log) == sent.concat());
        hammer(&log, 4, 500, |_| {});
    });
}

#[test]
fn a_panic_while_a_record_is_filled_takes_no_number() {
    /// Panics when its bytes are asked for the second time: when they are copied.
    struct Panics(std::cell::Cell<bool>);
    impl AsRef<[u8]> for Panics {
        fn as_ref(&self) -> &[u8] {
            assert!(!self.0.replace(true), "as the test wants it");
            b"never in the log"
        }
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let expected = info.payload().downcast_ref::<&str>();
        if expected != Some(&"as the test wants it") {
            hook(info);
        }
    }));
    each_backend(|case| {
        let log = case.open_with(case.options.clone().ring_bytes(4096).rings(1));
        let mut kept = 0;
        // Often enough to fill the ring many times over.
        for round in 0..300 {
            let panicked = catch_unwind(AssertUnwindSafe(|| match round % 3 {
                0 => {
                    let mut filled = log.reserve(if round % 2 == 0 { 200 } else { 9000 }).unwrap();
                    filled[0] = 1;
                    panic!("as the test wants it");
                }
                1 => {
                    log.append_batch(&[Panics(false.into())]).unwrap();
                }
                _ => {
                    let large = vec![b"x".as_slice(); 1000];
                    log.append_batch(&large).unwrap();
                    log.append_batch(&[Panics(false.into())]).unwrap();
                }
            }));
            assert!(panicked.is_err());
            kept += if round % 3 == 2 { 1000 } else { 0 };
            log.append(b"kept").unwrap();
            kept += 1;
            assert_eq!(log.last_lsn().get(), kept);
        }
        assert_eq!(log.sync().unwrap().get(), kept);
        let read = read_all(&log);
        assert!(read.iter().all(|record| record == b"kept" || record == b"x"));
        log.close().unwrap();
    });
}

#[test]
fn aborted_reservations_give_their_space_back() {
    each_backend(|case| {
        let log = case.open_with(case.options.clone().rings(1).ring_bytes(4096));
        // Nobody publishes anything: only aborts can make room.
        for _ in 0..500 {
            drop(log.reserve(400).unwrap());
        }
        let log = wait_for_room_made_by_an_abort(log);
        assert_eq!(log.last_lsn(), Lsn::NONE);
        log.append(b"x").unwrap().wait().unwrap();
    });
}

/// One thread waits for room while the ring is full of reservations; then they are dropped.
fn wait_for_room_made_by_an_abort(log: Log) -> Log {
    for round in 0..50 {
        let first = log.reserve(1).unwrap();
        let held: Vec<_> = (0..64).map_while(|_| log.try_reserve(1).ok()).collect();
        let waiter = log.clone();
        let waiting = std::thread::spawn(move || waiter.reserve(1).map(drop));
        let before = log.stats().ring_full.count;
        // The waiter sleeps by then, or is just about to.
        std::thread::sleep(Duration::from_millis(round % 3));
        drop((first, held));
        in_time("reserve after others were dropped", || waiting.join().unwrap()).unwrap();
        eventually("the wait is counted", || log.stats().ring_full.count >= before);
    }
    log
}

/// Many waiters at a tiny ring, with aborts among them: nobody sleeps for ever.
#[test]
fn nobody_waits_for_ever_for_room() {
    each_backend(|case| {
        let log = case.open_with(case.options.clone().rings(2).ring_bytes(4096));
        in_time("hammer a tiny ring", move || {
            std::thread::scope(|scope| {
                for thread in 0..16u64 {
                    let log = &log;
                    scope.spawn(move || {
                        let mut random = Random::new(thread);
                        for _ in 0..2000 {
                            let held = log.reserve(random.below(512) as usize).unwrap();
                            match random.below(3) {
                                0 => drop(held),
                                _ => drop(held.publish().unwrap()),
                            }
                        }
                    });
                }
            });
            log.close().unwrap();
        });
    });
}

#[test]
fn the_default_number_of_rings_works_everywhere() {
    let temp = common::temp_dir();
    let case_options: Options = small_options();
    let log = Options::new().calibrate(false).segment_bytes(8 << 20).open(temp.path()).unwrap();
    hammer(&log, 8, 2000, |_| {});
    log.close().unwrap();
    // And the log does not remember how many there were.
    let log = case_options.open(temp.path()).unwrap();
    hammer(&log, 8, 500, |_| {});
}
