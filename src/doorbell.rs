//! Waking a thread that sleeps when it has nothing to do: the writer, or the preparer.
//!
//! The protocol is Dekker's: the sleeper says that it sleeps, fences, and looks for work once more;
//! whoever brings work makes it visible, fences, and looks whether the sleeper sleeps. One of the
//! two sees the other. While the sleeper is awake, ringing costs one fence and one load.
//!
//! An append has no such fence: taking its number, one locked instruction that it needs anyway, announces the
//! record ([`ring_announced`](Doorbell::ring_announced)). That made an append a fifth cheaper than the fence.

use std::time::Duration;

use crate::sync::{Futex, Ordering, fence};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;

/// The word that one thread sleeps on and all others ring.
pub(crate) struct Doorbell {
    state: Futex,
}

impl Doorbell {
    pub(crate) fn new() -> Self {
        Doorbell { state: Futex::new(AWAKE) }
    }

    /// Wakes the sleeper, if it sleeps. The work must have been made visible before. Returns whether
    /// a wake-up was needed.
    #[inline]
    pub(crate) fn ring(&self) -> bool {
        // Partner: the fence in `sleep`. Orders the caller's publication before the load below.
        fence(Ordering::SeqCst);
        if self.state.word().load(Ordering::Relaxed) == AWAKE {
            return false;
        }
        self.wake_slow()
    }

    /// As [`ring`](Self::ring), without the fence, for work that was announced before it was made visible: by a
    /// read-modify-write, sequentially consistent, of an atomic that the sleeper looks at, likewise, in place
    /// of the work. It must not sleep on what is announced and not visible yet.
    #[inline]
    pub(crate) fn ring_announced(&self) -> bool {
        // SeqCst: of this load, the caller's read-modify-write before it, the swap in `sleep`, and the
        // sleeper's look at that atomic behind it, there is one order: if this load comes before the swap,
        // the sleeper sees the announcement.
        if self.state.word().load(Ordering::SeqCst) == AWAKE {
            return false;
        }
        self.wake_slow()
    }

    #[cold]
    fn wake_slow(&self) -> bool {
        // AcqRel, paired with itself: of several ringers one pays for the wake-up.
        if self.state.word().swap(AWAKE, Ordering::AcqRel) == ASLEEP {
            self.state.wake(1);
            return true;
        }
        false
    }

    /// Sleeps until rung or until the time is over, unless `work_is_there` says that there is
    /// something to do. Only one thread may call this.
    pub(crate) fn sleep(&self, timeout: Option<Duration>, work_is_there: impl FnOnce() -> bool) {
        // A swap, not a store, so that the models can tell its place among the ringers' swaps.
        self.state.word().swap(ASLEEP, Ordering::SeqCst);
        // Partner: the fence in `ring`. Orders the store above before the look for work.
        fence(Ordering::SeqCst);
        if !work_is_there() {
            self.state.wait(ASLEEP, timeout);
        }
        self.state.word().swap(AWAKE, Ordering::Relaxed);
    }
}
