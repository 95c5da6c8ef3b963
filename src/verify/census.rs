//! Which files there are, and which of them make up the log: the same rules as for an opening
//! (`recovery/layout.rs`), but what is broken, missing or out of place is noted, and does not end the look.

use std::collections::BTreeMap;
use std::io;

use super::patient::PatientFile;
use super::report::{Finding, FindingKind};
use crate::disk::{File, Store};
use crate::error::{IoError, ReadError};
use crate::frame::{
    self, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BatchHeader, LogId, SegmentHeader, SegmentHeaderError,
};
use crate::mark::{MARK_NAME, Mark};
use crate::mem::AlignedBuf;
use crate::recovery::older_header;
use crate::segment::{self, SPARE_SUFFIX, Segment, TMP_SUFFIX};
use crate::slots::{self, Kind, SLOT_OFFSETS};

/// What a log's directory holds.
pub(crate) struct Census {
    pub(crate) log_id: Option<LogId>,
    /// What the mark says, or else what the segments tell of it.
    pub(crate) mark: Mark,
    /// Where `mark` comes from.
    pub(crate) mark_state: MarkState,
    /// The segments of the log in order, those that are missing between others too.
    pub(crate) segments: Vec<Found>,
    /// Segments below the log's start, and those that a truncation cut off.
    pub(crate) given_up: Vec<u64>,
    /// Segment files that are no segments of this log at their place: by name.
    pub(crate) strays: Vec<String>,
    /// Those of them that are segments of this log which miss from their place: by name, and what they are.
    pub(crate) misplaced: Vec<(String, u64)>,
    pub(crate) spares: Vec<String>,
    pub(crate) findings: Vec<Finding>,
    /// The highest generation that any file tells of.
    pub(crate) generation_max: u64,
}

/// What the mark is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MarkState {
    Intact,
    /// Only one slot can be read; it serves.
    OneSlot,
    /// There is none, as in a log that is just being made: it counts as one that says nothing.
    None,
    /// It cannot be read, or is missing where it must be there.
    Lost,
}

/// A segment of the log.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) epoch: u64,
    pub(crate) head: Head,
}

/// What is known of a segment by its header.
#[derive(Clone, Debug)]
pub(crate) enum Head {
    /// A copy of the header is intact; which of the two are.
    Intact { segment: Segment, copies: [bool; 2] },
    /// Neither is, or it is that of an earlier life of the file (`is_old`). Its batches may tell what it was; where
    /// the header is old, those of an even earlier life may be there too, and only what continues the log counts.
    Broken { guess: Option<Segment>, detail: String, is_old: bool },
    /// There is no such file.
    Missing,
}

impl Found {
    /// The segment, where anything tells of it.
    pub(crate) fn segment(&self) -> Option<&Segment> {
        match &self.head {
            Head::Intact { segment, .. } => Some(segment),
            Head::Broken { guess, .. } => guess.as_ref(),
            Head::Missing => None,
        }
    }

    /// Its header, where that is what tells of it.
    pub(crate) fn header(&self) -> Option<&SegmentHeader> {
        match &self.head {
            Head::Intact { segment, .. } => Some(&segment.header),
            _ => None,
        }
    }
}

