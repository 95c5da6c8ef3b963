//! A whole directory: a log as its writer left it, or nothing, with files that the input damages, forges,
//! adds and takes away. Then everything that reads it, and an opening for writing.
//!
//! Where the input did no more than break a few bits, nothing false may be read, and nothing that a
//! later batch vouched for may go unnoticed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::log::{self, History, SEGMENT_BYTES};
use super::source::Source;
use super::store::Counted;
use super::{
    BufferLimit, repair_batches, repair_footer, repair_segment_header, repair_slot, segment_epochs,
};
use crate::disk::Store;
use crate::error::ReadError;
use crate::follow::poll_store;
use crate::footer::footer_offset;
use crate::frame::{self, BATCH_HEADER_BYTES, SegmentHeader, crc32c, put_u32, put_u64};
use crate::lsn::Lsn;
use crate::mark::MARK_NAME;
use crate::read::{BackReader, Reader, Watermark};
use crate::recovery;
use crate::slots::{Kind, SLOT_STRIDE};
use crate::testing::{self, MemStore};

const CHANGES_MAX: usize = 12;
const FILE_BYTES_MAX: usize = 256 << 10;

/// What was done to the directory.
#[derive(Default)]
struct Damage {
    /// Single bits that were flipped.
    bits: usize,
    /// Anything else.
    other: usize,
}

/// The target.
pub(super) fn directory(input: &[u8]) {
    let mut source = Source::new(input);
    let flags = source.byte();
    let mem = MemStore::new(if flags & 1 == 0 { 512 } else { 4096 });
    let life_bytes = source.byte();
    let mut history = History::default();
    if flags & 2 == 0 {
        let life = source.bytes(usize::from(life_bytes));
        history = log::write(&mut Source::new(life), &mem);
    }
    let vouched_before = recovery::vouched_lsn(&*mem).unwrap_or(0);
    let mut damage = Damage::default();
    for _ in 0..CHANGES_MAX {
        if source.is_empty() {
            break;
        }
        change(&mut source, &mem, &mut damage);
    }
    let _limit = BufferLimit::of(mem.total_bytes().max(2 * SEGMENT_BYTES as usize));
    let store = Counted::new(mem.clone());
    let only_bits = damage.other == 0 && damage.bits <= 3 && flags & 2 == 0;
    let expected = only_bits.then_some(&history.records);
    look(&store, &mem, expected, source.number(2));
    open(&store, &mem, expected, (damage.bits <= 1).then_some(vouched_before));
}

/// Everything that only reads.
fn look(
    counted: &Arc<Counted>,
    mem: &MemStore,
    expected: Option<&BTreeMap<u64, Vec<u8>>>,
    wall_ns: u64,
) {
    let store: Arc<dyn Store> = counted.clone();
    let present = mem.total_bytes();
    // A record takes at least its entry in a batch's table.
    let records_max = present / 8 + 1;
    let again = || counted.start_again();
    again();
    let inspected = recovery::inspect(&*store);
    if let Ok(found) = &inspected {
        assert!(found.segments.len() <= mem.names().len());
    }
    again();
    let forward = Reader::vouched(store.clone(), Lsn::NONE).map(|mut reader| {
        let mut read = Vec::new();
        let ended = loop {
            match reader.next_record() {
                Ok(Some(record)) => read.push((record.lsn().get(), record.payload().to_vec())),
                Ok(None) => break true,
                Err(_) => break false,
            }
            assert!(read.len() <= records_max, "there are not as many records");
        };
        (read, ended)
    });
    again();
    let back = BackReader::with(store.clone(), Watermark::Vouched(store.clone()), Lsn::NONE);
    let back = back.map(|mut reader| {
        let mut read = Vec::new();
        let ended = loop {
            match reader.next_record() {
                Ok(Some(record)) => read.push((record.lsn().get(), record.payload().to_vec())),
                Ok(None) => break true,
                Err(_) => break false,
            }
            assert!(read.len() <= records_max, "there are not as many records");
        };
        (read, ended)
    });
    again();
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(wall_ns);
    if let Ok(mut reader) = Reader::vouched_at(store.clone(), time) {
        while let Ok(Some(_)) = reader.next_record() {}
    }
    again();
    let followed = poll_store(store.clone(), records_max);
    again();
    if let Ok((read, _)) = &forward {
        let dense = read.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0);
        assert!(dense, "numbers are dense");
    }
    let Some(expected) = expected else { return };
    for (lsn, payload) in forward.iter().chain(&back).flat_map(|(read, _)| read) {
        assert_eq!(Some(payload), expected.get(lsn), "record {lsn} is not what was written");
    }
    if let (Ok((forward, true)), Ok((back, true))) = (&forward, &back) {
        assert!(forward.iter().eq(back.iter().rev()), "both directions give the same");
        assert_eq!(followed.ok(), Some(forward.len()), "and so does following");
    }
}

