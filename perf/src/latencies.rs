//! Histograms of latencies, whole and by interval, and the files that other tools read them from.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};
use serde_json::{Value, json};

/// Latencies in nanoseconds, 1 ns to a minute, to three digits.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

/// The quantiles that every result has, with their names in JSON.
pub const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("p9999", 0.9999)];

const LATENCY_NS_MAX: u64 = 60_000_000_000;

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        Self::with_digits(3)
    }

    /// None yet, to two digits and an eighth of the memory: for the many of a [`Series`].
    pub fn coarse() -> Self {
        Self::with_digits(2)
    }

    fn with_digits(digits: u8) -> Self {
        // The bounds are constants that the histogram accepts.
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, digits);
        Latencies(histogram.unwrap_or_else(|_| unreachable!("the bounds are valid")))
    }

    /// Records one; longer than a minute counts as a minute.
    #[inline]
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX));
    }

    /// Forgets all of them, and keeps the memory.
    pub fn clear(&mut self) {
        if !self.0.is_empty() {
            self.0.reset();
        }
    }

    /// Adds all of `other`'s.
    pub fn add(&mut self, other: &Latencies) {
        if other.0.is_empty() {
            return;
        }
        // All have the same bounds, so nothing is out of range.
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

    /// The same in us.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.quantile_ns(quantile) / 1e3
    }

    /// The mean in ns; 0 without any.
    pub fn mean_ns(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.mean() }
    }

    /// The longest, in ns.
    pub fn max_ns(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.max() as f64 }
    }

    /// An object of [`QUANTILES`] and `max` in microseconds.
    pub fn to_json_us(&self) -> Value {
        self.to_json(1e3)
    }

    /// The same in nanoseconds.
    pub fn to_json_ns(&self) -> Value {
        self.to_json(1.0)
    }

    fn to_json(&self, unit_ns: f64) -> Value {
        let mut object = json!({});
        for (name, quantile) in QUANTILES {
            object[name] = json!(round3(self.quantile_ns(quantile) / unit_ns));
        }
        object["max"] = json!(round3(self.max_ns() / unit_ns));
        object
    }

    /// The percentile distribution as HdrHistogram's other implementations print it and its plotters
    /// read it (`.hgrm`), in microseconds.
    pub fn write_hgrm(&self, out: &mut impl Write) -> io::Result<()> {
        const TICKS_PER_HALF: u32 = 5;
        writeln!(
            out,
            "{:>12} {:>14} {:>10} {:>14}\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        )?;
        let mut total = 0;
        for step in self.0.iter_quantiles(TICKS_PER_HALF) {
            total += step.count_since_last_iteration();
            let us = step.value_iterated_to() as f64 / 1e3;
            let quantile = step.quantile_iterated_to();
            write!(out, "{us:>12.3} {quantile:>14.12} {total:>10}")?;
            if quantile < 1.0 {
                write!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?;
            }
            writeln!(out)?;
        }
        let (mean, deviation) = (self.mean_ns() / 1e3, self.0.stdev() / 1e3);
        writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
        let max = self.max_ns() / 1e3;
        writeln!(out, "#[Max     = {max:>12.3}, Total count    = {:>12}]", self.count())?;
        let (buckets, sub_buckets) = (self.0.buckets(), 2048);
        writeln!(out, "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]")
    }

    /// Points of the percentile curve, as (nines, ns): 1 is p90, 2 is p99. The last is the longest.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let nines_max = (self.count() as f64).log10();
        let steps = (nines_max * 20.0).ceil() as u32;
        (0..=steps)
            .map(|step| f64::from(step) / 20.0)
            .map(|nines| nines.min(nines_max))
            .map(|nines| (nines, self.quantile_ns(1.0 - 10_f64.powf(-nines)).max(1.0)))
            .collect()
    }
}

/// Latencies of one stretch of time.
#[derive(Clone, Debug)]
pub struct Interval {
    /// From the start of the run to the start of this stretch.
    pub start: Duration,
    /// How long it was.
    pub length: Duration,
    /// To two digits.
    pub latencies: Latencies,
}

/// Latencies one stretch after the other.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// In the order of time.
    pub intervals: Vec<Interval>,
}

impl Series {
    /// What a quantile of a stretch was, in nanoseconds, in half of the stretches that have any latency: what the disk
    /// does once in a while, for tens of milliseconds, does not move it.
    pub fn median_quantile_ns(&self, quantile: f64) -> f64 {
        let full = self.intervals.iter().filter(|interval| interval.latencies.count() > 0);
        let mut values: Vec<f64> =
            full.map(|interval| interval.latencies.quantile_ns(quantile)).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    }
}

