//! USDT probes: one at every stage of a record's life, for `perf/stages` and for any tracer that knows
//! SystemTap's notes (bpftrace, perf, gdb, bcc). Provider: `uringlog`.
//!
//! Without the feature `usdt`, [`stage!`] expands to nothing: not even its arguments are evaluated. With
//! it, a probe is one `nop` until a tracer attaches, and its arguments stand in registers.
//!
//! | probe | where | arguments |
//! |---|---|---|
//! | `append` | producer: an append begins | bytes |
//! | `claim` | producer: it has room | bytes |
//! | `publish` | producer: it has its number, and the writer can see it | first number, count, bytes |
//! | `batch` | writer: moved into a batch | first number, count, bytes |
//! | `write` | writer: the batch goes to the disk | first number, count, bytes on disk, operation |
//! | `sync` | disk: a sync goes to the kernel | operation, how ([`WITH_WRITE`], [`IN_RING`], [`BLOCKING`]) |
//! | `complete` | writer: the disk has finished an operation | operation, whether it failed |
//! | `durable` | writer: the watermark of synced records moves | last number, operation |
//! | `acknowledge` | writer: the watermark of acknowledged records moves | last number, operation |
//! | `wake` | writer: it wakes one waiter | the number waited for |
//! | `resume` | waiter: it runs again, and its wait is over | the number waited for |
//!
//! `append`, `claim` and `publish` come from one thread, so the thread ties them together; numbers tie
//! `publish` to `batch` and `wake` to `resume`; operations, counted by each writer, tie `write`, `sync`,
//! `complete` and `durable` together. An append may end without `publish`: refused, or given up. The writer
//! may reach a slot before its producer reaches the probe behind its publication: `batch` may come before
//! `publish`.

/// A sync that is part of the write: RWF_DSYNC.
#[cfg(feature = "usdt")]
pub(crate) const WITH_WRITE: u32 = 0;
/// A sync that the ring does: an FSYNC of its own, or one linked to the write.
#[cfg(feature = "usdt")]
pub(crate) const IN_RING: u32 = 1;
/// fdatasync(2), called by the writer.
#[cfg(feature = "usdt")]
pub(crate) const BLOCKING: u32 = 2;

/// Fires a probe. One arm for each, so that its arguments are checked.
#[cfg(feature = "usdt")]
macro_rules! stage {
    (append, $bytes:expr) => {
        ::probe::probe!(uringlog, append, $bytes)
    };
    (claim, $bytes:expr) => {
        ::probe::probe!(uringlog, claim, $bytes)
    };
    (publish, $first:expr, $count:expr, $bytes:expr) => {
        ::probe::probe!(uringlog, publish, $first, $count, $bytes)
    };
    (batch, $first:expr, $count:expr, $bytes:expr) => {
        ::probe::probe!(uringlog, batch, $first, $count, $bytes)
    };
    (write, $first:expr, $count:expr, $bytes:expr, $operation:expr) => {
        ::probe::probe!(uringlog, write, $first, $count, $bytes, $operation)
    };
    (sync, $operation:expr, $how:expr) => {
        ::probe::probe!(uringlog, sync, $operation, $how)
    };
    (complete, $operation:expr, $failed:expr) => {
        ::probe::probe!(uringlog, complete, $operation, $failed)
    };
    (durable, $last:expr, $operation:expr) => {
        ::probe::probe!(uringlog, durable, $last, $operation)
    };
    (acknowledge, $last:expr, $operation:expr) => {
        ::probe::probe!(uringlog, acknowledge, $last, $operation)
    };
    (wake, $lsn:expr) => {
        ::probe::probe!(uringlog, wake, $lsn)
    };
    (resume, $lsn:expr) => {
        ::probe::probe!(uringlog, resume, $lsn)
    };
}

#[cfg(not(feature = "usdt"))]
macro_rules! stage {
    ($($anything:tt)*) => {{}};
}

pub(crate) use stage;