impl Census {
    /// Takes it. A file may come or go meanwhile, where a writer is at work.
    pub(crate) fn take(store: &dyn Store) -> Result<Census, ReadError> {
        let names = store.list().map_err(|e| IoError::new("list", segment::dir_path(store), e))?;
        let (mark_id, mark, mut mark_state, mut findings) = look_at_mark(store)?;
        let mut epochs: Vec<u64> =
            names.iter().filter_map(|name| frame::parse_segment_name(name)).collect();
        epochs.sort_unstable();
        if epochs.is_empty() && mark_state == MarkState::None {
            return Err(ReadError::NotFound { dir: segment::dir_path(store) });
        }
        let mut heads: BTreeMap<u64, Head> = BTreeMap::new();
        let mut strays = Vec::new();
        let mut stray = |name: String, detail: String| {
            findings.push(Finding {
                kind: FindingKind::Stray,
                file: store.path(&name),
                offset: 0,
                detail,
                lost: None,
            });
            strays.push(name);
        };
        let mut headed: Vec<(String, SegmentHeader)> = Vec::new();
        let mut foreign_mark = None;
        for &epoch in &epochs {
            let name = frame::segment_name(epoch);
            match look_at_header(store, &name)? {
                Looked::Segment { header, .. } if header.epoch != epoch => {
                    let detail = format!("its header says that it is segment {}", header.epoch);
                    headed.push((name.clone(), header));
                    stray(name, detail);
                }
                Looked::Segment { header, copies, file_bytes } => {
                    let segment = Segment { epoch, header, file_bytes };
                    heads.insert(epoch, Head::Intact { segment, copies });
                }
                Looked::Broken(detail) => {
                    _ = heads.insert(epoch, Head::Broken { guess: None, detail, is_old: false })
                }
                Looked::Gone => {}
                Looked::Stray(detail) => stray(name, detail),
            }
        }
        for name in names.iter().filter(|name| name.ends_with(MISPLACED_SUFFIX)) {
            if let Looked::Segment { header, .. } = look_at_header(store, name)? {
                headed.push((name.clone(), header));
                stray(
                    name.clone(),
                    format!("a repair was about to make it segment {}", header.epoch),
                );
            }
        }
        let outvoted = match mark_id {
            Some(id) => outvoting(store, &heads, &headed, id)?,
            None => None,
        };
        if let (Some(of), Some(id)) = (outvoted, mark_id) {
            mark_state = MarkState::Lost;
            foreign_mark = Some(format!("it is of log {id}, the segments are of log {of}"));
        }
        let log_id = outvoted.or(mark_id).or_else(|| most_common(&heads));
        heads.retain(|&epoch, head| match head {
            Head::Intact { segment, .. } if Some(segment.header.log_id) != log_id => {
                let detail = format!("it is of another log, {}", segment.header.log_id);
                stray(frame::segment_name(epoch), detail);
                false
            }
            _ => true,
        });
        if let Some(detail) = foreign_mark {
            let file = store.path(MARK_NAME);
            let kind = FindingKind::Damage;
            findings.push(Finding { kind, file, offset: 0, detail, lost: None });
        }
        let block_bytes = intact(&heads).next().map(|header| header.block_bytes);
        for (&epoch, head) in &mut heads {
            if let (Head::Broken { guess, .. }, Some(log_id)) = (head, log_id) {
                *guess = guess_header(store, epoch, log_id, block_bytes, None)?;
            }
        }
        if mark_state == MarkState::None && heads.keys().next().is_some_and(|&epoch| epoch > 1) {
            mark_state = MarkState::Lost;
            findings.push(Finding {
                kind: FindingKind::Damage,
                file: store.path(MARK_NAME),
                offset: 0,
                detail: "it is missing, and the log does not start with segment 1: what stood before was \
                         trimmed or is lost, and nothing tells which"
                    .to_owned(),
                lost: None,
            });
        }
        let mark = match mark_state {
            MarkState::Lost => mark_of(&heads),
            _ => mark,
        };
        let mut given_up: Vec<u64> =
            heads.keys().copied().take_while(|&epoch| epoch < mark.first_epoch).collect();
        heads.retain(|&epoch, _| epoch >= mark.first_epoch);
        let generations = intact(&heads).map(|header| header.generation);
        let generation_max = generations.max().unwrap_or(0).max(mark.generation);
        let found_epochs: Vec<u64> = heads.keys().copied().collect();
        for epoch in stale(&heads, &mark) {
            heads.remove(&epoch);
            given_up.push(epoch);
        }
        for (epoch, salt, detail) in older(&heads, &mark) {
            let guess = match log_id {
                // What its own header would vouch for is of the file's earlier life.
                Some(id) => guess_header(store, epoch, id, block_bytes, Some(salt))?,
                None => None,
            };
            heads.insert(epoch, Head::Broken { guess, detail, is_old: true });
        }
        // What is missing between the first and the last stands in the list too.
        let mut last = heads.keys().next_back().copied().unwrap_or(mark.first_epoch);
        // So does the one behind them, where something else stands under its name, unless the log was closed
        // before it.
        let was_closed = mark.closed.is_some_and(|closed| closed.epoch <= last);
        while !was_closed && strays.contains(&frame::segment_name(last + 1)) {
            last += 1;
        }
        let segments = (mark.first_epoch..=last)
            .map(|epoch| Found { epoch, head: heads.remove(&epoch).unwrap_or(Head::Missing) })
            .collect();
        let mut misplaced: Vec<(String, u64)> = Vec::new();
        for (name, header) in headed {
            let missing = !found_epochs.contains(&header.epoch) && header.epoch >= mark.first_epoch;
            let known = misplaced.iter().any(|(_, epoch)| *epoch == header.epoch);
            if missing && !known && Some(header.log_id) == log_id {
                misplaced.push((name, header.epoch));
            }
        }
        let spares = names.iter().filter(|name| name.ends_with(SPARE_SUFFIX)).cloned().collect();
        for name in names.iter().filter(|name| name.ends_with(TMP_SUFFIX)) {
            findings.push(Finding {
                kind: FindingKind::Note,
                file: store.path(name),
                offset: 0,
                detail: "an unfinished file, which the next open removes if it is the log's"
                    .to_owned(),
                lost: None,
            });
        }
        Ok(Census {
            log_id,
            mark,
            mark_state,
            segments,
            given_up,
            strays,
            misplaced,
            spares,
            findings,
            generation_max,
        })
    }
}

