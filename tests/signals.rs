//! Signals: calls that are interrupted all the time, with and without SA_RESTART, in every thread of the
//! process; a writer that is stopped and goes on.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]
#![allow(unsafe_code)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{again, each_backend, role, run_again, said, say, small_options};
use uringlog::{AppendError, BackendChoice, FollowError, Follower, Log, Lsn, Reader, WaitError};

static INTERRUPTED: AtomicU64 = AtomicU64::new(0);

fn open(choice: &str, dir: &Path) -> Log {
    let choice = if choice.contains("Uring") { BackendChoice::Uring } else { BackendChoice::Psync };
    small_options().buffered(true).ring_bytes(4096).backend(choice).open(dir).unwrap()
}

fn handle(signal: i32, flags: i32) {
    extern "C" fn handler(_: libc::c_int) {
        INTERRUPTED.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: all-zero is a valid action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = flags;
    // SAFETY: the handler only counts, and `action` outlives the call.
    assert_eq!(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }, 0);
}

/// Interrupts every thread of the process, again and again.
fn storm(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for entry in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let tid: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: takes no pointers; a thread that has ended meanwhile is an error.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, libc::SIGALRM) };
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

#[test]
fn a_storm_of_signals_fails_no_call() {
    const TEST: &str = "a_storm_of_signals_fails_no_call";
    if let Some((choice, dir)) = role() {
        handle(libc::SIGALRM, if choice.contains("restart") { libc::SA_RESTART } else { 0 });
        return in_the_storm(&choice, &dir);
    }
    each_backend(|case| {
        for (flags, lives) in [("no flags", 1), ("restart", 2)] {
            let role = format!("{:?} {flags}", case.backend);
            assert_eq!(run_again(TEST, &role, &case.dir), ["done"]);
            assert_eq!(case.open().last_lsn().get(), lives * 6 * 300);
        }
    });
}

fn in_the_storm(choice: &str, dir: &Path) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| storm(&stop));
        let log = open(choice, dir);
        let first = log.last_lsn().get() + 1;
        std::thread::scope(|scope| {
            for id in 0..6u8 {
                let log = &log;
                scope.spawn(move || {
                    for index in 0..300 {
                        // One ring of 4 KiB for each core: they wait for room often.
                        let ticket = log.append(&vec![id; 100 + index]).unwrap();
                        match index % 20 {
                            0 => drop(ticket.wait().unwrap()),
                            1 => drop(log.sync().unwrap()),
                            2 => drop(log.space().unwrap()),
                            _ => {}
                        }
                    }
                });
            }
            scope.spawn(|| {
                let mut cursor = log.cursor("c").unwrap();
                for _ in 0..20 {
                    cursor.advance(log.durable_lsn()).unwrap();
                }
            });
            for here in [true, false] {
                let log = &log;
                scope.spawn(move || {
                    let mut follower = match here {
                        true => log.follow(Lsn::new(first)).unwrap(),
                        false => Follower::open_dir(dir, Lsn::new(first)).unwrap(),
                    };
                    for number in first..first + 6 * 300 {
                        assert_eq!(follower.recv().unwrap().unwrap().lsn().get(), number);
                    }
                });
            }
        });
        // A wait that is interrupted does not end before its time.
        let time = Duration::from_millis(100);
        let started = Instant::now();
        let far = Lsn::new(1 << 40);
        assert!(matches!(log.wait_durable_timeout(far, time), Err(WaitError::TimedOut)));
        assert!(started.elapsed() >= time);
        let started = Instant::now();
        let mut follower = log.follow(Lsn::new(log.last_lsn().get() + 1)).unwrap();
        assert!(matches!(follower.recv_timeout(time), Err(FollowError::TimedOut)));
        assert!(started.elapsed() >= time);
        let held: Vec<_> = std::iter::from_fn(|| log.try_reserve(400).ok()).collect();
        let started = Instant::now();
        let full = log.append_timeout(&[0; 400], time).err();
        if matches!(full, Some(AppendError::TimedOut)) {
            assert!(started.elapsed() >= time);
        }
        drop(held);
        let read = log.reader(Lsn::new(first)).unwrap().count();
        assert!(read >= 6 * 300);
        if full.is_none() {
            log.truncate_after(Lsn::new(first - 1 + 6 * 300)).unwrap();
        }
        log.trim(Lsn::new(first)).unwrap();
        log.close().unwrap();
        stop.store(true, Ordering::Relaxed);
    });
    assert!(INTERRUPTED.load(Ordering::Relaxed) > 100, "there was no storm");
    say("done");
}

#[test]
fn a_writer_that_is_stopped_goes_on_where_it_was() {
    const TEST: &str = "a_writer_that_is_stopped_goes_on_where_it_was";
    if let Some((choice, dir)) = role() {
        let log = open(&choice, &dir);
        say("ready");
        std::thread::scope(|scope| {
            for id in 0..4u8 {
                let log = &log;
                scope.spawn(move || (0..1000).for_each(|_| drop(log.append(&[id; 200]).unwrap())));
            }
            for _ in 0..100 {
                log.append(b"waited for").unwrap().wait_timeout(common::PATIENCE).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        say(log.close().unwrap().last_lsn);
        return;
    }
    each_backend(|case| {
        drop(case.open());
        let mut child = again(TEST, &format!("{:?}", case.backend), &case.dir).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        lines.find(|line| line.contains("@ready")).expect("it is ready");
        let signal = |signal| {
            // SAFETY: takes no pointers; the child is our own and not yet waited for.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        };
        let mut reader = Reader::open_dir(&case.dir, Lsn::FIRST).unwrap();
        let mut read = 0;
        for _ in 0..6 {
            signal(libc::SIGSTOP);
            // Readers go on with what is durable; others are kept out, as long as it lives.
            while let Some(found) = reader.next_record().unwrap() {
                read += 1;
                assert_eq!(found.lsn().get(), read);
            }
            let opened = case.options.clone().open(&case.dir);
            assert!(matches!(opened, Err(uringlog::OpenError::Locked { .. })), "{opened:?}");
            signal(libc::SIGCONT);
            std::thread::sleep(Duration::from_millis(3));
        }
        let last = lines.find_map(|line| said(&format!("{line}\n")).map(str::to_owned));
        assert!(child.wait().unwrap().success());
        assert_eq!(last.as_deref(), Some("4100"));
        assert_eq!(case.open().last_lsn().get(), 4100);
    });
}
