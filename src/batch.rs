//! Building a batch: payloads and their table, gathered into one aligned buffer, then sealed by a
//! header. frame.rs has the layout.

use crate::frame::{
    self, BATCH_HEADER_BYTES, BatchHeader, TABLE_ENTRY_BYTES, TableEntry, batch_content_bytes,
};
use crate::mem::AlignedBuf;

/// A batch being filled.
pub(crate) struct BatchBuilder {
    buf: AlignedBuf,
    /// Payload bytes so far.
    payload_bytes: usize,
    /// The table so far, in the byte order of the disk.
    table: Vec<[u8; TABLE_ENTRY_BYTES]>,
    first_lsn: u64,
    /// Calls of its producers that it holds: records, or batches of them.
    appends: u64,
    /// Bytes on disk that the batch may take: the buffer's length, or what is left of the segment.
    limit: usize,
}

/// What sealing writes into the header, beside what the batch itself knows.
pub(crate) struct Seal {
    pub(crate) context: frame::BatchContext,
    pub(crate) offset: u64,
    /// Number of the first record, or of the next one to come for an empty batch.
    pub(crate) first_lsn: u64,
    pub(crate) wall_ns: u64,
    pub(crate) synced_lsn: u64,
    pub(crate) prev_crc: u32,
    pub(crate) block_bytes: usize,
}

/// A sealed batch: the first `len` bytes of `buf` go to disk.
pub(crate) struct Sealed {
    pub(crate) buf: AlignedBuf,
    pub(crate) len: usize,
    pub(crate) header: BatchHeader,
    /// Checksum of the header.
    pub(crate) crc: u32,
}

impl BatchBuilder {
    pub(crate) fn new(buf: AlignedBuf) -> Self {
        let limit = buf.len();
        BatchBuilder { buf, payload_bytes: 0, table: Vec::new(), first_lsn: 0, appends: 0, limit }
    }

    /// Records so far.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn count(&self) -> usize {
        self.table.len()
    }

    /// Calls of producers so far.
    pub(crate) fn appends(&self) -> u64 {
        self.appends
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Bytes on disk that the batch may take from now on.
    pub(crate) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes.min(self.buf.len());
    }

    /// Whether `count` further records of `bytes` together fit.
    #[inline]
    pub(crate) fn fits(&self, bytes: usize, count: usize) -> bool {
        let content = batch_content_bytes(
            (self.payload_bytes + bytes) as u64,
            (self.table.len() + count) as u64,
        );
        content <= self.limit as u64
    }

    /// Adds a record. It [`fits`](Self::fits).
    #[inline]
    pub(crate) fn push(&mut self, lsn: u64, payload: &[u8], crc: u32) {
        if self.table.is_empty() {
            self.first_lsn = lsn;
        }
        let at = BATCH_HEADER_BYTES + self.payload_bytes;
        self.buf[at..at + payload.len()].copy_from_slice(payload);
        self.payload_bytes += payload.len();
        self.appends += 1;
        let entry = TableEntry { len: payload.len() as u32, crc };
        self.table.push(entry.to_bits().to_le_bytes());
    }

    /// Adds records whose payloads and table stand as they will on disk. They fit.
    pub(crate) fn push_many(&mut self, first_lsn: u64, payloads: &[u8], table: &[u8]) {
        if self.table.is_empty() {
            self.first_lsn = first_lsn;
        }
        let at = BATCH_HEADER_BYTES + self.payload_bytes;
        self.buf[at..at + payloads.len()].copy_from_slice(payloads);
        self.payload_bytes += payloads.len();
        self.appends += 1;
        let (entries, _) = table.as_chunks::<TABLE_ENTRY_BYTES>();
        self.table.extend_from_slice(entries);
    }

    /// Number of the first record.
    pub(crate) fn first_lsn(&self) -> u64 {
        self.first_lsn
    }

    /// Writes table, padding and header, and hands the buffer out. `spare` takes its place.
    pub(crate) fn seal(&mut self, seal: &Seal, spare: AlignedBuf) -> Sealed {
        let count = self.table.len() as u32;
        let payload_end = BATCH_HEADER_BYTES + self.payload_bytes;
        let table_at = frame::table_offset(self.payload_bytes);
        let table = self.table.as_flattened();
        self.buf[payload_end..table_at].fill(0);
        self.buf[table_at..table_at + table.len()].copy_from_slice(table);
        let buf = core::mem::replace(&mut self.buf, spare);
        let content =
            Content { count, payload_bytes: self.payload_bytes, table_crc: frame::crc32c(table) };
        self.table.clear();
        self.payload_bytes = 0;
        self.appends = 0;
        self.limit = self.buf.len();
        seal_image(buf, &content, seal)
    }
}