type Marked = (Option<LogId>, Mark, MarkState, Vec<Finding>);

fn look_at_mark(store: &dyn Store) -> Result<Marked, ReadError> {
    let Some(found) = slots::examine(store, MARK_NAME, Kind::Mark)? else {
        return Ok((None, Mark::new(), MarkState::None, Vec::new()));
    };
    let mut findings = Vec::new();
    let mut finding = |kind, offset, detail: String| {
        findings.push(Finding { kind, file: store.path(MARK_NAME), offset, detail, lost: None });
    };
    let mut newest: Option<(u64, LogId, Mark)> = None;
    let mut broken = Vec::new();
    for (slot, offset) in found.into_iter().zip(SLOT_OFFSETS) {
        match slot {
            slots::Found::Intact(slot) => match Mark::decode(&slot.content) {
                Some(mark) if newest.as_ref().is_none_or(|newest| newest.0 < slot.sequence) => {
                    newest = Some((slot.sequence, slot.log_id, mark));
                }
                Some(_) => {}
                None => broken.push((offset, "its fields are out of range".to_owned(), true)),
            },
            slots::Found::Zero => broken.push((offset, "it is all zeros".to_owned(), false)),
            slots::Found::Broken => {
                broken.push((offset, "its checksum does not match".to_owned(), false));
            }
            slots::Found::Unreadable(error) => {
                broken.push((offset, format!("it cannot be read: {error}"), true));
            }
        }
    }
    let Some((_, log_id, mark)) = newest else {
        let detail: Vec<String> = broken.into_iter().map(|(_, detail, _)| detail).collect();
        finding(
            FindingKind::Damage,
            0,
            format!("neither of its two slots is intact ({})", detail.join("; ")),
        );
        return Ok((None, Mark::new(), MarkState::Lost, findings));
    };
    let is_whole = broken.is_empty();
    for (offset, detail, sure) in broken {
        // A crash in the midst of a write of the slot leaves the same.
        let kind = if sure { FindingKind::Mendable } else { FindingKind::Note };
        finding(
            kind,
            offset,
            format!("one of its two slots is not intact: {detail}; the other serves"),
        );
    }
    let state = if is_whole { MarkState::Intact } else { MarkState::OneSlot };
    Ok((Some(log_id), mark, state, findings))
}

/// Ending of a segment's name while a repair gives segments their places back.
const MISPLACED_SUFFIX: &str = ".seg.misplaced";

/// Name of this segment meanwhile.
pub(crate) fn misplaced_name(epoch: u64) -> String {
    format!("{epoch:020}{MISPLACED_SUFFIX}")
}

enum Looked {
    Segment {
        header: SegmentHeader,
        copies: [bool; 2],
        file_bytes: u64,
    },
    Broken(String),
    Stray(String),
    /// It was there a moment ago.
    Gone,
}

