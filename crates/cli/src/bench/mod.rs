//! `uringlog bench`: what the log makes of this machine's disk, beside what the disk can do.
//!
//! The scenarios are those of the crate `uringlog-perf`; here are the arguments, and what is printed
//! ([`report`]) and written ([`files`]).

pub mod args;
mod files;
mod report;

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use uringlog::Log;
use uringlog_perf::rotation::{self, Mode};
use uringlog_perf::waiting::{self, Waited, Waiting};
use uringlog_perf::{
    Bare, Bench, Error, Plain, Scratch, Setting, Stop, Work, async_rounds, compare, scaling, sweep,
};

use crate::choices::IdleArg;
use crate::exit::Failure;
use crate::signals::Interrupt;
use args::{Args, Command, CompareArgs};

/// Runs `uringlog bench`.
pub fn run(args: Args) -> Result<(), Failure> {
    if let Some(Command::Compare(args)) = &args.command {
        return compare(args);
    }
    files::check(&args)?;
    let interrupt = Interrupt::install()
        .map_err(|error| Failure::Failed(format!("cannot watch for signals: {error}")))?;
    let stop = Stop::following(interrupt.flag());
    // Dropped, and so removed, on every way out of here.
    let scratch = Scratch::create(args.dir.as_deref())?;
    let bench = Bench {
        options: args.options(),
        idle: args.idle.name(),
        scratch: &scratch,
        stop: &stop,
        pin: args.pin,
        warm_up: args.warmup,
    };
    let command = Runner { args: &args, bench };
    if args.rotation {
        return command.rotation();
    }
    if args.sweep {
        return command.sweep();
    }
    if args.scaling {
        return command.scaling();
    }
    match (args.is_single(), args.is_async) {
        (false, _) => command.suite(),
        (true, false) => command.waiting(),
        (true, true) => command.asynchronous(),
    }
}

/// Two results side by side.
fn compare(args: &CompareArgs) -> Result<(), Failure> {
    let (a, b) = (compare::read(&args.a)?, compare::read(&args.b)?);
    let compared = compare::compare(&a, &b);
    let worse = args.fail_above.map_or(Vec::new(), |times| compared.worse_than(times));
    let verdict = match worse.first() {
        None => Ok(()),
        Some(first) => Err(Failure::Failed(format!(
            "{} numbers are more than {} times worse in B; the first is {} ({:.2} times)",
            worse.len(),
            args.fail_above.unwrap_or(1.0),
            first.name,
            first.worse(),
        ))),
    };
    crate::exit::print(&compared.to_text(), verdict)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Open(error) => error.into(),
            error => Failure::Failed(error.to_string()),
        }
    }
}

struct Runner<'a> {
    args: &'a Args,
    bench: Bench<'a>,
}

const TIME: Duration = Duration::from_secs(4);
const SWEEP_TIME: Duration = Duration::from_secs(20);
const RECORD_BYTES: usize = 256;
const ASYNC_RECORD_BYTES: usize = 4096;
const SCALING_RECORD_BYTES: usize = 64;

