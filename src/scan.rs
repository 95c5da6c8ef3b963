//! Finding batches in a segment file: the one parser that recovery and the readers share.
//!
//! [`BatchCursor`] follows the chain from batch to batch and verifies everything; [`sweep`] looks at
//! every block for batch headers, whatever their chain. Nothing here trusts a byte of the file: a
//! length never leads to a read or an allocation beyond the end of the file.

mod ahead;
#[cfg(test)]
mod tests;
mod window;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::disk::File;
use crate::footer::{self, Footer};
use crate::frame::{self, BATCH_HEADER_BYTES, BatchContext, BatchError, BatchHeader};
use crate::segment::Segment;
use window::Window;

/// Follows the chain of batches in one segment.
///
/// [`peek`](Self::peek) verifies the batch at the current offset, [`accept`](Self::accept) steps
/// over it. The bytes of the batch that was last peeked at stay in memory until the next peek.
pub(crate) struct BatchCursor {
    window: Window,
    segment: Segment,
    limit: u64,
    offset: u64,
    next_lsn: Option<u64>,
    prev_crc: Option<u32>,
}

/// A verified batch: where it stands and what its header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Placed {
    pub(crate) header: BatchHeader,
    /// Checksum of the header, the link to the next batch.
    pub(crate) crc: u32,
    /// Offset behind its last block.
    pub(crate) end: u64,
}

/// What stands at the cursor.
pub(crate) enum Step {
    Batch(Placed),
    Stop(Stop),
}

/// Why no batch that continues the chain stands at the cursor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) reason: StopReason,
    /// The batch's header, where it is intact and continues the chain, and only the body is not.
    pub(crate) header: Option<BatchHeader>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum StopReason {
    /// The segment ends here.
    Limit,
    /// No valid batch.
    Invalid(BatchError),
    /// A valid header that does not continue the chain.
    Chain,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Limit => f.write_str("the segment ends"),
            Self::Invalid(error) => error.fmt(f),
            Self::Chain => f.write_str("a batch that does not follow the one before"),
        }
    }
}

impl BatchCursor {
    /// A cursor at `offset`. The batch there must have the given number and link to the given
    /// checksum; what is not known is taken from the first batch.
    pub(crate) fn new(
        file: Arc<dyn File>,
        segment: Segment,
        io_block_bytes: usize,
        limit: u64,
        offset: u64,
        next_lsn: Option<u64>,
        prev_crc: Option<u32>,
    ) -> io::Result<BatchCursor> {
        let window = Window::new(file, io_block_bytes)?;
        Ok(BatchCursor { window, segment, limit, offset, next_lsn, prev_crc })
    }

    /// Verifies the batch at the current offset. What the window holds is not read again.
    pub(crate) fn peek(&mut self) -> io::Result<Step> {
        let found = match self.peek_header()? {
            Step::Batch(found) => found,
            stop => return Ok(stop),
        };
        // Bounded by the limit, which is bounded by the size of the file.
        let bytes = (found.end - self.offset) as usize;
        let batch = self.window.bytes(self.offset, bytes)?;
        Ok(match verify(batch, bytes, &found.header) {
            Ok(()) => Step::Batch(found),
            Err(error) => {
                Step::Stop(Stop { reason: StopReason::Invalid(error), header: Some(found.header) })
            }
        })
    }

    /// The batch at the current offset, where its header is intact and continues the chain. Its body
    /// is not looked at.
    pub(crate) fn peek_header(&mut self) -> io::Result<Step> {
        let stop = |reason, header| Ok(Step::Stop(Stop { reason, header }));
        let invalid =
            |error| Ok(Step::Stop(Stop { reason: StopReason::Invalid(error), header: None }));
        let left = self.limit.saturating_sub(self.offset);
        if left == 0 {
            return stop(StopReason::Limit, None);
        }
        let context = BatchContext::from(&self.segment.header);
        let head = self.window.bytes(self.offset, left.min(BATCH_HEADER_BYTES as u64) as usize)?;
        let (header, crc) = match BatchHeader::decode(head, &context, self.offset) {
            Ok(found) => found,
            Err(error) => return invalid(error),
        };
        if self.next_lsn.is_some_and(|lsn| lsn != header.first_lsn)
            || self.prev_crc.is_some_and(|crc| crc != header.prev_crc)
        {
            return stop(StopReason::Chain, None);
        }
        let bytes = header.disk_bytes(u64::from(self.segment.header.block_bytes));
        if bytes > left {
            return stop(StopReason::Invalid(BatchError::Short), Some(header));
        }
        Ok(Step::Batch(Placed { header, crc, end: self.offset + bytes }))
    }

