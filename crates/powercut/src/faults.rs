//! Device faults under a log at work: failing writes, failing flushes, a slow device, a device that is
//! pulled. What is asked: a typed error, no call that hangs, nothing acknowledged lost.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::check::check_image;
use crate::device::{Event, Fault, Recorder};
use crate::history::{History, Kind, Timeline};
use crate::known::Known;
use crate::notes::Note;
use crate::random::Random;
use crate::record::{Ended, Running, Stage};
use crate::sys::Fs;
use crate::workload::PROFILES;

/// How long a life goes on by itself, and how long it may take to end when the device is bad.
const LIFE_MS: &str = "2500";
const END_MAX: Duration = Duration::from_secs(90);
/// Of what a run that went well says, so much is printed.
const WORDS_MAX: usize = 200;
/// Noted when the fault begins.
const ARMED: &str = "fault";
const FOREVER: u32 = u32::MAX;
/// One of each backend, and the two methods whose writes and syncs are apart.
const WAYS: [usize; 3] = [0, 1, 2];

struct Case {
    name: &'static str,
    /// None: it is pulled.
    fault: Option<Fault>,
    /// Whether writing must end by it.
    ends: Ends,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Must,
    May,
    MustNot,
}

fn cases() -> Vec<Case> {
    let write = |errno, after, times| Some(Fault::Write { errno, after, times });
    let flush = |errno, after, times| Some(Fault::Flush { errno, after, times });
    let slow = Duration::from_millis;
    let case = |name, fault, ends| Case { name, fault, ends };
    vec![
        case("EIO at one write", write(libc::EIO, 5, 1), Ends::May),
        case("EIO at every write", write(libc::EIO, 3, FOREVER), Ends::Must),
        case("ENOSPC at one write", write(libc::ENOSPC, 4, 1), Ends::May),
        case("ENOSPC at every write", write(libc::ENOSPC, 0, FOREVER), Ends::Must),
        case("EIO at one flush", flush(libc::EIO, 2, 1), Ends::May),
        case("EIO at every flush", flush(libc::EIO, 1, FOREVER), Ends::Must),
        case("ENOSPC at one flush", flush(libc::ENOSPC, 1, 1), Ends::May),
        case("ENOSPC at every flush", flush(libc::ENOSPC, 0, FOREVER), Ends::Must),
        case("200 ms for each write", Some(Fault::SlowWrites(slow(200))), Ends::MustNot),
        case("300 ms for each flush", Some(Fault::SlowFlushes(slow(300))), Ends::MustNot),
        case("the disk is pulled", None, Ends::Must),
    ]
}

/// Runs every fault with every way to the disk; false where one went wrong.
pub fn run(fs: Fs, seed: u64, only: &str, work: &Path, memory: &Path) -> Result<bool, String> {
    let started = Instant::now();
    let (mut runs, mut wrong, mut poisoned) = (0, 0, 0);
    for (nth, case) in cases().iter().enumerate().filter(|(_, case)| case.name.contains(only)) {
        for way in WAYS {
            let seed = Random::new(&[seed, nth as u64, way as u64]).below(1 << 32);
            let dir = work.join(format!("{nth}-{way}"));
            runs += 1;
            let verdict = run_case(fs, case, way, seed, &dir, memory);
            let (mark, mut words) = match verdict {
                Ok(outcome) => {
                    poisoned += usize::from(outcome.is_poisoned);
                    ("ok    ", outcome.words)
                }
                Err(error) => {
                    wrong += 1;
                    ("FAILED", error)
                }
            };
            let way = PROFILES[way].name;
            if mark != "FAILED" {
                words.truncate(words.floor_char_boundary(WORDS_MAX));
            }
            println!("  {mark} {} {:<22} {way:<34} {words}", fs.name(), case.name);
        }
    }
    println!(
        "{}: {runs} device faults in {:.0} s: writing ended in {poisoned}, {wrong} failures",
        fs.name(),
        started.elapsed().as_secs_f64()
    );
    Ok(wrong == 0)
}

struct Outcome {
    is_poisoned: bool,
    words: String,
}

