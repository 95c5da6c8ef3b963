//! Finding batches in a segment file: the one parser that recovery and the readers share.
//!
//! [`BatchCursor`] follows the chain from batch to batch and verifies everything; [`sweep`] looks at
//! every block for batch headers, whatever their chain. Nothing here trusts a byte of the file: a
//! length never leads to a read or an allocation beyond the end of the file.

#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::disk::File;
use crate::footer::{self, Footer};
use crate::frame::{self, BATCH_HEADER_BYTES, BatchContext, BatchError, BatchHeader};
use crate::mem::AlignedBuf;
use crate::segment::Segment;

/// Bytes that are read ahead at most.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Bytes that are read first: a follower finds little that is new, a scan soon reads more.
const CHUNK_BYTES_MIN: usize = 64 << 10;

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
        if header.first_lsn.checked_add(u64::from(header.count)).is_none() {
            return invalid(BatchError::Field);
        }
        if self.next_lsn.is_some_and(|lsn| lsn != header.first_lsn)
            || self.prev_crc.is_some_and(|crc| crc != header.prev_crc)
        {
            return stop(StopReason::Chain, None);
        }
        let bytes = header.disk_bytes(u64::from(self.segment.header.block_bytes));
        if bytes > left {
            return stop(StopReason::Invalid(BatchError::Short), Some(header));
        }
        // `left` is bounded by the size of the file, so `bytes` is.
        let batch = self.window.bytes(self.offset, bytes as usize)?;
        let verdict = match batch.len() as u64 == bytes {
            true => header.verify_body(batch),
            false => Err(BatchError::Short),
        };
        match verdict {
            Ok(()) => Ok(Step::Batch(Placed { header, crc, end: self.offset + bytes })),
            Err(error) => stop(StopReason::Invalid(error), Some(header)),
        }
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
        let io_block_bytes = self.window.io_block_bytes;
        let mut cursor = BatchCursor::new(
            file,
            next.clone(),
            io_block_bytes,
            limit,
            data_offset,
            Some(lsn),
            Some(crc),
        )?;
        // A segment that was superseded before anything in it counted holds nothing, and is passed.
        if next.header.resume.is_none()
            && limit != data_offset
            && let Step::Stop(_) = cursor.peek()?
        {
            return Ok(Crossing::NotContinued);
        }
        *self = cursor;
        Ok(Crossing::Entered)
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
    while offset < limit {
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

/// Aligned reads, a chunk at a time. Grows to the largest batch met, never beyond the file.
struct Window {
    file: Arc<dyn File>,
    io_block_bytes: usize,
    buf: AlignedBuf,
    /// The part of the file that `buf` holds.
    start: u64,
    len: usize,
    chunk_bytes: usize,
}

impl Window {
    fn new(file: Arc<dyn File>, io_block_bytes: usize) -> io::Result<Window> {
        let chunk_bytes = CHUNK_BYTES_MIN.next_multiple_of(io_block_bytes);
        let buf = AlignedBuf::new(chunk_bytes)?;
        Ok(Window { file, io_block_bytes, buf, start: 0, len: 0, chunk_bytes })
    }

    fn invalidate(&mut self) {
        self.len = 0;
        self.chunk_bytes = CHUNK_BYTES_MIN.next_multiple_of(self.io_block_bytes);
    }

    /// The bytes at `offset`: `want` of them, fewer where the file ends.
    fn bytes(&mut self, offset: u64, want: usize) -> io::Result<&[u8]> {
        if self.held(offset, want).len() < want {
            self.refill(offset, want)?;
        }
        Ok(self.held(offset, want))
    }

    /// What is in memory of these bytes.
    fn held(&self, offset: u64, want: usize) -> &[u8] {
        let end = self.start + self.len as u64;
        if offset < self.start || offset >= end {
            return &[];
        }
        let at = (offset - self.start) as usize;
        &self.buf[at..self.len.min(at + want)]
    }

    fn refill(&mut self, offset: u64, want: usize) -> io::Result<()> {
        self.len = 0;
        let start = offset - offset % self.io_block_bytes as u64;
        let need = ((offset - start) as usize + want).next_multiple_of(self.io_block_bytes);
        let bytes = need.max(self.chunk_bytes);
        if self.buf.len() < bytes {
            self.buf = AlignedBuf::new(bytes)?;
        }
        self.start = start;
        self.len = self.file.read_at(start, &mut self.buf[..bytes])?.min(bytes);
        self.chunk_bytes =
            (self.chunk_bytes * 4).min(CHUNK_BYTES_MAX).next_multiple_of(self.io_block_bytes);
        Ok(())
    }
}
