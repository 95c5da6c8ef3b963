//! A machine, its log, and what the log owes: the lives of one seed, and what is checked between
//! them.

use uringlog::sim::{self, SimDisk, SimFaults, SimOptions, Stepper};
use uringlog::{CursorError, Durability, Log, Lsn, Method, OpenError, Options, ReadError};

use crate::count;
use crate::life::{self, End, Plan};
use crate::model::Model;
use crate::rng::Rng;

/// Everything that a seed makes.
pub struct World {
    pub disk: SimDisk,
    pub model: Model,
    pub now_ns: u64,
    pub block_bytes: u64,
    /// The records that the next recovery must find, no more and no fewer, where that is known.
    pub exact: Option<u64>,
    /// What stands there was vouched for: the next recovery must find it clean.
    pub clean: bool,
    /// The last life ended by the death of the process; the machine ran on.
    pub killed: bool,
    /// Whether what is read at an opening may fail: something was told to.
    pub failing: Failing,
    /// Something went bad in silence: it may be met at any time, and never in silence.
    pub rotten: bool,
    /// Damage was met at an opening: this log is not opened any more.
    pub dead: bool,
    /// How often completions are withheld: a matter of the machine, not of a life.
    pub delays: u64,
    /// Whether to print what happens.
    shown: bool,
    rng: Rng,
}

