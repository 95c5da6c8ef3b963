//! The byte layout of format v1: segment headers and batches, described once for writer, recovery
//! and readers. FORMAT.md draws the same layout and works an example in hex.
//!
//! Everything is little endian. Every checksum is CRC-32C (Castagnoli).
//!
//! ```text
//! segment  ┌ block 0: header ┬ block 1: copy of it ┬ batch ┬ batch ┬ … ┬ zeros ┐   (a fixed size)
//! batch    ┌ header 96 B ┬ payloads, end to end ┬ 0..7 zeros ┬ table: (len, crc) × count ┬ zeros to the block ┐
//! ```

use core::fmt;

/// Version of the on-disk format that this code writes.
pub const FORMAT_VERSION: u32 = 1;

/// Length of a batch header in bytes.
pub const BATCH_HEADER_BYTES: usize = 96;
/// Length of one entry of a batch's record table in bytes: payload length, payload checksum.
pub const TABLE_ENTRY_BYTES: usize = 8;
/// Length of the meaningful part of a segment header in bytes; zeros fill its block.
pub const SEGMENT_HEADER_BYTES: usize = 136;
/// Copies of the segment header at the start of a segment, one block each.
pub const SEGMENT_HEADER_COPIES: u64 = 2;
/// Smallest block of a log in bytes.
pub const BLOCK_BYTES_MIN: usize = 512;
/// Largest block of a log in bytes.
pub const BLOCK_BYTES_MAX: usize = 65536;

/// No record's number, epoch, generation or sequence number reaches more: at a thousand million a second
/// that takes a century. What says otherwise is not accepted, so that counting on never wraps.
pub const NUMBER_MAX: u64 = 1 << 62;

const SEGMENT_MAGIC: [u8; 8] = *b"URINGLOG";
const BATCH_MAGIC: [u8; 4] = *b"ULb1";

const _: () = {
    assert!(BATCH_HEADER_BYTES.is_multiple_of(TABLE_ENTRY_BYTES));
    assert!(BATCH_HEADER_BYTES < BLOCK_BYTES_MIN);
    assert!(SEGMENT_HEADER_BYTES < BLOCK_BYTES_MIN);
};

/// CRC-32C of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// What tells one log from every other: 128 random bits drawn when it was created.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where the log went on after a crash: the segment that carries this in its header supersedes
/// whatever stands in the segment before it from `prev_end_offset` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resume {
    /// Offset, in the segment with the epoch before, of the first byte that no longer counts.
    pub prev_end_offset: u64,
    /// Header checksum of the last batch that still counts (0 when there is none).
    pub prev_batch_crc: u32,
}

/// The header of a segment, written and synced before its first batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The log that the segment belongs to.
    pub log_id: LogId,
    /// The segment's place in the log: 1 for the first, one more for each next.
    pub epoch: u64,
    /// Random number drawn for this life of the file; every batch header repeats it.
    pub salt: u64,
    /// Block size in bytes: a power of two, [`BLOCK_BYTES_MIN`] to [`BLOCK_BYTES_MAX`].
    pub block_bytes: u32,
    /// Size of the file in bytes while it is live: a multiple of the block.
    pub segment_bytes: u64,
    /// Wall clock when the header was made, nanoseconds since the Unix epoch.
    pub created_wall_ns: u64,
    /// Number of the first record, where it was known when the header was made (the first segment
    /// of a log, and one made by recovery); 0 otherwise.
    pub first_lsn: u64,
    /// Set in the header of a segment made by recovery after a crash, or by a truncation.
    pub resume: Option<Resume>,
    /// Truncations that the log had seen when the header was made. A segment of a lower generation
    /// than one with a lower epoch holds what a truncation cut.
    pub generation: u64,
    /// The last record that the truncation which began the generation kept; 0 in generation 0.
    pub truncated_after: u64,
    /// The file was another segment before: what stands behind the last batch may be of that life.
    pub recycled: bool,
}

