//! Looking at a log without changing it: where its chain of batches ends, what is vouched for, and
//! what stands behind the end. Recovery acts on the result, `inspect` only reports it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::TornTail;
use super::layout::Layout;
use crate::disk::{File, Store};
use crate::error::{Damage, IoError};
use crate::frame::{BatchHeader, LogId};
use crate::index::SegmentIndex;
use crate::lsn::Lsn;
use crate::mark::{Closed, Mark};
use crate::scan::{self, BatchCursor, Crossing, Placed, Step, Stop, StopReason, Sweep};
use crate::segment::{self, ScanError, Segment};

/// What was found in a log's directory.
pub(super) struct Survey {
    pub(super) log_id: LogId,
    /// What the mark says; that of a new log where there is none.
    pub(super) mark: Mark,
    /// All segments of the log, ascending and without gaps.
    pub(super) epochs: Vec<u64>,
    /// The highest of them: as many as it took to find the end.
    pub(super) segments: Vec<Segment>,
    /// The last segment that holds anything of the log, of `segments`; those behind it stand ready.
    pub(super) tail: usize,
    pub(super) chain: Chain,
    /// Every record up to this number was durable.
    pub(super) vouched_lsn: u64,
    /// The latest wall clock seen.
    pub(super) wall_ns: u64,
    pub(super) torn: Option<TornTail>,
    /// For each segment behind the tail, whether it can be written to as it stands.
    pub(super) usable: Vec<bool>,
    /// Whether a footer says that the log had moved on from the tail.
    pub(super) is_sealed: bool,
    /// Segments below the log's start.
    pub(super) trimmed: Vec<u64>,
    /// Segments that a truncation cut off.
    pub(super) stale: Vec<Segment>,
}

impl Survey {
    /// Truncations that the log has seen, and the last record that the last one kept.
    pub(super) fn generation(&self) -> (u64, u64) {
        let header = &self.segments[self.tail].header;
        (header.generation, header.truncated_after)
    }
}

/// The chain of valid batches at the end of a log.
pub(super) struct Chain {
    /// Number of its first record.
    pub(super) anchor_lsn: u64,
    /// Where it ends: the index of the segment and the offset in it.
    pub(super) end_segment: usize,
    pub(super) end_offset: u64,
    pub(super) next_lsn: u64,
    pub(super) prev_crc: u32,
    /// The last place in it where everything before is vouched for and nothing behind is.
    pub(super) keep: Keep,
    /// The batches behind `keep`.
    pub(super) rest: VecDeque<(usize, Placed)>,
    /// Where the empty batches at its very end start, if there are any.
    pub(super) empties: Option<(usize, u64)>,
    /// What the footer of the last segment will say.
    pub(super) index: SegmentIndex,
    /// Whether the batch before its start is known, which its first one links to.
    pub(super) is_linked: bool,
    stop: Stop,
    synced_lsn: u64,
    wall_ns: u64,
}

/// A place in the chain, from which on a new segment can supersede what follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    pub(super) segment: usize,
    pub(super) offset: u64,
    pub(super) prev_crc: u32,
    pub(super) next_lsn: u64,
}

impl Chain {
    /// Number of the last record; 0 when there is none.
    pub(super) fn last_lsn(&self) -> u64 {
        self.next_lsn - 1
    }

    fn push(&mut self, segment: usize, batch: Placed) {
        if batch.header.count > 0 {
            self.empties = None;
        } else if self.empties.is_none() {
            self.empties = Some((segment, batch.header.offset));
        }
        self.rest.push_back((segment, batch));
        self.index.add(&batch.header, batch.crc, batch.end);
        self.wall_ns = self.wall_ns.max(batch.header.wall_ns);
        self.vouch(batch.header.synced_lsn);
    }

