//! The footer of a sealed segment: what it holds, and a sparse index of its batches.
//!
//! It stands in the last [`footer_bytes`] of the segment's file, which no batch ever takes, and is
//! written in the background once the log has moved on. It is a cache: where it is missing or
//! damaged, the batches tell the same. So it needs no sync of its own.
//!
//! ```text
//! footer  ┌ head 112 B ┬ entry 24 B × count ┬ zeros ┐     at segment_bytes − footer_bytes
//! ```

use crate::frame::{
    BatchContext, LogId, NUMBER_MAX, SegmentHeader, crc32c, get_u32, get_u64, is_zero, put_u32,
    put_u64,
};

/// Most bytes that a footer takes.
pub(crate) const FOOTER_BYTES_MAX: u64 = 64 << 10;
const HEAD_BYTES: usize = 112;
const ENTRY_BYTES: usize = 24;
const MAGIC: [u8; 4] = *b"ULf1";

/// Where a batch stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IndexEntry {
    /// Number of its first record.
    pub(crate) first_lsn: u64,
    /// The writer's clock when it was sealed, nanoseconds since the Unix epoch.
    pub(crate) wall_ns: u64,
    /// Its offset in the segment, in bytes.
    pub(crate) offset: u64,
}

/// What a footer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Footer {
    /// The segment's identity.
    pub(crate) context: BatchContext,
    /// Number of the first record in the segment.
    pub(crate) first_lsn: u64,
    /// Number of the first record behind it.
    pub(crate) next_lsn: u64,
    /// Where its batches end.
    pub(crate) end_offset: u64,
    /// Header checksum of its last batch.
    pub(crate) end_crc: u32,
    /// Clock of its first and of its last batch.
    pub(crate) first_wall_ns: u64,
    /// See `first_wall_ns`.
    pub(crate) last_wall_ns: u64,
    /// Bytes of all its payloads.
    pub(crate) payload_bytes: u64,
    /// Batches that stand about evenly apart, the first one of the segment first.
    pub(crate) entries: Vec<IndexEntry>,
}

/// Bytes at the end of a segment that are kept for its footer: a 4096th of it, at least a block.
pub(crate) fn footer_bytes(segment_bytes: u64, block_bytes: u32) -> u64 {
    let block = u64::from(block_bytes);
    (segment_bytes / 4096).min(FOOTER_BYTES_MAX).next_multiple_of(block).max(block)
}

/// Bytes from one entry to the next, so that all entries of a segment fit its footer.
pub(crate) fn stride_bytes(header: &SegmentHeader) -> u64 {
    let room = footer_bytes(header.segment_bytes, header.block_bytes) as usize - HEAD_BYTES;
    header.segment_bytes.div_ceil((room / ENTRY_BYTES) as u64)
}

/// Offset of a segment's footer.
pub(crate) fn footer_offset(header: &SegmentHeader) -> u64 {
    header.segment_bytes - footer_bytes(header.segment_bytes, header.block_bytes)
}

impl Footer {
    /// The footer's bytes, written over the whole of `out`, which is [`footer_bytes`] long. Entries
    /// beyond what fits are left out.
    pub(crate) fn encode(&self, out: &mut [u8]) {
        out.fill(0);
        let count = self.entries.len().min((out.len() - HEAD_BYTES) / ENTRY_BYTES);
        out[0..4].copy_from_slice(&MAGIC);
        out[8..24].copy_from_slice(&self.context.log_id.0);
        put_u64(out, 24, self.context.epoch);
        put_u64(out, 32, self.context.salt);
        put_u64(out, 40, self.first_lsn);
        put_u64(out, 48, self.next_lsn);
        put_u64(out, 56, self.end_offset);
        put_u64(out, 64, self.first_wall_ns);
        put_u64(out, 72, self.last_wall_ns);
        put_u64(out, 80, self.payload_bytes);
        put_u32(out, 88, self.end_crc);
        put_u32(out, 92, count as u32);
        // Bytes 96..112 are reserved and zero.
        for (index, entry) in self.entries.iter().take(count).enumerate() {
            let at = HEAD_BYTES + index * ENTRY_BYTES;
            put_u64(out, at, entry.first_lsn);
            put_u64(out, at + 8, entry.wall_ns);
            put_u64(out, at + 16, entry.offset);
        }
        let crc = crc32c(&out[8..]);
        put_u32(out, 4, crc);
    }