    /// Steps from header to header to the first batch that is wanted, and stands there; its body, and
    /// those before it, are not looked at. None: the headers end before, and the cursor stands there.
    pub(crate) fn skip_to(
        &mut self,
        mut wanted: impl FnMut(&Placed) -> bool,
    ) -> io::Result<Option<Placed>> {
        loop {
            // The next header may be far away, or the last that is needed.
            self.window.stay_small();
            match self.peek_header()? {
                Step::Batch(batch) if wanted(&batch) => {
                    self.window.stay_small();
                    return Ok(Some(batch));
                }
                Step::Batch(batch) => self.accept(&batch),
                Step::Stop(_) => return Ok(None),
            }
        }
    }

    /// Moves to another place in the segment, with what is known of the batch there.
    pub(crate) fn move_to(&mut self, offset: u64, next_lsn: Option<u64>, prev_crc: Option<u32>) {
        self.offset = offset;
        self.next_lsn = next_lsn;
        self.prev_crc = prev_crc;
    }

    /// Verifies a batch whose header was peeked at before, and holds its bytes. With them the bytes before it
    /// are read, down to `floor`: for somebody who goes backwards.
    pub(crate) fn load_back(
        &mut self,
        batch: &Placed,
        floor: u64,
    ) -> io::Result<Result<(), BatchError>> {
        let context = BatchContext::from(&self.segment.header);
        let (offset, bytes) = (batch.header.offset, (batch.end - batch.header.offset) as usize);
        let image = self.window.bytes_back(offset, bytes, floor)?;
        Ok(match BatchHeader::decode(image, &context, offset) {
            Ok((header, crc)) if header == batch.header && crc == batch.crc => {
                verify(image, bytes, &header)
            }
            Ok(_) => Err(BatchError::OtherLife),
            Err(error) => Err(error),
        })
    }

    /// Steps over the batch that [`peek`](Self::peek) returned.
    pub(crate) fn accept(&mut self, batch: &Placed) {
        self.offset = batch.end;
        self.next_lsn = Some(batch.header.last_lsn() + 1);
        self.prev_crc = Some(batch.crc);
    }

    /// A part of a batch that was peeked at, while no other was since.
    pub(crate) fn held(&self, batch: &Placed, part: Range<usize>) -> &[u8] {
        let bytes =
            self.window.held(batch.header.offset, (batch.end - batch.header.offset) as usize);
        bytes.get(part).unwrap_or_default()
    }

    /// Forgets what was read: the next peek reads from the disk.
    pub(crate) fn invalidate(&mut self) {
        self.window.invalidate();
    }

    pub(crate) fn segment(&self) -> &Segment {
        &self.segment
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The number of the next record, where it is known.
    pub(crate) fn next_lsn(&self) -> Option<u64> {
        self.next_lsn
    }

    /// The checksum that the next batch must link to, where it is known.
    pub(crate) fn prev_crc(&self) -> Option<u32> {
        self.prev_crc
    }

    /// Where the segment ends at the latest.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes read from the disk so far, of this segment.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.window.bytes_read
    }

    /// Allows to read ahead up to `end`: what stands before it does not change any more.
    pub(crate) fn allow_ahead(&mut self, end: u64) {
        self.window.allow_ahead(end.min(self.limit));
    }

    /// Whether reading ahead comes to this segment's end, and should go on in the next one.
    pub(crate) fn wants_next(&self) -> bool {
        self.window.wants_next()
    }

    /// Reading ahead goes on in the next segment, from `from` to `end`.
    pub(crate) fn expect_next(&mut self, file: Arc<dyn File>, from: u64, end: u64) {
        self.window.expect_next(file, from, end);
    }

    #[cfg(test)]
    pub(crate) fn is_ahead(&self) -> bool {
        self.window.is_ahead()
    }

    /// Moves on to `next`, the segment with the following epoch, if the chain goes on there; where
    /// it does not, the cursor stays. `limit` is where `next` ends.
    pub(crate) fn cross(
        &mut self,
        next: &Segment,
        file: Arc<dyn File>,
        limit: u64,
    ) -> io::Result<Crossing> {
        let data_offset = next.header.data_offset();
        let (lsn, crc) = match next.header.resume {
            Some(resume) => {
                if self.next_lsn != Some(next.header.first_lsn)
                    || self.offset < resume.prev_end_offset
                {
                    return Ok(Crossing::Short);
                }
                (next.header.first_lsn, resume.prev_batch_crc)
            }
            None => match (self.next_lsn, self.prev_crc) {
                (Some(lsn), Some(crc)) => (lsn, crc),
                _ => return Ok(Crossing::NotContinued),
            },
        };
        let file_before = self.window.enter(file);
        let before = (self.segment.clone(), self.limit, self.offset, self.next_lsn, self.prev_crc);
        let read_before = core::mem::take(&mut self.window.bytes_read);
        (self.segment, self.limit, self.offset) = (next.clone(), limit, data_offset);
        (self.next_lsn, self.prev_crc) = (Some(lsn), Some(crc));
        // A segment that was superseded before anything in it counted holds nothing, and is passed.
        let may_be_empty = next.header.resume.is_some() || limit == data_offset;
        let continued = match may_be_empty {
            true => Ok(true),
            false => self.peek().map(|step| matches!(step, Step::Batch(_))),
        };
        if matches!(continued, Ok(true)) {
            return Ok(Crossing::Entered);
        }
        (self.segment, self.limit, self.offset, self.next_lsn, self.prev_crc) = before;
        self.window.enter(file_before);
        self.window.bytes_read += read_before;
        continued.map(|_| Crossing::NotContinued)
    }
}

