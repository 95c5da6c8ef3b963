//! Accepting a record: claim, fill, number, publish, and wake the writer if it sleeps.
//!
//! [`append`] is the way of most records. Those that are filled in place, batches, and what is too
//! large for a ring go through [`Space`], which gives its room up when it is dropped.

use std::io::IoSlice;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::{Content, Large, lay_out};
use crate::drain::{batch_slot_table_at, store_large};
use crate::error::AppendError;
use crate::frame::{self, BATCH_HEADER_BYTES, TABLE_ENTRY_BYTES};
use crate::mem::AlignedBuf;
use crate::numbers::Shut;
use crate::probes::stage;
use crate::ring::{Claim, Meta, Ring, SlotState};
use crate::shared::{ASK_ROOM, ASK_SPACE, Shared};
use crate::sync::Ordering;
use crate::ticket::Ticket;

/// How long an append waits for room.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    None,
    Until(Instant),
    Forever,
}

impl Patience {
    pub(crate) fn for_time(timeout: Duration) -> Self {
        // A time beyond what the clock can say is for ever.
        Instant::now().checked_add(timeout).map_or(Patience::Forever, Patience::Until)
    }
}

/// Appends one record. The straight way through: nothing in it allocates, locks, or calls the system,
/// other than to wake a sleeping writer.
#[inline]
pub(crate) fn append<'a>(
    shared: &'a Arc<Shared>,
    record: &[u8],
    patience: Patience,
) -> Result<Ticket<'a>, AppendError> {
    if record.len() > shared.limits.inline_bytes_max || shared.fork.forked() {
        return append_large(shared, record, patience);
    }
    stage!(append, record.len());
    let units = Ring::units_for(record.len());
    let (ring, mut claim) = match shared.rings.claim(units) {
        Some(found) => found,
        None => wait_for_room(shared, patience, ASK_ROOM, || None, || shared.rings.claim(units))?,
    };
    stage!(claim, record.len());
    ring.bytes_mut(&mut claim)[..record.len()].copy_from_slice(record);
    let meta = Meta(record.len() as u32, frame::crc32c(record));
    // The number comes last, two stores before it is published: a producer that is preempted while
    // it fills its slot holds up nobody.
    let lsn = match shared.numbers.take(1) {
        Ok(lsn) => lsn,
        Err(shut) => match take_at_shut_gate(shared, 1, None, shut, patience) {
            Ok(lsn) => lsn,
            Err(error) => {
                abort(shared, ring, claim);
                return Err(error);
            }
        },
    };
    let generation = shared.extent.generation();
    ring.publish(claim, SlotState::Record, lsn, meta);
    stage!(publish, lsn, 1, record.len());
    ring_bell(shared);
    Ok(Ticket::new(shared, lsn, lsn, generation))
}

/// A record that no ring takes, or one that this process may not append.
#[cold]
fn append_large<'a>(
    shared: &'a Arc<Shared>,
    record: &[u8],
    patience: Patience,
) -> Result<Ticket<'a>, AppendError> {
    append_filled(shared, record.len(), patience, |out| out.copy_from_slice(record))
}

/// Appends one record of `len` bytes, which `fill` writes in place.
fn append_filled<'a>(
    shared: &'a Arc<Shared>,
    len: usize,
    patience: Patience,
    fill: impl FnOnce(&mut [u8]),
) -> Result<Ticket<'a>, AppendError> {
    let mut space = reserve_space(shared, len, patience)?;
    fill(&mut space);
    space.publish(patience)
}

/// Appends the parts as one record.
pub(crate) fn append_vectored<'a>(
    shared: &'a Arc<Shared>,
    parts: &[IoSlice<'_>],
) -> Result<Ticket<'a>, AppendError> {
    let len = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.len()));
    append_filled(shared, len.unwrap_or(usize::MAX), Patience::Forever, |out| {
        let mut rest = out;
        for part in parts {
            let (front, back) = rest.split_at_mut(part.len());
            front.copy_from_slice(part);
            rest = back;
        }
    })
}

