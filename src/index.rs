//! The sparse index of the live segment: made by the writer as it goes, looked at by readers of this
//! process, and written as the segment's footer when the log moves on.

use std::sync::{Mutex, PoisonError};

use crate::footer::{self, Footer, IndexEntry};
use crate::frame::{BatchContext, BatchHeader, SegmentHeader};

/// What a footer will say of the segment that is being written.
#[derive(Clone, Debug)]
pub(crate) struct SegmentIndex {
    footer: Footer,
    stride_bytes: u64,
    /// A batch at this offset or behind it gets the next entry.
    due_offset: u64,
}

impl SegmentIndex {
    /// That of a segment without batches.
    pub(crate) fn new(header: &SegmentHeader, next_lsn: u64) -> Self {
        SegmentIndex {
            footer: Footer {
                context: BatchContext::from(header),
                first_lsn: next_lsn,
                next_lsn,
                end_offset: header.data_offset(),
                end_crc: 0,
                first_wall_ns: 0,
                last_wall_ns: 0,
                payload_bytes: 0,
                entries: Vec::new(),
            },
            stride_bytes: footer::stride_bytes(header),
            due_offset: 0,
        }
    }

    /// Takes note of the next batch: its header, checksum and end. True when it got an entry.
    pub(crate) fn add(&mut self, batch: &BatchHeader, crc: u32, end: u64) -> bool {
        let footer = &mut self.footer;
        if footer.entries.is_empty() {
            footer.first_lsn = batch.first_lsn;
            footer.first_wall_ns = batch.wall_ns;
        }
        footer.next_lsn = batch.last_lsn() + 1;
        footer.last_wall_ns = batch.wall_ns;
        footer.end_offset = end;
        footer.end_crc = crc;
        footer.payload_bytes += u64::from(batch.payload_bytes);
        if batch.offset < self.due_offset {
            return false;
        }
        self.due_offset = batch.offset + self.stride_bytes;
        footer.entries.push(IndexEntry {
            first_lsn: batch.first_lsn,
            wall_ns: batch.wall_ns,
            offset: batch.offset,
        });
        true
    }

    pub(crate) fn footer(&self) -> &Footer {
        &self.footer
    }
}

/// The entries of the live segment, for readers of this process. The writer never waits for them: while
/// one looks, it tries again with the next entry.
pub(crate) struct LiveIndex {
    shown: Mutex<Shown>,
}

struct Shown {
    context: BatchContext,
    entries: Vec<IndexEntry>,
}

impl LiveIndex {
    pub(crate) fn new(index: &SegmentIndex) -> Self {
        let footer = index.footer();
        let shown = Shown { context: footer.context, entries: footer.entries.clone() };
        LiveIndex { shown: Mutex::new(shown) }
    }

    /// Shows what the writer has noted, unless somebody is looking just now.
    pub(crate) fn show(&self, index: &SegmentIndex) {
        let Ok(mut shown) = self.shown.try_lock() else { return };
        let footer = index.footer();
        if shown.context != footer.context {
            shown.context = footer.context;
            shown.entries.clear();
        }
        let known = shown.entries.len();
        shown.entries.extend_from_slice(footer.entries.get(known..).unwrap_or_default());
    }

    /// The entries of the segment, if it is the live one. The last ones may be missing.
    pub(crate) fn entries(&self, context: &BatchContext) -> Option<Vec<IndexEntry>> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        (shown.context == *context).then(|| shown.entries.clone())
    }
}
