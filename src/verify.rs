//! [`verify`]: reads every byte of a log that counts, goes on past damage, and tells what is lost.
//! [`salvage`] hands out the records that are intact.
//!
//! [`census`] finds the files, [`walk`] follows the batches. Nothing is changed, and no lock is taken: a
//! writer may be at work. Then what is vouched for is checked; what is being written looks like a torn
//! tail. Memory is bounded by the largest batch and by the number of findings.

pub(crate) mod census;
pub(crate) mod patient;
mod report;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod walk;

use std::path::Path;

pub use report::{Finding, FindingKind, Lost, VerifyReport};

use crate::cursor;
use crate::disk::Store;
use crate::disk::os::OsStore;
use crate::error::{OpenError, ReadError};
use crate::frame::{self, BATCH_HEADER_BYTES};
use crate::lsn::Lsn;
use crate::mark::MARK_NAME;
use crate::read::Record;
use crate::scan::{BatchCursor, Step};
use crate::segment;
use crate::slots;
use census::{Census, Found, Head, MarkState};
use patient::PatientFile;
use report::FINDINGS_MAX;
use walk::{Hole, Mend, Walked};

/// How often a log that changes is looked at again.
const LOOKS_MAX: u32 = 16;

/// Reads all of the log in `dir`, whatever its state, and tells what is intact, what is lost, and what
/// else is not as it should be. Changes nothing and takes no lock: a writer may be at work meanwhile, and
/// then what was vouched for when the end was reached is verified.
///
/// Reads every segment that counts once; twice where it changed meanwhile. Blocks while it does.
///
/// # Errors
/// There is no log, it is of a newer format, or the system refuses to open a file. Damage is no
/// error here: it is in the report.
pub fn verify(dir: impl AsRef<Path>) -> Result<VerifyReport, ReadError> {
    let store = OsStore::open_read_only(dir.as_ref()).map_err(OpenError::into_read_error)?;
    verify_store(&*store)
}

/// Hands every intact record of the log in `dir` to `each`, in order, over whatever is damaged; `each`
/// returns false to have no more. Otherwise as [`verify`], whose report says what is missing between the
/// records; the log is read twice.
///
/// # Errors
/// As [`verify`].
pub fn salvage(
    dir: impl AsRef<Path>,
    each: impl FnMut(Record<'_>) -> bool,
) -> Result<VerifyReport, ReadError> {
    let store = OsStore::open_read_only(dir.as_ref()).map_err(OpenError::into_read_error)?;
    salvage_store(&*store, each)
}

pub(crate) fn verify_store(store: &dyn Store) -> Result<VerifyReport, ReadError> {
    Ok(look(store)?.report())
}

pub(crate) fn salvage_store(
    store: &dyn Store,
    mut each: impl FnMut(Record<'_>) -> bool,
) -> Result<VerifyReport, ReadError> {
    let report = look(store)?.report();
    // Once more, now that it is known what counts.
    let mut left = report.intact.iter().copied().peekable();
    let census = Census::take(store)?;
    walk::walk(store, &census, first_of(&census), &mut |header, batch| {
        let payloads = Payloads::new(header.first_lsn, header.count, header.table_offset(), batch);
        for (lsn, payload) in payloads {
            while left.next_if(|(_, last)| last.get() < lsn).is_some() {}
            let Some((first, _)) = left.peek() else { return false };
            if first.get() <= lsn && !each(Record::new(Lsn::new(lsn), payload, header.wall_ns)) {
                return false;
            }
        }
        true
    })?;
    Ok(report)
}

/// The records of a batch that was verified.
struct Payloads<'a> {
    lsn: u64,
    index: u32,
    count: u32,
    table_at: usize,
    at: usize,
    batch: &'a [u8],
}

impl<'a> Payloads<'a> {
    fn new(first_lsn: u64, count: u32, table_at: usize, batch: &'a [u8]) -> Payloads<'a> {
        Payloads { lsn: first_lsn, index: 0, count, table_at, at: BATCH_HEADER_BYTES, batch }
    }
}

impl<'a> Iterator for Payloads<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.count {
            return None;
        }
        let entry = frame::table_entry(self.batch, self.table_at, self.index as usize);
        let end = self.at + entry.len as usize;
        let payload = self.batch.get(self.at..end)?;
        let lsn = self.lsn + u64::from(self.index);
        (self.at, self.index) = (end, self.index + 1);
        Some((lsn, payload))
    }
}

/// Everything that a look at a log found: what a repair goes by.
pub(crate) struct Look {
    pub(crate) census: Census,
    /// Beside the holes.
    pub(crate) findings: Vec<Finding>,
    /// Its holes are damage.
    pub(crate) walked: Walked,
    /// The first record that the log should hold.
    pub(crate) first_lsn: u64,
    unsteady: bool,
}

