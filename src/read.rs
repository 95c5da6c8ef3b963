//! [`Reader`]: the records of a log in order, durable ones only, each checksum verified.
//!
//! A reader shares nothing with the writer but the durable watermark: it reads the segment files.
//! What it parses it has read after the watermark had passed it, so a batch that is half written is
//! never looked at.

mod seek;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::disk::Store;
use crate::disk::os::OsStore;
use crate::error::{Damage, IoError, OpenError, ReadError};
use crate::frame::{self, BATCH_HEADER_BYTES, TABLE_ENTRY_BYTES};
use crate::lsn::Lsn;
use crate::recovery;
use crate::scan::{self, BatchCursor, Crossing, Placed, Step, Stop, StopReason};
use crate::segment::{self, Segment};

/// Reads a log from left to right, from any number on, while it is written or not.
///
/// Only durable records are returned. A reader keeps at most 1 MiB of the log in memory, or one
/// batch where that is larger.
///
/// As an iterator it yields `(Lsn, Vec<u8>)` and copies each payload;
/// [`next_record`](Reader::next_record) does not copy. The iterator ends where nothing more is
/// durable *now*, and may yield more later; after an error it has ended for good.
pub struct Reader {
    store: Arc<dyn Store>,
    watermark: Watermark,
    /// Number of the record to return next; 0: the first that there is.
    position: u64,
    /// Everything up to this number was durable before anything in the cursor was read.
    durable: u64,
    cursor: Option<BatchCursor>,
    batch: Option<Unread>,
    failed: bool,
}

/// Who tells what is durable.
enum Watermark {
    /// The writer, in this process.
    Live(Box<dyn Fn() -> u64 + Send + Sync>),
    /// The log's own batches: what they vouch for.
    Vouched,
}

/// The records of the cursor's batch that were not returned yet. While it is there, the cursor
/// holds the batch's bytes.
struct Unread {
    batch: Placed,
    /// Index of the next record.
    index: u32,
    /// Where the payload before it stands in the batch.
    payload: Range<usize>,
}

/// One record, borrowed from its reader.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    lsn: Lsn,
    payload: &'a [u8],
    wall_ns: u64,
}