/// Appends all records, or none: they get consecutive numbers and survive a crash together.
pub(crate) fn append_batch<'a, R: AsRef<[u8]>>(
    shared: &'a Arc<Shared>,
    records: &[R],
    patience: Patience,
) -> Result<Ticket<'a>, AppendError> {
    if shared.fork.forked() {
        return Err(AppendError::Forked);
    }
    if records.is_empty() {
        return Err(AppendError::EmptyBatch);
    }
    let lens = records.iter().map(|record| record.as_ref().len());
    let payload_bytes = lens.fold(0usize, usize::saturating_add);
    stage!(append, payload_bytes);
    let count = records.len();
    let limits = &shared.limits;
    let disk_bytes = disk_bytes(shared, payload_bytes, count)?;
    let table_at = batch_slot_table_at(payload_bytes);
    let slot_bytes = table_at + count * TABLE_ENTRY_BYTES;
    if slot_bytes <= limits.inline_bytes_max {
        let mut claim = claim(shared, slot_bytes, patience)?;
        if !lay_out(records, payload_bytes, claim.bytes_mut(), table_at) {
            return Err(AppendError::RecordChanged);
        }
        return claim.publish(
            SlotState::Batch,
            count as u64,
            Meta(count as u32, payload_bytes as u32),
            patience,
        );
    }
    let mut large = LargeSpace::take(shared, disk_bytes, patience)?;
    let table_at = frame::table_offset(payload_bytes);
    let out = &mut large.buf_mut()[BATCH_HEADER_BYTES..];
    if !lay_out(records, payload_bytes, out, table_at - BATCH_HEADER_BYTES) {
        return Err(AppendError::RecordChanged);
    }
    let table = &large.buf()[table_at..table_at + count * TABLE_ENTRY_BYTES];
    let content = Content { count: count as u32, payload_bytes, table_crc: frame::crc32c(table) };
    large.publish(content, patience)
}

/// Takes room for one record.
#[inline]
pub(crate) fn reserve_space<'a>(
    shared: &'a Arc<Shared>,
    len: usize,
    patience: Patience,
) -> Result<Space<'a>, AppendError> {
    if shared.fork.forked() {
        return Err(AppendError::Forked);
    }
    stage!(append, len);
    let place = if len <= shared.limits.inline_bytes_max {
        Place::Ring(claim(shared, len, patience)?)
    } else {
        let disk_bytes = disk_bytes(shared, len, 1)?;
        Place::Heap(LargeSpace::take(shared, disk_bytes, patience)?)
    };
    Ok(Space { place, len })
}

/// Bytes of a disk batch of its own with these sizes, if the log takes it.
fn disk_bytes(shared: &Shared, payload_bytes: usize, count: usize) -> Result<usize, AppendError> {
    let limits = &shared.limits;
    let max = limits.record_bytes_max();
    let table = count.saturating_mul(TABLE_ENTRY_BYTES).saturating_sub(TABLE_ENTRY_BYTES);
    let bytes = payload_bytes.saturating_add(table);
    if bytes > max {
        return Err(AppendError::TooLarge { bytes, max });
    }
    Ok(Large::buf_bytes(payload_bytes, count, limits.block_bytes))
}

/// Room for one record that nobody else sees. Dropped unpublished, it is given up and takes no
/// number.
pub(crate) struct Space<'a> {
    place: Place<'a>,
    len: usize,
}

