//! A file system that is full: nothing accepted is lost, reading goes on, and so does appending once
//! there is room again.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{eventually, skipped, small_options, temp_dir};
use uringlog::{AppendError, Log, Lsn, Options};

/// A small ext4 in a file; unmounted when dropped.
struct SmallDisk {
    point: PathBuf,
    _temp: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(bytes: u64) -> Result<SmallDisk, String> {
        let temp = temp_dir();
        let (image, point) = (temp.path().join("image"), temp.path().join("mnt"));
        File::create(&image).and_then(|file| file.set_len(bytes)).map_err(|e| e.to_string())?;
        std::fs::create_dir(&point).map_err(|e| e.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point))?;
        Ok(SmallDisk { point, _temp: temp })
    }

    /// Takes space until so many bytes are left, more or less.
    fn leave(&self, bytes: u64) -> PathBuf {
        let path = self.point.join("ballast");
        let file = File::create(&path).unwrap();
        let chunk = vec![1; 64 << 10];
        let mut at = 0;
        while file.write_at(&chunk, at).is_ok_and(|wrote| wrote == chunk.len()) {
            at += chunk.len() as u64;
        }
        file.set_len(at.saturating_sub(bytes)).unwrap();
        file.sync_all().unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = run(Command::new("umount").arg("-l").arg(&self.point));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

fn options() -> Options {
    small_options().rings(1).ring_bytes(16 << 10).large_bytes_max(256 << 10)
}

fn payload(lsn: u64) -> Vec<u8> {
    let mut bytes = format!("record {lsn} ").into_bytes();
    bytes.resize(1500, b'.');
    bytes
}

/// Appends until there is no space, or `last` is reached.
fn append(log: &Log, last: u64) -> bool {
    while log.last_lsn().get() < last {
        let lsn = log.last_lsn().get() + 1;
        match log.append(&payload(lsn)) {
            Ok(ticket) => assert_eq!(ticket.lsn().get(), lsn),
            Err(AppendError::NoSpace) => return false,
            Err(error) => panic!("{error}"),
        }
    }
    true
}

/// All that was accepted is durable and readable.
fn check(log: &Log) {
    let last = log.sync().unwrap();
    assert_eq!(last, log.durable_lsn());
    let mut next = log.first_lsn();
    for record in log.reader(next).unwrap() {
        let (lsn, bytes) = record.unwrap();
        assert_eq!((lsn, bytes), (next, payload(next.get())));
        next = Lsn::new(next.get() + 1);
    }
    assert_eq!(next.get(), last.get() + 1);
}

fn goes_on(log: &Log, by: u64) {
    let last = log.last_lsn().get() + by;
    eventually("appending goes on", || append(log, last));
}

#[test]
fn a_full_file_system() {
    let disk = match SmallDisk::mount(40 << 20) {
        Ok(disk) => disk,
        Err(error) => {
            skipped("a full file system", format!("cannot mount a small ext4: {error}"));
            return;
        }
    };
    fills_and_goes_on(&disk.point, || disk.leave(12 << 20));
    // Full at every step of preparing a segment, and of opening a log.
    for step in 0..10 {
        let dir = disk.point.join(format!("log-{step}"));
        let log = options().open(&dir).unwrap();
        let ballast = disk.leave(step * (150 << 10));
        assert!(!append(&log, 100_000), "it is full");
        check(&log);
        std::fs::remove_file(&ballast).unwrap();
        goes_on(&log, 100);
        log.close().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

fn fills_and_goes_on(point: &Path, leave: impl FnOnce() -> PathBuf) {
    let dir = point.join("log");
    let log = options().open(&dir).unwrap();
    let ballast = leave();
    assert!(!append(&log, 100_000), "it is full");
    assert!(log.last_lsn().get() > 1000);
    check(&log);
    // Somebody else's file goes.
    std::fs::remove_file(&ballast).unwrap();
    goes_on(&log, 2000);
    check(&log);
    assert!(!append(&log, 100_000), "it is full again");
    check(&log);
    // Or what nobody needs any more.
    let half = Lsn::new(log.last_lsn().get() / 2);
    assert_eq!(log.trim(half).unwrap(), half);
    goes_on(&log, 2000);
    assert!(log.stats().recycled.count > 0);
    check(&log);
    let last = log.last_lsn();
    log.close().unwrap();
    let log = options().open(&dir).unwrap();
    assert_eq!((log.first_lsn(), log.last_lsn()), (half, last));
    check(&log);
    log.close().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}