fn run_case(
    fs: Fs,
    case: &Case,
    way: usize,
    seed: u64,
    work: &Path,
    memory: &Path,
) -> Result<Outcome, String> {
    let mut stage = Stage::set(fs, seed, work)?;
    let recorder = stage.device.recorder.clone();
    let running = Running::start(&recorder, &stage.dir, seed, 1, way, &["--ms", LIFE_MS])?;
    wait_for_acks(&recorder)?;
    recorder.note(Note::Said(ARMED.to_owned()));
    match case.fault {
        Some(fault) => recorder.set_fault(Some(fault)),
        None => stage.device.pull(),
    }
    let ended = running.wait(END_MAX)?;
    let failed = recorder.failed();
    recorder.set_fault(None);
    // It may not come down any more: then it is let go.
    drop(stage.mount);
    let history = History::new(stage.start, recorder.take());
    drop(stage.device);
    let poison = judge(case, &ended, failed)?;
    let acked = check_images(fs, &history, way, seed, memory)?;
    let words = format!(
        "{acked} acknowledged and there; {}",
        match (&poison, ended.said.iter().find(is_trouble)) {
            (Some(poison), _) => poison.clone(),
            (None, Some(trouble)) => format!("writing went on; {trouble}"),
            (None, None) => "writing went on".to_owned(),
        }
    );
    Ok(Outcome { is_poisoned: poison.is_some(), words })
}

fn wait_for_acks(recorder: &Recorder) -> Result<(), String> {
    let until = Instant::now() + END_MAX;
    while recorder.acked() < 30 {
        if Instant::now() > until {
            return Err("nothing was acknowledged before the fault".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Whether the process behaved; what ended writing, if anything did.
fn judge(case: &Case, ended: &Ended, failed: u64) -> Result<Option<String>, String> {
    let said = ended.said.join("; ");
    if !ended.in_time {
        return Err(format!("it hangs; it had said: {said}"));
    }
    if !ended.is_well {
        return Err(format!("it died; it had said: {said}"));
    }
    if let Some(wrong) = ended.said.iter().find(|words| words.starts_with("violation")) {
        return Err(wrong.clone());
    }
    let is_failing = matches!(case.fault, Some(Fault::Write { .. } | Fault::Flush { .. }));
    if is_failing && failed == 0 {
        return Err("the fault met nobody".to_owned());
    }
    let poison = ended.said.iter().find_map(|words| words.strip_prefix("poison "));
    match (case.ends, poison) {
        (Ends::Must, None) => Err(format!("writing goes on; it had said: {said}")),
        (Ends::MustNot, _) => match ended.said.iter().find(is_trouble) {
            Some(words) => Err(format!("a slow device is an error: {words}")),
            None => Ok(None),
        },
        (_, poison) => Ok(poison.map(str::to_owned)),
    }
}

/// Whether the process told of an error.
fn is_trouble(words: &&String) -> bool {
    ["error", "poison", "reader", "keeper"].iter().any(|what| words.starts_with(what))
}

/// What the device holds in the end; and what a power cut at some moments from the fault on leaves, as
/// soon as something was promised: a promise that rests on a flush that failed is found so.
fn check_images(
    fs: Fs,
    history: &History,
    way: usize,
    seed: u64,
    memory: &Path,
) -> Result<u64, String> {
    let mut timeline = Timeline::new(history);
    let mut known = Known::new(PROFILES[way].retains());
    let (image, point) = (memory.join("image"), memory.join("mnt"));
    let (mut at, mut acked) = (0, 0);
    for (nth, instant) in instants(history, seed).into_iter().enumerate() {
        timeline.advance(instant);
        history.notes(at, instant).try_for_each(|note| known.learn(note))?;
        at = instant;
        let kind = [Kind::None, Kind::Torn, Kind::All, Kind::Some][nth % 4];
        let _old = std::fs::remove_file(&image);
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&image)
            .map_err(|error| error.to_string())?;
        let mut random = Random::new(&[seed, 5, nth as u64]);
        timeline.cut(kind, &mut random, &file).map_err(|error| error.to_string())?;
        let seen = check_image(fs, &image, &point, &known, way, seed).map_err(|error| {
            let all = history.events.len();
            format!("cut at event {instant} of {all}, {}: {error}", kind.name())
        })?;
        acked = seen.acked;
    }
    Ok(acked)
}

/// The first promises behind the fault, some later ones, and the end four times.
fn instants(history: &History, seed: u64) -> Vec<usize> {
    let is_fault =
        |event: &Event| matches!(event, Event::Noted(Note::Said(words)) if words == ARMED);
    let is_promise =
        |event: &Event| matches!(event, Event::Noted(Note::Acked { .. } | Note::Done(_)));
    let all = history.events.len();
    let fault = history.events.iter().position(is_fault).unwrap_or(all);
    let promises: Vec<usize> =
        (fault..all).filter(|&at| is_promise(&history.events[at])).map(|at| at + 1).collect();
    let mut random = Random::new(&[seed, 6]);
    let near = promises.len().min(24) as u64;
    let mut instants = vec![all; 4];
    for nth in 0..if promises.is_empty() { 0 } else { 8 } {
        let end = if nth < 6 { near } else { promises.len() as u64 };
        instants.push(promises[random.below(end) as usize]);
    }
    instants.sort_unstable();
    instants
}
