//! Looking at a log that another process may be writing to. No lock, no change.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::disk::os::OsStore;
use crate::disk::{Access, Store};
use crate::error::{IoError, OpenError, ReadError};
use crate::footer::{self, Footer};
use crate::frame::{self, LogId, SegmentHeader};
use crate::lsn::Lsn;
use crate::mark::{self, Mark};
use crate::mem::AlignedBuf;
use crate::segment::{self, ScanError, Segment};

use super::TornTail;
use super::layout;
use super::survey::{self, Survey};

/// How often a log that changes is looked at again.
const LOOKS_MAX: u32 = 16;

/// What a log looks like from outside.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// What tells this log from every other.
    pub log_id: LogId,
    /// Block of the segment that is written to, in bytes.
    pub block_bytes: u32,
    /// First record that the log holds, or would: all before it were trimmed.
    pub first_lsn: Lsn,
    /// Last record that is intact. It may not be durable yet.
    pub last_lsn: Lsn,
    /// Every record up to this one is durable.
    pub vouched_lsn: Lsn,
    /// What stands behind the last record: a torn tail, or what a live writer is writing.
    pub torn: Option<TornTail>,
    /// How often the log was truncated in its whole life.
    pub generation: u64,
    /// All segments in ascending order.
    pub segments: Vec<SegmentInfo>,
    /// Files that hold nothing of the log: they wait to be used again, or to be removed.
    pub spares: Vec<SegmentInfo>,
}

/// One segment of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// Its place in the log: 1 for the first, one more for each next. Of a spare, the place that it
    /// had.
    pub epoch: u64,
    /// File name in the log's directory.
    pub name: String,
    /// Number of its first record that the log still holds; none where it holds none, or its first
    /// batch is unreadable.
    pub first_lsn: Option<Lsn>,
    /// Number of its last record.
    pub last_lsn: Option<Lsn>,
    /// When its first and its last batch were written, by the writer's clock; none where that would take
    /// reading all of it.
    pub first_time: Option<SystemTime>,
    /// See `first_time`.
    pub last_time: Option<SystemTime>,
    /// Bytes of all payloads in it, those before the log's first record included; none where telling
    /// that would take reading all of it.
    pub payload_bytes: Option<u64>,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Bytes in use: all of a sealed segment, the header of a ready one, nothing of a spare.
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
    /// Not of the log any more.
    Spare,
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
/// caused, by trimming or truncating or moving on meanwhile, is returned only when it comes again
/// while nothing changes.
pub(crate) fn inspect(store: &dyn Store) -> Result<Inspection, ReadError> {
    steady(store, || look(store))?
        .ok_or_else(|| ReadError::NotFound { dir: segment::dir_path(store) })
}

/// Every record of the log up to this one is durable. Otherwise as [`inspect`].
pub(crate) fn vouched_lsn(store: &dyn Store) -> Result<u64, ReadError> {
    let found = steady(store, || survey::survey(store, true))?;
    let survey = found.ok_or_else(|| ReadError::NotFound { dir: segment::dir_path(store) })?;
    Ok(survey.vouched_lsn)
}

/// Looks until no truncation came between, or the same error comes twice while nothing changes. The
/// number of attempts is bounded.
fn steady<T>(store: &dyn Store, look: impl Fn() -> Result<T, ScanError>) -> Result<T, ScanError> {
    let mut failed_before = false;
    let mut before = State::read(store);
    for _ in 1..LOOKS_MAX {
        let found = look();
        let now = State::read(store);
        match (found, &before, &now) {
            (Ok(found), Some(before), Some(now)) if before.generation() == now.generation() => {
                return Ok(found);
            }
            (Err(error), ..) if failed_before && now == before => return Err(error),
            (found, ..) => failed_before = found.is_err() && now == before,
        }
        before = now;
    }
    look()
}

/// What changes when files of the log come and go.
#[derive(PartialEq)]
struct State {
    epochs: Vec<u64>,
    mark: Option<(LogId, Mark)>,
}

impl State {
    /// None where it cannot be read just now, or at all.
    fn read(store: &dyn Store) -> Option<State> {
        let mark = mark::find_mark(store).ok()?;
        Some(State { epochs: segment::list_segments(store).ok()?, mark })
    }

    fn generation(&self) -> u64 {
        self.mark.map_or(0, |(_, mark)| mark.generation)
    }
}

fn look(store: &dyn Store) -> Result<Option<Inspection>, ScanError> {
    let Some(survey) = survey::survey(store, true)? else { return Ok(None) };
    let segments = segment_infos(store, &survey)?;
    Ok(Some(Inspection {
        log_id: survey.log_id,
        block_bytes: survey.segments[survey.chain.end_segment].header.block_bytes,
        first_lsn: Lsn::new(survey.mark.first_lsn),
        last_lsn: Lsn::new(survey.chain.last_lsn()),
        vouched_lsn: Lsn::new(survey.vouched_lsn),
        generation: survey.generation().0,
        spares: spare_infos(store, &survey)?,
        torn: survey.torn,
        segments,
    }))
}

