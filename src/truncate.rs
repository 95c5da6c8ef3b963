//! Cutting the log after a record, for those who replicate it: what a new leader does not have goes
//! away, durably, and its numbers are given out again in a new generation.
//!
//! The writer does it between two batches, with the gate shut and everything accepted on the disk
//! (`writer/truncate.rs`). On disk it is what recovery does after a crash: a new segment supersedes
//! what follows its beginning. The order of the steps, each durable before the next:
//!
//! 1. the new segment is built under a temporary name: what is kept of a batch that is cut, and an
//!    empty batch that vouches for everything kept;
//! 2. the mark says that this generation is about to begin, and in which segment;
//! 3. the new segment gets its name, in place of an older segment with that epoch. **This is the
//!    one step that cuts.** Before it, the mark's new generation counts for nothing; after it, whatever
//!    stands in segments behind and is of a lower generation is stale, whatever it vouches for;
//! 4. stale segments are given up, to be used again, and cursors that stood behind the cut are set back.

use core::fmt;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Mutex, PoisonError};

use crate::cursor;
use crate::disk::Store;
use crate::error::{Damage, IoError, Poison};
use crate::extent::Files;
use crate::footer::{FOOTER_BYTES_MAX, footer_offset};
use crate::frame::{Resume, SegmentHeader, segment_name};
use crate::log::Log;
use crate::lsn::Lsn;
use crate::mark::Mark;
use crate::recovery::rewrite::{self, End, Rest};
use crate::recovery::{SEGMENT_UNIT_BYTES, first_lsn_of};
use crate::scan::{BatchCursor, Placed, Step};
use crate::segment::{self, Filler, LiveSegment, ScanError, Segment};
use crate::shared::{ASK_TRUNCATE, Shared};

/// Name of the new segment while it is built.
pub(crate) const TRUNCATION_TMP: &str = "truncation.tmp";

impl Log {
    /// Cuts the log: `lsn` is its last record afterwards, and the next append gets the number behind it.
    /// Returns the last record that is left: `lsn`, or an earlier one where the log did not reach it (then
    /// nothing is cut). [`Lsn::NONE`], or the number before the log's first, empties the log.
    ///
    /// For users who replicate the log: a follower cuts what its new leader does not have. Records
    /// that were acknowledged are cut like all others, and their numbers are given out a second
    /// time, in a new [`generation`](Self::generation). When this returns the cut is durable; when the
    /// process dies before that, it happened wholly or not at all.
    ///
    /// Everything accepted before is written first. Appends that run at the same time wait, and come behind
    /// the cut or before it. A [`Reservation`](crate::Reservation) made before it cannot be published
    /// any more, the tickets of records that are gone say so, readers and followers that were
    /// behind the cut get [`ReadError::Truncated`](crate::ReadError::Truncated), and cursors are set back to it.
    ///
    /// Blocks until it is done: some milliseconds, or as long as it takes to fill a segment with zeros
    /// where none stands ready.
    ///
    /// # Errors
    /// See [`TruncateError`]. Nothing was cut, but for [`TruncateError::Poisoned`]: then opening the log
    /// again shows whether it was.
    pub fn truncate_after(&self, lsn: Lsn) -> Result<Lsn, TruncateError> {
        let shared = self.shared();
        if shared.fork.forked() {
            return Err(TruncateError::Forked);
        }
        if self.is_writer_thread() {
            return Err(TruncateError::InWaker);
        }
        // Held here until it is done, and not taken by the writer, whom a stopped process that has it
        // would stop too. No cursor moves while the log is cut.
        let _cursors = shared.store.lock_cursors().map_err(TruncateError::Io)?;
        self.ask_to_truncate(lsn).wait()
    }

    /// How often the log was truncated in its whole life.
    pub fn generation(&self) -> u64 {
        self.shared().extent.generation()
    }