enum Place<'a> {
    Ring(RingSpace<'a>),
    Heap(LargeSpace<'a>),
}

impl<'a> Space<'a> {
    /// Publishing it is refused when the log has left this generation.
    pub(crate) fn bind(&mut self, generation: u64) {
        match &mut self.place {
            Place::Ring(space) => space.bound_to = Some(generation),
            Place::Heap(space) => space.bound_to = Some(generation),
        }
    }

    pub(crate) fn shared(&self) -> &'a Arc<Shared> {
        match &self.place {
            Place::Ring(space) => space.shared,
            Place::Heap(space) => space.shared,
        }
    }

    /// Gives the record its number and hands it to the writer.
    pub(crate) fn publish(self, patience: Patience) -> Result<Ticket<'a>, AppendError> {
        let len = self.len;
        if self.shared().fork.forked() {
            return Err(AppendError::Forked);
        }
        match self.place {
            Place::Ring(mut space) => {
                let crc = frame::crc32c(&space.bytes_mut()[..len]);
                space.publish(SlotState::Record, 1, Meta(len as u32, crc), patience)
            }
            Place::Heap(mut space) => {
                let content = Content::single(&mut space.buf_mut()[..], len);
                space.publish(content, patience)
            }
        }
    }
}

impl Deref for Space<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.place {
            Place::Ring(space) => &space.bytes()[..self.len],
            Place::Heap(space) => &space.buf()[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + self.len],
        }
    }
}

impl DerefMut for Space<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.place {
            Place::Ring(space) => &mut space.bytes_mut()[..self.len],
            Place::Heap(space) => {
                &mut space.buf_mut()[BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + self.len]
            }
        }
    }
}

/// A claim in a ring.
struct RingSpace<'a> {
    shared: &'a Arc<Shared>,
    ring: &'a Ring,
    /// `None` once published or aborted.
    claim: Option<Claim>,
    /// The generation of the log outside which it must not be published.
    bound_to: Option<u64>,
}

impl<'a> RingSpace<'a> {
    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.claim {
            Some(claim) => self.ring.bytes_mut(claim),
            None => &mut [],
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.claim {
            Some(claim) => self.ring.claimed_bytes(claim),
            None => &[],
        }
    }

    #[inline]
    fn publish(
        mut self,
        state: SlotState,
        count: u64,
        meta: Meta,
        patience: Patience,
    ) -> Result<Ticket<'a>, AppendError> {
        let shared = self.shared;
        // The number comes last, two instructions before it is published: a producer that is
        // preempted while it fills its slot holds up nobody.
        let first = take_numbers(shared, count, self.bound_to, patience)?;
        let generation = shared.extent.generation();
        if let Some(claim) = self.claim.take() {
            self.ring.publish(claim, state, first, meta);
        }
        stage!(publish, first, count, if state == SlotState::Batch { meta.1 } else { meta.0 });
        ring_bell(shared);
        Ok(Ticket::new(shared, first, first + count - 1, generation))
    }
}

impl Drop for RingSpace<'_> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            abort(self.shared, self.ring, claim);
        }
    }
}

/// Gives a claim up.
#[cold]
fn abort(shared: &Shared, ring: &Ring, claim: Claim) {
    if shared.rings.abort(ring, claim) {
        shared.ask(ASK_ROOM);
    }
}

/// Wakes the writer if it sleeps.
#[inline]
fn ring_bell(shared: &Shared) {
    if shared.bell.ring_announced() {
        shared.counters.writer_wakes.add(1);
    }
}

/// Claims a slot of `bytes` in some ring.
#[inline]
fn claim<'a>(
    shared: &'a Arc<Shared>,
    bytes: usize,
    patience: Patience,
) -> Result<RingSpace<'a>, AppendError> {
    let units = Ring::units_for(bytes);
    let found = match shared.rings.claim(units) {
        Some(found) => found,
        None => wait_for_room(shared, patience, ASK_ROOM, || None, || shared.rings.claim(units))?,
    };
    let (ring, claim) = found;
    stage!(claim, bytes);
    Ok(RingSpace { shared, ring, claim: Some(claim), bound_to: None })
}