/// Opening for writing, twice.
fn open(
    counted: &Arc<Counted>,
    mem: &Arc<MemStore>,
    expected: Option<&BTreeMap<u64, Vec<u8>>>,
    vouched_before: Option<u64>,
) {
    let before = segment_epochs(&**mem);
    counted.start_again();
    let opened = testing::open_store(counted.clone(), mem.total_bytes() as u64, SEGMENT_BYTES);
    let Ok(opened) = opened else {
        assert_eq!(before, segment_epochs(&**mem), "what is refused is left as it was");
        return;
    };
    assert!(opened.next_lsn > 0 && opened.next_lsn <= frame::NUMBER_MAX);
    assert!(opened.offset >= opened.live.header.data_offset());
    assert!(opened.offset <= opened.live.header.segment_bytes);
    let next_lsn = opened.next_lsn;
    drop(opened);
    if let Some(expected) = expected {
        if let Some(vouched) = vouched_before {
            assert!(next_lsn > vouched, "record {} is gone", next_lsn);
        }
        counted.start_again();
        let store: Arc<dyn Store> = counted.clone();
        let durable = Box::new(move || next_lsn - 1);
        // Damage before the tail is met by those who read, perhaps at once: both headers of the segment that
        // began the generation.
        let read_all = || -> Result<(), ReadError> {
            let mut reader = Reader::new(store, durable, Lsn::NONE)?;
            while let Some(record) = reader.next_record()? {
                let lsn = record.lsn().get();
                assert_eq!(Some(record.payload()), expected.get(&lsn).map(Vec::as_slice));
            }
            Ok(())
        };
        match read_all() {
            Ok(()) | Err(ReadError::Damaged(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    counted.start_again();
    let again = testing::open_store(counted.clone(), mem.total_bytes() as u64, SEGMENT_BYTES);
    match again {
        Ok(again) => assert_eq!(again.next_lsn, next_lsn, "a second opening finds the same"),
        Err(error) => panic!("what was just opened opens again: {error}"),
    }
}

/// One change to the directory.
fn change(source: &mut Source<'_>, mem: &MemStore, damage: &mut Damage) {
    let kind = source.byte() % 16;
    if kind == 15 {
        let name = new_name(source, mem);
        let len = source.below(2048);
        mem.put(&name, source.bytes(len).to_vec());
        damage.other += 1;
        return;
    }
    let names = mem.names();
    let Some(name) = names.get(source.below(names.len())).cloned() else { return };
    let mut bytes = mem.bytes(&name);
    if kind < 5 {
        if !bytes.is_empty() {
            let at = place(source, bytes.len());
            bytes[at] ^= 1 << (source.byte() % 8);
            damage.bits += 1;
            mem.put(&name, bytes);
        }
        return;
    }
    damage.other += 1;
    match kind {
        5 => {
            let (at, len) = (place(source, bytes.len()), source.below(64));
            for (to, from) in bytes.iter_mut().skip(at).zip(source.bytes(len)) {
                *to = *from;
            }
        }
        6 => {
            let (at, len) = (place(source, bytes.len()), source.below(8192));
            bytes.iter_mut().skip(at).take(len).for_each(|byte| *byte = 0);
        }
        7 => {
            let len = place(source, bytes.len() + 1);
            bytes.truncate(len);
        }
        8 => {
            let len = (bytes.len() + source.below(SEGMENT_BYTES as usize)).min(FILE_BYTES_MAX);
            bytes.resize(len, source.byte());
        }
        9 => return mem.put(&new_name(source, mem), bytes),
        10 => {
            let to = new_name(source, mem);
            return mem.rename(&name, &to).expect("it is there");
        }
        11 => return mem.remove(&name).expect("it is there"),
        _ if name == MARK_NAME => forge_slot(source, &mut bytes, Kind::Mark),
        _ if name.ends_with(".cursor") => forge_slot(source, &mut bytes, Kind::Cursor),
        12 => forge_header(source, &mut bytes),
        13 => forge_batch(source, &mut bytes),
        _ => forge_footer(source, &mut bytes),
    }
    mem.put(&name, bytes);
}

/// Somewhere in so many bytes: often in the first blocks, where the headers and first batches are.
fn place(source: &mut Source<'_>, len: usize) -> usize {
    let near = source.flag();
    source.below(if near { len.min(8192) } else { len })
}

fn new_name(source: &mut Source<'_>, mem: &MemStore) -> String {
    let names = mem.names();
    match source.byte() % 12 {
        0..=4 => frame::segment_name(source.number(1) % 12),
        5 => frame::segment_name(source.odd_number()),
        6 => format!("{:020}-{}.spare", source.number(1) % 12, source.odd_number()),
        7 => MARK_NAME.to_owned(),
        8 => "c.cursor".to_owned(),
        9 => source.pick(&["status", "calibration", "log.lock", "truncation.tmp"]).to_owned(),
        10 => String::from_utf8_lossy(source.bytes(12)).replace('/', "_"),
        _ => names.get(source.below(names.len())).cloned().unwrap_or_else(|| "x".to_owned()),
    }
}

/// Any field of a segment's header, in both copies or one, under a valid checksum.
fn forge_header(source: &mut Source<'_>, bytes: &mut [u8]) {
    const FIELDS: [(usize, usize); 12] = [
        (12, 4),
        (16, 8),
        (32, 8),
        (40, 8),
        (48, 8),
        (56, 8),
        (64, 8),
        (72, 4),
        (76, 4),
        (80, 8),
        (88, 8),
        (96, 8),
    ];
    let copies = source.byte();
    let (at, width) = source.pick(&FIELDS);
    let number = source.odd_number();
    let second = SegmentHeader::decode(bytes).map_or(512, |header| header.block_bytes as usize);
    for (copy, start) in [0, second].into_iter().enumerate() {
        if copies & (1 << copy) != 0 || bytes.len() < start + 512 {
            continue;
        }
        let block = &mut bytes[start..];
        block[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        repair_segment_header(block);
    }
}

/// Any field of a batch's header; the batches behind it are linked to it again, or not.
fn forge_batch(source: &mut Source<'_>, bytes: &mut [u8]) {
    let Ok(header) = SegmentHeader::decode(bytes) else { return };
    let block = header.block_bytes as usize;
    let mode = source.byte();
    let (number, field) = (source.odd_number(), source.pick(&[40, 48, 56, 60, 64, 72, 80, 84]));
    let start = header.data_offset() as usize;
    if bytes.len() <= start {
        return;
    }
    let nth = source.below((bytes.len() - start).div_ceil(block).min(64));
    let Some(batch) = bytes.get_mut(start + nth * block..) else { return };
    if batch.len() < BATCH_HEADER_BYTES {
        return;
    }
    let width = if matches!(field, 56 | 60 | 80 | 84) { 4 } else { 8 };
    batch[field..field + width].copy_from_slice(&number.to_le_bytes()[..width]);
    match mode % 3 {
        0 => {
            batch[..4].copy_from_slice(b"ULb1");
            batch[8..24].copy_from_slice(&header.log_id.0);
            put_u64(batch, 24, header.epoch);
            put_u64(batch, 32, header.salt);
            let crc = crc32c(&batch[8..BATCH_HEADER_BYTES]);
            put_u32(batch, 4, crc);
        }
        mode => {
            let end = (footer_offset(&header) as usize).min(bytes.len());
            repair_batches(&mut bytes[..end], &header, mode == 1);
        }
    }
}

fn forge_footer(source: &mut Source<'_>, bytes: &mut [u8]) {
    let Ok(header) = SegmentHeader::decode(bytes) else { return };
    let Some(footer) =
        usize::try_from(footer_offset(&header)).ok().and_then(|at| bytes.get_mut(at..))
    else {
        return;
    };
    let whole = (header.segment_bytes - footer_offset(&header)) as usize;
    if footer.len() < whole {
        return;
    }
    let footer = &mut footer[..whole];
    let at = 40 + 8 * source.below(12);
    let number = match source.flag() {
        true => source.odd_number(),
        false => frame::get_u64(footer, at).wrapping_add(source.number(2)).wrapping_sub(512),
    };
    put_u64(footer, at, number);
    repair_footer(footer, &header);
}

fn forge_slot(source: &mut Source<'_>, bytes: &mut [u8], kind: Kind) {
    let (at, number) = (24 + 4 * source.below(20), source.odd_number());
    let copies = source.byte();
    for (copy, start) in [0, SLOT_STRIDE as usize].into_iter().enumerate() {
        if copies & (1 << copy) != 0 || bytes.len() < start + 512 {
            continue;
        }
        put_u64(bytes, start + at, number);
        repair_slot(bytes, start, kind);
    }
}
