//! A durable, totally ordered, append-only log: many threads append, one writer thread gathers what
//! they append into O_DIRECT writes, syncs each, and acknowledges what survived the sync.
//!
//! # The path of a record, in the order of the files
//!
//! 1. `append.rs`: [`Log::append`] **claims** room in a ring of this core (`rings.rs`, `ring.rs`), copies
//!    the payload in, takes the next number of the one number line (`numbers.rs`) and **publishes** the
//!    slot. The [`Ticket`] (`ticket.rs`) knows the number at once. If the writer sleeps, it is
//!    woken (`doorbell.rs`).
//! 2. `drain.rs`: the writer brings what is published in ring order into number order.
//! 3. `batch.rs`, `frame.rs`: it gathers records into a **batch**, with checksums over every byte.
//! 4. `writer.rs`, `space.rs`: it gives the batch its place in a prepared segment and hands it to the
//!    disk: **write** and **sync** (`disk/uring.rs`, `disk/psync.rs`). Segments are prepared in the
//!    background (`preparer.rs`, `segment.rs`).
//! 5. `commit.rs`: what is synced is **durable**; the watermark moves and the waiters are woken: the
//!    record is **acknowledged**.
//! 6. `read.rs`, `scan.rs`: a [`Reader`] returns durable records, left to right. After a crash
//!    `recovery.rs` finds the durable end, and tells a torn tail from damage.
//! 7. `follow.rs`, `tail.rs`: a [`Follower`] waits at the end for more, from memory in this process; in
//!    others the status page (`status.rs`) tells it what is durable, and wakes it.
//!
//! # Example
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir_in(".")?;
//! # let dir = dir.path().join("orders");
//! use uringlog::{Log, Lsn, Options};
//!
//! # let options = Options::new().segment_bytes(1 << 20).buffered(true);
//! # let log = options.open(&dir)?;
//! # #[cfg(any())]
//! let log = Log::open(&dir)?;
//! let ticket = log.append(b"buy 100 at 17")?; // has its number at once
//! let lsn = ticket.wait()?; // durable now
//! assert_eq!(lsn, Lsn::FIRST);
//!
//! let mut reader = log.reader(Lsn::FIRST)?;
//! while let Some(record) = reader.next_record()? {
//!     println!("{}: {} bytes", record.lsn(), record.payload().len());
//! }
//! log.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - If `append` of A returned before `append` of B was called, on any threads, A's number is smaller.
//! - A ticket that was waited for is durable: its record survived a sync on the device, unless
//!   [`Durability::Written`] was asked for.
//! - What survives a crash is a prefix: every acknowledged record, then possibly some that were not
//!   acknowledged, in order, then nothing.
//! - The first failed write or sync ends writing. Nothing is retried after it, and nothing that was
//!   not durable is ever reported so.
//! - Damage to acknowledged data is an error that names segment, offset and the numbers lost. A torn
//!   tail that was never acknowledged is cut, and reported ([`RecoveryReport`]).
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("uringlog is for Linux: it needs futexes, O_DIRECT and preferably io_uring");

#[cfg(not(target_pointer_width = "64"))]
compile_error!("uringlog needs a 64-bit target: sizes on disk are used as sizes in memory");

mod append;
mod batch;
mod catalog;
mod clock;
mod commit;
mod cpu;
mod cursor;
mod disk;
mod doorbell;
mod drain;
mod dump;
mod error;
mod extent;
mod follow;
mod footer;
mod fork;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod index;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod log;
mod lsn;
mod mark;
mod mem;
#[cfg(all(test, uringlog_loom))]
mod models;
mod numbers;
mod options;
#[cfg(all(test, not(uringlog_loom)))]
mod panics;
mod preparer;
mod probes;
mod read;
mod recovery;
mod repair;
mod retention;
mod ring;
mod rings;
mod scan;
mod segment;
mod shared;
#[cfg(feature = "sim")]
pub mod sim;
mod sleepers;
mod slots;
mod space;
mod spares;
mod stats;
mod status;
mod sync;
mod tail;
#[cfg(any(test, feature = "fuzzing", feature = "internals"))]
#[cfg_attr(not(test), allow(dead_code))]
mod testing;
mod ticket;
mod timing;
mod truncate;
mod verify;
mod waiters;
mod writer;

pub use append::Reservation;
pub use cursor::{Cursor, CursorError, CursorInfo, cursors, remove_cursor};
pub use disk::{Backend, BackendInfo, DeviceFacts, Method, MethodProbe};
pub use dump::{DumpOptions, DumpPiece, DumpValue, dump};
pub use error::{
    AppendError, CloseError, Damage, IoError, LockHolder, OpenError, Poison, ReadError, WaitError,
};
pub use follow::{FollowError, Follower};
pub use frame::LogId;
pub use log::{CloseReport, Log};
pub use lsn::Lsn;
pub use options::{BackendChoice, Durability, Idle, Options};
pub use read::{BackReader, Reader, Record};
pub use recovery::{
    Inspection, RecoveryReport, SegmentInfo, SegmentState, TornTail, inspect_dir as inspect,
};
pub use repair::{Keep, RepairError, RepairOptions, RepairReport, RepairStep, plan_repair, repair};
pub use retention::{SpaceReport, TrimError};
pub use stats::{Housekeeping, Job, Stall, Stats};
pub use ticket::{OwnedTicket, Ticket};
pub use timing::BatchTiming;
pub use truncate::TruncateError;
pub use verify::{Finding, FindingKind, Lost, VerifyReport, salvage, verify};
