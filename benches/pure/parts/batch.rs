//! Building a batch: records in, table and header around them.
use std::hint::black_box;

use uringlog::internals::{Batch, SegmentHeader, crc32c};

use super::{batch, payload, segment};
use crate::part::{Part, Work, work};

const RECORDS: u64 = 256;

pub fn parts() -> Vec<Part> {
    vec![
        Part::new("batch/push_64", RECORDS, push::<64>),
        Part::new("batch/push_256", RECORDS, push::<256>),
        Part::new("batch/push_4096", RECORDS, push::<4096>),
        Part::new("batch/push_many_64x256", RECORDS, push_many),
        Part::new("batch/seal_1x256", RECORDS, seal_single),
        Part::new("batch/seal_256x256", 1, seal_full),
    ]
}

fn push<const BYTES: usize>() -> Box<dyn Work> {
    work(
        (batch(), segment(), payload::<BYTES>()),
        |(batch, segment, _)| {
            batch.seal(segment, 8192, 0);
        },
        |(batch, _, record)| {
            for lsn in 1..=RECORDS {
                assert!(batch.push(lsn, black_box(record), 7), "it fits");
            }
        },
    )
}

/// Batches of 64 records, as `append_batch` lays them out in a ring. An operation is a record.
fn push_many() -> Box<dyn Work> {
    let table: Vec<u8> = [256u32.to_le_bytes(), 7u32.to_le_bytes()].concat().repeat(64);
    work(
        (batch(), segment(), [0x5a; 64 * 256], table),
        |(batch, segment, _, _)| {
            batch.seal(segment, 8192, 0);
        },
        |(batch, _, payloads, table)| {
            for lsn in (1..=RECORDS).step_by(64) {
                assert!(batch.push_many(lsn, black_box(payloads), table), "it fits");
            }
        },
    )
}

/// One record a batch: what a lone durable append pays. The push is in it.
fn seal_single() -> Box<dyn Work> {
    let record = payload::<256>();
    work(
        (batch(), segment(), record, crc32c(&record)),
        |_| (),
        |(batch, segment, record, crc)| {
            for lsn in 1..=RECORDS {
                batch.push(lsn, record, *crc);
                black_box(batch.seal(segment, black_box(8192), 0));
            }
        },
    )
}

/// A batch of many records. An operation is a batch; the pushes are not in it.
fn seal_full() -> Box<dyn Work> {
    work((batch(), segment()), push_all, |(batch, segment)| {
        black_box(batch.seal(segment, black_box(8192), 0));
    })
}

fn push_all((batch, _): &mut (Batch, SegmentHeader)) {
    let record = payload::<256>();
    let crc = crc32c(&record);
    for lsn in 1..=RECORDS {
        batch.push(lsn, &record, crc);
    }
}