    /// Reads the footer of the segment with this header. None: there is none, or not of this life of
    /// the file. What it says has its order checked, and lies inside the segment.
    pub(crate) fn decode(bytes: &[u8], header: &SegmentHeader) -> Option<Footer> {
        let whole = footer_bytes(header.segment_bytes, header.block_bytes) as usize;
        let bytes = bytes.get(..whole)?;
        if bytes[..4] != MAGIC || get_u32(bytes, 4) != crc32c(&bytes[8..]) {
            return None;
        }
        let mut log_id = [0; 16];
        log_id.copy_from_slice(&bytes[8..24]);
        let context = BatchContext {
            log_id: LogId(log_id),
            epoch: get_u64(bytes, 24),
            salt: get_u64(bytes, 32),
        };
        if context != BatchContext::from(header) {
            return None;
        }
        let count = get_u32(bytes, 92) as usize;
        if count > (bytes.len() - HEAD_BYTES) / ENTRY_BYTES
            || !is_zero(&bytes[96..HEAD_BYTES])
            || !is_zero(&bytes[HEAD_BYTES + count * ENTRY_BYTES..])
        {
            return None;
        }
        let entry = |index: usize| {
            let at = HEAD_BYTES + index * ENTRY_BYTES;
            IndexEntry {
                first_lsn: get_u64(bytes, at),
                wall_ns: get_u64(bytes, at + 8),
                offset: get_u64(bytes, at + 16),
            }
        };
        let footer = Footer {
            context,
            first_lsn: get_u64(bytes, 40),
            next_lsn: get_u64(bytes, 48),
            end_offset: get_u64(bytes, 56),
            end_crc: get_u32(bytes, 88),
            first_wall_ns: get_u64(bytes, 64),
            last_wall_ns: get_u64(bytes, 72),
            payload_bytes: get_u64(bytes, 80),
            entries: (0..count).map(entry).collect(),
        };
        footer.is_ordered(header).then_some(footer)
    }

    fn is_ordered(&self, header: &SegmentHeader) -> bool {
        let block = u64::from(header.block_bytes);
        let rising = self.entries.windows(2).all(|pair| {
            pair[0].first_lsn <= pair[1].first_lsn
                && pair[0].wall_ns <= pair[1].wall_ns
                && pair[0].offset < pair[1].offset
        });
        let inside = self.entries.iter().all(|entry| {
            entry.offset.is_multiple_of(block)
                && (header.data_offset()..self.end_offset).contains(&entry.offset)
                && (self.first_lsn..=self.next_lsn).contains(&entry.first_lsn)
        });
        rising
            && inside
            && self.first_lsn <= self.next_lsn
            && self.next_lsn <= NUMBER_MAX
            && self.end_offset <= header.segment_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            log_id: LogId([7; 16]),
            epoch: 3,
            salt: 9,
            block_bytes: 512,
            segment_bytes: 64 << 10,
            created_wall_ns: 1,
            first_lsn: 0,
            resume: None,
            generation: 0,
            truncated_after: 0,
            recycled: false,
        }
    }

    fn footer() -> Footer {
        let entry = |index: u64| IndexEntry {
            first_lsn: 10 + index,
            wall_ns: index,
            offset: 1024 + 512 * index,
        };
        Footer {
            context: BatchContext::from(&header()),
            first_lsn: 10,
            next_lsn: 40,
            end_offset: 30000,
            end_crc: 77,
            first_wall_ns: 5,
            last_wall_ns: 6,
            payload_bytes: 1234,
            entries: (0..16).map(entry).collect(),
        }
    }

    #[test]
    fn a_footer_comes_back() {
        let mut bytes = vec![0xff; 512];
        footer().encode(&mut bytes);
        assert_eq!(Footer::decode(&bytes, &header()), Some(footer()));
    }

    #[test]
    fn another_life_or_any_flipped_byte_is_no_footer() {
        let mut bytes = vec![0; 512];
        footer().encode(&mut bytes);
        let other = SegmentHeader { salt: 10, ..header() };
        assert_eq!(Footer::decode(&bytes, &other), None);
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_eq!(Footer::decode(&bytes, &header()), None, "byte {at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn all_entries_of_a_segment_fit() {
        for (segment_bytes, block_bytes) in
            [(64 << 10, 512), (64 << 10, 4096), (64 << 20, 4096), (4096 << 20, 4096)]
        {
            let header = SegmentHeader { segment_bytes, block_bytes, ..header() };
            let room = footer_bytes(segment_bytes, block_bytes) as usize - HEAD_BYTES;
            assert!(segment_bytes / stride_bytes(&header) <= (room / ENTRY_BYTES) as u64);
        }
    }
}