    /// Asks the writer, and does not wait.
    pub(crate) fn ask_to_truncate(&self, lsn: Lsn) -> Truncation {
        let shared = self.shared();
        let (reply, result) = channel();
        shared.truncations.push(Request { lsn: lsn.get(), reply });
        shared.ask(ASK_TRUNCATE);
        if shared.commit.is_ended() {
            // The writer may have looked for the last time before the request was there.
            shared.truncations.refuse_all(shared);
        }
        Truncation { result }
    }
}

/// A truncation that was asked for.
pub(crate) struct Truncation {
    result: Receiver<Outcome>,
}

type Outcome = Result<Lsn, TruncateError>;

impl Truncation {
    fn wait(self) -> Outcome {
        // Every request is answered; a writer that died without it has closed the log.
        self.result.recv().unwrap_or(Err(TruncateError::Closed))
    }

    /// What came of it, once it is done.
    #[cfg_attr(not(feature = "sim"), allow(dead_code))]
    pub(crate) fn result(&self) -> Option<Outcome> {
        match self.result.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(TruncateError::Closed)),
        }
    }
}

/// Why a log was not truncated.
#[derive(Debug)]
#[non_exhaustive]
pub enum TruncateError {
    /// What was to be kept up to is trimmed away: the log starts later.
    Trimmed {
        /// The first number that the log still holds.
        first: Lsn,
    },
    /// The log was closed before it was done.
    Closed,
    /// A write or a sync failed, now or earlier. Whether the cut was made shows when the log is opened again.
    Poisoned(Poison),
    /// This is a forked child of the process that opened the log.
    Forked,
    /// It was called by a waker, on the writer's own thread, which would wait for itself.
    InWaker,
    /// The records around the place of the cut are damaged.
    Damaged(Damage),
    /// A file there is not what its name says.
    Foreign {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused something, before anything was changed: no space for the new segment,
    /// for one.
    Io(IoError),
}

impl fmt::Display for TruncateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trimmed { first } => write!(
                f,
                "the log cannot be cut there: it was trimmed and starts at {first}; the lowest \
                 place to cut is right before that"
            ),
            Self::Closed => f.write_str("the log is closed"),
            Self::Poisoned(poison) => poison.fmt(f),
            Self::Forked => f.write_str(
                "this process was forked from the one that opened the log; open the log here instead",
            ),
            Self::InWaker => f.write_str(
                "a waker must not truncate the log: it runs on the thread that would do it; wake \
                 another thread to do it",
            ),
            Self::Damaged(damage) => write!(f, "{damage}; nothing was cut"),
            Self::Foreign { path, reason } => {
                write!(f, "{} does not belong here: {reason}; nothing was cut", path.display())
            }
            Self::Io(error) => write!(f, "{error}; nothing was cut"),
        }
    }
}

impl std::error::Error for TruncateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Poisoned(poison) => Some(poison),
            Self::Damaged(damage) => Some(damage),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ScanError> for TruncateError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Damaged(damage) => TruncateError::Damaged(damage),
            ScanError::Foreign { path, reason } => TruncateError::Foreign { path, reason },
            ScanError::Io(error) => TruncateError::Io(error),
        }
    }
}

/// The truncations that the writer is asked for, in order.
#[derive(Default)]
pub(crate) struct TruncateQueue {
    waiting: Mutex<VecDeque<Request>>,
}

pub(crate) struct Request {
    pub(crate) lsn: u64,
    reply: Sender<Outcome>,
}

impl Request {
    pub(crate) fn answer(self, outcome: Outcome) {
        // Whoever asked may have stopped waiting.
        let _asker_gone = self.reply.send(outcome);
    }
}

impl TruncateQueue {
    fn push(&self, request: Request) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(request);
    }

    pub(crate) fn pop(&self) -> Option<Request> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The log has ended: nobody will do it any more.
    pub(crate) fn refuse_all(&self, shared: &Shared) {
        while let Some(request) = self.pop() {
            request.answer(Err(match shared.poison() {
                Some(poison) => TruncateError::Poisoned(poison.clone()),
                None => TruncateError::Closed,
            }));
        }
    }
}

