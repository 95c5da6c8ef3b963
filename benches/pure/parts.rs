//! The parts, in the order of a record's path.
mod batch;
mod decode;
mod drain;
mod frame;
mod ring;

use uringlog::internals::{Batch, LogId, SegmentHeader};

use crate::part::Part;

pub fn all() -> Vec<Part> {
    [ring::parts(), drain::parts(), batch::parts(), frame::parts(), decode::parts()]
        .into_iter()
        .flatten()
        .collect()
}

/// The segment that all batches are made for.
fn segment() -> SegmentHeader {
    SegmentHeader {
        log_id: LogId([7; 16]),
        epoch: 3,
        salt: 0x5a17,
        block_bytes: 4096,
        segment_bytes: 4 << 20,
        created_wall_ns: 1,
        first_lsn: 1,
        resume: None,
        generation: 0,
        truncated_after: 0,
        recycled: false,
    }
}

/// Bytes that are not all the same.
fn payload<const BYTES: usize>() -> [u8; BYTES] {
    core::array::from_fn(|at| (at * 31 + 7) as u8)
}

/// A batch with room for all that a pass puts in.
fn batch() -> Batch {
    Batch::new(2 << 20).expect("memory")
}
