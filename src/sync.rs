//! Atomics, cells and the futex, taken from loom when the crate is built with `--cfg uringlog_loom`, so that
//! the models in models.rs run the very code of the rings and of the wake-up protocols.

#[cfg(not(uringlog_loom))]
mod imp {
    pub(crate) use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};

    use std::num::NonZeroU32;
    use std::time::Duration;

    /// A 32-bit word that threads sleep on.
    #[derive(Default)]
    pub(crate) struct Futex(AtomicU32);

    impl Futex {
        pub(crate) const fn new(value: u32) -> Self {
            Futex(AtomicU32::new(value))
        }

        pub(crate) fn word(&self) -> &AtomicU32 {
            &self.0
        }

        /// Sleeps while the word is `expected`; may wake for no reason. `None` waits without end.
        pub(crate) fn wait(&self, expected: u32, timeout: Option<Duration>) {
            use rustix::thread::futex;
            let timespec = timeout.map(|timeout| futex::Timespec {
                tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(timeout.subsec_nanos()),
            });
            // EAGAIN, EINTR and ETIMEDOUT all mean: look again, which every caller does.
            let _looked_at_again =
                futex::wait(&self.0, futex::Flags::PRIVATE, expected, timespec.as_ref());
        }

        /// Wakes up to `count` sleepers.
        pub(crate) fn wake(&self, count: u32) {
            use rustix::thread::futex;
            // Waking can only fail for a bad address, and this one is borrowed.
            let _woken = futex::wake(&self.0, futex::Flags::PRIVATE, count);
        }

        /// As [`wait`](Self::wait), until a [`wake_for`](Self::wake_for) of a bit in `bits`.
        pub(crate) fn wait_for(&self, bits: NonZeroU32, expected: u32, timeout: Option<Duration>) {
            use rustix::thread::futex;
            let until = timeout.map(end_of);
            let _looked_at_again =
                futex::wait_bitset(&self.0, futex::Flags::PRIVATE, expected, until.as_ref(), bits);
        }

        /// Wakes up to `count` of those who wait for a bit in `bits`, and returns how many.
        pub(crate) fn wake_for(&self, bits: NonZeroU32, count: u32) -> usize {
            use rustix::thread::futex;
            // It fails for a wrong address or wrong bits only.
            futex::wake_bitset(&self.0, futex::Flags::PRIVATE, count, bits).unwrap_or(0)
        }
    }

    /// When a timeout that starts now is over, as the futex understands it.
    fn end_of(timeout: Duration) -> rustix::time::Timespec {
        use rustix::time::{ClockId, Timespec, clock_gettime};
        const NEVER: Timespec = Timespec { tv_sec: i64::MAX, tv_nsec: 0 };
        let length = Timespec::try_from(timeout).unwrap_or(NEVER);
        clock_gettime(ClockId::Monotonic).checked_add(length).unwrap_or(NEVER)
    }

    /// See the other one.
    #[inline]
    pub(crate) fn fence_for_loom() {}

    pub(crate) use core::cell::UnsafeCell;
    pub(crate) use std::sync::{Mutex, MutexGuard};
    pub(crate) use std::thread::yield_now;
}

#[cfg(uringlog_loom)]
mod imp {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
    pub(crate) use loom::thread::yield_now;

    use std::num::NonZeroU32;
    use std::time::Duration;

    use loom::sync::Condvar;
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    /// Stands behind a read-modify-write that is sequentially consistent and that loom, which knows that
    /// order of fences only, takes for less.
    pub(crate) fn fence_for_loom() {
        fence(Ordering::SeqCst);
    }

    /// The futex as loom can see it: the word, and a condition variable behind it. Time does not
    /// exist in a model: a timeout is ignored.
    pub(crate) struct Futex {
        word: AtomicU32,
        lock: Mutex<()>,
        changed: Condvar,
    }

    impl Futex {
        pub(crate) fn new(value: u32) -> Self {
            Futex { word: AtomicU32::new(value), lock: Mutex::new(()), changed: Condvar::new() }
        }

        pub(crate) fn word(&self) -> &AtomicU32 {
            &self.word
        }

        pub(crate) fn wait(&self, expected: u32, _timeout: Option<Duration>) {
            let guard = self.lock.lock().unwrap();
            // As in the kernel: comparing the word and going to sleep are one step for a waker.
            if self.word.load(Ordering::Relaxed) == expected {
                drop(self.changed.wait(guard).unwrap());
            }
        }

        pub(crate) fn wake(&self, count: u32) {
            let _guard = self.lock.lock().unwrap();
            if count == 1 {
                self.changed.notify_one();
            } else {
                self.changed.notify_all();
            }
        }

        pub(crate) fn wait_for(&self, _: NonZeroU32, expected: u32, timeout: Option<Duration>) {
            self.wait(expected, timeout);
        }

        /// Wakes all: who was not meant looks again.
        pub(crate) fn wake_for(&self, _: NonZeroU32, count: u32) -> usize {
            self.wake(u32::MAX);
            count as usize
        }
    }

    impl Default for Futex {
        fn default() -> Self {
            Futex::new(0)
        }
    }
}

pub(crate) use imp::*;
