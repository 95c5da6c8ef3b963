//! `kill -9` of a real writer process, again and again on the same log: every acknowledged record is
//! there afterwards, what else is there is a prefix, and no batch is torn.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Case, Random, again, each_backend_killing, role, said, say, small_options};
use uringlog::{BackendChoice, Log, Lsn, Options};

const TEST: &str = "a_killed_writer_loses_nothing_acknowledged";
const KILLS: u64 = 14;
/// Each backend stops killing after this time, so that a slow machine ends too.
const TIME_MAX: Duration = Duration::from_secs(10);
const SINGLES: u64 = 2;
const BATCH: u64 = 5;
const BURST: u64 = 40;

#[test]
fn a_killed_writer_loses_nothing_acknowledged() {
    if let Some((life, dir)) = role() {
        return write_until_killed(life.parse().unwrap(), &dir);
    }
    each_backend_killing(|case, life| {
        let started = Instant::now();
        let mut checker = Checker::default();
        let mut lives = 0;
        while lives < KILLS && (lives < 4 || started.elapsed() < TIME_MAX) {
            lives += 1;
            kill_one(case, life + lives, &mut checker);
            // Every third life starts on what the kill left, not on what a clean close did.
            if lives % 3 != 0 {
                let log = options(case.is_buffered()).backend(choice(case)).open(&case.dir);
                checker.check(&log.unwrap_or_else(|error| panic!("life {lives}: {error}")));
            }
        }
        checker.check(&case.open_with(options(case.is_buffered()).backend(choice(case))));
        assert!(checker.acknowledged.len() > 100, "hardly anything was acknowledged");
        eprintln!(
            "{}: {lives} kills, {} acknowledgements, {} records",
            case.name,
            checker.acknowledged.len(),
            checker.last
        );
        lives
    });
}

fn options(buffered: bool) -> Options {
    small_options().segment_bytes(256 << 10).ring_bytes(16 << 10).buffered(buffered)
}

fn choice(case: &Case) -> BackendChoice {
    match case.backend {
        uringlog::Backend::Uring => BackendChoice::Uring,
        _ => BackendChoice::Psync,
    }
}

/// Starts a writer, kills it, and notes what it had acknowledged.
fn kill_one(case: &Case, life: u64, checker: &mut Checker) {
    let mut random = Random::new(life);
    let mut child = again(TEST, &life.to_string(), &case.dir)
        .env("URINGLOG_TEST_RING", u8::from(case.backend == uringlog::Backend::Uring).to_string())
        .stderr(std::process::Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    let reading = std::thread::spawn(move || {
        let (mut lines, mut line, mut acks) = (lines, String::new(), Vec::new());
        while lines.read_line(&mut line).unwrap() > 0 {
            if let Some(words) = said(&line) {
                let words: Vec<u64> = words.split(' ').map(|word| word.parse().unwrap()).collect();
                acks.push((words[0], words[1], words[2]));
            }
            line.clear();
        }
        acks
    });
    // Often in the middle of writing, sometimes while it is still opening.
    let delay = if life.is_multiple_of(4) { random.below(40) } else { 100 + random.below(300) };
    std::thread::sleep(Duration::from_millis(delay));
    assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
    child.kill().unwrap();
    child.wait().unwrap();
    for (lsn, producer, index) in reading.join().unwrap() {
        let before = checker.acknowledged.insert(lsn, (life, producer, index));
        assert_eq!(before, None, "number {lsn} was acknowledged twice");
    }
}

#[derive(Default)]
struct Checker {
    /// Number to life, producer and index.
    acknowledged: HashMap<u64, (u64, u64, u64)>,
    /// The last record when it was last looked.
    last: u64,
}

impl Checker {
    fn check(&mut self, log: &Log) {
        let mut reader = log.reader(Lsn::FIRST).unwrap();
        let mut read = 0;
        // By life and producer: the next index. What is there of each is a prefix.
        let mut next: HashMap<(u64, u64), u64> = HashMap::new();
        let mut last_life = 0;
        while let Some(found) = reader.next_record().unwrap() {
            read += 1;
            assert_eq!(found.lsn().get(), read, "numbers are dense");
            let word =
                |at: usize| u64::from_le_bytes(found.payload()[at..at + 8].try_into().unwrap());
            let (life, producer, index) = (word(0), word(8), word(16));
            assert!(found.payload() == payload(life, producer, index), "record {read}");
            assert!(life >= last_life, "record {read} is of an earlier life");
            last_life = life;
            let expected = next.entry((life, producer)).or_default();
            assert_eq!(index, *expected, "record {read}: life {life}, producer {producer}");
            *expected += 1;
            if let Some(&acknowledged) = self.acknowledged.get(&read) {
                assert_eq!((life, producer, index), acknowledged, "record {read}");
            }
        }
        let lost = self.acknowledged.keys().filter(|&&lsn| lsn > read).min();
        assert_eq!(lost, None, "of {read} records; the log says {}", log.recovery());
        for ((life, producer), count) in next {
            if producer == SINGLES {
                assert_eq!(count % BATCH, 0, "life {life}: a batch is torn");
            }
        }
        assert!(read >= self.last, "records that were there are gone");
        self.last = read;
    }
}

/// A record says whose it is; the rest follows from that.
fn payload(life: u64, producer: u64, index: u64) -> Vec<u8> {
    let mut payload = [life, producer, index].map(u64::to_le_bytes).concat();
    let len = Random::new(life * 1_000_003 + producer * 1009 + index).below(600) as usize;
    payload.extend((0..len).map(|at| (at as u64 * 13 + index) as u8));
    payload
}

/// The writer: single producers that wait each time, one with batches, one that waits for the last
/// of many only. Says number, producer and index of what is acknowledged.
fn write_until_killed(life: u64, dir: &Path) {
    let ring = std::env::var("URINGLOG_TEST_RING").is_ok_and(|ring| ring == "1");
    let choice = if ring { BackendChoice::Uring } else { BackendChoice::Psync };
    let log = options(true).backend(choice).open(dir).unwrap();
    std::thread::scope(|scope| {
        for producer in 0..SINGLES {
            let log = &log;
            scope.spawn(move || {
                for index in 0.. {
                    let lsn = log.append(&payload(life, producer, index)).unwrap().wait().unwrap();
                    say(format!("{lsn} {producer} {index}"));
                }
            });
        }
        scope.spawn(|| {
            for first in (0..).step_by(BATCH as usize) {
                let batch: Vec<_> =
                    (first..first + BATCH).map(|index| payload(life, SINGLES, index)).collect();
                let lsn = log.append_batch(&batch).unwrap().wait().unwrap();
                say(format!("{lsn} {SINGLES} {}", first + BATCH - 1));
            }
        });
        let producer = SINGLES + 1;
        for first in (0..).step_by(BURST as usize) {
            for index in first..first + BURST - 1 {
                log.append(&payload(life, producer, index)).unwrap();
            }
            let index = first + BURST - 1;
            let lsn = log.append(&payload(life, producer, index)).unwrap().wait().unwrap();
            say(format!("{lsn} {producer} {index}"));
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}
