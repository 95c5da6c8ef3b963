//! What a log holds, as a reader sees it: where it starts, in which generation it is, and which of its
//! segments count.
//!
//! In the process that writes, the log itself tells ([`Extent`](crate::extent::Extent)); elsewhere the mark
//! does, with the headers of the segments.

use std::sync::Arc;

use super::read_failed;
use super::watermark::Watermark;
use crate::disk::{File, Store};
use crate::error::{Damage, ReadError};
use crate::extent::Cut;
use crate::frame::{LogId, SegmentHeader};
use crate::mark::{self, Mark};
use crate::scan::BatchCursor;
use crate::segment::{self, Opened, Segment};

/// A log as one reader sees it.
pub(super) struct View {
    pub(super) store: Arc<dyn Store>,
    pub(super) watermark: Watermark,
    /// Whose segments count, where the mark tells.
    log_id: Option<LogId>,
    /// The generation that the reader is in.
    pub(super) generation: u64,
    /// What the mark said last, and what followed from it.
    seen: Option<(Mark, Bounds)>,
}

/// What the log holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    /// The lowest segment that counts.
    pub(super) first_epoch: u64,
    /// The first record; it stands in that segment.
    pub(super) first_lsn: u64,
    /// The highest segment that may hold batches.
    pub(super) last_epoch: u64,
    pub(super) generation: u64,
    /// The segment that began the generation, where that has to be known: segments behind it that are of
    /// a lower one are stale.
    generation_epoch: u64,
    /// The last record that the generation's truncation kept.
    truncated_after: u64,
}

impl Bounds {
    /// Whether the segment holds what a truncation has cut.
    fn is_stale(&self, header: &SegmentHeader) -> bool {
        self.generation_epoch > 0
            && header.epoch >= self.generation_epoch
            && header.generation < self.generation
    }

    /// What the files say. A writer may be at work.
    pub(super) fn on_disk(store: &dyn Store) -> Result<Bounds, ReadError> {
        let mut before = None;
        loop {
            let mark = mark::read_mark(store, None)?;
            let epochs = segment::list_segments(store)?;
            let is_marked = mark.is_some();
            let mark = match mark {
                None if epochs.is_empty() => {
                    return Err(ReadError::NotFound { dir: segment::dir_path(store) });
                }
                mark => mark.unwrap_or_else(Mark::new),
            };
            let held: Vec<u64> =
                epochs.into_iter().filter(|&epoch| epoch >= mark.first_epoch).collect();
            if held.first() == Some(&mark.first_epoch) {
                // A segment that is missing between others is met by whoever reads up to it.
                let last = held.windows(2).find(|pair| pair[0] + 1 != pair[1]).map(|pair| pair[0]);
                let last = last.or(held.last().copied()).unwrap_or(mark.first_epoch);
                return Bounds::of_mark(store, &mark, last);
            }
            // It may have been trimmed since the mark was read.
            if before == Some(mark) {
                return Err(ReadError::Damaged(Damage {
                    segment: segment::segment_path(store, mark.first_epoch),
                    offset: 0,
                    lost: None,
                    detail: match is_marked {
                        true => "the log's first segment is missing".to_owned(),
                        false => "the log's first segment is missing, and there is no log.mark \
                                  that would say that it was trimmed"
                            .to_owned(),
                    },
                }));
            }
            before = Some(mark);
        }
    }

