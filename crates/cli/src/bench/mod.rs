//! `uringlog bench`: what the log makes of this machine's disk, beside what the disk can do.
//!
//! [`log_rounds`] and [`async_rounds`] measure the log, [`bare`], [`raw`] and [`mod@reference`] what it is
//! held against, in turns of one run; [`report`] and [`json`] print.

pub mod args;
mod async_rounds;
mod bare;
mod buffer;
mod clock;
mod json;
mod log_rounds;
mod raw;
mod reference;
mod report;
mod rotation;
mod scratch;

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use uringlog::{BackendInfo, Durability, Log};

use crate::choices::IdleArg;
use crate::exit::Failure;
use crate::signals::Interrupt;
use args::Args;
use bare::Bare;
use rotation::Mode;
use scratch::Scratch;

/// Runs `uringlog bench`.
pub fn run(args: Args) -> Result<(), Failure> {
    let interrupt = Interrupt::install()
        .map_err(|error| Failure::Failed(format!("cannot watch for signals: {error}")))?;
    // Dropped, and so removed, on every way out of here.
    let scratch = Scratch::create(args.dir.as_deref())?;
    let bench = Bench { args: &args, scratch: &scratch, interrupt: &interrupt };
    if args.rotation {
        return bench.rotation();
    }
    match (args.is_single(), args.is_async) {
        (false, _) => bench.suite(),
        (true, false) => bench.closed_loop(),
        (true, true) => bench.asynchronous(),
    }
}

/// An error when the user wants to stop.
fn check(interrupt: &Interrupt) -> Result<(), Failure> {
    match interrupt.is_raised() {
        true => Err(Failure::Failed("interrupted; the temporary directory is removed".to_owned())),
        false => Ok(()),
    }
}

/// A payload that is neither constant nor compressible at sight.
fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Where a run stands: what every result is printed with.
pub struct Setting {
    pub backend: BackendInfo,
    pub durability: Durability,
    pub idle: IdleArg,
    pub dir: String,
    pub cores: usize,
    /// What reading the clock costs, taken off where a call is timed.
    pub timer: Duration,
    pub memory_bytes: u64,
}

impl Setting {
    fn of(log: &Log, bench: &Bench<'_>) -> Self {
        Setting {
            backend: log.backend().clone(),
            durability: log.durability(),
            idle: bench.args.idle,
            dir: bench.scratch.path().display().to_string(),
            cores: thread::available_parallelism().map_or(1, usize::from),
            timer: clock::timer_cost(),
            memory_bytes: log.memory_bytes_max() as u64,
        }
    }
}

struct Bench<'a> {
    args: &'a Args,
    scratch: &'a Scratch,
    interrupt: &'a Interrupt,
}

/// One turn of log or bare loop, about.
const ROUND: Duration = Duration::from_millis(250);
const SECONDS: f64 = 4.0;
const RECORD_BYTES: usize = 256;
const ASYNC_RECORD_BYTES: usize = 4096;

