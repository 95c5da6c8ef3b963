//! Everything at once, on too few cores: 64 threads that append in every way, drop, forget and panic,
//! while others read, follow, sync, trim and move a cursor, signals interrupt all of them, and the log is
//! closed in the middle of it.
//!
//! Checked: numbers agree with real time and are dense; what was accepted is there when the log is opened
//! again, whole, under its number; nobody hangs.
//!
//! `URINGLOG_STRESS_SECONDS` sets how long each backend is hammered (2 by default), `URINGLOG_STRESS_SEED`
//! what the threads draw.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]
#![allow(unsafe_code)]

mod common;

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Case, Random, cores, each_backend, move_to};
use uringlog::{AppendError, FollowError, Log, Lsn, ReadError, WaitError};

const PRODUCERS: u64 = 64;
/// Reservations that are never finished; as many rings may be retired.
const FORGOTTEN_MAX: u64 = 3;
const AS_WANTED: &str = "as the test wants it";

#[test]
fn sixty_four_threads_on_two_cores() {
    silence_wanted_panics();
    install_handler();
    each_backend(|case| {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        let seconds = number("URINGLOG_STRESS_SECONDS").unwrap_or(2);
        let seed = number("URINGLOG_STRESS_SEED").unwrap_or(1);
        hammer(case, Duration::from_secs(seconds), seed);
    });
}

/// What all threads share.
struct Field {
    log: Log,
    stop: AtomicBool,
    /// The highest number that any append has returned.
    returned: AtomicU64,
    forgotten: AtomicU64,
    acknowledged: AtomicU64,
}

fn hammer(case: &Case, time: Duration, seed: u64) {
    let options = case.options.clone().ring_bytes(16 << 10).rings_retired_max(4);
    let options = options.segments_ready(2).tail_bytes(256 << 10);
    let log = case.open_with(options.clone());
    let field = Field {
        log: log.clone(),
        stop: AtomicBool::new(false),
        returned: AtomicU64::new(0),
        forgotten: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
    };
    let over = AtomicBool::new(false);
    let mut accepted = BTreeMap::new();
    let first = std::thread::scope(|scope| {
        let field = &field;
        scope.spawn(|| watch(&over, time + 2 * common::PATIENCE, &log));
        let producers: Vec<_> =
            (0..PRODUCERS).map(|id| scope.spawn(move || produce(field, id, seed))).collect();
        let others: Vec<_> = [read, follow, trim, consume, sync, interrupt]
            .into_iter()
            .map(|role: fn(&Field)| scope.spawn(move || role(field)))
            .collect();
        std::thread::sleep(time);
        let report = log.clone().close().unwrap();
        for thread in producers {
            for (first, what) in thread.join().unwrap() {
                let before = accepted.insert(first, what);
                assert_eq!(before, None, "number {first} was given out twice");
            }
        }
        field.stop.store(true, Ordering::Release);
        others.into_iter().for_each(|thread| thread.join().unwrap());
        over.store(true, Ordering::Release);
        assert_eq!(report.last_lsn, log.durable_lsn());
        log.first_lsn().get()
    });
    let Field { log: held, acknowledged, .. } = field;
    let last = held.last_lsn().get();
    let stats = held.stats();
    drop((held, log));
    check(&case.open_with(options), &accepted, first, last);
    let acknowledged = acknowledged.load(Ordering::Relaxed);
    assert!(last > PRODUCERS && acknowledged > 0, "hardly anything happened");
    eprintln!(
        "{}: {last} records, {acknowledged} waited for, {} batches, trimmed to {first}, {} rings retired",
        case.name, stats.batches, stats.rings_retired
    );
}

/// Every number from 1 to `last` was accepted once, and is there from `first` on.
fn check(log: &Log, accepted: &BTreeMap<u64, (u64, u64, u64)>, first: u64, last: u64) {
    let mut next = 1;
    for (&lsn, &(.., count)) in accepted {
        assert_eq!(lsn, next, "numbers are dense, and given out once");
        next += count;
    }
    assert_eq!(next, last + 1, "what was accepted before the close is all there is");
    assert_eq!((log.last_lsn().get(), log.first_lsn().get()), (last, first));
    let mut reader = log.reader(Lsn::NONE).unwrap();
    let mut read = first;
    while let Some(found) = reader.next_record().unwrap() {
        assert_eq!(found.lsn().get(), read);
        let (&lsn, &(thread, index, _)) = accepted.range(..=read).next_back().unwrap();
        assert!(found.payload() == record(thread, index + (read - lsn)), "record {read}");
        read += 1;
    }
    assert_eq!(read, last + 1);
}

