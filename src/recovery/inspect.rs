//! Looking at a log that another process may be writing to. No lock, no change.

use std::path::Path;

use crate::disk::Store;
use crate::disk::os::OsStore;
use crate::error::{OpenError, ReadError};
use crate::frame::{self, LogId};
use crate::lsn::Lsn;
use crate::segment::{self, ScanError};

use super::TornTail;
use super::survey::{self, Survey};

/// What a log looks like from outside.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// What tells this log from every other.
    pub log_id: LogId,
    /// Block of the segment that is written to, in bytes.
    pub block_bytes: u32,
    /// First record that the log holds, or would.
    pub first_lsn: Lsn,
    /// Last record that is intact. It may not be durable yet.
    pub last_lsn: Lsn,
    /// Every record up to this one is durable.
    pub vouched_lsn: Lsn,
    /// What stands behind the last record: a torn tail, or what a live writer is writing.
    pub torn: Option<TornTail>,
    /// All segments in ascending order.
    pub segments: Vec<SegmentInfo>,
}

/// One segment of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// Its place in the log: 1 for the first, one more for each next.
    pub epoch: u64,
    /// File name in the log's directory.
    pub name: String,
    /// Number of its first record; none where it holds none, or its first batch is unreadable.
    pub first_lsn: Option<Lsn>,
    /// Number of its last record.
    pub last_lsn: Option<Lsn>,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Bytes in use: all of a sealed segment, the header of a ready one.
    pub used_bytes: u64,
    /// What it is used for now.
    pub state: SegmentState,
}

/// What a segment is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SegmentState {
    /// Written to, or the last that was.
    Live,
    /// Will not change any more.
    Sealed,
    /// Prepared, not used yet.
    Ready,
}

/// Looks at the log in `dir` without changing anything and without its lock: a writer may be at
/// work meanwhile. Reads the log's tail, not all of it.
///
/// # Errors
/// There is no log, its files cannot be read, or records that are vouched for are damaged:
/// [`ReadError`].
pub fn inspect_dir(dir: impl AsRef<Path>) -> Result<Inspection, ReadError> {
    let store = OsStore::open_read_only(dir.as_ref()).map_err(OpenError::into_read_error)?;
    inspect(&*store)
}

/// Looks at the log in `store`.
///
/// # Errors
/// Damage to records that are vouched for, among others. An error that a writer at work may have
/// caused is returned only when it comes twice.
pub(crate) fn inspect(store: &dyn Store) -> Result<Inspection, ReadError> {
    let found = match look(store) {
        Err(_) => look(store),
        found => found,
    };
    found?.ok_or_else(|| ReadError::NotFound { dir: segment::dir_path(store) })
}

fn look(store: &dyn Store) -> Result<Option<Inspection>, ScanError> {
    let Some(survey) = survey::survey(store, true)? else { return Ok(None) };
    let segments = segment_infos(store, &survey)?;
    Ok(Some(Inspection {
        log_id: survey.log_id,
        block_bytes: survey.segments[survey.chain.end_segment].header.block_bytes,
        first_lsn: Lsn::new(survey.first_lsn),
        last_lsn: Lsn::new(survey.chain.last_lsn()),
        vouched_lsn: Lsn::new(survey.vouched_lsn),
        torn: survey.torn,
        segments,
    }))
}

fn segment_infos(store: &dyn Store, survey: &Survey) -> Result<Vec<SegmentInfo>, ScanError> {
    let live = survey.chain.end_segment;
    let mut next_first = survey.chain.next_lsn;
    let mut infos = Vec::new();
    // From the last down: a segment's last record is the one before the first of the next.
    for (index, segment) in survey.segments.iter().enumerate().rev() {
        let state = match index {
            _ if index == live => SegmentState::Live,
            _ if index < live => SegmentState::Sealed,
            _ => SegmentState::Ready,
        };
        let (first, last) = match state {
            SegmentState::Ready => (None, None),
            _ => match survey::first_lsn_of(store, segment)? {
                Some(first) if first < next_first => {
                    let last = Lsn::new(next_first - 1);
                    next_first = first;
                    (Some(Lsn::new(first)), Some(last))
                }
                _ => (None, None),
            },
        };
        infos.push(SegmentInfo {
            epoch: segment.epoch,
            name: frame::segment_name(segment.epoch),
            first_lsn: first,
            last_lsn: last,
            bytes: segment.file_bytes,
            used_bytes: match state {
                SegmentState::Live => survey.chain.end_offset,
                SegmentState::Sealed => segment.file_bytes,
                SegmentState::Ready => segment.header.data_offset(),
            },
            state,
        });
    }
    infos.reverse();
    Ok(infos)
}