/// What a batch image holds between its header and its padding.
#[derive(Clone, Copy)]
pub(crate) struct Content {
    pub(crate) count: u32,
    pub(crate) payload_bytes: usize,
    pub(crate) table_crc: u32,
}

/// Writes padding and header around an image whose payloads and table are in place.
pub(crate) fn seal_image(mut buf: AlignedBuf, content: &Content, seal: &Seal) -> Sealed {
    let header = BatchHeader {
        context: seal.context,
        offset: seal.offset,
        first_lsn: seal.first_lsn,
        count: content.count,
        payload_bytes: content.payload_bytes as u32,
        wall_ns: seal.wall_ns,
        synced_lsn: seal.synced_lsn,
        prev_crc: seal.prev_crc,
        table_crc: content.table_crc,
    };
    let end = header.content_bytes() as usize;
    let len = header.disk_bytes(seal.block_bytes as u64) as usize;
    buf[end..len].fill(0);
    let crc = header.encode(&mut buf);
    Sealed { buf, len, header, crc }
}

/// A record or batch too large for a ring: laid out by its producer as it will stand on disk, with
/// room for the header in front. It is a disk batch of its own.
pub(crate) struct Large {
    pub(crate) buf: AlignedBuf,
    pub(crate) content: Content,
}

impl Large {
    /// Bytes of the buffer that a batch of these sizes needs.
    pub(crate) fn buf_bytes(payload_bytes: usize, count: usize, block_bytes: usize) -> usize {
        (batch_content_bytes(payload_bytes as u64, count as u64) as usize)
            .next_multiple_of(block_bytes)
    }
}

impl Content {
    /// Writes the table of a single record whose payload is in place behind the header's room.
    pub(crate) fn single(image: &mut [u8], payload_bytes: usize) -> Content {
        let crc = frame::crc32c(&image[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + payload_bytes]);
        let table_at = frame::table_offset(payload_bytes);
        let entry = TableEntry { len: payload_bytes as u32, crc }.to_bits().to_le_bytes();
        image[table_at..table_at + TABLE_ENTRY_BYTES].copy_from_slice(&entry);
        Content { count: 1, payload_bytes, table_crc: frame::crc32c(&entry) }
    }
}

/// Lays records out as a batch has them, payloads end to end, then the table, into `out`. False when
/// a record's `as_ref` gives another length than when the sizes were added up.
pub(crate) fn lay_out<R: AsRef<[u8]>>(
    records: &[R],
    payload_bytes: usize,
    out: &mut [u8],
    table_at: usize,
) -> bool {
    let mut at = 0;
    let mut entry_at = table_at;
    for record in records {
        let payload = record.as_ref();
        if payload.len() > payload_bytes - at {
            return false;
        }
        out[at..at + payload.len()].copy_from_slice(payload);
        let entry = TableEntry { len: payload.len() as u32, crc: frame::crc32c(payload) };
        out[entry_at..entry_at + TABLE_ENTRY_BYTES].copy_from_slice(&entry.to_bits().to_le_bytes());
        at += payload.len();
        entry_at += TABLE_ENTRY_BYTES;
    }
    out[at..table_at].fill(0);
    at == payload_bytes
}
