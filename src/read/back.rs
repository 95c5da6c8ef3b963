//! [`BackReader`]: the records of a log from the newest to the oldest.
//!
//! Batches point only forwards. So a sparse index says where a stretch of batches starts; the headers in it
//! are followed to where the stretch behind it started, their places are kept, and the batches are then
//! read from the last one down. What is in memory is one stretch of places, and one batch or 64 KiB.

use std::ops::Range;
use std::sync::Arc;

use super::view::{Bounds, Place, View};
use super::{Record, Watermark, read_failed};
use crate::disk::Store;
use crate::error::{Damage, ReadError};
use crate::footer::IndexEntry;
use crate::frame::{self, BATCH_HEADER_BYTES, TABLE_ENTRY_BYTES};
use crate::index::SegmentIndex;
use crate::lsn::Lsn;
use crate::scan::{BatchCursor, Placed, Step};
use crate::segment;

/// Reads a log from right to left: from a record, or from the last, to the first that the log holds.
///
/// Durable records only, verified by every checksum. What is appended after it was made does not
/// appear. As an iterator it yields `(Lsn, Vec<u8>)`; [`next_record`](Self::next_record) does not copy.
/// It ends with the first record that the log holds *then*: what is trimmed meanwhile is not an error.
/// After an error the iterator has ended for good.
pub struct BackReader {
    view: View,
    /// The record that it was to start with.
    start: u64,
    /// Number of the record to return next; 0: there is none.
    position: u64,
    /// The log's first record, as of the last look.
    first: u64,
    stretch: Option<Stretch>,
    batch: Option<Unread>,
    /// Segment and bytes read when it was last looked whether the log is still the same.
    checked: Option<(u64, u64)>,
    failed: bool,
}

/// Some batches of a segment, one after the other.
struct Stretch {
    place: Place,
    entries: Vec<IndexEntry>,
    /// Whether the entries were found by following all headers, and not taken from an index.
    is_own: bool,
    cursor: BatchCursor,
    /// The batches that were not looked at yet, in order.
    placed: Vec<Placed>,
    /// The first batch of the stretch: those before it end where it starts.
    first: Option<Placed>,
}

/// The records of a batch that were not returned yet.
struct Unread {
    batch: Placed,
    /// Records left.
    left: u32,
    /// Where the payload behind them stands in the batch.
    payload: Range<usize>,
}

impl BackReader {
    pub(crate) fn with(
        store: Arc<dyn Store>,
        watermark: Watermark,
        from: Lsn,
    ) -> Result<BackReader, ReadError> {
        let mut view = View::new(store, watermark)?;
        let (durable, first) =
            view.unless_moved(|view| Ok((view.watermark.durable()?, view.bounds()?.first_lsn)))?;
        if from != Lsn::NONE && from.get() < first {
            return Err(ReadError::Trimmed { first: Lsn::new(first) });
        }
        let start = match from.get() {
            0 => durable,
            from => from.min(durable),
        };
        Ok(BackReader {
            view,
            start,
            position: start,
            first,
            stretch: None,
            batch: None,
            checked: None,
            failed: false,
        })
    }