impl SegmentHeader {
    /// Offset of the first batch: behind the header's copies.
    pub fn data_offset(&self) -> u64 {
        SEGMENT_HEADER_COPIES * u64::from(self.block_bytes)
    }

    /// Writes the header's block; `block` is one block long and wholly overwritten.
    pub fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        block[0..8].copy_from_slice(&SEGMENT_MAGIC);
        put_u32(block, 8, FORMAT_VERSION);
        put_u32(block, 12, self.block_bytes);
        block[16..32].copy_from_slice(&self.log_id.0);
        put_u64(block, 32, self.epoch);
        put_u64(block, 40, self.salt);
        put_u64(block, 48, self.segment_bytes);
        put_u64(block, 56, self.created_wall_ns);
        put_u64(block, 64, self.first_lsn);
        if let Some(resume) = self.resume {
            put_u32(block, 72, 1);
            put_u32(block, 76, resume.prev_batch_crc);
            put_u64(block, 80, resume.prev_end_offset);
        }
        put_u64(block, 88, self.generation);
        put_u64(block, 96, self.truncated_after);
        put_u32(block, 104, u32::from(self.recycled));
        // Bytes 108..132 are reserved and zero.
        let crc = crc32c(&block[..132]);
        put_u32(block, 132, crc);
    }

    /// Reads a header from one block. The rest of the block must be zero: every byte is covered.
    pub fn decode(block: &[u8]) -> Result<Self, SegmentHeaderError> {
        use SegmentHeaderError as E;
        if block.len() < BLOCK_BYTES_MIN {
            return Err(E::Short);
        }
        if block[..8] != SEGMENT_MAGIC {
            return Err(if is_zero(block) { E::Zero } else { E::Magic });
        }
        if get_u32(block, 132) != crc32c(&block[..132]) {
            return Err(E::Checksum);
        }
        let version = get_u32(block, 8);
        if version != FORMAT_VERSION {
            return Err(E::Version(version));
        }
        let block_bytes = get_u32(block, 12);
        if !valid_block_bytes(block_bytes as usize) {
            return Err(E::Field("block size"));
        }
        let covered = block.len().min(block_bytes as usize);
        if !is_zero(&block[SEGMENT_HEADER_BYTES..covered]) || !is_zero(&block[108..132]) {
            return Err(E::Padding);
        }
        let segment_bytes = get_u64(block, 48);
        // Both headers, a batch and a footer: less would put the footer before the file's start.
        let least = 4 * u64::from(block_bytes);
        if !segment_bytes.is_multiple_of(u64::from(block_bytes)) || segment_bytes < least {
            return Err(E::Field("segment size"));
        }
        let resume = match get_u32(block, 72) {
            0 if !is_zero(&block[76..88]) => return Err(E::Field("resume place")),
            0 => None,
            1 => Some(Resume {
                prev_end_offset: get_u64(block, 80),
                prev_batch_crc: get_u32(block, 76),
            }),
            _ => return Err(E::Field("resume flag")),
        };
        let recycled = match get_u32(block, 104) {
            0 => false,
            1 => true,
            _ => return Err(E::Field("recycled flag")),
        };
        // The epoch, the first record, the generation, and the last record that it kept.
        if [32, 64, 88, 96].iter().any(|&at| get_u64(block, at) > NUMBER_MAX)
            || segment_bytes > NUMBER_MAX
        {
            return Err(E::Field("numbers"));
        }
        if resume.is_some() && get_u64(block, 64) == 0 {
            return Err(E::Field("first record"));
        }
        let mut log_id = [0; 16];
        log_id.copy_from_slice(&block[16..32]);
        Ok(SegmentHeader {
            log_id: LogId(log_id),
            epoch: get_u64(block, 32),
            salt: get_u64(block, 40),
            block_bytes,
            segment_bytes,
            created_wall_ns: get_u64(block, 56),
            first_lsn: get_u64(block, 64),
            resume,
            generation: get_u64(block, 88),
            truncated_after: get_u64(block, 96),
            recycled,
        })
    }
}