/// Waits until `attempt` succeeds, as long as the patience lasts and neither the gate nor `refusal`
/// says that there is nothing to wait for.
#[cold]
fn wait_for_room<T>(
    shared: &Shared,
    patience: Patience,
    ask: u32,
    refusal: impl Fn() -> Option<AppendError>,
    mut attempt: impl FnMut() -> Option<T>,
) -> Result<T, AppendError> {
    let start = shared.clock.now_ns();
    let mut waiting = shared.rings.wait_for_space();
    let outcome = loop {
        if let Some(found) = attempt() {
            break Ok(found);
        }
        let shut = shared.numbers.shut_reason().and_then(|shut| shared.refusal(shut));
        if let Some(error) = shut.or_else(&refusal) {
            break Err(error);
        }
        // The writer may sleep while a reservation pins the ring.
        shared.ask(ask);
        match patience {
            Patience::None => break Err(AppendError::Full),
            Patience::Forever => waiting.sleep(None),
            Patience::Until(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break Err(AppendError::TimedOut);
                }
                waiting.sleep(Some(left));
            }
        }
    };
    shared.counters.ring_full.add(shared.clock.now_ns().saturating_sub(start));
    outcome
}

/// Takes `count` numbers for a slot that was claimed before.
fn take_numbers(
    shared: &Shared,
    count: u64,
    bound_to: Option<u64>,
    patience: Patience,
) -> Result<u64, AppendError> {
    if has_left(shared, bound_to) {
        return Err(AppendError::Truncated);
    }
    match shared.numbers.take(count) {
        Ok(first) => Ok(first),
        Err(shut) => take_at_shut_gate(shared, count, bound_to, shut, patience),
    }
}

/// Whether the log was truncated since. (One that is truncated at this very moment may have the
/// record before the cut or behind it, as with any append.)
fn has_left(shared: &Shared, generation: Option<u64>) -> bool {
    generation.is_some_and(|generation| generation != shared.extent.generation())
}

/// Waits for the gate to open. No number is held meanwhile.
#[cold]
fn take_at_shut_gate(
    shared: &Shared,
    count: u64,
    bound_to: Option<u64>,
    mut shut: Shut,
    patience: Patience,
) -> Result<u64, AppendError> {
    let start = shared.clock.now_ns();
    let outcome = loop {
        if let Some(error) = shared.refusal(shut) {
            break Err(error);
        }
        match patience {
            Patience::None => break Err(AppendError::Full),
            Patience::Forever => shared.numbers.wait_for_change(None),
            Patience::Until(deadline) if Instant::now() >= deadline => {
                break Err(AppendError::TimedOut);
            }
            Patience::Until(deadline) => shared.numbers.wait_for_change(Some(deadline)),
        }
        if has_left(shared, bound_to) {
            break Err(AppendError::Truncated);
        }
        match shared.numbers.take(count) {
            Ok(first) => break Ok(first),
            Err(still) => shut = still,
        }
    };
    shared.counters.no_segment.add(shared.clock.now_ns().saturating_sub(start));
    outcome
}

/// Heap bytes of the budget, and the buffer that they pay for.
struct LargeSpace<'a> {
    shared: &'a Arc<Shared>,
    /// `None` once the writer owns it.
    buf: Option<AlignedBuf>,
    /// Bytes of the budget to return; 0 once the writer owns the buffer.
    budget: u64,
    /// The generation of the log outside which it must not be published.
    bound_to: Option<u64>,
}

impl<'a> LargeSpace<'a> {
    fn take(
        shared: &'a Arc<Shared>,
        disk_bytes: usize,
        patience: Patience,
    ) -> Result<Self, AppendError> {
        let budget = disk_bytes as u64;
        let take = || {
            // Relaxed: a stale value delays or refuses; the writer keeps the true account.
            let free = shared.free_bytes.load(Ordering::Relaxed);
            let spare = free.saturating_sub(shared.reserve_bytes());
            shared.rings.take_large(budget, spare).then_some(())
        };
        if take().is_none() {
            let _waiting = shared.rings.wait_for_large();
            // Small records go on while there is space for them; one that needs more is refused.
            let refusal = || shared.is_out_of_space().then_some(AppendError::NoSpace);
            wait_for_room(shared, patience, ASK_SPACE, refusal, take)?;
        }
        // Made first, so that the budget is returned if there is no memory.
        let mut space = LargeSpace { shared, buf: None, budget, bound_to: None };
        let buf = AlignedBuf::new(disk_bytes);
        space.buf = Some(buf.map_err(|_| AppendError::OutOfMemory { bytes: disk_bytes })?);
        Ok(space)
    }

