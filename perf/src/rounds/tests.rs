use std::sync::atomic::AtomicU64;

use super::*;

/// Takes as long as it is told to, and fails when it is told to.
struct Slow {
    call: Duration,
    fails: bool,
    calls: AtomicU64,
}

impl Slow {
    fn taking(call: Duration) -> Self {
        Slow { call, fails: false, calls: AtomicU64::new(0) }
    }
}

impl Target for Slow {
    fn producer(&self, _: Work) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(self))
    }
}

impl Producer for &Slow {
    fn append(&mut self, _: &mut Stages) -> Result<(), Error> {
        thread::sleep(self.call);
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.fails { Err(Error::Failed("told to".to_owned())) } else { Ok(()) }
    }
}

const WORK: Work = Work { record_bytes: 8, batch: 3 };

fn plan(turn_ms: u64, rounds: u32) -> Plan {
    let turn = Duration::from_millis(turn_ms);
    Plan { work: WORK, warm_up: Duration::from_millis(2), turn, rounds, pin: false }
}

fn contender(target: &Slow, producers: usize, load: Load) -> Contender<'_> {
    Contender { name: "slow", target, producers, load }
}

#[test]
fn every_contender_has_its_turns() {
    let (a, b) = (Slow::taking(Duration::from_micros(100)), Slow::taking(Duration::from_millis(1)));
    let contenders = [contender(&a, 2, Load::Closed), contender(&b, 1, Load::Closed)];
    let jitter = Jitter::start(2);
    let pinned = Plan { pin: true, ..plan(20, 3) };
    let measured = run(&contenders, &pinned, Some(&jitter), &Stop::default()).expect("it runs");
    for (measured, target) in measured.iter().zip([&a, &b]) {
        assert_eq!(measured.series.intervals.len(), 3);
        assert_eq!(measured.records, measured.latencies.count() * 3);
        // What warmed it up does not count.
        assert!(measured.latencies.count() < target.calls.load(Ordering::Relaxed));
        assert!(measured.elapsed >= Duration::from_millis(60) && measured.records > 0);
        let intervals = measured.series.intervals.iter();
        assert_eq!(intervals.map(|i| i.latencies.count()).sum::<u64>(), measured.latencies.count());
    }
    assert!(measured[0].records > measured[1].records);
    assert!(jitter.finish().iter().all(|late| late.count() > 0));
}

#[test]
fn an_open_loop_counts_from_the_intended_start() {
    // Two calls a millisecond of which each takes one: the last of 20 ms starts some 20 ms late.
    let target = Slow::taking(Duration::from_millis(1));
    let contenders = [contender(&target, 1, Load::Open(2000.0))];
    let measured = run(&contenders, &plan(20, 1), None, &Stop::default()).expect("it runs");
    let measured = &measured[0];
    assert_eq!(measured.latencies.count(), 40, "all of the schedule");
    assert!(measured.latencies.max_ns() >= 20e6, "{:?}", measured.latencies.to_json_us());
    assert_eq!(measured.offered_per_s(), Some(6000.0));
    assert!(!measured.kept_up());
}

#[test]
fn what_never_started_is_counted() {
    let target = Slow::taking(Duration::from_millis(60));
    let contenders = [contender(&target, 1, Load::Open(1000.0))];
    let measured = run(&contenders, &plan(20, 1), None, &Stop::default()).expect("it runs");
    let measured = &measured[0];
    assert_eq!(measured.latencies.count(), 20);
    assert!(measured.missed > 10, "{}", measured.missed);
    assert_eq!(measured.missed + measured.records / 3, 20);
    assert!(!measured.kept_up());
}

#[test]
fn one_contender_is_one_object() {
    let target = Slow::taking(Duration::from_micros(50));
    let contenders =
        [contender(&target, 2, Load::Closed), contender(&target, 3, Load::Open(500.0))];
    let measured = run(&contenders, &plan(20, 2), None, &Stop::default()).expect("it runs");
    let [closed, open] = [0, 1].map(|index| measured_json(&measured[index]));
    assert_eq!((&closed["loop"], &open["loop"]), (&"closed".into(), &"open".into()));
    assert_eq!((&closed["producers"], &open["producers"]), (&2.into(), &3.into()));
    for object in [&closed, &open] {
        let number = |key: &str| object[key].as_f64().unwrap_or_else(|| panic!("{key}"));
        assert_eq!((number("turns"), number("batch")), (2.0, 3.0));
        assert!(number("appends_per_s") > 0.0 && number("cpu_us_per_append") > 0.0);
        assert!(object["latency_us"]["p9999"].is_number(), "{object}");
    }
    assert!(closed["lateness_us"].is_null() && closed["offered_per_s"].is_null());
    assert_eq!(open["offered_per_s"], 1500.0);
    assert!(open["lateness_us"]["max"].is_number() && open["kept_up"].is_boolean());
}

#[test]
fn a_failure_ends_the_run() {
    let target = Slow { fails: true, ..Slow::taking(Duration::ZERO) };
    let contenders = [contender(&target, 4, Load::Closed)];
    let error = run(&contenders, &plan(20, 5), None, &Stop::default()).expect_err("it fails");
    assert_eq!(error.to_string(), "told to");
}

#[test]
fn a_stop_ends_the_run() {
    let target = Slow::taking(Duration::from_micros(10));
    let stop = Stop::default();
    stop.raise();
    let contenders = [contender(&target, 2, Load::Open(10.0)), contender(&target, 1, Load::Closed)];
    let error = run(&contenders, &plan(20, 5), None, &stop).expect_err("it is stopped");
    assert!(matches!(error, Error::Interrupted));
}

#[test]
fn a_plan_fills_its_time() {
    let of = |seconds, contenders, rounds| {
        let plan = Plan::of(WORK, Duration::from_secs(seconds), contenders, rounds);
        (plan.rounds, plan.turn.as_secs_f64() * f64::from(plan.rounds) * contenders as f64)
    };
    assert_eq!(of(3, 3, None), (4, 3.0));
    assert_eq!(of(3, 3, Some(1)), (1, 3.0));
    let (rounds, seconds) = of(3600, 2, None);
    assert!(rounds == 240 && (seconds - 3600.0).abs() < 0.001);
}
