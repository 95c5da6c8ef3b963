//! [`RecoveryReport`]: what opening a log found and did.

use core::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::lsn::Lsn;

/// What opening a log found and did.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Whether there was no log, and one was created.
    pub created: bool,
    /// Whether writing goes on right behind the last batch; otherwise in a fresh segment.
    pub clean: bool,
    /// Number of the first record that the log holds. In a log without records, the number that the
    /// first one will get.
    pub first_lsn: Lsn,
    /// Number of the last record; one less than `first_lsn` when there is none.
    pub last_lsn: Lsn,
    /// Up to this number the log itself proved that records had been durable.
    pub vouched_lsn: Lsn,
    /// Records behind `vouched_lsn` that were intact; they were written again, and synced.
    pub rewritten_records: u64,
    /// What was cut: bytes behind the last record that never were acknowledged.
    pub torn: Option<TornTail>,
    /// Segments in use, the live one included.
    pub segments: usize,
    /// Segments that stand ready behind the live one.
    pub ready_segments: usize,
    /// Unfinished files of an interrupted preparation that were removed.
    pub swept_files: usize,
    /// Bytes that were read from the log's files.
    pub bytes_read: u64,
    /// How long it took.
    pub took: Duration,
}

/// Bytes behind the last record that are not zero and hold no acknowledged record: what a write
/// that a crash interrupted left.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TornTail {
    /// The segment file.
    pub segment: PathBuf,
    /// Offset in the segment, in bytes, from which on nothing counts.
    pub offset: u64,
    /// Bytes from there to the end of the last block that is not all zeros, later segments
    /// included.
    pub bytes: u64,
}

impl RecoveryReport {
    pub(super) fn new() -> Self {
        RecoveryReport {
            created: false,
            clean: false,
            first_lsn: Lsn::NONE,
            last_lsn: Lsn::NONE,
            vouched_lsn: Lsn::NONE,
            rewritten_records: 0,
            torn: None,
            segments: 0,
            ready_segments: 0,
            swept_files: 0,
            bytes_read: 0,
            took: Duration::ZERO,
        }
    }
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.took.as_secs_f64() * 1e3;
        if self.created {
            return write!(f, "created a new log in {ms:.1} ms");
        }
        match self.last_lsn < self.first_lsn {
            true => f.write_str("no records")?,
            false => write!(f, "records {} to {}", self.first_lsn, self.last_lsn)?,
        }
        write!(f, " in {} segments ({} more ready)", self.segments, self.ready_segments)?;
        f.write_str(match self.clean {
            true => ", clean end",
            false => ", unclean end: writing goes on in a fresh segment",
        })?;
        if self.rewritten_records > 0 {
            write!(f, "; {} records written again and synced", self.rewritten_records)?;
        }
        if let Some(torn) = &self.torn {
            write!(f, "; {torn}")?;
        }
        if self.swept_files > 0 {
            write!(f, "; {} unfinished files removed", self.swept_files)?;
        }
        write!(f, "; {} KiB read in {ms:.1} ms", self.bytes_read >> 10)
    }
}

impl fmt::Display for TornTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes that were never acknowledged stand behind the end, in {} at offset {}",
            self.bytes,
            self.segment.display(),
            self.offset
        )
    }
}
