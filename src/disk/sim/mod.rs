//! A seeded, simulated disk: the log's code runs on it unchanged, and the same seed gives the same
//! run, byte for byte. It crashes at any I/O boundary and fails on command.
//!
//! # The fault model
//!
//! What the simulated machine promises is the least that a POSIX system on an honest drive promises.
//!
//! - **Writes** are visible when they are applied, and volatile until a sync of their file that was
//!   *submitted after the write's completion was delivered* succeeds. A sync covers nothing that
//!   completed later, and no other file.
//! - **A durable write** (FUA) makes its own bytes durable when it succeeds, and nothing else: no
//!   earlier write, and of the file's size only what the write itself added. With
//!   [`SimOptions::flush_all`] it is a plain write followed by a sync of its file.
//! - **Sizes** (set, allocated, or grown by a write) are volatile until a sync of the file.
//! - **Names** (created, renamed, removed) are volatile until the directory is synced, whatever is
//!   done to the file. A file whose name did not survive is gone.
//! - **At a crash** everything volatile is resolved by chance. Each pending write is kept, dropped,
//!   or torn at 512 byte sectors: a first or last part, all but one sector, one sector alone, any
//!   subset. A dropped sector shows what it held before. Writes that were submitted and not yet
//!   applied take part. Each pending size and each pending change of a name is kept or dropped on
//!   its own, in order; a rename or removal whose source is not there does nothing. Kept changes are
//!   applied in their order, so nothing older comes back over something that was made durable.
//! - **Crash points** ([`SimDisk::crash_after`]) are the boundaries of every operation that changes
//!   something: before it is applied, and after it was applied but before its result is delivered.
//!   From then on every handle of that life fails with "crashed" and changes nothing, the lock is
//!   free, and [`SimDisk::restart`] begins the next life.
//! - **A failed sync** leaves what it covered visible and marked clean: no later sync makes it
//!   durable, only writing it again does. A failed write has written nothing, a first part, or any
//!   of its sectors; no sync makes them durable either. Names are the exception: one whose sync failed
//!   is lost for as long as that process lives, and the next process's sync covers it. A file system
//!   with a journal refuses everything until it is mounted again, or keeps the change and writes it;
//!   one without a journal may do neither, and `RELIABILITY.md` says so.
//! - **Failing operations**: every kind ([`SimOp`]) fails on command, once or from the N-th on, with
//!   any errno ([`SimDisk::fail_at`], [`SimDisk::fail_from`]), or by chance ([`SimFaults`]). One that
//!   fails did nothing, other than writes and syncs, as above. A short write is a write that failed
//!   after its first part: finishing it is the business of the code below. A limit on the space
//!   ([`SimDisk::set_space`]) fails with ENOSPC what would go beyond.
//! - **Late completions**: operations of a queue are applied and completed in any order, in parts, at
//!   any later time. Some are withheld for long ([`SimFaults::delays`]), while others, the
//!   preparer, readers and producers go on; whoever waits for one alone outlasts it.
//! - **Misdirected writes** ([`SimDisk::misdirect_write_at`]) succeed, and land on other whole blocks
//!   of the same file or of another one, durable at once; where they should have gone, all is as it
//!   was. That is also what a lost write is.
//! - **Bits flip, sectors turn to noise** at rest, on command at any place, or by chance in what was just
//!   written; no read tells.
//! - **Latent errors**: a spoiled sector fails every read with EIO until it is written again.
//! - **Misuse**: reads and writes that are not aligned to the block, in offset, length or address,
//!   and operations beyond the queue's depth, fail with EINVAL.
//!
//! Not modelled: time; bytes that change while a write is in flight (they are copied at submission);
//! a drive that lies about a sync, other than by misdirecting a write; a read that is right the
//! second time; clocks that jump; several processes at once.

mod fate;
mod faults;
mod image;
mod inode;
mod machine;
mod queue;
mod rng;
mod stats;
mod store;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Store;
pub use faults::{SimFaults, SimOp};
use machine::Machine;
use rng::Rng;
pub use stats::SimStats;

/// What tears: the smallest part of a write that is kept or dropped whole.
const SECTOR_BYTES: u64 = 512;

/// A simulated machine with one directory on one disk. It survives its crashes. Clones share it.
///
/// Usable from several threads; deterministic only from one, or where the caller orders them.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Machine>>);

/// How a [`SimDisk`] behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimOptions {
    /// The block in bytes, which reads and writes are aligned to: 512 or 4096. Default 4096.
    pub block_bytes: usize,
    /// Most operations under way at once in a queue, unless the log's options say. Default 1.
    pub depth: usize,
    /// Whether a durable write is followed by a sync of its file, instead of being durable alone.
    /// Default: no.
    pub flush_all: bool,
    /// Whether to keep a line for every operation: see [`SimDisk::trace`]. Default: no.
    pub trace: bool,
    /// How often things go wrong by themselves. Default: never.
    pub faults: SimFaults,
}

impl Default for SimOptions {
    fn default() -> Self {
        SimOptions {
            block_bytes: 4096,
            depth: 1,
            flush_all: false,
            trace: false,
            faults: SimFaults::default(),
        }
    }
}

impl SimDisk {
    /// A machine with an empty directory, running.
    pub fn new(seed: u64, options: SimOptions) -> Self {
        SimDisk(Arc::new(Mutex::new(Machine::new(seed, options))))
    }

