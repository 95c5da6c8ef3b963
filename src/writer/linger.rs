//! Waking who waited for a batch, and waiting for some moments until they are back, so that their next records
//! share a batch.
//!
//! Those who shared a batch are woken together, and are likely to come back together: the writer waits until as
//! much is pending as that batch held. Two groups of producers that take turns, each with records pending while
//! the other's are written, wait for two commits for each record; once in a while the writer sees whether
//! they can be one, by waiting for the group that it wakes while the other's records are pending. From then on
//! they share their batches. Where those who were woken do not come back in time, it tries that less and less often.

use super::{STREAM_BYTES, Writer};
use crate::commit::LONG_YIELD;

/// How long a batch waits at a shut gate for records that have their number.
const GATE_LINGER_NS: u64 = 1_000_000;

/// Batches between two tries to merge groups of producers: after one that went well, and at most.
const MERGE_EVERY_MIN: u32 = 16;
const MERGE_EVERY_MAX: u32 = 1024;

/// How long nobody yields after a [`LONG_YIELD`], neither the writer for a batch to grow nor waiters in a crowd: at
/// first, and at most. Each rest is twice as long as the one before, unless that ended longer ago than the second.
const REST_MIN_NS: u64 = 50_000_000;
const REST_MAX_NS: u64 = 1_600_000_000;

/// Waiting for a batch to grow.
#[derive(Default)]
pub(super) struct Linger {
    /// While it waits: what for.
    pub(super) goal: Option<Goal>,
    /// Batches until the next try to merge, and between tries.
    merge_in: u32,
    merge_every: u32,
    /// Until when nobody yields, and how long that is.
    rest_until_ns: u64,
    rest_ns: u64,
    /// Since when, at a shut gate, an accepted record is not published.
    at_gate_since_ns: Option<u64>,
    /// What the last batch held.
    pub(super) last_appends: u64,
    pub(super) last_bytes: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Goal {
    until_ns: u64,
    appends: u64,
    /// It is a try to merge two groups of producers.
    merges: bool,
}

impl Linger {
    /// A try to merge has ended.
    fn tried(&mut self, went_well: bool) {
        self.merge_every = match went_well {
            true => MERGE_EVERY_MIN,
            false => (2 * self.merge_every).clamp(MERGE_EVERY_MIN, MERGE_EVERY_MAX),
        };
        // The batch that is due counts.
        self.merge_in = self.merge_every - 1;
    }

    /// The cores are wanted by others.
    fn rest(&mut self, now_ns: u64) {
        self.end(false);
        let again = now_ns < self.rest_until_ns + REST_MAX_NS;
        self.rest_ns = if again { 2 * self.rest_ns } else { 0 }.clamp(REST_MIN_NS, REST_MAX_NS);
        self.rest_until_ns = now_ns + self.rest_ns;
    }

    /// The batch goes, whatever it waited for.
    pub(super) fn end(&mut self, grown: bool) {
        if self.goal.take().is_some_and(|goal| goal.merges) {
            self.tried(grown);
        }
    }
}

impl Writer {
    /// Lets producers run, while a batch grows.
    pub(super) fn let_others_run(&mut self) {
        let before = self.shared.clock.now_ns();
        std::thread::yield_now();
        let now = self.shared.clock.now_ns();
        if now.saturating_sub(before) >= LONG_YIELD.as_nanos() as u64 {
            self.linger.rest(now);
        }
    }

    /// Whether nobody yields, as the cores are wanted by others.
    fn rests(&self) -> bool {
        self.linger.rest_until_ns > 0 && self.shared.clock.now_ns() < self.linger.rest_until_ns
    }

    /// Whether it is time to see if those who are about to be woken are back soon enough to share a batch with those
    /// whose records are pending.
    pub(super) fn is_merge_due(&mut self) -> bool {
        let two_groups = !self.batch.is_empty() && !self.batch_full && self.large.is_none();
        let nobody_comes = self.closing || self.space.is_gate_shut();
        let lingers = self.tuning.linger_max_ns > 0 && self.flight.is_empty();
        if !two_groups || nobody_comes || !lingers || self.rests() {
            return false;
        }
        let is_due = self.linger.merge_in == 0;
        self.linger.merge_in = self.linger.merge_in.saturating_sub(1);
        is_due
    }

