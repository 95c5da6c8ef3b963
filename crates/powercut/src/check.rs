//! Images: each is a disk after a cut. Mended, mounted, recovered, compared with what was promised, and
//! gone on with.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use uringlog::Log;

use crate::history::{Fate, Kind, Timeline};
use crate::known::{Known, Seen};
use crate::notes::Note;
use crate::random::Random;
use crate::record::Recording;
use crate::sys::{Fs, LoopDevice, Mount};
use crate::workload::PROFILES;

/// Images and notes of failures that are kept.
const KEPT_MAX: usize = 4;

/// What came of many images.
#[derive(Default)]
pub struct Totals {
    pub images: usize,
    /// By kind of cut: images, failures.
    pub kinds: [(usize, usize); Kind::ALL.len()],
    pub kept: usize,
    pub torn: usize,
    pub dropped: usize,
    pub records: u64,
    pub acked: u64,
    pub with_rewritten: usize,
    pub with_torn_tail: usize,
    pub failures: Vec<String>,
}

impl Totals {
    pub fn add(&mut self, other: Totals) {
        self.images += other.images;
        for (kind, more) in self.kinds.iter_mut().zip(other.kinds) {
            kind.0 += more.0;
            kind.1 += more.1;
        }
        self.kept += other.kept;
        self.torn += other.torn;
        self.dropped += other.dropped;
        self.records += other.records;
        self.acked += other.acked;
        self.with_rewritten += other.with_rewritten;
        self.with_torn_tail += other.with_torn_tail;
        self.failures.extend(other.failures);
    }

    fn count(&mut self, kind: Kind, fate: Fate, result: Result<Seen, String>) {
        self.images += 1;
        let place = &mut self.kinds[kind as usize];
        place.0 += 1;
        self.kept += fate.kept;
        self.torn += fate.torn;
        self.dropped += fate.dropped;
        match result {
            Ok(seen) => {
                self.records += seen.records;
                self.acked += seen.acked;
                self.with_rewritten += usize::from(seen.rewritten > 0);
                self.with_torn_tail += usize::from(seen.is_torn);
            }
            Err(error) => {
                place.1 += 1;
                self.failures.push(error);
            }
        }
    }
}

/// What the checks work with.
pub struct Checker<'a> {
    pub fs: Fs,
    /// A directory in memory.
    pub work: &'a Path,
    pub jobs: usize,
    /// Where failed images go.
    pub keep: &'a Path,
    pub kept: &'a AtomicUsize,
}

impl Checker<'_> {
    /// Cuts a recording at `count` instants.
    pub fn check(&self, recording: &Recording, count: usize) -> Totals {
        let mut random = Random::new(&[recording.seed, 3]);
        let instants = recording.history.instants(count, &mut random);
        let totals = Mutex::new(Totals::default());
        std::thread::scope(|scope| {
            for job in 0..self.jobs {
                let (instants, totals) = (&instants, &totals);
                scope.spawn(move || {
                    let mine = self.check_every(recording, instants, job);
                    totals.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).add(mine);
                });
            }
        });
        totals.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Every `jobs`th of the instants.
    fn check_every(&self, recording: &Recording, instants: &[usize], job: usize) -> Totals {
        let history = &recording.history;
        let mut totals = Totals::default();
        let mut timeline = Timeline::new(history);
        let mut known = Known::new(PROFILES[recording.profile].retains());
        let mut at = 0;
        for (nth, &instant) in instants.iter().enumerate().skip(job).step_by(self.jobs) {
            timeline.advance(instant);
            // A log that was opened again and does not hold its promises fails all that follow.
            let learned = history.notes(at, instant).try_for_each(|note| known.learn(note));
            at = instant;
            let kind = Kind::ALL[nth % Kind::ALL.len()];
            let mut random = Random::new(&[recording.seed, 4, nth as u64]);
            let image = self.work.join(format!("image-{job}"));
            let mut fate = Fate::default();
            let check = || {
                learned.map_err(|error| format!("live: {error}"))?;
                let file = create(&image)?;
                fate = timeline.cut(kind, &mut random, &file).map_err(|error| error.to_string())?;
                self.check_image(&image, &known, recording, job)
            };
            let result = check().map_err(|error| {
                let kept = self.keep_failed(recording, &timeline, instant, kind, nth);
                format!(
                    "seed {}, {}, image {nth} at event {instant} of {}, {}: {error}{kept}",
                    recording.seed,
                    PROFILES[recording.profile].name,
                    history.events.len(),
                    kind.name()
                )
            });
            totals.count(kind, fate, result);
        }
        totals
    }

    fn check_image(
        &self,
        image: &Path,
        known: &Known,
        recording: &Recording,
        job: usize,
    ) -> Result<Seen, String> {
        let point = self.work.join(format!("mnt-{job}"));
        check_image(self.fs, image, &point, known, recording.profile, recording.seed)
    }

    /// Keeps the image as it was before it was touched, and the notes.
    fn keep_failed(
        &self,
        recording: &Recording,
        timeline: &Timeline<'_>,
        instant: usize,
        kind: Kind,
        nth: usize,
    ) -> String {
        if self.kept.fetch_add(1, Ordering::Relaxed) >= KEPT_MAX {
            return String::new();
        }
        let dir = self.keep.join(format!("{}-{}-{nth}", self.fs.name(), recording.seed));
        let keep = || -> std::io::Result<()> {
            std::fs::create_dir_all(&dir)?;
            let file = File::create(dir.join("image"))?;
            let mut random = Random::new(&[recording.seed, 4, nth as u64]);
            timeline.cut(kind, &mut random, &file)?;
            let mut notes =
                format!("{} {} {}\n", self.fs.name(), recording.profile, recording.seed);
            for note in recording.history.notes(0, instant) {
                notes += &format!("{note}\n");
            }
            std::fs::write(dir.join("notes"), notes)
        };
        match keep() {
            Ok(()) => format!("; again: scripts/powercut --replay {}", dir.display()),
            Err(error) => format!("; the image could not be kept: {error}"),
        }
    }
}

