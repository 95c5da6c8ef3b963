//! Finding a record by its number or by its time, in one search: over the segments, then over a
//! segment's sparse index, then over the headers of a few batches.
//!
//! An index is a hint. What it points at must be a batch of this life of the file that is what the index
//! says; if it is not, or there is no index, the segment's headers are followed from its start.

use std::sync::Arc;

use super::read_failed;
use super::view::{Bounds, Place, View};
use crate::disk::File;
use crate::error::ReadError;
use crate::footer::{Footer, IndexEntry, footer_bytes, footer_offset};
use crate::frame::{BatchContext, BatchHeader};
use crate::mem::AlignedBuf;
use crate::scan::{BatchCursor, Placed, Step};
use crate::segment::Segment;

/// Where a segment starts.
pub(super) struct First {
    epoch: u64,
    pub(super) lsn: u64,
    /// Clock of its first batch, where it has one.
    wall_ns: Option<u64>,
}

/// Where a time was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    At(u64),
    /// Behind this record, or it: headers do not lead further.
    Somewhere(u64),
}

impl View {
    /// A cursor at the batch that holds the record, or shortly before it. None: the segment has gone
    /// meanwhile.
    pub(super) fn locate(&self, position: u64) -> Result<Option<(BatchCursor, Place)>, ReadError> {
        let bounds = self.bounds()?;
        let epoch = self.segment_of(position, &bounds)?;
        let Some(place) = self.place(epoch, &bounds)? else { return Ok(None) };
        let entries = self.entries(&place);
        let mut cursor = self.start_at(
            &place,
            &entries,
            |entry| entry.first_lsn <= position,
            |batch| batch.header.first_lsn <= position,
        )?;
        cursor
            .skip_to(|batch| batch.header.count > 0 && batch.header.last_lsn() >= position)
            .map_err(|error| read_failed(&*self.store, epoch, error))?;
        Ok(Some((cursor, place)))
    }

    /// The number of the first record that was written at `wall_ns` or later; the number behind the last
    /// durable one where there is none.
    pub(super) fn first_at(&self, wall_ns: u64, durable: u64) -> Result<Found, ReadError> {
        let bounds = self.bounds()?;
        let end = durable + 1;
        let epoch = self.bisect(&bounds, |first| first.wall_ns.map(|wall| wall < wall_ns))?;
        let Some(place) = self.place(epoch, &bounds)? else {
            return Ok(Found::At(bounds.first_lsn));
        };
        let entries = self.entries(&place);
        let mut cursor = self.start_at(
            &place,
            &entries,
            |entry| entry.wall_ns < wall_ns,
            |batch| batch.header.wall_ns < wall_ns,
        )?;
        let found = cursor
            .skip_to(|batch| {
                let is_late = batch.header.count > 0 && batch.header.wall_ns >= wall_ns;
                is_late || batch.header.first_lsn > durable
            })
            .map_err(|error| read_failed(&*self.store, epoch, error))?;
        let lsn = found.map(|batch| batch.header.first_lsn).or(cursor.next_lsn());
        let lsn = lsn.unwrap_or(0).max(bounds.first_lsn);
        match found {
            // The segment ends before, and the next one starts late enough. Or it is damaged there: then the
            // reader says so, or steps over older records where the index leads it past an empty batch or past
            // what is below the log's first record.
            None if lsn < end => Ok(Found::Somewhere(lsn)),
            _ => Ok(Found::At(lsn.min(end.max(bounds.first_lsn)))),
        }
    }

    /// The segment that holds the record, or one before it that nothing tells apart.
    pub(super) fn segment_of(&self, position: u64, bounds: &Bounds) -> Result<u64, ReadError> {
        self.bisect(bounds, |first| Some(first.lsn <= position))
    }