/// Where the log is cut: behind the last batch that is kept whole.
pub(crate) struct Place {
    pub(crate) segment: Segment,
    pub(crate) offset: u64,
    /// Header checksum of that batch.
    pub(crate) crc: u32,
    /// The first record behind it. It is kept too where the cut goes through its batch.
    pub(crate) next_lsn: u64,
    /// The batch that the cut goes through.
    pub(crate) rest: VecDeque<(usize, Placed)>,
}

impl Place {
    /// Finds the place. Everything up to the end of the live segment is on the disk.
    pub(crate) fn find(
        store: &dyn Store,
        first_epoch: u64,
        live_epoch: u64,
        lsn: u64,
    ) -> Result<Place, ScanError> {
        let mut epoch = live_epoch;
        let mut next: Option<SegmentHeader> = None;
        let (segment, file, limit) = loop {
            let (segment, file) = Segment::open(store, epoch)?;
            let limit = segment.limit(next.as_ref());
            // One that was superseded before anything in it counted is passed over.
            let starts_before = limit > segment.header.data_offset()
                && first_lsn_of(store, &segment)?.is_some_and(|first| first <= lsn);
            if starts_before || epoch <= first_epoch {
                break (segment, file, limit);
            }
            next = Some(segment.header);
            epoch -= 1;
        };
        let header = segment.header;
        // The number and the link of what stands first, where an empty segment does not tell them.
        let behind = next.and_then(|next| Some((next.first_lsn, next.resume?.prev_batch_crc)));
        let (first_lsn, first_crc) = match (header.first_lsn, header.resume) {
            (0, _) if limit <= header.data_offset() => behind.unwrap_or_default(),
            (first_lsn, resume) => (first_lsn, resume.map_or(0, |resume| resume.prev_batch_crc)),
        };
        let failed = |error| IoError::new("read", segment::segment_path(store, epoch), error);
        let mut cursor = BatchCursor::new(
            file,
            segment.clone(),
            store.facts().block_bytes,
            limit,
            header.data_offset(),
            (header.first_lsn != 0).then_some(header.first_lsn),
            header.resume.map(|resume| resume.prev_batch_crc),
        )
        .map_err(failed)?;
        let mut place = Place {
            segment,
            offset: header.data_offset(),
            crc: first_crc,
            next_lsn: first_lsn,
            rest: VecDeque::new(),
        };
        loop {
            let batch = match cursor.peek().map_err(failed)? {
                Step::Batch(batch) => batch,
                Step::Stop(_) if place.next_lsn == lsn + 1 => return Ok(place),
                Step::Stop(stop) => {
                    return Err(ScanError::Damaged(Damage {
                        segment: segment::segment_path(store, epoch),
                        offset: cursor.offset(),
                        lost: Some((Lsn::new(place.next_lsn), Lsn::new(lsn))),
                        detail: stop.reason.to_string(),
                    }));
                }
            };
            if cursor.next_lsn().is_none() {
                // The segment's first batch tells what stood before it.
                place.crc = batch.header.prev_crc;
                place.next_lsn = batch.header.first_lsn;
            }
            if batch.header.last_lsn() > lsn {
                if batch.header.first_lsn <= lsn {
                    place.rest.push_back((0, batch));
                }
                return Ok(place);
            }
            cursor.accept(&batch);
            place.offset = batch.end;
            place.crc = batch.crc;
            place.next_lsn = batch.header.last_lsn() + 1;
        }
    }
}

/// What a cut needs beside its place.
pub(crate) struct Cutter<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) files: &'a mut Files,
    /// The segment that was written to last.
    pub(crate) live: &'a SegmentHeader,
    /// A segment that stands ready: its file becomes the new segment.
    pub(crate) ready: Option<LiveSegment>,
    pub(crate) wall_ns: u64,
}

