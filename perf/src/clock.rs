//! Time, CPU time, pacing, and medians.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// CPU time of the whole process, in user and kernel, io_uring's kernel workers included.
pub fn cpu_time() -> Duration {
    cpu_clock(ClockId::ProcessCPUTime)
}

/// CPU time of the calling thread.
pub fn thread_cpu_time() -> Duration {
    cpu_clock(ClockId::ThreadCPUTime)
}

fn cpu_clock(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// What reading the clock twice shows although nothing happened: the median of many.
pub fn timer_cost() -> Duration {
    let mut costs: Vec<Duration> = (0..10_001)
        .map(|_| {
            let start = Instant::now();
            start.elapsed()
        })
        .collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}

/// Lets one thread go on at a steady pace, without ever sleeping: that would be late, and would
/// cool the core down. For timing single calls; an open loop has a [`Schedule`](crate::Schedule).
pub struct Pace {
    period: Option<Duration>,
    next: Instant,
}

/// Short of its turn by no more than that, a thread keeps its core.
const SPIN: Duration = Duration::from_micros(15);

impl Pace {
    /// `per_second` times a second; without it, at once each time.
    pub fn new(per_second: Option<f64>) -> Self {
        Pace {
            period: per_second.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            next: Instant::now(),
        }
    }

    /// Waits for the next turn. Turns that were missed are not made up for.
    #[inline]
    pub fn wait(&mut self) {
        let Some(period) = self.period else { return };
        let mut now = Instant::now();
        while now < self.next {
            // With few cores the kernel's own workers need this one: it is theirs while there is
            // time.
            match self.next - now > SPIN {
                true => std::thread::yield_now(),
                false => std::hint::spin_loop(),
            }
            now = Instant::now();
        }
        self.next = (self.next + period).max(now);
    }
}

/// The median; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_pace_is_kept() {
        let start = Instant::now();
        let mut pace = Pace::new(Some(1000.0));
        (0..11).for_each(|_| pace.wait());
        assert!(start.elapsed() >= Duration::from_millis(9));
    }
}
