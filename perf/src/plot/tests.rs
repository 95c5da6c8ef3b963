use std::time::Duration;

use super::*;
use crate::latencies::Interval;

fn latencies(us: u64) -> Latencies {
    let mut latencies = Latencies::new();
    (1..=2000).for_each(|n| latencies.record(Duration::from_micros(us + n * n / 2000)));
    latencies
}

fn is_svg(svg: &str, words: &[&str]) {
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for word in words {
        assert!(svg.contains(word), "{word}");
    }
}

#[test]
fn percentile_curves() {
    let svg = percentiles("Curves", &[("log", &latencies(100)), ("bare", &latencies(80))]);
    is_svg(&svg.expect("it draws"), &["Curves", "99.9 %", "log", "bare", "latency, us"]);
}

#[test]
fn latency_over_time() {
    let interval = |second| Interval {
        start: Duration::from_secs(second),
        length: Duration::from_secs(1),
        latencies: latencies(100 + second),
    };
    let series = Series { intervals: (0..5).map(interval).collect() };
    let svg = over_time("Time", &[("log", &series)]).expect("it draws");
    is_svg(&svg, &["time, s", "log p50", "log p99", "stroke"]);
}

#[test]
fn throughput_against_latency() {
    let point = |offered: f64| Point {
        offered,
        achieved: offered,
        kept_up: offered != 4000.0 && offered < 9000.0,
        p50_us: 100.0,
        p99_us: 100.0 + offered / 10.0,
        p999_us: 900.0,
        cpu_us: 3.0,
    };
    let points = [1000.0, 9000.0, 4000.0, 5000.0, 40_000.0].map(point);
    let svg = throughput("Sweep", &[("log", &points)]).expect("it draws");
    // p50 and p99 of the rates that were kept, and of the first that was too high.
    assert_eq!(svg.matches("<circle").count(), 2 * 3);
    is_svg(&svg, &["log p99", "10 000", "records acknowledged a second"]);
}

#[test]
fn nothing_measured_is_still_a_plot() {
    is_svg(&percentiles("None", &[("log", &Latencies::new())]).expect("it draws"), &["None"]);
    is_svg(&over_time("None", &[]).expect("it draws"), &["None"]);
    is_svg(&throughput("None", &[("log", &[])]).expect("it draws"), &["None"]);
}

#[test]
fn ticks_are_round() {
    let (range, ticks) = Scale::Linear.fit([3.0, 57_000.0].into_iter());
    assert_eq!((range.end, ticks[1]), (60_000.0, 10_000.0));
    let (range, ticks) = Scale::Log.fit([90.0, 1500.0].into_iter());
    let told: Vec<String> = ticks.iter().map(|tick| Scale::Log.told(*tick)).collect();
    assert_eq!(told, ["50", "100", "200", "500", "1 000", "2 000"]);
    assert!(range.start < 90_f64.log10() && range.end > 1500_f64.log10());
    assert_eq!(Scale::Nines.told(4.0), "99.99 %");
    assert_eq!(grouped(1_234_567.0), "1 234 567");
    assert_eq!(grouped(0.5), "0.5");
}
