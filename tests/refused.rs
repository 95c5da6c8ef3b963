//! Machines that refuse something: io_uring, locked memory, direct I/O, space, large files. The log
//! works all the same and says so, or gives a typed error.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{
    each_backend, eventually, in_time, limit, read_all, role, run_again, say, skipped,
    small_options, temp_dir, with_mount,
};
use uringlog::{AppendError, Backend, BackendChoice, CloseError, Log, OpenError, WaitError};

/// Appends with and without waiting, over some segments, and reads it back.
fn works(log: &Log) {
    let before = log.last_lsn().get();
    for _ in 0..5 {
        log.append(b"one").unwrap().wait().unwrap();
    }
    for _ in 0..300 {
        log.append(&[7; 10_000]).unwrap();
    }
    assert_eq!(log.sync().unwrap().get(), before + 305);
    assert_eq!(read_all(log).len() as u64, before + 305);
    assert!(log.stats().rotations >= 2);
}

#[test]
fn io_uring_refused_by_seccomp() {
    for (errno, name) in [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")] {
        // The filter holds for this thread and those that it starts, the writer's among them.
        let filtered = std::thread::spawn(move || {
            if let Err(error) = common::refuse_io_uring(errno) {
                return skipped(name, format!("cannot install a seccomp filter: {error}"));
            }
            let temp = temp_dir();
            // With measuring and without.
            for calibrate in [true, false] {
                let dir = temp.path().join(calibrate.to_string());
                let options = small_options().calibrate(calibrate);
                let log = options.clone().open(&dir).unwrap();
                let backend = log.backend();
                assert_eq!(backend.backend, Backend::Psync);
                assert!(backend.why.contains(name), "{}", backend.why);
                let refused: Vec<_> =
                    backend.probes.iter().filter(|probe| probe.method.is_ring()).collect();
                assert!(!refused.is_empty() && refused.iter().all(|probe| probe.refused.is_some()));
                works(&log);
                log.close().unwrap();
                match options.backend(BackendChoice::Uring).open(&dir) {
                    Err(OpenError::Unsupported { what, fix }) => {
                        assert!(what.contains(name) && !fix.is_empty(), "{what}; {fix}");
                    }
                    other => panic!("{other:?}"),
                }
                // The refusal leaves nothing locked or broken.
                works(&small_options().open(&dir).unwrap());
            }
            true
        });
        filtered.join().unwrap();
    }
}

#[test]
fn little_memory_may_be_locked() {
    const TEST: &str = "little_memory_may_be_locked";
    if let Some((bytes, dir)) = role() {
        limit(libc::RLIMIT_MEMLOCK, bytes.parse().unwrap(), true);
        if let Err(error) = common::drop_right_to_lock_memory() {
            return say(format!("skipped: {error}"));
        }
        let log = small_options().batch_bytes_max(1 << 20).open(&dir).unwrap();
        let backend = log.backend();
        assert!(!backend.registered_buffers, "buffers of megabytes cannot be locked here");
        works(&log);
        log.close().unwrap();
        works(&small_options().calibrate(true).open(&dir).unwrap());
        return say("works");
    }
    for bytes in ["65536", "0"] {
        let temp = temp_dir();
        let said = run_again(TEST, bytes, temp.path().join("log"));
        if said != ["works"] {
            skipped(TEST, said.join(" "));
        }
    }
}

#[test]
fn memory_file_systems_are_known_to_be_volatile() {
    let shared = Path::new("/dev/shm");
    let Ok(temp) = tempfile::tempdir_in(shared) else {
        skipped("tmpfs", "no /dev/shm to write to");
        return;
    };
    let log = small_options().buffered(true).open(temp.path()).unwrap();
    let facts = &log.backend().facts;
    if facts.file_system == "tmpfs" {
        assert!(facts.volatile);
    } else {
        skipped("tmpfs", format!("/dev/shm is {}", facts.file_system));
    }
    works(&log);
    log.close().unwrap();
    works(&small_options().buffered(true).calibrate(true).open(temp.path()).unwrap());
    // This one says so too, and the disk that this is built on does not.
    let temp = temp_dir();
    let log = small_options().buffered(true).open(temp.path()).unwrap();
    let facts = &log.backend().facts;
    assert_eq!(facts.volatile, facts.file_system == "tmpfs");
}

#[test]
fn direct_io_refused() {
    let mounted = with_mount("ramfs", "", |path| {
        match small_options().open(path) {
            Err(OpenError::Unsupported { what, fix }) => {
                assert!(what.contains("direct I/O") && fix.contains("buffered"), "{what}; {fix}");
            }
            other => panic!("{other:?}"),
        }
        let options = small_options().buffered(true);
        match options.clone().backend(BackendChoice::Uring).open(path) {
            Err(OpenError::Unsupported { .. }) => {}
            other => panic!("{other:?}"),
        }
        let log = options.clone().open(path).unwrap();
        assert_eq!(log.backend().backend, Backend::Psync);
        assert!(!log.backend().facts.direct && log.backend().facts.volatile);
        works(&log);
        log.close().unwrap();
        works(&options.open(path).unwrap());
    });
    if let Err(error) = mounted {
        skipped("direct I/O refused", format!("cannot mount a ramfs: {error}"));
    }
}

