//! From one batch to the next: over the ends of segments, over recoveries and truncations, and what is
//! said where the chain breaks.

use std::sync::Arc;

use super::view::{Bounds, Place};
use super::{Reader, Unread, read_failed};
use crate::disk::File;
use crate::error::{Damage, ReadError};
use crate::frame::{BATCH_HEADER_BYTES, BatchError};
use crate::lsn::Lsn;
use crate::scan::{self, BatchCursor, Crossing, Step, Stop, StopReason};
use crate::segment::{self, Segment};

/// Bytes that a reader of another process reads between two looks at what the log holds.
const LOOK_BYTES: u64 = 6 << 20;

impl Reader {
    /// Moves to the next batch that holds the position, which is durable. False: not there yet.
    pub(super) fn next_batch(&mut self) -> Result<bool, ReadError> {
        if self.cursor.is_none() && !self.find_place()? {
            return Ok(true);
        }
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        let epoch = cursor.segment().epoch;
        let step = cursor.peek().map_err(|e| read_failed(&*self.view.store, epoch, e))?;
        if self.is_other_log()? {
            return Ok(true);
        }
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        match step {
            Step::Batch(batch) => {
                let header = &batch.header;
                if header.first_lsn > self.position {
                    // What stands before it is missing.
                    return self.broken(None);
                }
                if header.count > 0 && header.last_lsn() > self.durable {
                    // It was read before the whole of it was durable.
                    self.durable = self.view.watermark.durable()?.max(self.durable);
                    if header.last_lsn() > self.durable {
                        return Ok(false);
                    }
                    cursor.invalidate();
                    return Ok(true);
                }
                if let Some(shared) = self.view.watermark.live()
                    && header.count > 0
                    && header.last_lsn() > shared.commit.watermark(crate::commit::Level::Synced)
                {
                    // The watermark went back: a truncation. What stands there now is of another
                    // generation, and not durable yet.
                    self.durable = 0;
                    return Ok(true);
                }
                cursor.accept(&batch);
                if header.count > 0 && header.last_lsn() >= self.position {
                    let payload = BATCH_HEADER_BYTES..BATCH_HEADER_BYTES;
                    self.batch = Some(Unread { batch, index: 0, payload });
                }
                self.read_ahead()?;
                Ok(true)
            }
            Step::Stop(stop) => {
                if self.cross()? || self.replaced()? || self.skip_damage()? {
                    return Ok(true);
                }
                self.broken(Some(stop))
            }
        }
    }

    /// Looks for the position. False: the log has changed meanwhile, look again.
    fn find_place(&mut self) -> Result<bool, ReadError> {
        let Some((mut cursor, place)) = self.view.locate(self.position)? else {
            let before = self.view.bounds()?;
            if self.look_again()? {
                return Ok(false);
            }
            // A segment that was there is not. It may have been trimmed just now.
            return match self.view.open(before.first_epoch, &before)? {
                Some(_) => Ok(false),
                None => Err(self.missing(before.first_epoch)),
            };
        };
        cursor.allow_ahead(self.view.settled_end(&place, self.durable)?);
        self.checked_bytes = u64::MAX;
        let generation = place.segment.header.generation;
        if generation > self.view.generation {
            return self.learn_cut(&place).map(|()| false);
        }
        self.cursor = Some(cursor);
        Ok(true)
    }

    /// Whether the log was cut, or trimmed beyond the position, since the cursor's bytes were read. What
    /// was read then does not count. In another process the look costs two reads: there a scan looks
    /// once in some MiB. It gives records that are cut at that moment, as it would had it come earlier;
    /// none that is not intact.
    fn is_other_log(&mut self) -> Result<bool, ReadError> {
        let Some(cursor) = &self.cursor else { return Ok(true) };
        let bytes = cursor.bytes_read();
        // `u64::MAX` stands for never.
        let since = bytes.checked_sub(self.checked_bytes);
        if self.view.watermark.live().is_none() && since.is_some_and(|since| since < LOOK_BYTES) {
            return Ok(false);
        }
        let changed = self.look_again()?;
        if !changed {
            self.checked_bytes = bytes;
        }
        Ok(changed)
    }

