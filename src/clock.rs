//! The two clocks of a log: one that only goes forward, for pauses and timings, and the wall clock
//! for batch headers. In simulations both are a counter that the test moves.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::sync::{AtomicU64, Ordering};

#[derive(Clone)]
pub(crate) enum Clock {
    /// The system's clocks; nanoseconds count from this instant.
    System(Instant),
    /// Nanoseconds, moved by a test.
    #[cfg_attr(not(feature = "sim"), allow(dead_code))]
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub(crate) fn system() -> Self {
        Clock::System(Instant::now())
    }

    /// Nanoseconds since the clock was made.
    pub(crate) fn now_ns(&self) -> u64 {
        match self {
            Clock::System(start) => start.elapsed().as_nanos() as u64,
            Clock::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Nanoseconds since the Unix epoch.
    pub(crate) fn wall_ns(&self) -> u64 {
        match self {
            Clock::System(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos() as u64),
            Clock::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Whether a test moves the clock.
    pub(crate) fn is_manual(&self) -> bool {
        matches!(self, Clock::Manual(_))
    }

    /// The instant at which this clock showed `ns`.
    pub(crate) fn instant(&self, ns: u64) -> Option<Instant> {
        match self {
            Clock::System(start) => start.checked_add(Duration::from_nanos(ns)),
            Clock::Manual(_) => None,
        }
    }
}