/// Checks the body of a batch, of which `image` should be all `bytes`.
fn verify(image: &[u8], bytes: usize, header: &BatchHeader) -> Result<(), BatchError> {
    match image.len() == bytes {
        true => header.verify_body(image),
        false => Err(BatchError::Short),
    }
}

/// Whether the chain goes on in the next segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Crossing {
    Entered,
    /// The next segment does not begin with the batch that follows.
    NotContinued,
    /// Recovery made the next segment, and knew more of this one than can be read now.
    Short,
}

/// What a look at every block of a part of a segment found.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Sweep {
    /// Valid batch headers.
    pub(crate) headers: u64,
    /// The largest number that any of them vouches for.
    pub(crate) synced_lsn: u64,
    /// The latest wall clock in any of them.
    pub(crate) wall_ns: u64,
    /// Offset behind the last block that is not all zeros; 0 when all are. In a recycled segment,
    /// which may hold anything, behind the last batch of which there is a valid header. A footer
    /// does not count.
    pub(crate) nonzero_end: u64,
    /// Whether a footer of this life of the file stands at the end.
    pub(crate) has_footer: bool,
    /// The first header that the caller asked for.
    pub(crate) found: Option<BatchHeader>,
}

/// A file that is larger than any that the options allow: it is a fake, or mostly holes, and is not to be
/// read for hours.
const HUGE_BYTES: u64 = 64 << 30;
/// Zeros in sequence, in such a file, from which on it is asked where the hole ends.
const ZEROS_BYTES: u64 = 1 << 20;

/// Looks at every block from `from` to `limit` for batch headers, whatever their chain, until one
/// is `wanted`.
pub(crate) fn sweep(
    file: &Arc<dyn File>,
    segment: &Segment,
    io_block_bytes: usize,
    from: u64,
    limit: u64,
    wanted: impl Fn(&BatchHeader) -> bool,
) -> io::Result<Sweep> {
    let mut window = Window::new(file.clone(), io_block_bytes)?;
    let context = BatchContext::from(&segment.header);
    let block = u64::from(segment.header.block_bytes);
    let mut sweep = Sweep::default();
    let footer_at = footer::footer_offset(&segment.header);
    let mut offset = from;
    let mut look_for_data_at = from.saturating_add(ZEROS_BYTES);
    while offset < limit {
        if limit > HUGE_BYTES && offset >= look_for_data_at {
            let data = file.next_data(offset)?.min(limit);
            // The footer's block is looked at in any case.
            let data = if offset <= footer_at { data.min(footer_at) } else { data };
            offset = offset.max(data - data % block);
            look_for_data_at = offset.saturating_add(ZEROS_BYTES);
            if offset >= limit {
                break;
            }
        }
        if offset == footer_at && limit == segment.header.segment_bytes {
            let bytes = window.bytes(offset, (limit - offset) as usize)?;
            if Footer::decode(bytes, &segment.header).is_some() {
                sweep.has_footer = true;
                break;
            }
        }
        let bytes = window.bytes(offset, block.min(limit - offset) as usize)?;
        if bytes.is_empty() {
            break;
        }
        if !frame::is_zero(bytes) {
            look_for_data_at = offset.saturating_add(ZEROS_BYTES);
            if !segment.header.recycled {
                sweep.nonzero_end = offset + bytes.len() as u64;
            }
            if let Ok((header, _)) = BatchHeader::decode(bytes, &context, offset) {
                sweep.headers += 1;
                if segment.header.recycled {
                    let end = offset.saturating_add(header.disk_bytes(block)).min(limit);
                    sweep.nonzero_end = sweep.nonzero_end.max(end);
                }
                sweep.synced_lsn = sweep.synced_lsn.max(header.synced_lsn);
                sweep.wall_ns = sweep.wall_ns.max(header.wall_ns);
                if wanted(&header) {
                    sweep.found = Some(header);
                    break;
                }
            }
        }
        offset += block;
    }
    Ok(sweep)
}
