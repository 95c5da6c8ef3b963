//! Contenders in turns: each gets the same work for the same time, again and again, so that what the
//! machine's disk and neighbours do from minute to minute meets all of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clock::cpu_time;
use crate::error::{Error, Stop};
use crate::jitter::Jitter;
use crate::latencies::{Interval, Latencies, Series, round3};
use crate::schedule::{Schedule, sleep_precisely, wait_until};
use crate::stages::Stages;
use crate::threads::Threads;

/// Something that records are appended to.
pub trait Target: Sync {
    /// What one producer thread appends with; called on that thread, once.
    fn producer(&self, work: Work) -> Result<Box<dyn Producer + '_>, Error>;

    /// Called before each of its turns that counts.
    fn turn_starts(&self) {}

    /// Called after it.
    fn turn_ends(&self) {}
}

/// One thread's end of a [`Target`].
pub trait Producer {
    /// Appends the records of one call, and returns once all of them are durable. What it knows of
    /// where the time went, it may record.
    fn append(&mut self, stages: &mut Stages) -> Result<(), Error>;
}

/// What one call appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Payload bytes of a record.
    pub record_bytes: usize,
    /// Records of one call: more than one are appended as a batch.
    pub batch: usize,
}

/// When the next call starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Closed loop: as soon as the one before returned.
    Closed,
    /// Open loop: so many calls a second of all producers together, each with its intended start.
    /// Latency counts from there.
    Open(f64),
}

/// A target under a load.
pub struct Contender<'a> {
    /// As results name it.
    pub name: &'static str,
    /// What is measured.
    pub target: &'a dyn Target,
    /// Threads.
    pub producers: usize,
    /// Their load.
    pub load: Load,
}

/// How long, and with what.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What each call appends.
    pub work: Work,
    /// Of each contender, before anything counts.
    pub warm_up: Duration,
    /// Length of a turn.
    pub turn: Duration,
    /// Turns of each contender.
    pub rounds: u32,
    /// Ties producer N to CPU N, around.
    pub pin: bool,
}

impl Plan {
    /// Turns of a quarter of a second, or longer ones where there would be too many, so that
    /// `contenders` fill `time` together.
    pub fn of(work: Work, time: Duration, contenders: usize, rounds: Option<u32>) -> Self {
        const TURN: f64 = 0.25;
        const ROUNDS_MAX: f64 = 240.0;
        let each = time.as_secs_f64() / contenders.max(1) as f64;
        let rounds = rounds.unwrap_or((each / TURN).round().clamp(1.0, ROUNDS_MAX) as u32).max(1);
        let turn = Duration::from_secs_f64(each / f64::from(rounds));
        Plan { work, warm_up: Duration::from_millis(50), turn, rounds, pin: false }
    }
}

/// What was measured of one contender.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The contender's name.
    pub name: &'static str,
    /// Its threads.
    pub producers: usize,
    /// Its load.
    pub load: Load,
    /// Records of one call.
    pub batch: usize,
    /// Of each call: from its start, in an open loop from its intended start, until its records were
    /// durable. Those that never started count with how long they had waited.
    pub latencies: Latencies,
    /// In an open loop, how late a call started whose thread was free: the measurement's own error.
    pub lateness: Latencies,
    /// Where the time went, as far as the target tells.
    pub stages: Stages,
    /// One interval for each turn.
    pub series: Series,
    /// Records acknowledged.
    pub records: u64,
    /// Calls of the schedule that were given up, because the target was too far behind.
    pub missed: u64,
    /// How long its turns were, overtime included.
    pub elapsed: Duration,
    /// CPU time of the whole process in its turns, without that of the [`Jitter`] thread.
    pub cpu: Duration,
}

impl Measured {
    fn new(contender: &Contender<'_>, work: Work) -> Self {
        Measured {
            name: contender.name,
            producers: contender.producers,
            load: contender.load,
            batch: work.batch,
            latencies: Latencies::new(),
            lateness: Latencies::new(),
            stages: Stages::new(),
            series: Series::default(),
            records: 0,
            missed: 0,
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
        }
    }

