//! Looking after the segment files in the background: live files never grow, and rotation is a
//! change of file.
//!
//! The preparer keeps a number of segments ready: whole, synced, under their final names in a synced
//! directory. It makes them of files that were segments before ([`recycling`]), or fills new ones with
//! zeros ([`filling`]). It writes the footers of sealed segments ([`footers`]), trims what is not
//! to be retained ([`policies`]), and removes files that nobody needs ([`removing`]).
//!
//! All of it goes in small steps with pauses between them, so that commits do not feel it. In a step
//! it holds the right to change files ([`Files`](crate::extent::Files)), and between two it holds
//! nothing: a truncation may have changed what is needed, and then what was begun is given up.

mod filling;
mod footers;
mod pace;
mod policies;
mod recycling;
mod removing;
#[cfg(all(test, feature = "sim", not(uringlog_loom)))]
mod tests;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use filling::Filling;
use pace::{Pace, Rest};
pub(crate) use policies::Policies;
use removing::Removing;

use crate::doorbell::Doorbell;
use crate::error::IoError;
use crate::extent::Files;
use crate::frame::{LogId, SegmentHeader, segment_name};
use crate::index::SegmentIndex;
use crate::segment::LiveSegment;
use crate::shared::{ASK_SPACE, Shared};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

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

/// A segment that the log moved on from. What it holds is durable, and so is something behind it.
pub(crate) struct Sealed {
    pub(crate) segment: LiveSegment,
    pub(crate) index: SegmentIndex,
    /// The generation in which it was sealed.
    pub(crate) generation: u64,
}

/// What writer and preparer, and whoever trims, share beside the log.
pub(crate) struct PreparerLink {
    pub(crate) bell: Doorbell,
    /// Segments that stand ready: one more before it is delivered, one less when the writer takes it.
    ready: AtomicU64,
    /// Set when something came that the preparer does not see by itself: a sealed segment, a trim.
    news: AtomicU32,
    stop: AtomicU32,
}

impl PreparerLink {
    pub(crate) fn new(ready: u64) -> Self {
        PreparerLink {
            bell: Doorbell::new(),
            ready: AtomicU64::new(ready),
            news: AtomicU32::new(0),
            stop: AtomicU32::new(0),
        }
    }

    /// The writer moved on to the next segment.
    pub(crate) fn took_one(&self) {
        // AcqRel: partner is itself and the Acquire in `ready`.
        self.ready.fetch_sub(1, Ordering::AcqRel);
        self.bell.ring();
    }

    /// A segment stands ready, or one that was taken stands ready again.
    pub(crate) fn gave_back(&self) {
        self.ready.fetch_add(1, Ordering::AcqRel);
    }

    /// There is something to look after.
    pub(crate) fn tell(&self) {
        // Release: partner is the Acquire in `take_news`.
        self.news.store(1, Ordering::Release);
        self.bell.ring();
    }

    fn take_news(&self) -> bool {
        self.news.swap(0, Ordering::AcqRel) != 0
    }

    fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire) != 0
    }

    /// Ends the preparer, at its next step.
    pub(crate) fn stop(&self) {
        // Release: partner is the Acquire in `is_stopped`.
        self.stop.store(1, Ordering::Release);
        self.bell.ring();
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) != 0
    }

    /// Segments that stand ready.
    pub(crate) fn ready(&self) -> u64 {
        self.ready.load(Ordering::Acquire)
    }
}

pub(crate) struct Preparer {
    shared: Arc<Shared>,
    link: Arc<PreparerLink>,
    deliveries: Sender<Delivery>,
    sealed: Receiver<Sealed>,
    plan: Plan,
    filling: Option<Filling>,
    removing: Option<Removing>,
    footers: VecDeque<Sealed>,
    policies: Policies,
    /// The writer was told that there is no space, and nothing was delivered since.
    told_no_space: bool,
    /// While both have work, steps of filling and of removing take turns.
    removed_last: bool,
    /// There was nothing to do when it last looked.
    was_idle: bool,
    pace: Pace,
    rest: Rest,
}

/// What every segment of this log is made like.
pub(crate) struct Plan {
    pub(crate) log_id: LogId,
    pub(crate) block_bytes: u32,
    pub(crate) segment_bytes: u64,
    pub(crate) bytes_per_s: u64,
    /// Most bytes of segment files of every kind.
    pub(crate) max_bytes: Option<u64>,
    /// Spare files that are kept.
    pub(crate) spares_max: usize,
    pub(crate) entropy: Box<dyn Fn() -> std::io::Result<u64> + Send>,
}

