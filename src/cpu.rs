//! The number of the core that the calling thread runs on.
#![allow(unsafe_code)]

/// The core's number; stale as soon as it is known, which costs some contention and nothing else.
#[inline]
pub(crate) fn current() -> usize {
    #[cfg(feature = "sim")]
    if let Some(core) = SIMULATED.get() {
        return core;
    }
    if cfg!(uringlog_loom) {
        // A model must not depend on where it runs.
        return 0;
    }
    // glibc answers from the thread's rseq area, without a system call (2.35 and later).
    // SAFETY: the call takes no arguments and touches no memory of ours.
    let cpu = unsafe { libc::sched_getcpu() };
    // Negative where the system cannot tell: then all threads share the first ring.
    usize::try_from(cpu).unwrap_or(0)
}

#[cfg(feature = "sim")]
std::thread_local! {
    /// The core that this thread is taken to run on, where a simulation says so.
    pub(crate) static SIMULATED: core::cell::Cell<Option<usize>> =
        const { core::cell::Cell::new(None) };
}
