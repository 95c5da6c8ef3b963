//! [`Follower`]: reads the log and waits for more, from memory where it can.
//!
//! At the end of a log of this process ([`here`]) records come from the writer's last batches in memory
//! (tail.rs), and the follower sleeps as a waiter for the next number does (waiters.rs). Anywhere
//! else it is a [`Reader`] of the disk. It goes from one to the other between two records, in both
//! directions, and never gives a record before the watermark has passed it.
//!
//! Of another process' log ([`there`]) it reads the disk, and the status page (status.rs) tells it how
//! far, and wakes it.

mod here;
#[cfg(test)]
mod tests;
mod there;

use core::fmt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;

use crate::error::{Poison, ReadError, WaitError};
use crate::log::Log;
use crate::lsn::Lsn;
use crate::read::Record;
use here::Here;
use there::There;

/// Reads a log from left to right and waits at its end for more.
///
/// Only durable (synced) records are given, each once, in order. [`Log::follow`] makes one for a log of
/// this process, [`open_dir`](Self::open_dir) for one that another process may be writing. A follower
/// that keeps up with a log of this process gets its records from memory; otherwise, and from another
/// process, it reads the disk, verifies every checksum, and blocks while it does, in the calls that
/// do not wait as well.
///
/// As a [`Stream`] it gives each number with a copy of the payload, wakes its task by the writer's thread,
/// and needs no runtime. It ends as [`recv`](Self::recv) does, or after an error.
///
/// However slow it is, a follower never holds up the log: it keeps one batch in memory at most.
pub struct Follower {
    source: Source,
    /// The stream has given an error, or its end.
    ended: bool,
}

enum Source {
    Here(Box<Here>),
    There(Box<There>),
}

/// What there is at a follower's position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Found {
    /// The next record, which is now the source's current one.
    Record,
    /// Nothing yet.
    Nothing,
    /// Nothing ever: the log was closed.
    End,
}

impl Log {
    /// Follows the log from the record `from` on ([`Lsn::NONE`]: from the first that there is; a number not
    /// reached yet is waited for). The follower does not keep the log open: when it is closed, the
    /// follower gives what is left, and ends.
    ///
    /// While there is a follower, the writer keeps its last batches in memory, up to
    /// [`Options::tail_bytes`](crate::Options::tail_bytes).
    ///
    /// # Errors
    /// The log starts later, or its files cannot be read: [`ReadError`].
    pub fn follow(&self, from: Lsn) -> Result<Follower, ReadError> {
        let here = Here::new(self.shared().clone(), from)?;
        Ok(Follower::new(Source::Here(Box::new(here))))
    }
}

impl Follower {
    /// Follows the log in `dir`, which another process may be writing, from the record `from` on
    /// ([`Lsn::NONE`]: from the first that there is).
    ///
    /// Such a follower never ends by itself: a writer that was closed or killed may come back, and the
    /// follower goes on with what it appends. Nothing in the directory is changed, but for one word in
    /// the status page, by which it is woken; where it has no right to write that file, or the file
    /// system has no such page, it looks every 1 to 20 ms. Without the page a record counts as durable
    /// when a later batch says so, which an idle writer's does after some milliseconds. On a log with
    /// [`Durability::Written`](crate::Durability::Written) it gets what was synced.
    ///
    /// # Errors
    /// No log there, a number that it no longer holds, damage, or a failed system call.
    pub fn open_dir(dir: impl AsRef<Path>, from: Lsn) -> Result<Follower, ReadError> {
        let there = There::open(dir.as_ref(), from)?;
        Ok(Follower::new(Source::There(Box::new(there))))
    }

    fn new(source: Source) -> Follower {
        Follower { source, ended: false }
    }

