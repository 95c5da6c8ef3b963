//! A log's life: opened a thousand times, locked, forked, left without a close, idle, read while it
//! is written.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]
#![allow(unsafe_code)]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{
    again, cpu_used, each_backend, eventually, in_time, read_all, read_from, role, run_again, said,
    say, small_options, temp_dir,
};
use uringlog::{
    AppendError, CloseError, Durability, Log, Lsn, OpenError, ReadError, Reader, WaitError,
};

#[test]
fn a_thousand_opens_stay_bounded_in_space() {
    let is_first = AtomicBool::new(true);
    each_backend(|case| {
        // The place where writing goes on does not depend on the backend: one of them does for all.
        let opens = if is_first.swap(false, Ordering::Relaxed) { 1000 } else { 200 };
        let options = case.options.clone().segment_bytes(256 << 10).ring_bytes(4096);
        let mut most = 0;
        for number in 1..=opens {
            let log = case.open_with(options.clone());
            assert_eq!(log.recovery().last_lsn.get(), number - 1);
            assert!(log.recovery().clean, "{}", log.recovery());
            assert_eq!(log.append(&number.to_le_bytes()).unwrap().lsn().get(), number);
            log.close().unwrap();
            if number == 10 || number % 100 == 0 {
                most = most.max(bytes_in(&case.dir));
            }
        }
        // A record and an empty batch, a block each, every time; the live and the ready segments.
        let log = case.open_with(options.clone());
        let block_bytes = log.backend().facts.block_bytes as u64;
        let ready = log.recovery().ready_segments as u64;
        let bound = (opens + 1) * 2 * block_bytes + (3 + ready) * (256 << 10);
        assert!(most <= bound, "{}: {most} bytes, {bound} are enough", case.name);
        let records = read_all(&log);
        assert!(records.iter().zip(1u64..).all(|(record, number)| *record == number.to_le_bytes()));
        assert_eq!(records.len() as u64, opens);
    });
}

fn bytes_in(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn reopening_goes_on_with_the_numbers() {
    each_backend(|case| {
        let mut expected = Vec::new();
        for round in 0..20u8 {
            let log = case.open();
            assert_eq!(log.last_lsn().get(), expected.len() as u64);
            assert_eq!(log.durable_lsn(), log.last_lsn());
            assert_eq!(read_all(&log), expected);
            for index in 0..round % 5 {
                expected.push(vec![round; 1000 * usize::from(index)]);
                let ticket = log.append(expected.last().unwrap()).unwrap();
                assert_eq!(ticket.lsn().get(), expected.len() as u64);
            }
        }
    });
}

#[test]
fn not_found_and_foreign_are_told_apart() {
    each_backend(|case| {
        let options = case.options.clone().create(false);
        let not_found = options.clone().open(&case.dir);
        assert!(matches!(&not_found, Err(OpenError::NotFound { dir }) if *dir == case.dir));
        assert!(!case.dir.exists(), "nothing is created");
        std::fs::create_dir(&case.dir).unwrap();
        assert!(matches!(options.clone().open(&case.dir), Err(OpenError::NotFound { .. })));
        let unread = Reader::open_dir(&case.dir, Lsn::NONE);
        assert!(matches!(unread, Err(ReadError::NotFound { .. })), "{unread:?}");

        let segment = |dir: &Path, epoch| dir.join(format!("{epoch:020}.seg"));
        let other = case.dir("other");
        for dir in [&case.dir, &other] {
            let log = case.options.clone().open(dir).unwrap();
            log.append(b"x").unwrap().wait().unwrap();
            eventually("a segment stands ready", || segment(dir, 2).exists());
        }
        assert_eq!(read_all(&options.clone().open(&case.dir).unwrap()), [b"x"]);

        // Another log's segment, and one of this log under another's name.
        let own = std::fs::read(segment(&case.dir, 2)).unwrap();
        for stranger in [segment(&other, 2), segment(&case.dir, 1)] {
            std::fs::copy(stranger, segment(&case.dir, 2)).unwrap();
            match options.clone().open(&case.dir) {
                Err(OpenError::Foreign { path, reason }) => {
                    assert_eq!(path, segment(&case.dir, 2));
                    assert!(!reason.is_empty());
                }
                other => panic!("{other:?}"),
            }
        }
        std::fs::write(segment(&case.dir, 2), own).unwrap();
        assert_eq!(read_all(&options.open(&case.dir).unwrap()), [b"x"]);
    });
}

#[test]
fn one_writer_only() {
    const TEST: &str = "one_writer_only";
    if let Some((_, dir)) = role() {
        let log = small_options().buffered(true).open(&dir).unwrap();
        log.append(b"held").unwrap().wait().unwrap();
        say("ready");
        loop {
            std::thread::park();
        }
    }
    each_backend(|case| {
        let log = case.open();
        let pid_of = |opened: Result<Log, OpenError>| match opened {
            Err(OpenError::Locked { dir, holder }) => {
                assert_eq!(dir, case.dir.join(""));
                holder.map(|holder| holder.pid)
            }
            other => panic!("{other:?}"),
        };
        let try_open = || case.options.clone().open(&case.dir);
        assert_eq!(pid_of(try_open()), Some(std::process::id()));
        log.append(b"still works").unwrap().wait().unwrap();
        drop(log);

        let mut child = again(TEST, "hold", &case.dir).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        wait_for_word(&mut lines, "ready");
        assert_eq!(pid_of(try_open()), Some(child.id()));
        let text = try_open().unwrap_err().to_string();
        assert!(text.contains(&child.id().to_string()), "{text}");
        // Readers are welcome.
        let records = Reader::open_dir(&case.dir, Lsn::FIRST).unwrap();
        eventually("the holder's record is vouched for", || {
            Reader::open_dir(&case.dir, Lsn::FIRST).unwrap().count() == 2
        });
        drop(records);
        child.kill().unwrap();
        child.wait().unwrap();
        let log = case.open();
        assert_eq!(read_all(&log), [b"still works".as_slice(), b"held"]);
    });
}

fn wait_for_word(lines: &mut impl BufRead, word: &str) {
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if said(&line) == Some(word) {
            return;
        }
        line.clear();
    }
    panic!("it ended without saying {word:?}");
}

