//! From one end of a log to the other, over whatever is broken: follows the chain of batches with the parser
//! that recovery and the readers share, and where it breaks, looks for the next batch that is intact.
//!
//! What was acknowledged is known only at the end, since every header vouches for what came before. So the
//! walk collects **holes**, and [`Walked::settle`] tells afterwards which of them are damage, and where a
//! torn tail begins.

mod holes;
mod mending;

use std::sync::Arc;

pub(crate) use holes::{Hole, Mend, Place, Run, Walked};
pub(crate) use mending::{Aligned, mended_batch};

use super::census::{Census, Found, Head};
use super::patient::PatientFile;
use crate::disk::{File, Store};
use crate::error::{IoError, ReadError};
use crate::footer::{self, Footer};
use crate::frame::{self, BatchError, BatchHeader, SegmentHeader};
use crate::index::SegmentIndex;
use crate::scan::{self, BatchCursor, Placed, Step, Stop, StopReason};
use crate::segment::{self, Segment};

/// Holes and other findings that are remembered; more are only counted.
const HOLES_MAX: usize = 100_000;

/// Takes every intact batch: its header, and its bytes as they stand on disk. False ends the walk.
pub(crate) type Each<'a> = &'a mut dyn FnMut(&BatchHeader, &[u8]) -> bool;

/// Walks over the log. `first_lsn` is its first record, where the mark tells.
pub(crate) fn walk(
    store: &dyn Store,
    census: &Census,
    first_lsn: Option<u64>,
    each: Each<'_>,
) -> Result<Walked, ReadError> {
    let first_epoch = census.mark.first_epoch;
    let mut walker = Walker {
        store,
        each,
        next: first_lsn,
        crc: None,
        suspect: None,
        first_lsn: first_lsn.unwrap_or(1),
        knows_first: first_lsn.is_some(),
        walked: Walked {
            segments: 0,
            batches: 0,
            bytes: 0,
            runs: Vec::new(),
            holes: Vec::new(),
            holes_left_out: 0,
            vouched_lsn: first_lsn.unwrap_or(1) - 1,
            end: Place { epoch: first_epoch, offset: 0, link: None },
            wall_ns: 0,
            anchor_lsn: None,
            clean_from: None,
            mends: Vec::new(),
            odd: Vec::new(),
            first_batches: Vec::new(),
            unreadable: Vec::new(),
        },
        is_guess: false,
        broke: false,
        bare: None,
    };
    for (index, found) in census.segments.iter().enumerate() {
        let next = census.segments.get(index + 1);
        if !walker.enter(found, next)? {
            break;
        }
    }
    walker.finish();
    Ok(walker.walked)
}

struct Walker<'a> {
    store: &'a dyn Store,
    each: Each<'a>,
    /// The number that the next batch must have, and the checksum that it must link to, where known.
    next: Option<u64>,
    crc: Option<u32>,
    /// Where something may be missing: it is, if what follows does not fit what came before.
    suspect: Option<Suspect>,
    /// The log's first record: what a batch met first says, where the mark does not.
    first_lsn: u64,
    knows_first: bool,
    walked: Walked,
    /// Whether the segment's header is not known.
    is_guess: bool,
    /// Whether a hole came after the last batch.
    broke: bool,
    /// A segment made by recovery or a truncation, of which no batch was met yet. It was made with one.
    bare: Option<(u64, u64)>,
}

struct Suspect {
    epoch: u64,
    offset: u64,
    detail: String,
    /// The records of a batch of which only the header is intact.
    last: Option<u64>,
    is_certain: bool,
}

