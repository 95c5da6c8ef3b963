//! `uringlog info`: describes a log without touching it.

use std::fs;
use std::io::{self, Write};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use uringlog::{Inspection, Lsn, Options, ReadError, Reader, SegmentInfo, SegmentState};

use crate::cursor::{self, Standing};
use crate::exit::Failure;
use crate::units;

mod damaged;
mod ranges;

/// Arguments of `uringlog info`.
#[derive(clap::Args)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    /// Reads and verifies every record
    #[arg(long)]
    full: bool,
    /// One line for each segment, instead of one for each run of them
    #[arg(long)]
    segments: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `uringlog info`.
pub fn run(args: Args) -> Result<(), Failure> {
    let log = match uringlog::inspect(&args.dir) {
        Err(ReadError::Damaged(damage)) => {
            print(&damaged::text(&args.dir, args.json))?;
            return Err(Failure::Damage(damage.to_string()));
        }
        found => found?,
    };
    let cursors = cursor::standings(&args.dir, &log);
    let verified = args.full.then(|| read_payload(&args.dir));
    let payload = match &verified {
        Some(Ok(bytes)) => Some(*bytes),
        _ => log
            .segments
            .iter()
            .filter(|segment| has_records(segment))
            .map(|s| s.payload_bytes)
            .sum(),
    };
    let writer = writer(&args.dir);
    let (cursors, refused) = match cursors {
        Ok(cursors) => (cursors, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let found =
        Found { dir: args.dir, used_bytes: used_bytes(&log), log, payload, cursors, writer };
    let text = match args.json {
        true => format!("{}\n", found.json()),
        false => found.text(args.segments),
    };
    // What is intact is printed whatever else is met.
    print(&text)?;
    verified.transpose()?;
    refused.map_or(Ok(()), |error| Err(error.into()))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::output(&e))
}

/// Bytes of the segments that are in use.
fn used_bytes(log: &Inspection) -> u64 {
    log.segments.iter().map(|segment| segment.used_bytes).sum()
}

fn has_records(segment: &SegmentInfo) -> bool {
    matches!(segment.state, SegmentState::Live | SegmentState::Sealed)
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
    /// Payload bytes, where the segments tell or all was read.
    payload: Option<u64>,
    cursors: Vec<Standing>,
    /// The process that has it open for writing, where /proc/locks shows one.
    writer: Option<u32>,
}

impl Found {
    fn records(&self) -> u64 {
        (self.log.last_lsn.get() + 1).saturating_sub(self.log.first_lsn.get().max(1))
    }

    fn file_bytes(&self) -> u64 {
        self.log.segments.iter().chain(&self.log.spares).map(|segment| segment.bytes).sum()
    }

    /// Bytes on disk for each payload byte: headers, tables, padding, and ends of segments.
    fn amplification(&self) -> Option<f64> {
        let payload = self.payload.filter(|&bytes| bytes > 0)?;
        Some(self.used_bytes as f64 / payload as f64)
    }

    fn text(&self, all_segments: bool) -> String {
        let log = &self.log;
        let mut rows = vec![("log", format!("{} in {}", log.log_id, self.dir.display()))];
        rows.push((
            "records",
            match self.records() {
                0 => format!("none (the next is number {})", log.last_lsn.next()),
                n => format!("{} (numbers {} to {})", units::count(n), log.first_lsn, log.last_lsn),
            },
        ));
        let (oldest, newest) = self.times();
        if let (Some(oldest), Some(newest)) = (oldest, newest) {
            let (from, to) = (units::rfc3339(oldest), units::rfc3339(newest));
            rows.push(("written", format!("from {from} to {to} ({} ago)", units::age(newest))));
        }
        if log.generation > 0 {
            rows.push(("generation", format!("{} (truncated so often)", log.generation)));
        }
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
        let mut text = rows + "\n" + &ranges::table(log, all_segments);
        if !self.cursors.is_empty() {
            text += &format!("\n{}", cursor::table(&self.cursors));
        }
        text
    }

    /// When the first and the last record were written, where the segments tell.
    fn times(&self) -> (Option<SystemTime>, Option<SystemTime>) {
        let mut with_records =
            self.log.segments.iter().filter(|segment| segment.first_lsn.is_some());
        let first = with_records.next();
        (
            first.and_then(|s| s.first_time),
            with_records.next_back().or(first).and_then(|s| s.last_time),
        )
    }

    fn json(&self) -> Value {
        let log = &self.log;
        let segments = Value::from_iter(log.segments.iter().map(segment_json));
        let spares = Value::from_iter(log.spares.iter().map(segment_json));
        let (oldest, newest) = self.times();
        json!({
            "dir": self.dir.to_string_lossy(),
            "log_id": log.log_id.to_string(),
            "first_lsn": log.first_lsn.get(),
            "last_lsn": log.last_lsn.get(),
            "vouched_lsn": log.vouched_lsn.get(),
            "first_time": oldest.map(units::rfc3339),
            "last_time": newest.map(units::rfc3339),
            "records": self.records(),
            "generation": log.generation,
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
            "spares": spares,
            "cursors": Value::from_iter(self.cursors.iter().map(Standing::json)),
        })
    }
}

fn segment_json(segment: &SegmentInfo) -> Value {
    json!({
        "epoch": segment.epoch,
        "name": segment.name,
        "state": state_name(segment.state),
        "first_lsn": segment.first_lsn.map(Lsn::get),
        "last_lsn": segment.last_lsn.map(Lsn::get),
        "first_time": segment.first_time.map(units::rfc3339),
        "last_time": segment.last_time.map(units::rfc3339),
        "payload_bytes": segment.payload_bytes,
        "used_bytes": segment.used_bytes,
        "bytes": segment.bytes,
    })
}

fn state_name(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Live => "live",
        SegmentState::Sealed => "sealed",
        SegmentState::Ready => "ready",
        SegmentState::Spare => "spare",
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
