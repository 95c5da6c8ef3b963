//! [`Reader`]: the records of a log in order, durable ones only, each checksum verified.
//!
//! A reader shares nothing with the writer but the durable watermark: it reads the segment files.
//! What it parses it has read after the watermark had passed it, so a batch that is half written is
//! never looked at.

mod back;
mod chain;
mod open;
mod seek;
#[cfg(test)]
mod tests;
mod view;
mod watermark;

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

pub use back::BackReader;
pub(crate) use watermark::Watermark;

use crate::disk::Store;
use crate::error::{IoError, OpenError, ReadError};
use crate::extent::Cut;
use crate::frame::{self, TABLE_ENTRY_BYTES};
use crate::lsn::Lsn;
use crate::scan::{BatchCursor, Placed};
use crate::segment::{self, Opened};
use view::{Bounds, View};

/// Reads a log from left to right, from any number on, while it is written or not.
///
/// Only durable records are returned. A reader keeps 64 KiB to 1 MiB of the log in memory, or one batch
/// where that is larger. One that has read 4 MiB in sequence reads ahead, on a thread of its own and
/// with 6 MiB more, until it has caught up or is dropped.
///
/// As an iterator it yields `(Lsn, Vec<u8>)` and copies each payload;
/// [`next_record`](Reader::next_record) does not copy. The iterator ends where nothing more is
/// durable *now*, and may yield more later; after an error it has ended for good.
///
/// When the log is trimmed beyond a reader, it gets [`ReadError::Trimmed`]. When the log is truncated, a
/// reader that has read what was cut gets [`ReadError::Truncated`], and one before that place goes on. In
/// the process that writes, no record comes after it was cut; elsewhere, the few that a reader has in
/// memory may.
pub struct Reader {
    view: View,
    /// Number of the record to return next.
    position: u64,
    /// Everything up to this number was durable before anything in the cursor was read.
    durable: u64,
    cursor: Option<BatchCursor>,
    batch: Option<Unread>,
    /// The segment that is read ahead behind the cursor's.
    next: Option<Opened>,
    /// The segment for which that was tried.
    next_of: u64,
    /// What the cursor had read when it was last looked whether the log is still the same.
    checked_bytes: u64,
    failed: bool,
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
    pub(crate) fn new(lsn: Lsn, payload: &'a [u8], wall_ns: u64) -> Record<'a> {
        Record { lsn, payload, wall_ns }
    }

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
    /// The next record; `None` when nothing more is durable now. Blocks while it reads from the disk,
    /// never for a record to come. Later calls may give more: a reader
    /// at the end may be asked again and again. After an error it stays where it is.
    ///
    /// # Errors
    /// Damage to durable records, with the numbers lost where they can be known (reading can go on
    /// in a new reader from the number behind them), records that are not in the log any more
    /// ([`ReadError::Trimmed`], [`ReadError::Truncated`]), or a failed system call.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        Ok(if self.advance()? { self.current() } else { None })
    }

    /// The record that [`advance`](Self::advance) stepped to.
    pub(crate) fn current(&self) -> Option<Record<'_>> {
        let (unread, cursor) = (self.batch.as_ref()?, self.cursor.as_ref()?);
        let payload = cursor.held(&unread.batch, unread.payload.clone());
        Some(Record::new(Lsn::new(self.position - 1), payload, unread.batch.header.wall_ns))
    }

    /// Whether the next record is of a batch that is in memory, and was durable when it was read.
    pub(crate) fn holds_next(&self) -> bool {
        self.position <= self.durable
            && self.batch.as_ref().is_some_and(|unread| unread.index < unread.batch.header.count)
    }

    /// The number of the record that [`next_record`](Self::next_record) returns next.
    pub fn next_lsn(&self) -> Lsn {
        Lsn::new(self.position)
    }

    /// Steps to the next record, which is then the last that `batch` gave. False: there is none.
    pub(crate) fn advance(&mut self) -> Result<bool, ReadError> {
        loop {
            if let Some(shared) = self.view.watermark.live()
                && shared.extent.generation() > self.view.generation
            {
                self.look_again()?;
            }
            if self.batch.as_ref().is_some_and(|unread| unread.index == unread.batch.header.count) {
                self.batch = None;
            }
            if self.position > self.durable && !self.refresh()? {
                return Ok(false);
            }
            let (Some(unread), Some(cursor)) = (&mut self.batch, &self.cursor) else {
                match self.next_batch() {
                    Ok(true) => continue,
                    Ok(false) => return Ok(false),
                    Err(error) => {
                        self.explain(error)?;
                        continue;
                    }
                }
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
        if self.view.watermark.live().is_none() {
            self.look_again()?;
        }
        if self.view.watermark.is_costly() && self.nothing_new()? {
            return Ok(false);
        }
        loop {
            let durable = self.view.watermark.durable()?;
            if self.view.watermark.live().is_some() && self.look_again()? {
                continue;
            }
            if self.position > durable || !self.is_told_of_cut() {
                return Ok(false);
            }
            self.durable = durable;
            break;
        }
        if self.batch.is_none()
            && let Some(cursor) = &mut self.cursor
        {
            // What was read before may have been half written.
            cursor.invalidate();
        }
        Ok(true)
    }

    /// Whether the log knows of the truncation that a segment has told the reader of: before that, its
    /// watermark may be that of the records that were cut.
    fn is_told_of_cut(&self) -> bool {
        let live = self.view.watermark.live();
        live.is_none_or(|shared| shared.extent.generation() >= self.view.generation)
    }

    /// Looks again at what the log holds. True: a truncation cut what this reader has not reached, and
    /// it looks for its place anew.
    fn look_again(&mut self) -> Result<bool, ReadError> {
        let bounds = self.view.glance()?;
        self.obey(&bounds)
    }

    fn obey(&mut self, bounds: &Bounds) -> Result<bool, ReadError> {
        if let Some(cut) = self.view.cut(bounds)? {
            self.follow_cut(cut)?;
            return Ok(true);
        }
        if self.position < bounds.first_lsn {
            return Err(ReadError::Trimmed { first: Lsn::new(bounds.first_lsn) });
        }
        Ok(false)
    }

    /// Damage in a file that the log has given up meanwhile is none: what the log holds now explains it,
    /// or the error stands. Ok: there was a truncation, and the reader looks for its place anew.
    fn explain(&mut self, error: ReadError) -> Result<(), ReadError> {
        if !matches!(error, ReadError::Damaged(_)) {
            return Err(error);
        }
        let Ok(bounds) = Bounds::on_disk(&*self.view.store) else { return Err(error) };
        if self.obey(&bounds)? { Ok(()) } else { Err(error) }
    }

    fn follow_cut(&mut self, cut: Cut) -> Result<(), ReadError> {
        if self.position > cut.after + 1 {
            return Err(ReadError::Truncated { last: Lsn::new(cut.after) });
        }
        self.view.generation = cut.generation;
        // What follows the cut has the numbers of what was cut, and is not durable for that.
        self.durable = self.durable.min(cut.after);
        self.leave();
        Ok(())
    }

    /// Forgets where it stands; it is looked for by number again.
    fn leave(&mut self) {
        self.cursor = None;
        self.batch = None;
        self.next = None;
        self.next_of = 0;
        self.checked_bytes = u64::MAX;
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
