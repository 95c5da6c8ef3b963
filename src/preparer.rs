//! Preparing segments in the background: live files never grow, and rotation is a change of file.
//!
//! The preparer keeps a number of segments ready: allocated, filled with zeros, with their headers,
//! synced, under their final names in a synced directory. It fills in small steps and pauses between
//! them, so that commits do not feel it; it does not pause while nothing stands ready.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::doorbell::Doorbell;
use crate::error::IoError;
use crate::frame::{LogId, SegmentHeader, segment_name};
use crate::segment::{Filler, LiveSegment};
use crate::shared::{ASK_SPACE, Shared};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Bytes filled between two pauses.
const STEP_BYTES: usize = 256 << 10;
/// How long to wait before trying again after there was no space.
const RETRY: Duration = Duration::from_millis(100);

/// What the preparer tells the writer.
pub(crate) enum Delivery {
    /// The next segment stands ready.
    Ready(LiveSegment),
    /// There is no space for it now. Tried again.
    NoSpace,
    /// A write or sync failed. Not tried again.
    Failed(IoError),
}

/// What writer and preparer share beside the log.
pub(crate) struct PreparerLink {
    pub(crate) bell: Doorbell,
    /// Segments that the writer has taken, of those delivered.
    taken: AtomicU64,
    stop: AtomicU32,
}

impl PreparerLink {
    pub(crate) fn new() -> Self {
        PreparerLink { bell: Doorbell::new(), taken: AtomicU64::new(0), stop: AtomicU32::new(0) }
    }

    /// The writer moved on to the next segment.
    pub(crate) fn took_one(&self) {
        // Release: partner is the Acquire in `ready`.
        self.taken.fetch_add(1, Ordering::Release);
        self.bell.ring();
    }

    /// A segment that was taken stands ready again.
    pub(crate) fn gave_back(&self) {
        self.taken.fetch_sub(1, Ordering::Release);
    }

    /// Ends the preparer, at its next step.
    pub(crate) fn stop(&self) {
        self.stop.store(1, Ordering::Release);
        self.bell.ring();
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) != 0
    }
}

pub(crate) struct Preparer {
    shared: Arc<Shared>,
    link: Arc<PreparerLink>,
    deliveries: Sender<Delivery>,
    plan: Plan,
    filling: Option<Filler>,
    /// Segments delivered, those that recovery found ready included.
    delivered: u64,
    pace: Pace,
}

/// What every segment of this log is made like.
pub(crate) struct Plan {
    pub(crate) log_id: LogId,
    pub(crate) block_bytes: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) next_epoch: u64,
    /// Segments that stand ready already.
    pub(crate) ready: u64,
    pub(crate) bytes_per_s: u64,
    pub(crate) entropy: Box<dyn Fn() -> std::io::Result<u64> + Send>,
}

/// What comes after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// More work, after a pause.
    Again(Duration),
    /// Nothing to do until rung.
    Idle,
    /// The end.
    Stop,
}

