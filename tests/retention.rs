//! Where the log starts, what it keeps, and what becomes of the files: trimming by hand and by the
//! options, files used again and removed, limits of space, and every crash on the way.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Case, each_backend, eventually, small_options};
use uringlog::sim::{self, SimDisk, SimOptions, Stepper, Turn};
use uringlog::{AppendError, Durability, Log, Lsn, Options, TrimError};

const NOW_NS: u64 = 1_700_000_000_000_000_000;
const SEGMENT_BYTES: u64 = 64 << 10;

fn sim_options() -> Options {
    Options::new()
        .segment_bytes(SEGMENT_BYTES)
        .segments_ready(1)
        .rings(1)
        .ring_bytes(4 << 10)
        .rings_retired_max(0)
        .batch_bytes_max(64 << 10)
        .large_bytes_max(64 << 10)
        .spares_max(1)
}

fn payload(lsn: u64) -> Vec<u8> {
    let mut bytes = format!("record {lsn} ").into_bytes();
    bytes.resize(700, b'.');
    bytes
}

/// A log on a simulated disk, and whoever takes its turns.
struct Sim {
    disk: SimDisk,
    log: Log,
    stepper: Stepper,
}

impl Sim {
    fn open(disk: &SimDisk, options: Options, seed: u64) -> Option<Sim> {
        let (log, stepper) = sim::open(disk, options, seed, NOW_NS).ok()?;
        Some(Sim { disk: disk.clone(), log, stepper })
    }

    fn new(options: Options) -> Sim {
        Sim::open(&SimDisk::new(1, SimOptions::default()), options, 5).expect("the log opens")
    }

    fn settle(&mut self) {
        for _ in 0..600 {
            let turn = self.stepper.turn();
            let more = self.stepper.prepare();
            self.stepper.advance(Duration::from_micros(200));
            if turn == Turn::Ended || (turn == Turn::Idle && !more) {
                break;
            }
        }
    }

    /// Appends until the log has `last` records, or there is no space. True: it has.
    fn append_to(&mut self, last: u64) -> bool {
        let mut tries = 0;
        while self.log.last_lsn().get() < last {
            let lsn = self.log.last_lsn().get() + 1;
            match self.log.try_append(&payload(lsn)) {
                Ok(ticket) => {
                    assert_eq!(ticket.lsn().get(), lsn);
                    tries = 0;
                }
                Err(AppendError::NoSpace) => return false,
                Err(AppendError::Full) if tries < 50 && !self.disk.crashed() => {
                    tries += 1;
                    self.settle();
                }
                Err(AppendError::Full) => return false,
                Err(_) => return false,
            }
        }
        self.settle();
        self.log.durable_lsn().get() >= last
    }

    fn names(&self, end: &str) -> Vec<String> {
        self.disk.files().into_iter().filter(|name| name.ends_with(end)).collect()
    }

    fn segment_bytes(&self) -> u64 {
        let files = self.disk.files();
        let segments = files.iter().filter(|name| name.contains(".seg") || name.contains(".spare"));
        segments.map(|name| self.disk.read_raw(name).map_or(0, |bytes| bytes.len() as u64)).sum()
    }

    fn check(&self, name: &str) {
        check(&self.log, name);
    }
}

/// Everything from the first record to the last durable one is there.
fn check(log: &Log, name: &str) {
    let mut next = log.first_lsn().get();
    let mut reader = log.reader(log.first_lsn()).unwrap_or_else(|e| panic!("{name}: {e}"));
    while let Some(record) = reader.next_record().unwrap_or_else(|e| panic!("{name}: {e}")) {
        assert_eq!(record.lsn().get(), next, "{name}");
        assert_eq!(record.payload(), payload(next), "{name}: record {next}");
        next += 1;
    }
    assert_eq!(next, log.durable_lsn().get() + 1, "{name}");
}