    /// The directory, for the current life.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::new(store::SimStore::new(self))
    }

    /// The power goes. Handles of this life are dead; what was not durable is resolved by chance.
    pub fn crash(&self) {
        self.machine().crash();
    }

    /// Crashes at the `steps`-th crash point from now; 1 is the next one. 0 takes it back.
    pub fn crash_after(&self, steps: u64) {
        let mut machine = self.machine();
        machine.crash_at = (steps > 0).then(|| machine.steps + steps);
    }

    /// Lets the process die, as [`kill`](Self::kill) does, at the `steps`-th crash point from now.
    /// 0 takes it back.
    pub fn kill_after(&self, steps: u64) {
        let mut machine = self.machine();
        machine.kill_at = (steps > 0).then(|| machine.steps + steps);
    }

    /// Gives the crashes to come a chance of their own: the same run may so be cut at the same
    /// point with many outcomes.
    pub fn set_crash_seed(&self, seed: u64) {
        self.machine().crash_rng = Rng::new(seed);
    }

    /// The process dies (kill -9) and the machine runs on: handles are dead and the lock is free,
    /// nothing volatile is lost, each write in flight is applied or never was.
    pub fn kill(&self) {
        self.machine().kill();
    }

    /// Begins the next life, with no fault armed. Crashes first where the machine is running.
    pub fn restart(&self) {
        let mut machine = self.machine();
        if machine.running {
            machine.crash();
        }
        machine.restart();
    }

    /// A copy of the machine as it is, whose process was killed and restarted, and which counts
    /// from zero. The two share nothing.
    pub fn fork(&self, seed: u64) -> SimDisk {
        let mut machine = self.machine().clone();
        machine.rng = Rng::new(seed);
        machine.crash_rng = Rng::new(!seed);
        machine.stats = SimStats::default();
        if machine.running {
            machine.kill();
        }
        machine.restart();
        SimDisk(Arc::new(Mutex::new(machine)))
    }

    /// Whether the machine is down: it crashed, or its process was killed, and was not restarted.
    pub fn crashed(&self) -> bool {
        !self.machine().running
    }

    /// Crash points passed since the machine was made.
    pub fn steps(&self) -> u64 {
        self.machine().steps
    }

    /// What happened so far.
    pub fn stats(&self) -> SimStats {
        self.machine().stats.clone()
    }

    /// The operations so far, a line each, where [`SimOptions::trace`] asks for them.
    pub fn trace(&self) -> Vec<String> {
        self.machine().trace.clone()
    }

    /// Limits the sizes of all files together: what would go beyond fails with ENOSPC. `None`
    /// lifts the limit. Stays over a crash.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.machine().space_bytes = bytes;
    }

    /// The bytes that the files take of the space.
    pub fn used_bytes(&self) -> u64 {
        self.machine().used_bytes()
    }

    /// The names in the directory, sorted.
    pub fn files(&self) -> Vec<String> {
        self.machine().names.keys().cloned().collect()
    }

    /// What reads of a file see, without its faults.
    pub fn read_raw(&self, name: &str) -> Option<Vec<u8>> {
        self.machine().read_raw(name)
    }

    /// Puts bytes into a file as if they had always been there, durable. The file is made, or made
    /// longer, as needed.
    pub fn write_raw(&self, name: &str, offset: u64, bytes: &[u8]) {
        self.machine().write_raw(name, offset, bytes);
    }

    /// Removes a file for good. Returns whether it was there.
    pub fn remove_raw(&self, name: &str) -> bool {
        self.machine().remove_raw(name)
    }

    /// Flips the lowest bit of a byte at rest. Returns whether the file has that byte.
    pub fn flip(&self, name: &str, offset: u64) -> bool {
        let mut machine = self.machine();
        let flipped = machine.alter_sector(name, offset, |sector, at| sector[at] ^= 1);
        machine.stats.flips += u64::from(flipped);
        flipped
    }

    /// Fills the sector around `offset` with noise. Returns whether the file has that byte.
    pub fn corrupt_sector(&self, name: &str, offset: u64) -> bool {
        let mut machine = self.machine();
        let mut noise = Rng::new(machine.rng.next());
        let corrupted = machine.alter_sector(name, offset, |sector, _| {
            sector.iter_mut().for_each(|byte| *byte = noise.next() as u8);
        });
        machine.stats.corrupted_sectors += u64::from(corrupted);
        corrupted
    }

    /// Spoils the sectors that hold these bytes: reads fail with EIO until they are written again.
    /// Returns whether the file is there.
    pub fn spoil(&self, name: &str, offset: u64, len: u64) -> bool {
        let mut machine = self.machine();
        let is_there = machine.spoil(name, offset..offset + len);
        let spoiled = sectors(&(offset..offset + len)).count() as u64;
        machine.stats.spoiled_sectors += if is_there { spoiled } else { 0 };
        is_there
    }

    /// A panic elsewhere does not make the machine's state wrong: each operation is applied whole.
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.machine();
        f.debug_struct("SimDisk")
            .field("life", &machine.life)
            .field("running", &machine.running)
            .field("steps", &machine.steps)
            .field("files", &machine.names.keys())
            .finish_non_exhaustive()
    }
}

/// The sectors that a range of bytes touches.
fn sectors(range: &Range<u64>) -> Range<u64> {
    range.start / SECTOR_BYTES..range.end.div_ceil(SECTOR_BYTES)
}
