//! A ring for large batches and plain system calls for small ones: where calibration finds a plain
//! write the faster way to make one block durable, that is what a waiting producer feels; a large
//! batch means that records stream in, and then the ring's disk leaves the writer free to fill the next
//! batch meanwhile.

use std::time::Duration;

use super::psync::Psync;
use super::uring::Uring;
use super::{Disk, Done, Op, OpKind};
use crate::mem::AlignedBuf;

/// Bytes of a write from which on it goes through the ring.
pub(crate) const LARGE_BYTES: usize = 64 << 10;

/// The two disks; one operation at a time is under way, in one of them.
pub(crate) struct Paired {
    small: Psync,
    large: Uring,
    in_ring: bool,
}

impl Paired {
    pub(crate) fn new(small: Psync, large: Uring) -> Self {
        Paired { small, large, in_ring: false }
    }
}

impl Disk for Paired {
    fn depth_max(&self) -> usize {
        1
    }

    fn submit(&mut self, op: Op) {
        self.in_ring = matches!(op.kind, OpKind::Write { len, .. } if len >= LARGE_BYTES);
        match self.in_ring {
            true => self.large.submit(op),
            false => self.small.submit(op),
        }
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        match self.in_ring {
            true => self.large.reap(wait, done),
            false => self.small.reap(wait, done),
        }
    }

    fn reap_within(&mut self, time: Duration, done: &mut Vec<Done>) {
        match self.in_ring {
            true => self.large.reap_within(time, done),
            false => self.small.reap(true, done),
        }
    }

    fn register_buffers(&mut self, bufs: &[AlignedBuf]) -> bool {
        self.large.register_buffers(bufs)
    }
}
