//! Threads that sleep until a number is done: those of up to 32 numbers in a row on one futex, so that a few
//! system calls wake all that a batch has done.
//!
//! A thread says that it sleeps by a bit, and then looks once more whether its number is done; the writer moves
//! the watermark, and then looks at the bits. One of the two sees the other (the same argument as in
//! doorbell.rs). The futex's value counts the wake-ups there: a thread reads it before it sets its bit, so that
//! a wake-up which clears the bit while its number is not done keeps the thread from sleeping.
//!
//! Numbers that lie [`SPAN`] apart share a bit: some thread may be woken for nothing, and sleeps again.

use std::num::NonZeroU32;
use std::time::Duration;

use crossbeam_utils::CachePadded;

use crate::probes::stage;
use crate::sync::{AtomicU32, Futex, Ordering, fence};

/// Numbers of one futex: as many as the kernel's mask has bits.
const BITS: u64 = u32::BITS as u64;
/// Few in a model, where each costs a state.
const WORDS: u64 = if cfg!(uringlog_loom) { 1 } else { 128 };
/// Numbers so far apart share their bits.
pub(crate) const SPAN: u64 = BITS * WORDS;

/// So many sleepers of a word, and more, are woken by one call. It is the cheaper way by far (with 32 sleepers on two
/// cores a third more records a second, for a quarter less processor time), but it has all of them ready before
/// the first one ran. Where they are few, those woken one by one, the last of them first, are back sooner: 4
/// producers were 1.1 times as fast. Those who wait for batches of their own are far apart, and are woken one by one.
const TOGETHER_MIN: u32 = 12;
const _: () = assert!(TOGETHER_MIN > 1 && TOGETHER_MIN <= u32::BITS);

/// The most that the kernel wakes at once.
const ALL: u32 = i32::MAX as u32;

/// The threads that wait for one watermark.
pub(crate) struct Sleepers {
    /// Number `lsn` belongs to word `lsn / BITS`, around.
    words: Box<[CachePadded<Word>]>,
}

/// Bit `lsn % BITS` stands for a number.
#[derive(Default)]
struct Word {
    /// How often the writer woke somebody here.
    wake_ups: Futex,
    /// Somebody sleeps for such a number, is about to, or gave up.
    asleep: AtomicU32,
    /// Somebody yields for such a number; a count only, which nobody's waking up hangs on.
    yielding: AtomicU32,
}

impl Sleepers {
    pub(crate) fn new() -> Self {
        Sleepers { words: (0..WORDS).map(|_| CachePadded::default()).collect() }
    }

    // ---- waiters ----

    /// Sleeps until woken for `lsn`, or for a time; may wake for no reason. `settled` is the caller's
    /// last look: it does not sleep if that says so.
    pub(crate) fn sleep(
        &self,
        lsn: u64,
        timeout: Option<Duration>,
        settled: impl FnOnce() -> bool,
    ) {
        let (word, bit) = self.place(lsn);
        // Acquire, so that it comes before the bit is set: partner is the Release in `wake`.
        let seen = word.wake_ups.word().load(Ordering::Acquire);
        // Release: partner is the Acquire in `wake`, by which `seen` is older than that wake-up.
        word.asleep.fetch_or(bit.get(), Ordering::AcqRel);
        // Partner: the fences of `Waiters`. Orders the bit before the look.
        fence(Ordering::SeqCst);
        if !settled() {
            word.wake_ups.wait_for(bit, seen, timeout);
        }
    }

    /// Says that the caller waits for `lsn` awake, so that it is counted.
    pub(crate) fn count_in(&self, lsn: u64) {
        let (word, bit) = self.place(lsn);
        word.yielding.fetch_or(bit.get(), Ordering::Relaxed);
    }

    // ---- the writer ----

    /// Whether anybody waits for a number of `after + 1 ..= upto`. [`Waiters`](crate::waiters::Waiters) has moved the
    /// watermark, and fenced, before.
    pub(crate) fn any(&self, after: u64, upto: u64) -> bool {
        self.masks(after, upto).any(|(_, word, mask)| {
            let waiting =
                word.asleep.load(Ordering::Relaxed) | word.yielding.load(Ordering::Relaxed);
            waiting & mask != 0
        })
    }

