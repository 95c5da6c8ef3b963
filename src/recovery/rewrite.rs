//! Writing records again, in a segment that supersedes what follows them: what a crash left without a
//! voucher, and what a truncation keeps of a batch that it cuts.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::disk::{Access, File, Store};
use crate::error::{Damage, IoError};
use crate::frame::{
    self, BATCH_HEADER_BYTES, BatchContext, BatchHeader, SegmentHeader, TABLE_ENTRY_BYTES,
};
use crate::index::SegmentIndex;
use crate::lsn::Lsn;
use crate::mem::AlignedBuf;
use crate::scan::Placed;
use crate::segment::{self, ScanError, Segment};

/// What is to be written again.
pub(crate) struct Rest<'a> {
    pub(crate) segments: &'a [Segment],
    /// The batches, with the index of the segment that each stands in. They follow one another.
    pub(crate) batches: &'a VecDeque<(usize, Placed)>,
    /// The last record to keep; it may stand inside the last batch.
    pub(crate) last_lsn: u64,
    /// Records up to this one were durable before.
    pub(crate) vouched_lsn: u64,
}

/// Where the new segment's batches end.
pub(crate) struct End {
    pub(crate) offset: u64,
    pub(crate) prev_crc: u32,
    pub(crate) rewritten_records: u64,
    pub(crate) index: SegmentIndex,
}

/// Seals the records again, for the segment with this header, and behind them an empty batch that
/// vouches for them. The caller syncs the file before it gets its name.
pub(crate) fn write_again(
    store: &dyn Store,
    rest: &Rest<'_>,
    header: &SegmentHeader,
    into: &dyn File,
    wall_ns: u64,
) -> Result<End, ScanError> {
    let block = u64::from(header.block_bytes);
    let context = BatchContext::from(header);
    let path = store.path(&segment::tmp_name(header.epoch));
    let failed = |e| IoError::new("write records again to", &path, e);
    let mut end = End {
        offset: header.data_offset(),
        prev_crc: header.resume.map_or(0, |resume| resume.prev_batch_crc),
        rewritten_records: 0,
        index: SegmentIndex::new(header, header.first_lsn),
    };
    let mut next_lsn = header.first_lsn;
    let mut source: Option<(usize, Arc<dyn File>)> = None;
    for (index, batch) in rest.batches {
        if batch.header.count == 0 || batch.header.first_lsn > rest.last_lsn {
            continue;
        }
        let file = match &source {
            Some((open, file)) if open == index => file.clone(),
            _ => segment::open_file(store, rest.segments[*index].epoch, Access::Read)?,
        };
        let old = read_batch(store, &*file, &rest.segments[*index], batch)?;
        source = Some((*index, file));
        let (mut new, cut) = cut_batch(&old, &batch.header, rest.last_lsn).map_err(failed)?;
        let sealed = BatchHeader {
            context,
            offset: end.offset,
            // As it was: what the new segment adds is vouched for only by its empty batch.
            synced_lsn: rest.vouched_lsn.min(cut.first_lsn - 1),
            prev_crc: end.prev_crc,
            ..cut
        };
        end.prev_crc = sealed.encode(&mut new);
        let bytes = sealed.disk_bytes(block);
        into.write_at(end.offset, &new[..bytes as usize]).map_err(failed)?;
        end.offset += bytes;
        end.index.add(&sealed, end.prev_crc, end.offset);
        end.rewritten_records += u64::from(sealed.count);
        next_lsn = sealed.last_lsn() + 1;
    }
    // The file gets its name only after it was synced: whoever finds this batch finds those before
    // it on the disk.
    let vouch = BatchHeader {
        context,
        offset: end.offset,
        first_lsn: next_lsn,
        count: 0,
        payload_bytes: 0,
        wall_ns,
        synced_lsn: next_lsn - 1,
        prev_crc: end.prev_crc,
        table_crc: frame::crc32c(&[]),
    };
    let mut bytes = AlignedBuf::new(block as usize).map_err(failed)?;
    end.prev_crc = vouch.encode(&mut bytes);
    into.write_at(end.offset, &bytes[..block as usize]).map_err(failed)?;
    end.offset += block;
    end.index.add(&vouch, end.prev_crc, end.offset);
    Ok(end)
}

/// The image of a batch without the records behind `last_lsn`, with room for the padding to any
/// block, and the header that goes with it.
fn cut_batch(
    old: &[u8],
    header: &BatchHeader,
    last_lsn: u64,
) -> std::io::Result<(AlignedBuf, BatchHeader)> {
    let wanted = u32::try_from(last_lsn - header.first_lsn + 1).unwrap_or(u32::MAX);
    let count = header.count.min(wanted);
    let table_at = header.table_offset();
    let payload_bytes: u32 =
        (0..count as usize).map(|index| frame::table_entry(old, table_at, index).len).sum();
    let table = &old[table_at..table_at + count as usize * TABLE_ENTRY_BYTES];
    let cut = BatchHeader { count, payload_bytes, table_crc: frame::crc32c(table), ..*header };
    let mut new = AlignedBuf::new(cut.disk_bytes(frame::BLOCK_BYTES_MAX as u64) as usize)?;
    let payload_end = BATCH_HEADER_BYTES + payload_bytes as usize;
    new[BATCH_HEADER_BYTES..payload_end].copy_from_slice(&old[BATCH_HEADER_BYTES..payload_end]);
    let new_table = cut.table_offset();
    new[new_table..new_table + table.len()].copy_from_slice(table);
    Ok((new, cut))
}

/// Reads a batch again and verifies it again: it may have gone bad since.
fn read_batch(
    store: &dyn Store,
    file: &dyn File,
    segment: &Segment,
    batch: &Placed,
) -> Result<AlignedBuf, ScanError> {
    let path = segment::segment_path(store, segment.epoch);
    let failed = |e| IoError::new("read", &path, e);
    let offset = batch.header.offset;
    let len = (batch.end - offset) as usize;
    // The device may need a larger alignment than the log's block.
    let io_block = store.facts().block_bytes as u64;
    let start = offset - offset % io_block;
    let skip = (offset - start) as usize;
    let mut bytes =
        AlignedBuf::new((skip + len).next_multiple_of(io_block as usize)).map_err(failed)?;
    let read = file.read_at(start, &mut bytes).map_err(failed)?;
    let intact = read >= skip + len
        && BatchHeader::decode(&bytes[skip..], &batch.header.context, offset)
            .is_ok_and(|(header, _)| header == batch.header)
        && batch.header.verify_body(&bytes[skip..skip + len]).is_ok();
    if !intact {
        return Err(ScanError::Damaged(Damage {
            segment: path,
            offset,
            lost: Some((Lsn::new(batch.header.first_lsn), Lsn::new(batch.header.last_lsn()))),
            detail: "a batch that was valid a moment ago is not any more".to_owned(),
        }));
    }
    bytes.copy_within(skip..skip + len, 0);
    Ok(bytes)
}