#[test]
fn a_forked_child_gets_errors_and_harms_nobody() {
    const TEST: &str = "a_forked_child_gets_errors_and_harms_nobody";
    if let Some((_, dir)) = role() {
        return fork_with_a_log(&dir);
    }
    each_backend(|case| {
        assert_eq!(run_again(TEST, "fork", &case.dir), ["done"]);
        let log = case.open();
        assert!(log.recovery().clean, "{}", log.recovery());
        let mut expected = vec![b"before".to_vec()];
        expected.extend((0..100u8).map(|index| vec![index; 100]));
        assert_eq!(read_all(&log), expected);
        let childs = case.options.clone().create(false).open(case.dir("childs")).unwrap();
        assert_eq!(read_all(&childs), [b"the child's own"]);
    });
}

/// Forks in a process of its own, whose other threads are all the log's and idle.
fn fork_with_a_log(dir: &Path) {
    let options = || small_options().buffered(true);
    let log = options().open(dir).unwrap();
    let ticket = log.append(b"before").unwrap().into_owned();
    log.sync().unwrap();
    let later = log.append_batch(&[[0; 100]]).unwrap().into_owned();
    let mut held = log.reserve(100).unwrap();
    held.fill(99);
    log.sync().unwrap();
    let in_child = |child: &dyn Fn() -> u8| {
        // SAFETY: the child uses nothing that another thread may have locked: those are idle.
        match unsafe { libc::fork() } {
            0 => {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
                // SAFETY: ends the child without running what the parent has to run.
                unsafe { libc::_exit(i32::from(outcome.unwrap_or(u8::MAX))) }
            }
            pid => {
                assert!(pid > 0);
                pid
            }
        }
    };
    let exit_code = |pid| {
        let mut status = 0;
        // SAFETY: `pid` is our own child, and `status` outlives the call.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        std::process::ExitStatus::from_raw(status).code()
    };
    let child = in_child(&|| {
        let forked = |error: Option<AppendError>| matches!(error, Some(AppendError::Forked));
        let checks = [
            forked(log.append(b"x").err()),
            forked(log.try_append(b"x").err()),
            forked(log.append(&[1; 100_000]).err()),
            forked(log.append_batch(&["x"]).err()),
            forked(log.reserve(1).err()),
            matches!(log.sync(), Err(WaitError::Forked)),
            matches!(log.wait_durable(Lsn::FIRST), Err(WaitError::Forked)),
            matches!(later.wait_timeout(Duration::from_secs(1)), Err(WaitError::Forked)),
            matches!(log.clone().close(), Err(CloseError::Forked)),
        ];
        checks.iter().position(|&passed| !passed).map_or(0, |failed| failed as u8 + 1)
    });
    assert_eq!(exit_code(child), Some(0));
    // A child that ends as processes end, with its handles dropped.
    let child = in_child(&|| {
        drop(log.clone());
        let copy = std::mem::ManuallyDrop::new(log.clone());
        // SAFETY: as if the child had dropped every handle; nothing of it is used again there.
        unsafe { std::ptr::drop_in_place(std::ptr::from_ref(&*copy).cast_mut()) };
        0
    });
    assert_eq!(exit_code(child), Some(0));
    // A child may have a log of its own.
    let child = in_child(&|| {
        let own = options().open(dir.with_file_name("childs")).unwrap();
        own.append(b"the child's own").unwrap().wait().unwrap();
        own.close().unwrap();
        0
    });
    assert_eq!(exit_code(child), Some(0));
    for index in 1..99 {
        log.append(&[index; 100]).unwrap();
    }
    held.publish().unwrap().wait().unwrap();
    ticket.wait().unwrap();
    later.wait().unwrap();
    // One that lives on when the log is closed does not keep it locked.
    let child = in_child(&|| {
        std::thread::sleep(common::PATIENCE);
        0
    });
    log.close().unwrap();
    drop(options().open(dir).unwrap());
    // SAFETY: takes no pointers; `child` is our own and not yet waited for.
    unsafe { libc::kill(child, libc::SIGKILL) };
    exit_code(child);
    say("done");
}