    /// Wakes one of those who sleep for `after + 1 ..= upto`, ahead of [`wake`](Self::wake), which wakes the others,
    /// and this one again if it went to sleep again: nobody's waking up hangs on this.
    pub(crate) fn wake_one(&self, after: u64, upto: u64) {
        for (_, word, mask) in self.masks(after, upto) {
            // Acquire: partner is the Release in `sleep`, so that `seen` there is older than this wake-up.
            let asleep = word.asleep.load(Ordering::Acquire) & mask;
            if let Some(asleep) = NonZeroU32::new(asleep) {
                // Release: partner is the Acquire in `sleep`.
                word.wake_ups.word().fetch_add(1, Ordering::Release);
                // Of a bit whose thread gave up nobody wakes.
                if word.wake_ups.wake_for(asleep, 1) > 0 {
                    return;
                }
            }
        }
    }

    /// Wakes everyone who sleeps for a number of `after + 1 ..= upto`, and returns for how many of them
    /// somebody waited, asleep or not.
    pub(crate) fn wake(&self, after: u64, upto: u64) -> u32 {
        let mut waited = 0;
        for (first, word, mask) in self.masks(after, upto) {
            let mut done = word.yielding.load(Ordering::Relaxed) & mask;
            if done != 0 {
                word.yielding.fetch_and(!done, Ordering::Relaxed);
            }
            let asleep = word.asleep.load(Ordering::Relaxed) & mask;
            done |= asleep;
            waited += done.count_ones();
            if let Some(asleep) = NonZeroU32::new(asleep) {
                // Acquire: partner is the Release in `sleep`.
                word.asleep.fetch_and(!asleep.get(), Ordering::AcqRel);
                // Release: partner is the Acquire in `sleep`. Who set its bit before it was cleared just now
                // has read an older value.
                word.wake_ups.word().fetch_add(1, Ordering::Release);
                word.wake(asleep, first);
            }
        }
        waited
    }

    /// Wakes everyone, to look again at what was changed, and fenced, before.
    pub(crate) fn wake_all(&self) {
        self.wake(0, SPAN);
    }

    fn place(&self, lsn: u64) -> (&Word, NonZeroU32) {
        let bit = bit((lsn % BITS) as u32);
        (&self.words[(lsn / BITS % WORDS) as usize], bit)
    }

    /// The words that a range touches, with their first number, and the bits of the range.
    fn masks(&self, after: u64, upto: u64) -> impl Iterator<Item = (u64, &Word, u32)> {
        debug_assert!(after <= upto);
        // Every word once, where the range goes around.
        let after = after.max(upto.saturating_sub(SPAN));
        let words = (after + 1) / BITS..upto / BITS + 1;
        words.map(move |at| {
            let first = at * BITS;
            let bits = bits_of(first, after, upto);
            (first, &*self.words[(at % WORDS) as usize], bits)
        })
    }
}

impl Word {
    /// Wakes those who sleep for the numbers of `asleep`, bits counted from `first` on.
    #[cfg_attr(not(feature = "usdt"), allow(unused_variables))]
    fn wake(&self, asleep: NonZeroU32, first: u64) {
        let mut left = asleep.get();
        let together = asleep.get().count_ones() >= TOGETHER_MIN;
        while left != 0 {
            let last = left.ilog2();
            left &= !(1 << last);
            stage!(wake, first + u64::from(last));
            if !together {
                self.wake_ups.wake_for(bit(last), ALL);
            }
        }
        if together {
            self.wake_ups.wake_for(asleep, ALL);
        }
    }
}

/// The bits of the word that begins with `first` whose numbers are in `after + 1 ..= upto`.
fn bits_of(first: u64, after: u64, upto: u64) -> u32 {
    let from = (after + 1).max(first) - first;
    let to = upto.min(first + (BITS - 1)) - first;
    (u32::MAX << from) & (u32::MAX >> (BITS - 1 - to))
}