fn segment_infos(store: &dyn Store, survey: &Survey) -> Result<Vec<SegmentInfo>, ScanError> {
    let live_epoch = survey.segments[survey.chain.end_segment].epoch;
    let opened_from = survey.epochs.len() - survey.segments.len();
    let mut next_first = survey.chain.next_lsn;
    let mut next_header: Option<SegmentHeader> = None;
    let mut infos = Vec::new();
    // From the last down: a segment's last record is the one before the first of the next.
    for (index, &epoch) in survey.epochs.iter().enumerate().rev() {
        let segment = match index.checked_sub(opened_from) {
            Some(index) => survey.segments[index].clone(),
            None => {
                let (segment, _) = Segment::open(store, epoch)?;
                segment.check_log(store, survey.log_id)?;
                segment
            }
        };
        let state = match epoch {
            _ if epoch == live_epoch => SegmentState::Live,
            _ if epoch < live_epoch => SegmentState::Sealed,
            _ => SegmentState::Ready,
        };
        let contents = match state {
            SegmentState::Live => Contents::of(survey.chain.index.footer()),
            SegmentState::Sealed => sealed_contents(store, &segment, next_header.as_ref())?,
            _ => Contents::default(),
        };
        let mut info = SegmentInfo {
            epoch,
            name: frame::segment_name(epoch),
            first_lsn: None,
            last_lsn: None,
            first_time: contents.first_ns.map(time),
            last_time: contents.last_ns.map(time),
            payload_bytes: contents.payload_bytes,
            bytes: segment.file_bytes,
            used_bytes: match state {
                SegmentState::Live => survey.chain.end_offset,
                SegmentState::Sealed => segment.file_bytes,
                _ => segment.header.data_offset(),
            },
            state,
        };
        let first = match segment.header.first_lsn {
            0 => contents.first_lsn,
            first => Some(first),
        };
        if state != SegmentState::Ready
            && let Some(first) = first.map(|first| first.max(survey.mark.first_lsn))
            && first < next_first
        {
            info.first_lsn = Some(Lsn::new(first));
            info.last_lsn = Some(Lsn::new(next_first - 1));
            next_first = first;
        }
        next_header = Some(segment.header);
        infos.push(info);
    }
    infos.reverse();
    Ok(infos)
}

/// What a segment holds, as far as a short look tells.
#[derive(Default)]
struct Contents {
    first_lsn: Option<u64>,
    first_ns: Option<u64>,
    last_ns: Option<u64>,
    payload_bytes: Option<u64>,
}

impl Contents {
    fn of(footer: &Footer) -> Contents {
        let any = !footer.entries.is_empty();
        Contents {
            first_lsn: any.then_some(footer.first_lsn),
            first_ns: any.then_some(footer.first_wall_ns),
            last_ns: any.then_some(footer.last_wall_ns),
            payload_bytes: Some(footer.payload_bytes),
        }
    }
}

/// From the footer, if it tells of nothing that was superseded since; else from the first batch.
fn sealed_contents(
    store: &dyn Store,
    segment: &Segment,
    next: Option<&SegmentHeader>,
) -> Result<Contents, ScanError> {
    let limit = segment.limit(next);
    match read_footer(store, segment)? {
        Some(footer) if footer.end_offset <= limit => Ok(Contents::of(&footer)),
        _ => {
            let first = survey::first_batch(store, segment)?;
            Ok(Contents {
                first_lsn: first.map(|header| header.first_lsn),
                first_ns: first.map(|header| header.wall_ns),
                ..Contents::default()
            })
        }
    }
}

fn read_footer(store: &dyn Store, segment: &Segment) -> Result<Option<Footer>, ScanError> {
    let header = &segment.header;
    let bytes = footer::footer_bytes(header.segment_bytes, header.block_bytes) as usize;
    if segment.file_bytes != header.segment_bytes {
        return Ok(None);
    }
    let failed = |e| IoError::new("read", segment::segment_path(store, segment.epoch), e);
    let file = segment::open_file(store, segment.epoch, Access::Read)?;
    // The device may need a larger alignment than the log's block.
    let io_block = store.facts().block_bytes as u64;
    let offset = footer::footer_offset(header);
    let start = offset - offset % io_block;
    let skip = (offset - start) as usize;
    let len = (skip + bytes).next_multiple_of(io_block as usize);
    let mut buf = AlignedBuf::new(len).map_err(failed)?;
    let read = file.read_at(start, &mut buf[..len]).map_err(failed)?;
    Ok(buf[..read].get(skip..).and_then(|bytes| Footer::decode(bytes, header)))
}

/// Spares, and segments that will be when the log is opened next.
fn spare_infos(store: &dyn Store, survey: &Survey) -> Result<Vec<SegmentInfo>, ScanError> {
    let spare = |epoch: u64, name: String, bytes: u64| SegmentInfo {
        epoch,
        name,
        first_lsn: None,
        last_lsn: None,
        first_time: None,
        last_time: None,
        payload_bytes: None,
        bytes,
        used_bytes: 0,
        state: SegmentState::Spare,
    };
    let mut spares = Vec::new();
    for &epoch in survey.trimmed.iter() {
        let name = frame::segment_name(epoch);
        // One that is gone by now is none.
        let opened = store.open(&name, Access::Read);
        if let Ok(bytes) = opened.and_then(|file| file.len()) {
            spares.push(spare(epoch, name, bytes));
        }
    }
    for segment in &survey.stale {
        let name = frame::segment_name(segment.epoch);
        spares.push(spare(segment.epoch, name, segment.file_bytes));
    }
    for (name, bytes) in layout::list_spares(store)? {
        let epoch = name.get(..20).and_then(|digits| digits.parse().ok()).unwrap_or(0);
        spares.push(spare(epoch, name, bytes));
    }
    Ok(spares)
}

fn time(wall_ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(wall_ns)
}