    fn of_mark(store: &dyn Store, mark: &Mark, last_epoch: u64) -> Result<Bounds, ReadError> {
        let mut bounds = Bounds {
            first_epoch: mark.first_epoch,
            first_lsn: mark.first_lsn,
            last_epoch,
            generation: mark.generation,
            generation_epoch: mark.generation_epoch,
            truncated_after: mark.truncated_after,
        };
        if mark.generation == 0 || mark.generation_epoch < mark.first_epoch {
            return Ok(bounds);
        }
        let began = Segment::open_if_there(store, mark.generation_epoch)?;
        match began.filter(|(segment, _)| segment.header.generation >= mark.generation) {
            Some((segment, _)) => {
                bounds.generation = segment.header.generation;
                bounds.truncated_after = segment.header.truncated_after;
            }
            // The truncation that the mark speaks of has not happened.
            None => {
                bounds.generation = mark.generation - 1;
                bounds.generation_epoch = 0;
                bounds.truncated_after = u64::MAX;
            }
        }
        Ok(bounds)
    }
}

/// A segment that can be read.
pub(super) struct Place {
    pub(super) segment: Segment,
    pub(super) file: Arc<dyn File>,
    /// Where its batches end at the latest.
    pub(super) limit: u64,
    /// Whether another segment that counts follows.
    pub(super) next: Option<Opened>,
}

impl View {
    pub(super) fn new(store: Arc<dyn Store>, watermark: Watermark) -> Result<View, ReadError> {
        let log_id = mark::find_mark(&*store)?.map(|(log_id, _)| log_id);
        let mut view = View { store, watermark, log_id, generation: 0, seen: None };
        view.generation = view.bounds()?.generation;
        Ok(view)
    }

    /// Tries again what met damage, as long as the log has changed meanwhile: a file that was trimmed or
    /// cut is soon another one.
    pub(super) fn unless_moved<T>(
        &mut self,
        attempt: impl Fn(&mut View) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let mut seen = None;
        loop {
            match attempt(self) {
                Err(error @ ReadError::Damaged(_)) => {
                    let now = Bounds::on_disk(&*self.store).ok();
                    if now.is_none() || now == seen {
                        return Err(error);
                    }
                    seen = now;
                }
                other => return other,
            }
        }
    }

    /// What the log holds now.
    pub(super) fn bounds(&self) -> Result<Bounds, ReadError> {
        let Some(shared) = self.watermark.live() else { return Bounds::on_disk(&*self.store) };
        let extent = &shared.extent;
        let generation = extent.generation();
        // The number first: the segment is then the one that holds it, or a later one.
        let first_lsn = extent.first_lsn();
        Ok(Bounds {
            first_epoch: extent.first_epoch(),
            first_lsn,
            last_epoch: extent.live_epoch(),
            generation,
            // Nothing above the live segment is looked at, and nothing below it is stale.
            generation_epoch: 0,
            truncated_after: u64::MAX,
        })
    }

    /// The same for a look between two batches, which costs little: `last_epoch` may be an older one.
    pub(super) fn glance(&mut self) -> Result<Bounds, ReadError> {
        if self.watermark.live().is_some() {
            return self.bounds();
        }
        let mark = mark::read_mark(&*self.store, None)?.unwrap_or_else(Mark::new);
        match self.seen {
            Some((seen, bounds)) if seen == mark => return Ok(bounds),
            _ => {}
        }
        let bounds = Bounds::on_disk(&*self.store)?;
        // A truncation that is on its way shows in a segment, and not in the mark again.
        let is_settled = bounds.generation >= mark.generation && bounds.first_lsn == mark.first_lsn;
        self.seen = is_settled.then_some((mark, bounds));
        Ok(bounds)
    }

