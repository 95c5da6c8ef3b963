//! Throughput against latency, and the knee of that curve.

use serde_json::{Value, json};

use crate::latencies::round3;
use crate::rounds::Measured;

/// One rate of a sweep.
#[derive(Clone, Debug)]
pub struct Point {
    /// Records a second that the schedule asked for.
    pub offered: f64,
    /// Records a second that were acknowledged.
    pub achieved: f64,
    /// Whether all of the schedule was done, and nearly in its time.
    pub kept_up: bool,
    /// Percentiles in us, from the intended starts.
    pub p50_us: f64,
    /// See `p50_us`.
    pub p99_us: f64,
    /// See `p50_us`.
    pub p999_us: f64,
    /// CPU time by record in us.
    pub cpu_us: f64,
}

impl Point {
    /// The point that an open-loop measurement is.
    pub fn of(measured: &Measured) -> Self {
        Point {
            offered: measured.offered_per_s().unwrap_or(0.0),
            achieved: measured.records_per_s(),
            kept_up: measured.kept_up(),
            p50_us: measured.latencies.quantile_us(0.5),
            p99_us: measured.latencies.quantile_us(0.99),
            p999_us: measured.latencies.quantile_us(0.999),
            cpu_us: measured.cpu_us_per_record(),
        }
    }

    /// As an object.
    pub fn to_json(&self) -> Value {
        json!({
            "offered_per_s": round3(self.offered),
            "achieved_per_s": round3(self.achieved),
            "kept_up": self.kept_up,
            "p50_us": round3(self.p50_us),
            "p99_us": round3(self.p99_us),
            "p999_us": round3(self.p999_us),
            "cpu_us_per_append": round3(self.cpu_us),
        })
    }
}

/// Shares of the closed loop's rate that a sweep offers.
pub const SHARES: [f64; 10] = [0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15];

/// Beyond the knee p99 is more than so many times what it is at low rates.
pub const KNEE_P99: f64 = 3.0;

/// The knee: the highest rate that was kept up with at a p99 of no more than [`KNEE_P99`] times that of low rates
/// (the median over the lower half of the rates that were kept up with). None where no rate was.
pub fn knee(points: &[Point]) -> Option<&Point> {
    let mut kept: Vec<&Point> = points.iter().filter(|point| point.kept_up).collect();
    kept.sort_by(|a, b| a.offered.total_cmp(&b.offered));
    let low: Vec<f64> =
        kept.iter().take(kept.len().div_ceil(2)).map(|point| point.p99_us).collect();
    let limit = KNEE_P99 * crate::clock::median(&low);
    kept.into_iter().rfind(|point| point.p99_us <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(offered: f64, p99_us: f64, kept_up: bool) -> Point {
        let achieved = if kept_up { offered } else { offered * 0.7 };
        let (p50_us, p999_us) = (p99_us / 2.0, p99_us * 2.0);
        Point { offered, achieved, kept_up, p50_us, p99_us, p999_us, cpu_us: 1.0 }
    }

    #[test]
    fn the_knee_is_before_latency_rises() {
        let p99 = [200.0, 210.0, 190.0, 220.0, 300.0, 500.0, 2000.0, 30_000.0];
        let points: Vec<Point> =
            (1..).zip(p99).map(|(i, p99)| point(f64::from(i) * 1e3, p99, i < 8)).collect();
        assert_eq!(knee(&points).map(|point| point.offered), Some(6000.0));
    }

    #[test]
    fn one_hiccup_at_a_low_rate_does_not_hide_it() {
        let p99 = [200.0, 4000.0, 210.0, 220.0, 300.0, 9000.0];
        let points: Vec<Point> =
            (1..).zip(p99).map(|(i, p99)| point(f64::from(i) * 1e3, p99, true)).collect();
        assert_eq!(knee(&points).map(|point| point.offered), Some(5000.0));
    }

    #[test]
    fn rates_that_were_missed_do_not_count() {
        assert!(knee(&[]).is_none());
        assert!(knee(&[point(1e3, 100.0, false)]).is_none());
        let points = [point(1e3, 100.0, true), point(2e3, 90.0, false)];
        assert_eq!(knee(&points).map(|point| point.offered), Some(1000.0));
    }
}
