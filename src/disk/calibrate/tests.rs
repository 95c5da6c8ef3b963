//! Choosing on a real directory: measured, kept, forced, and with io_uring refused.

use super::*;
use crate::disk::os::OsStore;
use crate::disk::os::tests::{OsDir, reap_one, write_op};

/// The disk works: a write through it is found in the file.
fn check(dir: &OsDir, disk: &mut dyn Disk, name: &str) {
    let file = dir.file(name, 1 << 16);
    disk.submit(write_op(1, &file, 4096, 4096, 7, true));
    assert!(reap_one(disk).result.is_ok());
    assert_eq!(dir.read(&file, 4096, 4096), [7; 4096]);
}

fn disk(dir: &OsDir, options: &Options) -> Result<(Box<dyn Disk>, BackendInfo), OpenError> {
    Arc::clone(&dir.store).disk(options)
}

/// Refuses io_uring_setup with this errno to the calling thread, as a container does.
fn refuse_io_uring(errno: i32) {
    let op = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program and its filter outlive the calls, which only read them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program, 0, 0), 0);
    }
}

fn ring_works(dir: &OsDir) -> bool {
    let works = Uring::new(Method::RingDsync, 1, dir.store.facts());
    if let Err(error) = &works {
        eprintln!("skipped: no io_uring: {error}");
    }
    works.is_ok()
}

#[test]
fn a_choice_is_measured_once_and_then_kept() {
    let Some(dir) = OsDir::new() else { return };
    let (mut first_disk, first) = disk(&dir, &Options::new()).unwrap();
    assert!(first.probes.len() >= Method::ALL.len());
    assert!(first.probes.iter().all(|probe| probe.refused.is_some() || probe.p50_us > 0.0));
    check(&dir, &mut *first_disk, "a");
    let mut names = dir.store.list().unwrap();
    names.sort_unstable();
    assert_eq!(names, ["a", "calibration"]);
    let (mut second_disk, second) = disk(&dir, &Options::new()).unwrap();
    assert_eq!((second.method, second.depth), (first.method, first.depth));
    assert!(second.why.contains("earlier"), "{}", second.why);
    check(&dir, &mut *second_disk, "b");
    let (_, third) = disk(&dir, &Options::new().backend(BackendChoice::Psync)).unwrap();
    assert!(!third.why.contains("earlier") && third.backend == Backend::Psync);
    std::fs::write(dir.store.path("calibration"), "version=0\n").unwrap();
    let (_, fourth) = disk(&dir, &Options::new()).unwrap();
    assert!(!fourth.why.contains("earlier"), "{}", fourth.why);
}

#[test]
fn every_method_can_be_forced() {
    let Some(dir) = OsDir::new() else { return };
    let ring_works = ring_works(&dir);
    for method in Method::ALL.into_iter().filter(|method| ring_works || !method.is_ring()) {
        let (mut disk, info) = disk(&dir, &Options::new().method(method)).unwrap();
        assert_eq!(info.method, method);
        assert_eq!(info.backend == Backend::Uring, method.is_ring());
        assert_eq!(info.ring_flags.is_empty(), !method.is_ring());
        check(&dir, &mut *disk, method.name());
    }
    if ring_works {
        let (disk, info) = disk(&dir, &Options::new().depth(4)).unwrap();
        assert_eq!((info.method, disk.depth_max()), (Method::RingDsync, 4));
    }
}

#[test]
fn without_measuring_the_first_that_works_is_taken() {
    let Some(dir) = OsDir::new() else { return };
    let (mut disk, info) = disk(&dir, &Options::new().calibrate(false)).unwrap();
    check(&dir, &mut *disk, "a");
    assert_eq!(info.depth, 1);
    assert_eq!(dir.store.list().unwrap(), ["a"]);
}