/// Why a block is not a segment header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentHeaderError {
    /// Fewer bytes than a header takes.
    Short,
    /// The whole block is zero.
    Zero,
    /// Not a segment of this software.
    Magic,
    /// The checksum does not match.
    Checksum,
    /// A format version that this code does not know.
    Version(u32),
    /// The bytes that must be zero are not.
    Padding,
    /// A field outside its range, under a valid checksum.
    Field(&'static str),
}

impl fmt::Display for SegmentHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("the file is shorter than a segment header"),
            Self::Zero => f.write_str("the header block is all zeros"),
            Self::Magic => f.write_str("the header does not start with the segment magic"),
            Self::Checksum => f.write_str("the header's checksum does not match"),
            Self::Version(v) => write!(
                f,
                "format version {v} is unknown to this build, which reads {FORMAT_VERSION}"
            ),
            Self::Padding => f.write_str("bytes behind the header that must be zero are not"),
            Self::Field(name) => write!(f, "the header's {name} is out of range"),
        }
    }
}

/// What a segment lends to each of its batches: a batch that does not repeat it is not of this
/// life of this file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchContext {
    /// See [`SegmentHeader::log_id`].
    pub log_id: LogId,
    /// See [`SegmentHeader::epoch`].
    pub epoch: u64,
    /// See [`SegmentHeader::salt`].
    pub salt: u64,
}

impl From<&SegmentHeader> for BatchContext {
    fn from(header: &SegmentHeader) -> Self {
        BatchContext { log_id: header.log_id, epoch: header.epoch, salt: header.salt }
    }
}

/// The header of a batch. A batch with `count` 0 carries no record: it only vouches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// The segment's identity.
    pub context: BatchContext,
    /// The batch's own offset in the segment, in bytes.
    pub offset: u64,
    /// Number of the first record; for an empty batch, the number that the next record will get.
    pub first_lsn: u64,
    /// Records in the batch.
    pub count: u32,
    /// Bytes of all payloads together.
    pub payload_bytes: u32,
    /// Writer's wall clock at sealing, nanoseconds since the Unix epoch; never goes back.
    pub wall_ns: u64,
    /// Every record up to this number was durable when the batch was sealed: the batch vouches
    /// for them.
    pub synced_lsn: u64,
    /// Header checksum of the batch before (0 for a log's first).
    pub prev_crc: u32,
    /// Checksum of the record table.
    pub table_crc: u32,
}

impl BatchHeader {
    /// Number of the last record; `first_lsn - 1` for an empty batch.
    pub fn last_lsn(&self) -> u64 {
        // No decoded header reaches more than `NUMBER_MAX`.
        self.first_lsn.saturating_add(u64::from(self.count)).saturating_sub(1)
    }

    /// Bytes from the header's start to the end of the table.
    pub fn content_bytes(&self) -> u64 {
        batch_content_bytes(u64::from(self.payload_bytes), u64::from(self.count))
    }

    /// Bytes that the batch takes on disk, a multiple of the block.
    pub fn disk_bytes(&self, block_bytes: u64) -> u64 {
        self.content_bytes().next_multiple_of(block_bytes)
    }

    /// Offset of the record table from the header's start.
    pub fn table_offset(&self) -> usize {
        table_offset(self.payload_bytes as usize)
    }

    /// Writes the header into `out` (at least [`BATCH_HEADER_BYTES`]) and returns its checksum,
    /// the link that the next batch carries.
    pub fn encode(&self, out: &mut [u8]) -> u32 {
        out[0..4].copy_from_slice(&BATCH_MAGIC);
        out[8..24].copy_from_slice(&self.context.log_id.0);
        put_u64(out, 24, self.context.epoch);
        put_u64(out, 32, self.context.salt);
        put_u64(out, 40, self.offset);
        put_u64(out, 48, self.first_lsn);
        put_u32(out, 56, self.count);
        put_u32(out, 60, self.payload_bytes);
        put_u64(out, 64, self.wall_ns);
        put_u64(out, 72, self.synced_lsn);
        put_u32(out, 80, self.prev_crc);
        put_u32(out, 84, self.table_crc);
        put_u64(out, 88, 0);
        let crc = crc32c(&out[8..BATCH_HEADER_BYTES]);
        put_u32(out, 4, crc);
        crc
    }