impl Bench<'_> {
    fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.args.seconds.unwrap_or(SECONDS))
    }

    /// The bare loop that goes with a log: one block, more where a record does not fit into one.
    fn bare(&self, log: &Log, record_bytes: usize) -> Result<Bare, Failure> {
        let facts = &log.backend().facts;
        let block_bytes = record_bytes.next_multiple_of(facts.block_bytes).max(facts.block_bytes);
        let block_bytes = block_bytes.min(scratch::STEP_BYTES);
        Bare::prepare(self.scratch.path(), block_bytes, facts.direct, self.args.rate)
    }

    /// One named closed-loop workload.
    fn closed_loop(&self) -> Result<(), Failure> {
        let record_bytes = self.args.size.map_or(RECORD_BYTES, |size| size as usize);
        let log = self.args.options().open(self.scratch.path().join("log"))?;
        let mut bare = self.bare(&log, record_bytes)?;
        let setting = Setting::of(&log, self);
        let producers = usize::from(self.args.producers.unwrap_or(1));
        let workload = self.workload(producers, record_bytes, self.seconds());
        let result = log_rounds::run(&log, &mut bare, workload, setting.timer, self.interrupt)?;
        log.close()?;
        if self.args.json {
            return print(&format!("{}\n", json::closed_loop(&setting, &result)));
        }
        print(&report::setting(&setting))?;
        print(&report::closed_loops(&[result]))
    }

    fn workload(
        &self,
        producers: usize,
        record_bytes: usize,
        seconds: Duration,
    ) -> log_rounds::Workload {
        let pairs = (seconds.as_secs_f64() / (2.0 * ROUND.as_secs_f64())).round().max(1.0);
        let rounds = self.args.rounds.unwrap_or(pairs as u32);
        let round = seconds / (2 * rounds);
        log_rounds::Workload { producers, record_bytes, rate: self.args.rate, rounds, round }
    }

    /// One named asynchronous workload.
    fn asynchronous(&self) -> Result<(), Failure> {
        // Opened only for what it says of itself and of the device.
        let log = self.args.options().open(self.scratch.path().join("log"))?;
        let mut bare = self.bare(&log, 0)?;
        let setting = Setting::of(&log, self);
        log.close()?;
        let workload = self.async_workload(self.seconds(), 512 << 20);
        let result = self.run_async(&mut bare, &setting, workload)?;
        if self.args.json {
            return print(&format!("{}\n", json::asynchronous(&setting, &result)));
        }
        print(&report::setting(&setting))?;
        print(&report::asynchronous(&result))
    }

    /// What housekeeping costs an append, for both ways in which new segments come about.
    fn rotation(&self) -> Result<(), Failure> {
        let record_bytes = self.args.size.map_or(RECORD_BYTES, |size| size as usize);
        let mut results = Vec::new();
        let mut setting = None;
        for mode in [Mode::Recycling, Mode::ZeroFilling] {
            let options = self.args.options().rings(1).ring_bytes(64 << 10);
            let options = options.batch_bytes_max(64 << 10).large_bytes_max(64 << 10);
            let options = mode.options(options, self.args.log.segment_bytes);
            let log = options.open(self.scratch.path().join(mode.name()))?;
            let setting = setting.get_or_insert_with(|| Setting::of(&log, self));
            if !self.args.json && results.is_empty() {
                print(&report::setting(setting))?;
            }
            let time = self.seconds();
            let segment_bytes = mode.segment_bytes(self.args.log.segment_bytes);
            results.push(rotation::run(
                &log,
                mode,
                segment_bytes,
                record_bytes,
                time,
                self.interrupt,
            )?);
            log.close()?;
        }
        match (self.args.json, &setting) {
            (true, Some(setting)) => {
                print(&format!("{}\n", json::rotation(setting, record_bytes, &results)))
            }
            _ => print(&report::rotation(record_bytes, &results)),
        }
    }

    fn async_workload(&self, seconds: Duration, space_bytes: u64) -> async_rounds::Workload {
        let record_bytes = self.args.size.map_or(ASYNC_RECORD_BYTES, |size| size as usize);
        let pace = f64::min(100_000.0, 1e8 / record_bytes.max(1) as f64);
        async_rounds::Workload {
            record_bytes,
            rate: self.args.rate.unwrap_or(pace),
            rounds: self.args.rounds,
            seconds,
            reference: self.args.reference || record_bytes <= 64,
            space_bytes,
        }
    }

    fn run_async(
        &self,
        bare: &mut Bare,
        setting: &Setting,
        workload: async_rounds::Workload,
    ) -> Result<async_rounds::Async, Failure> {
        async_rounds::run(
            &self.args.options(),
            self.scratch,
            bare,
            workload,
            setting.timer,
            setting.backend.facts.direct,
            self.interrupt,
        )
    }

    /// What runs without arguments: 15 seconds at most, preparations included.
    fn suite(&self) -> Result<(), Failure> {
        let started = Instant::now();
        let total = self.args.seconds.map_or(SUITE, Duration::from_secs_f64);
        let log = self.args.options().open(self.scratch.path().join("log"))?;
        let mut bare = self.bare(&log, RECORD_BYTES)?;
        let setting = Setting::of(&log, self);
        print(&report::setting(&setting))?;
        // What opening and preparing left: on a slow disk every part is shorter.
        let left = total.saturating_sub(started.elapsed()).max(total / 4);

        let mut results = Vec::new();
        for (producers, share) in [(1, 0.3), (8, 0.2), (32, 0.2)] {
            let workload = self.workload(producers, RECORD_BYTES, left.mul_f64(share));
            let timer = setting.timer;
            results.push(log_rounds::run(&log, &mut bare, workload, timer, self.interrupt)?);
        }
        log.close()?;
        print(&report::closed_loops(&results))?;

        let workload = self.async_workload(left.mul_f64(0.3), 256 << 20);
        print(&report::asynchronous(&self.run_async(&mut bare, &setting, workload)?))?;
        print(&format!(
            "\n{:.1} s in all; what was written is removed\n",
            started.elapsed().as_secs_f64()
        ))
    }
}

/// Time for the measurements of the default set. The turns in hand are finished and what could not
/// be foreseen (opening on a slow disk, the last preparation) comes on top, so it is well below 15.
const SUITE: Duration = Duration::from_millis(9000);

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::output(&e))
}
