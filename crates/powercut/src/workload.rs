//! The workload: a process that drives a log and tells what it was promised, until it is killed or its
//! time is over. Two producers wait for each record, one appends batches, one waits for the last of many;
//! a keeper moves cursors, trims and truncates meanwhile, and a reader reads.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uringlog::{AppendError, BackendChoice, CursorError, Durability, Log, Lsn, Method, Options};
use uringlog::{TruncateError, WaitError};

use crate::notes::{Change, Note, Opened, Outcome};
use crate::payload::Id;
use crate::random::Random;

/// The producer of batches, and the records in each.
pub const BATCHER: u32 = 2;
pub const BATCH: u64 = 5;
const SINGLES: u32 = 2;
const BURSTER: u32 = 3;
const BURST: u64 = 24;
const CURSORS: [&str; 2] = ["fast", "slow"];

#[derive(clap::Args, Clone)]
pub struct Args {
    /// The log's directory.
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long)]
    pub seed: u64,
    #[arg(long)]
    pub life: u32,
    /// Which of the profiles.
    #[arg(long)]
    pub profile: usize,
    /// Ends by itself after so long.
    #[arg(long)]
    pub ms: u64,
}

/// A way to the disk, and sizes.
pub struct Profile {
    pub name: &'static str,
    method: Option<Method>,
    depth: Option<usize>,
    segment_bytes: u64,
    durability: Durability,
    retain_bytes: Option<u64>,
}

const fn profile(name: &'static str, method: Method, segment_kib: u64) -> Profile {
    Profile {
        name,
        method: Some(method),
        depth: None,
        segment_bytes: segment_kib << 10,
        durability: Durability::Durable,
        retain_bytes: None,
    }
}

pub const PROFILES: [Profile; 8] = [
    profile("psync pwrite-fdatasync, 64 KiB", Method::PwriteFdatasync, 64),
    profile("uring ring-linked-fsync, 128 KiB", Method::RingLinkedFsync, 128),
    profile("uring ring-dsync, 64 KiB", Method::RingDsync, 64),
    profile("psync pwrite-dsync, 256 KiB", Method::PwriteDsync, 256),
    profile("uring ring-fdatasync, 64 KiB", Method::RingFdatasync, 64),
    Profile {
        depth: Some(2),
        ..profile("uring ring-dsync, two at once, 256 KiB", Method::RingDsync, 256)
    },
    Profile {
        method: None,
        retain_bytes: Some(512 << 10),
        ..profile("calibrated, retaining 512 KiB, 64 KiB", Method::PwriteDsync, 64)
    },
    Profile {
        durability: Durability::Written,
        ..profile("uring, written and synced when asked, 64 KiB", Method::RingFdatasync, 64)
    },
];

impl Profile {
    pub fn retains(&self) -> bool {
        self.retain_bytes.is_some()
    }

    /// The options; the method only where `method` says so.
    pub fn options(&self, with_method: bool) -> Options {
        let mut options = Options::new()
            .segment_bytes(self.segment_bytes)
            .durability(self.durability)
            .rings(2)
            .ring_bytes(16 << 10)
            .large_bytes_max(64 << 10)
            .batch_bytes_max(64 << 10)
            .tail_bytes(64 << 10)
            .calibrate(self.method.is_none() && with_method);
        if let Some(bytes) = self.retain_bytes {
            options = options.retain_bytes(bytes);
        }
        let Some(method) = self.method.filter(|_| with_method) else { return options };
        options = options.method(method).backend(match method.is_ring() {
            true => BackendChoice::Uring,
            false => BackendChoice::Psync,
        });
        match self.depth {
            Some(depth) => options.depth(depth),
            None => options,
        }
    }
}

fn say(note: &Note) {
    say_all(std::slice::from_ref(note));
}

/// One write, so that a kill leaves whole lines only, as long as a pipe takes it whole.
fn say_all(notes: &[Note]) {
    let mut lines = String::new();
    for note in notes {
        lines += &format!("{note}\n");
    }
    let mut out = std::io::stdout().lock();
    // A recorder that has gone kills this process anyway.
    let _told = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
}

/// Says it, and waits until it is recorded. One thread does this.
fn say_first(note: &Note) {
    say(note);
    let _recorded = std::io::stdin().lock().read_exact(&mut [0]);
}

struct Life<'a> {
    args: &'a Args,
    log: &'a Log,
    ends: Instant,
    /// Somebody met the end of writing.
    over: &'a AtomicBool,
}