    /// A segment of a newer generation: the truncation that began it has cut, whatever the log says yet.
    fn learn_cut(&mut self, place: &Place) -> Result<(), ReadError> {
        if self.look_again()? {
            return Ok(());
        }
        let bounds = Bounds::on_disk(&*self.view.store)?;
        if self.obey(&bounds)? {
            return Ok(());
        }
        let header = place.segment.header;
        let after = header.truncated_after;
        self.follow_cut(crate::extent::Cut { generation: header.generation, after, last: after })
    }

    /// Where the read-ahead comes to the segment's end, it goes on in the next one, if that is settled.
    fn read_ahead(&mut self) -> Result<(), ReadError> {
        let Some(cursor) = &self.cursor else { return Ok(()) };
        let epoch = cursor.segment().epoch;
        if !cursor.wants_next() || self.next_of == epoch {
            return Ok(());
        }
        self.next_of = epoch;
        let bounds = self.view.bounds()?;
        let Some(place) = self.view.place(epoch + 1, &bounds)? else { return Ok(()) };
        let end = self.view.settled_end(&place, self.durable)?;
        let from = place.segment.header.data_offset();
        if let Some(cursor) = &mut self.cursor
            && end > from
        {
            cursor.expect_next(place.file.clone(), from, end);
            self.next = Some((place.segment, place.file));
        }
        Ok(())
    }

    /// Goes on in the next segment, if the chain does.
    fn cross(&mut self) -> Result<bool, ReadError> {
        let Some(cursor) = &self.cursor else { return Ok(false) };
        let (epoch, generation) = (cursor.segment().epoch, cursor.segment().header.generation);
        let next_lsn = cursor.next_lsn();
        let bounds = self.view.bounds()?;
        let next = match self.next.take() {
            Some(next) if next.0.epoch == epoch + 1 => Some(next),
            _ => self.view.open(epoch + 1, &bounds)?,
        };
        let Some(opened) = next.filter(|(next, _)| next.header.generation >= generation) else {
            return Ok(false);
        };
        let place = self.view.place_of(opened, &bounds)?;
        let header = place.segment.header;
        if header.generation > self.view.generation {
            return self.learn_cut(&place).map(|()| true);
        }
        let settled = self.view.settled_end(&place, self.durable)?;
        if header.resume.is_some() && next_lsn.is_some_and(|lsn| lsn >= header.first_lsn) {
            // It may have appeared after this segment was entered. Then records from behind the end
            // that it sets may have been read here: it holds the same ones again.
            return self.enter(&place, settled).map(|()| true);
        }
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        let crossing = cursor
            .cross(&place.segment, place.file.clone(), place.limit)
            .map_err(|e| read_failed(&*self.view.store, epoch + 1, e))?;
        self.checked_bytes = u64::MAX;
        if crossing == Crossing::Entered {
            cursor.allow_ahead(settled);
        }
        Ok(crossing == Crossing::Entered)
    }

    fn enter(&mut self, place: &Place, settled: u64) -> Result<(), ReadError> {
        let mut cursor = self.view.enter(place)?;
        cursor.allow_ahead(settled);
        self.checked_bytes = u64::MAX;
        self.cursor = Some(cursor);
        Ok(())
    }

    /// Enters a segment that starts at or before the position, itself or the next that tells.
    fn enter_before_position(&mut self, epoch: u64) -> Result<bool, ReadError> {
        let bounds = self.view.bounds()?;
        let Some(place) = self.view.place(epoch, &bounds)? else { return Ok(false) };
        if place.segment.header.generation > self.view.generation {
            return self.learn_cut(&place).map(|()| true);
        }
        let first = self.view.first_from(epoch, u64::MAX, &bounds)?;
        if first.is_none_or(|first| first.lsn > self.position) {
            return Ok(false);
        }
        let settled = self.view.settled_end(&place, self.durable)?;
        self.enter(&place, settled).map(|()| true)
    }

    /// Whether recovery, in another process, put a new file in the place of the one that is open;
    /// then reading goes on there.
    fn replaced(&mut self) -> Result<bool, ReadError> {
        let Some(cursor) = &self.cursor else { return Ok(false) };
        let (epoch, salt) = (cursor.segment().epoch, cursor.segment().header.salt);
        let now = Segment::open_if_there(&*self.view.store, epoch)?;
        match now {
            Some((now, _)) if now.header.salt != salt => self.enter_before_position(epoch),
            _ => Ok(false),
        }
    }

