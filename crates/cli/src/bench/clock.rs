//! Time, CPU time, pacing, and the histograms that latencies go into.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

/// Latencies in nanoseconds, 1 ns to a minute, to three digits.
#[derive(Clone)]
pub struct Latencies(Histogram<u64>);

const LATENCY_NS_MAX: u64 = 60_000_000_000;

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        // The bounds are constants that the histogram accepts; without them it still works, grown
        // on demand.
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Latencies(histogram.unwrap_or_else(|_| unreachable!("the bounds are valid")))
    }

    /// Records one; longer than a minute counts as a minute.
    #[inline]
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX));
    }

    /// Adds all of `other`'s.
    pub fn add(&mut self, other: &Latencies) {
        // Both have the same bounds, so nothing is out of range.
        let added = self.0.add(&other.0);
        debug_assert!(added.is_ok());
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency in ns that the fraction `quantile` of all stays within; 0 without any.
    pub fn quantile_ns(&self, quantile: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(quantile) as f64 }
    }

    /// The longest, in ns.
    pub fn max_ns(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.max() as f64 }
    }
}

/// CPU time of the whole process, in user and kernel, io_uring's kernel workers included.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
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
/// cool the core down.
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
    fn latencies_saturate_and_add() {
        let mut some = Latencies::new();
        assert_eq!(some.quantile_ns(0.5), 0.0);
        some.record(Duration::from_secs(3600));
        some.record(Duration::ZERO);
        let mut all = Latencies::new();
        all.add(&some);
        assert_eq!(all.count(), 2);
        assert!(all.max_ns() >= 6e10);
    }

    #[test]
    fn a_pace_is_kept() {
        let start = Instant::now();
        let mut pace = Pace::new(Some(1000.0));
        (0..11).for_each(|_| pace.wait());
        assert!(start.elapsed() >= Duration::from_millis(9));
    }
}