    /// The record before the one that was returned last; `None` when that was the log's first. Blocks
    /// while it reads from the disk. After an error it stays where it is.
    ///
    /// # Errors
    /// Damage (reading can go on in a new reader from the number below the lost ones),
    /// [`ReadError::Truncated`] when the log was cut before the record that this reader started with, or
    /// a failed system call.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        if !self.advance()? {
            return Ok(None);
        }
        let (Some(unread), Some(stretch)) = (&self.batch, &self.stretch) else { return Ok(None) };
        let payload = stretch.cursor.held(&unread.batch, unread.payload.clone());
        let wall_ns = unread.batch.header.wall_ns;
        Ok(Some(Record { lsn: Lsn::new(self.position + 1), payload, wall_ns }))
    }

    /// The number of the record that [`next_record`](Self::next_record) returns next, unless the log
    /// starts behind it; [`Lsn::NONE`] when there is none.
    pub fn next_lsn(&self) -> Lsn {
        Lsn::new(self.position)
    }

    /// Steps to the record at the position, and the position below it. False: there is none.
    fn advance(&mut self) -> Result<bool, ReadError> {
        loop {
            match self.step() {
                Err(error @ ReadError::Damaged(_)) => {
                    // Damage in a file that the log has given up meanwhile is none.
                    match Bounds::on_disk(&*self.view.store) {
                        Ok(bounds) if self.is_explained(&bounds)? => {}
                        _ => return Err(error),
                    }
                }
                other => return other,
            }
        }
    }

    fn step(&mut self) -> Result<bool, ReadError> {
        loop {
            if self.is_over()? {
                return Ok(false);
            }
            if let (Some(unread), Some(stretch)) = (&mut self.batch, &self.stretch)
                && unread.left > 0
            {
                unread.left -= 1;
                let header = &unread.batch.header;
                let at = header.table_offset() + unread.left as usize * TABLE_ENTRY_BYTES;
                let entry = stretch.cursor.held(&unread.batch, at..at + TABLE_ENTRY_BYTES);
                let end = unread.payload.start;
                let len = frame::table_entry(entry, 0, 0).len as usize;
                unread.payload = end.saturating_sub(len)..end;
                let lsn = header.first_lsn + u64::from(unread.left);
                if lsn == self.position {
                    self.position -= 1;
                    return Ok(true);
                }
                continue;
            }
            self.batch = None;
            match self.stretch.as_mut().and_then(|stretch| stretch.placed.pop()) {
                Some(batch) => self.load(batch)?,
                None => self.earlier()?,
            }
        }
    }

    /// Whether nothing is left: looked at anew with all that was read, or with each record where that
    /// costs nothing.
    fn is_over(&mut self) -> Result<bool, ReadError> {
        if self.position == 0 {
            return Ok(true);
        }
        // What came from the disk since the last look counts only if the log is still the same.
        let read = self
            .stretch
            .as_ref()
            .map(|stretch| (stretch.place.segment.epoch, stretch.cursor.bytes_read()));
        if self.view.watermark.live().is_none() && read.is_some() && read == self.checked {
            return Ok(self.position < self.first);
        }
        let bounds = self.view.glance()?;
        self.obey(&bounds)?;
        self.checked = read;
        self.first = bounds.first_lsn;
        Ok(self.position < self.first)
    }

    fn obey(&mut self, bounds: &Bounds) -> Result<(), ReadError> {
        if let Some(cut) = self.view.cut(bounds)? {
            if self.start > cut.after {
                return Err(ReadError::Truncated { last: Lsn::new(cut.after) });
            }
            self.view.generation = cut.generation;
            (self.stretch, self.batch) = (None, None);
        }
        Ok(())
    }

    /// Reads and verifies a batch, if it holds the position.
    fn load(&mut self, batch: Placed) -> Result<(), ReadError> {
        let header = &batch.header;
        if header.count == 0 || header.first_lsn > self.position {
            return Ok(());
        }
        let Some(stretch) = &mut self.stretch else { return Ok(()) };
        if header.last_lsn() < self.position {
            return self
                .broken(header.last_lsn() + 1, "no intact batch holds the record".to_owned());
        }
        let floor = stretch.first.map_or(header.offset, |first| first.header.offset);
        let epoch = stretch.place.segment.epoch;
        let verdict = stretch
            .cursor
            .load_back(&batch, floor)
            .map_err(|error| read_failed(&*self.view.store, epoch, error))?;
        match verdict {
            Ok(()) => {
                let end = BATCH_HEADER_BYTES + header.payload_bytes as usize;
                self.batch = Some(Unread { batch, left: header.count, payload: end..end });
                Ok(())
            }
            Err(error) => {
                stretch.placed.push(batch);
                self.broken(header.first_lsn, error.to_string())
            }
        }
    }

    /// Finds the stretch of batches before this one.
    fn earlier(&mut self) -> Result<(), ReadError> {
        let Some(stretch) = self.stretch.take() else {
            let bounds = self.view.bounds()?;
            let epoch = self.view.segment_of(self.position, &bounds)?;
            return self.enter(epoch, &bounds);
        };
        let before = stretch.first.filter(|first| {
            first.header.offset > stretch.place.segment.header.data_offset()
                && first.header.first_lsn > 1
        });
        match before {
            Some(first) => self.stretch_before(stretch, first),
            None => {
                let bounds = self.view.bounds()?;
                self.enter(stretch.place.segment.epoch - 1, &bounds)
            }
        }
    }

    /// The last stretch of a segment that matters, up to the batch with the position; of an earlier
    /// segment where this one holds nothing that does.
    fn enter(&mut self, epoch: u64, bounds: &Bounds) -> Result<(), ReadError> {
        let mut epoch = epoch;
        loop {
            if epoch < bounds.first_epoch || epoch == 0 {
                return self.broken(1, "no segment holds the record".to_owned());
            }
            let Some(place) = self.view.place(epoch, bounds)? else {
                return self.broken(1, format!("segment {epoch} is missing"));
            };
            let first = self.view.first_of(&place.segment, &place.file)?;
            let is_empty = place.limit <= place.segment.header.data_offset();
            if is_empty || first.is_some_and(|first| first.lsn > self.position) {
                epoch -= 1;
                continue;
            }
            let (entries, is_own) = match self.view.entries(&place) {
                entries if entries.is_empty() => (self.own_entries(&place)?, true),
                entries => (entries, false),
            };
            return self.last_stretch(place, entries, is_own);
        }
    }

    fn last_stretch(
        &mut self,
        place: Place,
        entries: Vec<IndexEntry>,
        is_own: bool,
    ) -> Result<(), ReadError> {
        let position = self.position;
        let mut cursor = self.view.start_at(
            &place,
            &entries,
            |entry| entry.first_lsn <= position,
            |batch| batch.header.first_lsn <= position,
        )?;
        let epoch = place.segment.epoch;
        let mut placed = Vec::new();
        let found = cursor
            .skip_to(|batch| {
                placed.push(*batch);
                batch.header.count > 0 && batch.header.last_lsn() >= position
            })
            .map_err(|error| read_failed(&*self.view.store, epoch, error))?;
        let next_lsn = cursor.next_lsn().unwrap_or(position);
        let first = placed.first().copied();
        self.stretch = Some(Stretch { place, entries, is_own, cursor, placed, first });
        if found.is_some_and(|batch| batch.header.first_lsn <= position) {
            return Ok(());
        }
        self.broken(next_lsn.min(position), "no intact batch holds the record".to_owned())
    }

    /// The stretch that ends where `next` starts.
    fn stretch_before(&mut self, stretch: Stretch, next: Placed) -> Result<(), ReadError> {
        let Stretch { place, entries, is_own, mut cursor, .. } = stretch;
        let header = &place.segment.header;
        let end = next.header.offset;
        let listed = entries.partition_point(|entry| entry.offset < end);
        let from = listed.checked_sub(1).map(|last| entries[last]);
        match from.filter(|entry| entry.offset > header.data_offset()) {
            Some(entry) => cursor.move_to(entry.offset, Some(entry.first_lsn), None),
            None => {
                let known = (header.first_lsn != 0).then_some(header.first_lsn);
                let crc = header.resume.map(|resume| resume.prev_batch_crc);
                cursor.move_to(header.data_offset(), known, crc);
            }
        }
        let mut placed: Vec<Placed> = Vec::new();
        let mut is_whole = false;
        while let Step::Batch(batch) = cursor
            .peek_header()
            .map_err(|error| read_failed(&*self.view.store, header.epoch, error))?
        {
            if batch.header.offset >= end {
                is_whole = batch == next;
                break;
            }
            placed.push(batch);
            cursor.accept(&batch);
        }
        if !is_whole && !is_own {
            // The index is wrong, or the headers are. Without it, this shows.
            let entries = self.own_entries(&place)?;
            let stretch =
                Stretch { place, entries, is_own: true, cursor, placed: vec![], first: Some(next) };
            return self.stretch_before(stretch, next);
        }
        let next_lsn = cursor.next_lsn().unwrap_or(self.position);
        let first = placed.first().copied();
        let whole = Stretch { place, entries, is_own, cursor, placed, first };
        if is_whole {
            self.stretch = Some(whole);
            return Ok(());
        }
        // Where it stands, for an error that stays.
        self.stretch = Some(Stretch { placed: vec![], first: Some(next), ..whole });
        self.broken(next_lsn.min(self.position), "the batches before it are unreadable".to_owned())
    }

    /// What a footer would say of the segment: found by following its headers.
    fn own_entries(&self, place: &Place) -> Result<Vec<IndexEntry>, ReadError> {
        let mut cursor = self.view.enter(place)?;
        let mut index = SegmentIndex::new(&place.segment.header, 0);
        let position = self.position;
        cursor
            .skip_to(|batch| {
                index.add(&batch.header, batch.crc, batch.end);
                batch.header.count > 0 && batch.header.last_lsn() >= position
            })
            .map_err(|error| read_failed(&*self.view.store, place.segment.epoch, error))?;
        Ok(index.footer().entries.clone())
    }

    /// Whether the log has changed so that what did not fit is no matter: it is over, or looked at anew.
    fn is_explained(&mut self, bounds: &Bounds) -> Result<bool, ReadError> {
        let generation = self.view.generation;
        self.obey(bounds)?;
        if self.position < bounds.first_lsn {
            self.position = 0;
            return Ok(true);
        }
        Ok(self.view.generation != generation)
    }

    /// Something does not fit. The log may have changed under the reader; otherwise it is damage.
    fn broken(&mut self, lost_from: u64, detail: String) -> Result<(), ReadError> {
        let (live, disk) = (self.view.bounds()?, Bounds::on_disk(&*self.view.store)?);
        if self.is_explained(&live)? || self.is_explained(&disk)? {
            return Ok(());
        }
        let (epoch, offset) = match &self.stretch {
            Some(stretch) => (
                stretch.place.segment.epoch,
                stretch.placed.last().map_or(stretch.cursor.offset(), |batch| batch.header.offset),
            ),
            None => (live.first_epoch, 0),
        };
        Err(ReadError::Damaged(Damage {
            segment: segment::segment_path(&*self.view.store, epoch),
            offset,
            lost: Some((Lsn::new(lost_from.max(live.first_lsn)), Lsn::new(self.position))),
            detail,
        }))
    }
}

impl Iterator for BackReader {
    type Item = Result<(Lsn, Vec<u8>), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_record().map(|record| record.map(|r| (r.lsn(), r.payload().to_vec())));
        self.failed = next.is_err();
        next.transpose()
    }
}

impl std::fmt::Debug for BackReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackReader").field("position", &self.position).finish_non_exhaustive()
    }
}
