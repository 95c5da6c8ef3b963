//! Truncation, between two batches: the writer holds the gate shut, drains what was accepted, cuts
//! (`../truncate.rs` has the steps on the disk), and goes on from there.

use super::{Linger, Next, Writer};
use crate::commit::Level;
use crate::error::IoError;
use crate::extent::Cut;
use crate::lsn::Lsn;
use crate::segment::ScanError;
use crate::shared::ASK_TRUNCATE;
use crate::truncate::{Cutter, Place, TruncateError};

/// Why a truncation was not carried out.
enum Trouble {
    /// Nothing was changed, and the log goes on.
    Refused(TruncateError),
    /// A write or a sync failed, and ends writing.
    Failed(IoError),
}

impl Writer {
    /// Shuts the gate when a truncation is asked for.
    pub(super) fn answer_truncate(&mut self) {
        self.shared.answered(ASK_TRUNCATE);
        if !self.shared.truncations.is_empty() && !self.truncating {
            self.truncating = true;
            self.space.hold(&self.shared, true);
        }
    }

    /// Nothing is under way or pending. Carries out what was asked for, once everything accepted is
    /// on the disk and synced.
    pub(super) fn truncate(&mut self, drained: bool) -> Next {
        if !drained {
            // A producer is between number and publication; it rings.
            return Next::Sleep(None);
        }
        if self.unsynced.is_some() {
            self.submit_sync();
            return Next::Disk(None);
        }
        while let Some(request) = self.shared.truncations.pop() {
            let outcome = self.truncate_after(request.lsn);
            request.answer(outcome);
            if self.ended {
                return Next::End;
            }
        }
        self.truncating = false;
        self.space.hold(&self.shared, false);
        Next::Linger
    }

    fn truncate_after(&mut self, lsn: u64) -> Result<Lsn, TruncateError> {
        match self.cut(lsn) {
            Ok(last) => Ok(last),
            Err(Trouble::Refused(error)) => Err(error),
            // The end wakes everyone, by code of theirs, so it comes with no lock in hand.
            Err(Trouble::Failed(error)) => Err(self.cannot_go_on(error)),
        }
    }

    fn cut(&mut self, lsn: u64) -> Result<Lsn, Trouble> {
        let shared = self.shared.clone();
        let last = shared.commit.watermark(Level::Synced);
        if lsn >= last {
            return Ok(Lsn::new(last));
        }
        // Nobody prepares, trims or recycles meanwhile.
        let mut files = shared.extent.files();
        let first = shared.extent.first_lsn();
        if lsn + 1 < first {
            return Err(Trouble::Refused(TruncateError::Trimmed { first: Lsn::new(first) }));
        }
        let (first_epoch, live_epoch) =
            (shared.extent.first_epoch(), self.space.live().header.epoch);
        let place = Place::find(&*shared.store, first_epoch, live_epoch, lsn)
            .map_err(|error| Trouble::Refused(error.into()))?;
        let mut ready = self.space.take_ready(&shared).map_err(Trouble::Failed)?;
        let live = self.space.live().header;
        let mut cutter = Cutter {
            shared: &shared,
            files: &mut files,
            live: &live,
            ready: ready.pop(),
            wall_ns: self.space.wall_ns(shared.clock.wall_ns()),
        };
        let mut touched = false;
        let built = match cutter.build(&place, lsn, &mut touched) {
            Ok(built) => built,
            // A segment that stood ready is not there any more, whatever went wrong.
            Err(ScanError::Io(error)) if touched => return Err(Trouble::Failed(error)),
            Err(error) if touched => {
                let cause = std::io::Error::other(TruncateError::from(error).to_string());
                let path = shared.store.path("");
                return Err(Trouble::Failed(IoError::new("cut the log in", path, cause)));
            }
            Err(error) => {
                ready.extend(cutter.ready.take());
                self.space.put_back(ready);
                return Err(Trouble::Refused(error.into()));
            }
        };
        let (live, end) = cutter.cut(lsn, built).map_err(Trouble::Failed)?;
        // The generation first: who sees a watermark that went back must find out why.
        let generation = live.header.generation;
        shared.extent.truncated(Cut { generation, after: lsn, last });
        shared.commit.clamp(lsn);
        shared.numbers.rewind(lsn + 1);
        shared.counters.truncated_records.add(last - lsn);
        self.drain.rewind(lsn + 1);
        self.space.go_on_in(&shared, live, end.offset, end.prev_crc, end.index);
        self.vouched = lsn;
        self.linger = Linger::default();
        self.idle_since_ns = shared.clock.now_ns();
        drop(files);
        self.tell_followers();
        // The preparer's plan has changed.
        self.space.ring_preparer();
        Ok(Lsn::new(lsn))
    }

    /// What is in memory is not the log any more, and whoever sleeps at its end may stand behind it.
    fn tell_followers(&mut self) {
        self.shared.tail.clear();
        self.tail.clear();
        self.shared.show_status();
        // Those who wait for a number not given out sleep again.
        self.waiters.wake_all(&self.shared.commit);
        self.wake_readers();
    }

    /// A write or a sync failed: nothing may be tried again.
    fn cannot_go_on(&mut self, error: IoError) -> TruncateError {
        self.fail(error);
        match self.shared.poison() {
            Some(poison) => TruncateError::Poisoned(poison.clone()),
            None => TruncateError::Closed,
        }
    }
}
