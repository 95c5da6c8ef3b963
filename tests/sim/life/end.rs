//! How lives end: by a failure, at rest, closed.

use std::time::Duration;

use uringlog::sim::Turn;
use uringlog::{AppendError, Lsn, WaitError};

use super::{End, Life, Outcome};
use crate::count;

impl Life<'_> {
    /// After the first failure: nothing moves any more, nothing is tried again, and everyone learns
    /// what became of his record.
    pub(super) fn see_poison(&mut self) {
        if self.poisoned || self.world.disk.crashed() {
            return;
        }
        let Some(poison) = self.log.poison() else { return };
        assert!(self.may_break(), "nothing failed: {poison}");
        self.poisoned = true;
        count::add(&count::POISONED);
        let (durable, acknowledged) = (self.log.durable_lsn(), self.log.acknowledged_lsn());
        let last = self.log.last_lsn();
        let under_way = self.plan.setup.depth as u64;
        let before = self.world.disk.stats();
        for _ in 0..12 {
            assert_eq!(self.stepper.turn(), Turn::Ended);
            assert!(!self.stepper.prepare(), "the preparer ends with the log");
        }
        let after = self.world.disk.stats();
        assert!(after.writes - before.writes < under_way, "a write is tried again");
        assert!(after.syncs - before.syncs < under_way, "a sync is tried again");
        assert_eq!(after.dir_syncs, before.dir_syncs, "a sync is tried again");
        assert_eq!((self.log.durable_lsn(), self.log.acknowledged_lsn()), (durable, acknowledged));
        assert_eq!(self.log.last_lsn(), last, "a number is given out that nobody gets");
        let soon = Duration::from_millis(1);
        for refused in [
            self.log.try_append(b"late").err(),
            self.log.append_timeout(b"late", soon).err(),
            self.log.try_append(&[1; 9000]).err(),
            self.log.try_append_batch(&[b"late", b"late"]).err(),
        ] {
            assert!(matches!(refused, Some(AppendError::Poisoned(_))), "late: {refused:?}");
        }
        for lsn in 0..=last.get() + 1 {
            let lsn = Lsn::new(lsn);
            match self.log.wait_durable_timeout(lsn, soon) {
                Ok(()) => assert!(lsn <= durable),
                Err(WaitError::Poisoned(_)) => assert!(lsn > durable),
                Err(error) => panic!("{error}"),
            }
        }
        self.poll_tickets();
        self.held.clear();
        self.follow();
    }

    pub(super) fn finish(mut self) -> Outcome {
        let mut rested = false;
        if !self.is_over() && matches!(self.plan.end, End::Rest | End::Close) {
            self.world.disk.set_space(None);
            self.held.clear();
            if self.plan.end == End::Close {
                self.close();
            } else {
                // What failed works again.
                self.world.disk.mend();
                self.rest();
            }
            rested = !self.poisoned && !self.world.disk.crashed();
        }
        if !self.world.disk.crashed() && !self.poisoned {
            self.poll_tickets();
        }
        // What was durable when the power went stays durable.
        let durable = self.log.durable_lsn().get();
        assert!(durable >= self.world.model.durable && durable <= self.world.model.last());
        self.world.model.moved(durable);
        Outcome {
            acknowledged: self.log.acknowledged_lsn().get(),
            rested,
            // A directory whose sync failed may never be what it seems.
            may_be_killed: !self.plan.may_lose_names() || self.failed_in_writer(),
        }
    }

    pub(super) fn failed_in_writer(&self) -> bool {
        let error = self.log.poison().and_then(|poison| poison.io_error());
        // Not in the preparer, nor in a truncation, which sync the directory.
        error.is_some_and(|error| ["write and sync a batch in", "sync"].contains(&&*error.action))
    }

    pub(super) fn rest(&mut self) {
        self.settle_whole();
        // Once for the sync, once for what vouches, once for the sync of that.
        for _ in 0..3 {
            self.advance(Duration::from_millis(7));
            self.settle();
        }
        if !self.is_over() {
            assert_eq!(self.log.durable_lsn(), self.log.last_lsn(), "an idle log syncs");
        }
    }

    /// Settles, where the space had been short before.
    pub(super) fn settle_whole(&mut self) {
        self.settle();
        for _ in 0..20 {
            if self.is_over() || self.log.acknowledged_lsn() == self.log.last_lsn() {
                break;
            }
            self.settle();
        }
        if !self.is_over() {
            assert_eq!(
                self.log.acknowledged_lsn(),
                self.log.last_lsn(),
                "nothing accepted is lost"
            );
            // The rings may be full of what was refused: it is given back when somebody asks.
            let mut appended = self.append(10);
            self.settle();
            appended = appended || self.is_over() || self.append(10);
            assert!(appended || self.leaked > 0, "appending goes on");
            self.settle();
        }
    }

    pub(super) fn close(&mut self) {
        // Without threads this only asks.
        let closed = self.log.clone().close();
        assert!(closed.is_ok());
        for _ in 0..20_000 {
            match self.turn() {
                Turn::Ended => break,
                Turn::Idle => {
                    self.prepare();
                }
                Turn::Busy => {}
            }
            if self.is_over() {
                break;
            }
        }
        assert!(self.is_over(), "closing ends");
        if !self.world.disk.crashed() && !self.poisoned {
            count::add(&count::CLOSES);
            assert_eq!(self.log.durable_lsn(), self.log.last_lsn(), "closing syncs everything");
            let late = self.log.try_append(b"late").err();
            assert!(matches!(late, Some(AppendError::Closed)), "late: {late:?}");
            let beyond = Lsn::new(self.log.last_lsn().get() + 1);
            let waited = self.log.wait_durable_timeout(beyond, Duration::from_millis(1));
            assert!(matches!(waited, Err(WaitError::Closed)), "late: {waited:?}");
        }
    }
}
