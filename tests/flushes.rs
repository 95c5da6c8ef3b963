//! What the device is asked for: by every method, a record is acknowledged only after a flush. Seen from
//! below, by the counters of a loop device of our own: no error has to come for a missing sync to show.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{skipped, small_options, temp_dir};
use uringlog::{Durability, Log, Method, OpenError};

/// An ext4 on a loop device; unmounted when dropped.
struct Device {
    point: PathBuf,
    stat: PathBuf,
    _temp: tempfile::TempDir,
}

impl Device {
    fn mount() -> Result<Device, String> {
        let temp = temp_dir();
        let (image, point) = (temp.path().join("image"), temp.path().join("mnt"));
        File::create(&image).and_then(|file| file.set_len(64 << 20)).map_err(|e| e.to_string())?;
        std::fs::create_dir(&point).map_err(|e| e.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point))?;
        let mut device = Device { point, stat: PathBuf::new(), _temp: temp };
        device.stat = stat_of(&device.point).ok_or("the loop device has no counters")?;
        device.flushes().ok_or("the kernel does not count flushes")?;
        Ok(device)
    }

    /// Flushes that the device has carried out.
    fn flushes(&self) -> Option<u64> {
        let text = std::fs::read_to_string(&self.stat).ok()?;
        text.split_ascii_whitespace().nth(15)?.parse().ok()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _unmounted = run(Command::new("umount").arg("-l").arg(&self.point));
    }
}

fn stat_of(point: &Path) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == point.to_str())?;
    let name = line.split(' ').next()?.strip_prefix("/dev/")?;
    Some(Path::new("/sys/block").join(name).join("stat"))
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

/// How many flushes the device sees while `work` goes on, which nothing else of the log adds to.
fn counted(device: &Device, work: impl FnOnce()) -> u64 {
    // The segments that stand ready are made, and the idle log has vouched.
    let mut before = device.flushes().unwrap();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        match device.flushes().unwrap() {
            now if now == before => break,
            now => before = now,
        }
    }
    work();
    device.flushes().unwrap() - before
}

const RECORDS: u64 = 60;

#[test]
fn every_method_asks_for_a_flush_before_it_acknowledges() {
    let device = match Device::mount() {
        Ok(device) => device,
        Err(error) => {
            skipped("flushes of a loop device", error);
            return;
        }
    };
    for method in Method::ALL {
        let dir = device.point.join(method.name());
        let options = small_options().method(method).vouch_after(Duration::from_secs(3600));
        let log = match options.open(&dir) {
            Err(OpenError::Unsupported { what, .. }) => {
                skipped(method.name(), what);
                continue;
            }
            opened => opened.unwrap(),
        };
        let flushes = counted(&device, || {
            for _ in 0..RECORDS {
                log.append(b"a record").unwrap().wait().unwrap();
            }
        });
        assert!(flushes >= RECORDS, "{}: {flushes} flushes of {RECORDS} records", method.name());
        close(log, &dir);
    }
}

#[test]
fn a_log_that_syncs_when_asked_asks_for_a_flush_then() {
    let device = match Device::mount() {
        Ok(device) => device,
        Err(error) => {
            skipped("flushes of a loop device", error);
            return;
        }
    };
    for method in Method::ALL {
        let dir = device.point.join(method.name());
        let hour = Duration::from_secs(3600);
        let options =
            small_options().method(method).durability(Durability::Written).vouch_after(hour);
        let log = match options.open(&dir) {
            Err(OpenError::Unsupported { what, .. }) => {
                skipped(method.name(), what);
                continue;
            }
            opened => opened.unwrap(),
        };
        let flushes = counted(&device, || {
            for _ in 0..RECORDS {
                log.append(b"a record").unwrap().wait().unwrap();
                log.sync().unwrap();
            }
        });
        assert!(flushes >= RECORDS, "{}: {flushes} flushes of {RECORDS} syncs", method.name());
        close(log, &dir);
    }
}

fn close(log: Log, dir: &Path) {
    log.close().unwrap();
    // The next method finds room.
    std::fs::remove_dir_all(dir).unwrap();
}