pub fn run(args: &Args) -> Result<(), String> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| error.to_string())?;
    let profile = &PROFILES[args.profile % PROFILES.len()];
    let log = match profile.options(true).open(&args.dir) {
        Err(uringlog::OpenError::Unsupported { what, .. }) => {
            say(&Note::Said(format!("plain system calls: {what}")));
            profile.options(false).backend(BackendChoice::Psync).open(&args.dir)
        }
        opened => opened,
    };
    let log = log.map_err(|error| format!("cannot open: {error}"))?;
    let cursors = log.cursors().map_err(|error| format!("cursors: {error}"))?;
    say_first(&Note::Opened(Opened {
        generation: log.generation(),
        first: log.first_lsn().get(),
        last: log.last_lsn().get(),
        cursors: cursors.into_iter().map(|info| (info.name, info.position.get())).collect(),
    }));
    let over = AtomicBool::new(false);
    let ends = Instant::now() + Duration::from_millis(args.ms);
    let life = Life { args, log: &log, ends, over: &over };
    std::thread::scope(|scope| {
        for producer in 0..SINGLES {
            let life = &life;
            scope.spawn(move || life.produce(producer, 1, 1));
        }
        scope.spawn(|| life.produce(BATCHER, BATCH, BATCH));
        scope.spawn(|| life.produce(BURSTER, BURST, 1));
        scope.spawn(|| life.read());
        life.keep();
    });
    if let Some(poison) = log.poison() {
        say(&Note::Said(format!("poison {poison}")));
        life.check_poisoned(poison.durable_lsn());
    }
    match log.close() {
        Ok(_) => say(&Note::Said("closed".to_owned())),
        Err(error) => say(&Note::Said(format!("close {error}"))),
    }
    Ok(())
}