/// Looks until nothing was found that a writer may have caused by moving files meanwhile.
pub(crate) fn look(store: &dyn Store) -> Result<Look, ReadError> {
    let mut looks = 0;
    loop {
        looks += 1;
        let mut look = Look::at(store)?;
        if look.walked.holes.is_empty() || look.is_confirmed(store)? {
            return Ok(look);
        }
        if looks == LOOKS_MAX {
            look.unsteady = true;
            return Ok(look);
        }
    }
}

/// The log's first record, where the mark tells.
fn first_of(census: &Census) -> Option<u64> {
    (census.mark_state != MarkState::Lost).then_some(census.mark.first_lsn)
}

impl Look {
    /// Whether files came and went all the time.
    pub(crate) fn is_unsteady(&self) -> bool {
        self.unsteady
    }

    fn at(store: &dyn Store) -> Result<Look, ReadError> {
        let mut census = Census::take(store)?;
        let mut walked = walk::walk(store, &census, first_of(&census), &mut |_, _| true)?;
        let torn = walked.settle();
        let anchor = walked.anchor_lsn.unwrap_or(1);
        let first_lsn = first_of(&census).unwrap_or(anchor);
        let mut findings = core::mem::take(&mut census.findings);
        header_findings(store, &census, &mut findings);
        small_findings(store, &walked, &mut findings);
        if let Some(torn) = &torn {
            findings.push(Finding {
                kind: FindingKind::Torn,
                file: segment::segment_path(store, torn.epoch),
                offset: torn.offset,
                detail: format!(
                    "{}: what stands from here on was never acknowledged; the next open cuts it, or a \
                     writer is writing it just now",
                    torn.detail
                ),
                lost: None,
            });
        }
        let mut look = Look { census, findings, walked, first_lsn, unsteady: false };
        look.place_misplaced();
        look.check_closed(store);
        look.check_cursors(store)?;
        look.name_holes(store);
        Ok(look)
    }

    /// What stands under another name is not lost, as long as nothing else is missing.
    fn place_misplaced(&mut self) {
        let missing = |epoch: u64| {
            let found = self.census.segments.iter().find(|found| found.epoch == epoch);
            found.is_some_and(|found| matches!(found.head, Head::Missing))
        };
        let place = |epoch| self.census.misplaced.iter().find(|(_, is)| *is == epoch);
        let mut holes: Vec<&mut Hole> =
            self.walked.holes.iter_mut().filter(|hole| missing(hole.epoch)).collect();
        if holes.iter().any(|hole| place(hole.epoch).is_none()) {
            return;
        }
        for hole in &mut holes {
            if let Some((name, _)) = place(hole.epoch) {
                hole.last = Some(hole.first - 1);
                hole.detail = format!("the segment stands under another name, {name}");
            }
        }
    }

    /// The mark may say where the log ended when it was closed. Then it goes at least so far.
    fn check_closed(&mut self, store: &dyn Store) {
        let Some(closed) = self.census.mark.closed else { return };
        let end = self.walked.end;
        let block = self.census.segments.iter().find_map(|found| {
            let header = found.header().filter(|header| header.epoch == end.epoch)?;
            Some(u64::from(header.block_bytes))
        });
        let behind = (end.epoch, end.offset) >= (closed.epoch, closed.end_offset);
        // The batch that closes a log is empty, one block: where only that is missing, no record is. It may
        // be the first of a segment of its own.
        let only_last = block.is_some_and(|block| {
            let without_last = closed.end_offset.saturating_sub(block);
            match closed.epoch.checked_sub(end.epoch) {
                Some(0) => end.offset >= without_last,
                Some(1) => without_last <= 2 * block,
                _ => false,
            }
        });
        // Whoever cut the log since had the mark say so afterwards.
        let is_cut = generation_of(&self.census) > self.census.mark.generation;
        let is_empty = end.link.is_none() && self.walked.batches == 0 && closed.crc == 0;
        if behind || is_empty || is_cut || !self.walked.holes.is_empty() {
            return;
        }
        let detail = format!(
            "the log was closed with its end in segment {} at offset {}, and ends in segment {} at \
             offset {} now",
            closed.epoch, closed.end_offset, end.epoch, end.offset
        );
        if only_last {
            self.findings.push(Finding {
                kind: FindingKind::Note,
                file: segment::segment_path(store, closed.epoch),
                offset: end.offset,
                detail: format!("{detail}: the empty batch that closed it is gone, and no record"),
                lost: None,
            });
            return;
        }
        let next = end.link.map_or(self.first_lsn, |(_, next)| next);
        let detail = format!("{detail}: records from {next} on are lost, if there were any");
        let hole = Hole {
            epoch: closed.epoch,
            offset: if end.epoch == closed.epoch { end.offset } else { 0 },
            first: next,
            last: None,
            detail,
            is_certain: true,
            before: end,
            clean_before: self.walked.clean_from.take(),
        };
        self.walked.holes.push(hole);
    }