/// Where the log's segments start in their lives: the salt of each header.
fn salts(disk: &SimDisk) -> Vec<(String, u64)> {
    let files = disk.files().into_iter().filter(|name| name.ends_with(".seg"));
    files
        .map(|name| {
            let bytes = disk.read_raw(&name).unwrap();
            let salt = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
            (name, salt)
        })
        .collect()
}

#[test]
fn a_trim_is_exact_and_gives_whole_segments_back() {
    let mut sim = Sim::new(sim_options());
    assert_eq!(sim.log.first_lsn(), Lsn::FIRST);
    assert_eq!(sim.log.trim(Lsn::new(9)).unwrap(), Lsn::FIRST, "nothing is durable");
    assert!(sim.append_to(600));
    let before = salts(&sim.disk);
    assert_eq!(sim.log.trim(Lsn::new(301)).unwrap(), Lsn::new(301));
    assert_eq!(sim.log.first_lsn(), Lsn::new(301));
    assert_eq!(sim.log.trim(Lsn::NONE).unwrap(), Lsn::new(301), "never back");
    sim.check("trimmed");
    sim.settle();
    let stats = sim.log.stats();
    assert_eq!((stats.trims, stats.trimmed_records), (1, 300));
    assert!(stats.removed.count > 0 && sim.names(".spare").len() <= 1, "{stats:?}");
    assert!(stats.footers > 3 && stats.footers_failed == 0);
    // What is spare becomes a segment again, with a life of its own.
    assert!(sim.append_to(900));
    assert!(sim.log.stats().recycled.count > 0);
    let mut all = [before, salts(&sim.disk)].concat();
    all.sort();
    all.dedup();
    let mut lives: Vec<u64> = all.iter().map(|&(_, salt)| salt).collect();
    lives.sort_unstable();
    lives.dedup();
    assert_eq!(lives.len(), all.len(), "each segment has a salt of its own: {all:?}");
    let recycled = salts(&sim.disk).iter().any(|(name, _)| {
        let bytes = sim.disk.read_raw(name).unwrap();
        bytes[104] == 1
    });
    assert!(recycled, "a header says that its file was a segment before");
    assert_eq!(sim.log.trim(Lsn::new(5000)).unwrap(), Lsn::new(901), "up to what comes next");
    sim.settle();
    sim.check("empty");
    assert!(sim.append_to(905));
    sim.check("goes on");
    // It is found so.
    let Sim { disk, log, stepper } = sim;
    drop((log, stepper));
    disk.restart();
    let mut sim = Sim::open(&disk, sim_options(), 6).expect("the log opens");
    assert_eq!(sim.log.recovery().first_lsn, Lsn::new(901));
    assert_eq!((sim.log.first_lsn(), sim.log.last_lsn()), (Lsn::new(901), Lsn::new(905)));
    sim.check("opened again");
    assert!(sim.append_to(1200));
    sim.check("appended to");
}

/// The last durable batch tells recovery where the log ends: its segment stays, though nothing in it is
/// wanted any more and the log has moved on.
#[test]
fn the_segment_with_the_last_durable_batch_stays() {
    let mut sim = Sim::new(sim_options().durability(Durability::Written));
    while sim.log.stats().rotations == 0 {
        let lsn = sim.log.last_lsn().get() + 1;
        if sim.log.try_append(&payload(lsn)).is_err() || lsn.is_multiple_of(4) {
            for _ in 0..4 {
                sim.stepper.turn();
                sim.stepper.prepare();
            }
        }
    }
    for _ in 0..4 {
        sim.stepper.turn();
    }
    let durable = sim.log.durable_lsn();
    assert!(sim.log.acknowledged_lsn() > durable, "the new segment is not synced");
    let before = salts(&sim.disk);
    assert_eq!(sim.log.trim(Lsn::new(durable.get() + 1)).unwrap().get(), durable.get() + 1);
    for _ in 0..50 {
        sim.stepper.prepare();
    }
    assert!(salts(&sim.disk).contains(&before[0]), "it is given up: {:?}", sim.disk.files());
    // When something in the next one is durable, it may go.
    let last = sim.log.last_lsn();
    assert!(sim.log.wait_durable_timeout(last, Duration::ZERO).is_err());
    sim.settle();
    assert_eq!(sim.log.trim(last).unwrap(), last);
    sim.settle();
    assert!(!salts(&sim.disk).contains(&before[0]), "it stays: {:?}", sim.disk.files());
    sim.check("one segment later");
}