impl Life<'_> {
    fn goes_on(&self) -> bool {
        Instant::now() < self.ends && !self.over.load(Ordering::Relaxed)
    }

    /// Appends `count` records at a time, `batch` of them together, and waits for the last one.
    fn produce(&self, producer: u32, count: u64, batch: u64) {
        let mut index = 0;
        let mut random = Random::new(&[self.args.seed, self.args.life.into(), producer.into(), 77]);
        while self.goes_on() {
            match self.append(producer, index, count, batch) {
                Ok(()) => index += count,
                // What was appended before the error keeps its numbers.
                Err(Stop::NoSpace(appended)) => {
                    index += appended;
                    say(&Note::Said("error no space".to_owned()));
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Stop::Error(error)) => {
                    self.over.store(true, Ordering::Relaxed);
                    say(&Note::Said(format!("error {error}")));
                    return;
                }
            }
            if producer == BURSTER || random.once_in(3) {
                std::thread::sleep(Duration::from_micros(random.below(4000)));
            }
        }
    }

    fn append(&self, producer: u32, index: u64, count: u64, batch: u64) -> Result<(), Stop> {
        let id = |index| Id { life: self.args.life, producer, index };
        let generation = self.log.generation();
        let mut places = Vec::new();
        let mut last = None;
        let mut full = None;
        for from in (index..index + count).step_by(batch as usize) {
            let records: Vec<_> =
                (from..from + batch).map(|index| id(index).bytes(self.args.seed)).collect();
            let ticket = match &records[..] {
                [record] => self.log.append(record),
                records => self.log.append_batch(records),
            };
            match ticket {
                Ok(ticket) => {
                    places.push((ticket.lsn().get(), id(from + batch - 1)));
                    last = Some(ticket);
                }
                Err(AppendError::NoSpace) => {
                    full = Some(Stop::NoSpace(from - index));
                    break;
                }
                Err(error) => return Err(Stop::Error(error.to_string())),
            }
        }
        let Some(last) = last else { return full.map_or(Ok(()), Err) };
        // Synced: at the level `Written` a ticket promises less.
        let waited = match self.log.durability() {
            Durability::Durable => last.wait().map(|_| ()),
            Durability::Written => {
                let lsn = last.lsn();
                last.wait().and_then(|_| self.log.wait_durable(lsn))
            }
        };
        match waited {
            Ok(()) if self.log.generation() == generation => {
                let acked = |(lsn, last)| Note::Acked { generation, lsn, last, count: batch };
                say_all(&places.into_iter().map(acked).collect::<Vec<_>>());
            }
            // Before the cut or behind it: nobody knows.
            Ok(()) => {}
            Err(WaitError::Truncated { .. }) => {
                if let Some(&(_, last)) = places.last() {
                    // The last one only; others of a burst may have been kept.
                    say(&Note::Gone { last, count: 1 });
                }
            }
            Err(error) => return Err(Stop::Error(error.to_string())),
        }
        full.map_or(Ok(()), Err)
    }

    /// Changes one thing after the other, each told before and after.
    fn keep(&self) {
        let mut random = Random::new(&[self.args.seed, self.args.life.into(), 99]);
        let mut cursors = Vec::new();
        for name in CURSORS {
            let change = Change::Make { name: name.to_owned() };
            let made = self.change(change, || {
                let cursor = self.log.cursor(name).map_err(|error| error.to_string())?;
                let at = cursor.position().get();
                cursors.push(cursor);
                Ok(Some(Outcome::Cursor(at)))
            });
            if !made {
                return;
            }
        }
        let mut recycled = 0;
        while self.goes_on() {
            std::thread::sleep(Duration::from_micros(random.below(8_000)));
            let durable = self.log.durable_lsn().get();
            let went = match random.below(16) {
                0 => {
                    let after = durable.saturating_sub(random.below(30));
                    self.truncate(after.max(self.log.first_lsn().get()))
                }
                1..=4 => {
                    let lowest = cursors.iter().map(|cursor| cursor.position().get()).min();
                    let before = lowest.unwrap_or(1).max(self.log.first_lsn().get());
                    self.trim(before)
                }
                nth => {
                    let cursor = &mut cursors[usize::from(nth % 3 == 0)];
                    // A cursor's handle that has not seen a cut is told so by the next move.
                    let back = if cursor.name() == "fast" { 0 } else { 20 };
                    let to = (durable + 1).saturating_sub(back + random.below(10));
                    let to = to.max(cursor.position().get()).min(durable + 1);
                    let name = cursor.name().to_owned();
                    self.change(Change::Advance { name, to }, || {
                        match cursor.advance(Lsn::new(to)) {
                            Ok(()) => Ok(Some(Outcome::Cursor(cursor.position().get()))),
                            Err(
                                CursorError::Truncated { .. }
                                | CursorError::Trimmed { .. }
                                | CursorError::BeyondEnd { .. },
                            ) => Ok(None),
                            Err(error) => Err(error.to_string()),
                        }
                    })
                }
            };
            if !went {
                return;
            }
            let count = self.log.stats().recycled.count;
            if count > recycled {
                say(&Note::Said(format!("recycled {}", count - recycled)));
                recycled = count;
            }
        }
    }

    fn trim(&self, before: u64) -> bool {
        self.change(Change::Trim { before }, || match self.log.trim(Lsn::new(before)) {
            Ok(first) => Ok(Some(Outcome::Trimmed(first.get()))),
            Err(error) => Err(error.to_string()),
        })
    }

    fn truncate(&self, after: u64) -> bool {
        self.change(Change::Truncate { after }, || match self.log.truncate_after(Lsn::new(after)) {
            Ok(_) => Ok(Some(Outcome::Truncated(self.log.generation()))),
            Err(error @ (TruncateError::Poisoned(_) | TruncateError::Io(_))) => {
                Err(error.to_string())
            }
            Err(_) => Ok(None),
        })
    }

    /// Tells, does, tells. False where the keeper must stop: the change stays undecided.
    fn change(
        &self,
        change: Change,
        make: impl FnOnce() -> Result<Option<Outcome>, String>,
    ) -> bool {
        say_first(&Note::Begins(change));
        match make() {
            Ok(Some(outcome)) => say(&Note::Done(outcome)),
            Ok(None) => say(&Note::Refused),
            Err(error) => {
                say(&Note::Said(format!("keeper {error}")));
                return false;
            }
        }
        true
    }

    /// Reads the log again and again; an error is told.
    fn read(&self) {
        let mut told = false;
        while self.goes_on() {
            if let Err(error) = self.read_once() {
                if !told {
                    say(&Note::Said(format!("reader {error}")));
                }
                told = true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn read_once(&self) -> Result<(), uringlog::ReadError> {
        use uringlog::ReadError::{Trimmed, Truncated};
        let mut reader = match self.log.reader(self.log.first_lsn()) {
            Err(Trimmed { .. } | Truncated { .. }) => return Ok(()),
            reader => reader?,
        };
        loop {
            match reader.next_record() {
                Ok(Some(record)) if Id::of(record.payload(), self.args.seed).is_none() => {
                    say(&Note::Said(format!("violation: record {} is nobody's", record.lsn())));
                    return Ok(());
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(Trimmed { .. } | Truncated { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// What the contract says about a log whose writing has ended.
    fn check_poisoned(&self, durable: Lsn) {
        let log = self.log;
        let wrong = |what: &str| say(&Note::Said(format!("violation: {what}")));
        if !matches!(log.append(b"late"), Err(AppendError::Poisoned(_))) {
            wrong("a late append is not told");
        }
        if !matches!(log.try_append(b"late"), Err(AppendError::Poisoned(_))) {
            wrong("a late try_append is not told");
        }
        if log.wait_durable(durable).is_err() {
            wrong("what is durable is not said to be");
        }
        if log.durable_lsn() != durable {
            wrong("the durable watermark moved");
        }
        if !matches!(log.wait_durable(durable.next()), Err(WaitError::Poisoned(_))) {
            wrong("a late wait is not told");
        }
    }
}

enum Stop {
    /// After so many were appended.
    NoSpace(u64),
    Error(String),
}
