//! What the fuzz targets call: each decoder, and whole directories, on any bytes. Not for users; the
//! feature `fuzzing` is for `fuzz/` and for `tests/corpus.rs`, which replays the corpus through the same
//! functions.
//!
//! Each function panics where the library breaks its word: a panic, an index out of range, an
//! arithmetic overflow; a buffer out of proportion to the input; more reads than what is there
//! explains; bytes that are accepted and do not come back when they are encoded again.

mod directory;
mod log;
mod source;
mod store;

use std::cell::Cell;
use std::sync::Arc;

use crate::batch::{BatchBuilder, Seal};
use crate::disk::{Access, Store};
use crate::footer::{self, Footer};
use crate::frame::{
    self, BATCH_HEADER_BYTES, BLOCK_BYTES_MIN, BatchContext, BatchHeader, LogId, SegmentHeader,
    TABLE_ENTRY_BYTES, crc32c, get_u32, put_u32, put_u64,
};
use crate::mem::AlignedBuf;
use crate::scan::{self, BatchCursor, Step};
use crate::segment::{self, Segment};
use crate::slots::{self, Kind, SlotFile};
use crate::testing::MemStore;
use crate::{cursor, disk, mark, status};
use source::Source;

/// What runs a target on an input.
pub type Run = fn(&[u8]);

/// Every target: its name, and what runs it.
pub const TARGETS: [(&str, Run); 7] = [
    ("segment_header", segment_header),
    ("batch", batch),
    ("footer", footer),
    ("slots", slots),
    ("status", status),
    ("calibration", calibration),
    ("directory", directory::directory),
];

/// Runs a target by its name. False: there is none.
pub fn run(target: &str, input: &[u8]) -> bool {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    found.map(|(_, run)| run(input)).is_some()
}