    /// Takes note that every record up to `synced_lsn` was durable.
    fn vouch(&mut self, synced_lsn: u64) {
        self.synced_lsn = self.synced_lsn.max(synced_lsn);
        while let Some((segment, batch)) = self.rest.front() {
            if batch.header.last_lsn() > self.synced_lsn {
                break;
            }
            // An empty batch is kept only when a vouched record follows it.
            if batch.header.count > 0 {
                self.keep = Keep {
                    segment: *segment,
                    offset: batch.end,
                    prev_crc: batch.crc,
                    next_lsn: batch.header.last_lsn() + 1,
                };
            }
            self.rest.pop_front();
        }
    }
}

/// Surveys a log. None: there is none. With `live` a writer may be at work meanwhile: what is
/// vouched for is looked up before the chain is followed, so that the chain must reach it.
pub(super) fn survey(store: &dyn Store, live: bool) -> Result<Option<Survey>, ScanError> {
    let Some(layout) = Layout::find(store)? else { return Ok(None) };
    let sweeps = vec![Sweep::default(); layout.opened.len()];
    // What the log no longer holds was durable when it was trimmed.
    let vouched_lsn = layout.mark.first_lsn - 1;
    let mut surveyor = Surveyor { store, layout, sweeps, tail: 0, vouched_lsn };
    let closed = match surveyor.layout.mark.closed {
        Some(closed) => surveyor.closed_end(&closed)?,
        None => None,
    };
    let was_closed = closed.is_some();
    let chain = match closed {
        Some(chain) => chain,
        None => {
            surveyor.find_tail(live)?;
            let chain = surveyor.find_chain(live)?;
            surveyor.check_closed(&chain)?;
            chain
        }
    };
    let torn = surveyor.torn(&chain);
    let Surveyor { layout, sweeps, tail, vouched_lsn, .. } = surveyor;
    let wall_ns = sweeps.iter().map(|sweep| sweep.wall_ns).fold(chain.wall_ns, u64::max);
    // Behind a clean end, segments stand as they were made: nobody looked at them.
    let clear = |s: &Sweep| s.headers == 0 && s.nonzero_end == 0 && !s.has_footer;
    Ok(Some(Survey {
        log_id: layout.log_id(),
        mark: layout.mark,
        epochs: layout.epochs,
        segments: layout.opened,
        tail,
        vouched_lsn,
        wall_ns,
        torn,
        usable: sweeps.iter().map(|sweep| was_closed || clear(sweep)).collect(),
        is_sealed: sweeps[tail].has_footer,
        trimmed: layout.trimmed,
        stale: layout.stale,
        chain,
    }))
}

/// Number of the first record of a segment, from its header or else from its first batch.
pub(crate) fn first_lsn_of(store: &dyn Store, segment: &Segment) -> Result<Option<u64>, ScanError> {
    if segment.header.first_lsn != 0 {
        return Ok(Some(segment.header.first_lsn));
    }
    let found = first_batch(store, segment)?;
    Ok(found.map(|header| header.first_lsn))
}

/// The header of a segment's first batch, if it is valid.
pub(super) fn first_batch(
    store: &dyn Store,
    segment: &Segment,
) -> Result<Option<BatchHeader>, ScanError> {
    let file = segment::open_file(store, segment.epoch, crate::disk::Access::Read)?;
    let from = segment.header.data_offset();
    let limit = segment.limit(None).min(from + u64::from(segment.header.block_bytes));
    let sweep = scan::sweep(&file, segment, store.facts().block_bytes, from, limit, |_| true)
        .map_err(|e| IoError::new("read", segment::segment_path(store, segment.epoch), e))?;
    Ok(sweep.found)
}

struct Surveyor<'a> {
    store: &'a dyn Store,
    layout: Layout<'a>,
    /// What was seen of each open segment that was swept.
    sweeps: Vec<Sweep>,
    /// Of the open segments.
    tail: usize,
    vouched_lsn: u64,
}

