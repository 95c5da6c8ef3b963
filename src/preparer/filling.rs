//! Making a segment of a new file: allocated, filled with zeros, headers written, synced, read
//! back, renamed.
//!
//! A crash before the last rename leaves a temporary file, which the next opening sweeps; after it, a
//! whole segment. The rename comes after the file's sync, so whatever of the directory survives, a
//! segment's name never stands for a file that is not whole.

use std::io;
use std::time::Duration;

use super::{Preparer, Step, Trouble};
use crate::extent::Files;
use crate::segment::{self, Filler};

/// Bytes filled between two pauses: a commit that meets them waits for their write.
const STEP_BYTES: usize = 32 << 10;
/// The same while appends wait for the segment, or soon will: then only the bandwidth counts.
const LATE_STEP_BYTES: usize = 1 << 20;

/// A segment that is being made.
pub(super) struct Filling {
    filler: Filler,
    /// The generation that it was begun in.
    generation: u64,
    stage: Stage,
}

/// What is to be done next. Each is a step of its own, so that commits are not held up by several
/// syncs in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Fill,
    /// Headers, and a sync of the file.
    Head,
    /// The name, and a sync of the directory.
    Name,
}

impl Filling {
    /// Of a file that was a segment before, and needs no zeros.
    pub(super) fn adopted(filler: Filler, generation: u64) -> Filling {
        Filling { filler, generation, stage: Stage::Head }
    }
}

impl Preparer {
    /// The next step of filling a segment, or the first.
    pub(super) fn fill(&mut self, files: &mut Files) -> Result<Step, Trouble> {
        let started_ns = self.shared.clock.now_ns();
        let mut filling = match self.filling.take() {
            Some(filling) => filling,
            None => self.start_filling(files)?,
        };
        let epoch = filling.filler.header().epoch;
        let done = match filling.stage {
            Stage::Fill if self.is_late() => filling.filler.step(LATE_STEP_BYTES),
            Stage::Fill => filling.filler.step(STEP_BYTES),
            Stage::Head => filling.filler.write_headers().map(|()| true),
            Stage::Name => {
                self.name(files, filling.filler)?;
                self.rest.after(&self.shared, started_ns);
                return Ok(Step::Again(Duration::ZERO));
            }
        };
        match (done, filling.stage) {
            (Ok(false), _) => {
                self.filling = Some(filling);
                Ok(Step::Again(self.pause(started_ns)))
            }
            (Ok(true), Stage::Fill) => {
                filling.stage = Stage::Head;
                self.filling = Some(filling);
                Ok(Step::Again(self.pause(started_ns)))
            }
            (Ok(true), _) => {
                // A file that was a segment before has its size and its place: only its bytes are
                // new. After a failed sync nothing is tried again.
                let synced = match filling.filler.header().recycled {
                    true => filling.filler.file().sync_data(),
                    false => filling.filler.file().sync(),
                };
                synced.map_err(|error| self.failed(epoch, error))?;
                match segment::stands(&**filling.filler.file(), filling.filler.header()) {
                    Ok(true) => {}
                    Ok(false) => return Err(self.failed(epoch, segment::lost_header())),
                    Err(error) => return Err(self.give_up(files, filling, error)),
                }
                filling.stage = Stage::Name;
                self.filling = Some(filling);
                self.rest.after(&self.shared, started_ns);
                Ok(Step::Again(Duration::ZERO))
            }
            (Err(error), _) => Err(self.give_up(files, filling, error)),
        }
    }

    /// What to do after an error other than a sync's.
    fn give_up(&self, files: &mut Files, filling: Filling, error: io::Error) -> Trouble {
        let epoch = filling.filler.header().epoch;
        self.abandon(files, filling);
        self.trouble(epoch, error)
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
        let generation = self.shared.extent.generation();
        Ok(Filling { filler, generation, stage: Stage::Fill })
    }

    /// Whether one more file fits what the options allow.
    fn has_budget(&self, files: &mut Files) -> Result<bool, Trouble> {
        let Some(max) = self.plan.max_bytes else { return Ok(true) };
        // Where the sizes cannot be read, nobody can say that there is room.
        let bytes = files.segment_files_bytes(&self.shared).map_err(|_unknown| Trouble::NoSpace)?;
        Ok(bytes + self.plan.segment_bytes <= max)
    }

    /// The final name, and a sync of the directory: then the segment is delivered.
    fn name(&mut self, files: &mut Files, filler: Filler) -> Result<(), Trouble> {
        let store = self.shared.store.clone();
        let header = *filler.header();
        let named = filler.take_name(&*store).and_then(|()| store.sync_dir());
        named.map_err(|error| self.failed(header.epoch, error))?;
        self.deliver_segment(files, filler.into_segment());
        let counters = &self.shared.counters;
        let made = if header.recycled { &counters.recycled } else { &counters.prepared };
        made.finish(self.shared.clock.now_ns());
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
            self.abandon(files, filling);
        }
    }

    fn abandon(&self, files: &mut Files, filling: Filling) {
        files.making_bytes = 0;
        let counters = &self.shared.counters;
        let recycled = filling.filler.header().recycled;
        let made = if recycled { &counters.recycled } else { &counters.prepared };
        // A leftover is swept when the log is opened next; what led here is the error to report.
        filling.filler.abandon(&*self.shared.store).ok();
        made.give_up();
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
