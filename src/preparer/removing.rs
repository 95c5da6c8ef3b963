//! Removing files that nobody needs: shortened bit by bit, because giving back a large file at once
//! holds up whatever else the file system has to do.
//!
//! A crash leaves a spare file of another size, which the next opening removes in the same way. That
//! its name is durable before the first byte goes is what keeps it from coming back as a segment.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::recycling::is_gone;
use super::{Preparer, Step, Trouble};
use crate::disk::{Access, File};
use crate::extent::Files;

/// Bytes given back in a step.
const STEP_BYTES: u64 = 256 << 10;

/// A file that is being removed: [`Spares::leaving`](crate::spares::Spares) says which.
pub(super) struct Removing {
    file: Arc<dyn File>,
}

impl Preparer {
    /// The next step of removing a file, or the first.
    /// Of those that may become segments again, `keep` stay.
    pub(super) fn remove(&mut self, files: &mut Files, keep: usize) -> Result<Step, Trouble> {
        let store = self.shared.store.clone();
        if self.removing.is_none() && !self.start_removing(files, keep)? {
            return Ok(Step::Again(Duration::ZERO));
        }
        let (Some(removing), Some(spare)) = (&self.removing, &mut files.spares.leaving) else {
            return Ok(Step::Again(Duration::ZERO));
        };
        let left = spare.bytes.saturating_sub(STEP_BYTES);
        let started_ns = self.shared.clock.now_ns();
        if left > 0 && removing.file.set_len(left).is_ok() {
            spare.bytes = left;
            self.rest.after(&self.shared, started_ns);
            return Ok(Step::Again(Duration::ZERO));
        }
        // The last bit, or it cannot be shortened: then it goes at once.
        let removed = store.remove(&spare.name);
        files.spares.leaving = None;
        self.removing = None;
        self.removed(removed);
        self.rest.after(&self.shared, started_ns);
        Ok(Step::Again(Duration::ZERO))
    }

    fn start_removing(&mut self, files: &mut Files, keep: usize) -> Result<bool, Trouble> {
        let store = self.shared.store.clone();
        let bytes = self.plan.segment_bytes;
        files.spares.settle_names(&*store).map_err(|e| self.failed(files.next_epoch, e))?;
        let Some(spare) = files.spares.take_surplus(bytes, keep) else { return Ok(false) };
        self.shared.counters.removed.begin(self.shared.clock.now_ns());
        match store.open(&spare.name, Access::Write) {
            // What somebody keeps under another name is not shortened: it only loses this one.
            Ok(file) if file.has_other_names().unwrap_or(false) => {
                self.removed(store.remove(&spare.name));
                Ok(false)
            }
            Ok(file) => {
                files.spares.leaving = Some(spare);
                self.removing = Some(Removing { file });
                Ok(true)
            }
            Err(error) => {
                let removed = if is_gone(&error) { Ok(()) } else { store.remove(&spare.name) };
                self.removed(removed);
                Ok(false)
            }
        }
    }

    fn removed(&self, result: io::Result<()>) {
        let counters = &self.shared.counters;
        match result {
            Err(error) if !is_gone(&error) => {
                counters.removed.give_up();
                counters.spares_left.add(1);
            }
            _ => counters.removed.finish(self.shared.clock.now_ns()),
        }
    }
}