    /// Records acknowledged a second.
    pub fn records_per_s(&self) -> f64 {
        self.records as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Calls a second: of the bare loop, its commits.
    pub fn calls_per_s(&self) -> f64 {
        self.records_per_s() / self.batch.max(1) as f64
    }

    /// CPU time by record, in us.
    pub fn cpu_us_per_record(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / (self.records as f64).max(1.0)
    }

    /// Records a second that the schedule asked for; none in a closed loop.
    pub fn offered_per_s(&self) -> Option<f64> {
        match self.load {
            Load::Closed => None,
            Load::Open(calls) => Some(calls * self.batch as f64),
        }
    }

    /// Whether all of the schedule was done, and nearly in its time.
    pub fn kept_up(&self) -> bool {
        /// The last calls of a turn end after it.
        const OVERTIME: f64 = 0.95;
        self.missed == 0
            && self.offered_per_s().is_none_or(|rate| self.records_per_s() >= rate * OVERTIME)
    }
}

/// One contender's part of a result. `latency_us` of an open loop is from the intended start.
pub fn measured_json(measured: &Measured) -> Value {
    let Measured { name, producers, load, batch, .. } = measured;
    let mut object = json!({
        "name": name,
        "loop": if *load == Load::Closed { "closed" } else { "open" },
        "producers": producers,
        "batch": batch,
        "appends": measured.records,
        "appends_per_s": round3(measured.records_per_s()),
        "calls": measured.latencies.count(),
        "latency_us": measured.latencies.to_json_us(),
        "cpu_us_per_append": round3(measured.cpu_us_per_record()),
        "seconds": round3(measured.elapsed.as_secs_f64()),
        "turns": measured.series.intervals.len(),
    });
    if let Some(offered) = measured.offered_per_s() {
        object["offered_per_s"] = json!(round3(offered));
        object["kept_up"] = json!(measured.kept_up());
        object["missed_calls"] = json!(measured.missed);
        object["lateness_us"] = measured.lateness.to_json_us();
    }
    object
}

/// Lets all contenders have their turns. `jitter` records into slot N during the turns of contender N.
pub fn run(
    contenders: &[Contender<'_>],
    plan: &Plan,
    jitter: Option<&Jitter>,
    stop: &Stop,
) -> Result<Vec<Measured>, Error> {
    let crews: Vec<Crew<'_>> =
        contenders.iter().map(|contender| Crew::new(contender, *plan, stop)).collect();
    let threads = Threads::default();
    thread::scope(|scope| {
        let each =
            |crew| (0..crew_size(crew)).map(move |index| move || Crew::producer(crew, index));
        threads.start(scope, crews.iter().flat_map(each))?;
        let result = turns(&crews, plan, jitter, stop);
        crews.iter().for_each(Crew::end);
        result
    })?;
    crews.into_iter().map(Crew::finish).collect()
}

fn crew_size(crew: &Crew<'_>) -> usize {
    crew.contender.producers
}

fn turns(
    crews: &[Crew<'_>],
    plan: &Plan,
    jitter: Option<&Jitter>,
    stop: &Stop,
) -> Result<(), Error> {
    for crew in crews {
        crew.turn(plan.warm_up, Duration::ZERO, None, false)?;
        stop.check()?;
    }
    let started = Instant::now();
    for _ in 0..plan.rounds {
        for (slot, crew) in crews.iter().enumerate() {
            if let Some(jitter) = jitter {
                jitter.record_into(slot);
            }
            crew.turn(plan.turn, started.elapsed(), jitter, true)?;
            if let Some(jitter) = jitter {
                jitter.record_into(usize::MAX);
            }
            stop.check()?;
        }
    }
    Ok(())
}

/// The threads of one contender, and what they share.
struct Crew<'a> {
    contender: &'a Contender<'a>,
    plan: Plan,
    stop: &'a Stop,
    /// Met by all at the start and at the end of each turn.
    barrier: Barrier,
    ended: AtomicBool,
    /// Start and end of the turn.
    turn: Mutex<(Instant, Instant)>,
    sum: Mutex<Sum>,
}

struct Sum {
    measured: Measured,
    interval: Latencies,
    error: Option<Error>,
}

/// What one thread measured in one turn.
struct Share {
    latencies: Latencies,
    lateness: Latencies,
    stages: Stages,
    calls: u64,
    missed: u64,
}

/// Threads need some time to meet at the barrier and go on: only then a schedule starts.
const GATHER: Duration = Duration::from_millis(1);
/// A schedule that is so much behind at the end of its turn is given up.
const OVERTIME_MAX: Duration = Duration::from_millis(150);

impl<'a> Crew<'a> {
    fn new(contender: &'a Contender<'a>, plan: Plan, stop: &'a Stop) -> Self {
        let now = Instant::now();
        Crew {
            contender,
            plan,
            stop,
            barrier: Barrier::new(contender.producers + 1),
            ended: AtomicBool::new(false),
            turn: Mutex::new((now, now)),
            sum: Mutex::new(Sum {
                measured: Measured::new(contender, plan.work),
                interval: Latencies::coarse(),
                error: None,
            }),
        }
    }

    fn sum(&self) -> MutexGuard<'_, Sum> {
        self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One turn of all its threads, `since` the start of the run.
    fn turn(
        &self,
        length: Duration,
        since: Duration,
        jitter: Option<&Jitter>,
        counts: bool,
    ) -> Result<(), Error> {
        let cpu_now = || cpu_time().saturating_sub(jitter.map_or(Duration::ZERO, Jitter::cpu_time));
        if counts {
            self.contender.target.turn_starts();
        }
        let gather = if self.contender.load == Load::Closed { Duration::ZERO } else { GATHER };
        let start = Instant::now() + gather;
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = (start, start + length);
        let cpu_before = cpu_now();
        self.barrier.wait();
        // All have come back from it, and nothing of the turn is left to do.
        self.barrier.wait();
        let (mut elapsed, cpu) = (start.elapsed(), cpu_now().saturating_sub(cpu_before));
        if self.contender.load != Load::Closed {
            // Behind the schedule's last call comes the rest of the turn.
            elapsed = elapsed.max(length);
        }
        if counts {
            self.contender.target.turn_ends();
        }
        // The threads add up their shares only now: that is not part of the turn.
        self.barrier.wait();
        let mut sum = self.sum();
        let latencies = std::mem::replace(&mut sum.interval, Latencies::coarse());
        if counts {
            sum.measured.elapsed += elapsed;
            sum.measured.cpu += cpu;
            sum.measured.series.intervals.push(Interval {
                start: since,
                length: elapsed,
                latencies,
            });
        } else {
            sum.measured = Measured::new(self.contender, self.plan.work);
        }
        sum.error.take().map_or(Ok(()), Err)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.barrier.wait();
    }

    fn finish(self) -> Result<Measured, Error> {
        let sum = self.sum.into_inner().unwrap_or_else(PoisonError::into_inner);
        sum.error.map_or(Ok(sum.measured), Err)
    }

    /// One producer thread, until the end.
    fn producer(&self, index: usize) {
        sleep_precisely();
        if self.plan.pin {
            pin(index);
        }
        let mut producer = self.contender.target.producer(self.plan.work);
        let mut share = Share::new();
        loop {
            self.barrier.wait();
            // Relaxed: the barrier orders it.
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let result = match &mut producer {
                Ok(producer) => self.append(index, producer.as_mut(), &mut share),
                Err(error) => Err(std::mem::replace(error, Error::Interrupted)),
            };
            self.barrier.wait();
            self.add(&share, result);
            share.clear();
            self.barrier.wait();
        }
    }

    fn append(
        &self,
        index: usize,
        producer: &mut dyn Producer,
        share: &mut Share,
    ) -> Result<(), Error> {
        let (start, end) = *self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        match self.contender.load {
            Load::Closed => self.closed(end, producer, share),
            Load::Open(rate) => {
                let schedule = Schedule::steady(start, rate, index, self.contender.producers);
                self.open(schedule, end, producer, share)
            }
        }
    }

    fn closed(
        &self,
        end: Instant,
        producer: &mut dyn Producer,
        share: &mut Share,
    ) -> Result<(), Error> {
        let mut start = Instant::now();
        // Once at least: a thread that comes late has its turn, and is warm, all the same.
        loop {
            producer.append(&mut share.stages)?;
            let done = Instant::now();
            share.latencies.record(done - start);
            share.calls += 1;
            start = done;
            if start >= end || self.stop.is_raised() {
                return Ok(());
            }
        }
    }

    fn open(
        &self,
        mut schedule: Schedule,
        end: Instant,
        producer: &mut dyn Producer,
        share: &mut Share,
    ) -> Result<(), Error> {
        while let Some(due) = schedule.next_before(end) {
            let now = Instant::now();
            if now > end + OVERTIME_MAX || self.stop.is_raised() {
                // It never started; leaving it out would make a stall look like a pause.
                share.latencies.record(now.saturating_duration_since(due));
                share.missed += 1;
                continue;
            }
            wait_until(due);
            if now <= due {
                share.lateness.record(due.elapsed());
            }
            producer.append(&mut share.stages)?;
            share.latencies.record(due.elapsed());
            share.calls += 1;
        }
        Ok(())
    }

    fn add(&self, share: &Share, result: Result<(), Error>) {
        let mut sum = self.sum();
        let Sum { measured, interval, error } = &mut *sum;
        measured.latencies.add(&share.latencies);
        measured.lateness.add(&share.lateness);
        measured.stages.add(&share.stages);
        measured.records += share.calls * self.plan.work.batch as u64;
        measured.missed += share.missed;
        interval.add(&share.latencies);
        if let Err(failure) = result {
            error.get_or_insert(failure);
        }
    }
}

impl Share {
    fn new() -> Self {
        Share {
            latencies: Latencies::new(),
            lateness: Latencies::coarse(),
            stages: Stages::new(),
            calls: 0,
            missed: 0,
        }
    }

    fn clear(&mut self) {
        self.latencies.clear();
        self.lateness.clear();
        self.stages.clear();
        (self.calls, self.missed) = (0, 0);
    }
}

/// Ties the calling thread to one of the CPUs that it may use. Where that is refused it stays free.
pub(crate) fn pin(index: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    if let Some(&cpu) = cpus.get(index % cpus.len().max(1)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        _ = sched_setaffinity(None, &one);
    }
}

#[cfg(test)]
mod tests;
