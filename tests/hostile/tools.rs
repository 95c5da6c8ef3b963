//! A small log to tamper with, everything that opens one, and what stands in a directory.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use uringlog::{BackReader, Cursor, FollowError, Follower, Lsn, Options, Reader};

use crate::common::in_time;

pub const SEGMENT_BYTES: u64 = 64 << 10;
pub const RECORDS: u64 = 60;
pub const FIRST_SEGMENT: &str = "00000000000000000001.seg";

pub fn options() -> Options {
    Options::new()
        .segment_bytes(SEGMENT_BYTES)
        .segments_ready(1)
        .rings(1)
        .ring_bytes(64 << 10)
        .batch_bytes_max(64 << 10)
        .large_bytes_max(64 << 10)
        .calibrate(false)
        .buffered(true)
}

pub fn record(lsn: u64) -> Vec<u8> {
    let mut record = format!("record {lsn} ").into_bytes();
    record.resize(3000, lsn as u8);
    record
}

/// A log of some segments with a cursor, closed.
pub fn make_log(dir: &Path) {
    let log = options().open(dir).expect("the log is made");
    for lsn in 1..=RECORDS {
        log.append(&record(lsn)).expect("room").wait().expect("durable");
    }
    log.cursor("c").expect("a cursor").advance(Lsn::new(5)).expect("it moves");
    log.close().expect("it closes");
    assert!(*last_segment(dir) > *FIRST_SEGMENT);
}

/// The name of the last segment.
pub fn last_segment(dir: &Path) -> String {
    let names = fs::read_dir(dir).expect("it is listed");
    let names = names.map(|entry| entry.expect("an entry").file_name());
    let segments = names.filter_map(|name| name.into_string().ok());
    segments.filter(|name| name.ends_with(".seg")).max().expect("there is one")
}

/// What each way to open a log says: all of them, each within a time.
pub fn open_all(dir: &Path) -> BTreeMap<&'static str, Result<(), String>> {
    let mut said = BTreeMap::new();
    let mut run = |what: &'static str, open: fn(&Path) -> Result<(), String>| {
        let dir = dir.to_owned();
        said.insert(what, in_time(what, move || open(&dir)));
    };
    run("inspect", |dir| text(uringlog::inspect(dir).map(drop)));
    run("reader", |dir| {
        for record in text(Reader::open_dir(dir, Lsn::NONE))? {
            text(record)?;
        }
        Ok(())
    });
    run("back", |dir| {
        for record in text(BackReader::open_dir(dir, Lsn::NONE))? {
            text(record)?;
        }
        Ok(())
    });
    run("follower", |dir| {
        let mut follower = text(Follower::open_dir(dir, Lsn::NONE))?;
        loop {
            match follower.try_recv() {
                Ok(Some(_)) => {}
                Ok(None) | Err(FollowError::TimedOut) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    });
    run("cursors", |dir| text(uringlog::cursors(dir).map(drop)));
    run("cursor", |dir| text(Cursor::open_dir(dir, "c").map(drop)));
    run("writer", |dir| {
        let log = text(options().create(false).open(dir))?;
        text(text(log.append(b"one more"))?.wait().map(drop))?;
        text(log.close().map(drop))
    });
    said
}

pub fn text<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// An error says which file, and what to do or what was found.
#[track_caller]
pub fn names_it(said: &Result<(), String>, name: &str) {
    let error = said.as_ref().expect_err("it is refused");
    assert!(error.contains(name), "{error}");
    assert!(error.len() > name.len() + 20, "{error}");
}

/// Whatever stands under a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub kind: &'static str,
    pub inode: u64,
    pub mode: u32,
    pub len: u64,
    pub link: Option<PathBuf>,
    /// Of a file that is not too large.
    pub content: Option<Vec<u8>>,
}

pub fn look_at(path: &Path) -> Option<Found> {
    let meta = fs::symlink_metadata(path).ok()?;
    let kind = meta.file_type();
    let kind = match () {
        () if kind.is_symlink() => "link",
        () if kind.is_dir() => "directory",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "device",
        () => "file",
    };
    let is_small_file = kind == "file" && meta.len() < 1 << 20;
    Some(Found {
        kind,
        inode: meta.ino(),
        mode: meta.mode() & 0o7777,
        len: meta.len(),
        link: fs::read_link(path).ok(),
        content: is_small_file.then(|| fs::read(path).unwrap_or_default()),
    })
}

/// Everything in a directory.
pub fn look_into(dir: &Path) -> BTreeMap<OsString, Found> {
    let entries = fs::read_dir(dir).expect("it is listed").map(|entry| entry.expect("an entry"));
    let found = entries.map(|entry| (entry.file_name(), look_at(&entry.path())));
    found.filter_map(|(name, found)| Some((name, found?))).collect()
}

pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no zero in it")
}

pub fn make_pipe(path: &Path) {
    // SAFETY: the string ends in 0 and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(c_path(path).as_ptr(), 0o600) }, 0);
}

/// A device like /dev/null. False: this user may not.
pub fn make_device(path: &Path) -> bool {
    let path = c_path(path);
    // SAFETY: the string ends in 0 and outlives the call.
    unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3)) == 0 }
}

pub fn is_root() -> bool {
    // SAFETY: takes no arguments.
    unsafe { libc::geteuid() == 0 }
}

/// CRC-32C, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78))
    })
}