fn look_at_header(store: &dyn Store, name: &str) -> Result<Looked, ReadError> {
    let path = store.path(name);
    let failed = |action: &str, error| ReadError::Io(IoError::new(action, &path, error));
    let file = match PatientFile::open(store, name) {
        Ok(file) => file,
        Err(error) => match (error.raw_os_error(), error.kind()) {
            (_, io::ErrorKind::NotFound) => return Ok(Looked::Gone),
            (Some(libc::ELOOP), _) => return Ok(Looked::Stray("it is a symbolic link".to_owned())),
            (_, io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput) => {
                return Ok(Looked::Stray("it is not a regular file".to_owned()));
            }
            _ => return Err(failed("open", error)),
        },
    };
    let file_bytes = file.len().map_err(|e| failed("read the size of", e))?;
    let want = (2 * BLOCK_BYTES_MAX).min(file_bytes as usize);
    let want = want.next_multiple_of(store.facts().block_bytes);
    let mut bytes = AlignedBuf::new(want.max(1)).map_err(|e| failed("read", e))?;
    let read = file.read_at(0, &mut bytes[..want]).map_err(|e| failed("read", e))?;
    let (first, second) = header_copies(&bytes[..read]);
    let agree = first.is_err() || first == second;
    let copies = [first.is_ok(), second.is_ok() && agree];
    match (first, second) {
        (Ok(header), _) | (_, Ok(header)) => Ok(Looked::Segment { header, copies, file_bytes }),
        (Err(error @ SegmentHeaderError::Version(_)), _) => {
            Err(ReadError::Foreign { path, reason: error.to_string() })
        }
        (Err(error), _) => Ok(Looked::Broken(match file_bytes {
            0 => "the file is empty".to_owned(),
            _ => format!("both copies of the segment header are unreadable: {error}"),
        })),
    }
}

type HeaderCopy = Result<SegmentHeader, SegmentHeaderError>;

/// Both copies of the header in the first bytes of a segment file.
pub(crate) fn header_copies(bytes: &[u8]) -> (HeaderCopy, HeaderCopy) {
    let first = SegmentHeader::decode(bytes);
    let sizes = (BLOCK_BYTES_MIN.ilog2()..=BLOCK_BYTES_MAX.ilog2()).map(|bits| 1usize << bits);
    let at = |offset: usize| {
        let copy = SegmentHeader::decode(bytes.get(offset..).unwrap_or_default())?;
        match copy.block_bytes as usize == offset {
            true => Ok(copy),
            false => Err(SegmentHeaderError::Field("block size")),
        }
    };
    let second = match &first {
        Ok(first) => at(first.block_bytes as usize),
        Err(_) => sizes.filter_map(|size| at(size).ok()).next().ok_or(SegmentHeaderError::Checksum),
    };
    (first, second)
}

fn most_common(heads: &BTreeMap<u64, Head>) -> Option<LogId> {
    let mut counts: BTreeMap<[u8; 16], u64> = BTreeMap::new();
    for head in heads.values() {
        if let Head::Intact { segment, .. } = head {
            *counts.entry(segment.header.log_id.0).or_default() += 1;
        }
    }
    let most = counts.values().copied().max()?;
    counts.into_iter().find(|(_, count)| *count == most).map(|(id, _)| LogId(id))
}

/// The log that all segments are of, where none is of the one that the mark names: then the mark was put
/// here from that one.
fn outvoting(
    store: &dyn Store,
    heads: &BTreeMap<u64, Head>,
    headed: &[(String, SegmentHeader)],
    mark_id: LogId,
) -> Result<Option<LogId>, ReadError> {
    let intact = heads.values().filter_map(|head| match head {
        Head::Intact { segment, .. } => Some(segment.header.log_id),
        _ => None,
    });
    let mut ids = intact.chain(headed.iter().map(|(_, header)| header.log_id));
    let first = ids.next().filter(|id| *id != mark_id);
    let Some(id) = first.filter(|id| ids.all(|other| other == *id)) else { return Ok(None) };
    for (&epoch, head) in heads {
        // Its batches have a say too.
        if matches!(head, Head::Broken { .. })
            && guess_header(store, epoch, mark_id, None, None)?.is_some()
        {
            return Ok(None);
        }
    }
    Ok(Some(id))
}