    /// Wakes who is done, and sets what to wait for.
    pub(super) fn wake_done(&mut self, merges: bool) {
        let pending = self.batch.appends();
        let woken = self.waiters.wake_done(&self.shared.commit);
        let now = self.shared.clock.now_ns();
        if self.shared.commit.take_long_yield() {
            self.linger.rest(now);
        }
        let rests = self.rests();
        let in_stream = self.linger.last_bytes >= STREAM_BYTES as u64;
        self.shared.commit.tell_crowd(if rests { 0 } else { woken }, in_stream);
        let shared_batch = self.linger.last_appends > 1 && woken > 1;
        let lingers = self.tuning.linger_max_ns > 0 && !self.batch_full && !rests;
        if (shared_batch || merges) && lingers {
            let appends = match merges {
                // Others may have been woken too, who append nothing.
                true => pending + self.linger.last_appends.min(woken as u64),
                false => self.linger.last_appends,
            };
            // The more appends share a batch, the sooner their producers are back, one
            // after the other, and the less each further one is worth.
            let bound_ns = self.tuning.linger_max_ns * 8 / appends.max(8);
            self.linger.goal = Some(Goal { until_ns: now + bound_ns, appends, merges });
            self.shared.counters.lingers.add(1);
        }
    }

    /// Whether as much is pending as the last batch held.
    pub(super) fn pending_like_last(&self) -> bool {
        self.batch_full
            || self.large.is_some()
            || (!self.batch.is_empty()
                && (self.batch.appends() >= self.linger.last_appends
                    || self.batch.payload_bytes() as u64 >= self.linger.last_bytes))
    }

    /// Whether a batch should rather grow than go: nothing is under way, less is pending than is waited for, and the
    /// time for it is not over.
    pub(super) fn is_growing(&mut self) -> bool {
        if self.batch_full || self.large.is_some() || !self.flight.is_empty() {
            return false;
        }
        // While the gate is shut for want of space, everything accepted goes into full batches: the
        // reserve was reckoned so. Those who have a number are about to publish; one that is
        // preempted just then holds up what is before its number for a moment only.
        let some_are_missing = !self.drain.has_all(&self.shared.numbers);
        if self.space.is_gate_shut() && !self.space.is_waiting() && some_are_missing {
            let now = self.shared.clock.now_ns();
            if now.saturating_sub(*self.linger.at_gate_since_ns.get_or_insert(now)) < GATE_LINGER_NS
            {
                return true;
            }
        } else {
            self.linger.at_gate_since_ns = None;
        }
        let Some(goal) = self.linger.goal else { return false };
        let grown = match goal.merges {
            true => self.batch.appends() >= goal.appends,
            false => self.pending_like_last(),
        };
        let over = grown || self.shared.clock.now_ns() >= goal.until_ns;
        if over {
            self.linger.end(grown);
        }
        !over
    }
}

#[cfg(all(test, not(uringlog_loom)))]
mod tests {
    use super::*;

    #[test]
    fn where_others_want_the_cores_nobody_yields_for_longer_and_longer() {
        let mut linger = Linger::default();
        let mut until = Vec::new();
        for _ in 0..3 {
            linger.rest(1000);
            until.push(linger.rest_until_ns - 1000);
        }
        assert_eq!(until, [REST_MIN_NS, 2 * REST_MIN_NS, 4 * REST_MIN_NS]);
        (0..20).for_each(|_| linger.rest(1000));
        assert_eq!(linger.rest_until_ns, 1000 + REST_MAX_NS);
        let later = linger.rest_until_ns + REST_MAX_NS;
        linger.rest(later);
        assert_eq!(linger.rest_until_ns, later + REST_MIN_NS);
    }

    #[test]
    fn what_does_not_go_well_is_tried_less_and_less_often() {
        let mut linger = Linger::default();
        let mut every = Vec::new();
        for went_well in [false, false, false, true, false] {
            linger.tried(went_well);
            every.push(linger.merge_in + 1);
        }
        assert_eq!(every, [16, 32, 64, 16, 32]);
        (0..20).for_each(|_| linger.tried(false));
        assert_eq!(linger.merge_in + 1, MERGE_EVERY_MAX);
    }
}