    /// Reads the header of a batch of the segment `context` that stands at `offset`; also returns
    /// its checksum. `bytes` may be longer than a header.
    pub fn decode(
        bytes: &[u8],
        context: &BatchContext,
        offset: u64,
    ) -> Result<(Self, u32), BatchError> {
        use BatchError as E;
        if bytes.len() < BATCH_HEADER_BYTES {
            return Err(E::Short);
        }
        if bytes[..4] != BATCH_MAGIC {
            return Err(if is_zero(&bytes[..BATCH_HEADER_BYTES]) { E::Zero } else { E::Magic });
        }
        let crc = get_u32(bytes, 4);
        if crc != crc32c(&bytes[8..BATCH_HEADER_BYTES]) {
            return Err(E::HeaderChecksum);
        }
        let mut log_id = [0; 16];
        log_id.copy_from_slice(&bytes[8..24]);
        let header = BatchHeader {
            context: BatchContext {
                log_id: LogId(log_id),
                epoch: get_u64(bytes, 24),
                salt: get_u64(bytes, 32),
            },
            offset: get_u64(bytes, 40),
            first_lsn: get_u64(bytes, 48),
            count: get_u32(bytes, 56),
            payload_bytes: get_u32(bytes, 60),
            wall_ns: get_u64(bytes, 64),
            synced_lsn: get_u64(bytes, 72),
            prev_crc: get_u32(bytes, 80),
            table_crc: get_u32(bytes, 84),
        };
        if header.context != *context || header.offset != offset {
            return Err(E::OtherLife);
        }
        // The number behind the last record; both are far below where a sum could wrap.
        let behind = header.first_lsn.checked_add(u64::from(header.count));
        if header.first_lsn == 0
            || behind.is_none_or(|behind| behind > NUMBER_MAX)
            || header.synced_lsn >= header.first_lsn
            || get_u64(bytes, 88) != 0
            || (header.count == 0 && header.payload_bytes != 0)
        {
            return Err(E::Field);
        }
        Ok((header, crc))
    }

    /// Reads a header of whatever segment and place: who looks for lost segments finds it so.
    pub(crate) fn decode_any(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < BATCH_HEADER_BYTES || bytes[..4] != BATCH_MAGIC {
            return None;
        }
        let mut log_id = [0; 16];
        log_id.copy_from_slice(&bytes[8..24]);
        let context = BatchContext {
            log_id: LogId(log_id),
            epoch: get_u64(bytes, 24),
            salt: get_u64(bytes, 32),
        };
        Self::decode(bytes, &context, get_u64(bytes, 40)).ok().map(|(header, _)| header)
    }

    /// Checks everything behind the header: table, every payload, and that the padding is zero.
    /// `batch` is the whole batch as it stands on disk, [`disk_bytes`](Self::disk_bytes) long.
    pub fn verify_body(&self, batch: &[u8]) -> Result<(), BatchError> {
        let table_at = self.table_offset();
        let table_end = table_at + self.count as usize * TABLE_ENTRY_BYTES;
        if batch.len() < table_end {
            return Err(BatchError::Short);
        }
        if crc32c(&batch[table_at..table_end]) != self.table_crc {
            return Err(BatchError::TableChecksum);
        }
        let payload_end = BATCH_HEADER_BYTES + self.payload_bytes as usize;
        if !is_zero(&batch[payload_end..table_at]) || !is_zero(&batch[table_end..]) {
            return Err(BatchError::Padding);
        }
        let mut at = BATCH_HEADER_BYTES;
        for index in 0..self.count as usize {
            let entry = table_entry(batch, table_at, index);
            let end = at + entry.len as usize;
            if end > payload_end {
                return Err(BatchError::Field);
            }
            if crc32c(&batch[at..end]) != entry.crc {
                return Err(BatchError::PayloadChecksum { lsn: self.first_lsn + index as u64 });
            }
            at = end;
        }
        if at != payload_end {
            return Err(BatchError::Field);
        }
        Ok(())
    }
}

