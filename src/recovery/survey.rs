//! Looking at a log without changing it: where its chain of batches ends, what is vouched for, and
//! what stands behind the end. Recovery acts on the result, `inspect` only reports it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::TornTail;
use crate::disk::{File, Store};
use crate::error::{Damage, IoError};
use crate::frame::LogId;
use crate::index::SegmentIndex;
use crate::lsn::Lsn;
use crate::scan::{self, BatchCursor, Crossing, Placed, Step, Stop, StopReason, Sweep};
use crate::segment::{self, ScanError, Segment};

/// What was found in a log's directory.
pub(super) struct Survey {
    pub(super) log_id: LogId,
    /// All segments in ascending order; without gaps up to `tail`.
    pub(super) segments: Vec<Segment>,
    /// The last segment that holds anything of the log; those behind it stand ready.
    pub(super) tail: usize,
    pub(super) first_lsn: u64,
    pub(super) chain: Chain,
    /// Every record up to this number was durable.
    pub(super) vouched_lsn: u64,
    /// The latest wall clock seen.
    pub(super) wall_ns: u64,
    pub(super) torn: Option<TornTail>,
    /// For each segment, whether everything behind its header is zero; true up to `tail`, where it
    /// is not asked.
    pub(super) zero: Vec<bool>,
    pub(super) bytes_read: u64,
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
    stop: Stop,
    synced_lsn: u64,
    wall_ns: u64,
    bytes_read: u64,
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

/// Surveys a log. None: there is no segment. With `live` a writer may be at work meanwhile: what is
/// vouched for is looked up before the chain is followed, so that the chain must reach it.
pub(super) fn survey(store: &dyn Store, live: bool) -> Result<Option<Survey>, ScanError> {
    let segments = open_all(store)?;
    if segments.is_empty() {
        return Ok(None);
    }
    check_whole(store, &segments)?;
    let mut surveyor = Surveyor {
        store,
        sweeps: vec![Sweep::default(); segments.len()],
        segments,
        vouched_lsn: 0,
        bytes_read: 0,
    };
    let tail = surveyor.find_tail(live)?;
    surveyor.check_no_gap()?;
    let chain = surveyor.find_chain(tail, live)?;
    let first_lsn = match surveyor.first_lsn(0)? {
        Some(lsn) => lsn,
        None => return Err(surveyor.unknown_start()),
    };
    let torn = surveyor.torn(&chain);
    let wall_ns = surveyor.sweeps.iter().map(|sweep| sweep.wall_ns).fold(chain.wall_ns, u64::max);
    let zero = surveyor
        .sweeps
        .iter()
        .enumerate()
        .map(|(index, sweep)| index <= tail || sweep.nonzero_end == 0)
        .collect();
    Ok(Some(Survey {
        log_id: surveyor.segments[0].header.log_id,
        tail,
        first_lsn,
        vouched_lsn: surveyor.vouched_lsn,
        wall_ns,
        torn,
        zero,
        bytes_read: surveyor.bytes_read + chain.bytes_read,
        chain,
        segments: surveyor.segments,
    }))
}

/// Number of the first record of a segment, from its header or else from its first batch.
pub(crate) fn first_lsn_of(store: &dyn Store, segment: &Segment) -> Result<Option<u64>, ScanError> {
    if segment.header.first_lsn != 0 {
        return Ok(Some(segment.header.first_lsn));
    }
    let found = peek_first(store, segment)?;
    Ok(found.map(|header| header.first_lsn))
}

fn peek_first(
    store: &dyn Store,
    segment: &Segment,
) -> Result<Option<crate::frame::BatchHeader>, ScanError> {
    let file = segment::open_file(store, segment.epoch, crate::disk::Access::Read)?;
    let from = segment.header.data_offset();
    let limit = segment.limit(None).min(from + u64::from(segment.header.block_bytes));
    let sweep = scan::sweep(&file, segment, store.facts().block_bytes, from, limit, |_| true)
        .map_err(|e| IoError::new("read", segment::segment_path(store, segment.epoch), e))?;
    Ok(sweep.found)
}

fn open_all(store: &dyn Store) -> Result<Vec<Segment>, ScanError> {
    let mut segments: Vec<Segment> = Vec::new();
    for epoch in segment::list_segments(store)? {
        let (segment, _) = Segment::open(store, epoch)?;
        if let Some(first) = segments.first()
            && first.header.log_id != segment.header.log_id
        {
            return Err(ScanError::Foreign {
                path: segment::segment_path(store, epoch),
                reason: format!(
                    "it is of log {}, and segment {} is of log {}",
                    segment.header.log_id, first.epoch, first.header.log_id
                ),
            });
        }
        segments.push(segment);
    }
    Ok(segments)
}

/// A segment has its full size from the start; only one that was superseded is cut. A shorter one has
/// lost whatever stood behind, and nothing there can vouch for it any more.
fn check_whole(store: &dyn Store, segments: &[Segment]) -> Result<(), ScanError> {
    let superseded = |segment: &Segment| {
        let next = segments.iter().find(|next| next.epoch == segment.epoch + 1);
        next.is_some_and(|next| next.header.resume.is_some())
    };
    let is_cut = |segment: &&Segment| {
        segment.file_bytes < segment.header.segment_bytes && !superseded(segment)
    };
    match segments.iter().find(is_cut) {
        None => Ok(()),
        Some(segment) => Err(ScanError::Damaged(Damage {
            segment: segment::segment_path(store, segment.epoch),
            offset: segment.file_bytes,
            lost: None,
            detail: format!(
                "the file was cut to {} of {} bytes; records behind that are lost, if there were any",
                segment.file_bytes, segment.header.segment_bytes
            ),
        })),
    }
}

struct Surveyor<'a> {
    store: &'a dyn Store,
    segments: Vec<Segment>,
    /// What was seen of each segment that was swept.
    sweeps: Vec<Sweep>,
    vouched_lsn: u64,
    bytes_read: u64,
}