/// Says whose it is; the rest follows from that.
fn record(thread: u64, index: u64) -> Vec<u8> {
    let mut random = Random::new(thread << 32 | index);
    let len = if random.below(300) == 0 { 20_000 } else { random.below(300) };
    let mut record = [thread, index].map(u64::to_le_bytes).concat();
    record.extend(std::iter::repeat_n(random.next() as u8, len as usize));
    record
}

fn is_whole(payload: &[u8]) -> bool {
    let word = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap());
    payload == record(word(0), word(8))
}

// ---- threads ----

/// What was accepted: its first number, and the thread, the first index, and how many records.
type Accepted = (u64, (u64, u64, u64));

fn produce(field: &Field, id: u64, seed: u64) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    let mut random = Random::new(seed * 1000 + id);
    let cores = cores();
    if id.is_multiple_of(8) {
        run_when_idle();
    }
    let mut index = 0;
    loop {
        match random.below(40) {
            0 => move_to(cores[random.below(cores.len() as u64) as usize]),
            1 => std::thread::sleep(Duration::from_micros(random.below(500))),
            2..8 => std::thread::yield_now(),
            _ => {}
        }
        let before = field.returned.load(Ordering::Acquire);
        let outcome = append(field, &mut random, id, index);
        let (first, count) = match outcome {
            Ok(Some(numbers)) => numbers,
            Ok(None) => continue,
            Err(AppendError::Closed) => return accepted,
            Err(AppendError::Full | AppendError::TimedOut) => continue,
            Err(error) => panic!("{error}"),
        };
        assert!(first > before, "{first} was given out after {before} had been returned");
        field.returned.fetch_max(first + count - 1, Ordering::Release);
        accepted.push((first, (id, index, count)));
        index += count;
    }
}

/// One append of some kind. Returns its first number and how many it took; none if it was given up.
fn append(
    field: &Field,
    random: &mut Random,
    id: u64,
    index: u64,
) -> Result<Option<(u64, u64)>, AppendError> {
    let log = &field.log;
    let bytes = record(id, index);
    let ticket = match random.below(24) {
        0 => {
            let count = 2 + random.below(30);
            let records: Vec<_> = (index..index + count).map(|at| record(id, at)).collect();
            log.append_batch(&records)?
        }
        1 => log.append_vectored(&[IoSlice::new(&bytes[..9]), IoSlice::new(&bytes[9..])])?,
        2 => {
            let mut held = log.reserve(bytes.len())?;
            held.copy_from_slice(&bytes);
            std::thread::yield_now();
            held.publish()?
        }
        3 => {
            let mut held = log.reserve(bytes.len())?;
            held[0] = 0xDD;
            std::thread::yield_now();
            drop(held);
            return Ok(None);
        }
        4 => {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                let Ok(mut held) = log.try_reserve(bytes.len()) else { return };
                held[0] = 0xEE;
                std::panic::panic_any(AS_WANTED);
            }));
            drop(panicked);
            return Ok(None);
        }
        5 if random.below(50) == 0
            && field.forgotten.fetch_add(1, Ordering::Relaxed) < FORGOTTEN_MAX =>
        {
            std::mem::forget(log.try_reserve(1)?);
            return Ok(None);
        }
        6 => log.try_append(&bytes)?,
        7 => log.append_timeout(&bytes, Duration::from_micros(random.below(1000)))?,
        _ => log.append(&bytes)?,
    };
    let numbers = ticket.lsns();
    let (first, last) = (numbers.start().get(), numbers.end().get());
    // Before anybody waits: numbers that are returned are compared with those of others.
    field.returned.fetch_max(last, Ordering::Release);
    let waited = match random.below(12) {
        0 => ticket.wait().map(drop),
        1 => ticket.into_owned().wait().map(drop),
        2 => match ticket.wait_timeout(Duration::from_micros(random.below(300))) {
            Err(WaitError::TimedOut) => return Ok(Some((first, last - first + 1))),
            waited => waited.map(drop),
        },
        _ => return Ok(Some((first, last - first + 1))),
    };
    // Everything accepted becomes durable, also when the log is closed meanwhile.
    waited.unwrap();
    assert!(log.acknowledged_lsn().get() >= last);
    field.acknowledged.fetch_add(1, Ordering::Relaxed);
    Ok(Some((first, last - first + 1)))
}