/// One entry of a batch's record table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableEntry {
    /// Payload length in bytes.
    pub len: u32,
    /// Payload checksum.
    pub crc: u32,
}

impl TableEntry {
    /// The entry as its eight bytes on disk, read as one little-endian number.
    pub fn to_bits(self) -> u64 {
        u64::from(self.len) | u64::from(self.crc) << 32
    }
}

/// Reads entry `index` of the table that starts at `table_at` in `batch`. The caller has checked
/// that the table lies inside `batch`.
pub fn table_entry(batch: &[u8], table_at: usize, index: usize) -> TableEntry {
    let at = table_at + index * TABLE_ENTRY_BYTES;
    TableEntry { len: get_u32(batch, at), crc: get_u32(batch, at + 4) }
}

/// Offset of the record table in a batch with this many payload bytes.
pub fn table_offset(payload_bytes: usize) -> usize {
    (BATCH_HEADER_BYTES + payload_bytes).next_multiple_of(TABLE_ENTRY_BYTES)
}

/// Bytes of a batch up to the end of its table.
pub fn batch_content_bytes(payload_bytes: u64, count: u64) -> u64 {
    (BATCH_HEADER_BYTES as u64 + payload_bytes).next_multiple_of(TABLE_ENTRY_BYTES as u64)
        + count * TABLE_ENTRY_BYTES as u64
}

/// Whether a block size is one that the format allows.
pub fn valid_block_bytes(block_bytes: usize) -> bool {
    block_bytes.is_power_of_two() && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes)
}

/// Why bytes are not a batch of this segment at this offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchError {
    /// Fewer bytes than the batch takes.
    Short,
    /// All zeros where the header would stand.
    Zero,
    /// No batch magic.
    Magic,
    /// The header's checksum does not match.
    HeaderChecksum,
    /// A valid header, but of another log, segment, life of the file, or offset.
    OtherLife,
    /// A field outside its range, under a valid checksum.
    Field,
    /// The record table's checksum does not match.
    TableChecksum,
    /// A payload's checksum does not match.
    PayloadChecksum {
        /// The record whose payload it is.
        lsn: u64,
    },
    /// Bytes that must be zero are not.
    Padding,
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("the segment ends inside the batch"),
            Self::Zero => f.write_str("zeros where a batch header should stand"),
            Self::Magic => f.write_str("no batch header"),
            Self::HeaderChecksum => f.write_str("the batch header's checksum does not match"),
            Self::OtherLife => {
                f.write_str("a batch header of another log, segment, life of the file, or offset")
            }
            Self::Field => f.write_str("a batch header field is out of range"),
            Self::TableChecksum => f.write_str("the record table's checksum does not match"),
            Self::PayloadChecksum { lsn } => {
                write!(f, "the payload checksum of record {lsn} does not match")
            }
            Self::Padding => f.write_str("padding bytes that must be zero are not"),
        }
    }
}

/// The file name of the segment with this epoch.
pub fn segment_name(epoch: u64) -> String {
    format!("{epoch:020}.seg")
}

/// The epoch of a segment's file name, where the name is one.
pub fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let epoch = (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())??;
    // The next epoch must be one, too.
    (epoch > 0 && epoch < NUMBER_MAX).then_some(epoch)
}

/// Whether every byte is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Folded in pieces, so that it compiles to vector code: this runs over every block of a
    // prepared segment at open.
    bytes.chunks(4096).all(|piece| piece.iter().fold(0, |acc, &byte| acc | byte) == 0)
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

#[cfg(test)]
mod tests;
