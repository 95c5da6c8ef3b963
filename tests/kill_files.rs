//! `kill -9` of a real writer process that trims, truncates and moves a cursor in a log of small
//! segments, whose files are used again all the time; again and again on the same log. What it had
//! acknowledged of each holds afterwards, and what was under way happened wholly or not at all.
//! Readers of this process go on across all of it.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{
    Case, Random, again, each_backend_killing, eventually, role, said, say, small_options,
};
use uringlog::{BackendChoice, FollowError, Follower, Log, Lsn, Options, ReadError, Reader};

const TEST: &str = "a_killed_writer_leaves_its_files_in_order";
const KILLS: u64 = 12;
/// On a slow machine it takes more lives until enough has happened.
const LIVES_MAX: u64 = 100;
/// Each backend stops killing after this time, so that a slow machine ends too.
const TIME_MAX: Duration = Duration::from_secs(8);
const CURSOR: &str = "consumer";

#[test]
fn a_killed_writer_leaves_its_files_in_order() {
    if let Some((life, dir)) = role() {
        return write_until_killed(life.parse().unwrap(), &dir);
    }
    each_backend_killing(|case, life| {
        let started = Instant::now();
        let options = options(case.is_buffered()).backend(choice(case));
        let mut model = Model::default();
        model.check(&case.open_with(options.clone()), 0);
        let over = Arc::new(AtomicBool::new(false));
        let follower = Watcher::start(&case.dir, &over, Source::follower);
        let reader = Watcher::start(&case.dir, &over, Source::reader);
        let mut lives = 0;
        while (lives < KILLS && (lives < 5 || started.elapsed() < TIME_MAX))
            || (lives < LIVES_MAX && model.is_little())
        {
            lives += 1;
            kill_one(case, life + lives, &mut model);
            // Every third life starts on what the kill left, not on what a clean close did.
            if lives % 3 != 0 {
                // Taken while nothing writes: what was given is in the log.
                let given =
                    [&follower, &reader].map(|watcher| watcher.seen.lock().unwrap().clone());
                let log = options.clone().open(&case.dir);
                let log = log.unwrap_or_else(|error| panic!("life {lives}: {error}"));
                let records = model.check(&log, lives);
                given.iter().for_each(|seen| model.check_given(seen, &records));
            }
        }
        let log = case.open_with(options);
        // What the last life was about to cut when it was killed is known only now.
        model.check(&log, lives);
        let last = log.append(b"the end").unwrap().wait().unwrap();
        for watcher in [&follower, &reader] {
            eventually("everything is given", || {
                // One that was made anew may wait behind a cut that came in between.
                watcher.seen.lock().unwrap().next > last.get() || watcher.thread.is_finished()
            });
        }
        over.store(true, Ordering::Relaxed);
        let first = log.first_lsn().get();
        let mut told = String::new();
        for watcher in [follower, reader] {
            watcher.thread.join().unwrap();
            let seen = watcher.seen.lock().unwrap();
            model.check_story(&seen, first);
            told += &format!(", {} given in {} pieces", seen.count, 1 + seen.breaks.len());
        }
        let Model { cuts, trims, advances, recycled, .. } = model;
        eprintln!(
            "{}: {lives} kills, {last} records, {} cuts, {trims} trims, {advances} moves, \
             {recycled} segments recycled{told}",
            case.name,
            cuts.len(),
        );
        lives
    });
}

fn options(buffered: bool) -> Options {
    small_options()
        .segment_bytes(64 << 10)
        .ring_bytes(4 << 10)
        .batch_bytes_max(64 << 10)
        .spares_max(2)
        .buffered(buffered)
}

fn choice(case: &Case) -> BackendChoice {
    match case.backend {
        uringlog::Backend::Uring => BackendChoice::Uring,
        _ => BackendChoice::Psync,
    }
}

/// Whose a record is: the rest of it follows from that and its number.
type Owner = (u64, u64);

/// A record says life, generation and number.
fn payload((life, generation): Owner, lsn: u64) -> Vec<u8> {
    let mut payload = [life, generation, lsn].map(u64::to_le_bytes).concat();
    let mut random = Random::new(life * 1_000_003 + generation * 1009 + lsn);
    let most = if random.below(40) == 0 { 9000 } else { 1200 };
    let len = random.below(most) as usize;
    payload.extend((0..len).map(|at| (at as u64 * 13 + lsn) as u8));
    payload
}