#[test]
fn what_was_waited_for_is_there_without_a_close() {
    const TEST: &str = "what_was_waited_for_is_there_without_a_close";
    if let Some((_, dir)) = role() {
        let log = small_options().buffered(true).open(&dir).unwrap();
        let batch = vec![[7; 5000]; 20];
        assert_eq!(log.append_batch(&batch).unwrap().wait().unwrap().get(), 20);
        log.append(b"last").unwrap().wait().unwrap();
        say(log.durable_lsn());
        std::process::exit(0);
    }
    each_backend(|case| {
        assert_eq!(run_again(TEST, "exit", &case.dir), ["21"]);
        let log = case.open();
        assert_eq!(log.recovery().last_lsn.get(), 21);
        assert_eq!(read_all(&log).len(), 21);
        log.append(b"and on").unwrap().wait().unwrap();
    });
}

/// That writer and preparer sleep, not how fast anything is: an idle second costs next to nothing,
/// where a polling thread would burn all of it, or wake a thousand times.
#[test]
fn an_idle_log_uses_no_cpu() {
    const TEST: &str = "an_idle_log_uses_no_cpu";
    if let Some((_, dir)) = role() {
        let log = small_options().buffered(true).open(&dir).unwrap();
        log.append(b"x").unwrap().wait().unwrap();
        // A waiter and a full ring's waiter sleep too.
        let waiter = log.clone();
        std::thread::spawn(move || waiter.wait_durable(Lsn::new(1 << 40)));
        let idle_second = || {
            let (cpu, sleeps) = (cpu_used(), log.stats().writer_sleeps);
            std::thread::sleep(Duration::from_secs(1));
            (cpu_used() - cpu, log.stats().writer_sleeps - sleeps)
        };
        // Preparing the first segments may go on for a while.
        let seconds: Vec<_> = (0..10)
            .map(|_| idle_second())
            .take_while(|&(cpu, sleeps)| cpu >= Duration::from_millis(20) || sleeps > 0)
            .collect();
        assert!(seconds.len() < 10, "CPU time and wake-ups in idle seconds: {seconds:?}");
        say("idle");
        std::process::exit(0);
    }
    each_backend(|case| assert_eq!(run_again(TEST, "idle", &case.dir), ["idle"]));
}

/// Nobody appends, asks or closes: the writer wakes by itself for what is left to do.
#[test]
fn an_idle_log_syncs_and_vouches_by_itself() {
    each_backend(|case| {
        let log = case.open();
        log.append(b"record").unwrap().wait().unwrap();
        eventually("the record is vouched for", || log.stats().vouches > 0);
        log.close().unwrap();
        let written = case.at("written");
        let log = written.open_with(case.options.clone().durability(Durability::Written));
        log.append(b"record").unwrap().wait().unwrap();
        eventually("the record is synced", || log.durable_lsn() == Lsn::FIRST);
        eventually("the record is vouched for", || log.stats().vouches > 0);
        log.close().unwrap();
    });
}

#[test]
fn readers_follow_the_writer_and_see_durable_records_only() {
    each_backend(|case| {
        let log = case.open();
        let count = 20_000u64;
        let writing = AtomicBool::new(true);
        std::thread::scope(|scope| {
            for start in [1, 1, 500] {
                let (log, writing) = (&log, &writing);
                scope.spawn(move || {
                    let mut reader = log.reader(Lsn::new(start)).unwrap();
                    let mut next = start;
                    loop {
                        let was_writing = writing.load(Ordering::Acquire);
                        while let Some(record) = reader.next_record().unwrap() {
                            // Taken after the record was returned: it must have been durable.
                            assert!(record.lsn() <= log.durable_lsn());
                            assert_eq!(record.lsn().get(), next);
                            assert_eq!(record.payload()[..8], next.to_le_bytes());
                            assert!(record.payload()[8..].iter().all(|&byte| byte == next as u8));
                            next += 1;
                        }
                        if !was_writing {
                            break;
                        }
                        std::thread::yield_now();
                    }
                    assert_eq!(next, count + 1);
                });
            }
            for number in 1..=count {
                let mut record = vec![number as u8; 8 + (number as usize * 7) % 400];
                record[..8].copy_from_slice(&number.to_le_bytes());
                let ticket = log.append(&record).unwrap();
                if number % 500 == 0 {
                    ticket.wait().unwrap();
                }
            }
            log.sync().unwrap();
            writing.store(false, Ordering::Release);
        });
        assert!(log.stats().rotations >= 3, "{:?}", log.stats());
    });
}

