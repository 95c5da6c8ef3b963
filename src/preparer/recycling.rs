//! Giving up the files of trimmed segments, and making segments of them again. That needs no space,
//! and every byte of a record is written once, not twice.
//!
//! What stands on the disk after a crash in each step:
//!
//! 1. *The segment gets a spare name.* The mark that says that it does not count was durable before.
//!    Under either name nobody reads it.
//! 2. *The spare, which was another segment, gets a temporary name.* A crash leaves a spare, a leftover to sweep, or the segment
//!    that it was, below the log's start. (A spare that stood above it, cut off by a truncation or left by
//!    a crash, got its name durably before anything went on.)
//! 3. *Headers with a new epoch and a new salt are written; the file is synced, and they are read back.* The same. Every batch of the
//!    earlier life is in the file, and none can pass as one of the new: its header has another epoch
//!    and another salt.
//! 4. *The final name, and a sync of the directory.* The file is whole by now, under whichever name.
//!
//! Two syncs, no more: each holds up the commits beside it (`uringlog bench --rotation`).

use std::io;
use std::time::Duration;

use super::filling::Filling;
use super::{Preparer, Step, Trouble};
use crate::extent::Files;
use crate::segment::Filler;

impl Preparer {
    /// Makes a segment of a spare file, where there is one that fits. None: there is not.
    pub(super) fn recycle(&mut self, files: &mut Files) -> Result<Option<Step>, Trouble> {
        let (epoch, bytes) = (files.next_epoch, self.plan.segment_bytes);
        if !files.spares.any_for(epoch, bytes) {
            return Ok(None);
        }
        let store = self.shared.store.clone();
        let counters = &self.shared.counters;
        let header = self.next_header(files, true).map_err(|e| self.trouble(epoch, e))?;
        let Some(spare) = files.spares.take_for(epoch, bytes) else { return Ok(None) };
        counters.recycled.begin(self.shared.clock.now_ns());
        files.making_bytes = spare.bytes;
        let adopted = Filler::adopt(&*store, header, &spare.name);
        let filler = match adopted {
            Ok(filler) => filler,
            Err(error) => {
                files.making_bytes = 0;
                counters.recycled.give_up();
                return match self.trouble(epoch, error) {
                    Trouble::NoSpace => {
                        files.spares.put_back(spare);
                        Err(Trouble::NoSpace)
                    }
                    // Somebody took it away, or it cannot be opened: there are other ways.
                    Trouble::Failed(_) => {
                        counters.spares_left.add(1);
                        Ok(Some(Step::Again(Duration::ZERO)))
                    }
                };
            }
        };
        self.filling = Some(Filling::adopted(filler, self.shared.extent.generation()));
        Ok(Some(Step::Again(Duration::ZERO)))
    }

    /// Gives the lowest trimmed segment's file up. False: there is none.
    pub(super) fn retire(&mut self, files: &mut Files) -> Result<bool, Trouble> {
        let first = self.shared.extent.first_epoch();
        let epoch = files.first_file;
        if epoch >= first {
            return Ok(false);
        }
        let retired = files.spares.retire(&*self.shared.store, epoch);
        if let Err(error) = retired
            && !is_gone(&error)
        {
            // It stays where it is, below the log's start, and the next opening finds it there.
            self.shared.counters.spares_left.add(1);
        }
        files.first_file = epoch + 1;
        files.catalog.forget_below(files.first_file);
        Ok(true)
    }
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
