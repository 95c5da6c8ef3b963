//! One operation on its way through the ring: which round comes next, its queue entries, and what
//! each completion means. Nothing here enters the kernel, other than the blocking sync.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{opcode, squeue, types};

use super::files::Slot;
use crate::disk::os::{TRIES_MAX, aligned_progress, file_fd};
use crate::disk::{File, Method, Op, OpKind};
use crate::mem::AlignedBuf;
use crate::probes::stage;

/// An operation under way.
pub(super) struct Flight {
    pub(super) token: u64,
    pub(super) file: Arc<dyn File>,
    /// Its place in the table of registered files.
    pub(super) slot: Option<Slot>,
    /// The buffer of a write; none for a sync.
    pub(super) buf: Option<AlignedBuf>,
    offset: u64,
    len: usize,
    /// Bytes written so far, a multiple of the alignment.
    pub(super) written: usize,
    /// Whether it still has to be synced.
    pub(super) unsynced: bool,
    /// Completions of the current round that are still to come.
    pub(super) due: u32,
    /// What the current round's linked or single FSYNC, or its write with RWF_DSYNC, promises once
    /// everything is written.
    round_synced: bool,
    tries: u32,
    pub(super) error: Option<io::Error>,
    submitted: Instant,
    pub(super) write_took: Duration,
}

/// One submission to the kernel (or, for the blocking sync, one system call).
#[derive(Clone, Copy)]
pub(super) enum Round {
    Write { dsync: bool },
    WriteLinkedSync,
    Sync,
    BlockingSync,
}

/// What a completion is of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Write { dsync: bool },
    Sync,
}

impl Flight {
    pub(super) fn new(op: Op, slot: Option<Slot>) -> Self {
        let (buf, offset, len, unsynced) = match op.kind {
            OpKind::Write { offset, buf, len, durable } => (Some(buf), offset, len, durable),
            OpKind::Sync => (None, 0, 0, true),
        };
        let invalid = buf.as_ref().is_some_and(|buf| len > buf.len());
        Flight {
            token: op.token,
            file: op.file,
            slot,
            buf,
            offset,
            len,
            written: 0,
            unsynced,
            due: 0,
            round_synced: false,
            tries: 0,
            error: invalid.then(|| io::ErrorKind::InvalidInput.into()),
            submitted: Instant::now(),
            write_took: Duration::ZERO,
        }
    }

    /// What is to be done next; nothing when the operation is done or has failed.
    pub(super) fn round(&self, method: Method) -> Option<Round> {
        if self.error.is_some() {
            None
        } else if self.written < self.len {
            Some(match method {
                Method::RingLinkedFsync if self.unsynced => Round::WriteLinkedSync,
                method => Round::Write { dsync: self.unsynced && method == Method::RingDsync },
            })
        } else if self.unsynced {
            let blocking = method == Method::RingFdatasync;
            Some(if blocking { Round::BlockingSync } else { Round::Sync })
        } else {
            None
        }
    }

    /// The queue entries of a round that goes through the ring.
    pub(super) fn entries(&self, index: usize, round: Round, registered: Option<u16>) -> Entries {
        let sync = |fsync: opcode::Fsync| {
            fsync.flags(types::FsyncFlags::DATASYNC).build().user_data(user_data(index, Step::Sync))
        };
        let fsync = || match self.slot {
            Some(slot) => sync(opcode::Fsync::new(types::Fixed(slot.index as u32))),
            None => sync(opcode::Fsync::new(types::Fd(self.file.raw_fd()))),
        };
        match round {
            Round::Write { dsync: true } => stage!(sync, self.token, crate::probes::WITH_WRITE),
            Round::WriteLinkedSync | Round::Sync => {
                stage!(sync, self.token, crate::probes::IN_RING)
            }
            Round::Write { .. } | Round::BlockingSync => {}
        }
        match round {
            Round::Write { dsync } => Entries::One([self.write_entry(index, dsync, registered)]),
            Round::WriteLinkedSync => {
                let write = self.write_entry(index, false, registered);
                Entries::Two([write.flags(squeue::Flags::IO_LINK), fsync()])
            }
            Round::Sync | Round::BlockingSync => Entries::One([fsync()]),
        }
    }