    /// A cheap look whether another process wrote anything behind what was read: one block here, and
    /// one in each segment behind.
    pub(super) fn nothing_new(&mut self) -> Result<bool, ReadError> {
        let store = self.view.store.clone();
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        if self.batch.is_some() {
            return Ok(false);
        }
        cursor.invalidate();
        let (epoch, salt) = (cursor.segment().epoch, cursor.segment().header.salt);
        // An idle log ends with an empty batch, which holds no record: it is stepped over.
        let step = loop {
            match cursor.peek().map_err(|e| read_failed(&*store, epoch, e))? {
                Step::Batch(batch) if batch.header.count == 0 => cursor.accept(&batch),
                step => break step,
            }
        };
        // Where nothing was written yet there are zeros, or what an earlier life of the file left.
        let recycled = cursor.segment().header.recycled;
        let is_blank = match step {
            Step::Batch(_) => false,
            Step::Stop(Stop { header, reason }) => match reason {
                StopReason::Limit | StopReason::Invalid(BatchError::Zero) => true,
                StopReason::Invalid(
                    BatchError::Magic | BatchError::HeaderChecksum | BatchError::OtherLife,
                ) => recycled && header.is_none(),
                _ => false,
            },
        };
        if !is_blank {
            return Ok(false);
        }
        let now = Segment::open_if_there(&*store, epoch)?;
        if now.is_none_or(|(now, _)| now.header.salt != salt) {
            return Ok(false);
        }
        // Recovery passes over segments in which nothing counts: the log may go on behind an empty one.
        for epoch in epoch + 1.. {
            match Segment::open_if_there(&*store, epoch)? {
                Some((next, _)) if next.header.resume.is_some() => return Ok(false),
                Some((next, file)) if self.view.first_of(&next, &file)?.is_some() => {
                    return Ok(false);
                }
                Some(_) => {}
                None => break,
            }
        }
        Ok(true)
    }

