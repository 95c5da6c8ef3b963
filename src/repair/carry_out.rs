//! The changes of a repair, in an order that a crash may end anywhere. The copy is durable by then.
//!
//! A cut is what a truncation does: the new segment is built under a temporary name, the mark says that its
//! generation is about to begin, and its rename is the one step that cuts. Until then the log is as damaged
//! as before; after it, what stands in segments behind is stale, and is given up from the last one down.
//! Where the log was closed, the mark takes that back only after the rename: in between the log may count as
//! one that lost its end, and the next repair cuts it once more, at the same place.

use std::collections::VecDeque;
use std::io;

use super::RepairError;
use super::keep;
use super::plan::Plan;
use super::step::Step;
use crate::cursor;
use crate::disk::{Access, Store};
use crate::error::IoError;
use crate::footer;
use crate::frame::{self, BatchContext, BatchHeader, SegmentHeader, segment_name};
use crate::mark::{Closed, Mark, MarkFile};
use crate::mem::AlignedBuf;
use crate::recovery::GiveUp;
use crate::recovery::rewrite::{self, Rest};
use crate::segment::{self, Filler, Segment, TMP_SUFFIX};
use crate::slots::{Kind, SlotFile};
use crate::truncate::TRUNCATION_TMP;
use crate::verify::census::misplaced_name;
use crate::verify::patient::PatientFile;
use crate::verify::walk::{Aligned, mended_batch};

/// Does everything that the plan says.
pub(super) fn carry_out(store: &dyn Store, plan: &Plan) -> Result<(), RepairError> {
    put_aside(store, &plan.steps)?;
    put_back(store, &plan.steps)?;
    for step in &plan.steps {
        match step {
            Step::Header { epoch, header, copies } => {
                in_segment(store, *epoch, || write_headers(store, header, *copies))?;
            }
            Step::Padding { epoch, header, offset } => {
                in_segment(store, *epoch, || write_padding(store, header, *offset))?;
            }
            Step::Footer { epoch, header, footer } => in_segment(store, *epoch, || {
                let bytes = footer::footer_bytes(header.segment_bytes, header.block_bytes);
                let mut image = vec![0; bytes as usize];
                footer.encode(&mut image);
                write_at(store, &segment_name(*epoch), footer::footer_offset(header), &image)
            })?,
            Step::Rewrite { epoch } => in_segment(store, *epoch, || rewrite_file(store, *epoch))?,
            // All together, before; and at the end.
            Step::Back { .. } | Step::Aside { .. } | Step::Clamp { .. } => {}
            Step::Away { name } => {
                let gone = store.remove(name).and_then(|()| store.sync_dir());
                gone.map_err(|e| IoError::new("take away", store.path(name), e))?;
            }
            Step::Mark { mark } => set_mark(store, plan, *mark)?,
            Step::Start { mark } => {
                set_mark(store, plan, *mark)?;
                give_up(store, |epoch| epoch < mark.first_epoch)?;
            }
            Step::Cut { mark, header, closed, unsynced } => {
                for (epoch, end) in unsynced {
                    in_segment(store, *epoch, || sync_again(store, *epoch, *end))?;
                }
                cut(store, plan, *mark, *header, *closed)?;
            }
            // The log is repaired, whatever a cursor is like: the look at it afterwards tells of that.
            Step::Cursor { file, position } => {
                let bytes = position.to_le_bytes();
                SlotFile::create(store, file, Kind::Cursor, plan.log_id, &bytes).ok();
            }
        }
    }
    if let Some(last) = plan.steps.iter().find_map(Step::new_last) {
        cursor::clamp_locked(store, last).ok();
    }
    Ok(())
}

/// Gives another name to what is no file, or stands in the way.
fn put_aside(store: &dyn Store, steps: &[Step]) -> Result<(), IoError> {
    for (name, to) in steps.iter().filter_map(Step::renamed) {
        let renamed = store.rename(&name, &to).and_then(|()| store.sync_dir());
        renamed.map_err(|error| IoError::new("rename", store.path(&name), error))?;
    }
    Ok(())
}

/// Gives segments their names back. First all get names that nobody has: a segment may stand under the name
/// of another that is to go elsewhere too.
fn put_back(store: &dyn Store, steps: &[Step]) -> Result<(), IoError> {
    let moves: Vec<(&String, u64)> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Back { name, epoch } => Some((name, *epoch)),
            _ => None,
        })
        .collect();
    if moves.is_empty() {
        return Ok(());
    }
    let failed = |name: &str, error| IoError::new("rename to", store.path(name), error);
    let sync = || {
        let synced = store.sync_dir();
        synced.map_err(|error| IoError::new("sync", segment::dir_path(store), error))
    };
    for (name, epoch) in &moves {
        let to = misplaced_name(*epoch);
        if **name != to {
            store.rename(name, &to).map_err(|error| failed(&to, error))?;
        }
    }
    sync()?;
    for (_, epoch) in moves {
        let to = segment_name(epoch);
        store.rename(&misplaced_name(epoch), &to).map_err(|error| failed(&to, error))?;
    }
    sync()
}

impl Step {
    /// The last record of a log that is cut.
    pub(super) fn new_last(&self) -> Option<u64> {
        match self {
            Step::Cut { header, .. } => Some(header.first_lsn - 1),
            _ => None,
        }
    }
}

fn in_segment(
    store: &dyn Store,
    epoch: u64,
    mend: impl FnOnce() -> io::Result<()>,
) -> Result<(), IoError> {
    mend().map_err(|e| IoError::new("mend", segment::segment_path(store, epoch), e))
}

