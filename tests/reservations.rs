//! Reservations that are not published: dropped anywhere, forgotten, outlived by their log. They take no
//! number, give back what they held, and are bounded where they cannot. (Panics while one is filled:
//! `rings.rs`, `stress.rs`.)
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]

mod common;

use std::time::Duration;

use common::{each_backend, eventually, in_time, read_all, role, run_again, say, small_options};
use uringlog::{AppendError, BackendChoice, Log, Lsn, Options};

#[test]
fn a_reservation_may_be_finished_on_another_thread() {
    each_backend(|case| {
        let log = case.open_with(case.options.clone().rings(1).ring_bytes(4096));
        for round in 0..500u64 {
            let len = if round % 5 == 0 { 20_000 } else { 400 };
            let mut held = log.reserve(len).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    held.fill(round as u8);
                    match round % 2 {
                        0 => drop(held),
                        _ => drop(held.publish().unwrap()),
                    }
                });
            });
        }
        assert_eq!(log.sync().unwrap().get(), 250);
        let lens = read_all(&log).iter().map(Vec::len).sum::<usize>();
        assert_eq!(lens, 50 * 20_000 + 200 * 400);
    });
}

#[test]
fn a_reservation_that_outlives_its_log_is_refused() {
    each_backend(|case| {
        let log = case.open();
        let closing = log.clone();
        let (mut small, mut large) = (log.reserve(10).unwrap(), log.reserve(50_000).unwrap());
        let (small_try, large_try) = (log.reserve(10).unwrap(), log.reserve(50_000).unwrap());
        let (dropped, forgotten) = (log.reserve(10).unwrap(), log.reserve(50_000).unwrap());
        log.append(b"before").unwrap();
        in_time("close with reservations", move || closing.close()).unwrap();
        small.fill(1);
        large.fill(1);
        let closed = |error: Option<AppendError>| matches!(error, Some(AppendError::Closed));
        assert!(closed(small.publish().err()) && closed(large.publish().err()));
        assert!(closed(small_try.try_publish().err()) && closed(large_try.try_publish().err()));
        drop(dropped);
        std::mem::forget(forgotten);
        drop(log);
        assert_eq!(read_all(&case.open()), [b"before"]);
    });
}

#[test]
fn a_reservation_from_before_a_cut_is_refused_and_gives_its_room_back() {
    each_backend(|case| {
        let options = case.options.clone().rings(1).ring_bytes(4096).rings_retired_max(0);
        let log = case.open_with(options.large_bytes_max(256 << 10));
        for number in 1..=10u8 {
            log.append(&[number]).unwrap();
        }
        for round in 0..20 {
            let (small, large) = (log.reserve(300).unwrap(), log.reserve(60_000).unwrap());
            let (small_try, large_try) = (log.reserve(300).unwrap(), log.reserve(60_000).unwrap());
            log.truncate_after(Lsn::new(9)).unwrap();
            let cut = |error: Option<AppendError>| matches!(error, Some(AppendError::Truncated));
            assert!(cut(small.publish().err()) && cut(large.publish().err()), "round {round}");
            assert!(cut(small_try.try_publish().err()) && cut(large_try.try_publish().err()));
            log.append(&[10]).unwrap();
            log.sync().unwrap();
        }
        assert_eq!(read_all(&log), (1..=10).map(|number| vec![number]).collect::<Vec<_>>());
    });
}