impl Cutter<'_> {
    /// Carries the cut out, on the disk. After an error nobody knows whether it was made, unless
    /// [`build`](Self::build) says otherwise.
    pub(crate) fn cut(
        &mut self,
        lsn: u64,
        built: (LiveSegment, End),
    ) -> Result<(LiveSegment, End), IoError> {
        let store = &*self.shared.store;
        let failed =
            |action: &str, name: &str, error| IoError::new(action, store.path(name), error);
        let (live, end) = built;
        let header = live.header;
        let mark = Mark {
            generation: header.generation,
            generation_epoch: header.epoch,
            truncated_after: lsn,
            ..*self.files.mark.get()
        };
        self.files.mark.set(store, mark)?;
        let name = segment_name(header.epoch);
        store.rename(TRUNCATION_TMP, &name).map_err(|e| failed("rename to", &name, e))?;
        store.sync_dir().map_err(|e| failed("sync the directory of", &name, e))?;
        // From here on the log is cut. What stands behind is stale.
        let epochs = segment::list_segments(store)?;
        for epoch in epochs.into_iter().filter(|&epoch| epoch > header.epoch) {
            let spares = &mut self.files.spares;
            spares.retire(store, epoch).map_err(|e| failed("give up", &segment_name(epoch), e))?;
        }
        let settled = self.files.spares.settle_names(store);
        settled.map_err(|e| failed("sync the directory of", &name, e))?;
        self.files.next_epoch = header.epoch + 1;
        match cursor::clamp_locked(store, lsn) {
            Err(ScanError::Io(error)) => Err(error),
            // A damaged cursor is its consumer's trouble, not the log's.
            _ => Ok((live, end)),
        }
    }

    /// Builds the new segment under its temporary name. `touched` tells, when it fails, whether a write
    /// or a sync has failed that nothing may be tried again after.
    pub(crate) fn build(
        &mut self,
        place: &Place,
        lsn: u64,
        touched: &mut bool,
    ) -> Result<(LiveSegment, End), ScanError> {
        let store = &*self.shared.store;
        let failed = |error| IoError::new("prepare", store.path(TRUNCATION_TMP), error);
        let generation = self.live.generation.max(self.files.mark.get().generation) + 1;
        let mut header = SegmentHeader {
            epoch: place.segment.epoch + 1,
            salt: (self.shared.entropy)().map_err(failed)?,
            created_wall_ns: self.wall_ns,
            first_lsn: place.next_lsn,
            resume: Some(Resume { prev_end_offset: place.offset, prev_batch_crc: place.crc }),
            generation,
            truncated_after: lsn,
            recycled: false,
            segment_bytes: self.shared.limits.segment_bytes(),
            ..*self.live
        };
        // What is kept of the batch may be more than a segment takes: the log may have had larger ones
        // when it was written. Then this one is larger too, and none that stands ready will do.
        let block = u64::from(header.block_bytes);
        let again: u64 = place.rest.iter().map(|(_, batch)| batch.header.disk_bytes(block)).sum();
        let needed = header.data_offset() + again + block;
        let fits = needed <= footer_offset(&header);
        if !fits {
            let needed = (needed + FOOTER_BYTES_MAX).next_multiple_of(SEGMENT_UNIT_BYTES);
            header.segment_bytes = needed.max(header.segment_bytes);
        }
        let ready = if fits { self.ready.take() } else { None };
        let file = match ready {
            Some(ready) => {
                *touched = true;
                header.recycled = ready.header.recycled;
                let name = segment_name(ready.header.epoch);
                store.rename(&name, TRUNCATION_TMP).map_err(failed)?;
                // Before the header changes: a file must never say that it is another segment.
                store.sync_dir().map_err(failed)?;
                ready.file
            }
            None => Filler::fill_new(store, TRUNCATION_TMP, &header).map_err(failed)?,
        };
        *touched = true;
        let rest = Rest {
            segments: core::slice::from_ref(&place.segment),
            batches: &place.rest,
            last_lsn: lsn,
            vouched_lsn: lsn,
        };
        let end = rewrite::write_again(store, &rest, &header, &*file, self.wall_ns)?;
        segment::write_headers(&*file, &header).map_err(failed)?;
        file.sync().map_err(failed)?;
        // A ready segment's file has a valid header already, with this epoch. If the device has put the new
        // one elsewhere, the cut would be undone by the next opening, and nothing would tell.
        segment::check_headers(&*file, &header).map_err(failed)?;
        Ok((LiveSegment { header, file }, end))
    }
}
