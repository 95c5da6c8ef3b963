//! What `benches/pure` calls: the parts of a record's path that need no disk and no thread, each as the
//! log itself calls it. Thin wrappers with no logic of their own. Not for users, and bound to no version.
#![allow(missing_docs)]

use std::io;
use std::sync::Arc;

use crate::batch::{BatchBuilder, Seal, Sealed};
use crate::disk::{Access, File, Store};
use crate::drain::{Drain, Filled};
use crate::mem::AlignedBuf;
use crate::numbers::Numbers;
use crate::ring::{Meta, Ring, SlotState};
use crate::rings::RingSet;
use crate::scan::{BatchCursor, Step};
use crate::segment;
use crate::testing::MemStore;

pub use crate::frame::{
    BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BatchContext, BatchHeader, LogId, SegmentHeader, crc32c,
};

/// One ring.
pub struct OneRing(Ring);

impl OneRing {
    pub fn new(bytes: usize) -> Self {
        OneRing(Ring::new(bytes))
    }

    /// Claims `units` and publishes them as they are. False: no room.
    #[inline]
    pub fn claim_publish(&self, units: u64, lsn: u64) -> bool {
        let Some(claim) = self.0.claim(units) else { return false };
        self.0.publish(claim, SlotState::Record, lsn, Meta(0, 0));
        true
    }

    /// Gives all units below `head` back, as the writer does.
    pub fn give_back(&self, head: u64) {
        self.0.give_back(head);
    }
}

/// The rings of a log, and the number line.
pub struct Rings {
    set: RingSet,
    numbers: Numbers,
}

impl Rings {
    pub fn new(rings: usize, ring_bytes: usize) -> Self {
        Rings { set: RingSet::new(rings, ring_bytes, 0, 0), numbers: Numbers::new(1) }
    }

    /// What an append does up to its publication: claim in the ring of this core, copy, checksum, number,
    /// publish. False: no room, or the gate is shut.
    #[inline]
    pub fn append(&self, record: &[u8]) -> bool {
        let Some((ring, mut claim)) = self.set.claim(Ring::units_for(record.len())) else {
            return false;
        };
        ring.bytes_mut(&mut claim)[..record.len()].copy_from_slice(record);
        let meta = Meta(record.len() as u32, crc32c(record));
        let Ok(lsn) = self.numbers.take(1) else {
            ring.abort(claim);
            return false;
        };
        ring.publish(claim, SlotState::Record, lsn, meta);
        true
    }

    /// Publishes a record in this ring under this number. False: no room.
    pub fn publish(&self, ring: usize, lsn: u64, record: &[u8]) -> bool {
        let Some(ring) = self.set.ring(ring) else { return false };
        let Some(mut claim) = ring.claim(Ring::units_for(record.len())) else { return false };
        ring.bytes_mut(&mut claim)[..record.len()].copy_from_slice(record);
        ring.publish(claim, SlotState::Record, lsn, Meta(record.len() as u32, crc32c(record)));
        true
    }
}

/// The writer's side of the rings: cursors and window.
pub struct Window(Drain);

impl Window {
    pub fn new(next_lsn: u64, window_records: usize) -> Self {
        Window(Drain::new(next_lsn, window_records))
    }

    /// Looks at everything new. Whether the next number is there.
    #[inline]
    pub fn scan(&mut self, rings: &Rings) -> bool {
        self.0.scan(&rings.set)
    }

    /// Moves records into the batch. Whether that was all; false: the batch is full.
    #[inline]
    pub fn fill(&mut self, rings: &Rings, batch: &mut Batch) -> bool {
        matches!(self.0.fill(&rings.set, &mut batch.builder), Filled::All)
    }

    pub fn next_lsn(&self) -> u64 {
        self.0.next_lsn()
    }
}

/// A batch being built, with the buffer that takes its place when it is sealed.
pub struct Batch {
    builder: BatchBuilder,
    sealed: Option<Sealed>,
}

impl Batch {
    pub fn new(bytes: usize) -> io::Result<Self> {
        let nothing = Seal {
            context: BatchContext { log_id: LogId([0; 16]), epoch: 1, salt: 0 },
            offset: 0,
            first_lsn: 1,
            wall_ns: 0,
            synced_lsn: 0,
            prev_crc: 0,
            block_bytes: 512,
        };
        let mut builder = BatchBuilder::new(AlignedBuf::new(bytes)?);
        let sealed = builder.seal(&nothing, AlignedBuf::new(bytes)?);
        Ok(Batch { builder, sealed: Some(sealed) })
    }

    pub fn count(&self) -> usize {
        self.builder.count()
    }

    /// Adds a record, if it fits.
    #[inline]
    pub fn push(&mut self, lsn: u64, payload: &[u8], crc: u32) -> bool {
        let fits = self.builder.fits(payload.len(), 1);
        if fits {
            self.builder.push(lsn, payload, crc);
        }
        fits
    }

    /// Adds records that are laid out as on disk, if they fit.
    #[inline]
    pub fn push_many(&mut self, lsn: u64, payloads: &[u8], table: &[u8]) -> bool {
        let fits = self.builder.fits(payloads.len(), table.len() / 8);
        if fits {
            self.builder.push_many(lsn, payloads, table);
        }
        fits
    }

    /// Seals the batch for `offset` of a segment, behind the batch with the header checksum `prev_crc`; returns
    /// its own.
    #[inline]
    pub fn seal(&mut self, segment: &SegmentHeader, offset: u64, prev_crc: u32) -> u32 {
        let first_lsn = self.builder.first_lsn();
        let seal = Seal {
            context: BatchContext::from(segment),
            offset,
            first_lsn,
            wall_ns: 1,
            synced_lsn: first_lsn.saturating_sub(1),
            prev_crc,
            block_bytes: segment.block_bytes as usize,
        };
        let Some(spare) = self.sealed.take() else { return 0 };
        let sealed = self.builder.seal(&seal, spare.buf);
        let crc = sealed.crc;
        self.sealed = Some(sealed);
        crc
    }

    /// The batch that was sealed last, as it goes to disk.
    pub fn image(&self) -> &[u8] {
        self.sealed.as_ref().map_or(&[], |sealed| &sealed.buf[..sealed.len])
    }
}

/// The one batch parser, over a segment in memory.
pub struct Cursor {
    cursor: BatchCursor,
    data_offset: u64,
}

impl Cursor {
    /// `image` is the whole segment.
    pub fn new(header: &SegmentHeader, image: Vec<u8>) -> io::Result<Self> {
        let store = MemStore::new(header.block_bytes as usize);
        let file_bytes = image.len() as u64;
        store.put("segment", image);
        let file: Arc<dyn File> = store.open("segment", Access::Read)?;
        let segment = segment::Segment { epoch: header.epoch, header: *header, file_bytes };
        let (block, offset) = (header.block_bytes as usize, header.data_offset());
        let cursor = BatchCursor::new(file, segment, block, file_bytes, offset, None, None)?;
        Ok(Cursor { cursor, data_offset: offset })
    }

    /// Verifies the next batch and steps over it; how many records it has. None: no batch follows.
    #[inline]
    pub fn next_batch(&mut self) -> io::Result<Option<u32>> {
        let Step::Batch(batch) = self.cursor.peek()? else { return Ok(None) };
        self.cursor.accept(&batch);
        Ok(Some(batch.header.count))
    }

    /// Goes back to the first batch, and forgets what was read.
    pub fn rewind(&mut self) {
        self.cursor.invalidate();
        self.cursor.move_to(self.data_offset, None, None);
    }
}