/// Whose record it is, once that is verified.
#[track_caller]
fn owner_of(lsn: u64, found: &[u8]) -> Owner {
    let word = |at: usize| u64::from_le_bytes(found[at..at + 8].try_into().unwrap());
    let owner = (word(0), word(8));
    assert!(found == payload(owner, lsn), "record {lsn} of {owner:?}");
    owner
}

// ---- the writer ----

/// Appends, trims, truncates and moves the cursor, one after the other; says what it is about to do, and
/// what is done.
fn write_until_killed(life: u64, dir: &Path) {
    let ring = std::env::var("URINGLOG_TEST_RING").is_ok_and(|ring| ring == "1");
    let choice = if ring { BackendChoice::Uring } else { BackendChoice::Psync };
    let log = options(true).backend(choice).open(dir).unwrap();
    let mut cursor = log.cursor(CURSOR).unwrap();
    let (first, generation) = (log.first_lsn(), log.generation());
    say(format!("opened {first} {} {generation} {}", log.last_lsn(), cursor.position()));
    let mut random = Random::new(life);
    let mut recycled = 0;
    loop {
        let last = log.last_lsn().get();
        let owner = (life, log.generation());
        let payloads: Vec<_> =
            (1..2 + random.below(12)).map(|n| payload(owner, last + n)).collect();
        let end = last + payloads.len() as u64;
        let bytes: usize = payloads.iter().map(Vec::len).sum();
        let ticket = match random.below(2) {
            // What a batch may hold at most, with some room for its frame.
            0 if bytes < log.record_bytes_max() - 1024 => log.append_batch(&payloads).unwrap(),
            _ => {
                let (last, others) = payloads.split_last().unwrap();
                others.iter().for_each(|payload| drop(log.append(payload).unwrap()));
                log.append(last).unwrap()
            }
        };
        assert_eq!(ticket.wait().unwrap().get(), end);
        say(format!("ack {} {end} {}", last + 1, owner.1));
        let at = cursor.position().get();
        match random.below(40) {
            0..8 => {
                let to = at + random.below(end + 2 - at);
                say(format!("going {to}"));
                cursor.advance(Lsn::new(to)).unwrap();
                say(format!("at {}", cursor.position()));
            }
            8..16 => {
                // To the cursor at most, whatever is asked for.
                say(format!("trimming {at}"));
                let first = log.trim(Lsn::new(at + random.below(2) * 50)).unwrap();
                say(format!("trimmed {first}"));
            }
            16 => {
                let held = end + 1 - log.first_lsn().get();
                let after = end - random.below(held.min(150) + 1);
                say(format!("cutting {after}"));
                assert_eq!(log.truncate_after(Lsn::new(after)).unwrap().get(), after);
                say(format!("cut {after} {}", log.generation()));
                cursor = log.cursor(CURSOR).unwrap();
                assert!(cursor.position().get() <= after + 1);
            }
            17 => {
                let count = log.housekeeping().recycled;
                say(format!("recycled {}", count - recycled));
                recycled = count;
            }
            _ => {}
        }
    }
}