#[test]
fn where_io_uring_is_refused_plain_calls_do_it_and_say_why() {
    let Some(dir) = OsDir::new() else { return };
    let ring_works = ring_works(&dir);
    for (errno, word) in [(libc::EPERM, "seccomp"), (libc::ENOSYS, "ENOSYS")] {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                refuse_io_uring(errno);
                for expected in ["", "earlier"] {
                    let (mut disk, info) = disk(&dir, &Options::new()).unwrap();
                    assert_eq!(info.backend, Backend::Psync);
                    assert!(info.why.contains(word), "{}", info.why);
                    assert!(info.why.contains(expected), "{}", info.why);
                    check(&dir, &mut *disk, &format!("{errno}-{expected}"));
                }
                let forced = disk(&dir, &Options::new().backend(BackendChoice::Uring));
                let Err(OpenError::Unsupported { what, fix }) = forced else { panic!() };
                assert!(what.contains(word) && fix.contains("seccomp"), "{what}");
            });
        });
        // Once it is allowed again, what was kept no longer holds.
        let (_, info) = disk(&dir, &Options::new()).unwrap();
        assert_eq!(info.why.contains("earlier"), !ring_works, "{}", info.why);
        dir.store.remove("calibration").unwrap();
    }
}

#[test]
fn through_the_page_cache_only_plain_calls_are_used() {
    let dir = OsDir::buffered();
    let (mut disk_, info) = disk(&dir, &Options::new()).unwrap();
    assert_eq!(info.backend, Backend::Psync);
    assert!(info.why.contains("page cache"), "{}", info.why);
    check(&dir, &mut *disk_, "a");
    let forced = disk(&dir, &Options::new().method(Method::RingDsync));
    assert!(matches!(forced, Err(OpenError::Unsupported { .. })));
}

#[test]
fn tmpfs_works() {
    let Ok(temp) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("skipped: no /dev/shm");
        return;
    };
    let store = OsStore::open(temp.path(), false, true).unwrap();
    if store.facts().file_system != "tmpfs" {
        eprintln!("skipped: /dev/shm is no tmpfs");
        return;
    }
    assert!(store.facts().volatile);
    let dir = OsDir { store, temp };
    let (mut disk, _) = disk(&dir, &Options::new()).unwrap();
    check(&dir, &mut *disk, "a");
}

#[test]
fn options_that_exclude_each_other_are_named() {
    let Some(dir) = OsDir::new() else { return };
    let options = Options::new().backend(BackendChoice::Psync).depth(2);
    let refused = disk(&dir, &options);
    assert!(matches!(refused, Err(OpenError::InvalidOption { option: "depth", .. })));
}

#[test]
fn the_preferred_of_equals_is_picked() {
    let timed = |times: [f64; 5]| -> Vec<Timed> {
        let all = Method::ALL.into_iter().zip(times);
        all.map(|(method, time_us)| Timed::new(method, 1, vec![time_us])).collect()
    };
    assert_eq!(pick(&timed([100.0, 99.0, 98.0, 97.0, 96.0])), Method::RingDsync);
    assert_eq!(pick(&timed([116.0, 99.0, 100.0, 101.0, 102.0])), Method::RingFdatasync);
    assert_eq!(pick(&timed([118.0, 118.0, 118.0, 100.0, 120.0])), Method::PwriteFdatasync);
    assert_eq!(pick(&timed([200.0, 200.0, 200.0, 200.0, 100.0])), Method::RingLinkedFsync);
    // A busy machine: the median of the first says nothing.
    let mut busy = timed([50.0, 100.0, 100.0, 100.0, 100.0]);
    assert!(!disturbed(&busy));
    busy[0] = Timed::new(Method::RingDsync, 1, vec![50.0, 4000.0, 4000.0]);
    assert!(disturbed(&busy));
    assert_eq!(pick(&busy), Method::RingDsync);
    let five = Timed::new(Method::RingDsync, 1, vec![3.0, 1.0, 2.0, 5.0, 4.0]).probe;
    assert_eq!((five.p50_us, five.p99_us), (3.0, 5.0));
}

#[test]
fn depths_are_measured_where_they_may_pay() {
    let Some(dir) = OsDir::new() else { return };
    if !ring_works(&dir) {
        return;
    }
    let mut trial = Trial::new(&*dir.store, SCRATCH_BYTES).unwrap();
    let how = String::new();
    let mut choice =
        Choice { method: Method::RingDsync, depth: 1, how, probes: Vec::new(), keep_s: 1 };
    trial.measure_depths(&mut choice).unwrap();
    assert!(choice.probes.iter().map(|probe| probe.depth).eq([2, 4]));
    assert!(choice.probes.iter().all(|probe| probe.p50_us > 0.0));
    assert_eq!(choice.depth == 2, !choice.how.is_empty());
}
