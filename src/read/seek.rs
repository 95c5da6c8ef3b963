//! Finding the segment that a reader starts in.

use std::sync::Arc;

use super::{Reader, read_failed};
use crate::disk::{Access, File};
use crate::error::ReadError;
use crate::recovery;
use crate::scan::BatchCursor;
use crate::segment::{self, ScanError, Segment};

impl Reader {
    /// A cursor at the start of the segment that holds the position, or of one shortly before it.
    pub(super) fn locate(&self) -> Result<BatchCursor, ReadError> {
        let epochs = segment::list_segments(&*self.store)?;
        let (mut low, mut high) = (0, epochs.len());
        // The segment at `low` starts at or before the position, the one at `high` does not.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.first_lsn_from(epochs[middle])? {
                Some(first) if first <= self.position => low = middle,
                _ => high = middle,
            }
        }
        let not_found = || ReadError::NotFound { dir: segment::dir_path(&*self.store) };
        let epoch = *epochs.get(low).ok_or_else(not_found)?;
        match self.enter(epoch)? {
            Some((cursor, _)) => Ok(cursor),
            None => Err(not_found()),
        }
    }

    /// A cursor at the start of a segment, with the number of the first record there or behind it.
    pub(super) fn enter(&self, epoch: u64) -> Result<Option<(BatchCursor, u64)>, ReadError> {
        let store = &*self.store;
        let Some((segment, file)) = Segment::open_if_there(store, epoch)? else { return Ok(None) };
        let Some(first) = self.first_lsn_from(epoch)? else { return Ok(None) };
        let next = Segment::open_if_there(store, epoch + 1)?;
        let limit = segment.limit(next.as_ref().map(|(segment, _)| &segment.header));
        let header = segment.header;
        let cursor = BatchCursor::new(
            file,
            segment,
            store.facts().block_bytes,
            limit,
            header.data_offset(),
            (header.first_lsn != 0).then_some(header.first_lsn),
            header.resume.map(|resume| resume.prev_batch_crc),
        )
        .map_err(|e| read_failed(store, epoch, e))?;
        Ok(Some((cursor, first)))
    }

    /// Number of the first record that the log holds.
    pub(super) fn first_lsn(&self) -> Result<Option<u64>, ReadError> {
        match segment::list_segments(&*self.store)?.first() {
            Some(&epoch) => self.first_lsn_from(epoch),
            None => Ok(None),
        }
    }

    /// Number of the first record in this segment or behind it, where any tells.
    pub(super) fn first_lsn_from(&self, epoch: u64) -> Result<Option<u64>, ReadError> {
        let mut epoch = epoch;
        while let Some((segment, _)) = Segment::open_if_there(&*self.store, epoch)? {
            if let Some(first) = recovery::first_lsn_of(&*self.store, &segment)? {
                return Ok(Some(first));
            }
            epoch += 1;
        }
        Ok(None)
    }

    /// A segment's file once more, for a look that leaves the cursor alone.
    pub(super) fn open_again(
        &self,
        segment: &Segment,
    ) -> Result<(Arc<dyn File>, usize), ScanError> {
        let file = segment::open_file(&*self.store, segment.epoch, Access::Read)?;
        Ok((file, self.store.facts().block_bytes))
    }
}