impl Surveyor<'_> {
    /// The last segment with a valid batch header anywhere, or made by recovery, which put one
    /// there; the first segment when there is no other.
    fn find_tail(&mut self, live: bool) -> Result<usize, ScanError> {
        for segment in &self.segments {
            // What stood before the segment was durable when its header was made.
            self.vouched_lsn = self.vouched_lsn.max(segment.header.first_lsn.saturating_sub(1));
        }
        for index in (0..self.segments.len()).rev() {
            let segment = &self.segments[index];
            let data_offset = segment.header.data_offset();
            let is_tail = index == 0
                || segment.header.resume.is_some()
                || peek_first(self.store, segment)?.is_some();
            if is_tail && !live {
                return Ok(index);
            }
            self.sweep(index, data_offset)?;
            if is_tail || self.sweeps[index].headers > 0 {
                return Ok(index);
            }
        }
        Ok(0)
    }

    fn check_no_gap(&self) -> Result<(), ScanError> {
        // Ready segments count too: they are made in order, and removed from the last one down.
        let gap = self.segments.windows(2).find(|pair| pair[0].epoch + 1 != pair[1].epoch);
        match gap {
            None => Ok(()),
            Some(pair) => Err(ScanError::Damaged(Damage {
                segment: self.path(pair[0].epoch + 1),
                offset: 0,
                lost: None,
                detail: "the segment file is missing".to_owned(),
            })),
        }
    }

    /// Follows the chain of batches to its end, from as far back as anything may not be vouched for.
    fn find_chain(&mut self, tail: usize, live: bool) -> Result<Chain, ScanError> {
        let mut start = tail;
        loop {
            let Some(mut chain) = self.walk(start, tail)? else {
                if start == 0 {
                    return Err(self.unknown_start());
                }
                start -= 1;
                continue;
            };
            if !live {
                self.sweep(chain.end_segment, chain.end_offset)?;
                for index in chain.end_segment + 1..=tail {
                    self.sweep(index, self.segments[index].header.data_offset())?;
                }
            }
            self.vouched_lsn = self.vouched_lsn.max(chain.synced_lsn);
            if start == 0 {
                // What the log no longer holds was durable when it was trimmed.
                self.vouched_lsn = self.vouched_lsn.max(chain.anchor_lsn - 1);
            } else if chain.anchor_lsn - 1 > self.vouched_from(start).max(chain.synced_lsn) {
                start -= 1;
                continue;
            }
            chain.vouch(self.vouched_lsn);
            self.check_end(&chain, tail)?;
            return Ok(chain);
        }
    }

    /// What a segment and those behind it vouch for themselves. A segment that nothing there places
    /// behind durable records may be left from before the last recovery, which was cut short: only
    /// the chain through the segments before it tells.
    fn vouched_from(&self, start: usize) -> u64 {
        let sweeps = self.sweeps[start..].iter().map(|sweep| sweep.synced_lsn);
        let headers = self.segments[start..].iter().map(|s| s.header.first_lsn.saturating_sub(1));
        sweeps.chain(headers).fold(0, u64::max)
    }

    /// Follows the chain from the start of a segment. None: nothing tells where that starts.
    fn walk(&mut self, start: usize, tail: usize) -> Result<Option<Chain>, ScanError> {
        let header = self.segments[start].header;
        let io_block_bytes = self.store.facts().block_bytes;
        let known = header.first_lsn != 0;
        let crc = header.resume.map_or(0, |resume| resume.prev_batch_crc);
        let mut cursor = BatchCursor::new(
            self.open(start)?,
            self.segments[start].clone(),
            io_block_bytes,
            self.limit(start),
            header.data_offset(),
            known.then_some(header.first_lsn),
            // A first segment's number may be known without what stood before it.
            (header.first_lsn == 1 || header.resume.is_some()).then_some(crc),
        )
        .map_err(|e| self.failed(start, e))?;
        let first = cursor.peek().map_err(|e| self.failed(start, e))?;
        let (anchor_lsn, prev_crc) = match first {
            Step::Batch(batch) => (batch.header.first_lsn, batch.header.prev_crc),
            Step::Stop(_) if known => (header.first_lsn, crc),
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
            stop: Stop { reason: StopReason::Limit, header: None },
            synced_lsn: 0,
            wall_ns: 0,
            bytes_read: 0,
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
            chain.bytes_read += cursor.bytes_read();
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

    fn cross(
        &self,
        cursor: &mut BatchCursor,
        chain: &mut Chain,
        next: usize,
    ) -> Result<bool, ScanError> {
        let segment = &self.segments[next];
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
    fn check_end(&mut self, chain: &Chain, tail: usize) -> Result<(), ScanError> {
        let end = &self.segments[chain.end_segment];
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
        let (segment, offset) = if chain.end_segment < tail && behind.nonzero_end == 0 {
            let next = &self.segments[chain.end_segment + 1];
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

    /// What stands behind the chain and is not zero.
    fn torn(&self, chain: &Chain) -> Option<TornTail> {
        let mut torn: Option<TornTail> = None;
        for (index, sweep) in self.sweeps.iter().enumerate().skip(chain.end_segment) {
            let segment = &self.segments[index];
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

    fn first_lsn(&self, index: usize) -> Result<Option<u64>, ScanError> {
        first_lsn_of(self.store, &self.segments[index])
    }

    fn sweep(&mut self, index: usize, from: u64) -> Result<(), ScanError> {
        let segment = &self.segments[index];
        // Whatever follows the place where a segment was superseded no longer counts.
        let limit = self.limit(index);
        let io_block_bytes = self.store.facts().block_bytes;
        let sweep =
            scan::sweep(&self.open(index)?, segment, io_block_bytes, from, limit, |_| false)
                .map_err(|e| self.failed(index, e))?;
        self.vouched_lsn = self.vouched_lsn.max(sweep.synced_lsn);
        self.bytes_read += sweep.bytes_read;
        self.sweeps[index] = sweep;
        Ok(())
    }

    fn limit(&self, index: usize) -> u64 {
        let next = self.segments.get(index + 1);
        let follows = |next: &&Segment| next.epoch == self.segments[index].epoch + 1;
        self.segments[index].limit(next.filter(follows).map(|next| &next.header))
    }

    fn open(&self, index: usize) -> Result<Arc<dyn File>, ScanError> {
        segment::open_file(self.store, self.segments[index].epoch, crate::disk::Access::Read)
    }

    fn path(&self, epoch: u64) -> PathBuf {
        segment::segment_path(self.store, epoch)
    }

    fn failed(&self, index: usize, error: std::io::Error) -> ScanError {
        ScanError::Io(IoError::new("read", self.path(self.segments[index].epoch), error))
    }

    fn unknown_start(&self) -> ScanError {
        let lowest = &self.segments[0];
        ScanError::Damaged(Damage {
            segment: self.path(lowest.epoch),
            offset: lowest.header.data_offset(),
            lost: None,
            detail: "the first batch of the log's first segment is unreadable, and nothing else \
                     tells its number"
                .to_owned(),
        })
    }
}