    /// The next record, however long it takes. `None`: the log was closed, and everything was given.
    ///
    /// # Errors
    /// [`FollowError::Poisoned`] after the last durable record of a log whose writing failed;
    /// [`FollowError::Read`] where a record cannot be read. The follower stays where it is then.
    pub fn recv(&mut self) -> Result<Option<Record<'_>>, FollowError> {
        self.recv_until(None)
    }

    /// As [`recv`](Self::recv), but waits no longer than `timeout`.
    ///
    /// # Errors
    /// As there, and [`FollowError::TimedOut`].
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Option<Record<'_>>, FollowError> {
        // A time beyond what the clock can say is no limit.
        self.recv_until(Instant::now().checked_add(timeout))
    }

    /// As [`recv`](Self::recv), but does not wait for a record to come.
    ///
    /// # Errors
    /// As there, and [`FollowError::TimedOut`] when nothing more is durable now.
    pub fn try_recv(&mut self) -> Result<Option<Record<'_>>, FollowError> {
        match self.find()? {
            Found::Record => Ok(self.current()),
            Found::Nothing => Err(FollowError::TimedOut),
            Found::End => Ok(None),
        }
    }

    /// The number of the record that comes next.
    pub fn next_lsn(&self) -> Lsn {
        Lsn::new(match &self.source {
            Source::Here(here) => here.position(),
            Source::There(there) => there.position(),
        })
    }

    fn recv_until(&mut self, deadline: Option<Instant>) -> Result<Option<Record<'_>>, FollowError> {
        loop {
            match self.find()? {
                Found::Record => return Ok(self.current()),
                Found::End => return Ok(None),
                Found::Nothing => {}
            }
            match &mut self.source {
                Source::Here(here) => here.wait(deadline)?,
                Source::There(there) => there.wait(deadline)?,
            }
        }
    }

    fn find(&mut self) -> Result<Found, FollowError> {
        match &mut self.source {
            Source::Here(here) => here.find(),
            Source::There(there) => there.find(),
        }
    }

    /// The record that was found last.
    fn current(&self) -> Option<Record<'_>> {
        match &self.source {
            Source::Here(here) => here.current(),
            Source::There(there) => there.current(),
        }
    }
}

impl Stream for Follower {
    type Item = Result<(Lsn, Vec<u8>), FollowError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<<Self as Stream>::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            match self.find() {
                Ok(Found::Record) => {
                    let copy = |record: Record<'_>| Ok((record.lsn(), record.payload().to_vec()));
                    return Poll::Ready(self.current().map(copy));
                }
                Ok(Found::Nothing) => {}
                Ok(Found::End) => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
            let more = match &mut self.source {
                Source::Here(here) => here.poll_wait(context),
                Source::There(there) => there.poll_wait(context),
            };
            if more.is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("next_lsn", &self.next_lsn()).finish_non_exhaustive()
    }
}

/// Why a follower gave no record.
#[derive(Debug)]
#[non_exhaustive]
pub enum FollowError {
    /// Nothing more became durable within the given time; [`try_recv`](Follower::try_recv) gives none.
    TimedOut,
    /// A write or a sync failed: every durable record was given, and no more will come before the log is
    /// opened again.
    Poisoned(Poison),
    /// The next record cannot be read: it was trimmed away or cut off, it is damaged, or a system call
    /// failed.
    Read(ReadError),
    /// This is a forked child of the process that opened the log.
    Forked,
}

impl fmt::Display for FollowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("nothing more was durable within the given time"),
            Self::Poisoned(poison) => poison.fmt(f),
            Self::Read(error) => error.fmt(f),
            Self::Forked => WaitError::Forked.fmt(f),
        }
    }
}

impl std::error::Error for FollowError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Poisoned(poison) => Some(poison),
            Self::Read(error) => Some(error),
            Self::TimedOut | Self::Forked => None,
        }
    }
}

/// Follows a log in any store up to its end, for a fuzz target. Returns how many records there were.
#[cfg(feature = "fuzzing")]
pub(crate) fn poll_store(
    store: std::sync::Arc<dyn crate::disk::Store>,
    records_max: usize,
) -> Result<usize, FollowError> {
    let mut there = There::of_store(store, Lsn::NONE)?;
    let mut records = 0;
    while there.find()? == Found::Record {
        records += 1;
        assert!(records <= records_max, "there are not as many records");
    }
    Ok(records)
}

impl From<ReadError> for FollowError {
    fn from(error: ReadError) -> Self {
        FollowError::Read(error)
    }
}