impl Preparer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        link: Arc<PreparerLink>,
        deliveries: Sender<Delivery>,
        plan: Plan,
    ) -> Self {
        let pace = Pace::new(plan.bytes_per_s, &shared);
        let delivered = plan.ready;
        Preparer { shared, link, deliveries, plan, filling: None, delivered, pace }
    }

    /// The preparer's thread.
    pub(crate) fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run_to_the_end()));
        if outcome.is_err() {
            // Nobody would prepare a segment any more, and all would wait for it.
            let error = std::io::Error::other("the preparer thread panicked");
            let path = self.shared.store.path("");
            self.deliver(Delivery::Failed(IoError::new("prepare segments in", path, error)));
        }
    }

    fn run_to_the_end(&mut self) {
        loop {
            match self.step() {
                Step::Again(Duration::ZERO) => {}
                Step::Again(pause) => {
                    let hurried = || self.link.is_stopped() || self.is_late() && pause < RETRY;
                    self.link.bell.sleep(Some(pause), hurried);
                }
                Step::Idle => {
                    self.link.bell.sleep(None, || self.link.is_stopped() || self.is_needed());
                }
                Step::Stop => return,
            }
        }
    }

    /// One bounded piece of work.
    pub(crate) fn step(&mut self) -> Step {
        if self.link.is_stopped() {
            if let Some(filler) = self.filling.take() {
                // A leftover is swept when the log is opened next.
                filler.abandon(&*self.shared.store).ok();
            }
            return Step::Stop;
        }
        if self.filling.is_none() && !self.is_needed() {
            return Step::Idle;
        }
        match self.work() {
            Ok(step) => step,
            Err(error) => self.failed(error),
        }
    }

    fn work(&mut self) -> Result<Step, IoError> {
        let store = &*self.shared.store;
        let name = segment_name(self.plan.next_epoch);
        let context = |error| IoError::new("prepare segment", store.path(&name), error);
        let mut filler = match self.filling.take() {
            Some(filler) => filler,
            None => Filler::start(store, self.next_header().map_err(context)?).map_err(context)?,
        };
        let started_ns = self.shared.clock.now_ns();
        let complete = filler.step(STEP_BYTES);
        match complete {
            Ok(false) => {
                self.filling = Some(filler);
                Ok(Step::Again(self.pause(started_ns)))
            }
            Ok(true) => {
                let header = *filler.header();
                // After a failed sync nothing is tried again, whatever the errno says.
                let file = match filler.finish(store).map_err(context) {
                    Ok(file) => file,
                    Err(error) => {
                        self.deliver(Delivery::Failed(error));
                        return Ok(Step::Stop);
                    }
                };
                self.plan.next_epoch += 1;
                self.delivered += 1;
                self.deliver(Delivery::Ready(LiveSegment { header, file }));
                Ok(Step::Again(Duration::ZERO))
            }
            Err(error) => {
                // The first error is the one to report; a leftover is swept at the next open.
                filler.abandon(store).ok();
                Err(context(error))
            }
        }
    }

    /// A full disk, a file limit: the space may come back. Anything else is a failed write or sync,
    /// and ends writing.
    fn failed(&mut self, error: IoError) -> Step {
        let transient = [libc::ENOSPC, libc::EDQUOT, libc::EMFILE, libc::ENFILE, libc::ENOMEM];
        if error.source.raw_os_error().is_some_and(|errno| transient.contains(&errno)) {
            self.deliver(Delivery::NoSpace);
            return Step::Again(RETRY);
        }
        self.deliver(Delivery::Failed(error));
        Step::Stop
    }

    fn deliver(&self, delivery: Delivery) {
        // The writer outlives the preparer, or is gone and needs nothing.
        let _writer_gone = self.deliveries.send(delivery);
        self.shared.ask(ASK_SPACE);
    }

    fn next_header(&self) -> std::io::Result<SegmentHeader> {
        Ok(SegmentHeader {
            log_id: self.plan.log_id,
            epoch: self.plan.next_epoch,
            salt: (self.plan.entropy)()?,
            block_bytes: self.plan.block_bytes,
            segment_bytes: self.plan.segment_bytes,
            created_wall_ns: self.shared.clock.wall_ns(),
            first_lsn: 0,
            resume: None,
            generation: 0,
            truncated_after: 0,
            recycled: false,
        })
    }

    fn ready(&self) -> u64 {
        // Acquire: partner is the Release in `took_one`.
        self.delivered.saturating_sub(self.link.taken.load(Ordering::Acquire))
    }

    fn is_needed(&self) -> bool {
        let rings = &self.shared.rings;
        let limits = &self.shared.limits;
        self.ready() < limits.segments_ready(rings.made_count(), rings.large_unsealed_bytes())
    }

    /// Whether appends wait for the next segment, or soon will.
    fn is_late(&self) -> bool {
        let free = self.shared.free_bytes.load(Ordering::Relaxed);
        let rings = &self.shared.rings;
        let needed = self.shared.reserve_bytes() + 2 * rings.large_unsealed_bytes();
        self.ready() == 0 || free < needed || rings.is_large_waiting()
    }

    fn pause(&mut self, started_ns: u64) -> Duration {
        if self.is_late() {
            return Duration::ZERO;
        }
        let took = self.shared.clock.now_ns().saturating_sub(started_ns);
        let due =
            (STEP_BYTES as u64).saturating_mul(1_000_000_000) / self.pace.bytes_per_s(&self.shared);
        Duration::from_nanos(due.saturating_sub(took))
    }
}

/// How fast to fill: as asked, or a quarter faster than the log is written.
struct Pace {
    floor: u64,
    since_ns: u64,
    since_bytes: u64,
    consumed_per_s: u64,
}

impl Pace {
    fn new(floor: u64, shared: &Shared) -> Self {
        let since_ns = shared.clock.now_ns();
        Pace { floor, since_ns, since_bytes: shared.counters.disk_bytes.get(), consumed_per_s: 0 }
    }

    fn bytes_per_s(&mut self, shared: &Shared) -> u64 {
        const WINDOW_NS: u64 = 20_000_000;
        let (now, bytes) = (shared.clock.now_ns(), shared.counters.disk_bytes.get());
        let elapsed = now.saturating_sub(self.since_ns);
        if elapsed >= WINDOW_NS {
            let consumed = u128::from(bytes.saturating_sub(self.since_bytes));
            self.consumed_per_s = (consumed * 1_000_000_000 / u128::from(elapsed)) as u64;
            (self.since_ns, self.since_bytes) = (now, bytes);
        }
        self.floor.max(self.consumed_per_s + self.consumed_per_s / 4)
    }
}
