//! How fast the preparer fills, and how much it rests.

use std::time::Duration;

use crate::shared::Shared;

/// How fast to fill: as asked, or a quarter faster than the log is written.
pub(super) struct Pace {
    floor: u64,
    since_ns: u64,
    since_bytes: u64,
    consumed_per_s: u64,
}

impl Pace {
    pub(super) fn new(floor: u64, shared: &Shared) -> Self {
        let since_ns = shared.clock.now_ns();
        Pace { floor, since_ns, since_bytes: shared.counters.disk_bytes.get(), consumed_per_s: 0 }
    }

    pub(super) fn bytes_per_s(&mut self, shared: &Shared) -> u64 {
        const WINDOW_NS: u64 = 20_000_000;
        let (now, bytes) = (shared.clock.now_ns(), shared.counters.disk_bytes.get());
        let elapsed = now.saturating_sub(self.since_ns);
        if elapsed >= WINDOW_NS {
            let consumed = u128::from(bytes.saturating_sub(self.since_bytes));
            self.consumed_per_s = (consumed * 1_000_000_000 / u128::from(elapsed)) as u64;
            (self.since_ns, self.since_bytes) = (now, bytes);
        }
        self.floor.max(self.consumed_per_s + self.consumed_per_s / 4)
    }
}

/// After each piece of work on the disk the preparer rests many times as long, while enough segments
/// stand ready: a commit that meets its work waits for it, so few must meet it.
#[derive(Default)]
pub(super) struct Rest {
    until_ns: u64,
}

impl Rest {
    /// Between a rotation and the first work for the next segment.
    pub(super) const START: Duration = Duration::from_millis(2);
    const TIMES: u64 = 24;
    const MAX_NS: u64 = 20_000_000;

    /// Rests for a time from now on. A simulation does not wait: it draws what comes next.
    pub(super) fn begin(&mut self, shared: &Shared, time: Duration) {
        if !shared.clock.is_manual() {
            self.until_ns = shared.clock.now_ns() + time.as_nanos() as u64;
        }
    }

    /// Rests after work that was begun at `started_ns`.
    pub(super) fn after(&mut self, shared: &Shared, started_ns: u64) {
        let took = shared.clock.now_ns().saturating_sub(started_ns);
        let rest_ns = took.saturating_mul(Self::TIMES).min(Self::MAX_NS);
        self.begin(shared, Duration::from_nanos(rest_ns));
    }

    pub(super) fn left(&self, shared: &Shared) -> Option<Duration> {
        let left = self.until_ns.saturating_sub(shared.clock.now_ns());
        (left > 0).then_some(Duration::from_nanos(left))
    }
}
