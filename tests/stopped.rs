//! A process that is stopped while it holds the cursors' lock stops neither appends nor `close`.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use uringlog::{Lsn, Options};

#[test]
fn whoever_holds_the_cursors_does_not_hold_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new().segment_bytes(1 << 20).ring_bytes(64 << 10).buffered(true);
    let log = options.retain_bytes(2 << 20).open(dir.path()).unwrap();
    log.append(b"x").unwrap().wait().unwrap();
    let lock = File::create(dir.path().join("cursors.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let (trimming, cutting) = (log.clone(), log.clone());
    let trim = std::thread::spawn(move || trimming.trim(Lsn::new(2)).unwrap());
    let cut = std::thread::spawn(move || cutting.truncate_after(Lsn::new(u64::MAX)).unwrap());
    let begun = Instant::now();
    let record = vec![7; 16 << 10];
    let done = std::thread::spawn(move || {
        for _ in 0..500 {
            log.append(&record).unwrap().wait().unwrap();
        }
        log
    });
    while !done.is_finished() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the appends stand still");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!trim.is_finished() && !cut.is_finished(), "they wait, alone");
    drop(lock);
    let log = done.join().unwrap();
    assert!(trim.join().unwrap() >= Lsn::new(2));
    assert!(cut.join().unwrap() >= Lsn::new(2));
    let late = Instant::now() + Duration::from_secs(20);
    while log.first_lsn() < Lsn::new(100) {
        assert!(Instant::now() < late, "what was put off is made up for");
        std::thread::sleep(Duration::from_millis(10));
    }
    log.close().unwrap();
}