#[test]
fn a_reader_in_another_process_follows() {
    const TEST: &str = "a_reader_in_another_process_follows";
    if let Some((_, dir)) = role() {
        let mut reader = Reader::open_dir(&dir, Lsn::FIRST).unwrap();
        let mut next = 1u64;
        say("ready");
        eventually("the last record", || {
            while let Some(record) = reader.next_record().unwrap() {
                assert_eq!(record.lsn().get(), next);
                assert_eq!(record.payload()[..8], next.to_le_bytes());
                next += 1;
            }
            next == 3001
        });
        say("done");
        return;
    }
    each_backend(|case| {
        let log = case.open();
        let mut child = again(TEST, "follow", &case.dir).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        wait_for_word(&mut lines, "ready");
        for number in 1..=3000u64 {
            let ticket = log.append(&[&number.to_le_bytes()[..], &[1; 992]].concat()).unwrap();
            if number % 100 == 0 {
                ticket.wait().unwrap();
            }
        }
        log.sync().unwrap();
        wait_for_word(&mut lines, "done");
        assert!(child.wait().unwrap().success());
        assert!(log.stats().rotations >= 2);
    });
}

#[test]
fn readers_start_anywhere_in_many_segments() {
    each_backend(|case| {
        let options = case.options.clone().segment_bytes(256 << 10);
        let log = case.open_with(options.clone());
        let expected: Vec<Vec<u8>> =
            (0..4000u64).map(|n| [&n.to_le_bytes()[..], &[3; 492]].concat()).collect();
        for chunk in expected.chunks(7) {
            log.append_batch(chunk).unwrap();
        }
        log.sync().unwrap();
        assert!(log.stats().rotations >= 7);
        let check = |log: &Log| {
            for from in [1, 2, 7, 8, 500, 1999, 3993, 3999, 4000] {
                let read = read_from(log.reader(Lsn::new(from)).unwrap(), from);
                assert!(read == expected[from as usize - 1..], "{}: from {from}", case.name);
            }
            let mut behind = log.reader(Lsn::new(4001)).unwrap();
            assert!(behind.next_record().unwrap().is_none());
            assert_eq!(read_from(log.reader(Lsn::NONE).unwrap(), 1).len(), 4000);
        };
        check(&log);
        let mut following = log.reader(Lsn::new(4001)).unwrap();
        log.close().unwrap();
        let log = case.open_with(options);
        check(&log);
        log.append(b"new").unwrap().wait().unwrap();
        // A reader does not need its log, but knows only what that one made durable.
        assert!(following.next_record().unwrap().is_none());
        let mut following = log.reader(Lsn::new(4001)).unwrap();
        assert_eq!(following.next_record().unwrap().unwrap().payload(), b"new");
    });
}

#[test]
fn closing_while_others_append_loses_nothing_accepted() {
    each_backend(|case| {
        for _ in 0..10 {
            let log = case.open();
            let before = log.last_lsn().get();
            let closing = log.clone();
            let accepted: u64 = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|_| {
                        let log = log.clone();
                        scope.spawn(move || {
                            let mut accepted = 0;
                            loop {
                                match log.append(&[5; 50]) {
                                    Ok(_) => accepted += 1,
                                    Err(AppendError::Closed) => return accepted,
                                    Err(error) => panic!("{error}"),
                                }
                            }
                        })
                    })
                    .collect();
                std::thread::sleep(Duration::from_millis(10));
                in_time("close", move || closing.close()).unwrap();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(log.last_lsn().get(), before + accepted);
            assert_eq!(log.durable_lsn(), log.last_lsn());
            drop(log);
            assert_eq!(case.open().recovery().last_lsn.get(), before + accepted);
        }
    });
}

#[test]
fn the_directory_may_stand_deep_and_is_not_left_open() {
    let temp = temp_dir();
    let deep = temp.path().join("a/b/c");
    let log = small_options().open(&deep).unwrap();
    log.append(b"x").unwrap().wait().unwrap();
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap();
    let in_dir = |deep: &Path| {
        open_files()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.starts_with(deep))
            .count()
    };
    assert!(in_dir(&deep) > 0);
    log.close().unwrap();
    eventually("every file is closed", || in_dir(&deep) == 0);
}