#[test]
fn files_limited_below_a_segment() {
    const TEST: &str = "files_limited_below_a_segment";
    if let Some((_, dir)) = role() {
        common::ignore_file_size_signal();
        limit(libc::RLIMIT_FSIZE, 512 << 10, false);
        for calibrate in [true, false] {
            match small_options().calibrate(calibrate).open(&dir) {
                Err(OpenError::Io(error)) => {
                    assert_eq!(error.source.raw_os_error(), Some(libc::EFBIG), "{error}");
                    assert!(error.hint.contains("ulimit"), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
        // With smaller segments it works, and then the limit falls further.
        let options = || small_options().segment_bytes(256 << 10);
        let log = options().open(&dir).unwrap();
        log.append(b"acknowledged").unwrap().wait().unwrap();
        limit(libc::RLIMIT_FSIZE, 64 << 10, false);
        let mut acknowledged = 1;
        let poison = loop {
            let outcome = log.append(&[1; 10_000]).map(|ticket| ticket.wait());
            match outcome {
                Ok(Ok(lsn)) => acknowledged = lsn.get(),
                Ok(Err(WaitError::Poisoned(poison))) | Err(AppendError::Poisoned(poison)) => {
                    break poison;
                }
                other => panic!("{other:?}"),
            }
            assert!(acknowledged < 10_000, "the limit was never met");
        };
        let errno = poison.io_error().and_then(|error| error.source.raw_os_error());
        assert_eq!(errno, Some(libc::EFBIG), "{poison}");
        assert_eq!(poison.durable_lsn().get(), acknowledged);
        assert_eq!(log.durable_lsn().get(), acknowledged);
        // Late comers learn it at once; what is durable stays so and can be read.
        assert!(matches!(log.append(b"x").err(), Some(AppendError::Poisoned(_))));
        assert!(matches!(log.try_append(b"x").err(), Some(AppendError::Poisoned(_))));
        log.wait_durable(acknowledged.into()).unwrap();
        let beyond = (acknowledged + 1).into();
        assert!(matches!(log.wait_durable(beyond), Err(WaitError::Poisoned(_))));
        assert_eq!(read_all(&log).len() as u64, acknowledged);
        assert!(log.poison().is_some());
        assert!(matches!(log.close(), Err(CloseError::Poisoned(_))));
        limit(libc::RLIMIT_FSIZE, u64::MAX, false);
        let log = options().open(&dir).unwrap();
        assert!(log.recovery().last_lsn.get() >= acknowledged, "{}", log.recovery());
        works(&log);
        return say("done");
    }
    let temp = temp_dir();
    assert_eq!(run_again(TEST, "limit", temp.path().join("log")), ["done"]);
}

/// Nothing that was accepted is lost when the disk is full, and appending resumes when it is not.
#[test]
fn a_full_disk_refuses_and_goes_on_once_there_is_room() {
    let mounted = with_mount("tmpfs", "size=8m", |path| {
        let filler = path.join("filler");
        std::fs::write(&filler, vec![1; 3 << 20]).unwrap();
        let dir = path.join("log");
        let options = small_options().buffered(true).segment_bytes(256 << 10).ring_bytes(16 << 10);
        let log = options.clone().open(&dir).unwrap();
        let mut accepted = 0u64;
        let fill = |log: &Log, accepted: &mut u64| loop {
            let record = [&accepted.to_le_bytes()[..], &[2; 1500]].concat();
            match log.append(&record) {
                Ok(ticket) => {
                    *accepted += 1;
                    assert_eq!(ticket.lsn().get(), *accepted);
                }
                Err(AppendError::NoSpace) => return,
                Err(error) => panic!("{error}"),
            }
            assert!(*accepted < 10_000, "the disk was never full");
        };
        fill(&log, &mut accepted);
        assert!(accepted > 100);
        assert!(matches!(log.try_append(b"x").err(), Some(AppendError::NoSpace)));
        assert!(matches!(log.append(&[1; 50_000]).err(), Some(AppendError::NoSpace)));
        let short = Duration::from_millis(20);
        assert!(matches!(log.append_timeout(b"x", short).err(), Some(AppendError::NoSpace)));
        let syncing = log.clone();
        let synced = in_time("sync on a full disk", move || syncing.sync()).unwrap();
        assert_eq!(synced.get(), accepted, "everything accepted becomes durable");
        assert!(log.poison().is_none());
        assert_eq!(read_all(&log).len() as u64, accepted);

        std::fs::remove_file(&filler).unwrap();
        eventually("appends go on", || match log.append(&accepted.to_le_bytes()) {
            Ok(_) => true,
            Err(AppendError::NoSpace) => false,
            Err(error) => panic!("{error}"),
        });
        accepted += 1;
        fill(&log, &mut accepted);
        let closing = log.clone();
        drop(log);
        in_time("close on a full disk", move || closing.close()).unwrap();
        // Open again on the full disk: what is there can be read.
        let log = options.open(&dir).unwrap();
        let records = read_all(&log);
        assert_eq!(records.len() as u64, accepted);
        for (record, number) in records.iter().zip(0u64..) {
            assert_eq!(record[..8], number.to_le_bytes());
        }
    });
    if let Err(error) = mounted {
        skipped("a full disk", format!("cannot mount a tmpfs: {error}"));
    }
}

#[test]
fn a_directory_that_cannot_be_written_to() {
    each_backend(|case| {
        std::fs::write(&case.dir, b"a file").unwrap();
        assert!(matches!(case.options.clone().open(&case.dir), Err(OpenError::Io(_))));
        std::fs::remove_file(&case.dir).unwrap();
        let inside = case.dir.join("missing").join("\0");
        assert!(matches!(case.options.clone().open(&inside), Err(OpenError::Io(_))));
    });
    let proc = small_options().open("/proc/uringlog");
    assert!(matches!(proc, Err(OpenError::Io(_) | OpenError::NotFound { .. })), "{proc:?}");
}