/// Appends, trims, uses files again, removes some, trims to the end: the power goes, or the process
/// dies, at every step of it.
#[test]
fn a_crash_at_every_step_leaves_a_log_that_starts_where_a_trim_said() {
    // The last trim that was done, the one that was tried after it, and what was durable.
    let run = |disk: &SimDisk| -> (u64, u64, u64) {
        let Some(mut sim) = Sim::open(disk, sim_options(), 5) else { return (1, 1, 0) };
        let (mut done, mut tried) = (1, 1);
        for (last, before) in [(230, 120), (330, 331), (480, 400)] {
            if sim.append_to(last) {
                tried = before;
                match sim.log.trim(Lsn::new(before)) {
                    Ok(first) => done = first.get(),
                    Err(error) => assert!(disk.crashed(), "{error}"),
                }
            }
            sim.settle();
        }
        (done, tried, sim.log.durable_lsn().get())
    };
    let disk = SimDisk::new(1, SimOptions::default());
    assert_eq!(run(&disk), (400, 400, 480));
    let boundaries = disk.steps();
    for boundary in 1..=boundaries {
        for outcome in [boundary % 3, (boundary + 1) % 3] {
            let disk = SimDisk::new(1, SimOptions::default());
            disk.set_crash_seed(boundary * 3 + outcome);
            match outcome {
                0 => disk.kill_after(boundary),
                _ => disk.crash_after(boundary),
            }
            let (done, tried, durable) = run(&disk);
            disk.restart();
            if outcome == 2 {
                // Once more, while it is opened.
                disk.crash_after(1 + boundary % 23);
                drop(sim::open(&disk, sim_options(), 7, NOW_NS));
                disk.restart();
            }
            let name = format!("boundary {boundary} outcome {outcome}: {done} {tried} {durable}");
            let (log, stepper) = sim::open(&disk, sim_options(), 8, NOW_NS)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut sim = Sim { disk, log, stepper };
            let first = sim.log.first_lsn().get();
            assert!(first == done || first == tried, "{name}: starts at {first}");
            assert_eq!(sim.log.recovery().first_lsn.get(), first, "{name}");
            assert!(sim.log.durable_lsn().get() >= durable, "{name}");
            sim.check(&name);
            sim.settle();
            assert!(sim.names(".spare").len() <= 1, "{name}: {:?}", sim.disk.files());
            assert!(sim.names(".tmp").is_empty(), "{name}: {:?}", sim.disk.files());
            let more = sim.log.last_lsn().get() + 120;
            assert!(sim.append_to(more), "{name}");
            sim.check(&name);
        }
    }
}

#[test]
fn what_a_cursor_has_not_consumed_is_kept() {
    let mut sim = Sim::new(sim_options().retain_bytes(0));
    let mut cursor = sim.log.cursor("slow").unwrap();
    assert!(sim.append_to(150));
    cursor.advance(Lsn::new(120)).unwrap();
    assert_eq!(sim.log.trim(Lsn::new(140)).unwrap(), Lsn::new(120));
    assert!(sim.append_to(500));
    sim.stepper.advance(Duration::from_secs(2));
    sim.settle();
    assert_eq!(sim.log.first_lsn(), Lsn::new(120));
    // It moves on, and what it leaves behind goes by itself.
    cursor.advance(Lsn::new(400)).unwrap();
    sim.stepper.advance(Duration::from_secs(2));
    sim.settle();
    let first = sim.log.first_lsn().get();
    assert!((300..=400).contains(&first), "{first}");
    sim.check("the cursor moved");
    let Sim { disk, log, stepper } = sim;
    drop((log, stepper));
    disk.restart();
    let options = sim_options().retain_bytes(0).retain_past_cursors(true);
    let mut sim = Sim::open(&disk, options, 9).expect("the log opens");
    assert!(sim.append_to(900));
    assert!(sim.log.first_lsn() > Lsn::new(500), "the bytes count more");
    sim.check("past the cursor");
}