/// Starts a writer, kills it, and notes what it said.
fn kill_one(case: &Case, life: u64, model: &mut Model) {
    let mut child = again(TEST, &life.to_string(), &case.dir)
        .env("URINGLOG_TEST_RING", u8::from(case.backend == uringlog::Backend::Uring).to_string())
        .stderr(std::process::Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    let reading = std::thread::spawn(move || {
        let (mut lines, mut line, mut all) = (lines, String::new(), Vec::new());
        while lines.read_line(&mut line).unwrap() > 0 {
            all.extend(said(&line).map(str::to_owned));
            line.clear();
        }
        all
    });
    // Often in the middle of writing, sometimes while it is still opening.
    let mut random = Random::new(life);
    let delay = if life.is_multiple_of(4) { random.below(40) } else { 100 + random.below(500) };
    std::thread::sleep(Duration::from_millis(delay));
    assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
    child.kill().unwrap();
    child.wait().unwrap();
    for line in reading.join().unwrap() {
        model.hear(life, &line);
    }
}

// ---- what must be so ----

/// What the writers have said, and what follows from it.
#[derive(Default)]
struct Model {
    /// What is acknowledged and was neither cut nor trimmed.
    acknowledged: BTreeMap<u64, Owner>,
    /// All cuts: the last record kept, and the generation that each began.
    cuts: Vec<(u64, u64)>,
    generation: u64,
    first: u64,
    cursor: u64,
    /// What was begun and not said to be done.
    pending: Option<Pending>,
    trims: u64,
    advances: u64,
    recycled: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Pending {
    Going(u64),
    Trimming(u64),
    Cutting(u64),
}

impl Model {
    /// Whether hardly anything was done yet.
    fn is_little(&self) -> bool {
        self.cuts.len() < 3 || self.trims < 20 || self.advances < 20 || self.recycled < 5
    }

    fn hear(&mut self, life: u64, line: &str) {
        let (verb, numbers) = line.split_once(' ').unwrap();
        let numbers: Vec<u64> = numbers.split(' ').map(|word| word.parse().unwrap()).collect();
        match (verb, &numbers[..]) {
            ("opened", &[first, last, generation, cursor]) => {
                self.look(first, last, generation, cursor);
            }
            ("ack", &[first, last, generation]) => {
                assert_eq!(generation, self.generation);
                for lsn in first..=last {
                    let before = self.acknowledged.insert(lsn, (life, generation));
                    assert_eq!(before, None, "number {lsn} was acknowledged twice");
                }
            }
            ("going", &[to]) => self.pending = Some(Pending::Going(to)),
            ("at", &[to]) => {
                assert_eq!(self.pending.take(), Some(Pending::Going(to)));
                self.cursor = to;
                self.advances += 1;
            }
            ("trimming", &[to]) => self.pending = Some(Pending::Trimming(to)),
            ("trimmed", &[first]) => {
                assert_eq!(self.pending.take(), Some(Pending::Trimming(first)));
                self.trimmed(first);
                self.trims += 1;
            }
            ("cutting", &[after]) => self.pending = Some(Pending::Cutting(after)),
            ("cut", &[after, generation]) => {
                assert_eq!(self.pending.take(), Some(Pending::Cutting(after)));
                // Nothing at all is cut where it was to be behind the last record.
                if generation != self.generation {
                    self.cut(after, generation);
                }
            }
            ("recycled", &[count]) => self.recycled += count,
            _ => panic!("{line}"),
        }
    }

    fn trimmed(&mut self, first: u64) {
        assert!(first >= self.first, "{first} was trimmed before");
        self.first = first;
        self.acknowledged = self.acknowledged.split_off(&first);
    }

    fn cut(&mut self, after: u64, generation: u64) {
        assert!(generation > self.generation);
        self.generation = generation;
        self.cuts.push((after, generation));
        self.acknowledged.split_off(&(after + 1));
        self.cursor = self.cursor.min(after + 1);
    }

    /// What was under way has happened, or has not: an open log shows which.
    fn look(&mut self, first: u64, last: u64, generation: u64, cursor: u64) {
        match self.pending.take() {
            Some(Pending::Going(to)) if cursor == to => self.cursor = to,
            Some(Pending::Trimming(to)) if first == to => self.trimmed(to),
            Some(Pending::Cutting(after)) if generation > self.generation => {
                self.cut(after, generation);
                assert_eq!(last, after, "wholly");
            }
            _ => {}
        }
        assert_eq!(generation, self.generation);
        assert_eq!(first, self.first.max(1));
        assert_eq!(cursor, self.cursor.max(1));
        self.first = first;
        self.cursor = cursor;
        let acknowledged = self.acknowledged.last_key_value().map_or(0, |(&lsn, _)| lsn);
        assert!(last >= acknowledged, "{acknowledged} was acknowledged, {last} is the last");
    }

    /// Reads all of it, in every direction.
    fn check(&mut self, log: &Log, life: u64) -> BTreeMap<u64, Owner> {
        let cursor = log.cursor(CURSOR).unwrap().position().get();
        let (first, last) = (log.first_lsn().get(), log.last_lsn().get());
        self.look(first, last, log.generation(), cursor);
        let mut records = BTreeMap::new();
        let mut times = Vec::new();
        let mut reader = log.reader(Lsn::NONE).unwrap();
        let mut newest = (0, 0);
        while let Some(record) = reader.next_record().unwrap() {
            let lsn = record.lsn().get();
            assert_eq!(lsn, first + records.len() as u64, "numbers are dense");
            let owner = owner_of(lsn, record.payload());
            assert!(owner.0 >= newest.0 && owner.1 >= newest.1, "record {lsn} is an earlier one");
            newest = owner;
            let was_cut = self.was_cut(lsn, owner.1);
            assert_eq!(was_cut, None, "record {lsn} of {owner:?} came back");
            records.insert(lsn, owner);
            times.push((record.written_at(), lsn));
        }
        assert_eq!(first + records.len() as u64, last + 1, "it reads to the end");
        let lost = self.acknowledged.iter().find(|(lsn, owner)| records.get(lsn) != Some(owner));
        assert_eq!(lost, None, "life {life}: {first} to {last}; {}", log.recovery());

        let mut back = log.reader_back(Lsn::NONE).unwrap();
        for (&lsn, &owner) in records.iter().rev() {
            let record = back.next_record().unwrap().unwrap();
            assert_eq!(record.lsn().get(), lsn);
            assert_eq!(owner_of(lsn, record.payload()), owner);
        }
        assert!(back.next_record().unwrap().is_none());
        for &(time, _) in times.iter().step_by(times.len() / 8 + 1) {
            let expected = times[times.partition_point(|&(other, _)| other < time)].1;
            let mut at = log.reader_at(time).unwrap();
            let record = at.next_record().unwrap().unwrap();
            assert_eq!((record.lsn().get(), record.written_at()), (expected, time));
            assert_eq!(owner_of(expected, record.payload()), records[&expected]);
        }
        records
    }

    /// The cut that took the record, if one did.
    fn was_cut(&self, lsn: u64, generation: u64) -> Option<(u64, u64)> {
        let took = |cut: &&(u64, u64)| cut.0 < lsn && cut.1 > generation;
        self.cuts.iter().find(took).copied()
    }

    /// What readers were given was durable: it is there, or was trimmed or cut since.
    fn check_given(&self, seen: &Seen, records: &BTreeMap<u64, Owner>) {
        for (&lsn, &owner) in seen.given.range(self.first..) {
            if self.was_cut(lsn, owner.1).is_none() {
                assert_eq!(records.get(&lsn), Some(&owner), "record {lsn} was given");
            }
        }
    }

    /// Where a reader did not go on, there was a reason, and where it did, there was none not to.
    fn check_story(&self, seen: &Seen, first: u64) {
        for told in &seen.breaks {
            match *told {
                Break::Trimmed { next, first: start } => {
                    assert!(next < start && start <= first, "{told:?}");
                }
                Break::Truncated { next, generation, last } => {
                    assert!(last + 1 < next, "{told:?}: nothing that was given is gone");
                    // Or a cut was the reason whose segments were trimmed: then nobody knows where it was,
                    // and what is told lies before the log's first record.
                    let known = self
                        .cuts
                        .iter()
                        .any(|cut| cut.1 > generation && (cut.0 == last || last < first));
                    assert!(known, "{told:?}: no such cut in {:?}", self.cuts);
                }
            }
        }
        for &(next, from, to) in &seen.passed {
            let missed =
                self.cuts.iter().find(|cut| cut.1 > from && cut.1 <= to && cut.0 + 1 < next);
            assert_eq!(missed, None, "the reader was at {next} and went from {from} to {to}");
        }
    }
}

// ---- readers of this process ----

/// A thread that reads the directory all the time.
struct Watcher {
    thread: JoinHandle<()>,
    seen: Arc<Mutex<Seen>>,
}

/// What a reader met.
#[derive(Clone, Default)]
struct Seen {
    given: BTreeMap<u64, Owner>,
    next: u64,
    /// Nothing was given since the reader was made: it knows of no cut before that.
    is_new: bool,
    count: u64,
    breaks: Vec<Break>,
    /// Where it went from one generation to another and was told nothing: number, and both.
    passed: Vec<(u64, u64, u64)>,
}

/// Where a reader could not go on; the generation is that of what it gave last.
#[derive(Clone, Copy, Debug)]
enum Break {
    Trimmed { next: u64, first: u64 },
    Truncated { next: u64, generation: u64, last: u64 },
}

enum Source {
    Follower(Follower),
    Reader(Box<Reader>),
}

impl Source {
    fn follower(dir: &Path, from: Lsn) -> Result<Source, ReadError> {
        Follower::open_dir(dir, from).map(Source::Follower)
    }

    fn reader(dir: &Path, from: Lsn) -> Result<Source, ReadError> {
        Ok(Source::Reader(Box::new(Reader::open_dir(dir, from)?)))
    }

    /// The next record, if one comes soon.
    fn next(&mut self) -> Result<Option<(u64, Vec<u8>)>, ReadError> {
        let record = match self {
            Source::Follower(follower) => match follower.recv_timeout(Duration::from_millis(20)) {
                Err(FollowError::TimedOut) => None,
                Err(FollowError::Read(error)) => return Err(error),
                Err(error) => panic!("{error}"),
                Ok(record) => Some(record.expect("such a follower does not end")),
            },
            Source::Reader(reader) => reader.next_record()?,
        };
        let next = record.map(|record| (record.lsn().get(), record.payload().to_vec()));
        if next.is_none() && matches!(self, Source::Reader(_)) {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(next)
    }
}

impl Watcher {
    fn start(
        dir: &Path,
        over: &Arc<AtomicBool>,
        open: fn(&Path, Lsn) -> Result<Source, ReadError>,
    ) -> Watcher {
        let (dir, over) = (dir.to_owned(), over.clone());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mine = seen.clone();
        let mut source = open(&dir, Lsn::FIRST).unwrap();
        let thread = std::thread::spawn(move || {
            let mut next = 1;
            // A test that failed lets go of it.
            while !over.load(Ordering::Relaxed) && Arc::strong_count(&mine) > 1 {
                let result = source.next();
                let mut seen = mine.lock().unwrap();
                match result {
                    Ok(None) => {}
                    Ok(Some((lsn, payload))) => {
                        assert_eq!(lsn, next, "each once, and in order");
                        next += 1;
                        seen.take(lsn, &payload);
                    }
                    Err(error) => {
                        let from = seen.stop(next, error);
                        drop(seen);
                        (source, next) = reopen(&dir, from, open, &mine);
                    }
                }
            }
        });
        Watcher { thread, seen }
    }
}

/// Goes on in a new reader. The log may be trimmed beyond its place meanwhile.
fn reopen(
    dir: &Path,
    mut from: u64,
    open: fn(&Path, Lsn) -> Result<Source, ReadError>,
    seen: &Mutex<Seen>,
) -> (Source, u64) {
    loop {
        match open(dir, Lsn::new(from)) {
            Ok(source) => return (source, from),
            Err(error) => from = seen.lock().unwrap().stop(from, error),
        }
    }
}

impl Seen {
    fn take(&mut self, lsn: u64, payload: &[u8]) {
        self.next = lsn + 1;
        let is_new = std::mem::take(&mut self.is_new);
        self.count += 1;
        if payload == b"the end" {
            return;
        }
        let owner = owner_of(lsn, payload);
        // What was cut is given no more once what came in its place was.
        let before = self.given.last_entry().map(|before| (*before.key(), *before.get()));
        if let Some((before, (life, generation))) = before {
            assert!(before < lsn, "record {lsn} was given before, and not cut since");
            assert!(owner.0 >= life && owner.1 >= generation, "record {lsn} of {owner:?} is old");
            if !is_new && owner.1 != generation {
                self.passed.push((lsn, generation, owner.1));
            }
        }
        self.given.insert(lsn, owner);
    }

    /// Notes why it ended, and says where to go on.
    fn stop(&mut self, next: u64, error: ReadError) -> u64 {
        let newest = self.given.last_key_value().map_or(0, |(_, &(_, generation))| generation);
        self.is_new = true;
        self.next = match error {
            ReadError::Trimmed { first } => {
                let first = first.get();
                self.breaks.push(Break::Trimmed { next, first });
                first
            }
            ReadError::Truncated { last } => {
                let last = last.get();
                self.breaks.push(Break::Truncated { next, generation: newest, last });
                self.given.split_off(&(last + 1));
                last + 1
            }
            error => panic!("before record {next}: {error}"),
        };
        self.next
    }
}
