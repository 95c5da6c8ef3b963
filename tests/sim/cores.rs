//! Where the test's thread runs: a log with several rings takes the one of the core.

use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::rng::mix;

/// Moves this thread to a core, drawn from the number.
pub fn pin(number: u64) {
    let all = allowed();
    let count = u64::from(all.count());
    let nth = (mix(number) % count) as usize;
    let core = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core)).nth(nth);
    if let Some(core) = core {
        let mut set = CpuSet::new();
        set.set(core);
        sched_setaffinity(None, &set).expect("a core that the process may use");
    }
}

/// Lets this thread run anywhere again.
pub fn unpin() {
    sched_setaffinity(None, allowed()).expect("the cores that the process may use");
}

fn allowed() -> &'static CpuSet {
    static ALLOWED: OnceLock<CpuSet> = OnceLock::new();
    ALLOWED.get_or_init(|| sched_getaffinity(None).expect("the cores of this process"))
}
