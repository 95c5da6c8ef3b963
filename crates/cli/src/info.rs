//! `uringlog info`: describes a log without touching it.

use std::fs;
use std::io::{self, Write};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uringlog::{Inspection, Lsn, Options, Reader, SegmentState};

use crate::exit::Failure;
use crate::units;

/// Arguments of `uringlog info`.
#[derive(clap::Args)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    /// Reads and verifies every record, to tell payload bytes and space amplification; done anyway
    /// for logs of up to 1 GiB
    #[arg(long)]
    full: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// Logs that take no more are read from end to end.
const READ_BYTES_MAX: u64 = 1 << 30;

/// Runs `uringlog info`.
pub fn run(args: Args) -> Result<(), Failure> {
    let log = uringlog::inspect(&args.dir)?;
    let used_bytes = used_bytes(&log);
    let payload = match args.full || used_bytes <= READ_BYTES_MAX {
        true => Some(read_payload(&args.dir)?),
        false => None,
    };
    let found = Found { writer: writer(&args.dir), used_bytes, payload, log, dir: args.dir };
    let text = if args.json { format!("{}\n", found.json()) } else { found.text() };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::output(&e))
}

/// Bytes of the segments that are in use.
fn used_bytes(log: &Inspection) -> u64 {
    log.segments.iter().map(|segment| segment.used_bytes).sum()
}

/// Payload bytes of all durable records.
fn read_payload(dir: &Path) -> Result<u64, Failure> {
    let mut reader = Reader::open_dir(dir, Lsn::NONE)?;
    let mut bytes = 0;
    while let Some(record) = reader.next_record()? {
        bytes += record.payload().len() as u64;
    }
    Ok(bytes)
}

/// What is known of a log.
struct Found {
    dir: PathBuf,
    log: Inspection,
    used_bytes: u64,
    /// Payload bytes, where all was read.
    payload: Option<u64>,
    /// The process that has it open for writing, where /proc/locks shows one.
    writer: Option<u32>,
}

impl Found {
    fn records(&self) -> u64 {
        (self.log.last_lsn.get() + 1).saturating_sub(self.log.first_lsn.get().max(1))
    }

    fn file_bytes(&self) -> u64 {
        self.log.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Bytes on disk for each payload byte: headers, tables, padding, and ends of segments.
    fn amplification(&self) -> Option<f64> {
        let payload = self.payload.filter(|&bytes| bytes > 0)?;
        Some(self.used_bytes as f64 / payload as f64)
    }

    fn text(&self) -> String {
        let log = &self.log;
        let mut rows = vec![("log", format!("{} in {}", log.log_id, self.dir.display()))];
        rows.push((
            "records",
            match self.records() {
                0 => format!("none (the next is number {})", log.last_lsn.next()),
                n => format!("{} (numbers {} to {})", units::count(n), log.first_lsn, log.last_lsn),
            },
        ));
        if log.vouched_lsn < log.last_lsn {
            rows.push((
                "known durable",
                format!("up to {}; readers see the rest once a writer vouches", log.vouched_lsn),
            ));
        }
        let payload = match self.payload {
            Some(bytes) => format!("{} payload, ", units::bytes(bytes)),
            None => String::new(),
        };
        let amplification = match self.amplification() {
            Some(times) => format!("; {times:.2} bytes on disk for each payload byte"),
            None => String::new(),
        };
        rows.push((
            "size",
            format!(
                "{payload}{} used, {} in files{amplification}",
                units::bytes(self.used_bytes),
                units::bytes(self.file_bytes()),
            ),
        ));
        rows.push(("block", units::bytes(u64::from(log.block_bytes))));
        rows.push((
            "torn tail",
            match (&log.torn, self.writer) {
                (None, _) => "none".to_owned(),
                (Some(torn), None) => format!("{torn}; the next open cuts it"),
                (Some(torn), Some(_)) => format!("{torn}, or are being written just now"),
            },
        ));
        rows.push((
            "writer",
            match self.writer {
                Some(pid) => format!("process {pid}{}", process_name(pid)),
                None => "none seen".to_owned(),
            },
        ));
        rows.push((
            "memory",
            format!(
                "at most {} while open with default options on this machine",
                units::bytes(Options::new().memory_bytes_max() as u64)
            ),
        ));
        let rows: String =
            rows.iter().map(|(name, value)| format!("{name:<14} {value}\n")).collect();
        rows + "\n" + &self.segments()
    }

    fn segments(&self) -> String {
        let mut text = format!(
            "{:>8}  {:<6} {:>14} {:>14} {:>10} {:>10}\n",
            "segment", "state", "first", "last", "used", "size"
        );
        for segment in &self.log.segments {
            let number = |lsn: Option<Lsn>| lsn.map_or("-".to_owned(), |lsn| lsn.to_string());
            text += &format!(
                "{:>8}  {:<6} {:>14} {:>14} {:>10} {:>10}\n",
                segment.epoch,
                state_name(segment.state),
                number(segment.first_lsn),
                number(segment.last_lsn),
                units::bytes(segment.used_bytes),
                units::bytes(segment.bytes),
            );
        }
        text
    }

    fn json(&self) -> Value {
        let log = &self.log;
        let segments: Vec<Value> = log
            .segments
            .iter()
            .map(|segment| {
                json!({
                    "epoch": segment.epoch,
                    "name": segment.name,
                    "state": state_name(segment.state),
                    "first_lsn": segment.first_lsn.map(Lsn::get),
                    "last_lsn": segment.last_lsn.map(Lsn::get),
                    "used_bytes": segment.used_bytes,
                    "bytes": segment.bytes,
                })
            })
            .collect();
        json!({
            "dir": self.dir.to_string_lossy(),
            "log_id": log.log_id.to_string(),
            "first_lsn": log.first_lsn.get(),
            "last_lsn": log.last_lsn.get(),
            "vouched_lsn": log.vouched_lsn.get(),
            "records": self.records(),
            "payload_bytes": self.payload,
            "used_bytes": self.used_bytes,
            "file_bytes": self.file_bytes(),
            "space_amplification": self.amplification(),
            "block_bytes": log.block_bytes,
            "torn": log.torn.as_ref().map(|torn| json!({
                "segment": torn.segment.to_string_lossy(),
                "offset": torn.offset,
                "bytes": torn.bytes,
            })),
            "writer_pid": self.writer,
            "memory_bytes_max": Options::new().memory_bytes_max(),
            "segments": segments,
        })
    }
}

fn state_name(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Live => "live",
        SegmentState::Sealed => "sealed",
        SegmentState::Ready => "ready",
        _ => "other",
    }
}

/// The process that holds the flock on the log's lock file, as /proc/locks tells: looking does not
/// get in the way of a writer that is about to take it.
fn writer(dir: &Path) -> Option<u32> {
    let lock = fs::metadata(dir.join("log.lock")).ok()?;
    let (major, minor) = (rustix::fs::major(lock.st_dev()), rustix::fs::minor(lock.st_dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", lock.st_ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // "1: FLOCK ADVISORY WRITE pid major:minor:inode start end"
        let [_, "FLOCK", _, "WRITE", pid, id, ..] = fields[..] else { return None };
        (id == file).then(|| pid.parse().ok())?
    })
}

fn process_name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .map(|name| format!(" ({})", name.trim_end()))
        .unwrap_or_default()
}
