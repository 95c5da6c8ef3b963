//! Making a segment of a new file: allocated, filled with zeros, headers written, synced, renamed.
//!
//! A crash before the last rename leaves a temporary file, which the next opening sweeps; after it, a
//! whole segment. The rename comes after the file's sync, so whatever of the directory survives, a
//! segment's name never stands for a file that is not whole.

use std::time::Duration;

use super::{Preparer, Step, Trouble};
use crate::extent::Files;
use crate::segment::Filler;

/// Bytes filled between two pauses.
const STEP_BYTES: usize = 256 << 10;

/// A segment that is being filled.
pub(super) struct Filling {
    filler: Filler,
    /// The generation that it was begun in.
    generation: u64,
}

impl Preparer {
    /// The next step of filling a segment, or the first.
    pub(super) fn fill(&mut self, files: &mut Files) -> Result<Step, Trouble> {
        let store = self.shared.store.clone();
        let started_ns = self.shared.clock.now_ns();
        let mut filling = match self.filling.take() {
            Some(filling) => filling,
            None => self.start_filling(files)?,
        };
        let epoch = filling.filler.header().epoch;
        match filling.filler.step(STEP_BYTES) {
            Ok(false) => {
                self.filling = Some(filling);
                Ok(Step::Again(self.pause(started_ns)))
            }
            Ok(true) => {
                self.finish(files, filling.filler)?;
                self.shared.counters.prepared.finish(self.shared.clock.now_ns());
                Ok(Step::Again(Duration::ZERO))
            }
            Err(error) => {
                // The first error is the one to report; a leftover is swept at the next open.
                filling.filler.abandon(&*store).ok();
                self.gave_up_filling(files);
                Err(self.trouble(epoch, error))
            }
        }
    }

    fn start_filling(&mut self, files: &mut Files) -> Result<Filling, Trouble> {
        if !self.has_budget(files)? {
            return Err(Trouble::NoSpace);
        }
        let store = &*self.shared.store;
        let epoch = files.next_epoch;
        let header = self.next_header(files, false).map_err(|e| self.trouble(epoch, e))?;
        let filler = Filler::start(store, header).map_err(|e| self.trouble(epoch, e))?;
        files.making_bytes = header.segment_bytes;
        self.shared.counters.prepared.begin(self.shared.clock.now_ns());
        Ok(Filling { filler, generation: self.shared.extent.generation() })
    }

    /// Whether one more file fits what the options allow.
    fn has_budget(&self, files: &mut Files) -> Result<bool, Trouble> {
        let Some(max) = self.plan.max_bytes else { return Ok(true) };
        // Where the sizes cannot be read, nobody can say that there is room.
        let bytes = files.segment_files_bytes(&self.shared).map_err(|_unknown| Trouble::NoSpace)?;
        Ok(bytes + self.plan.segment_bytes <= max)
    }

    /// Headers, sync, name, sync of the directory: then the segment is delivered. What fails before
    /// the first sync may be tried again with another file; nothing is after it.
    pub(super) fn finish(&mut self, files: &mut Files, filler: Filler) -> Result<(), Trouble> {
        let store = self.shared.store.clone();
        let epoch = filler.header().epoch;
        if let Err(error) = filler.write_headers() {
            filler.abandon(&*store).ok();
            self.gave_up_filling(files);
            return Err(self.trouble(epoch, error));
        }
        let named = filler.file().sync().and_then(|()| filler.take_name(&*store));
        named.and_then(|()| store.sync_dir()).map_err(|error| self.failed(epoch, error))?;
        self.deliver_segment(files, filler.into_segment());
        Ok(())
    }

    /// Gives up what was begun in an earlier generation: its epoch may be taken, and its header would
    /// say the wrong generation. The truncation has left the temporary name to its owner.
    pub(super) fn give_up_if_truncated(&mut self, files: &mut Files) {
        let now = self.shared.extent.generation();
        if self.filling.as_ref().is_some_and(|filling| filling.generation != now) {
            self.give_up_filling(files);
        }
    }

    pub(super) fn give_up_filling(&mut self, files: &mut Files) {
        if let Some(filling) = self.filling.take() {
            // A leftover is swept when the log is opened next.
            filling.filler.abandon(&*self.shared.store).ok();
            self.gave_up_filling(files);
        }
    }

    fn gave_up_filling(&self, files: &mut Files) {
        files.making_bytes = 0;
        self.shared.counters.prepared.give_up();
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