/// The mark, made anew: whatever its file was like.
fn set_mark(store: &dyn Store, plan: &Plan, mark: Mark) -> Result<(), IoError> {
    MarkFile::replace(store, plan.log_id, mark).map(drop)
}

fn cut(
    store: &dyn Store,
    plan: &Plan,
    mark: Mark,
    header: SegmentHeader,
    closed: Option<Closed>,
) -> Result<(), RepairError> {
    let failed = |action: &str, name: &str, e| IoError::new(action, store.path(name), e);
    let salt = segment::system_entropy()
        .map_err(|e| failed("draw random numbers for", TRUNCATION_TMP, e))?;
    let header = SegmentHeader { salt, ..header };
    let file = Filler::fill_new(store, TRUNCATION_TMP, &header)
        .map_err(|e| failed("prepare", TRUNCATION_TMP, e))?;
    let rest = Rest {
        segments: &[],
        batches: &VecDeque::new(),
        last_lsn: header.truncated_after,
        vouched_lsn: header.truncated_after,
    };
    rewrite::write_again(store, &rest, &header, &*file, plan.wall_ns)?;
    let synced = segment::write_headers(&*file, &header)
        .and_then(|()| file.sync())
        .and_then(|()| segment::check_headers(&*file, &header));
    synced.map_err(|e| failed("write", TRUNCATION_TMP, e))?;
    // Without the segment, the log is as damaged as before: by where it was closed that may alone be known.
    set_mark(store, plan, Mark { closed, ..mark })?;
    let name = segment_name(header.epoch);
    let renamed = store.rename(TRUNCATION_TMP, &name).and_then(|()| store.sync_dir());
    renamed.map_err(|e| failed("rename to", &name, e))?;
    if closed.is_some() {
        set_mark(store, plan, mark)?;
    }
    Ok(give_up(store, |epoch| epoch > header.epoch)?)
}

/// Gives up the segments that are not of the log any more, the last one first, each durably: a gap below a
/// segment is taken for a lost one.
fn give_up(store: &dyn Store, gone: impl Fn(u64) -> bool) -> Result<(), IoError> {
    let mut spares = GiveUp::new(store)?;
    for epoch in segment::list_segments(store)?.into_iter().rev().filter(|&epoch| gone(epoch)) {
        spares.rename(epoch, 0)?;
        store.sync_dir().map_err(|e| IoError::new("sync", segment::dir_path(store), e))?;
    }
    Ok(())
}

/// One copy at a time, so that the other is never touched with it.
fn write_headers(store: &dyn Store, header: &SegmentHeader, copies: [bool; 2]) -> io::Result<()> {
    let block = header.block_bytes as usize;
    let mut image = vec![0; block];
    header.encode(&mut image);
    for (index, _) in copies.iter().enumerate().filter(|(_, intact)| !**intact) {
        write_at(store, &segment_name(header.epoch), (index * block) as u64, &image)?;
    }
    Ok(())
}

fn write_padding(store: &dyn Store, header: &SegmentHeader, offset: u64) -> io::Result<()> {
    let name = segment_name(header.epoch);
    let file = PatientFile::open(store, &name)?;
    let file_bytes = crate::disk::File::len(&*file)?;
    let segment = Segment { epoch: header.epoch, header: *header, file_bytes };
    let mut head = Aligned::read(store, &*file, offset, header.block_bytes as usize)?;
    let head = head.bytes(header.block_bytes as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
    let (batch, _) = BatchHeader::decode(head, &BatchContext::from(header), offset)
        .map_err(|error| io::Error::other(error.to_string()))?;
    match mended_batch(store, &segment, &*file, &batch)? {
        Some((image, _)) => write_at(store, &name, offset, &image),
        None => Err(io::Error::other("the batch is not as it was a moment ago")),
    }
}

/// Writes bytes at any multiple of 512 and syncs them. What stands beside them in the device's blocks is
/// written again as it is.
fn write_at(store: &dyn Store, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let block = store.facts().block_bytes as u64;
    let start = offset - offset % block;
    let skip = (offset - start) as usize;
    let len = (skip + bytes.len()).next_multiple_of(block as usize);
    let file = store.open(name, Access::Write)?;
    let mut image = AlignedBuf::new(len)?;
    if skip > 0 || len > bytes.len() {
        PatientFile::open(store, name)
            .and_then(|old| crate::disk::File::read_at(&*old, start, &mut image[..len]))?;
    }
    image[skip..skip + bytes.len()].copy_from_slice(bytes);
    file.write_at(start, &image[..len])?;
    file.sync()
}

/// A copy takes the file's place. What could not be read passes for nothing in it.
fn rewrite_file(store: &dyn Store, epoch: u64) -> io::Result<()> {
    let name = segment_name(epoch);
    let tmp = frame::segment_name(epoch) + TMP_SUFFIX;
    match store.remove(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let from = PatientFile::open(store, &name)?;
    keep::copy(&from, store, &tmp)?;
    store.rename(&tmp, &name)?;
    store.sync_dir()
}

/// Writes what can be read once more, as it is, and syncs it: nobody may ever have done so.
pub(super) fn sync_again(store: &dyn Store, epoch: u64, end: u64) -> io::Result<()> {
    let block = store.facts().block_bytes as u64;
    let file = store.open(&segment_name(epoch), Access::Write)?;
    let end = end.next_multiple_of(block).min(file.len()? / block * block);
    let mut buf = AlignedBuf::new(AGAIN_BYTES)?;
    for at in (0..end).step_by(AGAIN_BYTES) {
        let len = (end - at).min(AGAIN_BYTES as u64) as usize;
        if file.read_at(at, &mut buf[..len])? < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_at(at, &buf[..len])?;
    }
    file.sync()
}

const AGAIN_BYTES: usize = 1 << 20;