#[test]
fn the_budget_of_large_records_comes_back() {
    each_backend(|case| {
        let log = case.open_with(case.options.clone().large_bytes_max(512 << 10));
        let len = 100_000;
        let all = |log: &Log| -> usize {
            let held: Vec<_> = std::iter::from_fn(|| log.try_reserve(len).ok()).collect();
            held.len()
        };
        eventually("segments stand ready", || all(&log) >= 4);
        let most = all(&log);
        assert!((4..=5).contains(&most), "{most}");
        for round in 0..300 {
            let held = log.reserve(len).unwrap();
            match round % 3 {
                0 => drop(held),
                1 => {
                    let panicked = std::thread::scope(|scope| {
                        scope
                            .spawn(move || {
                                let _held = held;
                                std::panic::resume_unwind(Box::new("as the test wants it"));
                            })
                            .join()
                    });
                    assert!(panicked.is_err());
                }
                _ => drop(held.publish().unwrap().wait().unwrap()),
            }
        }
        log.sync().unwrap();
        eventually("all of it is back", || all(&log) == most);
        // What is forgotten is gone for good, and no more than that.
        std::mem::forget(log.try_reserve(len).unwrap());
        eventually("all but one", || all(&log) == most - 1);
        log.append(&vec![3; len]).unwrap().wait().unwrap();
        log.close().unwrap();
    });
}

/// Memory that the process holds, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn memory_stays_within_the_bound_whatever_is_given_up_or_forgotten() {
    const TEST: &str = "memory_stays_within_the_bound_whatever_is_given_up_or_forgotten";
    if let Some((choice, dir)) = role() {
        let ring = choice == "Uring";
        return give_up(
            small_options().buffered(true).backend(match ring {
                true => BackendChoice::Uring,
                false => BackendChoice::Psync,
            }),
            &dir,
        );
    }
    each_backend(|case| {
        assert_eq!(run_again(TEST, &format!("{:?}", case.backend), &case.dir), ["done"]);
        assert_eq!(case.open().recovery().last_lsn.get(), 2000);
    });
}

/// Whether it is so for a while.
fn stays(condition: impl Fn() -> bool) -> bool {
    (0..20).all(|_| {
        std::thread::sleep(Duration::from_millis(2));
        condition()
    })
}

fn give_up(options: Options, dir: &std::path::Path) {
    let options = options.ring_bytes(256 << 10).rings_retired_max(3).large_bytes_max(1 << 20);
    let log = options.open(dir).unwrap();
    for _ in 0..1000 {
        log.append(b"x").unwrap();
    }
    log.sync().unwrap();
    drop(log.reserve(300_000).unwrap());
    let before = resident();
    for index in 0..100_000 {
        let len = if index % 100 == 0 { 300_000 } else { 400 };
        drop(log.reserve(len).unwrap());
    }
    let slack = 1 << 20;
    // Rings are as large as they are from the start; what is given up takes nothing more.
    let grown = resident().saturating_sub(before);
    assert!(grown < slack, "{grown} bytes more after 100000 were given up");
    // Forgotten ones fill the rings, and those that take their place, within what the options say.
    let mut forgotten = 0;
    for index in 0..100_000 {
        let len = if index % 100 == 0 { 300_000 } else { 400 };
        match log.try_reserve(len) {
            Ok(held) => {
                std::mem::forget(held);
                forgotten += 1;
            }
            Err(AppendError::Full) => {}
            Err(error) => panic!("{error}"),
        }
        if index % 1000 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // And what is left between them, in the ring that the writer may be about to replace too.
    eventually("no unit is left", || {
        let full = || matches!(log.try_reserve(1).map(std::mem::forget), Err(AppendError::Full));
        full() && stays(full)
    });
    let grown = resident().saturating_sub(before);
    let bound = log.memory_bytes_max();
    assert!(grown < bound + slack, "{grown} bytes more, {bound} are the most");
    let stats = log.stats();
    assert!(forgotten > 2000 && stats.rings_retired <= 3, "{forgotten} forgotten, {stats:?}");
    assert!(matches!(log.try_append(b"x").err(), Some(AppendError::Full)));
    // It closes, though no ring will ever have room again.
    let last = in_time("close a log whose rings are full for ever", move || log.close());
    assert_eq!(last.unwrap().last_lsn.get(), 1000);
    // Opened again, it has all its room.
    let log = small_options().buffered(true).open(dir).unwrap();
    for _ in 0..1000 {
        log.append(b"x").unwrap();
    }
    log.close().unwrap();
    say("done");
}
