//! One recording: a fresh file system on the device, and lives of the workload on it, ended by a kill or
//! by a close. The next life opens what the last one left.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::device::{Device, Recorder};
use crate::history::History;
use crate::notes::Note;
use crate::random::Random;
use crate::sys::{Fs, LoopDevice, Mount, open_direct};
use crate::workload::PROFILES;

/// No life takes longer than this.
const LIFE_MAX: Duration = Duration::from_secs(60);

/// The file system on the recording device, mounted.
pub struct Stage {
    pub device: Device,
    pub mount: Mount,
    pub start: Vec<u8>,
    pub dir: PathBuf,
}

impl Stage {
    /// Makes the file system; the recording starts right before it is mounted.
    pub fn set(fs: Fs, seed: u64, work: &Path) -> Result<Stage, String> {
        let failed = |what: &'static str| move |error| format!("cannot {what}: {error}");
        let (fuse, point) = (work.join("fuse"), work.join("mnt"));
        for dir in [&fuse, &point] {
            std::fs::create_dir_all(dir).map_err(failed("make a directory"))?;
        }
        let recorder = Recorder::new(fs.bytes(), seed);
        let device = Device::serve(recorder.clone(), &fuse).map_err(failed("mount FUSE"))?;
        let file = open_direct(&device.file()).map_err(failed("open the device"))?;
        let looped = LoopDevice::attach(&file, true).map_err(failed("attach a loop device"))?;
        drop(file);
        fs.make(&looped.path)?;
        let start = recorder.start();
        let mount = Mount::new(&looped.path, &point, fs).map_err(failed("mount the device"))?;
        Ok(Stage { device, mount, start, dir: point.join("log") })
    }
}

/// A running workload.
pub struct Running {
    child: Child,
    notes: JoinHandle<Vec<String>>,
}

/// What a life said for people, and whether it ended by itself and well.
pub struct Ended {
    pub said: Vec<String>,
    pub is_well: bool,
    pub in_time: bool,
}

impl Running {
    pub fn start(
        recorder: &Arc<Recorder>,
        dir: &Path,
        seed: u64,
        life: u32,
        profile: usize,
        more: &[&str],
    ) -> Result<Running, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut child = Command::new(program)
            .arg("workload")
            .arg("--dir")
            .arg(dir)
            .args(["--seed", &seed.to_string(), "--life", &life.to_string()])
            .args(["--profile", &profile.to_string()])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start the workload: {error}"))?;
        let (lines, mut reply) = (child.stdout.take(), child.stdin.take());
        let recorder = recorder.clone();
        let notes = std::thread::spawn(move || {
            let mut said = Vec::new();
            let Some(lines) = lines else { return said };
            let (mut lines, mut line) = (BufReader::new(lines), String::new());
            while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                // A line that the kill cut off says nothing.
                let note = line.strip_suffix('\n').and_then(Note::parse);
                line.clear();
                let Some(note) = note else { continue };
                let waits = matches!(note, Note::Begins(_) | Note::Opened(_));
                if let Note::Said(words) = &note {
                    said.push(words.clone());
                }
                recorder.note(note);
                if let (true, Some(reply)) = (waits, &mut reply) {
                    let _gone = reply.write_all(b"\n");
                }
            }
            said
        });
        Ok(Running { child, notes })
    }

    pub fn kill(&mut self) {
        let _ended = self.child.kill();
    }

    /// Waits for its end, for so long; kills it then.
    pub fn wait(mut self, time: Duration) -> Result<Ended, String> {
        let until = Instant::now() + time;
        let mut in_time = true;
        let status = loop {
            match self.child.try_wait().map_err(|error| error.to_string())? {
                Some(status) => break Some(status),
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                None if in_time => {
                    in_time = false;
                    self.kill();
                }
                None if Instant::now() < until + LIFE_MAX => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                // Not even a kill ends it: it is stuck in the kernel.
                None => break None,
            }
        };
        let Some(status) = status else {
            return Ok(Ended { said: Vec::new(), is_well: false, in_time: false });
        };
        let said = self.notes.join().map_err(|_| "the thread that notes panicked".to_owned())?;
        Ok(Ended { said, is_well: status.success(), in_time })
    }
}

/// A recording, with what is said about it.
pub struct Recording {
    pub history: History,
    pub profile: usize,
    pub seed: u64,
    pub lives: u32,
    pub kills: u32,
    pub recycled: u64,
    pub said: Vec<String>,
}

/// Records some lives.
///
/// # Errors
/// It could not be done here, or a life ended badly.
pub fn record(fs: Fs, profile: usize, seed: u64, work: &Path) -> Result<Recording, String> {
    let mut random = Random::new(&[seed, 2]);
    let stage = Stage::set(fs, seed, work)?;
    let recorder = stage.device.recorder.clone();
    let lives = 3 + random.below(3) as u32;
    let mut recording = Recording {
        history: History::new(Vec::new(), Vec::new()),
        profile,
        seed,
        lives,
        kills: 0,
        recycled: 0,
        said: Vec::new(),
    };
    for life in 1..=lives {
        let ms = 500 + random.below(900);
        let is_kill = life == lives || !random.once_in(3);
        let ends = if is_kill { 60_000 } else { ms };
        let ends = ends.to_string();
        let mut running =
            Running::start(&recorder, &stage.dir, seed, life, profile, &["--ms", &ends])?;
        if is_kill {
            // Sometimes while it is still opening.
            let ms = if random.once_in(4) { random.below(60) } else { ms };
            std::thread::sleep(Duration::from_millis(ms));
            running.kill();
            recording.kills += 1;
        }
        let ended = running.wait(LIFE_MAX)?;
        for words in ended.said {
            let count = words.strip_prefix("recycled ").and_then(|count| count.parse::<u64>().ok());
            match count {
                Some(count) => recording.recycled += count,
                None if words == "closed" => {}
                None => recording.said.push(format!("life {life}: {words}")),
            }
        }
        if !ended.in_time || (!is_kill && !ended.is_well) {
            return Err(format!(
                "life {life} of profile {profile} ({}) ended badly: {}",
                PROFILES[profile].name,
                recording.said.join("; ")
            ));
        }
    }
    stage.mount.unmount().map_err(|error| format!("cannot unmount: {error}"))?;
    let events = recorder.take();
    recording.history = History::new(stage.start, events);
    Ok(recording)
}