    /// Passes over damage to records before the position: they were not asked for.
    fn skip_damage(&mut self) -> Result<bool, ReadError> {
        let Some(cursor) = &self.cursor else { return Ok(false) };
        if cursor.next_lsn().is_some_and(|lsn| lsn >= self.position) {
            return Ok(false);
        }
        let (segment, from, limit) = (cursor.segment().clone(), cursor.offset(), cursor.limit());
        let block = u64::from(segment.header.block_bytes);
        let Some(file) = self.open_again(&segment)? else { return Ok(false) };
        if self.enter_at_header(&segment, file, from + block, limit)? {
            return Ok(true);
        }
        // Behind it: the first batches of a segment may be what is damaged.
        let bounds = self.view.bounds()?;
        for epoch in segment.epoch + 1.. {
            let Some(place) = self.view.place(epoch, &bounds)? else { break };
            if place.segment.header.generation > self.view.generation {
                return self.learn_cut(&place).map(|()| true);
            }
            match self.view.first_of(&place.segment, &place.file)? {
                Some(first) if first.lsn > self.position => break,
                Some(_) => {
                    let settled = self.view.settled_end(&place, self.durable)?;
                    return self.enter(&place, settled).map(|()| true);
                }
                None => {}
            }
            let from = place.segment.header.data_offset();
            if self.enter_at_header(&place.segment, place.file, from, place.limit)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Goes on at the first batch header in that part of a segment that starts at or before the position.
    fn enter_at_header(
        &mut self,
        segment: &Segment,
        file: Arc<dyn File>,
        from: u64,
        limit: u64,
    ) -> Result<bool, ReadError> {
        let position = self.position;
        let block = self.view.store.facts().block_bytes;
        let failed = |error| read_failed(&*self.view.store, segment.epoch, error);
        let sweep = scan::sweep(&file, segment, block, from, limit, |h| h.first_lsn <= position)
            .map_err(failed)?;
        let Some(found) = sweep.found else { return Ok(false) };
        let cursor =
            BatchCursor::new(file, segment.clone(), block, limit, found.offset, None, None)
                .map_err(failed)?;
        self.checked_bytes = u64::MAX;
        self.cursor = Some(cursor);
        Ok(true)
    }

    /// The chain is broken. The log may have changed under the reader; otherwise it is damage.
    fn broken(&mut self, stop: Option<Stop>) -> Result<bool, ReadError> {
        if self.look_again()? {
            return Ok(true);
        }
        // A truncation or a trim that is under way is on the disk before the log says so.
        let bounds = Bounds::on_disk(&*self.view.store)?;
        if self.obey(&bounds)? {
            return Ok(true);
        }
        Err(self.damage(stop, &bounds)?)
    }

    /// What is lost where the chain broke, as an error.
    fn damage(&self, stop: Option<Stop>, bounds: &Bounds) -> Result<ReadError, ReadError> {
        let Some(cursor) = &self.cursor else { return Ok(self.missing(bounds.first_epoch)) };
        let segment = cursor.segment();
        let lost_from = match stop {
            Some(_) => cursor.next_lsn().unwrap_or(0).max(self.position),
            None => self.position,
        };
        let Some(file) = self.open_again(segment)? else {
            return Ok(self.missing(segment.epoch));
        };
        let io_block_bytes = self.view.store.facts().block_bytes;
        let from = cursor.offset();
        let sweep = scan::sweep(&file, segment, io_block_bytes, from, cursor.limit(), |header| {
            header.first_lsn > lost_from
        })
        .map_err(|e| read_failed(&*self.view.store, segment.epoch, e))?;
        let next = match &sweep.found {
            Some(found) => Some(found.first_lsn),
            None => self.next_batch_behind(lost_from, segment.epoch + 1, bounds)?,
        };
        let whole = stop
            .and_then(|stop| stop.header)
            .map(|header| header.last_lsn())
            .filter(|&lsn| lsn >= lost_from);
        let lost_to = whole.or(next.map(|lsn| lsn - 1)).unwrap_or(self.durable).max(lost_from);
        // Where nothing stands behind the last batch, the next one was in the next segment.
        let (epoch, offset) = match sweep.nonzero_end {
            0 => (segment.epoch + 1, segment.header.data_offset()),
            _ => (segment.epoch, from),
        };
        let detail = match stop {
            Some(stop) => stop.reason.to_string(),
            None => "no intact batch holds the record".to_owned(),
        };
        Ok(ReadError::Damaged(Damage {
            segment: segment::segment_path(&*self.view.store, epoch),
            offset,
            lost: Some((Lsn::new(lost_from), Lsn::new(lost_to))),
            detail,
        }))
    }

    /// The first record of the next batch that starts behind `lsn`, from the segment `epoch` on.
    fn next_batch_behind(
        &self,
        lsn: u64,
        epoch: u64,
        bounds: &Bounds,
    ) -> Result<Option<u64>, ReadError> {
        for epoch in epoch.. {
            let Some(Place { segment, file, limit, .. }) = self.view.place(epoch, bounds)? else {
                break;
            };
            if segment.header.first_lsn > lsn {
                return Ok(Some(segment.header.first_lsn));
            }
            let from = segment.header.data_offset();
            let block = self.view.store.facts().block_bytes;
            let sweep = scan::sweep(&file, &segment, block, from, limit, |h| h.first_lsn > lsn)
                .map_err(|e| read_failed(&*self.view.store, epoch, e))?;
            if let Some(found) = sweep.found {
                return Ok(Some(found.first_lsn));
            }
        }
        Ok(None)
    }

    fn missing(&self, epoch: u64) -> ReadError {
        ReadError::Damaged(Damage {
            segment: segment::segment_path(&*self.view.store, epoch),
            offset: 0,
            lost: None,
            detail: "the segment file is missing".to_owned(),
        })
    }

    /// A segment's file once more, for a look that leaves the cursor alone. None: it is not the same
    /// any more.
    fn open_again(&self, segment: &Segment) -> Result<Option<Arc<dyn File>>, ReadError> {
        let now = Segment::open_if_there(&*self.view.store, segment.epoch)?;
        let same = now.filter(|(now, _)| now.header.salt == segment.header.salt);
        Ok(same.map(|(_, file)| file))
    }
}