    fn write_entry(&self, index: usize, dsync: bool, registered: Option<u16>) -> squeue::Entry {
        let rest = self.buf.as_ref().and_then(|buf| buf.get(self.written..self.len));
        let rest = rest.unwrap_or_default();
        let (from, len) = (rest.as_ptr(), rest.len().min(WRITE_BYTES_MAX) as u32);
        let offset = self.offset + self.written as u64;
        let rw_flags = if dsync { libc::RWF_DSYNC } else { 0 };
        let fixed = self.slot.map(|slot| types::Fixed(slot.index as u32));
        let fd = types::Fd(self.file.raw_fd());
        let entry = match (registered, fixed) {
            (Some(buf), Some(file)) => opcode::WriteFixed::new(file, from, len, buf)
                .offset(offset)
                .rw_flags(rw_flags)
                .build(),
            (Some(buf), None) => opcode::WriteFixed::new(fd, from, len, buf)
                .offset(offset)
                .rw_flags(rw_flags)
                .build(),
            (None, Some(file)) => {
                opcode::Write::new(file, from, len).offset(offset).rw_flags(rw_flags).build()
            }
            (None, None) => {
                opcode::Write::new(fd, from, len).offset(offset).rw_flags(rw_flags).build()
            }
        };
        entry.user_data(user_data(index, Step::Write { dsync }))
    }

    /// Takes in the result of one completion.
    pub(super) fn complete(&mut self, step: Step, result: i32, align: usize) {
        match (step, u32::try_from(result)) {
            (Step::Write { dsync }, Ok(bytes)) => {
                let wanted = (self.len - self.written).min(WRITE_BYTES_MAX);
                let progress = aligned_progress(bytes as usize, wanted, align);
                if progress == 0 {
                    self.error = Some(io::ErrorKind::WriteZero.into());
                }
                self.written += progress;
                self.tries = 0;
                self.round_synced |= dsync;
            }
            (Step::Sync, Ok(_)) => self.round_synced = true,
            (_, Err(_)) => match (-result, step) {
                (libc::EINTR | libc::EAGAIN, Step::Write { .. }) if self.tries < TRIES_MAX => {
                    self.tries += 1;
                    std::thread::yield_now();
                }
                // The link was cut since its write was not complete: this sync was never begun.
                (libc::ECANCELED, Step::Sync) if self.tries < TRIES_MAX => self.tries += 1,
                // Whatever else a sync answers is final.
                (errno, _) => {
                    self.error.get_or_insert_with(|| io::Error::from_raw_os_error(errno));
                }
            },
        }
    }

    /// All completions of a round are there. Its sync counts only if it came after the last byte.
    pub(super) fn end_round(&mut self) {
        if std::mem::take(&mut self.round_synced) && self.written == self.len {
            self.unsynced = false;
        }
    }

    /// Syncs by a system call: once, since an error is final.
    pub(super) fn sync_blocking(&mut self) {
        if self.buf.is_some() {
            self.write_took = self.submitted.elapsed();
        }
        stage!(sync, self.token, crate::probes::BLOCKING);
        let synced = file_fd(&*self.file).and_then(|fd| Ok(rustix::fs::fdatasync(fd)?));
        match synced {
            Ok(()) => self.unsynced = false,
            Err(error) => self.error = Some(error),
        }
    }
}

pub(super) enum Entries {
    One([squeue::Entry; 1]),
    Two([squeue::Entry; 2]),
}

impl std::ops::Deref for Entries {
    type Target = [squeue::Entry];

    fn deref(&self) -> &[squeue::Entry] {
        match self {
            Entries::One(entries) => entries,
            Entries::Two(entries) => entries,
        }
    }
}

pub(super) fn user_data(index: usize, step: Step) -> u64 {
    let step = match step {
        Step::Write { dsync: false } => 0,
        Step::Write { dsync: true } => 1,
        Step::Sync => 2,
    };
    (index as u64) << 2 | step
}

pub(super) fn split_user_data(user_data: u64) -> (usize, Step) {
    let step = match user_data & 3 {
        0 => Step::Write { dsync: false },
        1 => Step::Write { dsync: true },
        _ => Step::Sync,
    };
    ((user_data >> 2) as usize, step)
}

/// Most bytes of one queue entry; below the kernel's limit for one write, and block aligned.
const WRITE_BYTES_MAX: usize = 1 << 30;
