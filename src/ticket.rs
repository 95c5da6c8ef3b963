//! [`Ticket`]: the number of an accepted record, and the wait for its acknowledgement.

use std::future::Future;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::commit::Level;
use crate::error::WaitError;
use crate::lsn::Lsn;
use crate::shared::Shared;
use crate::waiters::Waiting;

/// An accepted record (or batch): it has its number, and is not yet acknowledged.
///
/// Dropping a ticket takes nothing back: the record is written all the same. As a future it is ready
/// when the record is acknowledged; it works on any runtime (its waker is called on the writer's
/// thread, and must not block), needs no reactor, and borrows the
/// [`Log`](crate::Log): [`into_owned`](Self::into_owned) gives one that can be sent elsewhere.
#[must_use = "an append is acknowledged only when its ticket was waited for"]
pub struct Ticket<'a> {
    shared: &'a Arc<Shared>,
    first: u64,
    last: u64,
    /// The generation of the log that the record was accepted in.
    generation: u64,
    waiting: Waiting,
}

impl<'a> Ticket<'a> {
    /// `generation` was read between the number and the publication of the record: no truncation
    /// can have come in between.
    pub(crate) fn new(shared: &'a Arc<Shared>, first: u64, last: u64, generation: u64) -> Self {
        Ticket { shared, first, last, generation, waiting: Waiting::new() }
    }

    /// The record's number; for a batch, that of its last record.
    pub fn lsn(&self) -> Lsn {
        Lsn::new(self.last)
    }

    /// The numbers of a batch, the first to the last; the same number twice for a single record.
    pub fn lsns(&self) -> RangeInclusive<Lsn> {
        Lsn::new(self.first)..=Lsn::new(self.last)
    }

    /// Whether the record is acknowledged already.
    pub fn is_done(&self) -> bool {
        self.shared.cut_off(self.last, self.generation).is_none()
            && self.shared.commit.watermark(Level::Acked) >= self.last
    }

    /// Blocks until the record is acknowledged, and returns its number.
    ///
    /// # Errors
    /// The write or the sync failed, or failed before for an earlier record: [`WaitError`]. The record
    /// may or may not be there when the log is opened again. Or it was there and
    /// [`truncate_after`](crate::Log::truncate_after) has cut it off.
    pub fn wait(self) -> Result<Lsn, WaitError> {
        self.shared.wait(self.last, Level::Acked, Some(self.generation), None)?;
        Ok(self.lsn())
    }

    /// Blocks until the record is acknowledged or the time is over. It may be called again.
    ///
    /// # Errors
    /// As [`wait`](Self::wait), and [`WaitError::TimedOut`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Lsn, WaitError> {
        self.shared.wait(self.last, Level::Acked, Some(self.generation), Some(timeout))?;
        Ok(self.lsn())
    }
}

impl Ticket<'_> {
    /// The ticket without the borrow of the log, for tasks that outlive it. Costs a reference count.
    pub fn into_owned(self) -> OwnedTicket {
        OwnedTicket {
            shared: self.shared.clone(),
            first: self.first,
            last: self.last,
            generation: self.generation,
            waiting: Waiting::new(),
        }
    }
}

impl Future for Ticket<'_> {
    type Output = Result<Lsn, WaitError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        poll(this.shared, this.last, this.generation, &mut this.waiting, context)
    }
}

impl core::fmt::Debug for Ticket<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Ticket").field("first", &self.first).field("last", &self.last).finish()
    }
}

/// A [`Ticket`] that owns what it needs: `'static` and `Send`. It does not keep the log open.
#[must_use = "an append is acknowledged only when its ticket was waited for"]
pub struct OwnedTicket {
    shared: Arc<Shared>,
    first: u64,
    last: u64,
    /// The generation of the log that the record was accepted in.
    generation: u64,
    waiting: Waiting,
}

impl OwnedTicket {
    /// See [`Ticket::lsn`].
    pub fn lsn(&self) -> Lsn {
        Lsn::new(self.last)
    }

    /// See [`Ticket::lsns`].
    pub fn lsns(&self) -> RangeInclusive<Lsn> {
        Lsn::new(self.first)..=Lsn::new(self.last)
    }

    /// See [`Ticket::is_done`].
    pub fn is_done(&self) -> bool {
        self.shared.cut_off(self.last, self.generation).is_none()
            && self.shared.commit.watermark(Level::Acked) >= self.last
    }

    /// See [`Ticket::wait`].
    ///
    /// # Errors
    /// As there.
    pub fn wait(self) -> Result<Lsn, WaitError> {
        self.shared.wait(self.last, Level::Acked, Some(self.generation), None)?;
        Ok(self.lsn())
    }

    /// See [`Ticket::wait_timeout`].
    ///
    /// # Errors
    /// As there.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Lsn, WaitError> {
        self.shared.wait(self.last, Level::Acked, Some(self.generation), Some(timeout))?;
        Ok(self.lsn())
    }
}

impl Future for OwnedTicket {
    type Output = Result<Lsn, WaitError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        poll(&this.shared, this.last, this.generation, &mut this.waiting, context)
    }
}

impl core::fmt::Debug for OwnedTicket {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("OwnedTicket").field("first", &self.first).field("last", &self.last).finish()
    }
}

fn poll(
    shared: &Shared,
    last: u64,
    generation: u64,
    waiting: &mut Waiting,
    context: &mut Context<'_>,
) -> Poll<Result<Lsn, WaitError>> {
    if shared.fork.forked() {
        return Poll::Ready(Err(WaitError::Forked));
    }
    if let Some(error) = shared.cut_off(last, generation) {
        return Poll::Ready(Err(error));
    }
    waiting
        .poll(&shared.commit, last, Level::Acked, context)
        .map(|outcome| outcome.map(|()| Lsn::new(last)))
}
