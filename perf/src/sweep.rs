//! Open loops at rising rates: throughput against latency, and the knee.

use std::time::Duration;

use serde_json::{Value, json};
use uringlog::Log;

use crate::bare::Bare;
use crate::clock::median;
use crate::error::Error;
use crate::knee::{KNEE_P99, Point, SHARES, knee};
use crate::latencies::round3;
use crate::plain::Plain;
use crate::rounds::{Contender, Load, Plan, Target, Work, run};
use crate::scenario::{Bench, Setting, extend};
use crate::target::LogTarget;
use crate::waiting::bare_calls;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// Threads.
    pub producers: usize,
    /// What each call appends.
    pub work: Work,
    /// For all rates together.
    pub time: Duration,
}

/// What it measured.
pub struct Swept {
    /// What was run.
    pub request: Sweep,
    /// Records a second of the log in a closed loop: the rates are shares of it.
    pub closed_per_s: f64,
    /// The log at each rate.
    pub log: Vec<Point>,
    /// The mutex + `Vec` + writer thread log at each rate.
    pub plain: Vec<Point>,
    /// The bare loop, one thread and one commit a call, at the rates that it might keep up with.
    pub bare: Vec<Point>,
}

/// Runs it on `log`, beside the mutex + `Vec` + writer thread log where there is one.
pub fn measure(
    bench: &Bench<'_>,
    log: &Log,
    bare: &Bare,
    plain: Option<&Plain>,
    request: Sweep,
    timer: Duration,
) -> Result<Swept, Error> {
    let Sweep { producers, work, time } = request;
    let batch = work.batch.max(1) as f64;
    let target = LogTarget::new(log, timer);
    let contender = |name, target, producers, load| Contender { name, target, producers, load };
    let mut plan = Plan::of(work, (time / 12).min(Duration::from_secs(1)), 1, None);
    plan.pin = bench.pin;
    plan.warm_up = bench.warm_up.unwrap_or(plan.warm_up);
    let alone = [contender("log", &target as &dyn Target, producers, Load::Closed)];
    let closed = run(&alone, &plan, None, bench.stop)?;
    let closed_per_s = median(&closed.iter().map(|m| m.records_per_s()).collect::<Vec<_>>());
    let bare_max = bare_calls(bare, bench)? * SHARES[SHARES.len() - 1];

    let each = time.saturating_sub(plan.turn * plan.rounds) / SHARES.len() as u32;
    let mut swept =
        Swept { request, closed_per_s, log: Vec::new(), plain: Vec::new(), bare: Vec::new() };
    for share in SHARES {
        let calls = (closed_per_s * share / batch).max(0.1);
        let load = Load::Open(calls);
        let mut contenders = vec![contender("log", &target as &dyn Target, producers, load)];
        contenders
            .extend(plain.map(|plain| contender("plain", plain as &dyn Target, producers, load)));
        if calls <= bare_max {
            contenders.push(contender("bare", bare as &dyn Target, 1, load));
        }
        let mut at = Plan::of(work, each, contenders.len(), None);
        (at.pin, at.warm_up) = (plan.pin, plan.warm_up);
        for measured in run(&contenders, &at, None, bench.stop)? {
            let points = match measured.name {
                "log" => &mut swept.log,
                "plain" => &mut swept.plain,
                _ => &mut swept.bare,
            };
            points.push(Point::of(&measured));
        }
    }
    Ok(swept)
}

impl Swept {
    /// The log's knee.
    pub fn knee(&self) -> Option<&Point> {
        knee(&self.log)
    }

    /// As one object.
    pub fn to_json(&self, setting: &Setting) -> Value {
        let mut object = setting.head("sweep", self.request.producers, self.request.work);
        let points = |points: &[Point]| points.iter().map(Point::to_json).collect::<Vec<_>>();
        let curve = |curve: &[Point]| json!({ "knee_per_s": knee(curve).map(|point| round3(point.offered)), "points": points(curve) });
        let rest = json!({
            "closed_appends_per_s": round3(self.closed_per_s),
            "knee_per_s": self.knee().map(|point| round3(point.offered)),
            "knee_rule": format!("the highest rate kept up with at a p99 of at most {KNEE_P99} times that of low rates"),
            "log": curve(&self.log),
            "plain": curve(&self.plain),
            "bare": curve(&self.bare),
        });
        extend(&mut object, rest);
        object
    }
}