    fn buf(&self) -> &[u8] {
        self.buf.as_deref().unwrap_or_default()
    }

    fn buf_mut(&mut self) -> &mut [u8] {
        self.buf.as_deref_mut().unwrap_or_default()
    }

    fn publish(mut self, content: Content, patience: Patience) -> Result<Ticket<'a>, AppendError> {
        let count = u64::from(content.count);
        if has_left(self.shared, self.bound_to) {
            // Said before the rings are, which may be full.
            return Err(AppendError::Truncated);
        }
        let mut slot = claim(self.shared, size_of::<usize>(), patience)?;
        // Made before the number is taken: nothing that may wait stands between that and the publication.
        let large = self.buf.take().map(|buf| Box::new(Large { buf, content }));
        let first = take_numbers(self.shared, count, self.bound_to, patience)?;
        let generation = self.shared.extent.generation();
        if let Some(large) = large {
            // From here on the writer returns the budget.
            self.budget = 0;
            store_large(slot.bytes_mut(), large);
        }
        if let Some(claim) = slot.claim.take() {
            slot.ring.publish(claim, SlotState::Large, first, Meta(count as u32, 0));
        }
        stage!(publish, first, count, content.payload_bytes);
        ring_bell(self.shared);
        Ok(Ticket::new(self.shared, first, first + count - 1, generation))
    }
}

impl Drop for LargeSpace<'_> {
    fn drop(&mut self) {
        if self.budget > 0 {
            self.shared.rings.give_up_large(self.budget);
            self.shared.rings.space_freed();
            // The gate may have been shut for it.
            self.shared.ask(ASK_SPACE);
        }
    }
}

/// Room for one record, to be filled in place: made by [`Log::reserve`](crate::Log::reserve).
///
/// It dereferences to its bytes, which hold whatever stood there before (bytes of earlier records,
/// as a rule): write all of them. Dropped without [`publish`](Self::publish), the record never was:
/// no number is taken. While a reservation is held it delays no other record, but the ring that it
/// stands in can give back no space behind it; if that goes on until the ring is full, the ring is
/// replaced.
#[must_use = "a reservation that is not published is given up"]
pub struct Reservation<'a> {
    space: Space<'a>,
}

impl<'a> Reservation<'a> {
    pub(crate) fn new(mut space: Space<'a>) -> Self {
        let generation = space.shared().extent.generation();
        space.bind(generation);
        Reservation { space }
    }

    /// Makes the record part of the log: it gets its number here.
    ///
    /// Blocks only while the log waits for its next segment to be prepared.
    ///
    /// # Errors
    /// The log was closed, poisoned or truncated, or ran out of space, since the reservation was made:
    /// [`AppendError`]. The record is not in the log then.
    pub fn publish(self) -> Result<Ticket<'a>, AppendError> {
        self.space.publish(Patience::Forever)
    }

    /// As [`publish`](Self::publish), but never waits.
    ///
    /// # Errors
    /// As there, and [`AppendError::Full`] while the log waits for its next segment (or, for a record
    /// too large for a ring, while all rings are full). The reservation is given up then.
    pub fn try_publish(self) -> Result<Ticket<'a>, AppendError> {
        self.space.publish(Patience::None)
    }
}

impl Deref for Reservation<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.space
    }
}

impl DerefMut for Reservation<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.space
    }
}