fn read(field: &Field) {
    while !field.stop.load(Ordering::Acquire) {
        let mut reader = match field.log.reader(Lsn::NONE) {
            Ok(reader) => reader,
            Err(ReadError::Trimmed { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        let mut next = None;
        loop {
            match reader.next_record() {
                Ok(Some(found)) => {
                    assert!(next.is_none_or(|next| found.lsn().get() == next));
                    assert!(found.lsn() <= field.log.durable_lsn() && is_whole(found.payload()));
                    next = Some(found.lsn().get() + 1);
                }
                Ok(None) | Err(ReadError::Trimmed { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        std::thread::yield_now();
    }
}

fn follow(field: &Field) {
    let mut follower = field.log.follow(Lsn::NONE).unwrap();
    loop {
        let next = follower.next_lsn();
        match follower.recv_timeout(Duration::from_millis(5)) {
            Ok(Some(found)) => assert!(found.lsn() == next && is_whole(found.payload())),
            Ok(None) => return assert_eq!(next.get(), field.log.last_lsn().get() + 1),
            Err(FollowError::TimedOut) => {}
            Err(FollowError::Read(ReadError::Trimmed { .. })) => {
                follower = field.log.follow(Lsn::NONE).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn trim(field: &Field) {
    while !field.stop.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(20));
        let durable = field.log.durable_lsn().get();
        match field.log.trim(Lsn::new(durable.saturating_sub(5000).max(1))) {
            Ok(_) | Err(uringlog::TrimError::Closed) => {}
            Err(error) => panic!("{error}"),
        }
        field.log.space().unwrap();
    }
}

/// A consumer, in whose wake the log is trimmed.
fn consume(field: &Field) {
    let mut cursor = field.log.cursor("consumer").unwrap();
    while !field.stop.load(Ordering::Acquire) {
        let durable = field.log.durable_lsn();
        cursor.advance(Lsn::new(durable.get() + 1)).unwrap();
        assert!(cursor.position() > durable);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn sync(field: &Field) {
    while !field.stop.load(Ordering::Acquire) {
        let before = field.log.last_lsn();
        match field.log.sync() {
            Ok(synced) => assert!(synced >= before && field.log.durable_lsn() >= synced),
            Err(error) => panic!("{error}"),
        }
        assert!(field.log.stats().appends <= field.log.last_lsn().get());
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Sends every thread of the process, the log's own among them, a signal that interrupts it.
fn interrupt(field: &Field) {
    let mut random = Random::new(77);
    while !field.stop.load(Ordering::Acquire) {
        let tasks: Vec<i32> = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        for _ in 0..50 {
            let tid = tasks[random.below(tasks.len() as u64) as usize];
            // SAFETY: takes no pointers; a thread that has ended meanwhile is an error.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, libc::SIGUSR1) };
            std::thread::sleep(Duration::from_micros(random.below(300)));
        }
    }
}

/// Ends the process, with what its threads do, when this takes too long.
fn watch(over: &AtomicBool, patience: Duration, log: &Log) {
    let started = Instant::now();
    while !over.load(Ordering::Acquire) {
        if started.elapsed() > patience {
            eprintln!("hangs: {log:?}\n{:?}", log.stats());
            for entry in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
                let of = |name: &str| std::fs::read_to_string(entry.path().join(name));
                let [comm, wchan, call] = ["comm", "wchan", "syscall"].map(of);
                eprintln!("{:?}: {comm:?} in {wchan:?}, {call:?}", entry.file_name());
            }
            std::process::abort();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

// ---- the process ----

fn silence_wanted_panics() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&AS_WANTED) {
            hook(info);
        }
    }));
}

fn install_handler() {
    extern "C" fn handler(_: libc::c_int) {}
    // SAFETY: all-zero is a valid action: no flags, so that calls are interrupted and not restarted.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // SAFETY: the handler does nothing, and `action` outlives the call.
    let failed = unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    assert_eq!(failed, 0);
}

/// This thread runs only when nobody else wants to: it is preempted for long.
fn run_when_idle() {
    // SAFETY: all-zero is a valid parameter, and the one that this policy takes.
    let parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: `parameter` outlives the call. Where it is refused, the thread is as any other.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameter) };
}