impl<'a> Record<'a> {
    /// The record's number.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The bytes that were appended.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The writer's clock when it sealed the batch that holds the record. It never goes back from
    /// one record to the next.
    pub fn written_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.wall_ns)
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("position", &self.position)
            .field("durable", &self.durable)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// A reader of a log that this process writes to; `durable` tells the watermark.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        durable: Box<dyn Fn() -> u64 + Send + Sync>,
        from: Lsn,
    ) -> Result<Reader, ReadError> {
        Reader::with(store, Watermark::Live(durable), from)
    }

    /// A reader of the log in `dir` that another process may be writing to. [`Lsn::NONE`] starts at
    /// the first record that the log holds; before a number that is not reached yet,
    /// [`next_record`](Self::next_record) gives `None`. Reads from the disk, and blocks while it does.
    ///
    /// It takes a record as durable when a later batch in the log says so. A writer says so with its
    /// next batch, or a few milliseconds after it has become idle, or when it closes.
    ///
    /// # Errors
    /// No log there, a number that the log no longer holds, damage, or a failed system call.
    pub fn open_dir(dir: impl AsRef<Path>, from: Lsn) -> Result<Reader, ReadError> {
        let store = OsStore::open_read_only(dir.as_ref())
            .map_err(|error| open_failed(dir.as_ref(), error))?;
        Reader::with(store, Watermark::Vouched, from)
    }

    fn with(store: Arc<dyn Store>, watermark: Watermark, from: Lsn) -> Result<Reader, ReadError> {
        let mut reader = Reader {
            store,
            watermark,
            position: from.get(),
            durable: 0,
            cursor: None,
            batch: None,
            failed: false,
        };
        let Some(first) = reader.first_lsn()? else {
            return Err(ReadError::NotFound { dir: segment::dir_path(&*reader.store) });
        };
        if reader.position == 0 {
            reader.position = first;
        }
        if reader.position < first {
            return Err(ReadError::Trimmed { first: Lsn::new(first) });
        }
        reader.durable = reader.watermark()?;
        Ok(reader)
    }

    /// The next record; `None` when nothing more is durable now. Blocks while it reads from the disk,
    /// never for a record to come. Later calls may give more: a reader
    /// at the end may be asked again and again. After an error it stays where it is.
    ///
    /// # Errors
    /// Damage to durable records, with the numbers lost where they can be known (reading can go on
    /// in a new reader from the number behind them), or a failed system call.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        if !self.advance()? {
            return Ok(None);
        }
        let (Some(unread), Some(cursor)) = (&self.batch, &self.cursor) else { return Ok(None) };
        let payload = cursor.held(&unread.batch, unread.payload.clone());
        let wall_ns = unread.batch.header.wall_ns;
        Ok(Some(Record { lsn: Lsn::new(self.position - 1), payload, wall_ns }))
    }

    /// The number of the record that [`next_record`](Self::next_record) returns next.
    pub fn next_lsn(&self) -> Lsn {
        Lsn::new(self.position)
    }

    /// Steps to the next record, which is then the last that `batch` gave. False: there is none.
    fn advance(&mut self) -> Result<bool, ReadError> {
        loop {
            if self.batch.as_ref().is_some_and(|unread| unread.index == unread.batch.header.count) {
                self.batch = None;
            }
            if self.position > self.durable && !self.refresh()? {
                return Ok(false);
            }
            let (Some(unread), Some(cursor)) = (&mut self.batch, &self.cursor) else {
                if !self.next_batch()? {
                    return Ok(false);
                }
                continue;
            };
            let header = &unread.batch.header;
            let at = header.table_offset() + unread.index as usize * TABLE_ENTRY_BYTES;
            let entry = cursor.held(&unread.batch, at..at + TABLE_ENTRY_BYTES);
            let start = unread.payload.end;
            unread.payload = start..start + frame::table_entry(entry, 0, 0).len as usize;
            let lsn = header.first_lsn + u64::from(unread.index);
            unread.index += 1;
            if lsn >= self.position {
                self.position = lsn + 1;
                return Ok(true);
            }
        }
    }

    /// Asks again what is durable. False: the next record is not.
    fn refresh(&mut self) -> Result<bool, ReadError> {
        if matches!(self.watermark, Watermark::Vouched) && self.nothing_new()? {
            return Ok(false);
        }
        let durable = self.watermark()?;
        if self.position > durable {
            return Ok(false);
        }
        self.durable = durable;
        if self.batch.is_none()
            && let Some(cursor) = &mut self.cursor
        {
            // What was read before may have been half written.
            cursor.invalidate();
        }
        Ok(true)
    }

    fn watermark(&self) -> Result<u64, ReadError> {
        match &self.watermark {
            Watermark::Live(durable) => Ok(durable()),
            Watermark::Vouched => recovery::vouched_lsn(&*self.store),
        }
    }

    /// A cheap look whether another process wrote anything behind what was read: one block here, and
    /// one in the next segment.
    fn nothing_new(&mut self) -> Result<bool, ReadError> {
        let store = self.store.clone();
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        if self.batch.is_some() {
            return Ok(false);
        }
        cursor.invalidate();
        let zero = |step: &Step| {
            matches!(
                step,
                Step::Stop(Stop {
                    reason: StopReason::Limit | StopReason::Invalid(frame::BatchError::Zero),
                    ..
                })
            )
        };
        let epoch = cursor.segment().epoch;
        let step = cursor.peek().map_err(|e| read_failed(&*store, epoch, e))?;
        if !zero(&step) {
            return Ok(false);
        }
        match Segment::open_if_there(&*store, epoch + 1)? {
            Some((next, _)) if next.header.resume.is_some() => Ok(false),
            Some((next, _)) => Ok(recovery::first_lsn_of(&*store, &next)?.is_none()),
            None => Ok(true),
        }
    }

    /// Moves to the next batch that holds the position, which is durable. False: not there yet.
    fn next_batch(&mut self) -> Result<bool, ReadError> {
        if self.cursor.is_none() {
            self.cursor = Some(self.locate()?);
        }
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        let epoch = cursor.segment().epoch;
        let step = cursor.peek().map_err(|e| read_failed(&*self.store, epoch, e))?;
        match step {
            Step::Batch(batch) => {
                let header = &batch.header;
                // While the first batch is looked for, the position is behind it or in it.
                let missed = cursor.next_lsn().is_none() && header.first_lsn > self.position;
                if missed {
                    return Err(self.damage(None)?);
                }
                if header.count > 0 && header.last_lsn() > self.durable {
                    // It was read before the whole of it was durable.
                    self.durable = self.watermark()?.max(self.durable);
                    if header.last_lsn() > self.durable {
                        return Ok(false);
                    }
                    if let Some(cursor) = &mut self.cursor {
                        cursor.invalidate();
                    }
                    return Ok(true);
                }
                cursor.accept(&batch);
                if header.count > 0 && header.last_lsn() >= self.position {
                    let payload = BATCH_HEADER_BYTES..BATCH_HEADER_BYTES;
                    self.batch = Some(Unread { batch, index: 0, payload });
                }
                Ok(true)
            }
            Step::Stop(stop) => {
                if self.cross()? || self.replaced()? || self.skip_damage()? {
                    return Ok(true);
                }
                Err(self.damage(Some(stop))?)
            }
        }
    }

    /// Goes on in the next segment, if the chain does.
    fn cross(&mut self) -> Result<bool, ReadError> {
        let Some(cursor) = &mut self.cursor else { return Ok(false) };
        let store = &*self.store;
        let epoch = cursor.segment().epoch;
        let Some((next, file)) = Segment::open_if_there(store, epoch + 1)? else {
            return Ok(false);
        };
        if next.header.resume.is_some()
            && cursor.next_lsn().is_some_and(|lsn| lsn >= next.header.first_lsn)
        {
            // It may have appeared after this segment was entered. Then records from behind the end
            // that it sets may have been read here: it holds the same ones again.
            self.cursor = self.enter(epoch + 1)?.map(|(cursor, _)| cursor);
            return Ok(true);
        }
        let after = Segment::open_if_there(store, epoch + 2)?;
        let limit = next.limit(after.as_ref().map(|(segment, _)| &segment.header));
        let crossing =
            cursor.cross(&next, file, limit).map_err(|e| read_failed(store, epoch + 1, e))?;
        Ok(crossing == Crossing::Entered)
    }

    /// Whether recovery, in another process, put a new file in the place of the one that is open;
    /// then reading goes on there.
    fn replaced(&mut self) -> Result<bool, ReadError> {
        let Some(cursor) = &self.cursor else { return Ok(false) };
        let epoch = cursor.segment().epoch;
        let Some((now, _)) = Segment::open_if_there(&*self.store, epoch)? else { return Ok(false) };
        if now.header.salt == cursor.segment().header.salt {
            return Ok(false);
        }
        match self.enter(epoch)? {
            Some((cursor, first)) if first <= self.position => {
                self.cursor = Some(cursor);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Passes over damage to records before the position: they were not asked for.
    fn skip_damage(&mut self) -> Result<bool, ReadError> {
        let Some(cursor) = &self.cursor else { return Ok(false) };
        if cursor.next_lsn().is_some_and(|lsn| lsn >= self.position) {
            return Ok(false);
        }
        let (segment, from, limit) = (cursor.segment().clone(), cursor.offset(), cursor.limit());
        let position = self.position;
        let block = u64::from(segment.header.block_bytes);
        let (file, io_block_bytes) = self.open_again(&segment)?;
        let sweep = scan::sweep(&file, &segment, io_block_bytes, from + block, limit, |header| {
            header.first_lsn <= position
        })
        .map_err(|e| read_failed(&*self.store, segment.epoch, e))?;
        if let Some(found) = sweep.found {
            let cursor = BatchCursor::new(
                file,
                segment.clone(),
                io_block_bytes,
                limit,
                found.offset,
                None,
                None,
            )
            .map_err(|e| read_failed(&*self.store, segment.epoch, e))?;
            self.cursor = Some(cursor);
            return Ok(true);
        }
        match self.enter(segment.epoch + 1)? {
            Some((cursor, first)) if first <= position => {
                self.cursor = Some(cursor);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// What is lost where the chain broke, as an error.
    fn damage(&self, stop: Option<Stop>) -> Result<ReadError, ReadError> {
        let Some(cursor) = &self.cursor else {
            return Ok(ReadError::NotFound { dir: segment::dir_path(&*self.store) });
        };
        let segment = cursor.segment();
        let lost_from = cursor.next_lsn().unwrap_or(0).max(self.position);
        let (file, io_block_bytes) = self.open_again(segment)?;
        let from = cursor.offset();
        let sweep = scan::sweep(&file, segment, io_block_bytes, from, cursor.limit(), |header| {
            header.first_lsn > lost_from
        })
        .map_err(|e| read_failed(&*self.store, segment.epoch, e))?;
        let next = match &sweep.found {
            Some(found) => Some(found.first_lsn),
            None => self.first_lsn_from(segment.epoch + 1)?.filter(|&lsn| lsn > lost_from),
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
            segment: segment::segment_path(&*self.store, epoch),
            offset,
            lost: Some((Lsn::new(lost_from), Lsn::new(lost_to))),
            detail,
        }))
    }
}

impl Iterator for Reader {
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

fn open_failed(dir: &Path, error: OpenError) -> ReadError {
    match error {
        OpenError::NotFound { dir } => ReadError::NotFound { dir },
        OpenError::Io(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
            ReadError::NotFound { dir: dir.to_owned() }
        }
        OpenError::Io(error) => ReadError::Io(error),
        OpenError::Damaged(damage) => ReadError::Damaged(damage),
        OpenError::Foreign { path, reason } => ReadError::Foreign { path, reason },
        other => ReadError::Io(IoError::new("open", dir, std::io::Error::other(other.to_string()))),
    }
}

fn read_failed(store: &dyn Store, epoch: u64, error: std::io::Error) -> ReadError {
    ReadError::Io(IoError::new("read", segment::segment_path(store, epoch), error))
}
