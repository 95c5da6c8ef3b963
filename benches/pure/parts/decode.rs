//! Reading back: one batch in memory, and a segment of them by the parser that recovery and readers share.
use std::hint::black_box;

use uringlog::internals::{BatchContext, BatchHeader, Cursor, crc32c};

use super::{batch, payload, segment};
use crate::part::{Part, Work, work};

/// Records in a segment, and in the batch that is decoded alone.
const RECORDS: u64 = 4096;
const OF_BATCH: u64 = 256;

pub fn parts() -> Vec<Part> {
    vec![
        Part::new("decode/batch_256x256", OF_BATCH, one_batch),
        // An operation is a record in each of them.
        Part::new("decode/segment_1x256", RECORDS / 8, || whole_segment(RECORDS / 8, 1)),
        Part::new("decode/segment_64x256", RECORDS, || whole_segment(RECORDS, 64)),
    ]
}

/// Header, table, every payload, padding.
fn one_batch() -> Box<dyn Work> {
    let mut image = Vec::new();
    append_batch(&mut image, 1, OF_BATCH, 0);
    work(
        (image, BatchContext::from(&segment())),
        |_| (),
        |(image, context)| {
            let (header, _) = BatchHeader::decode(black_box(image), context, 0).expect("a header");
            assert!(black_box(header.verify_body(image)).is_ok(), "it is whole");
        },
    )
}

/// `records` of 256 B in batches of `of_batch`.
fn whole_segment(records: u64, of_batch: u64) -> Box<dyn Work> {
    let header = segment();
    let mut image = vec![0; header.data_offset() as usize];
    let mut prev_crc = 0;
    for lsn in (1..=records).step_by(of_batch as usize) {
        prev_crc = append_batch(&mut image, lsn, of_batch, prev_crc);
    }
    work(
        (Cursor::new(&header, image).expect("memory"), records),
        |(cursor, _)| cursor.rewind(),
        |(cursor, records)| {
            let mut seen = 0;
            while let Some(count) = cursor.next_batch().expect("memory does not fail") {
                seen += u64::from(count);
            }
            assert_eq!(seen, *records);
        },
    )
}

/// A batch behind what is there; returns its header's checksum.
fn append_batch(image: &mut Vec<u8>, first_lsn: u64, count: u64, prev_crc: u32) -> u32 {
    let record = payload::<256>();
    let crc = crc32c(&record);
    let mut batch = batch();
    for lsn in first_lsn..first_lsn + count {
        batch.push(lsn, &record, crc);
    }
    let crc = batch.seal(&segment(), image.len() as u64, prev_crc);
    image.extend_from_slice(batch.image());
    crc
}