/// What comes after a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// More work, after a pause.
    Again(Duration),
    /// Nothing to do until rung, or until the time is over.
    Idle(Option<Duration>),
    /// The end.
    Stop,
}

/// Why a step could not be done.
enum Trouble {
    /// There is no space, or no file descriptor, or no memory: it may come back.
    NoSpace,
    /// A write or a sync failed, and ends writing.
    Failed(IoError),
}

impl Preparer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        link: Arc<PreparerLink>,
        deliveries: Sender<Delivery>,
        sealed: Receiver<Sealed>,
        plan: Plan,
        policies: Policies,
    ) -> Self {
        let pace = Pace::new(plan.bytes_per_s, &shared);
        Preparer {
            shared,
            link,
            deliveries,
            sealed,
            plan,
            filling: None,
            removing: None,
            footers: VecDeque::new(),
            policies,
            told_no_space: false,
            removed_last: false,
            was_idle: true,
            pace,
            rest: Rest::default(),
        }
    }

    /// The preparer's thread.
    pub(crate) fn run(mut self) {
        // The writer and its producers come first, where there are few cores. Of a thread, not of the process, on
        // Linux; where it is refused, the thread is as good as any.
        let _nicer = rustix::process::setpriority_process(None, 10);
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
            let step = self.step();
            let news = || self.link.is_stopped() || self.link.has_news();
            match step {
                Step::Again(Duration::ZERO) => {}
                Step::Again(pause) => {
                    let rests = self.resting().is_some();
                    let hurried = || {
                        self.link.is_stopped()
                            || !rests && self.link.has_news()
                            || self.is_late() && pause < RETRY
                    };
                    self.link.bell.sleep(Some(pause), hurried);
                }
                Step::Idle(pause) => {
                    self.was_idle = true;
                    self.link.bell.sleep(pause, || news() || self.is_needed());
                }
                Step::Stop => return,
            }
        }
    }

    /// One bounded piece of work.
    pub(crate) fn step(&mut self) -> Step {
        if self.link.is_stopped() {
            self.end();
            return Step::Stop;
        }
        if let Some(left) = self.resting() {
            return Step::Again(left);
        }
        let shared = self.shared.clone();
        let mut files = shared.extent.files();
        match self.work(&mut files) {
            Ok(step) => step,
            Err(Trouble::NoSpace) => self.no_space(&mut files),
            Err(Trouble::Failed(error)) => {
                self.deliver(Delivery::Failed(error));
                Step::Stop
            }
        }
    }

    /// The most urgent thing that is to be done.
    fn work(&mut self, files: &mut Files) -> Result<Step, Trouble> {
        let news = self.link.take_news();
        self.footers.extend(self.sealed.try_iter());
        files.catalog.keep_up(self.shared.extent.generation());
        self.give_up_if_truncated(files);
        let needed = self.filling.is_some() || self.is_needed();
        if needed && core::mem::take(&mut self.was_idle) {
            // The rotation that made it necessary is over first.
            self.rest.begin(&self.shared, Rest::START);
            return Ok(Step::Again(Duration::ZERO));
        }
        if needed
            && self.filling.is_none()
            && let Some(step) = self.recycle(files)?
        {
            return Ok(step);
        }
        if self.write_footer(files) || self.retire(files)? {
            return Ok(Step::Again(Duration::ZERO));
        }
        let keep = self.plan.spares_max;
        let removes =
            self.removing.is_some() || files.spares.is_surplus(self.plan.segment_bytes, keep);
        if needed {
            let shares = removes && !self.removed_last && !self.is_late();
            self.removed_last = shares;
            return if shares { self.remove(files, keep) } else { self.fill(files) };
        }
        if self.apply_policies(files, news)? {
            return Ok(Step::Again(Duration::ZERO));
        }
        if removes { self.remove(files, keep) } else { Ok(Step::Idle(self.policies.next_look())) }
    }

    /// How long it still rests, while nobody waits for it.
    fn resting(&self) -> Option<Duration> {
        if self.is_late() { None } else { self.rest.left(&self.shared) }
    }

    /// No space for a further segment: what may go goes first, then the writer is told.
    fn no_space(&mut self, files: &mut Files) -> Step {
        match self.make_room(files) {
            Ok(true) => return Step::Again(Duration::ZERO),
            Ok(false) => {}
            Err(Trouble::NoSpace) => {}
            Err(Trouble::Failed(error)) => {
                self.deliver(Delivery::Failed(error));
                return Step::Stop;
            }
        }
        if !self.told_no_space {
            self.told_no_space = true;
            self.deliver(Delivery::NoSpace);
        }
        Step::Again(RETRY)
    }

    /// Gives up what may go; false when nothing may.
    fn make_room(&mut self, files: &mut Files) -> Result<bool, Trouble> {
        if self.apply_policies(files, true)? {
            return Ok(true);
        }
        let bytes = self.plan.segment_bytes;
        // One that was the segment that is wanted now is not of use for it: its space is.
        let keep = match files.spares.any_for(files.next_epoch, bytes) {
            true => self.plan.spares_max,
            false => 0,
        };
        if self.removing.is_some() || files.spares.is_surplus(bytes, keep) {
            self.remove(files, keep)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The log has ended. What was begun is given up, and the last footers are written.
    fn end(&mut self) {
        let shared = self.shared.clone();
        let mut files = shared.extent.files();
        self.give_up_filling(&mut files);
        self.removing = None;
        shared.counters.removed.give_up();
        if shared.poison().is_none() {
            self.footers.extend(self.sealed.try_iter());
            while self.write_footer(&mut files) {}
            // Trimmed segments lose their names, which cost nothing: without its mark, a log must not
            // look as if it still held them. One that stays is given up at the next opening.
            while matches!(self.retire(&mut files), Ok(true)) {}
        }
    }

    /// A segment stands ready, whole and durable.
    fn deliver_segment(&mut self, files: &mut Files, segment: LiveSegment) {
        files.next_epoch = segment.header.epoch + 1;
        files.making_bytes = 0;
        self.told_no_space = false;
        self.link.gave_back();
        self.deliver(Delivery::Ready(segment));
    }

    fn deliver(&self, delivery: Delivery) {
        // The writer outlives the preparer, or is gone and needs nothing.
        let _writer_gone = self.deliveries.send(delivery);
        self.shared.ask(ASK_SPACE);
    }

    /// The header of the next segment.
    fn next_header(&self, files: &Files, recycled: bool) -> std::io::Result<SegmentHeader> {
        Ok(SegmentHeader {
            log_id: self.plan.log_id,
            epoch: files.next_epoch,
            salt: (self.plan.entropy)()?,
            block_bytes: self.plan.block_bytes,
            segment_bytes: self.plan.segment_bytes,
            created_wall_ns: self.shared.clock.wall_ns(),
            first_lsn: 0,
            resume: None,
            generation: self.shared.extent.generation(),
            truncated_after: files.mark.get().truncated_after,
            recycled,
        })
    }

    /// A full disk, a file limit: the space may come back. Anything else is a failed write or sync,
    /// and ends writing.
    fn trouble(&self, epoch: u64, error: std::io::Error) -> Trouble {
        let transient = [libc::ENOSPC, libc::EDQUOT, libc::EMFILE, libc::ENFILE, libc::ENOMEM];
        match error.raw_os_error() {
            Some(errno) if transient.contains(&errno) => Trouble::NoSpace,
            _ => self.failed(epoch, error),
        }
    }

    /// After a failed sync nothing is tried again, whatever the errno says.
    fn failed(&self, epoch: u64, error: std::io::Error) -> Trouble {
        let path = self.shared.store.path(&segment_name(epoch));
        Trouble::Failed(IoError::new("prepare segment", path, error))
    }

    fn is_needed(&self) -> bool {
        let rings = &self.shared.rings;
        let limits = &self.shared.limits;
        self.link.ready() < limits.segments_ready(rings.made_count(), rings.large_unsealed_bytes())
    }

    /// Whether appends wait for the next segment, or soon will.
    fn is_late(&self) -> bool {
        let free = self.shared.free_bytes.load(Ordering::Relaxed);
        let rings = &self.shared.rings;
        let needed = self.shared.reserve_bytes() + 2 * rings.large_unsealed_bytes();
        self.link.ready() == 0 || free < needed || rings.is_large_waiting()
    }
}
