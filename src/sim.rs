//! The log on a simulated disk, one step at a time: for tests that crash it at any I/O boundary.
//!
//! [`open`] gives a [`Log`] without threads and a [`Stepper`] that takes the turns of its writer and
//! of its preparer. With one thread, a seed, and the stepper's own clock, a run is the same every time.
//! Use the calls that never wait (`try_append`, `try_reserve`, `is_done`): nobody else would end a wait.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::disk::Store;
pub use crate::disk::sim::{SimDisk, SimOptions, SimStats};
use crate::error::OpenError;
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

impl Stepper {
    /// One turn of the writer; where the writer would block on the disk, it blocks on the simulated
    /// one, which finishes something at once.
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

    /// Moves the log's clocks forward.
    pub fn advance(&mut self, time: Duration) {
        self.clock.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}
