//! The log on a simulated disk, one step at a time: for tests that crash it at any I/O boundary, of
//! the log itself and of what is built on it (feature `sim`).
//!
//! A [`SimDisk`] is a machine with one directory on one disk, and survives its crashes. [`open`] gives
//! a [`Log`] on it without threads, and a [`Stepper`] that takes the turns of the log's writer and of
//! its preparer. With one thread, the seeds, and the stepper's own clock, a run is the same every time:
//! all that happens follows from the numbers that were given to [`SimDisk::new`] and [`open`].
//!
//! # How to test a state machine
//!
//! Keep what you were promised beside the log, and compare after every crash:
//!
//! ```
//! use std::time::Duration;
//! use uringlog::sim::{self, SimDisk, SimOptions, Turn};
//! use uringlog::{Lsn, Method, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = || Options::new().segment_bytes(64 << 10).rings(1).ring_bytes(4 << 10)
//!     .batch_bytes_max(64 << 10).large_bytes_max(64 << 10);
//! for seed in 0..100 {
//!     let disk = SimDisk::new(seed, SimOptions::default());
//!     let mut promised = 0;
//!     for life in 0..3 {
//!         // The power goes in the middle of some operation, of the opening too.
//!         disk.crash_after(20 + seed % 50);
//!         if let Ok((log, mut stepper)) = sim::open(&disk, options(), seed + life, 1 << 60) {
//!             // Recover your state: here, a counter.
//!             let mut count = 0;
//!             if let Ok(mut reader) = log.reader(Lsn::NONE) {
//!                 while let Ok(Some(record)) = reader.next_record() {
//!                     count += 1;
//!                     assert_eq!(record.payload(), format!("{count}").as_bytes());
//!                 }
//!             }
//!             assert!(disk.crashed() || count >= promised, "seed {seed}: promised and gone");
//!             while !disk.crashed() {
//!                 count += 1;
//!                 if log.try_append(format!("{count}").as_bytes()).is_err() {
//!                     count -= 1;
//!                 }
//!                 stepper.run(5);
//!                 promised = log.durable_lsn().get();
//!             }
//!         }
//!         disk.restart();
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - **When it crashes**: [`SimDisk::crash_after`] (power) and [`SimDisk::kill_after`] (the process
//!   alone) count crash points, of which every operation that changes something has two.
//!   [`SimDisk::steps`] of a run without crash tells how many there are: crash the same run at each of
//!   them. [`SimDisk::set_crash_seed`] gives the same crash another outcome.
//! - **What fails**: [`SimDisk::fail_at`] and [`SimDisk::fail_from`] for the N-th operation of a kind,
//!   and [`SimFaults`] for chance. [`SimDisk::set_space`] fills the disk.
//! - **What goes bad**: [`SimDisk::flip`], [`SimDisk::corrupt_sector`], [`SimDisk::spoil`],
//!   [`SimDisk::misdirect_write_at`]. Then an acknowledged record may be gone, but only with an error
//!   ([`OpenError::Damaged`], [`ReadError`]) that says so; the last batches before the end, which no
//!   later one vouches for, are the exception that FORMAT.md explains.
//! - **What is owed** after a crash: everything up to [`Log::durable_lsn`] as it stood before; after
//!   the death of the process alone, everything acknowledged; then perhaps more of what was appended,
//!   in order, without a gap; batches whole.
//! - **On failure** print the seed. [`SimOptions::trace`] keeps every operation: [`SimDisk::trace`].
//! - [`SimDisk::fork`] copies the machine: look at what recovery finds without disturbing the run.
//!
//! Use the calls that never wait (`try_append`, `try_reserve`, a ticket's `is_done`): nobody else would
//! end a wait. [`Log::close`] only asks: take turns until [`Turn::Ended`]. `examples/simulated.rs` is a
//! whole test of a replicated table.
//!
//! # What is simulated, and what is not
//!
//! The code of the log that runs is the one that runs on a real disk: rings, writer, preparer,
//! recovery, readers, trimming, truncation, cursors. Below it, the disk follows the fault model that
//! stands at the head of `src/disk/sim/mod.rs`, which is harsher than real ones. Several producers are
//! simulated as far as one thread can be several: reservations that are held open while others append,
//! from different cores ([`set_core`]). Real threads that race are not, nor are the wake-ups between
//! them: models under loom and stress tests look after those. Not simulated either: io_uring and the
//! system calls themselves, with the finishing of short writes there; the status page (a reader in
//! another process goes by what the batches vouch for: [`reader_elsewhere`]); a second process that
//! changes cursors at the same time.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::disk::Store;
pub use crate::disk::sim::{SimDisk, SimFaults, SimOp, SimOptions, SimStats};
use crate::error::OpenError;
#[cfg(doc)]
use crate::error::ReadError;
use crate::log::{Log, Parts};
use crate::lsn::Lsn;
use crate::options::Options;
use crate::preparer::{Preparer, Step};
use crate::read::Reader;
use crate::sync::{AtomicU64, Ordering};
use crate::truncate::TruncateError;
use crate::writer::{Next, Writer};

/// What a turn of the writer came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// There is more to do, now or when the clock has moved a little.
    Busy,
    /// Nothing to do until something is appended or prepared, or the clock has moved far.
    Idle,
    /// The log has ended: closed or poisoned.
    Ended,
}

