//! Where reading starts: at a number, so many from the end, or at a time; and newest first.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uringlog::{Lsn, ReadError, Reader};

use crate::records::Shown;

/// A reader of the last `n` records that are known to be durable, or of all where there are fewer.
pub fn last(dir: &Path, n: u64) -> Result<Reader, ReadError> {
    let found = uringlog::inspect(dir)?;
    let from = (found.vouched_lsn.get() + 1).saturating_sub(n).max(found.first_lsn.get());
    at_or_behind(dir, Lsn::new(from))
}

/// A reader of the records that were written at `time` or later.
pub fn since(dir: &Path, time: SystemTime) -> Result<Reader, ReadError> {
    let found = uringlog::inspect(dir)?;
    // The first record that is late enough lies in `low..=high`: times never go back.
    let (mut low, mut high) = (found.first_lsn.get(), found.vouched_lsn.get() + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let mut reader = at_or_behind(dir, Lsn::new(middle))?;
        match reader.next_record()? {
            Some(record) if record.written_at() < time => low = record.lsn().get() + 1,
            _ => high = middle,
        }
    }
    at_or_behind(dir, Lsn::new(low))
}

/// A reader from `from`, or from the log's start where that has moved behind it meanwhile.
fn at_or_behind(dir: &Path, from: Lsn) -> Result<Reader, ReadError> {
    match Reader::open_dir(dir, from) {
        Err(ReadError::Trimmed { .. }) => Reader::open_dir(dir, Lsn::NONE),
        opened => opened,
    }
}

/// Gives records newest first.
pub struct Back {
    dir: PathBuf,
    /// The record to give next, unless `read` holds it.
    next: u64,
    first: u64,
    /// Records at the end of what was not given yet, in the log's order.
    read: Vec<(Lsn, SystemTime, Vec<u8>)>,
    /// Records to read at once.
    step: u64,
}

/// Bytes that are read ahead, about.
const AHEAD_BYTES: u64 = 4 << 20;

impl Back {
    /// From the last durable record, or from `from`, down to the first.
    pub fn open(dir: &Path, from: Option<Lsn>) -> Result<Back, ReadError> {
        let found = uringlog::inspect(dir)?;
        let last = found.vouched_lsn.get();
        Ok(Back {
            dir: dir.to_owned(),
            next: from.map_or(last, |from| from.get().min(last)),
            first: found.first_lsn.get(),
            read: Vec::new(),
            step: 16,
        })
    }

    /// Hands the next record to `take`; false where there is none.
    pub fn next_record<T>(
        &mut self,
        take: impl FnOnce(Shown<'_>) -> T,
    ) -> Result<Option<T>, ReadError> {
        if self.read.is_empty() && self.next >= self.first.max(1) {
            self.read_ahead()?;
        }
        let Some((lsn, written_at, payload)) = self.read.pop() else { return Ok(None) };
        Ok(Some(take(Shown { lsn, written_at, payload: &payload })))
    }

    fn read_ahead(&mut self) -> Result<(), ReadError> {
        let from = (self.next + 1).saturating_sub(self.step).max(self.first);
        let mut reader = at_or_behind(&self.dir, Lsn::new(from))?;
        let mut bytes = 0;
        while let Some(record) = reader.next_record()? {
            if record.lsn().get() > self.next {
                break;
            }
            bytes += record.payload().len() as u64;
            self.read.push((record.lsn(), record.written_at(), record.payload().to_vec()));
        }
        let records = (self.read.len() as u64).max(1);
        self.step = (AHEAD_BYTES / (bytes / records).max(1)).clamp(1, 4096);
        self.next = from - 1;
        Ok(())
    }
}
