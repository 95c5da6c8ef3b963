//! A life with everything in it, in a fixed order: rotation, files used again, trimming, cutting,
//! cursors, readers. What is random in other lives is drawn from the seed here too, but not what is
//! done.

use uringlog::{Durability, Lsn, sim};

use super::Life;

/// How many actions a whole one has.
pub const ACTIONS: u64 = 19;

impl Life<'_> {
    pub(super) fn act_by_script(&mut self, action: u64) {
        match action % ACTIONS {
            0 => self.append_some(3, 200),
            1 | 9 => self.cursor_to(self.log.durable_lsn().get() / 2),
            // Past the end of the first segment.
            2 | 6 | 12 => self.append_some(20, 2900),
            3 => self.append_batch(5, 500),
            4 => self.follow(),
            5 => self.trim_before(self.log.durable_lsn().get().saturating_sub(4)),
            7 => self.cursor_to(self.log.durable_lsn().get()),
            8 => self.trim_before(self.log.durable_lsn().get().saturating_sub(2)),
            10 => self.truncate_to(self.log.last_lsn().get().saturating_sub(3)),
            11 => self.reserve(),
            13 => self.publish(),
            14 => self.read_elsewhere(),
            15 => self.truncate_to(self.log.durable_lsn().get()),
            16 => self.read_back(),
            17 => self.append_some(2, 7000),
            _ => self.advance(std::time::Duration::from_millis(6)),
        }
        if !self.is_over() {
            self.settle();
        }
        if !self.is_over() && self.plan.setup.durability == Durability::Written {
            self.ask_for_sync();
        }
    }

    fn append_some(&mut self, count: u64, len: usize) {
        for _ in 0..count {
            if self.is_over() {
                return;
            }
            self.append(len);
            self.turn();
            if self.rng.one_in(2) && !self.is_over() {
                self.settle();
            }
        }
    }

    fn truncate_to(&mut self, keep: u64) {
        let first = self.log.first_lsn().get();
        if self.truncation.is_some() || keep + 1 < first {
            return;
        }
        self.world.model.cutting = Some(keep);
        self.truncation = Some(sim::truncate_after(self.log, Lsn::new(keep)));
    }
}