impl Runner<'_> {
    fn time(&self) -> Duration {
        self.args.duration.unwrap_or(TIME)
    }

    fn work(&self, record_bytes: usize) -> Work {
        let record_bytes = self.args.size.map_or(record_bytes, |size| size as usize);
        Work { record_bytes, batch: self.args.batch.map_or(1, usize::from) }
    }

    fn plain(&self, log: &Log) -> Result<Plain, Error> {
        Plain::prepare(self.bench.scratch.path(), log.backend().facts.direct)
    }

    /// Whether the mutex + `Vec` + writer thread log is measured too: a writer of ours that never sleeps
    /// would take a core in its turns.
    fn has_plain(&self) -> bool {
        matches!(self.args.idle, IdleArg::Park | IdleArg::Sleep)
    }

    fn request(&self, producers: usize, time: Duration) -> Waiting {
        Waiting {
            producers,
            work: self.work(RECORD_BYTES),
            rate: self.args.rate,
            time,
            rounds: self.args.rounds,
            beside: self.args.beside.map(usize::from),
            plain: self.has_plain(),
        }
    }

    /// One named load of producers that wait.
    fn waiting(&self) -> Result<(), Failure> {
        let log = self.bench.open()?;
        let request = self.request(self.args.producers.map_or(1, usize::from), self.time());
        let bare = self.bench.bare(&log, request.work)?;
        let plain = self.plain(&log)?;
        let setting = Setting::of(&log, &self.bench);
        if !self.args.json {
            print(&report::setting(&setting))?;
        }
        let timer = setting.timer;
        let result = waiting::measure(&self.bench, &log, &bare, Some(&plain), request, timer)?;
        log.close().map_err(Error::from)?;
        files::write(self.args, &result)?;
        match self.args.json {
            true => print(&format!("{}\n", result.to_json(&setting))),
            false => print(&report::waited(&[result])),
        }
    }

    /// Throughput against latency.
    fn sweep(&self) -> Result<(), Failure> {
        let log = self.bench.open()?;
        let request = sweep::Sweep {
            producers: self.args.producers.map_or(1, usize::from),
            work: self.work(RECORD_BYTES),
            time: self.args.duration.unwrap_or(SWEEP_TIME),
        };
        let bare = self.bench.bare(&log, request.work)?;
        let plain = self.plain(&log)?;
        let setting = Setting::of(&log, &self.bench);
        if !self.args.json {
            print(&report::setting(&setting))?;
        }
        let plain = Some(&plain).filter(|_| self.has_plain());
        let result = sweep::measure(&self.bench, &log, &bare, plain, request, setting.timer)?;
        log.close().map_err(Error::from)?;
        files::sweep_plot(self.args, &result)?;
        match self.args.json {
            true => print(&format!("{}\n", result.to_json(&setting))),
            false => print(&report::swept(&result)),
        }
    }

    /// What an append costs its caller.
    fn scaling(&self) -> Result<(), Failure> {
        let cpus = || thread::available_parallelism().map_or(1, usize::from);
        let producers = self.args.producers.map_or_else(cpus, usize::from);
        if producers > cpus() {
            return Err(Failure::Usage(format!(
                "--scaling gives each producer a CPU of its own: there are {}, not {producers}",
                cpus()
            )));
        }
        let log = self.bench.open()?;
        let setting = Setting::of(&log, &self.bench);
        let record_bytes = self.work(SCALING_RECORD_BYTES).record_bytes;
        let result = scaling::measure(&self.bench, &log, record_bytes, producers, self.time())?;
        log.close().map_err(Error::from)?;
        files::scaling_plot(self.args, &result)?;
        if self.args.json {
            return print(&format!("{}\n", result.to_json(&setting)));
        }
        print(&report::setting(&setting))?;
        print(&report::scaled(&result))
    }

    /// One named asynchronous workload.
    fn asynchronous(&self) -> Result<(), Failure> {
        // Opened only for what it says of itself and of the device.
        let log = self.bench.open()?;
        let bare = self.bench.bare(&log, Work { record_bytes: 0, batch: 1 })?;
        let setting = Setting::of(&log, &self.bench);
        log.close().map_err(Error::from)?;
        let workload = self.async_workload(self.time(), 512 << 20);
        let result = self.run_async(&bare, &setting, workload)?;
        if self.args.json {
            return print(&format!("{}\n", result.to_json(&setting)));
        }
        print(&report::setting(&setting))?;
        print(&report::asynchronous(&result))
    }

    /// What housekeeping costs an append, for both ways in which new segments come about.
    fn rotation(&self) -> Result<(), Failure> {
        let record_bytes = self.work(RECORD_BYTES).record_bytes;
        let mut results = Vec::new();
        let mut setting = None;
        for mode in [Mode::Recycling, Mode::ZeroFilling] {
            let options = self.args.options().rings(1).ring_bytes(64 << 10);
            let options = options.batch_bytes_max(64 << 10).large_bytes_max(64 << 10);
            let options = mode.options(options, self.args.log.segment_bytes);
            let log = options.open(self.bench.scratch.path().join(mode.name()))?;
            let setting = setting.get_or_insert_with(|| Setting::of(&log, &self.bench));
            if !self.args.json && results.is_empty() {
                print(&report::setting(setting))?;
            }
            let time = self.time();
            let segment_bytes = mode.segment_bytes(self.args.log.segment_bytes);
            let stop = self.bench.stop;
            results.push(rotation::run(&log, mode, segment_bytes, record_bytes, time, stop)?);
            log.close().map_err(Error::from)?;
        }
        match (self.args.json, &setting) {
            (true, Some(setting)) => {
                print(&format!("{}\n", rotation::to_json(setting, record_bytes, &results)))
            }
            _ => print(&report::rotation(record_bytes, &results)),
        }
    }

    fn async_workload(&self, time: Duration, space_bytes: u64) -> async_rounds::Workload {
        let record_bytes = self.work(ASYNC_RECORD_BYTES).record_bytes;
        let pace = f64::min(100_000.0, 1e8 / record_bytes.max(1) as f64);
        async_rounds::Workload {
            record_bytes,
            rate: self.args.rate.unwrap_or(pace),
            rounds: self.args.rounds,
            seconds: time,
            reference: self.args.reference || record_bytes <= 64,
            space_bytes,
        }
    }

    fn run_async(
        &self,
        bare: &Bare,
        setting: &Setting,
        workload: async_rounds::Workload,
    ) -> Result<async_rounds::Async, Error> {
        let direct = setting.backend.facts.direct;
        async_rounds::run(&self.bench, bare, workload, setting.timer, direct)
    }

    /// What runs without arguments: 15 seconds at most, preparations included.
    fn suite(&self) -> Result<(), Failure> {
        let started = Instant::now();
        let total = self.args.duration.unwrap_or(SUITE);
        let log = self.bench.open()?;
        let bare = self.bench.bare(&log, self.work(RECORD_BYTES))?;
        let plain = self.plain(&log)?;
        let setting = Setting::of(&log, &self.bench);
        print(&report::setting(&setting))?;
        // What opening and preparing left: on a slow disk every part is shorter.
        let left = total.saturating_sub(started.elapsed()).max(total / 4);
        let measure = |request| {
            waiting::measure(&self.bench, &log, &bare, Some(&plain), request, setting.timer)
        };

        let mut results: Vec<Waited> = Vec::new();
        for (producers, share) in [(1, 0.25), (8, 0.2), (32, 0.2)] {
            results.push(measure(self.request(producers, left.mul_f64(share)))?);
        }
        print(&report::waited(&results))?;

        // An open loop that the log keeps up with, at what one producer of the first could offer.
        let alone = results.first().map_or(1000.0, |result| result.log.records_per_s());
        let mut request = self.request(1, left.mul_f64(0.12));
        request.rate = Some((alone * PACED_SHARE).max(1.0));
        request.plain = false;
        print(&report::table(&[measure(request)?]))?;
        log.close().map_err(Error::from)?;

        let workload = self.async_workload(left.mul_f64(0.23), 256 << 20);
        print(&report::asynchronous(&self.run_async(&bare, &setting, workload)?))?;
        print(&format!(
            "\n{:.1} s in all; what was written is removed\n",
            started.elapsed().as_secs_f64()
        ))
    }
}

/// Time for the measurements of the default set. The turns in hand are finished and what could not
/// be foreseen (opening on a slow disk, the last preparation) comes on top, so it is well below 15.
const SUITE: Duration = Duration::from_millis(9000);
/// Share of the closed loop's rate that the default set's open loop offers.
const PACED_SHARE: f64 = 0.45;

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::output(&e))
}
