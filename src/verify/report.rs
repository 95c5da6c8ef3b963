//! What a look at all of a log found: [`VerifyReport`].

use core::fmt;
use std::path::PathBuf;

use crate::frame::LogId;
use crate::lsn::Lsn;

/// Findings that a report names; more are only counted.
pub(crate) const FINDINGS_MAX: usize = 10_000;

/// What [`verify`](crate::verify) found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VerifyReport {
    /// What tells this log from every other; none where no file tells it.
    pub log_id: Option<LogId>,
    /// The first record that the log should hold.
    pub first_lsn: Lsn,
    /// The last record that the log holds; one less than `first_lsn` when there is none. Records behind
    /// damage count, where they are intact.
    pub last_lsn: Lsn,
    /// Up to this number the log itself proves that records were durable. What follows, up to `last_lsn`,
    /// was written and may be durable.
    pub vouched_lsn: Lsn,
    /// How often the log was truncated in its whole life.
    pub generation: u64,
    /// Segments that were read.
    pub segments: u64,
    /// Batches that are intact.
    pub batches: u64,
    /// Records that are intact.
    pub records: u64,
    /// Bytes of their payloads.
    pub payload_bytes: u64,
    /// Bytes of the files that were looked at.
    pub bytes: u64,
    /// The records that are intact, as ranges of numbers in order: first and last.
    pub intact: Vec<(Lsn, Lsn)>,
    /// The acknowledged records that cannot be read, in order. A part that has no end is one of which
    /// nothing tells how far it went.
    pub lost: Vec<Lost>,
    /// Everything found, in the order of the log.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub findings_left_out: u64,
    /// Files that wait to be used again, and hold nothing of the log.
    pub spares: u64,
    /// Whether the files came and went all the time: then the report is of no single moment.
    pub unsteady: bool,
}

/// Acknowledged records that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Lost {
    /// The first.
    pub first: Lsn,
    /// The last; none where nothing tells.
    pub last: Option<Lsn>,
}

/// One thing that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub kind: FindingKind,
    /// The file.
    pub file: PathBuf,
    /// Where in the file, in bytes; 0 where it is the file as a whole.
    pub offset: u64,
    /// What was found there.
    pub detail: String,
    /// The acknowledged records that are lost by it.
    pub lost: Option<Lost>,
}

/// How bad a [`Finding`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum FindingKind {
    /// Damage to acknowledged data, or to what is needed to find it. Opening or reading fails there.
    Damage,
    /// Damage to something of which there is another copy: nothing is lost.
    Mendable,
    /// A file that does not belong here, under a name of the log's.
    Stray,
    /// What a crash left behind the end, and the next open cuts; what a writer is writing just now looks the
    /// same. It was never acknowledged.
    Torn,
    /// Nothing that counts: leftovers, caches.
    Note,
}

impl FindingKind {
    /// Its name in one word.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Damage => "damage",
            FindingKind::Mendable => "mendable",
            FindingKind::Stray => "stray",
            FindingKind::Torn => "torn",
            FindingKind::Note => "note",
        }
    }

    /// Whether a file is not what it should be: neither a crash nor a writer leaves that.
    pub fn is_damage(self) -> bool {
        matches!(self, FindingKind::Damage | FindingKind::Mendable | FindingKind::Stray)
    }
}

impl VerifyReport {
    /// Whether acknowledged records cannot be read, or not without a repair.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.kind == FindingKind::Damage)
    }

    /// Whether every file is as it was written, but for what crashes leave.
    pub fn is_whole(&self) -> bool {
        !self.findings.iter().any(|finding| finding.kind.is_damage())
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last {
            Some(last) if last == self.first => write!(f, "record {last}"),
            Some(last) => write!(f, "records {} to {last}", self.first),
            None => write!(f, "records from {} on, nothing tells how many", self.first),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.kind.name(), self.file.display())?;
        if self.offset > 0 {
            write!(f, " at offset {}", self.offset)?;
        }
        write!(f, ": {}", self.detail)?;
        match self.lost {
            Some(lost @ Lost { last: None, .. }) => write!(f, "; lost: {lost}"),
            Some(lost) if Some(lost.first) == lost.last => write!(f, "; {lost} is lost"),
            Some(lost) => write!(f, "; {lost} are lost"),
            None => Ok(()),
        }
    }
}