    fn check_cursors(&mut self, store: &dyn Store) -> Result<(), ReadError> {
        let next = self.walked.end.link.map_or(self.first_lsn, |(_, next)| next);
        let mut farthest: Option<(u64, String)> = None;
        for state in cursor::examine(store, self.census.log_id)? {
            let Some((kind, mut detail)) = state.trouble(self.walked.vouched_lsn) else { continue };
            // What it stood behind was there, unless somebody set it so far.
            if let (FindingKind::Note, Some(position)) = (kind, state.position)
                && position > next
            {
                detail += &format!(
                    "; unless it was set there ahead, records {next} to {} are gone",
                    position - 1
                );
                if farthest.as_ref().is_none_or(|(most, _)| *most < position) {
                    farthest = Some((position, state.file.clone()));
                }
            }
            self.findings.push(Finding {
                kind,
                file: store.path(&state.file),
                offset: 0,
                detail,
                lost: None,
            });
        }
        // A log that lost its end: the least that is lost.
        if let (Some((position, file)), Some(hole)) = (farthest, self.walked.holes.last_mut())
            && hole.last.is_none()
        {
            let name = file.trim_end_matches(".cursor");
            hole.detail += &format!("; at least to {}, says cursor {name}", position - 1);
        }
        Ok(())
    }

    /// The holes as findings, before the others, in the order of the log.
    fn name_holes(&mut self, store: &dyn Store) {
        let named = self.walked.holes.iter().map(|hole| Finding {
            kind: FindingKind::Damage,
            file: segment::segment_path(store, hole.epoch),
            offset: hole.offset,
            detail: hole.detail.clone(),
            lost: hole.lost(self.walked.vouched_lsn),
        });
        self.findings.splice(0..0, named);
    }