/// Bit `at`, less than 32.
fn bit(at: u32) -> NonZeroU32 {
    NonZeroU32::new(1 << at).unwrap_or(NonZeroU32::MIN)
}

#[cfg(all(test, not(uringlog_loom)))]
mod tests {
    use super::*;

    /// The numbers whose bits a range covers, bits taken for the lowest number at or above `after + 1`.
    fn covered(after: u64, upto: u64) -> Vec<u64> {
        let sleepers = Sleepers::new();
        let bits = |bits: u32| (0..32).filter(move |at| bits >> at & 1 == 1);
        let all = sleepers.masks(after, upto);
        all.flat_map(|(first, _, mask)| bits(mask).map(move |at| first + at)).collect()
    }

    #[test]
    fn a_range_covers_its_numbers_and_no_other() {
        for after in (0..70).chain(SPAN - 3..SPAN + 70) {
            for len in [0, 1, 2, 31, 32, 33, 64, 100, SPAN - 1, SPAN] {
                let expected: Vec<u64> = (after + 1..=after + len).collect();
                assert_eq!(covered(after, after + len), expected, "{len} behind {after}");
            }
            // Around: every bit once.
            let around = covered(after, after + 3 * SPAN);
            assert_eq!(around.len() as u64, SPAN);
        }
    }

    #[test]
    fn whoever_waits_is_counted_once() {
        let sleepers = Sleepers::new();
        sleepers.count_in(5);
        sleepers.sleep(5, None, || true);
        sleepers.sleep(6, None, || true);
        sleepers.count_in(40);
        assert!(!sleepers.any(6, 39) && sleepers.any(4, 5) && sleepers.any(6, 40));
        assert_eq!(sleepers.wake(0, 5), 1);
        assert_eq!(sleepers.wake(0, 39), 1);
        assert_eq!(sleepers.wake(0, 1000), 1);
        assert!(!sleepers.any(0, 1000));
    }

    #[test]
    fn who_is_woken_between_its_bit_and_its_sleep_does_not_sleep() {
        let sleepers = Sleepers::new();
        // For a number that shares its bit: it was not done, and the bit is gone.
        sleepers.sleep(SPAN + 1, None, || {
            assert_eq!(sleepers.wake(0, 1), 1);
            false
        });
    }

    /// Few and many at one futex, and more than one futex has: those that are done wake, each for its own number,
    /// and no other.
    #[test]
    fn all_who_are_done_wake() {
        use std::sync::atomic::{AtomicU64, Ordering};
        for waiting in [3, u64::from(TOGETHER_MIN) + 2, BITS + 5] {
            let (sleepers, done) = (Sleepers::new(), AtomicU64::new(0));
            let (sleepers, done) = (&sleepers, &done);
            std::thread::scope(|scope| {
                let threads: Vec<_> = (1..=waiting)
                    .map(|lsn| {
                        scope.spawn(move || {
                            let settled = || done.load(Ordering::Acquire) >= lsn;
                            while !settled() {
                                sleepers.sleep(lsn, None, settled);
                            }
                        })
                    })
                    .collect();
                let mut woken = 0;
                for upto in [1, waiting - 1, waiting] {
                    // Asleep, most of them; the others are about to be.
                    std::thread::sleep(Duration::from_millis(5));
                    done.store(upto, Ordering::Release);
                    sleepers.any(woken, upto);
                    sleepers.wake(woken, upto);
                    woken = upto;
                    let (back, others) = threads.split_at(upto as usize);
                    while !back.iter().all(|thread| thread.is_finished()) {
                        std::thread::yield_now();
                    }
                    assert!(others.iter().all(|thread| !thread.is_finished()));
                }
            });
        }
    }

    #[test]
    fn a_timeout_ends_the_sleep() {
        Sleepers::new().sleep(1, Some(Duration::from_millis(1)), || false);
    }
}
