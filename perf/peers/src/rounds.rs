//! Peers in turns: in every round each has one short turn of each work, one after the other, so that what the
//! machine's disk and neighbours do from minute to minute meets all of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::{ENTRIES, Entry, Error};
use crate::sync_file_system;
use crate::turn::Turn;
use crate::workload::Workload;

/// What is to be run.
pub struct Plan {
    pub peers: Vec<&'static Entry>,
    pub workloads: Vec<Workload>,
    /// Length of a turn.
    pub time: Duration,
    pub rounds: u32,
}

/// What one peer did with one work.
#[derive(Default)]
pub struct Outcome {
    pub turns: Vec<Turn>,
    /// The first failure: after it the peer gets no more turns of this work.
    pub failed: Option<String>,
}

/// By the names of the work and the peer.
pub type Outcomes = BTreeMap<(&'static str, &'static str), Outcome>;

/// Before the line of a turn's process that has its result.
pub const RESULT: &str = "turn: ";

/// What a turn needs beside its time: opening, preparing, warming up, removing. Measured roughly.
const AROUND: Duration = Duration::from_millis(350);

impl Plan {
    /// Turns in all.
    pub fn turns(&self) -> usize {
        self.of_round(0).count() * self.rounds as usize
    }

    /// About how long that takes.
    pub fn estimate(&self) -> Duration {
        (self.time + AROUND) * self.turns() as u32
    }

    /// In each round another peer is first, so that none always comes behind the same one.
    fn of_round(&self, round: u32) -> impl Iterator<Item = (Workload, &'static Entry)> + '_ {
        self.workloads.iter().flat_map(move |work| {
            let able = |entry: &&&Entry| entry.kinds.contains(&work.kind);
            let mut peers: Vec<_> = self.peers.iter().filter(able).copied().collect();
            let first = round as usize % peers.len().max(1);
            peers.rotate_left(first);
            peers.into_iter().map(|entry| (*work, entry))
        })
    }

    /// Runs it in `dir`; `told` hears of each turn.
    pub fn run(
        &self,
        dir: &Path,
        mut told: impl FnMut(usize, &str, &str),
    ) -> Result<Outcomes, Error> {
        let mut outcomes = Outcomes::new();
        let mut done = 0;
        for round in 0..self.rounds {
            for (work, entry) in self.of_round(round) {
                told(done, work.name, entry.name);
                done += 1;
                let outcome = outcomes.entry((work.name, entry.name)).or_default();
                if outcome.failed.is_some() {
                    continue;
                }
                match self.turn(work, entry, dir) {
                    Ok(turn) => outcome.turns.push(turn),
                    Err(error) => outcome.failed = Some(error.to_string()),
                }
            }
        }
        Ok(outcomes)
    }

    /// One turn in a process of its own. Its directory is removed and the removal is on the device
    /// before the next one starts.
    fn turn(&self, work: Workload, entry: &Entry, dir: &Path) -> Result<Turn, Error> {
        let own = dir.join("turn");
        fs::create_dir(&own)?;
        let turn = Command::new(std::env::current_exe()?)
            .args(["--turn", entry.name, "--workload", work.name, "--seconds"])
            .arg(self.time.as_secs_f64().to_string())
            .arg("--dir")
            .arg(&own)
            .env("WALRUS_DATA_DIR", &own)
            .env("WALRUS_QUIET", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::from)
            .and_then(|child| result_of(child, self.time + Duration::from_secs(30)));
        fs::remove_dir_all(&own)?;
        sync_file_system(dir)?;
        turn
    }
}

/// Waits for a turn's process, but not for ever.
fn result_of(mut child: Child, patience: Duration) -> Result<Turn, Error> {
    let out = child.stdout.take().map(|out| thread::spawn(move || text(out)));
    let err = child.stderr.take().map(|err| thread::spawn(move || text(err)));
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    let read = |reader: Option<thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    let (out, err) = (read(out), read(err));
    let Some(status) = status else {
        return Err(format!("did not end within {} s", patience.as_secs()).into());
    };
    match out.lines().find_map(|line| line.strip_prefix(RESULT)) {
        Some(result) => Ok(serde_json::from_str(result)?),
        None => {
            let said = err.lines().rev().find(|line| !line.trim().is_empty());
            Err(format!("{status}: {}", said.unwrap_or("it said nothing")).into())
        }
    }
}

fn text(mut from: impl Read) -> String {
    let mut bytes = Vec::new();
    // What could not be read is missing from a message, or shows as a missing result.
    _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The peers with these names, or all.
pub fn peers(names: &[String]) -> Result<Vec<&'static Entry>, Error> {
    if names.is_empty() {
        return Ok(ENTRIES.to_vec());
    }
    let known = || ENTRIES.map(|entry| entry.name).join(", ");
    names
        .iter()
        .map(|name| {
            crate::peer::entry(name)
                .ok_or_else(|| format!("no peer {name:?}; there are {}", known()).into())
        })
        .collect()
}