#[test]
fn the_options_say_what_is_retained() {
    let mut sim = Sim::new(sim_options().retain_bytes(4 * SEGMENT_BYTES));
    assert!(sim.append_to(1200));
    let space = sim.log.space().unwrap();
    assert!(space.live_bytes + space.sealed_bytes <= 4 * SEGMENT_BYTES, "{space:?}");
    assert!(space.sealed_bytes >= 2 * SEGMENT_BYTES, "{space:?}");
    let files: u64 =
        sim.disk.files().iter().map(|f| sim.disk.read_raw(f).unwrap().len() as u64).sum();
    assert_eq!(space.total_bytes + empty_files(&sim), files, "{space:?} {:?}", sim.disk.files());
    let held = sim.log.last_lsn().get() + 1 - sim.log.first_lsn().get();
    let payload_bytes = space.payload_bytes.expect("footers tell");
    assert!(payload_bytes >= 700 * held && payload_bytes < 700 * (held + 90), "{space:?} {held}");
    assert!(space.amplification.unwrap() > 1.0);
    sim.check("by size");
    // By age: the clock of the last record of a segment counts.
    let mut sim = Sim::new(sim_options().retain_age(Duration::from_secs(100)));
    assert!(sim.append_to(300));
    sim.stepper.advance(Duration::from_secs(70));
    assert!(sim.append_to(600));
    assert_eq!(sim.log.first_lsn(), Lsn::FIRST);
    sim.stepper.advance(Duration::from_secs(50));
    sim.settle();
    let first = sim.log.first_lsn().get();
    assert!((200..=301).contains(&first), "{first}");
    sim.stepper.advance(Duration::from_secs(500));
    sim.settle();
    let first = sim.log.first_lsn().get();
    assert!(first > 500 && first <= 600, "the live one stays: {first}");
    sim.check("by age");
}

/// Bytes of files that the report does not know of.
fn empty_files(sim: &Sim) -> u64 {
    let known = [".seg", ".tmp", ".spare", ".cursor", "log.mark", "calibration", "status"];
    let unknown = sim.disk.files().into_iter().filter(|f| !known.iter().any(|k| f.ends_with(k)));
    unknown.map(|name| sim.disk.read_raw(&name).unwrap().len() as u64).sum()
}

#[test]
fn a_log_stays_within_its_bytes() {
    const MAX: u64 = 8 * SEGMENT_BYTES;
    let mut sim = Sim::new(sim_options().max_bytes(MAX));
    let mut starts = 1;
    for round in 0..4 {
        // What was accepted may need less than the worst: then a little more goes in.
        let last = loop {
            let before = sim.log.last_lsn().get();
            assert!(!sim.append_to(10_000), "it is full");
            sim.settle();
            if sim.log.last_lsn().get() == before {
                break before;
            }
        };
        assert!(sim.segment_bytes() <= MAX, "{:?}", sim.disk.files());
        assert_eq!(sim.log.durable_lsn().get(), last, "what was accepted is written");
        sim.check("full");
        let refused = sim.log.try_append(&payload(last + 1)).err();
        assert!(matches!(refused, Some(AppendError::NoSpace)), "{round}: {refused:?}");
        let before = starts + (last - starts) / 2;
        starts = sim.log.trim(Lsn::new(before)).unwrap().get();
        assert_eq!(starts, before);
        sim.settle();
        let last = last + 5;
        assert!(sim.append_to(last), "round {round}: appending goes on");
        sim.check("goes on");
    }
    assert!(sim.log.stats().recycled.count > 0);
    // What is to be retained makes room by itself.
    let mut sim = Sim::new(sim_options().max_bytes(MAX).retain_bytes(2 * SEGMENT_BYTES));
    assert!(sim.append_to(3000));
    assert!(sim.segment_bytes() <= MAX);
}