thread_local! {
    static BUFFER_BYTES_MAX: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Called for each aligned buffer that is made. One that nothing in the input explains is a bug.
pub(crate) fn note_buffer(len: usize) {
    let max = BUFFER_BYTES_MAX.get();
    assert!(len <= max, "a buffer of {len} bytes, where {max} are the most");
}

/// Holds buffers to a size while it lives.
struct BufferLimit;

impl BufferLimit {
    /// What somebody needs who reads `present` bytes: the largest batch there, or a chunk of 1 MiB.
    fn of(present: usize) -> BufferLimit {
        BUFFER_BYTES_MAX.set(2 * present + (1 << 20) + (128 << 10));
        BufferLimit
    }
}

impl Drop for BufferLimit {
    fn drop(&mut self) {
        BUFFER_BYTES_MAX.set(usize::MAX);
    }
}

/// What opening and reading a directory may ask for.
struct Limits {
    calls: u64,
    bytes: u64,
}

impl Limits {
    /// A look at a log is retried a few times, and where nothing vouches for anything, the chain is
    /// followed from one segment further back each time.
    fn of(files: u64, present: u64) -> Limits {
        let looks = 40 * (files + 2);
        Limits {
            calls: looks * (files + 2) + looks * (present / BLOCK_BYTES_MIN as u64) / 8 + 4096,
            bytes: looks * present + (4 << 20),
        }
    }
}

/// A segment for targets that need one. Its salt and sizes do not matter, so they are always the same.
fn segment_of(block_bytes: u32, segment_bytes: u64) -> SegmentHeader {
    SegmentHeader {
        log_id: LogId([7; 16]),
        epoch: 3,
        salt: 0x5a17,
        block_bytes,
        segment_bytes,
        created_wall_ns: 1,
        first_lsn: 10,
        resume: None,
        generation: 0,
        truncated_after: 0,
        recycled: false,
    }
}

/// A block that may be a segment's header, and a file that starts with it.
fn segment_header(input: &[u8]) {
    let mut source = Source::new(input);
    let flags = source.byte();
    let mut bytes;
    if flags & 4 == 0 {
        bytes = source.rest().to_vec();
    } else {
        // A good one, with some fields overwritten.
        let block = 512 << (flags >> 4 & 7).min(3);
        bytes = vec![0; 2 * block as usize];
        segment_of(block, 1 << 20).encode(&mut bytes[..block as usize]);
        overwrite(&mut source, &mut bytes[..frame::SEGMENT_HEADER_BYTES]);
        if flags & 8 != 0 {
            // Only the second copy is good.
            bytes.copy_within(..block as usize, block as usize);
            repair_segment_header(&mut bytes[block as usize..]);
            bytes[..block as usize].fill(1);
        }
    }
    if flags & 1 != 0 && bytes.len() >= BLOCK_BYTES_MIN {
        repair_segment_header(&mut bytes);
    }
    if let Ok(header) = SegmentHeader::decode(&bytes) {
        let block = (header.block_bytes as usize).max(BLOCK_BYTES_MIN);
        let mut again = vec![0xff; block];
        header.encode(&mut again);
        let covered = bytes.len().min(block);
        same(&again[..covered], &bytes[..covered]);
        assert!(footer::footer_offset(&header) >= header.data_offset());
        assert!(footer::stride_bytes(&header) > 0);
        assert!(header.first_lsn <= frame::NUMBER_MAX && header.epoch <= frame::NUMBER_MAX);
    }
    // The same as a file, with a second copy that may be the one that counts.
    let _limit = BufferLimit::of(bytes.len());
    let io_block = if flags & 2 == 0 { 512 } else { 4096 };
    let store = MemStore::new(io_block);
    let epoch = if flags & 1 == 0 { 3 } else { epoch_in(&bytes) };
    if frame::parse_segment_name(&frame::segment_name(epoch)).is_none() {
        return;
    }
    store.put(&frame::segment_name(epoch), bytes);
    if let Ok((segment, file)) = Segment::open(&*store, epoch) {
        assert_eq!(segment.header.epoch, epoch);
        assert!(segment.limit(None) <= file.len().unwrap_or(0));
    }
}

fn epoch_in(bytes: &[u8]) -> u64 {
    bytes.get(32..40).map_or(1, |_| frame::get_u64(bytes, 32))
}

/// A segment's content behind its headers: one batch, or a chain of them.
fn batch(input: &[u8]) {
    let mut source = Source::new(input);
    let flags = source.byte();
    let block = if flags & 1 == 0 { 512 } else { 4096 };
    let header = segment_of(block, (64 << 10).max(4 * u64::from(block)));
    let start = header.data_offset() as usize;
    let mut bytes = vec![0; start];
    bytes.extend_from_slice(source.rest());
    bytes.truncate(header.segment_bytes as usize);
    if flags & 2 != 0 {
        repair_batches(&mut bytes, &header, flags & 4 != 0);
    }
    one_batch(&bytes[start..], &header);
    let _limit = BufferLimit::of(bytes.len());
    let store = MemStore::new(if flags & 8 == 0 { 512 } else { 4096 });
    let io_block = store.facts().block_bytes;
    let file_bytes = bytes.len() as u64;
    store.put("batches", bytes);
    let Ok(file) = store.open("batches", Access::Read) else { return };
    let segment = Segment { epoch: header.epoch, header, file_bytes };
    let limit = segment.limit(None);
    let cursor = BatchCursor::new(
        file.clone(),
        segment.clone(),
        io_block,
        limit,
        header.data_offset(),
        None,
        None,
    );
    let mut cursor = cursor.expect("memory");
    let mut before = cursor.offset();
    while let Step::Batch(batch) = cursor.peek().expect("memory does not fail") {
        assert!(batch.end > before && batch.end <= limit, "it goes forward, inside the file");
        let table_at = batch.header.table_offset();
        let held = cursor.held(&batch, 0..(batch.end - batch.header.offset) as usize).len();
        assert_eq!(held as u64, batch.end - batch.header.offset);
        assert!(table_at + batch.header.count as usize * TABLE_ENTRY_BYTES <= held);
        cursor.accept(&batch);
        before = batch.end;
    }
    let sweep = scan::sweep(&file, &segment, io_block, header.data_offset(), limit, |_| false);
    let sweep = sweep.expect("memory does not fail");
    assert!(sweep.nonzero_end <= limit && sweep.synced_lsn <= frame::NUMBER_MAX);
    cursor.move_to(header.data_offset(), None, None);
    let skipped = cursor.skip_to(|batch| batch.header.first_lsn > 40);
    skipped.expect("memory does not fail");
}

/// What is accepted as a batch is what its own records make when they are put together again.
fn one_batch(bytes: &[u8], segment: &SegmentHeader) {
    let context = BatchContext::from(segment);
    let offset = segment.data_offset();
    let block = u64::from(segment.block_bytes);
    let Ok((header, crc)) = BatchHeader::decode(bytes, &context, offset) else { return };
    let whole = header.disk_bytes(block);
    let Some(image) = usize::try_from(whole).ok().and_then(|whole| bytes.get(..whole)) else {
        // Cut short: it must say so, and not look behind the end.
        assert!(header.verify_body(bytes).is_err() || header.content_bytes() <= bytes.len() as u64);
        return;
    };
    if header.verify_body(image).is_err() {
        return;
    }
    let mut again = AlignedBuf::new(image.len()).expect("memory");
    again.fill(0xee);
    let mut builder = BatchBuilder::new(again);
    let mut at = BATCH_HEADER_BYTES;
    for index in 0..header.count as usize {
        let entry = frame::table_entry(image, header.table_offset(), index);
        let payload = &image[at..at + entry.len as usize];
        assert_eq!(crc32c(payload), entry.crc, "record {index}");
        builder.push(header.first_lsn + index as u64, payload, entry.crc);
        at += entry.len as usize;
    }
    let seal = Seal {
        context,
        offset,
        first_lsn: header.first_lsn,
        wall_ns: header.wall_ns,
        synced_lsn: header.synced_lsn,
        prev_crc: header.prev_crc,
        block_bytes: block as usize,
    };
    let sealed = builder.seal(&seal, AlignedBuf::new(0).expect("memory"));
    assert_eq!((sealed.len, sealed.crc, sealed.header), (image.len(), crc, header));
    same(&sealed.buf[..sealed.len], image);
}

/// The last bytes of a segment.
fn footer(input: &[u8]) {
    let mut source = Source::new(input);
    let flags = source.byte();
    let segment_bytes = source.pick(&[64 << 10, 128 << 10, 4 << 20, 1 << 30, u64::MAX - 65535]);
    let header = segment_of(if flags & 1 == 0 { 512 } else { 4096 }, segment_bytes);
    let whole = footer::footer_bytes(header.segment_bytes, header.block_bytes) as usize;
    let mut bytes;
    if flags & 4 == 0 {
        bytes = source.rest().to_vec();
        bytes.resize(if flags & 2 == 0 { bytes.len() } else { whole }, 0);
    } else {
        // A good one, with some fields overwritten.
        bytes = vec![0; whole];
        footer_with(usize::from(source.byte())).encode(&mut bytes);
        overwrite(&mut source, &mut bytes);
    }
    if flags & 2 != 0 {
        repair_footer(&mut bytes, &header);
    }
    let _limit = BufferLimit::of(bytes.len());
    let Some(found) = Footer::decode(&bytes, &header) else { return };
    let mut again = vec![0xff; whole];
    found.encode(&mut again);
    same(&again, &bytes[..whole]);
    for entry in &found.entries {
        assert!(entry.offset >= header.data_offset() && entry.offset < header.segment_bytes);
        assert!((found.first_lsn..=found.next_lsn).contains(&entry.first_lsn));
    }
}

/// A mark, and a cursor's file.
fn slots(input: &[u8]) {
    let mut source = Source::new(input);
    let flags = source.byte();
    let kind = if flags & 1 == 0 { Kind::Mark } else { Kind::Cursor };
    let gap = if flags & 2 == 0 { 0 } else { slots::SLOT_STRIDE as usize };
    let mut bytes = vec![0; gap + 512];
    if flags & 16 == 0 {
        for at in [0, gap] {
            let slot = source.bytes(512);
            bytes[at..at + slot.len()].copy_from_slice(slot);
        }
    } else {
        // Good ones, with some fields overwritten.
        let content = match kind {
            Kind::Mark => mark::Mark::new().encode().to_vec(),
            Kind::Cursor => 9u64.to_le_bytes().to_vec(),
        };
        for (sequence, at) in [(4, 0), (5, gap)] {
            let block = slots::slot_block(512, kind, LogId([7; 16]), sequence, &content);
            bytes[at..at + 512].copy_from_slice(&block.expect("it fits")[..512]);
            overwrite(&mut source, &mut bytes[at..at + 512]);
        }
    }
    bytes.truncate(bytes.len() - 37 * usize::from(flags >> 5));
    if flags & 4 != 0 {
        repair_slot(&mut bytes, 0, kind);
        repair_slot(&mut bytes, gap, kind);
    }
    let name = if kind == Kind::Mark { mark::MARK_NAME } else { "c.cursor" };
    let _limit = BufferLimit::of(bytes.len());
    let store = MemStore::new(if flags & 8 == 0 { 512 } else { 4096 });
    store.put(name, bytes);
    if let Ok(Some(slot)) = slots::read(&*store, name, kind) {
        let block = slots::slot_block(512, kind, slot.log_id, slot.sequence, &slot.content);
        let block = block.expect("it is no longer than it was");
        let bytes = store.bytes(name);
        let own = slot.sequence as usize % 2 * slots::SLOT_STRIDE as usize;
        let stands = |at: usize| bytes.get(at..at + 512) == Some(&block[..512]);
        let is_there = match kind {
            Kind::Mark => slots::SLOT_OFFSETS.iter().any(|&at| stands(at as usize)),
            Kind::Cursor => stands(own),
        };
        assert!(is_there, "what is accepted comes back");
    }
    match kind {
        Kind::Mark => {
            if let Ok(Some((_, found))) = mark::find_mark(&*store) {
                let slot = slots::read(&*store, name, kind).expect("it was read");
                assert_eq!(found.encode()[..], slot.expect("it is there").content[..]);
                assert!(found.first_lsn > 0 && found.first_epoch > 0);
            }
        }
        Kind::Cursor => cursor::fuzz_position(&*store, "c"),
    }
    // It can be written again, whatever was there.
    let store: Arc<dyn Store> = store::Counted::new(store);
    if let Ok(Some((mut file, _))) = SlotFile::open(&*store, name, kind)
        && file.write(&*store, b"new").is_ok()
    {
        let slot = slots::read(&*store, name, kind).expect("it reads").expect("it is there");
        assert_eq!(slot.content, b"new", "the last write counts");
    }
}

/// What a status page says.
fn status(input: &[u8]) {
    let mut source = Source::new(input);
    let repaired = source.flag();
    status::fuzz_page(source.rest(), repaired);
}

/// The text that keeps a calibration.
fn calibration(input: &[u8]) {
    disk::choice::fuzz_text(input);
}

/// A footer that is good in the smallest segment and in all larger ones, with so many entries or fewer.
fn footer_with(entries: usize) -> Footer {
    let entry = |index: u64| footer::IndexEntry {
        first_lsn: 10 + index,
        wall_ns: index,
        offset: 8192 + 4096 * index,
    };
    Footer {
        context: BatchContext::from(&segment_of(512, 64 << 10)),
        first_lsn: 10,
        next_lsn: 90,
        end_offset: 60 << 10,
        end_crc: 7,
        first_wall_ns: 1,
        last_wall_ns: 99,
        payload_bytes: 1234,
        entries: (0..(entries % 14) as u64).map(entry).collect(),
    }
}

/// Puts numbers of the input's choice where it says.
fn overwrite(source: &mut Source<'_>, bytes: &mut [u8]) {
    for _ in 0..4 {
        if source.is_empty() {
            break;
        }
        let at = 4 * source.below(bytes.len() / 4);
        let width = source.pick(&[1, 4, 8]).min(bytes.len() - at);
        let number = source.odd_number().to_le_bytes();
        bytes[at..at + width].copy_from_slice(&number[..width]);
    }
}

/// What is accepted comes back when it is encoded again.
#[track_caller]
fn same(again: &[u8], accepted: &[u8]) {
    let differs = again.iter().zip(accepted).position(|(again, accepted)| again != accepted);
    assert_eq!(
        (differs, again.len()),
        (None, accepted.len()),
        "accepted, but it does not come back"
    );
}

// ---- checksums put right, so that what stands behind them is reached ----

fn repair_segment_header(bytes: &mut [u8]) {
    bytes[..8].copy_from_slice(b"URINGLOG");
    let crc = crc32c(&bytes[..132]);
    put_u32(bytes, 132, crc);
}

fn repair_footer(bytes: &mut [u8], header: &SegmentHeader) {
    bytes[..4].copy_from_slice(b"ULf1");
    bytes[8..24].copy_from_slice(&header.log_id.0);
    put_u64(bytes, 24, header.epoch);
    put_u64(bytes, 32, header.salt);
    let crc = crc32c(&bytes[8..]);
    put_u32(bytes, 4, crc);
}

fn repair_slot(bytes: &mut [u8], at: usize, kind: Kind) {
    let Some(slot) = bytes.get_mut(at..at + 512) else { return };
    slot[..4].copy_from_slice(b"ULs1");
    put_u32(slot, 24, kind as u32);
    let crc = crc32c(&slot[8..]);
    put_u32(slot, 4, crc);
}

/// Makes batches of what stands in a segment: identity, place, and all checksums; with `chained` also
/// the link to the batch before, and its number.
fn repair_batches(bytes: &mut [u8], header: &SegmentHeader, chained: bool) {
    let block = header.block_bytes as usize;
    let mut at = header.data_offset() as usize;
    let mut link: Option<(u64, u32)> = None;
    while at + BATCH_HEADER_BYTES <= bytes.len() {
        let batch = &mut bytes[at..];
        // Zeros stay zeros: something must end the chain.
        if frame::is_zero(&batch[..BATCH_HEADER_BYTES]) {
            at += block;
            link = None;
            continue;
        }
        batch[..4].copy_from_slice(b"ULb1");
        batch[8..24].copy_from_slice(&header.log_id.0);
        put_u64(batch, 24, header.epoch);
        put_u64(batch, 32, header.salt);
        put_u64(batch, 40, at as u64);
        put_u64(batch, 88, 0);
        if let Some((lsn, crc)) = link.filter(|_| chained) {
            put_u64(batch, 48, lsn);
            put_u32(batch, 80, crc);
        }
        let (count, payload_bytes) = (get_u32(batch, 56) as usize, get_u32(batch, 60) as usize);
        let table_at = frame::table_offset(payload_bytes);
        let end = count.saturating_mul(TABLE_ENTRY_BYTES).saturating_add(table_at);
        if let Some(table) = batch.get(table_at..end) {
            let lens: Vec<u32> = table.chunks(8).map(|entry| get_u32(entry, 0)).collect();
            repair_table(batch, &lens, table_at, end);
        }
        let crc = crc32c(&batch[8..BATCH_HEADER_BYTES]);
        put_u32(batch, 4, crc);
        link = Some((frame::get_u64(batch, 48).saturating_add(count as u64), crc));
        at += end.checked_next_multiple_of(block).filter(|&len| len < bytes.len()).unwrap_or(block);
    }
}

fn repair_table(batch: &mut [u8], lens: &[u32], table_at: usize, end: usize) {
    let mut from = BATCH_HEADER_BYTES;
    for (index, &len) in lens.iter().enumerate() {
        let Some(payload) = batch.get(from..from.saturating_add(len as usize)) else { break };
        let crc = crc32c(payload);
        put_u32(batch, table_at + index * TABLE_ENTRY_BYTES + 4, crc);
        from += len as usize;
    }
    let crc = crc32c(&batch[table_at..end]);
    put_u32(batch, 84, crc);
}

/// The epochs of the segments in a store, where it can be listed.
fn segment_epochs(store: &dyn Store) -> Vec<u64> {
    segment::list_segments(store).unwrap_or_default()
}
