//! Where the next batch goes, and how much prepared space stands behind it.
//!
//! Appends draw on space that is already reserved and zeroed. The free space always covers the worst
//! that all rings can hold (`Limits::reserve_bytes`); when it would not, the
//! gate is shut until the preparer has delivered. So nothing that was accepted finds the disk full.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use crate::commit::Level;
use crate::disk::{File, Store};
use crate::error::IoError;
use crate::footer::footer_offset;
use crate::frame::{BatchContext, BatchHeader, segment_name};
use crate::index::SegmentIndex;
use crate::numbers::Shut;
use crate::preparer::{Delivery, PreparerLink, Sealed};
use crate::segment::LiveSegment;
use crate::shared::Shared;
use crate::sync::Ordering;

/// Whether what was needed is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    Met,
    Waiting,
}

pub(crate) struct Space {
    store: Arc<dyn Store>,
    live: LiveSegment,
    /// Where the next batch goes in the live segment.
    offset: u64,
    /// Header checksum of the batch before.
    prev_crc: u32,
    /// The largest wall clock of any batch.
    wall_ns: u64,
    /// What the live segment's footer will say.
    index: SegmentIndex,
    ready: VecDeque<LiveSegment>,
    deliveries: Receiver<Delivery>,
    /// Segments that the log moved on from, until something behind them is durable.
    sealed: VecDeque<Sealed>,
    seals: Sender<Sealed>,
    link: Arc<PreparerLink>,
    gate_shut: bool,
    /// A truncation holds the gate shut.
    held: bool,
    /// Since when the writer waits for a segment.
    waiting_since_ns: Option<u64>,
}

/// Where writing starts.
pub(crate) struct Start {
    pub(crate) live: LiveSegment,
    pub(crate) offset: u64,
    pub(crate) prev_crc: u32,
    pub(crate) wall_ns: u64,
    pub(crate) index: SegmentIndex,
    pub(crate) ready: Vec<LiveSegment>,
}

