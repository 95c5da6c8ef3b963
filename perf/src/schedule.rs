//! Open loop: when each append is meant to start, whatever became of the one before.
//!
//! Who waits for a slow append before thinking of the next leaves out just the appends that would have
//! suffered (coordinated omission). Here each start is laid down beforehand, an append that starts late
//! has been waiting since its intended start, and what never got its turn is counted too.

use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

/// The intended starts of one producer: steady, the producers of a group evenly between each other.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start: Instant,
    /// In seconds.
    period: f64,
    offset: f64,
    next: u64,
}

impl Schedule {
    /// That of producer `index` of `producers`, which offer `rate` starts a second together from `start`
    /// on.
    pub fn steady(start: Instant, rate: f64, index: usize, producers: usize) -> Self {
        let producers = producers.max(1) as f64;
        Schedule { start, period: producers / rate, offset: index as f64 / rate, next: 0 }
    }

    /// The next intended start, if it is before `end`.
    #[inline]
    pub fn next_before(&mut self, end: Instant) -> Option<Instant> {
        // Each from the first, so that rounding does not add up.
        let due =
            self.start + Duration::from_secs_f64(self.offset + self.period * self.next as f64);
        if due >= end {
            return None;
        }
        self.next += 1;
        Some(due)
    }
}

/// Short of its turn by no more than that, a thread stays awake: a sleeper is late by a wake-up.
const AWAKE: Duration = Duration::from_micros(50);

/// Waits until `due`: asleep while there is time, then giving the core away again and again, so that
/// with few cores whoever works can have it.
#[inline]
pub fn wait_until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match left > AWAKE {
            true => thread::sleep(left - AWAKE),
            false => thread::yield_now(),
        }
    }
}

/// Lets the calling thread's sleeps end on time: by default the kernel may add 50 us to each. A kernel that
/// does not leaves them late, which the lateness in the results shows.
pub fn sleep_precisely() {
    _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(rate: f64, index: usize, producers: usize, end: Duration) -> Vec<Duration> {
        let start = Instant::now();
        let mut schedule = Schedule::steady(start, rate, index, producers);
        std::iter::from_fn(|| schedule.next_before(start + end)).map(|due| due - start).collect()
    }

    #[test]
    fn starts_are_steady_and_end() {
        let starts = starts(1000.0, 0, 1, Duration::from_millis(5));
        let expected: Vec<Duration> = (0..5).map(Duration::from_millis).collect();
        assert_eq!(starts, expected);
    }

    #[test]
    fn producers_share_the_rate_evenly() {
        let end = Duration::from_secs(1);
        let mut all: Vec<Duration> =
            (0..4).flat_map(|index| starts(400.0, index, 4, end)).collect();
        all.sort_unstable();
        assert_eq!(all.len(), 400);
        let gaps = all.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.clone().max() < Some(Duration::from_micros(2501)), "{:?}", gaps.max());
    }

    #[test]
    fn rounding_does_not_add_up() {
        let starts = starts(3.0, 0, 1, Duration::from_secs(1000));
        assert_eq!(starts.len(), 3000);
    }

    #[test]
    fn waiting_ends_not_before_its_time() {
        sleep_precisely();
        let due = Instant::now() + Duration::from_millis(2);
        wait_until(due);
        assert!(Instant::now() >= due);
        wait_until(due);
    }
}
