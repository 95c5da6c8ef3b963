//! Producers that wait for each of their records, in a closed or an open loop: the log in turns with the
//! bare loop, with the mutex + `Vec` + writer thread log under the same load, and with another number of
//! producers that offer the same.

use std::time::Duration;

use serde_json::{Value, json};
use uringlog::Log;

use crate::bare::Bare;
use crate::error::Error;
use crate::jitter::Jitter;
use crate::latencies::{Latencies, round3};
use crate::plain::Plain;
use crate::rounds::{Contender, Load, Measured, Plan, Target, Work, measured_json, run};
use crate::scenario::{Bench, Setting, extend};
use crate::stages::Stages;
use crate::target::LogTarget;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Threads.
    pub producers: usize,
    /// What each call appends.
    pub work: Work,
    /// Records a second of all producers together, in an open loop; a closed loop without.
    pub rate: Option<f64>,
    /// For all turns together.
    pub time: Duration,
    /// Turns of each contender; as many as fit without.
    pub rounds: Option<u32>,
    /// Measures the log with so many producers too, which offer the same together.
    pub beside: Option<usize>,
    /// Measures the mutex + `Vec` + writer thread log too.
    pub plain: bool,
}

/// What it measured.
pub struct Waited {
    /// What was run.
    pub request: Waiting,
    /// Length of a turn.
    pub turn: Duration,
    /// The log.
    pub log: Measured,
    /// The bare loop; in an open loop at the log's pace, but at no more than half of what it can.
    pub bare: Measured,
    /// The mutex + `Vec` + writer thread log under the log's load.
    pub plain: Option<Measured>,
    /// The log with the other number of producers.
    pub beside: Option<Measured>,
    /// Batches that the log wrote, and the bytes they took on disk.
    pub batches: u64,
    /// See `batches`.
    pub disk_bytes: u64,
    /// Bytes of one write of the bare loop.
    pub bare_block_bytes: usize,
    /// How late a thread woke up that slept: in a quiet moment before, and in the log's turns.
    pub jitter_quiet: Latencies,
    /// See `jitter_quiet`.
    pub jitter: Latencies,
}

/// Nothing runs for so long, so that the machine's own hiccups are seen.
const QUIET: Duration = Duration::from_millis(150);
/// Calls of an open loop's turn, at least, where its time allows that.
const CALLS_OF_TURN_MIN: f64 = 20.0;
/// To see how fast the bare loop is, before it is given a pace.
const BARE_PROBE: Duration = Duration::from_millis(120);

/// Runs it on `log`, which was opened with the options of `bench`.
pub fn measure(
    bench: &Bench<'_>,
    log: &Log,
    bare: &Bare,
    plain: Option<&Plain>,
    request: Waiting,
    timer: Duration,
) -> Result<Waited, Error> {
    let target = LogTarget::new(log, timer);
    // Of its own, so that its batches are not counted with the others'.
    let beside_target = LogTarget::new(log, timer);
    let calls = request.rate.map(|rate| rate / request.work.batch.max(1) as f64);
    let load = calls.map_or(Load::Closed, Load::Open);
    let bare_load = match calls {
        None => Load::Closed,
        Some(calls) => Load::Open(calls.min(bare_calls(bare, bench)? / 2.0)),
    };
    let plain = plain.filter(|_| request.plain);
    let contender = |name, target, producers, load| Contender { name, target, producers, load };
    let mut contenders: Vec<Contender<'_>> = vec![
        contender("log", &target as &dyn Target, request.producers, load),
        contender("bare", bare, 1, bare_load),
    ];
    contenders.extend(
        plain.map(|plain| contender("plain", plain as &dyn Target, request.producers, load)),
    );
    contenders.extend(
        request
            .beside
            .map(|producers| contender("beside", &beside_target as &dyn Target, producers, load)),
    );

    let mut plan = Plan::of(request.work, request.time, contenders.len(), request.rounds);
    if let (Some(calls), None) = (calls, request.rounds) {
        // A turn's schedule starts with a call: with few of them in a turn they would be more than were asked for.
        let in_all = calls * plan.turn.as_secs_f64() * f64::from(plan.rounds);
        let rounds = plan.rounds.min((in_all / CALLS_OF_TURN_MIN) as u32);
        plan = Plan::of(request.work, request.time, contenders.len(), Some(rounds));
    }
    plan.pin = bench.pin;
    plan.warm_up = bench.warm_up.unwrap_or(plan.warm_up);
    let quiet = contenders.len();
    let jitter = Jitter::start(quiet + 1);
    jitter.quiet(quiet, QUIET.min(request.time / 10));
    let mut measured = run(&contenders, &plan, Some(&jitter), bench.stop)?;
    let mut jitter = jitter.finish();

    let mut named = |name| {
        let index = measured.iter().position(|measured| measured.name == name)?;
        Some(measured.swap_remove(index))
    };
    let (Some(log), Some(bare_measured)) = (named("log"), named("bare")) else {
        return Err(Error::Failed("a contender had no turn".to_owned()));
    };
    let (batches, disk_bytes) = target.written();
    Ok(Waited {
        request,
        turn: plan.turn,
        log,
        bare: bare_measured,
        plain: named("plain"),
        beside: named("beside"),
        batches,
        disk_bytes,
        bare_block_bytes: bare.block_bytes(),
        jitter_quiet: jitter.pop().unwrap_or_default(),
        jitter: jitter.into_iter().next().unwrap_or_default(),
    })
}