/// Takes the turns of a log without threads.
pub struct Stepper {
    writer: Writer,
    preparer: Preparer,
    clock: Arc<AtomicU64>,
}

/// Opens the log on `disk`, in its current life, recovering it first. `seed` gives the log's random
/// numbers; `now_ns` starts its clocks.
///
/// # Errors
/// As [`Options::open`].
pub fn open(
    disk: &SimDisk,
    options: Options,
    seed: u64,
    now_ns: u64,
) -> Result<(Log, Stepper), OpenError> {
    options.validate()?;
    let clock = Arc::new(AtomicU64::new(now_ns));
    let random = AtomicU64::new(seed);
    let entropy = move || {
        // SplitMix64's increment; what matters is that no two are alike.
        Ok(random
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
            .wrapping_mul(0xBF58_476D_1CE4_E5B9))
    };
    let store = disk.store();
    let parts = Parts::assemble(store, &options, Clock::Manual(clock.clone()), Arc::new(entropy))?;
    let (log, writer, preparer) = parts.stepped(&options)?;
    Ok((log, Stepper { writer, preparer, clock }))
}

/// A truncation that goes on while turns are taken.
pub struct Truncation(crate::truncate::Truncation);

impl Truncation {
    /// What came of it: as [`Log::truncate_after`]. `None` while turns are to be taken.
    pub fn result(&self) -> Option<Result<Lsn, TruncateError>> {
        self.0.result()
    }
}

/// Asks for what [`Log::truncate_after`] does; the writer's turns do it.
pub fn truncate_after(log: &Log, lsn: Lsn) -> Truncation {
    Truncation(log.ask_to_truncate(lsn))
}

/// A reader of all that `durable` allows, on the disk's current life, without opening the log.
///
/// # Errors
/// As [`Log::reader`].
pub fn reader(disk: &SimDisk, from: Lsn, durable: Lsn) -> Result<Reader, crate::ReadError> {
    let store: Arc<dyn Store> = disk.store();
    Reader::new(store, Box::new(move || durable.get()), from)
}

/// A reader such as another process has ([`Reader::open_dir`]): it knows only the files, and takes
/// as durable what later batches vouch for. It may be there beside the writer.
///
/// # Errors
/// As [`Reader::open_dir`].
pub fn reader_elsewhere(disk: &SimDisk, from: Lsn) -> Result<Reader, crate::ReadError> {
    Reader::vouched(disk.store(), from)
}

/// Lets the appends of this thread go as if it ran on that core, which tells the ring that is tried
/// first: the same on every machine. `None`: the core that it runs on.
pub fn set_core(core: Option<usize>) {
    crate::cpu::SIMULATED.set(core);
}

impl Stepper {
    /// One turn of the writer; where the writer would block on the disk, it blocks on the simulated
    /// one, which finishes something at once, or lets some time pass.
    pub fn turn(&mut self) -> Turn {
        match self.writer.turn() {
            Next::Disk(time) => {
                self.writer.await_disk(time);
                Turn::Busy
            }
            Next::Linger => Turn::Busy,
            Next::Sleep(_) => Turn::Idle,
            Next::End => Turn::Ended,
        }
    }

    /// One step of the preparer. Returns whether it has more to do.
    pub fn prepare(&mut self) -> bool {
        matches!(self.preparer.step(), Step::Again(_))
    }

    /// Takes turns, and a step of the preparer with each, until there is nothing to do or as many are
    /// taken; the clocks move 10 µs with each. Returns what the last turn came to.
    pub fn run(&mut self, turns: u64) -> Turn {
        let mut last = Turn::Idle;
        for _ in 0..turns {
            last = self.turn();
            let more = self.prepare();
            self.advance(Duration::from_micros(10));
            if last == Turn::Ended || (last == Turn::Idle && !more) {
                break;
            }
        }
        last
    }

    /// Moves the log's clocks forward.
    pub fn advance(&mut self, time: Duration) {
        self.clock.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}