#[test]
fn a_full_disk_needs_no_space_for_what_was_there_before() {
    let mut sim = Sim::new(sim_options().spares_max(64));
    assert!(sim.append_to(400));
    sim.disk.set_space(Some(sim.disk.used_bytes()));
    assert!(!sim.append_to(10_000), "it is full");
    sim.settle();
    let last = sim.log.last_lsn().get();
    assert_eq!(sim.log.durable_lsn().get(), last, "what was accepted is written");
    let prepared = sim.log.stats().prepared.count;
    for _ in 0..5 {
        let last = sim.log.last_lsn().get();
        sim.log.trim(Lsn::new(last - 100)).unwrap();
        sim.settle();
        assert!(sim.append_to(last + 150), "trimming made room");
    }
    assert_eq!(sim.log.stats().prepared.count, prepared, "nothing new was made");
    sim.check("full");
}

#[test]
fn what_goes_on_in_the_background_can_be_seen() {
    let options = sim_options().segment_bytes(4 << 20).spares_max(0);
    let mut sim = Sim::new(options);
    let (mut preparing, mut removing) = (false, false);
    for round in 0..3 {
        for _ in 0..40 {
            while sim.log.try_append(&[round; 7000]).is_err() {
                sim.settle();
            }
            sim.settle();
        }
        let last = sim.log.last_lsn();
        for _ in 0..400 {
            while sim.log.try_append(&[round; 15_000]).is_err() {
                sim.stepper.turn();
                sim.stepper.prepare();
                preparing |= sim.log.housekeeping().preparing;
                sim.stepper.advance(Duration::from_micros(50));
            }
        }
        sim.log.trim(last).unwrap();
        for _ in 0..400 {
            sim.stepper.turn();
            sim.stepper.prepare();
            removing |= sim.log.housekeeping().removing;
        }
        sim.settle();
    }
    let seen = sim.log.housekeeping();
    assert!(preparing && removing, "{seen:?}");
    assert!(!seen.preparing && !seen.removing && !seen.recycling, "{seen:?}");
    let stats = sim.log.stats();
    assert_eq!(
        (seen.rotations, seen.prepared, seen.recycled, seen.removed),
        (stats.rotations, stats.prepared.count, stats.recycled.count, stats.removed.count)
    );
    assert!(sim.names(".spare").is_empty());
}

/// Appends, trims and readers at the same time.
#[test]
fn trimming_under_load() {
    each_backend(|case: &Case| {
        let dir = case.dir("trim-load");
        let log = case.options.clone().segment_bytes(256 << 10).open(&dir).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let appenders: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        for at in 0..1500u64 {
                            let ticket = log.append(&[7; 900]).unwrap();
                            if at % 16 == 0 {
                                ticket.wait().unwrap();
                            }
                        }
                    })
                })
                .collect();
            for back in [50, 200] {
                let (log, done) = (&log, &done);
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        let to = log.durable_lsn().get().saturating_sub(back);
                        let before = log.first_lsn();
                        let first = log.trim(Lsn::new(to)).unwrap();
                        assert!(first >= before && log.first_lsn() >= first);
                        let space = log.space().unwrap();
                        assert!(space.total_bytes >= space.live_bytes);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            appenders.into_iter().for_each(|thread| thread.join().unwrap());
            done.store(true, Ordering::Relaxed);
        });
        let last = log.sync().unwrap();
        assert_eq!(last.get(), 4500);
        eventually("spares are few", || {
            let spare = |entry: std::io::Result<std::fs::DirEntry>| {
                entry.unwrap().file_name().to_string_lossy().ends_with(".spare")
            };
            std::fs::read_dir(&dir).unwrap().filter(|_| true).map(spare).filter(|&s| s).count() <= 2
        });
        let stats = log.stats();
        assert!(stats.trims > 0 && stats.recycled.count > 0, "{}: {stats:?}", case.name);
        let first = log.trim(Lsn::new(4400)).unwrap().max(log.first_lsn());
        log.close().unwrap();
        let log = case.options.clone().segment_bytes(256 << 10).open(&dir).unwrap();
        assert_eq!((log.first_lsn(), log.last_lsn()), (first, last));
        assert_eq!(
            log.reader(first).unwrap().map(Result::unwrap).count() as u64,
            4501 - first.get()
        );
        log.close().unwrap();
    });
}