impl Walker<'_> {
    /// Walks over one segment. False: whoever takes the batches has enough.
    fn enter(&mut self, found: &Found, next: Option<&Found>) -> Result<bool, ReadError> {
        let certain = |detail: &str| Suspect {
            epoch: found.epoch,
            offset: 0,
            detail: detail.to_owned(),
            last: None,
            is_certain: true,
        };
        let segment = match &found.head {
            Head::Missing => {
                self.suspect(certain("the segment file is missing"));
                return Ok(true);
            }
            Head::Broken { guess: None, detail, .. } => {
                self.suspect(certain(&format!("{detail}; and no intact batch is in it")));
                return Ok(true);
            }
            Head::Broken { guess: Some(segment), detail, is_old: true }
                if !self.is_continued_by(segment)? =>
            {
                self.suspect(certain(&format!("{detail}; and no batch in it continues the log")));
                return Ok(true);
            }
            Head::Broken { guess: Some(segment), detail, .. } => {
                self.suspect(certain(detail));
                segment
            }
            Head::Intact { segment, .. } => segment,
        };
        let file = match PatientFile::open(self.store, &frame::segment_name(found.epoch)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.suspect(certain("the segment file is missing"));
                return Ok(true);
            }
            opened => opened.map_err(|e| self.failed("open", found.epoch, e))?,
        };
        self.walked.segments += 1;
        self.walked.bytes += segment.file_bytes;
        let limit = segment.limit(next.and_then(Found::header));
        self.is_guess = found.header().is_none();
        if self.is_guess {
            if self.walked.anchor_lsn.is_some()
                && let Some(suspect) = self.suspect.take()
            {
                // That the header is gone is damage for itself, even if what follows fits.
                self.hole(suspect, self.next.map(|next| next - 1));
            }
        } else {
            self.cross(&segment.header);
        }
        let going = self.batches(segment, file.clone(), limit, next.is_some())?;
        let superseded = next.and_then(Found::header).is_some_and(|next| next.resume.is_some());
        if segment.file_bytes < segment.header.segment_bytes && !superseded {
            let detail = format!(
                "the file was cut to {} of {} bytes; records behind that are lost, if there were any",
                segment.file_bytes, segment.header.segment_bytes
            );
            let offset = segment.file_bytes;
            self.suspect(Suspect {
                epoch: segment.epoch,
                offset,
                detail,
                last: None,
                is_certain: true,
            });
        }
        let unreadable = file.unreadable().into_iter();
        self.walked.unreadable.extend(unreadable.map(|(at, error)| (segment.epoch, at, error)));
        Ok(going)
    }

    /// Whether the segment's first batch is the next one of the log.
    fn is_continued_by(&self, segment: &Segment) -> Result<bool, ReadError> {
        let (Some(next), Some(crc)) = (self.next, self.crc) else { return Ok(false) };
        let failed = |e| self.failed("read", segment.epoch, e);
        let file = PatientFile::open(self.store, &frame::segment_name(segment.epoch));
        let mut cursor = BatchCursor::new(
            file.map_err(failed)?,
            segment.clone(),
            self.store.facts().block_bytes,
            segment.limit(None),
            segment.header.data_offset(),
            Some(next),
            Some(crc),
        )
        .map_err(failed)?;
        Ok(matches!(cursor.peek().map_err(failed)?, Step::Batch(_)))
    }

    /// What the segment's header says of the place where it begins.
    fn cross(&mut self, header: &SegmentHeader) {
        if header.first_lsn == 0 {
            return;
        }
        self.walked.vouched_lsn = self.walked.vouched_lsn.max(header.first_lsn - 1);
        let crc = header.resume.map(|resume| resume.prev_batch_crc);
        let fits = match self.next {
            _ if self.walked.anchor_lsn.is_none() => self.may_start_at(header.first_lsn),
            Some(next) => next == header.first_lsn,
            None => true,
        };
        self.met(header.epoch, header.data_offset(), header.first_lsn, fits);
        self.next = Some(header.first_lsn);
        self.crc = if header.first_lsn == 1 { crc.or(Some(0)) } else { crc };
    }

    /// Whether the log may begin with this number: it may start behind the start of its first segment.
    fn may_start_at(&self, lsn: u64) -> bool {
        !self.knows_first || lsn <= self.first_lsn
    }

    /// A number was met that is known to stand here: what does not fit before it is a hole.
    fn met(&mut self, epoch: u64, offset: u64, first: u64, fits: bool) {
        let suspect = self.suspect.take();
        let anchored = self.walked.anchor_lsn.is_some();
        let fits = fits || !(anchored || self.knows_first);
        if !anchored && !self.knows_first {
            // What stood before was trimmed or is lost, and nothing tells which.
            self.first_lsn = first;
        }
        self.walked.anchor_lsn.get_or_insert(first);
        if fits && suspect.as_ref().is_none_or(|suspect| !suspect.is_certain) {
            if let Some(odd) = suspect.filter(|_| self.walked.odd.len() < HOLES_MAX) {
                self.walked.odd.push((odd.epoch, odd.offset, odd.detail));
            }
            return;
        }
        let end = self.walked.end;
        let suspect = suspect.unwrap_or_else(|| {
            let (epoch, offset) = if anchored { (end.epoch, end.offset) } else { (epoch, offset) };
            Suspect {
                epoch,
                offset,
                detail: "what follows does not fit what stands before".to_owned(),
                last: None,
                is_certain: false,
            }
        });
        self.hole(suspect, Some(first - 1));
    }

    /// Walks over the batches of a segment. `moved_on`: there is another one behind.
    fn batches(
        &mut self,
        segment: &Segment,
        file: Arc<PatientFile>,
        limit: u64,
        moved_on: bool,
    ) -> Result<bool, ReadError> {
        let store = self.store;
        let failed =
            |e| ReadError::Io(IoError::new("read", segment::segment_path(store, segment.epoch), e));
        let io_block = store.facts().block_bytes;
        let data_offset = segment.header.data_offset();
        let block = u64::from(segment.header.block_bytes);
        let dyn_file: Arc<dyn File> = file;
        let mut expected = (self.next, self.crc);
        if self.walked.anchor_lsn.is_none() || self.suspect.is_some() {
            expected = (None, None);
        }
        let mut cursor = BatchCursor::new(
            dyn_file.clone(),
            segment.clone(),
            io_block,
            limit,
            data_offset,
            expected.0,
            expected.1,
        )
        .map_err(failed)?;
        let mut index = Some(SegmentIndex::new(&segment.header, self.next.unwrap_or(0)));
        let mut any = false;
        loop {
            let stop = match cursor.peek().map_err(failed)? {
                Step::Batch(batch) if self.is_of_log(&batch) => {
                    let bytes = cursor.held(&batch, 0..(batch.end - batch.header.offset) as usize);
                    let going = (self.each)(&batch.header, bytes);
                    self.take(segment, &batch, !any && batch.header.offset == data_offset);
                    any = true;
                    if let Some(index) = &mut index {
                        index.add(&batch.header, batch.crc, batch.end);
                    }
                    cursor.accept(&batch);
                    if !going {
                        return Ok(false);
                    }
                    continue;
                }
                // Its number goes back: nothing that the log could hold here.
                Step::Batch(_) => Stop { reason: StopReason::Chain, header: None },
                Step::Stop(stop) => stop,
            };
            if stop.reason == StopReason::Limit {
                break;
            }
            let at = cursor.offset();
            if let (StopReason::Invalid(BatchError::Padding), Some(header)) =
                (stop.reason, &stop.header)
                && let Some(batch) = self.padded(segment, &*dyn_file, header).map_err(failed)?
            {
                cursor.accept(&batch);
                any = true;
                index = None;
                continue;
            }
            index = None;
            let anchored = self.walked.anchor_lsn.is_some();
            let least = if anchored { self.next.unwrap_or(0) } else { 0 };
            // A batch that does not follow the one before may stand right here.
            let from = if stop.reason == StopReason::Chain { at } else { at + block };
            let sweep = scan::sweep(&dyn_file, segment, io_block, from, limit, |header| {
                header.first_lsn >= least
                    && header.first_lsn.checked_add(header.count.into()).is_some()
            })
            .map_err(failed)?;
            let stop_synced = stop.header.map_or(0, |header| header.synced_lsn);
            let vouched = self.walked.vouched_lsn.max(sweep.synced_lsn).max(stop_synced);
            self.walked.vouched_lsn = vouched;
            let rest = scan::sweep(&dyn_file, segment, io_block, at, at + block, |_| false)
                .map_err(failed)?;
            let is_zero = rest.nonzero_end == 0 && sweep.nonzero_end == 0;
            // Bytes that are no batch are suspect; zeros, and what an earlier life of the file left, are
            // the usual end.
            let is_odd = stop.header.is_some()
                || sweep.found.is_some()
                || !(is_zero || segment.header.recycled);
            if self.suspect.is_none() && is_odd && stop.reason != StopReason::Chain {
                self.suspect(Suspect {
                    epoch: segment.epoch,
                    offset: at,
                    detail: stop.reason.to_string(),
                    last: stop.header.filter(|h| h.count > 0).map(|header| header.last_lsn()),
                    is_certain: false,
                });
            }
            let Some(found) = sweep.found else { break };
            self.met(segment.epoch, found.offset, found.first_lsn, false);
            (self.next, self.crc) = (Some(found.first_lsn), Some(found.prev_crc));
            cursor.move_to(found.offset, self.next, self.crc);
        }
        if segment.header.resume.is_some() && !any && limit > data_offset {
            self.bare = Some((segment.epoch, data_offset));
        }
        if let Some(index) = index.filter(|_| any && moved_on) {
            self.check_footer(segment, &*dyn_file, limit, &index).map_err(failed)?;
        }
        Ok(true)
    }

    /// Whether the batch can be the next one of the log, by its number.
    fn is_of_log(&self, batch: &Placed) -> bool {
        match self.next {
            Some(next) if self.walked.anchor_lsn.is_some() => batch.header.first_lsn >= next,
            _ => true,
        }
    }

    fn take(&mut self, segment: &Segment, batch: &Placed, is_first: bool) {
        let header = &batch.header;
        let fits = match (self.next, self.crc) {
            _ if self.walked.anchor_lsn.is_none() => self.may_start_at(header.first_lsn),
            (Some(next), crc) => {
                next == header.first_lsn && crc.is_none_or(|crc| crc == header.prev_crc)
            }
            (None, _) => true,
        };
        self.met(header.context.epoch, header.offset, header.first_lsn, fits);
        let walked = &mut self.walked;
        self.bare = None;
        if is_first && self.is_guess && fits {
            walked.first_batches.push((segment.epoch, header.offset));
        }
        if is_first && walked.clean_from.is_none() && !self.is_guess {
            walked.clean_from = Some((segment.epoch, header.first_lsn));
        }
        walked.batches += 1;
        walked.wall_ns = walked.wall_ns.max(header.wall_ns);
        walked.vouched_lsn = walked.vouched_lsn.max(header.synced_lsn);
        walked.end = Place {
            epoch: segment.epoch,
            offset: batch.end,
            link: Some((batch.crc, header.last_lsn() + 1)),
        };
        let first = header.first_lsn.max(self.first_lsn);
        if header.count > 0 && header.last_lsn() >= first {
            let bytes = u64::from(header.payload_bytes);
            match walked.runs.last_mut() {
                Some(run) if run.last + 1 == first && !self.broke => {
                    run.last = header.last_lsn();
                    run.payload_bytes += bytes;
                }
                _ => walked.runs.push(Run { first, last: header.last_lsn(), payload_bytes: bytes }),
            }
        }
        self.broke = false;
        self.next = Some(header.last_lsn() + 1);
        self.crc = Some(batch.crc);
    }

    /// The batch, if nothing is wrong with it but bytes that must be zero.
    fn padded(
        &mut self,
        segment: &Segment,
        file: &dyn File,
        header: &BatchHeader,
    ) -> std::io::Result<Option<Placed>> {
        let Some((image, crc)) = mended_batch(self.store, segment, file, header)? else {
            return Ok(None);
        };
        let end = header.offset + image.len() as u64;
        let placed = Placed { header: *header, crc, end };
        if !self.is_of_log(&placed) {
            return Ok(None);
        }
        (self.each)(header, &image);
        self.take(segment, &placed, header.offset == segment.header.data_offset());
        let (epoch, offset) = (segment.epoch, header.offset);
        self.walked.mends.push(Mend::Padding { epoch, offset });
        Ok(Some(placed))
    }

    /// A footer that is there, and says something else than the batches.
    fn check_footer(
        &mut self,
        segment: &Segment,
        file: &dyn File,
        limit: u64,
        index: &SegmentIndex,
    ) -> std::io::Result<()> {
        let header = &segment.header;
        let at = footer::footer_offset(header);
        let bytes = footer::footer_bytes(header.segment_bytes, header.block_bytes) as usize;
        let ours = index.footer();
        if limit < header.segment_bytes || ours.end_offset > at {
            return Ok(());
        }
        let mut buf = Aligned::read(self.store, file, at, bytes)?;
        let Some(found) = buf.bytes(bytes) else { return Ok(()) };
        let differs = match Footer::decode(found, header) {
            Some(found) => {
                Footer { entries: Vec::new(), ..found }
                    != Footer { entries: Vec::new(), ..ours.clone() }
            }
            // In a file that was used before, anything may stand there.
            None => !header.recycled && !frame::is_zero(found),
        };
        if differs {
            let footer = Box::new(ours.clone());
            self.walked.mends.push(Mend::Footer { epoch: segment.epoch, footer });
        }
        Ok(())
    }

    /// The first place where something may be missing is the one to name; what is certain goes before.
    fn suspect(&mut self, suspect: Suspect) {
        match &self.suspect {
            Some(before) if before.is_certain && suspect.is_certain => {
                // Several files are missing or broken: each is named, the last with the numbers.
                let first = self.next.unwrap_or(self.first_lsn).max(self.first_lsn);
                if let Some(before) = self.suspect.replace(suspect) {
                    self.hole(before, Some(first - 1));
                }
            }
            Some(before) if before.is_certain || !suspect.is_certain => {}
            _ => self.suspect = Some(suspect),
        }
    }

    fn hole(&mut self, suspect: Suspect, last: Option<u64>) {
        let Suspect { epoch, offset, detail, last: header_last, is_certain } = suspect;
        let first = self.next.unwrap_or(self.first_lsn).max(self.first_lsn);
        let last = last.or(header_last);
        let before = self.walked.end;
        let clean_before = self.walked.clean_from.take();
        self.broke = true;
        if self.walked.holes.len() >= HOLES_MAX {
            self.walked.holes_left_out += 1;
            return;
        }
        let hole = Hole { epoch, offset, first, last, detail, is_certain, before, clean_before };
        self.walked.holes.push(hole);
    }

    /// At the end of the log: what is still suspect is a torn tail, or damage.
    fn finish(&mut self) {
        let next = self.next.unwrap_or(self.first_lsn);
        let end = self.walked.end;
        let vouched = self.walked.vouched_lsn;
        let end_suspect = |epoch, offset, detail: &str, is_certain| {
            let detail = detail.to_owned();
            Suspect { epoch, offset, detail, last: None, is_certain }
        };
        if let Some((epoch, offset)) = self.bare
            && self.suspect.as_ref().is_none_or(|suspect| !suspect.is_certain)
        {
            let detail = "the first batch, synced by recovery or a truncation, is gone";
            self.suspect = Some(end_suspect(epoch, offset, detail, true));
        }
        if self.suspect.is_none() && next <= vouched {
            let detail = "acknowledged records end too early";
            self.suspect = Some(end_suspect(end.epoch, end.offset, detail, false));
        }
        if let Some(mut suspect) = self.suspect.take() {
            if next <= vouched {
                suspect.last = suspect.last.map(|last| last.max(vouched)).or(Some(vouched));
            }
            self.hole(suspect, None);
        }
    }

    fn failed(&self, action: &str, epoch: u64, error: std::io::Error) -> ReadError {
        ReadError::Io(IoError::new(action, segment::segment_path(self.store, epoch), error))
    }
}
