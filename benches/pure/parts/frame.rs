//! The frame codec, and checksums.
use std::hint::black_box;

use uringlog::internals::{BatchContext, BatchHeader, SegmentHeader, crc32c};

use super::segment;
use crate::part::{Part, Work, work};

const HEADERS: u64 = 256;

pub fn parts() -> Vec<Part> {
    vec![
        Part::new("frame/batch_header_encode", HEADERS, batch_encode),
        Part::new("frame/batch_header_decode", HEADERS, batch_decode),
        Part::new("frame/segment_header_encode", HEADERS, segment_encode),
        Part::new("frame/segment_header_decode", HEADERS, segment_decode),
        Part::new("checksum/64", HEADERS, checksum::<64>),
        Part::new("checksum/256", HEADERS, checksum::<256>),
        Part::new("checksum/1024", HEADERS, checksum::<1024>),
        Part::new("checksum/4096", HEADERS, checksum::<4096>),
        Part::new("checksum/65536", HEADERS, checksum::<65536>),
    ]
}

fn header() -> BatchHeader {
    BatchHeader {
        context: BatchContext::from(&segment()),
        offset: 8192,
        first_lsn: 17,
        count: 1,
        payload_bytes: 256,
        wall_ns: 1,
        synced_lsn: 16,
        prev_crc: 5,
        table_crc: 6,
    }
}

fn batch_encode() -> Box<dyn Work> {
    work(
        (header(), [0u8; 96]),
        |_| (),
        |(header, out)| {
            for _ in 0..HEADERS {
                black_box(black_box(&*header).encode(out));
            }
        },
    )
}

fn batch_decode() -> Box<dyn Work> {
    let mut bytes = [0u8; 96];
    header().encode(&mut bytes);
    work(
        (bytes, BatchContext::from(&segment())),
        |_| (),
        |(bytes, context)| {
            for _ in 0..HEADERS {
                let found = BatchHeader::decode(black_box(&*bytes), context, 8192);
                assert!(black_box(found).is_ok(), "it is a header");
            }
        },
    )
}

fn segment_encode() -> Box<dyn Work> {
    work(
        (segment(), [0u8; 4096]),
        |_| (),
        |(header, out)| {
            for _ in 0..HEADERS {
                black_box(&*header).encode(black_box(out));
            }
        },
    )
}

fn segment_decode() -> Box<dyn Work> {
    let mut bytes = [0u8; 4096];
    segment().encode(&mut bytes);
    work(
        bytes,
        |_| (),
        |bytes| {
            for _ in 0..HEADERS {
                let found = SegmentHeader::decode(black_box(&*bytes));
                assert!(black_box(found).is_ok(), "it is a header");
            }
        },
    )
}

fn checksum<const BYTES: usize>() -> Box<dyn Work> {
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at * 31 + 7) as u8).collect();
    work(
        bytes,
        |_| (),
        |bytes| {
            for _ in 0..HEADERS {
                black_box(crc32c(black_box(bytes)));
            }
        },
    )
}
