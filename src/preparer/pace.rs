//! How fast the preparer fills.

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