    /// Whether the damage is still there: a writer may have moved files, or finished what was half
    /// written when it was read.
    fn is_confirmed(&self, store: &dyn Store) -> Result<bool, ReadError> {
        let now = Census::take(store)?;
        let names = |census: &Census| -> Vec<(u64, Option<u64>)> {
            let of = |found: &Found| (found.epoch, found.segment().map(|s| s.header.salt));
            census.segments.iter().map(of).collect()
        };
        if now.mark != self.census.mark || names(&now) != names(&self.census) {
            return Ok(false);
        }
        for hole in &self.walked.holes {
            if hole.offset > 0 && stands_a_batch(store, &now, hole)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn report(self) -> VerifyReport {
        let Look { census, findings, walked, first_lsn, unsteady, .. } = self;
        let mut intact: Vec<(Lsn, Lsn)> = Vec::new();
        for run in &walked.runs {
            match intact.last_mut() {
                Some((_, last)) if last.next().get() == run.first => *last = Lsn::new(run.last),
                _ => intact.push((Lsn::new(run.first), Lsn::new(run.last))),
            }
        }
        let lost = walked.holes.iter().filter_map(|hole| hole.lost(walked.vouched_lsn)).collect();
        let generation = generation_of(&census);
        let left_out = (findings.len().saturating_sub(FINDINGS_MAX)) as u64;
        let findings: Vec<Finding> = findings.into_iter().take(FINDINGS_MAX).collect();
        VerifyReport {
            log_id: census.log_id,
            first_lsn: Lsn::new(first_lsn),
            last_lsn: intact.last().map_or(Lsn::new(first_lsn - 1), |(_, last)| *last),
            vouched_lsn: Lsn::new(walked.vouched_lsn),
            generation,
            segments: walked.segments,
            batches: walked.batches,
            records: walked.runs.iter().map(|run| run.last - run.first + 1).sum(),
            payload_bytes: walked.runs.iter().map(|run| run.payload_bytes).sum(),
            bytes: walked.bytes,
            intact,
            lost,
            findings,
            findings_left_out: left_out + walked.holes_left_out,
            spares: (census.spares.len() + census.given_up.len()) as u64,
            unsteady,
        }
    }
}

impl Hole {
    /// The acknowledged records that are lost here.
    pub(crate) fn lost(&self, vouched_lsn: u64) -> Option<Lost> {
        let first = Lsn::new(self.first);
        match self.last {
            Some(last) if last < self.first => None,
            Some(last) => Some(Lost { first, last: Some(Lsn::new(last)) }),
            // Behind everything that is vouched for: there may have been more, or nothing.
            None if self.first > vouched_lsn => None,
            None => Some(Lost { first, last: None }),
        }
    }
}

/// Truncations that the log has seen, by its last segment.
pub(crate) fn generation_of(census: &Census) -> u64 {
    let last = census.segments.iter().rev().find_map(Found::header);
    last.map_or(census.mark.generation, |header| header.generation)
}

/// Whether an intact batch stands where one was missed.
fn stands_a_batch(store: &dyn Store, census: &Census, hole: &Hole) -> Result<bool, ReadError> {
    let found = census.segments.iter().find(|found| found.epoch == hole.epoch);
    let Some(segment) = found.and_then(Found::segment) else { return Ok(false) };
    let Ok(file) = PatientFile::open(store, &frame::segment_name(hole.epoch)) else {
        return Ok(false);
    };
    let limit = segment.limit(None);
    let io_block = store.facts().block_bytes;
    let mut cursor =
        BatchCursor::new(file, segment.clone(), io_block, limit, hole.offset, None, None)
            .map_err(|e| segment_failed(store, hole.epoch, e))?;
    let step = cursor.peek().map_err(|e| segment_failed(store, hole.epoch, e))?;
    // One of another number stood there before, too.
    Ok(matches!(step, Step::Batch(batch) if batch.header.first_lsn == hole.first
        && hole.last.is_none_or(|last| last >= hole.first)))
}

fn segment_failed(store: &dyn Store, epoch: u64, error: std::io::Error) -> ReadError {
    ReadError::Io(crate::IoError::new("read", segment::segment_path(store, epoch), error))
}

/// Headers of which one copy is bad.
fn header_findings(store: &dyn Store, census: &Census, findings: &mut Vec<Finding>) {
    for found in &census.segments {
        let Head::Intact { segment, copies } = &found.head else { continue };
        let block = u64::from(segment.header.block_bytes);
        for (copy, offset) in copies.iter().zip([0, block]).filter(|(intact, _)| !**intact) {
            debug_assert!(!copy);
            findings.push(Finding {
                kind: FindingKind::Mendable,
                file: segment::segment_path(store, found.epoch),
                offset,
                detail:
                    "one of the two copies of the segment header is not intact; the other serves"
                        .to_owned(),
                lost: None,
            });
        }
    }
    if census.mark_state == MarkState::None {
        findings.push(Finding {
            kind: FindingKind::Note,
            file: store.path(MARK_NAME),
            offset: 0,
            detail: "there is none: the log counts as one that was never trimmed".to_owned(),
            lost: None,
        });
    }
}

fn small_findings(store: &dyn Store, walked: &Walked, findings: &mut Vec<Finding>) {
    let mut push = |kind, epoch, offset, detail: String| {
        let file = segment::segment_path(store, epoch);
        findings.push(Finding { kind, file, offset, detail, lost: None });
    };
    for mend in &walked.mends {
        match mend {
            Mend::Padding { epoch, offset } => push(
                FindingKind::Mendable,
                *epoch,
                *offset,
                "bytes behind the records of a batch are not zero; the records are intact, but readers \
                 refuse the batch"
                    .to_owned(),
            ),
            Mend::Footer { epoch, .. } => push(
                FindingKind::Note,
                *epoch,
                0,
                "the footer, a cache, is not valid or says something else than the batches".to_owned(),
            ),
        }
    }
    for (epoch, offset, error) in &walked.unreadable {
        let detail = format!("the device does not give this block: {error}");
        push(FindingKind::Mendable, *epoch, *offset, detail);
    }
    for (epoch, offset, detail) in &walked.odd {
        let detail = format!("bytes behind the last batch that belong to nothing ({detail})");
        push(FindingKind::Note, *epoch, *offset, detail);
    }
}

/// Where the slots of a small file are not intact.
pub(crate) fn slot_trouble(found: &[slots::Found; 2]) -> Option<(FindingKind, String)> {
    use slots::Found as F;
    let intact = found.iter().filter(|slot| matches!(slot, F::Intact(_))).count();
    let error = found.iter().find_map(|slot| match slot {
        F::Unreadable(error) => Some(error),
        _ => None,
    });
    match (intact, error) {
        (0, Some(error)) => Some((FindingKind::Damage, format!("it cannot be read: {error}"))),
        (0, None) => {
            Some((FindingKind::Damage, "neither of its two slots is intact".to_owned()))
        }
        (_, Some(error)) => Some((
            FindingKind::Damage,
            format!("one of its two slots cannot be read: {error}; the other may be older"),
        )),
        (1, None) if found.contains(&F::Broken) => Some((
            FindingKind::Note,
            "one of its two slots is not intact, as a crash in the midst of a write leaves it; the \
             other serves"
                .to_owned(),
        )),
        _ => None,
    }
}
