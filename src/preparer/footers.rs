//! Writing the footers of sealed segments.
//!
//! A footer is a cache of what the batches tell. It is written behind all batches, where none ever
//! stands, and after something behind the segment is durable: so the tail that recovery looks for
//! never has one. It is not synced, and a crash may leave any part of it: its checksum tells. A write
//! that fails is counted and forgotten; the batches have been synced, and it takes nothing from them.

use std::io;

use super::{Preparer, Sealed};
use crate::extent::Files;
use crate::footer::{footer_bytes, footer_offset};
use crate::mem::AlignedBuf;

impl Preparer {
    /// Writes the next footer that is due. False: none is.
    pub(super) fn write_footer(&mut self, files: &mut Files) -> bool {
        let Some(sealed) = self.footers.pop_front() else { return false };
        let extent = &self.shared.extent;
        let epoch = sealed.segment.header.epoch;
        // A file that was given up since may be another segment by now.
        let counts = sealed.generation == extent.generation()
            && (extent.first_epoch()..extent.live_epoch()).contains(&epoch);
        if !counts || sealed.index.footer().end_offset > footer_offset(&sealed.segment.header) {
            return true;
        }
        files.catalog.sealed(sealed.index.footer());
        let counters = &self.shared.counters;
        let started_ns = self.shared.clock.now_ns();
        match write(&sealed) {
            Ok(()) => counters.footers.add(1),
            Err(_cache_only) => counters.footers_failed.add(1),
        }
        self.rest.after(&self.shared, started_ns);
        true
    }
}

fn write(sealed: &Sealed) -> io::Result<()> {
    let header = &sealed.segment.header;
    let bytes = footer_bytes(header.segment_bytes, header.block_bytes) as usize;
    let mut buf = AlignedBuf::new(bytes)?;
    sealed.index.footer().encode(&mut buf[..bytes]);
    sealed.segment.file.write_at(footer_offset(header), &buf[..bytes])
}
