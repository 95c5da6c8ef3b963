//! The parser on single segments, and the worked example of FORMAT.md.

use std::fmt::Write;

use super::*;
use crate::disk::Store;
use crate::frame::{LogId, SegmentHeader, segment_name};
use crate::testing::{MemStore, TestWriter};

const SEGMENT_BYTES: u64 = 64 << 10;

fn cursor(store: &MemStore, limit: u64) -> BatchCursor {
    let (segment, file) = Segment::open(store, 1).expect("a segment");
    let block = store.facts().block_bytes;
    let data_offset = segment.header.data_offset();
    BatchCursor::new(file, segment, block, limit, data_offset, None, None).expect("memory")
}

#[test]
fn batches_larger_than_the_window_are_read_whole_and_held() {
    let store = MemStore::new(4096);
    let mut writer = TestWriter::open(&store, 8 << 20);
    let sizes = [10usize, 3_000_000, 0, 70_000, 1_500_000, 5];
    for (index, &bytes) in sizes.iter().enumerate() {
        writer.sync_then_batch(&[&vec![index as u8 + 1; bytes]]);
    }
    let mut cursor = cursor(&store, 8 << 20);
    for (index, &bytes) in sizes.iter().enumerate() {
        let Step::Batch(batch) = cursor.peek().expect("reads") else { panic!("batch {index}") };
        cursor.accept(&batch);
        let payload = cursor.held(&batch, BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + bytes);
        assert_eq!(payload.len(), bytes);
        assert!(payload.iter().all(|&byte| byte == index as u8 + 1));
    }
    let Step::Stop(stop) = cursor.peek().expect("reads") else { panic!("more") };
    assert_eq!(stop.reason, StopReason::Invalid(BatchError::Zero));
}

#[test]
fn a_batch_that_does_not_end_before_the_limit_is_not_read() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.sync_then_batch(&[&[1; 2000]]);
    for limit in (1024..3584).step_by(512) {
        let Step::Stop(stop) = cursor(&store, limit).peek().expect("reads") else {
            panic!("read beyond {limit}")
        };
        let short = StopReason::Invalid(BatchError::Short);
        assert_eq!(stop.reason, if limit == 1024 { StopReason::Limit } else { short });
    }
    assert!(matches!(cursor(&store, 3584).peek(), Ok(Step::Batch(_))));
}

#[test]
fn a_batch_of_another_chain_is_refused() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.sync_then_batch(&[b"a"]);
    writer.prev_crc ^= 1;
    writer.sync_then_batch(&[b"b"]);
    let mut cursor = cursor(&store, SEGMENT_BYTES);
    let Ok(Step::Batch(batch)) = cursor.peek() else { panic!("no batch") };
    cursor.accept(&batch);
    let Ok(Step::Stop(stop)) = cursor.peek() else { panic!("spliced") };
    assert_eq!(stop.reason, StopReason::Chain);
}

#[test]
fn a_batch_with_another_number_is_refused() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.sync_then_batch(&[b"a"]);
    for (known, counts) in [(None, true), (Some(1), true), (Some(2), false)] {
        let mut cursor = cursor(&store, SEGMENT_BYTES);
        cursor.move_to(1024, known, None);
        match cursor.peek().expect("reads") {
            Step::Batch(_) => assert!(counts, "{known:?}"),
            Step::Stop(stop) => assert_eq!((counts, stop.reason), (false, StopReason::Chain)),
        }
    }
}

#[test]
fn a_sweep_sees_what_the_chain_cannot_reach() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    writer.sync_then_batch(&[b"a"]);
    let lost = writer.sync_then_batch(&[&[7; 1000]]);
    writer.sync_then_batch(&[b"c"]);
    store.alter(&segment_name(1), lost as usize, 1536, |byte| !byte);
    let (segment, file) = Segment::open(&*store, 1).expect("a segment");
    let seen = sweep(&file, &segment, 512, 1024, SEGMENT_BYTES, |_| false).expect("reads");
    assert_eq!((seen.headers, seen.synced_lsn, seen.nonzero_end), (2, 2, writer.offset));
    let found = sweep(&file, &segment, 512, 1024, SEGMENT_BYTES, |header| header.first_lsn > 1);
    assert_eq!(found.expect("reads").found.map(|header| header.first_lsn), Some(3));
}

/// FORMAT.md shows these bytes; they are what the encoder writes.
#[test]
fn the_worked_example_of_the_format_text_is_what_is_written() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, SEGMENT_BYTES);
    let wall_ns = 1_700_000_000_000_000_000;
    writer.header = SegmentHeader {
        log_id: LogId(core::array::from_fn(|index| index as u8)),
        epoch: 1,
        salt: 0x1122_3344_5566_7788,
        block_bytes: 512,
        segment_bytes: SEGMENT_BYTES,
        created_wall_ns: wall_ns,
        first_lsn: 1,
        resume: None,
        generation: 0,
        truncated_after: 0,
        recycled: false,
    };
    writer.wall_ns = wall_ns + 1_000_000;
    writer.batch(&[b"hello", b"world!"]);
    writer.wall_ns += 5_000_000;
    writer.sync_then_batch(&[]);
    let mut segment = store.bytes(&segment_name(1));
    writer.header.encode(&mut segment[..512]);
    segment.copy_within(..512, 512);

    let dump = dump(&segment);
    let text = include_str!("../../FORMAT.md");
    assert!(text.contains(&dump), "FORMAT.md does not show:\n{dump}");
}

/// As `hexdump -C` shows it: lines of zeros are left out.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in bytes.chunks(16).enumerate() {
        if frame::is_zero(line) {
            continue;
        }
        write!(text, "{:08x} ", index * 16).expect("strings take all");
        for byte in line {
            write!(text, " {byte:02x}").expect("strings take all");
        }
        let show = |&byte: &u8| if byte.is_ascii_graphic() { byte as char } else { '.' };
        writeln!(text, "  |{}|", line.iter().map(show).collect::<String>())
            .expect("strings take all");
    }
    text
}