impl Surveyor<'_> {
    /// Opens one segment more, below those that are open: all places move up by one.
    fn open_next(&mut self) -> Result<bool, ScanError> {
        if !self.layout.open_next()? {
            return Ok(false);
        }
        self.sweeps.insert(0, Sweep::default());
        self.tail += 1;
        Ok(true)
    }

    /// The log's end, if it is where the mark says that it was closed. Then nothing stands behind it
    /// that the log would not know of.
    fn closed_end(&mut self, closed: &Closed) -> Result<Option<Chain>, ScanError> {
        let mut above = 0;
        loop {
            if above == self.layout.opened.len() && !self.open_next()? {
                return Ok(None);
            }
            let segment = &self.layout.opened[self.layout.opened.len() - 1 - above];
            if segment.epoch <= closed.epoch {
                break;
            }
            let header = &segment.header;
            if header.first_lsn != 0 || header.resume.is_some() {
                return Ok(None);
            }
            if first_batch(self.store, segment)?.is_some() {
                return Ok(None);
            }
            above += 1;
        }
        let tail = self.layout.opened.len() - 1 - above;
        let header = self.layout.opened[tail].header;
        let Some(mut chain) = self.walk(tail, tail)? else { return Ok(None) };
        let before = (self.layout.mark.first_lsn - 1).max(header.first_lsn.saturating_sub(1));
        let matches = header.epoch == closed.epoch
            && chain.is_linked
            && chain.end_offset == closed.end_offset
            && chain.prev_crc == closed.crc
            && chain.last_lsn() == chain.synced_lsn.max(before);
        if !matches {
            return Ok(None);
        }
        self.tail = tail;
        self.vouched_lsn = chain.last_lsn();
        chain.vouch(self.vouched_lsn);
        Ok(Some(chain))
    }

    /// The last segment with a valid batch header anywhere, or made by recovery, which put one
    /// there; the first segment when there is no other.
    fn find_tail(&mut self, live: bool) -> Result<(), ScanError> {
        let mut above = 0;
        loop {
            if above == self.layout.opened.len() && !self.open_next()? {
                self.tail = 0;
                return Ok(());
            }
            let index = self.layout.opened.len() - 1 - above;
            let segment = &self.layout.opened[index];
            let header = segment.header;
            // What stood before the segment was durable when its header was made.
            self.vouched_lsn = self.vouched_lsn.max(header.first_lsn.saturating_sub(1));
            let is_tail = segment.epoch == self.layout.mark.first_epoch
                || header.resume.is_some()
                || first_batch(self.store, segment)?.is_some();
            if live || !is_tail {
                self.sweep(index, header.data_offset())?;
            }
            if is_tail || self.sweeps[index].headers > 0 {
                self.tail = index;
                return Ok(());
            }
            above += 1;
        }
    }

    /// Follows the chain of batches to its end, from as far back as anything may not be vouched for.
    fn find_chain(&mut self, live: bool) -> Result<Chain, ScanError> {
        let mut start = self.tail;
        loop {
            let is_first = start == 0 && self.layout.is_all_open();
            let chain = match self.walk(start, self.tail)? {
                None if is_first => {
                    self.sweep(0, self.layout.opened[0].header.data_offset())?;
                    return Err(self.unknown_start());
                }
                chain => chain,
            };
            let Some(mut chain) = chain else {
                start = self.before(start)?;
                continue;
            };
            if !live {
                self.sweep(chain.end_segment, chain.end_offset)?;
                for index in chain.end_segment + 1..=self.tail {
                    self.sweep(index, self.layout.opened[index].header.data_offset())?;
                }
            }
            self.vouched_lsn = self.vouched_lsn.max(chain.synced_lsn);
            if is_first {
                self.check_start(&chain)?;
            } else if chain.anchor_lsn - 1 > self.vouched_from(start).max(chain.synced_lsn) {
                start = self.before(start)?;
                continue;
            }
            chain.vouch(self.vouched_lsn);
            self.check_end(&chain)?;
            return Ok(chain);
        }
    }

    /// The place of the segment before that at `start`, which is not the log's first.
    fn before(&mut self, start: usize) -> Result<usize, ScanError> {
        match start {
            0 => self.open_next().map(|_| 0),
            _ => Ok(start - 1),
        }
    }

    /// The log's first record stands in its first segment, or there is none.
    fn check_start(&self, chain: &Chain) -> Result<(), ScanError> {
        let first = self.layout.mark.first_lsn;
        if chain.anchor_lsn <= first {
            return Ok(());
        }
        let lowest = &self.layout.opened[0];
        Err(ScanError::Damaged(Damage {
            segment: self.path(lowest.epoch),
            offset: lowest.header.data_offset(),
            lost: Some((Lsn::new(first), Lsn::new(chain.anchor_lsn - 1))),
            detail: "the log's first segment starts behind the log's first record".to_owned(),
        }))
    }

    /// What a segment and those behind it vouch for themselves. A segment that nothing there places
    /// behind durable records may be left from before the last recovery, which was cut short: only
    /// the chain through the segments before it tells.
    fn vouched_from(&self, start: usize) -> u64 {
        let sweeps = self.sweeps[start..].iter().map(|sweep| sweep.synced_lsn);
        let opened = &self.layout.opened[start..];
        let headers = opened.iter().map(|s| s.header.first_lsn.saturating_sub(1));
        sweeps.chain(headers).fold(0, u64::max)
    }

    /// Follows the chain from the start of a segment. None: nothing tells where that starts.
    fn walk(&self, start: usize, tail: usize) -> Result<Option<Chain>, ScanError> {
        let header = self.layout.opened[start].header;
        let io_block_bytes = self.store.facts().block_bytes;
        let known = header.first_lsn != 0;
        let crc = header.resume.map_or(0, |resume| resume.prev_batch_crc);
        let mut cursor = BatchCursor::new(
            self.open(start)?,
            self.layout.opened[start].clone(),
            io_block_bytes,
            self.limit(start),
            header.data_offset(),
            known.then_some(header.first_lsn),
            // A first segment's number may be known without what stood before it.
            (header.first_lsn == 1 || header.resume.is_some()).then_some(crc),
        )
        .map_err(|e| self.failed(start, e))?;
        let first = cursor.peek().map_err(|e| self.failed(start, e))?;
        let (anchor_lsn, prev_crc, is_linked) = match first {
            Step::Batch(batch) => (batch.header.first_lsn, batch.header.prev_crc, true),
            Step::Stop(_) if known => (header.first_lsn, crc, true),
            Step::Stop(_) if self.starts_at_mark(start)? => (self.layout.mark.first_lsn, 0, false),
            Step::Stop(_) => return Ok(None),
        };
        let keep =
            Keep { segment: start, offset: header.data_offset(), prev_crc, next_lsn: anchor_lsn };
        let mut chain = Chain {
            anchor_lsn,
            end_segment: start,
            end_offset: header.data_offset(),
            next_lsn: anchor_lsn,
            prev_crc,
            keep,
            rest: VecDeque::new(),
            empties: None,
            index: SegmentIndex::new(&header, anchor_lsn),
            is_linked,
            stop: Stop { reason: StopReason::Limit, header: None },
            synced_lsn: 0,
            wall_ns: 0,
        };
        let mut index = start;
        loop {
            let step = cursor.peek().map_err(|e| self.failed(index, e))?;
            let stop = match step {
                Step::Batch(batch) => {
                    chain.push(index, batch);
                    cursor.accept(&batch);
                    continue;
                }
                Step::Stop(stop) => stop,
            };
            chain.end_segment = index;
            chain.end_offset = cursor.offset();
            chain.stop = stop;
            chain.next_lsn = cursor.next_lsn().unwrap_or(anchor_lsn);
            chain.prev_crc = cursor.prev_crc().unwrap_or(prev_crc);
            if index == tail || !self.cross(&mut cursor, &mut chain, index + 1)? {
                return Ok(Some(chain));
            }
            index += 1;
        }
    }

    /// Whether the segment is the log's first and was entered, if at all, only with the batch that
    /// starts with the log's first record: everything before was trimmed when that was not durable
    /// yet. Then the mark tells where a segment starts of which no batch does.
    fn starts_at_mark(&self, start: usize) -> Result<bool, ScanError> {
        let segment = &self.layout.opened[start];
        let first = self.layout.mark.first_lsn;
        let data_offset = segment.header.data_offset();
        if segment.epoch != self.layout.mark.first_epoch {
            return Ok(false);
        }
        let io_block_bytes = self.store.facts().block_bytes;
        let file = self.open(start)?;
        let limit = self.limit(start);
        let sweep = scan::sweep(&file, segment, io_block_bytes, data_offset, limit, |_| true)
            .map_err(|e| self.failed(start, e))?;
        Ok(sweep.found.is_none_or(|found| match found.offset == data_offset {
            true => found.first_lsn == first,
            // The first batch never came to be, and this was under way with it.
            false => found.first_lsn > first,
        }))
    }

    fn cross(
        &self,
        cursor: &mut BatchCursor,
        chain: &mut Chain,
        next: usize,
    ) -> Result<bool, ScanError> {
        let segment = &self.layout.opened[next];
        let crossing = cursor
            .cross(segment, self.open(next)?, self.limit(next))
            .map_err(|e| self.failed(next, e))?;
        match crossing {
            Crossing::Entered => {
                let next_lsn = cursor.next_lsn().unwrap_or(0);
                chain.index = SegmentIndex::new(&segment.header, next_lsn);
                if let Some(resume) = segment.header.resume {
                    chain.vouch(segment.header.first_lsn - 1);
                    chain.keep = Keep {
                        segment: next,
                        offset: segment.header.data_offset(),
                        prev_crc: resume.prev_batch_crc,
                        next_lsn: segment.header.first_lsn,
                    };
                }
                Ok(true)
            }
            Crossing::NotContinued | Crossing::Short => Ok(false),
        }
    }

    /// Tells a torn tail from damage: everything vouched for must be in the chain, and a segment
    /// that recovery made starts with a batch that was synced before the segment appeared.
    fn check_end(&self, chain: &Chain) -> Result<(), ScanError> {
        let end = &self.layout.opened[chain.end_segment];
        let short = self.vouched_lsn > chain.last_lsn();
        let bare = end.header.resume.is_some() && chain.end_offset == end.header.data_offset();
        if !short && !bare {
            return Ok(());
        }
        let lost = short.then_some((Lsn::new(chain.next_lsn), Lsn::new(self.vouched_lsn)));
        // Where nothing at all stands behind the end, the next batch was in the next segment.
        let behind = scan::sweep(
            &self.open(chain.end_segment)?,
            end,
            self.store.facts().block_bytes,
            chain.end_offset,
            self.limit(chain.end_segment),
            |_| false,
        )
        .map_err(|e| self.failed(chain.end_segment, e))?;
        let (segment, offset) = if chain.end_segment < self.tail && behind.nonzero_end == 0 {
            let next = &self.layout.opened[chain.end_segment + 1];
            (next.epoch, next.header.data_offset())
        } else {
            (end.epoch, chain.end_offset)
        };
        Err(ScanError::Damaged(Damage {
            segment: self.path(segment),
            offset,
            lost,
            detail: match bare {
                true => {
                    format!("the first batch, synced by recovery, is gone: {}", chain.stop.reason)
                }
                false => format!("acknowledged records end too early: {}", chain.stop.reason),
            },
        }))
    }

    /// Where the mark says that the log was closed, the chain reaches that place: all that stood before
    /// it had been durable, and the mark took it back before anything changed. Only the batch that a
    /// closed log ends with may be missing: it is empty, one block, and vouches for the others.
    fn check_closed(&self, chain: &Chain) -> Result<(), ScanError> {
        let Some(closed) = self.layout.mark.closed else { return Ok(()) };
        let end = &self.layout.opened[chain.end_segment].header;
        // A mark that is older than a truncation, put back by somebody, does not speak of this end.
        if end.generation > self.layout.mark.generation {
            return Ok(());
        }
        let block = u64::from(end.block_bytes);
        let without_last = closed.end_offset.saturating_sub(block);
        let is_there = match closed.epoch.checked_sub(end.epoch) {
            None => true,
            Some(0) => chain.end_offset >= without_last,
            Some(1) => without_last <= end.data_offset(),
            Some(_) => false,
        };
        if is_there {
            return Ok(());
        }
        Err(ScanError::Damaged(Damage {
            segment: self.path(end.epoch),
            offset: chain.end_offset,
            lost: None,
            detail: format!(
                "the log was closed at offset {} of segment {}, and ends here, behind record {}: what \
                 stood between is lost: {}",
                closed.end_offset,
                closed.epoch,
                chain.last_lsn(),
                chain.stop.reason
            ),
        }))
    }

    /// What stands behind the chain and is not zero.
    fn torn(&self, chain: &Chain) -> Option<TornTail> {
        let mut torn: Option<TornTail> = None;
        for (index, sweep) in self.sweeps.iter().enumerate().skip(chain.end_segment) {
            let segment = &self.layout.opened[index];
            let from = match index == chain.end_segment {
                true => chain.end_offset,
                false => segment.header.data_offset(),
            };
            let bytes = sweep.nonzero_end.saturating_sub(from);
            if bytes == 0 {
                continue;
            }
            match &mut torn {
                Some(torn) => torn.bytes += bytes,
                None => {
                    torn =
                        Some(TornTail { segment: self.path(segment.epoch), offset: from, bytes });
                }
            }
        }
        torn
    }

    fn sweep(&mut self, index: usize, from: u64) -> Result<(), ScanError> {
        let segment = &self.layout.opened[index];
        // Whatever follows the place where a segment was superseded no longer counts.
        let limit = self.limit(index);
        let io_block_bytes = self.store.facts().block_bytes;
        let sweep =
            scan::sweep(&self.open(index)?, segment, io_block_bytes, from, limit, |_| false)
                .map_err(|e| self.failed(index, e))?;
        self.vouched_lsn = self.vouched_lsn.max(sweep.synced_lsn);
        self.sweeps[index] = sweep;
        Ok(())
    }

    fn limit(&self, index: usize) -> u64 {
        let opened = &self.layout.opened;
        opened[index].limit(opened.get(index + 1).map(|next| &next.header))
    }

    fn open(&self, index: usize) -> Result<Arc<dyn File>, ScanError> {
        segment::open_file(self.store, self.layout.opened[index].epoch, crate::disk::Access::Read)
    }

    fn path(&self, epoch: u64) -> PathBuf {
        segment::segment_path(self.store, epoch)
    }

    fn failed(&self, index: usize, error: std::io::Error) -> ScanError {
        ScanError::Io(IoError::new("read", self.path(self.layout.opened[index].epoch), error))
    }

    fn unknown_start(&self) -> ScanError {
        let lowest = &self.layout.opened[0];
        let vouched = (self.vouched_lsn >= self.layout.mark.first_lsn)
            .then(|| (Lsn::new(self.layout.mark.first_lsn), Lsn::new(self.vouched_lsn)));
        ScanError::Damaged(Damage {
            segment: self.path(lowest.epoch),
            offset: lowest.header.data_offset(),
            lost: vouched,
            detail: "the first batch of the log's first segment is unreadable, and nothing else \
                     tells its number"
                .to_owned(),
        })
    }
}