/// Somebody keeps sealed segments by hard links, as backups do.
#[test]
fn a_linked_segment_keeps_its_bytes() {
    each_backend(|case: &Case| {
        let (dir, kept) = (case.dir("linked"), case.dir("kept"));
        let log = case.options.clone().segment_bytes(256 << 10).spares_max(2).open(&dir).unwrap();
        let fill = || {
            for _ in 0..600 {
                let _ticket = log.append(&[7; 2000]).unwrap();
            }
            log.sync().unwrap()
        };
        fill();
        std::fs::create_dir(&kept).unwrap();
        let mut before = Vec::new();
        for epoch in 1..=3 {
            let name = format!("{epoch:020}.seg");
            std::fs::hard_link(dir.join(&name), kept.join(&name)).unwrap();
            before.push(std::fs::read(kept.join(&name)).unwrap());
        }
        log.trim(log.last_lsn()).unwrap();
        // All that is trimmed is taken up again, or goes.
        for _ in 0..4 {
            fill();
            log.trim(log.last_lsn()).unwrap();
        }
        eventually("their names are gone", || !dir.join(format!("{:020}.seg", 3)).exists());
        // The same for files that were given up before they were linked.
        let is_spare = |name: &str| name.ends_with(".spare");
        let names = || {
            let all = std::fs::read_dir(&dir).unwrap();
            all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        eventually("there is a spare", || names().iter().any(|name| is_spare(name)));
        log.close().unwrap();
        let options = case.options.clone().segment_bytes(256 << 10);
        for spares_max in [2, 0] {
            let spare = names().into_iter().find(|name| is_spare(name)).unwrap();
            let link = kept.join(format!("spare {spares_max}"));
            std::fs::hard_link(dir.join(&spare), &link).unwrap();
            let bytes = std::fs::read(&link).unwrap();
            let log = options.clone().spares_max(spares_max).open(&dir).unwrap();
            for _ in 0..1200 {
                let _ticket = log.append(&[8; 2000]).unwrap();
            }
            log.sync().unwrap();
            eventually("it is gone", || !names().contains(&spare));
            assert!(std::fs::read(&link).unwrap() == bytes, "a spare of {spares_max} changed");
            log.trim(log.last_lsn()).unwrap();
            if spares_max > 0 {
                eventually("there is a spare", || names().iter().any(|name| is_spare(name)));
            }
            log.close().unwrap();
        }
        for (epoch, bytes) in (1..=3).zip(before) {
            let now = std::fs::read(kept.join(format!("{epoch:020}.seg"))).unwrap();
            assert!(now == bytes, "segment {epoch} changed");
        }
    });
}

#[test]
fn a_closed_log_is_not_trimmed() {
    let temp = common::temp_dir();
    let log = small_options().open(temp.path().join("log")).unwrap();
    for _ in 0..10 {
        log.append(b"record").unwrap().wait().unwrap();
    }
    let other = log.clone();
    log.close().unwrap();
    assert!(matches!(other.trim(Lsn::new(5)), Err(TrimError::Closed)));
    assert_eq!(other.first_lsn(), Lsn::FIRST);
}

#[test]
fn limits_that_cannot_work_are_refused() {
    let temp = common::temp_dir();
    let open = |options: Options| options.open(temp.path().join("log")).map(drop);
    for (options, name) in [
        (small_options().max_bytes(1), "max_bytes"),
        (small_options().max_bytes(2 << 20), "max_bytes"),
        (small_options().spares_max(65), "spares_max"),
        (small_options().retain_age(Duration::ZERO), "retain_age"),
    ] {
        let error = open(options).expect_err(name).to_string();
        assert!(error.contains(name), "{error}");
    }
}