/// What the batches of a segment tell of its header. Each repeats the log, the epoch, the salt and its
/// own offset, under a checksum. Those of the salt `but` do not count.
fn guess_header(
    store: &dyn Store,
    epoch: u64,
    log_id: LogId,
    block_bytes: Option<u32>,
    but: Option<u64>,
) -> Result<Option<Segment>, ReadError> {
    let path = segment::segment_path(store, epoch);
    let failed = |error| ReadError::Io(IoError::new("read", &path, error));
    let file = match PatientFile::open(store, &frame::segment_name(epoch)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let file_bytes = file.len().map_err(failed)?;
    let mut bytes = AlignedBuf::new(GUESS_BYTES).map_err(failed)?;
    let mut at = 0;
    while at < file_bytes {
        let read = file.read_at(at, &mut bytes).map_err(failed)?;
        for (index, sector) in bytes[..read].chunks(BLOCK_BYTES_MIN).enumerate() {
            let offset = at + (index * BLOCK_BYTES_MIN) as u64;
            if let Some(header) = BatchHeader::decode_any(sector)
                && (header.context.log_id, header.context.epoch) == (log_id, epoch)
                && header.offset == offset
                && Some(header.context.salt) != but
            {
                return Ok(Some(guessed(&header, file_bytes, block_bytes)));
            }
        }
        if read < bytes.len() {
            break;
        }
        at += read as u64;
    }
    Ok(None)
}

const GUESS_BYTES: usize = 1 << 20;

/// A header that its batches can be read with, on blocks as in the other segments. Where there is none, the
/// first batch found tells, if it is the segment's first.
fn guessed(batch: &BatchHeader, file_bytes: u64, block_bytes: Option<u32>) -> Segment {
    let half = (batch.offset / 2) as usize;
    let likely = if frame::valid_block_bytes(half) { half } else { BLOCK_BYTES_MIN } as u32;
    let block = block_bytes.unwrap_or(likely);
    let header = SegmentHeader {
        log_id: batch.context.log_id,
        epoch: batch.context.epoch,
        salt: batch.context.salt,
        block_bytes: block,
        segment_bytes: file_bytes,
        created_wall_ns: 0,
        first_lsn: 0,
        resume: None,
        generation: 0,
        truncated_after: 0,
        // Nothing is known of what stands where no batch does.
        recycled: true,
    };
    Segment { epoch: batch.context.epoch, header, file_bytes }
}

/// The headers that are intact, in order.
fn intact(heads: &BTreeMap<u64, Head>) -> impl Iterator<Item = &SegmentHeader> {
    heads.values().filter_map(|head| match head {
        Head::Intact { segment, .. } => Some(&segment.header),
        _ => None,
    })
}

/// What the mark must have said, as far as the segments tell.
fn mark_of(heads: &BTreeMap<u64, Head>) -> Mark {
    let headers = || intact(heads);
    let generation = headers().map(|header| header.generation).max().unwrap_or(0);
    let began = headers().find(|header| header.generation == generation && generation > 0);
    Mark {
        first_epoch: heads.keys().next().copied().unwrap_or(1),
        first_lsn: 1,
        generation,
        generation_epoch: began.map_or(0, |header| header.epoch),
        truncated_after: began.map_or(0, |header| header.truncated_after),
        closed: None,
    }
}

/// The segments that a completed truncation cut off.
fn stale(heads: &BTreeMap<u64, Head>, mark: &Mark) -> Vec<u64> {
    if mark.generation == 0 || mark.generation_epoch < mark.first_epoch {
        return Vec::new();
    }
    let mut older = Vec::new();
    let mut any = false;
    for (&epoch, head) in heads.range(mark.generation_epoch..).rev() {
        match head {
            Head::Intact { segment, .. } if segment.header.generation >= mark.generation => {
                // Where all are broken, they may be what was written since.
                return if any { older } else { Vec::new() };
            }
            Head::Intact { .. } => any = true,
            _ => {}
        }
        older.push(epoch);
    }
    Vec::new()
}

/// The segments whose header is of a lower generation than what stands before them, or than the completed truncation
/// before them, or than the segment behind, where that does not say that it begins one: with the salt that the header
/// says, and what is wrong with it.
fn older(heads: &BTreeMap<u64, Head>, mark: &Mark) -> Vec<(u64, u64, String)> {
    let headers = || intact(heads);
    let cut = mark.generation_epoch >= mark.first_epoch
        && headers().any(|h| h.epoch >= mark.generation_epoch && h.generation >= mark.generation);
    let mut least = 0;
    let mut older = Vec::new();
    let mut headers = headers().peekable();
    while let Some(header) = headers.next() {
        if cut && header.epoch >= mark.generation_epoch {
            least = least.max(mark.generation);
        }
        let next = headers.peek().filter(|next| next.epoch == header.epoch + 1);
        let begun = next.filter(|next| next.resume.is_none()).map_or(0, |next| next.generation);
        let wanted = least.max(begun);
        if header.generation < wanted {
            let detail = older_header(header.generation, wanted);
            older.push((header.epoch, header.salt, detail));
        }
        least = least.max(header.generation);
    }
    older
}