/// Writes an interval log (`.hlog`) of several series, each interval tagged with its series' name, in
/// nanoseconds. `started` is when the run was.
pub fn write_hlog(
    out: &mut impl Write,
    started: SystemTime,
    series: &[(&str, &Series)],
) -> io::Result<()> {
    let other = |error: IntervalLogWriterError<_>| match error {
        IntervalLogWriterError::IoError(error) => error,
        error => io::Error::other(format!("{error:?}")),
    };
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment("[Logged with uringlog bench; values are nanoseconds]")
        .with_start_time(started)
        .with_base_time(started)
        .begin_log_with(out, &mut serializer)?;
    let mut intervals: Vec<_> = series
        .iter()
        .flat_map(|(name, series)| series.intervals.iter().map(move |interval| (*name, interval)))
        .collect();
    intervals.sort_by_key(|(_, interval)| interval.start);
    for (name, interval) in intervals {
        let name = name.replace([',', ' ', '\r', '\n'], "_");
        writer
            .write_histogram(
                &interval.latencies.0,
                interval.start,
                interval.length,
                Tag::new(&name),
            )
            .map_err(other)?;
    }
    Ok(())
}

/// Rounded to three digits after the point: more would only pretend.
pub fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    fn of(values_us: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::new();
        values_us.into_iter().for_each(|us| latencies.record(Duration::from_micros(us)));
        latencies
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
    fn merging_is_as_recording_all_in_one() {
        let mut merged = of(1..=600);
        merged.add(&of(601..=1000));
        let whole = of(1..=1000);
        assert_eq!(merged.to_json_us(), whole.to_json_us());
        let mut coarse = Latencies::coarse();
        coarse.add(&whole);
        assert_eq!(coarse.count(), 1000);
        assert!((coarse.quantile_us(0.5) / 500.0 - 1.0).abs() < 0.02);
    }

    #[test]
    fn json_has_every_quantile_in_order() {
        let object = of(1..=20_000).to_json_us();
        let mut before = 0.0;
        for key in ["p50", "p90", "p99", "p999", "p9999", "max"] {
            let value = object[key].as_f64().expect("a number");
            assert!(value >= before, "{key} of {object}");
            before = value;
        }
        assert!((object["p9999"].as_f64().expect("a number") - 19_998.0).abs() < 20.0);
    }

    #[test]
    fn hgrm_ends_with_all_of_them() {
        let mut text = Vec::new();
        of(1..=1000).write_hgrm(&mut text).expect("into memory");
        let text = String::from_utf8(text).expect("ASCII");
        let last = text.lines().rfind(|line| !line.starts_with('#')).expect("lines");
        let words: Vec<&str> = last.split_whitespace().collect();
        assert_eq!(words[1..], ["1.000000000000", "1000"], "{text}");
        assert!(text.contains("Total count    =         1000]"), "{text}");
    }

    #[test]
    fn a_curve_ends_at_the_longest() {
        let curve = of(1..=1000).curve();
        let (nines, ns) = curve[curve.len() - 1];
        assert!((nines - 3.0).abs() < 1e-9 && (ns / 999e3 - 1.0).abs() < 0.01, "{nines} {ns}");
        assert!(curve.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!(Latencies::new().curve().is_empty());
    }

    #[test]
    fn one_stall_does_not_move_the_median_of_the_turns() {
        let interval = |longest| Interval {
            start: Duration::ZERO,
            length: Duration::from_secs(1),
            latencies: of((1..=999).chain([longest])),
        };
        let series = |longest: [u64; 3]| Series { intervals: longest.map(interval).into() };
        let median = series([1000, 50_000, 1000]).median_quantile_ns(1.0);
        assert!((median / 1e6 - 1.0).abs() < 0.02, "{median}");
        let empty = Interval { latencies: Latencies::new(), ..interval(1) };
        let mostly_empty = Series { intervals: vec![empty.clone(), interval(1000), empty] };
        assert!(mostly_empty.median_quantile_ns(1.0) > 0.9e6);
        assert_eq!(Series::default().median_quantile_ns(0.5), 0.0);
    }

    #[test]
    fn an_interval_log_reads_back() {
        let second = Duration::from_secs(1);
        let interval = |start| Interval { start, length: second, latencies: of(1..=10) };
        let log = Series { intervals: vec![interval(Duration::ZERO), interval(2 * second)] };
        let bare = Series { intervals: vec![interval(second)] };
        let mut text = Vec::new();
        let started = SystemTime::UNIX_EPOCH + 1000 * second;
        write_hlog(&mut text, started, &[("log", &log), ("a b", &bare)]).expect("into memory");
        let tags: Vec<String> = IntervalLogIterator::new(&text)
            .filter_map(|entry| match entry.expect("it parses") {
                LogEntry::Interval(line) => Some(line.tag().expect("a tag").as_str().to_owned()),
                _ => None,
            })
            .collect();
        assert_eq!(tags, ["log", "a_b", "log"]);
    }
}