fn create(path: &Path) -> Result<File, String> {
    let _old = std::fs::remove_file(path);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    options.open(path).map_err(|error| format!("cannot make an image: {error}"))
}

/// Mends, mounts, recovers, compares, goes on.
pub fn check_image(
    fs: Fs,
    image: &Path,
    point: &Path,
    known: &Known,
    profile: usize,
    seed: u64,
) -> Result<Seen, String> {
    std::fs::create_dir_all(point).map_err(|error| error.to_string())?;
    fs.mend(image).map_err(|error| format!("file system: {error}"))?;
    let open = OpenOptions::new().read(true).write(true).open(image);
    let file = open.map_err(|error| error.to_string())?;
    let looped = LoopDevice::attach(&file, false).map_err(|error| format!("loop: {error}"))?;
    let mount = Mount::new(&looped.path, point, fs)
        .map_err(|error| format!("file system: mount: {error}"))?;
    drop(looped);
    let checked = check_dir(&point.join("log"), known, profile, seed);
    mount.unmount().map_err(|error| format!("unmount: {error}"))?;
    checked
}

fn check_dir(dir: &Path, known: &Known, profile: usize, seed: u64) -> Result<Seen, String> {
    let open = || {
        let options = PROFILES[profile].options(false);
        options.backend(uringlog::BackendChoice::Psync).open(dir)
    };
    let log = open().map_err(|error| format!("recovery: {error}"))?;
    let seen = known.check(&log, seed).map_err(|error| format!("{error} ({})", log.recovery()))?;
    let last = go_on(&log).map_err(|error| format!("going on: {error}"))?;
    log.close().map_err(|error| format!("close: {error}"))?;
    let log = open().map_err(|error| format!("opened again: {error}"))?;
    if log.last_lsn().get() != last {
        return Err(format!("{last} was the last record, now {}", log.last_lsn()));
    }
    Ok(seen)
}

/// Appends some more records; returns the last one's number.
fn go_on(log: &Log) -> Result<u64, String> {
    let mut last = log.last_lsn().get();
    for nth in 0..3_u8 {
        let ticket = log.append(&[nth; 700]).map_err(|error| error.to_string())?;
        let lsn = ticket.wait().map_err(|error| error.to_string())?;
        last += 1;
        if lsn.get() != last {
            return Err(format!("the next record is {lsn}, not {last}"));
        }
    }
    Ok(last)
}

/// Checks an image that was kept, once more.
pub fn replay(dir: &Path, work: &Path) -> Result<Seen, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    let text = std::fs::read_to_string(dir.join("notes")).map_err(failed)?;
    let (head, notes) = text.split_once('\n').ok_or("the notes are empty")?;
    let words: Vec<&str> = head.split(' ').collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let (Some(profile), Some(seed)) = (number(1), number(2)) else {
        return Err("the notes have no head".to_owned());
    };
    let profile = profile as usize % PROFILES.len();
    let fs = if words[0] == "xfs" { Fs::Xfs } else { Fs::Ext4 };
    let mut known = Known::new(PROFILES[profile].retains());
    for line in notes.lines() {
        let note = Note::parse(line).ok_or_else(|| format!("not a note: {line}"))?;
        known.learn(&note)?;
    }
    let image: PathBuf = work.join("image");
    std::fs::copy(dir.join("image"), &image).map_err(failed)?;
    check_image(fs, &image, &work.join("mnt"), &known, profile, seed)
}