    /// The last segment that starts before what is looked for; the first one if none does. `is_before`
    /// says None of a segment that does not tell.
    fn bisect(
        &self,
        bounds: &Bounds,
        is_before: impl Fn(&First) -> Option<bool>,
    ) -> Result<u64, ReadError> {
        let (mut low, mut high) =
            (bounds.first_epoch, bounds.last_epoch.max(bounds.first_epoch) + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.find_first(middle, high, bounds, &is_before)? {
                Some((first, true)) => low = first.epoch,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Where the first segment starts that tells, from `epoch` up to below `end`.
    pub(super) fn first_from(
        &self,
        epoch: u64,
        end: u64,
        bounds: &Bounds,
    ) -> Result<Option<First>, ReadError> {
        Ok(self.find_first(epoch, end, bounds, |_| Some(()))?.map(|(first, ())| first))
    }

    /// The start of the first segment from `epoch` up to below `end` of which `told` says something, with
    /// what it says.
    fn find_first<T>(
        &self,
        epoch: u64,
        end: u64,
        bounds: &Bounds,
        told: impl Fn(&First) -> Option<T>,
    ) -> Result<Option<(First, T)>, ReadError> {
        for epoch in epoch..end {
            let Some((segment, file)) = self.open(epoch, bounds)? else { return Ok(None) };
            let first = self.first_of(&segment, &file)?;
            if let Some(found) = first.and_then(|first| told(&first).map(|told| (first, told))) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What the segment's header and first batch say of its start.
    pub(super) fn first_of(
        &self,
        segment: &Segment,
        file: &Arc<dyn File>,
    ) -> Result<Option<First>, ReadError> {
        let header = &segment.header;
        let batch = self.batch_header(segment, file, header.data_offset());
        let batch = batch.map_err(|error| read_failed(&*self.store, segment.epoch, error))?;
        let lsn = match header.first_lsn {
            0 => batch.map(|batch| batch.first_lsn),
            known => Some(known),
        };
        Ok(lsn.map(|lsn| First {
            epoch: segment.epoch,
            lsn,
            wall_ns: batch.map(|batch| batch.wall_ns),
        }))
    }

    fn batch_header(
        &self,
        segment: &Segment,
        file: &Arc<dyn File>,
        offset: u64,
    ) -> std::io::Result<Option<BatchHeader>> {
        let block = self.store.facts().block_bytes.max(segment.header.block_bytes as usize);
        let start = offset - offset % block as u64;
        let mut buf = AlignedBuf::new(block)?;
        let len = file.read_at(start, &mut buf[..block])?;
        let context = BatchContext::from(&segment.header);
        let bytes = buf[..len].get((offset - start) as usize..).unwrap_or_default();
        Ok(BatchHeader::decode(bytes, &context, offset).ok().map(|(header, _)| header))
    }

    /// The segment's sparse index: the writer's own, or the one in the footer; empty where there is
    /// none that can be read.
    pub(super) fn entries(&self, place: &Place) -> Vec<IndexEntry> {
        let header = &place.segment.header;
        let live = self.watermark.live();
        let mut entries = live
            .and_then(|shared| shared.live_index.entries(&BatchContext::from(header)))
            .or_else(|| self.footer(place).map(|footer| footer.entries))
            .unwrap_or_default();
        entries.retain(|entry| entry.offset < place.limit);
        entries
    }

    fn footer(&self, place: &Place) -> Option<Footer> {
        let header = &place.segment.header;
        if place.segment.file_bytes < header.segment_bytes {
            return None;
        }
        let io_block = self.store.facts().block_bytes;
        let (offset, len) =
            (footer_offset(header), footer_bytes(header.segment_bytes, header.block_bytes));
        let start = offset - offset % io_block as u64;
        let bytes = ((offset - start + len) as usize).next_multiple_of(io_block);
        // It is a cache: what cannot be read is as good as missing.
        let mut buf = AlignedBuf::new(bytes).ok()?;
        let read = place.file.read_at(start, &mut buf[..bytes]).ok()?;
        Footer::decode(buf[..read].get((offset - start) as usize..)?, header)
    }

    /// A cursor at the last batch in the index that is early enough, or at the start of the segment.
    /// `is_early` decides on the batch itself: the index may be wrong.
    pub(super) fn start_at(
        &self,
        place: &Place,
        entries: &[IndexEntry],
        is_listed_early: impl Fn(&IndexEntry) -> bool,
        is_early: impl Fn(&Placed) -> bool,
    ) -> Result<BatchCursor, ReadError> {
        let mut cursor = self.enter(place)?;
        let (offset, next_lsn, prev_crc) = (cursor.offset(), cursor.next_lsn(), cursor.prev_crc());
        let early = entries.partition_point(is_listed_early);
        let Some(entry) = early.checked_sub(1).map(|last| entries[last]) else { return Ok(cursor) };
        if entry.offset <= offset {
            return Ok(cursor);
        }
        cursor.move_to(entry.offset, Some(entry.first_lsn), None);
        let step = cursor.peek_header();
        let step = step.map_err(|error| read_failed(&*self.store, place.segment.epoch, error))?;
        if !matches!(step, Step::Batch(batch) if is_early(&batch)) {
            cursor.move_to(offset, next_lsn, prev_crc);
        }
        Ok(cursor)
    }
}