/// How the log is opened for one life.
#[derive(Clone, Debug)]
pub struct Setup {
    pub options: Options,
    pub durability: Durability,
    pub rings: usize,
    pub depth: usize,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let shown = std::env::var_os("SIM_TRACE").is_some();
        let mut world = World::with(seed, shown);
        world.shown = shown;
        world
    }

    /// A world whose disk keeps a trace.
    pub fn traced(seed: u64) -> Self {
        World::with(seed, true)
    }

    fn with(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed).fork(1);
        let options = SimOptions {
            block_bytes: rng.pick(&[512, 4096, 4096]),
            depth: 1,
            flush_all: rng.one_in(3),
            trace,
            faults: quiet(rng.pick(&[0, 0, 3, 8, 30])),
        };
        World {
            delays: options.faults.delays,
            disk: SimDisk::new(rng.next(), options.clone()),
            model: Model::new(seed),
            block_bytes: options.block_bytes as u64,
            now_ns: 1_700_000_000_000_000_000,
            exact: None,
            clean: false,
            killed: false,
            failing: Failing::No,
            rotten: false,
            dead: false,
            shown: false,
            rng,
        }
    }

    pub fn setup(rng: &mut Rng) -> Setup {
        let durability = match rng.one_in(3) {
            true => Durability::Written,
            false => Durability::Durable,
        };
        let rings = rng.pick(&[1, 1, 1, 2, 3]);
        let depth = rng.pick(&[1, 1, 2, 3, 4]);
        let segment_bytes = rng.pick(&[1, 1, 1, 2, 4]) * (64 << 10);
        let mut options = Options::new()
            .durability(durability)
            .segment_bytes(segment_bytes)
            .segments_ready(rng.pick(&[1, 1, 2]))
            .rings(rings)
            .ring_bytes(rng.pick(&[4 << 10, 4 << 10, 8 << 10, 16 << 10]))
            .rings_retired_max(rng.pick(&[0, 1, 2]))
            .batch_bytes_max(64 << 10)
            .large_bytes_max(rng.pick(&[64 << 10, 256 << 10]))
            .spares_max(rng.pick(&[0, 1, 2, 2]))
            .method(Method::RingDsync)
            .depth(depth);
        if rng.one_in(4) {
            options = options.linger_max(std::time::Duration::ZERO);
        }
        if rng.one_in(4) {
            options = options.window_records(16);
        }
        if rng.one_in(6) {
            options = options.retain_bytes(rng.pick(&[1, 3, 6]) * segment_bytes);
        }
        Setup { options, durability, rings, depth }
    }

    /// Opens the log and compares what is there with what must be. None: the machine crashed
    /// meanwhile.
    pub fn open(&mut self, setup: &Setup) -> Option<(Log, Stepper)> {
        match self.try_open(setup) {
            Ok(opened) => Some(opened),
            Err(_) if self.disk.crashed() => {
                count::add(&count::CRASHES_IN_RECOVERY);
                None
            }
            Err(error) if self.rotten => {
                self.see_damage(&error);
                None
            }
            Err(error) => panic!("the log must open: {error}"),
        }
    }

    /// What went bad in silence is reported, and the log is not opened.
    fn see_damage(&mut self, error: &OpenError) {
        let is_damage =
            matches!(error, OpenError::Damaged(_) | OpenError::Foreign { .. } | OpenError::Io(_));
        assert!(is_damage, "damage is reported as something else: {error}");
        count::add(&count::DAMAGES);
        self.dead = true;
    }

    /// The same, where opening may fail without a crash.
    pub fn try_open(&mut self, setup: &Setup) -> Result<(Log, Stepper), OpenError> {
        let seed = self.rng.next();
        let (log, stepper) = sim::open(&self.disk, setup.options.clone(), seed, self.now_ns)?;
        count::add(&count::RECOVERIES);
        let report = log.recovery().clone();
        let last = report.last_lsn.get();
        let watermarks = [log.last_lsn(), log.durable_lsn(), log.acknowledged_lsn()];
        if !report.created || last > 0 {
            assert_eq!(watermarks, [report.last_lsn; 3], "what is found is durable");
        }
        let generation = log.generation();
        self.model.check_end(last, generation, self.rotten);
        let was_cut = generation != self.model.generation;
        if was_cut {
            count::add(&count::CUTS_FOUND);
            self.model.truncated(last, generation);
        }
        self.model.cutting = None;
        assert_eq!(log.first_lsn(), report.first_lsn);
        self.model.check_first(log.first_lsn().get(), last, self.rotten);
        self.model.first_tried = log.first_lsn().get();
        if let Some(exact) = self.exact.take().filter(|_| !self.rotten) {
            assert_eq!(last, exact, "a crash in recovery changes what is found");
        }
        if core::mem::take(&mut self.clean) && !was_cut && !self.rotten {
            assert!(report.clean, "a log that rested is found clean: {report}");
            assert_eq!(last, self.model.last(), "nothing is missing in a log that rested");
            assert_eq!(report.vouched_lsn.get(), last, "a log that rested vouches for everything");
            assert_eq!((report.rewritten_records, &report.torn), (0, &None));
        }
        self.model.cut(last);
        self.read_all(&log);
        self.read_cursors(&log);
        Ok((log, stepper))
    }

    /// Reads the whole log and compares every byte.
    pub fn read_all(&mut self, log: &Log) {
        let durable = log.durable_lsn().get();
        let outcome = log.reader(Lsn::NONE).and_then(|mut reader| {
            assert_eq!(reader.next_lsn(), log.first_lsn());
            self.model.read(&mut reader, durable)
        });
        match outcome {
            Err(ReadError::Io(_)) if self.failing == Failing::Once => {
                self.failing = Failing::No;
                self.read_all(log);
            }
            Err(ReadError::Io(_)) if self.failing == Failing::Always => {}
            Ok(last) => assert_eq!(last, durable, "everything durable is readable"),
            Err(_) if self.disk.crashed() => {}
            Err(ReadError::Damaged(_) | ReadError::Foreign { .. } | ReadError::Io(_))
                if self.rotten =>
            {
                count::add(&count::DAMAGES);
            }
            Err(error) => panic!("a durable record is not readable: {error}"),
        }
    }

    /// Compares every cursor with what it may be.
    fn read_cursors(&mut self, log: &Log) {
        match log.cursors() {
            Ok(found) => {
                self.model.check_cursors(&found, log.last_lsn().get(), self.rotten);
            }
            Err(CursorError::Damaged(_) | CursorError::Io(_)) if self.rotten => {
                count::add(&count::DAMAGES);
            }
            Err(_) if self.disk.crashed() => {}
            Err(CursorError::Io(_)) if self.failing != Failing::No => {}
            Err(error) => panic!("the cursors are not readable: {error}"),
        }
    }

    /// One life: from opening to its end, after which the machine stands still.
    pub fn live(&mut self, plan: &Plan) {
        count::add(&count::LIVES);
        if self.shown {
            eprintln!("at step {}: {plan:?}", self.disk.steps());
        }
        let kills = self.disk.stats().kills;
        let outcome = life::live(self, plan);
        if !self.disk.crashed() {
            match plan.end {
                End::Kill if outcome.may_be_killed => self.disk.kill(),
                _ => self.disk.crash(),
            }
        }
        if self.disk.stats().kills > kills {
            self.killed = true;
            self.model.floor = self.model.floor.max(outcome.acknowledged).min(self.model.last());
        } else {
            if core::mem::take(&mut self.killed) {
                // What was readable after the kill need not have been durable.
                self.exact = None;
            }
            self.model.floor = self.model.durable;
        }
        self.clean = outcome.rested;
        self.disk.set_space(None);
        self.disk.set_faults(quiet(self.delays));
        self.failing = Failing::No;
    }

    /// Sees what recovery finds now, on a copy of the stopped machine: crashed, not killed. None: what
    /// went bad is reported.
    ///
    /// Recovering again, after the death of the process or of the machine, finds the same, and
    /// nothing left to do.
    pub fn look(&mut self, setup: &Setup) -> Option<Looked> {
        let copy = self.disk.fork(self.rng.next());
        let before = copy.steps();
        let opened = sim::open(&copy, setup.options.clone(), self.rng.next(), self.now_ns);
        let (log, stepper) = match opened {
            Ok(opened) => opened,
            Err(error) if self.rotten => {
                self.see_damage(&error);
                return None;
            }
            Err(error) => panic!("the log must open: {error}"),
        };
        let report = log.recovery().clone();
        let steps = copy.steps() - before;
        let last = report.last_lsn.get();
        self.model.check_end(last, log.generation(), self.rotten);
        let found = |log: &Log| {
            let cursors = log.cursors().ok();
            (log.first_lsn(), log.last_lsn(), log.generation(), cursors)
        };
        let first = found(&log);
        drop((log, stepper));
        if !self.rotten {
            for _ in 0..2 {
                match self.rng.one_in(2) {
                    true => copy.kill(),
                    false => copy.crash(),
                }
                copy.restart();
                let seed = self.rng.next();
                let opened = sim::open(&copy, setup.options.clone(), seed, self.now_ns);
                let (log, _stepper) = opened.unwrap_or_else(|error| panic!("again: {error}"));
                count::add(&count::AGAIN);
                assert_eq!(found(&log), first, "recovering again finds something else");
                let again = log.recovery();
                let left = (again.rewritten_records, &again.torn, again.vouched_lsn);
                assert_eq!(left, (0, &None, report.last_lsn), "recovery left something to do");
                let mut reader = log.reader(Lsn::NONE).expect("a reader");
                let read = self.model.read(&mut reader, last);
                assert_eq!(read.expect("readable"), last, "everything durable is readable");
            }
        }
        count::add_disk(&copy.stats());
        Some(Looked { last, vouched: report.vouched_lsn.get(), steps })
    }

    /// Crashes recovery at its step `at`, on a copy of the stopped machine, and recovers that.
    pub fn crash_recovery(&mut self, setup: &Setup, at: u64, last: u64) {
        let copy = self.disk.fork(self.rng.next());
        copy.crash_after(at);
        let opened = sim::open(&copy, setup.options.clone(), self.rng.next(), self.now_ns);
        if opened.is_err() {
            assert!(copy.crashed(), "the log must open: {}", opened.err().unwrap());
            count::add(&count::CRASHES_IN_RECOVERY);
        }
        drop(opened);
        copy.restart();
        let opened = sim::open(&copy, setup.options.clone(), self.rng.next(), self.now_ns);
        let (log, _stepper) = opened.unwrap_or_else(|error| panic!("the log must open: {error}"));
        let found = log.last_lsn().get();
        if self.killed {
            let cut = log.generation() != self.model.generation;
            let owed =
                if cut { self.model.cutting.unwrap_or(u64::MAX) } else { self.model.durable };
            assert!(found >= owed, "LOST: a crash in recovery (step {at})");
        } else {
            assert_eq!(found, last, "a crash in recovery (step {at}) changes the log");
        }
        let last = found;
        let mut reader = log.reader(Lsn::NONE).expect("a reader");
        let read = self.model.read(&mut reader, last);
        assert_eq!(read.expect("readable"), last, "everything durable is readable");
        count::add_disk(&copy.stats());
    }
}

/// Nothing fails; completions come late.
pub fn quiet(delays: u64) -> SimFaults {
    SimFaults { delays, ..SimFaults::default() }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    No,
    Once,
    Always,
}

/// What recovery found.
#[derive(Clone, Copy)]
pub struct Looked {
    pub last: u64,
    pub vouched: u64,
    /// Crash points that it passed.
    pub steps: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        count::add_disk(&self.disk.stats());
        if self.shown {
            self.disk.trace().iter().for_each(|line| eprintln!("{line}"));
        }
    }
}