impl Space {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        start: Start,
        deliveries: Receiver<Delivery>,
        seals: Sender<Sealed>,
        link: Arc<PreparerLink>,
    ) -> Self {
        Space {
            store,
            live: start.live,
            offset: start.offset,
            prev_crc: start.prev_crc,
            wall_ns: start.wall_ns,
            index: start.index,
            ready: start.ready.into(),
            deliveries,
            sealed: VecDeque::new(),
            seals,
            link,
            gate_shut: false,
            held: false,
            waiting_since_ns: None,
        }
    }

    /// What the next batch's header repeats: identity, offset, link.
    pub(crate) fn at(&self) -> (BatchContext, u64, u32) {
        (BatchContext::from(&self.live.header), self.offset, self.prev_crc)
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.live.header.block_bytes as usize
    }

    /// The path of the live segment, for errors.
    pub(crate) fn live_path(&self) -> PathBuf {
        self.store.path(&segment_name(self.live.header.epoch))
    }

    /// Bytes left for batches in the live segment.
    pub(crate) fn room(&self) -> u64 {
        footer_offset(&self.live.header).saturating_sub(self.offset)
    }

    /// The wall clock, held so that it never goes back.
    pub(crate) fn wall_ns(&mut self, now: u64) -> u64 {
        self.wall_ns = self.wall_ns.max(now);
        self.wall_ns
    }

    /// Takes the place of a sealed batch, and returns the file that it goes to.
    pub(crate) fn advance(
        &mut self,
        shared: &Shared,
        batch: &BatchHeader,
        crc: u32,
    ) -> Arc<dyn File> {
        self.offset += batch.disk_bytes(u64::from(self.live.header.block_bytes));
        self.prev_crc = crc;
        if self.index.add(batch, crc, self.offset) {
            shared.live_index.show(&self.index);
        }
        shared.extent.set_live_payload_bytes(self.index.footer().payload_bytes);
        self.account(shared);
        self.live.file.clone()
    }

    /// Moves on to the next ready segment.
    pub(crate) fn rotate(&mut self, shared: &Shared) -> Need {
        let Some(next) = self.ready.pop_front() else {
            self.waiting_since_ns.get_or_insert_with(|| shared.clock.now_ns());
            return Need::Waiting;
        };
        if let Some(since) = self.waiting_since_ns.take() {
            shared.counters.rotation_waits.add(shared.clock.now_ns().saturating_sub(since));
        }
        self.offset = next.header.data_offset();
        let index = SegmentIndex::new(&next.header, self.index.footer().next_lsn);
        self.sealed.push_back(Sealed {
            index: core::mem::replace(&mut self.index, index),
            segment: core::mem::replace(&mut self.live, next),
            generation: shared.extent.generation(),
        });
        shared.extent.set_live_payload_bytes(0);
        shared.live_index.show(&self.index);
        shared.extent.set_live_epoch(self.live.header.epoch);
        shared.counters.rotations.add(1);
        self.link.took_one();
        self.account(shared);
        Need::Met
    }

    /// Hands sealed segments to the preparer once a record behind them is durable: then all of
    /// theirs are, and nobody looks for the end of the log there any more.
    pub(crate) fn hand_over(&mut self, shared: &Shared) {
        let durable = shared.commit.watermark(Level::Synced);
        let mut any = false;
        while let Some(sealed) =
            self.sealed.pop_front_if(|sealed| sealed.index.footer().next_lsn <= durable)
        {
            // The preparer is gone only when the log has ended: then the batches have to do.
            any |= self.seals.send(sealed).is_ok();
        }
        if any {
            self.link.tell();
        }
    }

    /// Keeps the gate shut, whatever space there is, or lets it go.
    pub(crate) fn hold(&mut self, shared: &Shared, held: bool) {
        self.held = held;
        self.account(shared);
    }

    /// The segments that stand ready, in order: a truncation takes them all.
    pub(crate) fn take_ready(&mut self, shared: &Shared) -> Result<Vec<LiveSegment>, IoError> {
        self.take_deliveries(shared)?;
        let ready: Vec<LiveSegment> = self.ready.drain(..).collect();
        ready.iter().for_each(|_| self.link.took_one());
        Ok(ready)
    }

    /// Puts back what `take_ready` took.
    pub(crate) fn put_back(&mut self, ready: Vec<LiveSegment>) {
        ready.iter().for_each(|_| self.link.gave_back());
        self.ready.extend(ready);
    }

    pub(crate) fn ring_preparer(&self) {
        self.link.bell.ring();
    }

    pub(crate) fn live(&self) -> &LiveSegment {
        &self.live
    }

    /// Writing goes on in another segment: the log was cut.
    pub(crate) fn go_on_in(
        &mut self,
        shared: &Shared,
        live: LiveSegment,
        offset: u64,
        prev_crc: u32,
        index: SegmentIndex,
    ) {
        // What was sealed may be cut; its footers are only a cache.
        self.sealed.clear();
        self.live = live;
        self.offset = offset;
        self.prev_crc = prev_crc;
        self.index = index;
        shared.live_index.show(&self.index);
        shared.extent.set_live_payload_bytes(self.index.footer().payload_bytes);
        shared.extent.set_live_epoch(self.live.header.epoch);
    }

    /// Takes what the preparer sent.
    pub(crate) fn take_deliveries(&mut self, shared: &Shared) -> Result<(), IoError> {
        while let Ok(delivery) = self.deliveries.try_recv() {
            match delivery {
                Delivery::Ready(segment) => {
                    shared.set_out_of_space(false);
                    self.ready.push_back(segment);
                }
                Delivery::NoSpace => shared.set_out_of_space(true),
                Delivery::Failed(error) => return Err(error),
            }
        }
        self.account(shared);
        // Large records wait for free bytes, or learn that there will be none.
        shared.rings.space_freed();
        Ok(())
    }

    pub(crate) fn is_gate_shut(&self) -> bool {
        self.gate_shut
    }

    /// Whether the writer waits for a segment.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting_since_ns.is_some()
    }

    /// The log has ended: so does the preparer.
    pub(crate) fn end(&self) {
        self.link.stop();
    }

    /// Counts the free space, and shuts or opens the gate accordingly.
    pub(crate) fn account(&mut self, shared: &Shared) {
        let ready: u64 = self
            .ready
            .iter()
            .map(|segment| footer_offset(&segment.header) - segment.header.data_offset())
            .sum();
        let free = self.room() + ready;
        shared.free_bytes.store(free, Ordering::Relaxed);
        let reason = if shared.is_out_of_space() { Shut::NoSpace } else { Shut::Preparing };
        let short =
            self.held || free < shared.reserve_bytes() + 2 * shared.rings.large_unsealed_bytes();
        match (short, self.gate_shut) {
            (true, false) => {
                shared.numbers.shut(reason);
            }
            (true, true) => shared.numbers.set_space_reason(reason),
            (false, true) => shared.numbers.open(),
            (false, false) => return,
        }
        if short && !self.held {
            // More rings or large records than before may need more segments than it thought.
            self.link.bell.ring();
        }
        if reason == Shut::NoSpace {
            shared.rings.wake_all();
        }
        self.gate_shut = short;
    }
}