    /// What was cut since this view's generation, if anything was: the generation now, and the last
    /// record that is left of what there was then.
    pub(super) fn cut(&self, bounds: &Bounds) -> Result<Option<Cut>, ReadError> {
        if bounds.generation <= self.generation {
            return Ok(None);
        }
        if let Some(shared) = self.watermark.live()
            && bounds.truncated_after == u64::MAX
        {
            let after = shared.extent.kept_since(self.generation).unwrap_or(u64::MAX - 1);
            return Ok(Some(Cut { generation: bounds.generation, after, last: after }));
        }
        let bounds = Bounds::on_disk(&*self.store)?;
        let mut after = bounds.truncated_after;
        // The lowest segment, where none is of a generation that this view knows.
        let mut lowest = None;
        for epoch in (bounds.first_epoch..=bounds.last_epoch).rev() {
            let Some((segment, file)) = Segment::open_if_there(&*self.store, epoch)? else {
                continue;
            };
            if bounds.is_stale(&segment.header) {
                continue;
            }
            if segment.header.generation <= self.generation {
                lowest = None;
                break;
            }
            after = after.min(segment.header.truncated_after);
            lowest = Some((segment, file));
        }
        // Of generations whose segments were all trimmed nothing tells where they cut: before the
        // start of what is left, at any rate. Who stands right there may have read what they cut.
        if let Some((segment, file)) = lowest
            && segment.header.generation > self.generation + 1
        {
            let first = self.first_of(&segment, &file)?;
            let start = first.map_or(bounds.first_lsn, |first| first.lsn.min(bounds.first_lsn));
            after = after.min(start.saturating_sub(2));
        }
        // Nothing tells while the next truncation moves the files about: it is asked again.
        let cut = Cut { generation: bounds.generation, after, last: after };
        Ok((after < u64::MAX).then_some(cut))
    }

    /// Opens a segment. None: it is not there, or does not count.
    pub(super) fn open(&self, epoch: u64, bounds: &Bounds) -> Result<Option<Opened>, ReadError> {
        let opened = Segment::open_if_there(&*self.store, epoch)?;
        if let (Some((segment, _)), Some(log_id)) = (&opened, self.log_id) {
            segment.check_log(&*self.store, log_id)?;
        }
        Ok(opened.filter(|(segment, _)| !bounds.is_stale(&segment.header)))
    }

    /// A segment with the one behind it, which may say where it ends.
    pub(super) fn place(&self, epoch: u64, bounds: &Bounds) -> Result<Option<Place>, ReadError> {
        match self.open(epoch, bounds)? {
            Some(opened) => self.place_of(opened, bounds).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn place_of(
        &self,
        (segment, file): Opened,
        bounds: &Bounds,
    ) -> Result<Place, ReadError> {
        let next = self.open(segment.epoch + 1, bounds)?;
        // One of a lower generation is left from before a truncation.
        let next = next.filter(|(next, _)| next.header.generation >= segment.header.generation);
        let limit = segment.limit(next.as_ref().map(|(next, _)| &next.header));
        Ok(Place { segment, file, limit, next })
    }

    /// A cursor at the start of a segment.
    pub(super) fn enter(&self, place: &Place) -> Result<BatchCursor, ReadError> {
        let header = &place.segment.header;
        BatchCursor::new(
            place.file.clone(),
            place.segment.clone(),
            self.store.facts().block_bytes,
            place.limit,
            header.data_offset(),
            (header.first_lsn != 0).then_some(header.first_lsn),
            header.resume.map(|resume| resume.prev_batch_crc),
        )
        .map_err(|error| read_failed(&*self.store, header.epoch, error))
    }

    /// Up to where a segment does not change any more, given what is durable: all of it once the log has
    /// moved on, and the part that its index shows where this process writes it.
    pub(super) fn settled_end(&self, place: &Place, durable: u64) -> Result<u64, ReadError> {
        let header = &place.segment.header;
        let Some(shared) = self.watermark.live() else {
            let Some((next, file)) = &place.next else { return Ok(0) };
            let begun = self.first_of(next, file)?.is_some_and(|first| first.lsn <= durable);
            return Ok(if begun { place.limit } else { 0 });
        };
        if header.epoch < shared.extent.live_epoch() {
            return Ok(place.limit);
        }
        let entries = shared.live_index.entries(&header.into()).unwrap_or_default();
        let settled = entries.partition_point(|entry| entry.first_lsn <= durable);
        Ok(settled.checked_sub(1).map_or(0, |last| entries[last].offset))
    }
}
