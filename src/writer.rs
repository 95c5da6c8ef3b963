//! The writer: one state machine between the rings and the disk.
//!
//! A turn reaps what the disk finished, moves the watermarks, drains the rings into the current batch,
//! and submits it when the disk can take it: group commit clocks itself. What the turn cannot do it
//! says ([`Next`]): wait for the disk, let others run, or sleep. The thread ([`Writer::run`]) obeys; a
//! simulation calls the turns itself.
//!
//! Invariants:
//! - Batches are sealed in number order, and each carries the checksum of the one before.
//! - A watermark moves only over batches that are done, in that order, and never after a failure.
//! - A batch's header says what was synced when it was sealed, never more.
//! - The segment for the next batch stands ready before a number for it is given out
//!   ([`Space`](crate::space::Space)).

mod linger;
mod submit;
#[cfg(all(test, feature = "sim", not(uringlog_loom)))]
mod tests;
mod truncate;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use linger::Linger;

use crate::batch::{BatchBuilder, Large};
use crate::commit::Level;
use crate::disk::{BackendInfo, Disk, Done, File};
use crate::drain::{Drain, Filled};
use crate::error::{IoError, Poison};
use crate::frame::BatchHeader;
use crate::mark::{Closed, Mark};
use crate::mem::AlignedBuf;
use crate::numbers::Shut;
use crate::options::{Durability, Idle, Options};
use crate::probes::stage;
use crate::shared::{ASK_CLOSE, ASK_ROOM, ASK_SPACE, ASK_TRUNCATE, Shared};
use crate::space::{Need, Space};
use crate::status::StatusPage;
use crate::tail::TailWindow;
use crate::timing::RawTiming;
use crate::waiters::Waiters;

/// Payload bytes of a batch from which on the producers are taken for a stream: it is drained every
/// so often while the disk works, so that the next batch is full when the disk is free.
const STREAM_BYTES: usize = 64 << 10;
const STREAM_PAUSE: Duration = Duration::from_micros(50);

/// Of so many looks at the rings one goes through each of them to its end; the others end when every number that was
/// given out is found (`drain.rs`).
const LOOKS_AT_NUMBERS: u32 = 256;

/// How often the writer yields to a producer that stands between its number and the publication, before it
/// sleeps; and for how long at a time it does.
const UNSEEN_LOOKS_MAX: u32 = 16;
const UNSEEN_PAUSE: Duration = Duration::from_millis(1);

/// What the writer needs before its next turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// The disk finishes something; with a time, others go on for so long at most, because a
    /// stream of records is coming in that is to be drained meanwhile.
    Disk(Option<Duration>),
    /// Others run for a moment: a batch is growing.
    Linger,
    /// Something is published or asked for, or the time is over.
    Sleep(Option<Duration>),
    /// Nothing: the log has ended.
    End,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    disk: Box<dyn Disk>,
    drain: Drain,
    space: Space,
    /// The batch being filled. Its limit is what the live segment has left.
    batch: BatchBuilder,
    /// The batch takes no more.
    batch_full: bool,
    /// A record that is a batch of its own, taken out of its ring; the batch is empty then.
    large: Option<(u64, Box<Large>)>,
    spare: Vec<AlignedBuf>,
    /// What the disk works on, in the order of submission.
    flight: VecDeque<Flight>,
    done: Vec<Done>,
    next_token: u64,
    /// Payload bytes of the last batch submitted.
    submitted_bytes: usize,
    /// The last batches in memory, for followers.
    tail: TailWindow,
    waiters: Waiters,
    tuning: Tuning,
    linger: Linger,
    /// The largest number that a batch on disk vouches for.
    vouched: u64,
    /// Since when nothing was under way, in nanoseconds of the log's clock.
    idle_since_ns: u64,
    /// The file written to and not yet synced (logs that acknowledge written records).
    unsynced: Option<Arc<dyn File>>,
    closing: bool,
    /// A truncation was asked for and waits until everything accepted is on the disk.
    truncating: bool,
    ended: bool,
    hold: Hold,
    /// Looks at the rings.
    looks: u32,
    /// How often the writer did not sleep, as a number was out whose record it had not seen.
    unseen_looks: u32,
}

/// Options that the writer looks at.
struct Tuning {
    durability: Durability,
    idle: Idle,
    linger_max_ns: u64,
    vouch_after_ns: u64,
}