/// Commits a second of the bare loop as fast as it can.
pub(crate) fn bare_calls(bare: &Bare, bench: &Bench<'_>) -> Result<f64, Error> {
    let mut latencies = Latencies::new();
    let took = bare.turn(BARE_PROBE, None, &mut latencies, bench.stop)?;
    Ok((latencies.count() as f64 / took.as_secs_f64().max(1e-9)).max(1.0))
}

impl Waited {
    /// Stages of the log's appends.
    pub fn stages(&self) -> &Stages {
        &self.log.stages
    }

    /// All that was measured, the log first.
    pub fn contenders(&self) -> Vec<&Measured> {
        let first = [&self.log, &self.bare];
        first.into_iter().chain(&self.plain).chain(&self.beside).collect()
    }

    /// Acknowledged records of the log for each commit of the bare loop.
    pub fn per_bare_commit(&self) -> f64 {
        self.log.records_per_s() / self.bare.calls_per_s().max(1e-9)
    }

    /// Records of one batch.
    pub fn records_per_batch(&self) -> f64 {
        self.log.records as f64 / (self.batches as f64).max(1.0)
    }

    /// As one object. `durable_us` is the log's latency, in an open loop from the intended starts.
    pub fn to_json(&self, setting: &Setting) -> Value {
        let Waiting { producers, work, rate, .. } = self.request;
        let mode = if rate.is_some() { "open-loop" } else { "closed-loop" };
        let (log, bare) = (&self.log, &self.bare);
        let per_s = log.records_per_s();
        let mut object = setting.head(mode, producers, work);
        let mut ratio = json!({
            "p50": ratio(log, bare, 0.5),
            "p99": ratio(log, bare, 0.99),
            "p999": ratio(log, bare, 0.999),
            "p999_of_turns": turns_ratio(log, bare, 0.999),
            "appends_per_bare_commit": round3(self.per_bare_commit()),
        });
        if let Some(plain) = &self.plain {
            let more = json!({
                "plain_appends_per_s": round3(per_s / plain.records_per_s().max(1e-9)),
                "plain_p50": self::ratio(log, plain, 0.5),
                "plain_p99": self::ratio(log, plain, 0.99),
                "plain_cpu": round3(log.cpu_us_per_record() / plain.cpu_us_per_record().max(1e-9)),
            });
            extend(&mut ratio, more);
        }
        if let Some(beside) = &self.beside {
            let more = json!({
                "beside_p999": self::ratio(log, beside, 0.999),
                "beside_p999_of_turns": turns_ratio(log, beside, 0.999),
            });
            extend(&mut ratio, more);
        }
        let contenders: Vec<Value> = self.contenders().into_iter().map(measured_json).collect();
        let rest = json!({
            "rate": rate,
            "rounds": log.series.intervals.len(),
            "round_ms": self.turn.as_secs_f64() * 1e3,
            "appends": log.records,
            "appends_per_s": round3(per_s),
            "mb_per_s": round3(per_s * work.record_bytes as f64 / 1e6),
            "submit_ns": log.stages.append_returns.to_json_ns(),
            "durable_us": log.latencies.to_json_us(),
            "stages_us": log.stages.to_json_us(),
            "bare_us": bare.latencies.to_json_us(),
            "bare_commits_per_s": round3(bare.calls_per_s()),
            "bare_bytes": self.bare_block_bytes,
            "ratio": ratio,
            "records_per_batch": round3(self.records_per_batch()),
            "disk_bytes": self.disk_bytes,
            "cpu_us_per_append": round3(log.cpu_us_per_record()),
            "contenders": contenders,
            "jitter_us": {
                "quiet": self.jitter_quiet.to_json_us(),
                "log": self.jitter.to_json_us(),
            },
        });
        extend(&mut object, rest);
        object
    }
}

fn ratio(a: &Measured, b: &Measured, quantile: f64) -> f64 {
    round3(a.latencies.quantile_ns(quantile) / b.latencies.quantile_ns(quantile).max(1.0))
}

/// Of the median over the turns of what the quantile was in each.
fn turns_ratio(a: &Measured, b: &Measured, quantile: f64) -> f64 {
    round3(a.series.median_quantile_ns(quantile) / b.series.median_quantile_ns(quantile).max(1.0))
}