/// An operation under way.
struct Flight {
    token: u64,
    what: What,
    /// Its result is in; it waits for those before it.
    finished: bool,
    /// The image that was written, once it was.
    image: Option<AlignedBuf>,
    timing: RawTiming,
}

#[derive(Clone, Copy)]
enum What {
    /// A batch, with the budget that it gives back where it is a large record.
    Batch { header: BatchHeader, appends: u64, budget: u64 },
    /// A sync that covers what was acknowledged up to `covers`.
    Sync { covers: u64 },
}

/// Timing the two short windows in which a producer can hold up others, and the reordering window.
#[derive(Default)]
struct Hold {
    number_since_ns: Option<u64>,
    claim_since_ns: Option<u64>,
    /// Since when records lie beyond the window.
    window_since_ns: Option<u64>,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        mut disk: Box<dyn Disk>,
        backend: &mut BackendInfo,
        space: Space,
        options: &Options,
        window_records: usize,
    ) -> std::io::Result<Self> {
        let buffers = disk.depth_max() + 1;
        let buffer = |_| AlignedBuf::new(shared.limits.batch_bytes_max);
        let mut spare = (0..buffers).map(buffer).collect::<std::io::Result<Vec<_>>>()?;
        backend.registered_buffers = disk.register_buffers(&spare);
        backend.huge_pages = spare.iter().all(AlignedBuf::is_huge);
        let first = match spare.pop() {
            Some(first) => first,
            None => AlignedBuf::new(shared.limits.batch_bytes_max)?,
        };
        let durable = shared.commit.watermark(Level::Synced);
        Ok(Writer {
            drain: Drain::new(durable + 1, window_records),
            space,
            batch: BatchBuilder::new(first),
            batch_full: false,
            large: None,
            spare,
            flight: VecDeque::new(),
            done: Vec::new(),
            next_token: 0,
            submitted_bytes: 0,
            tail: TailWindow::new(shared.tail.clone(), options.tail_bytes),
            waiters: Waiters::new(shared.commit.watermark(Level::Acked), durable),
            tuning: Tuning {
                durability: options.durability,
                idle: options.writer_idle,
                linger_max_ns: options.linger_max.as_nanos() as u64,
                vouch_after_ns: options.vouch_after.as_nanos() as u64,
            },
            linger: Linger::default(),
            vouched: durable,
            idle_since_ns: shared.clock.now_ns(),
            unsynced: None,
            closing: false,
            truncating: false,
            ended: false,
            hold: Hold::default(),
            looks: 0,
            unseen_looks: 0,
            disk,
            shared,
        })
    }

    /// The writer's thread.
    pub(crate) fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run_to_the_end()));
        if let Err(payload) = outcome {
            let message = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            let durable = self.shared.commit.watermark(Level::Synced).into();
            let poison = Poison::panic(durable, message.to_owned());
            // The panic may have come from a user's waker: a second one must not end the process.
            let _second = catch_unwind(AssertUnwindSafe(|| self.end(Some(poison))));
        }
    }

    fn run_to_the_end(&mut self) {
        loop {
            match self.turn() {
                Next::Disk(time) => self.await_disk(time),
                Next::Linger => self.let_others_run(),
                Next::Sleep(timeout) => self.sleep(timeout),
                Next::End => return,
            }
        }
    }

    /// Blocks until the disk finishes something, or for a time.
    pub(crate) fn await_disk(&mut self, time: Option<Duration>) {
        match time {
            None => self.disk.reap(true, &mut self.done),
            Some(time) => self.disk.reap_within(time, &mut self.done),
        }
    }

    /// Everything that can be done now.
    pub(crate) fn turn(&mut self) -> Next {
        if self.ended {
            return Next::End;
        }
        self.reap();
        if self.ended {
            return Next::End;
        }
        if self.batch_full {
            // It was filled while the disk was busy: nothing that can be found now belongs into it.
            self.submit_all();
        }
        self.answer();
        if self.ended {
            return Next::End;
        }
        self.gather();
        if self.waiters.any_done() {
            // If as much is pending as the last batch held, the disk comes first: nobody who is
            // about to be woken belongs into this batch.
            let merges = self.is_merge_due();
            if !merges && self.pending_like_last() {
                self.submit_all();
            }
            self.wake_done(merges);
            self.gather();
        }
        self.wake_readers();
        if self.is_growing() {
            return Next::Linger;
        }
        self.submit_all();
        if self.ended {
            return Next::End;
        }
        if !self.flight.is_empty() {
            // What came in while the batch was sealed and submitted.
            self.gather();
            let streaming = self.batch.payload_bytes().max(self.submitted_bytes) >= STREAM_BYTES;
            return Next::Disk((streaming && !self.batch_full).then_some(STREAM_PAUSE));
        }
        self.rest()
    }

    // ---- what the disk finished ----

    fn reap(&mut self) {
        if !self.flight.is_empty() {
            self.disk.reap(false, &mut self.done);
        }
        let mut done = core::mem::take(&mut self.done);
        for finished in done.drain(..) {
            self.finished(finished);
            if self.ended {
                return;
            }
        }
        // The buffer of the vector is kept.
        self.done = done;
        let before = self.flight.len();
        while let Some(flight) = self.flight.pop_front_if(|flight| flight.finished) {
            self.settle(flight);
        }
        if self.flight.len() != before {
            self.shared.show_status();
            self.waiters.take_done(&self.shared.commit);
            self.space.hand_over(&self.shared);
            self.idle_since_ns = self.shared.clock.now_ns();
        }
    }

    fn finished(&mut self, done: Done) {
        let now = self.shared.clock.now_ns();
        stage!(complete, done.token, done.result.is_err());
        let Some(flight) = self.flight.iter_mut().find(|flight| flight.token == done.token) else {
            return;
        };
        flight.image = done.buf;
        flight.finished = true;
        flight.timing.durable_ns = now;
        flight.timing.write_took_ns = done.write_took.as_nanos() as u64;
        if let Err(error) = done.result {
            let action = match flight.what {
                What::Batch { .. } => "write and sync a batch in",
                What::Sync { .. } => "sync",
            };
            let error = IoError::new(action, self.space.live_path(), error);
            self.fail(error);
        }
    }

    /// Moves the watermarks over a finished operation; those before it are settled.
    fn settle(&mut self, flight: Flight) {
        let shared = &*self.shared;
        match flight.what {
            What::Batch { header, appends, budget } => {
                let last = header.last_lsn();
                if let Some(image) = flight.image {
                    // Before the watermarks: who sees the number finds the batch.
                    self.tail.push(&header, &image, shared.extent.generation());
                    // A large record's buffer was its producer's, and goes with it.
                    if budget == 0 {
                        self.spare.push(image);
                    }
                }
                if self.tuning.durability == Durability::Durable {
                    shared.commit.advance(Level::Synced, last);
                    stage!(durable, last, flight.token);
                }
                shared.commit.advance(Level::Acked, last);
                stage!(acknowledge, last, flight.token);
                self.vouched = self.vouched.max(header.synced_lsn);
                if budget > 0 {
                    shared.rings.return_large(budget);
                    shared.rings.space_freed();
                }
                if header.count > 0 {
                    self.linger.last_appends = appends;
                    self.linger.last_bytes = u64::from(header.payload_bytes);
                    shared.timings.record(&flight.timing);
                }
                let took = flight.timing.durable_ns.saturating_sub(flight.timing.submitted_ns);
                shared.counters.synced(took);
            }
            What::Sync { covers } => {
                shared.commit.advance(Level::Synced, covers);
                stage!(durable, covers, flight.token);
                shared.counters.syncs.add(1);
            }
        }
    }

    /// Wakes readers of other processes, if any sleeps.
    fn wake_readers(&self) {
        let shared = &self.shared;
        if let Some(status) = shared.status.as_ref().filter(|status| status.is_pending()) {
            let durable = shared.commit.watermark(Level::Synced);
            status.wake(shared.clock.now_ns(), durable, &shared.extent);
        }
    }

    // ---- what was asked for ----

    fn answer(&mut self) {
        let asked = self.shared.asked();
        if asked & ASK_SPACE != 0 {
            // Before the look: what is sent after it is asked for again.
            self.shared.answered(ASK_SPACE);
            if let Err(error) = self.space.take_deliveries(&self.shared) {
                return self.fail(error);
            }
        }
        if asked & ASK_ROOM != 0 {
            self.shared.answered(ASK_ROOM);
            self.drain.scan(&self.shared.rings);
            self.drain.give_back(&self.shared.rings);
            if self.drain.retire_pinned(&self.shared.rings) {
                // One more ring, one more reserve.
                self.space.account(&self.shared);
            }
            self.shared.counters.rings_retired.set(self.drain.stats().retired);
        }
        if asked & ASK_TRUNCATE != 0 {
            self.answer_truncate();
        }
        if asked & ASK_CLOSE != 0 {
            self.shared.answered(ASK_CLOSE);
            self.closing = true;
            self.shared.numbers.shut(Shut::Closed);
            self.shared.rings.wake_all();
        }
    }

    // ---- rings to batch ----

    /// Drains the rings into the current batch.
    fn gather(&mut self) {
        let Shared { rings, numbers, .. } = &*self.shared;
        self.looks = self.looks.wrapping_add(1);
        // Once in a while all is looked at: what was claimed and given up has no number.
        match self.looks.is_multiple_of(LOOKS_AT_NUMBERS) {
            true => self.drain.scan(rings),
            false => self.drain.scan_upto(rings, numbers.last()),
        };
        if self.drain.has_hole() {
            // The missing number may have been published in a ring looked at before.
            self.drain.scan_upto(rings, numbers.last());
        }
        self.time_holds();
        self.fill();
    }

    fn fill(&mut self) {
        while !self.batch_full && self.large.is_none() {
            if self.batch.is_empty() {
                let room = self.space.room();
                self.batch.set_limit(usize::try_from(room).unwrap_or(usize::MAX));
            }
            match self.drain.fill(&self.shared.rings, &mut self.batch) {
                Filled::All => return,
                Filled::Full if !self.batch.is_empty() => self.batch_full = true,
                // The next slot does not fit what the segment has left.
                Filled::Full => {
                    if !self.rotate() {
                        return;
                    }
                }
                Filled::Large(lsn, large) => self.large = Some((lsn, large)),
            }
        }
    }

    /// Moves on to the next segment; `false` while it is not there, or the old one must be synced
    /// first.
    fn rotate(&mut self) -> bool {
        if self.unsynced.is_some() {
            // Durable numbers must not have a hole: what is in the old file is synced before
            // anything is in the next.
            if self.flight.is_empty() {
                self.submit_sync();
            }
            return false;
        }
        match self.space.rotate(&self.shared) {
            Need::Met => true,
            Need::Waiting => false,
        }
    }

    fn time_holds(&mut self) {
        self.shared.counters.beyond_window.set(self.drain.stats().beyond_window);
        match (self.drain.is_window_full(), self.hold.window_since_ns) {
            (true, None) => self.hold.window_since_ns = Some(self.shared.clock.now_ns()),
            (false, Some(since)) => {
                let held = self.shared.clock.now_ns().saturating_sub(since);
                self.shared.counters.window_full.add(held);
                self.hold.window_since_ns = None;
            }
            _ => {}
        }
        match (self.drain.has_hole(), self.hold.number_since_ns) {
            (true, None) => self.hold.number_since_ns = Some(self.shared.clock.now_ns()),
            (false, Some(since)) => {
                let held = self.shared.clock.now_ns().saturating_sub(since);
                self.shared.counters.number_holds.add(held);
                self.hold.number_since_ns = None;
            }
            _ => {}
        }
        if self.hold.number_since_ns.is_some() {
            self.look_for_blind_claims();
        }
        if let Some(since) = self.hold.claim_since_ns
            && !self.drain.has_blind_claim(&self.shared.rings)
        {
            let held = self.shared.clock.now_ns().saturating_sub(since);
            self.shared.counters.claim_holds.add(held);
            self.hold.claim_since_ns = None;
        }
    }

    fn look_for_blind_claims(&mut self) {
        if self.hold.claim_since_ns.is_none() && self.drain.has_blind_claim(&self.shared.rings) {
            self.hold.claim_since_ns = Some(self.shared.clock.now_ns());
        }
    }

    // ---- nothing to do ----

    /// Nothing is under way and nothing can be submitted: sync and vouch if it is time, end, or sleep.
    fn rest(&mut self) -> Next {
        let pending = !self.batch.is_empty() || self.large.is_some();
        if pending {
            // It waits for a segment; the preparer rings.
            return Next::Sleep(None);
        }
        let drained = self.drain.has_all(&self.shared.numbers);
        if self.truncating {
            return self.truncate(drained);
        }
        let leaving = self.closing && drained;
        let idle_ns = self.shared.clock.now_ns().saturating_sub(self.idle_since_ns);
        let is_idle = idle_ns >= self.tuning.vouch_after_ns;
        if self.unsynced.is_some() && (leaving || is_idle) {
            self.submit_sync();
            return Next::Disk(None);
        }
        let synced = self.shared.commit.watermark(Level::Synced);
        let unvouched = self.vouched < synced;
        if unvouched && (leaving || is_idle) {
            self.submit_vouch();
            if !self.flight.is_empty() {
                return Next::Disk(None);
            }
        } else if leaving {
            self.close_cleanly();
            return Next::End;
        }
        if self.closing && !drained {
            // A producer is between number and publication; it rings.
            return Next::Sleep(None);
        }
        let to_do_when_idle = unvouched || self.unsynced.is_some();
        let left = Duration::from_nanos(self.tuning.vouch_after_ns.saturating_sub(idle_ns));
        Next::Sleep((to_do_when_idle && !left.is_zero()).then_some(left))
    }

    fn sleep(&mut self, timeout: Option<Duration>) {
        self.look_for_blind_claims();
        match self.tuning.idle {
            Idle::Spin => (0..32).for_each(|_| core::hint::spin_loop()),
            Idle::Yield => std::thread::yield_now(),
            Idle::Park => self.park(timeout),
        }
    }

    /// Sleeps until rung. Never while a number is out whose record was not seen: its producer need not ring.
    fn park(&mut self, timeout: Option<Duration>) {
        let shared = &self.shared;
        let has_seen_all = self.drain.has_seen_all(&shared.numbers);
        if has_seen_all {
            self.unseen_looks = 0;
        } else if self.drain.anything_new(&shared.rings) {
            // Published since the last look.
            self.unseen_looks = 0;
            return;
        } else if self.unseen_looks < UNSEEN_LOOKS_MAX {
            // Its producer is two stores away from publishing it.
            self.unseen_looks += 1;
            return std::thread::yield_now();
        }
        // What was not told to readers of other processes, as there were none, is told then.
        let due = shared.status.as_ref().and_then(StatusPage::is_due_within);
        // A producer that was stopped just there rings when it goes on. Only what it published and then was
        // stopped before this core could see it would have to be looked for.
        let look = (!has_seen_all).then_some(UNSEEN_PAUSE);
        let timeout = timeout.into_iter().chain(due).chain(look).min();
        let work = || {
            shared.asked() != 0
                || self.is_sync_due()
                || match has_seen_all {
                    true => !self.drain.has_seen_all(&shared.numbers),
                    false => self.drain.anything_new(&shared.rings),
                }
        };
        shared.counters.writer_sleeps.add(1);
        shared.bell.sleep(timeout, work);
    }

    // ---- the end ----

    /// Everything accepted is durable and vouched for. The mark says where it ends, so that the next
    /// open looks no further.
    fn close_cleanly(&mut self) {
        let (context, end_offset, crc) = self.space.at();
        let closed = Some(Closed { epoch: context.epoch, end_offset, crc });
        let marked = {
            let mut files = self.shared.extent.files();
            let mark = Mark { closed, ..*files.mark.get() };
            files.mark.set(&*self.shared.store, mark)
        };
        match marked {
            Ok(()) => self.end(None),
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: IoError) {
        let durable = self.shared.commit.watermark(Level::Synced);
        self.end(Some(Poison::io(durable.into(), error)));
    }

    /// Ends the log's life: nothing moves any more, and everyone who waits learns it.
    fn end(&mut self, poison: Option<Poison>) {
        self.ended = true;
        let reason = if poison.is_some() { Shut::Poisoned } else { Shut::Closed };
        // The cause first: who finds the gate shut finds the cause.
        self.shared.commit.end(poison);
        self.shared.numbers.shut(reason);
        self.shared.truncations.refuse_all(&self.shared);
        self.shared.rings.wake_all();
        self.space.end();
        self.drain.abandon(&self.shared.rings);
        self.waiters.wake_all(&self.shared.commit);
        if let Some(status) = &self.shared.status {
            let durable = self.shared.commit.watermark(Level::Synced);
            status.end(reason == Shut::Poisoned, durable, &self.shared.extent);
        }
    }
}
