//! Following a log of this process: the tail in memory, the disk where that does not reach, and the
//! writer's own wake-up.

use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::{FollowError, Found};
use crate::commit::Level;
use crate::error::{ReadError, WaitError};
use crate::lsn::Lsn;
use crate::read::{Reader, Record};
use crate::shared::Shared;
use crate::tail::TailNode;
use crate::waiters::Waiting;

/// The time that is given away when the disk does not show yet what is durable.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) struct Here {
    shared: Arc<Shared>,
    /// Number of the next record.
    position: u64,
    /// The log's generation that the position is of.
    generation: u64,
    /// Everything up to this number was durable in that generation.
    durable: u64,
    place: Place,
    waiting: Waiting,
    /// The number that a task waits for.
    waiting_for: u64,
    /// How many records came from memory.
    #[cfg(test)]
    pub(super) from_memory: u64,
}

/// Where records come from.
enum Place {
    /// To be found out.
    Unknown,
    Memory(Unread),
    Disk(Box<Reader>),
}

/// The batch in memory that is being read.
struct Unread {
    node: Arc<TailNode>,
    /// Index of the next record.
    index: u32,
    /// Where the payload before it stands in the batch.
    payload: Range<usize>,
}

impl Unread {
    /// In front of the record `lsn`, which the batch holds.
    fn at(node: Arc<TailNode>, lsn: u64) -> Unread {
        let start = TailNode::payloads_at();
        let mut unread = Unread { node, index: 0, payload: start..start };
        while unread.next_lsn() < lsn {
            unread.step();
        }
        unread
    }

    fn next_lsn(&self) -> u64 {
        self.node.header().first_lsn + u64::from(self.index)
    }

    fn step(&mut self) {
        let start = self.payload.end;
        self.payload = start..start + self.node.len_of(self.index);
        self.index += 1;
    }
}

impl Here {
    pub(super) fn new(shared: Arc<Shared>, from: Lsn) -> Result<Here, ReadError> {
        // The generation first: a cut that comes in between is found out then.
        let generation = shared.extent.generation();
        let reader = Reader::live(&shared, from)?;
        shared.tail.join();
        Ok(Here {
            position: reader.next_lsn().get(),
            generation,
            durable: 0,
            place: Place::Disk(Box::new(reader)),
            waiting: Waiting::new(),
            waiting_for: 0,
            #[cfg(test)]
            from_memory: 0,
            shared,
        })
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Moves over the next record, if there is one.
    pub(super) fn find(&mut self) -> Result<Found, FollowError> {
        if self.shared.fork.forked() {
            return Err(FollowError::Forked);
        }
        loop {
            if self.position > self.durable {
                self.durable = self.shared.commit.watermark(Level::Synced);
            }
            // Behind the look at the watermark: a number that is durable again, after a cut, is seen
            // together with the cut.
            if self.shared.extent.generation() != self.generation {
                self.take_cut()?;
                continue;
            }
            if self.position > self.durable {
                match self.shared.commit.outcome(self.position, Level::Synced) {
                    None => return Ok(Found::Nothing),
                    Some(Ok(())) => continue,
                    Some(Err(WaitError::Poisoned(poison))) => {
                        return Err(FollowError::Poisoned(poison));
                    }
                    Some(Err(_closed)) => return Ok(Found::End),
                }
            }
            if let Some(found) = self.step()? {
                return Ok(found);
            }
        }
    }

    /// One step towards the next record, which is durable.
    fn step(&mut self) -> Result<Option<Found>, FollowError> {
        match &mut self.place {
            Place::Memory(unread) if unread.next_lsn() <= unread.node.header().last_lsn() => {
                unread.step();
                self.position += 1;
                #[cfg(test)]
                {
                    self.from_memory += 1;
                }
                return Ok(Some(Found::Record));
            }
            Place::Memory(unread) => {
                self.place = match unread.node.next() {
                    Some(node) => Place::Memory(Unread::at(node, self.position)),
                    None => Place::Unknown,
                };
                return Ok(None);
            }
            Place::Unknown | Place::Disk(_) => {}
        }
        if let Some(node) = self.shared.tail.find(self.position)
            && node.generation() == self.generation
        {
            self.place = Place::Memory(Unread::at(node, self.position));
            return Ok(None);
        }
        let Place::Disk(reader) = &mut self.place else {
            let reader = Reader::live(&self.shared, Lsn::new(self.position))?;
            self.place = Place::Disk(Box::new(reader));
            return Ok(None);
        };
        match reader.advance() {
            // It may have read what was written behind a cut.
            Ok(true) if self.shared.extent.generation() != self.generation => Ok(None),
            Ok(true) => {
                self.position += 1;
                Ok(Some(Found::Record))
            }
            Ok(false) => Ok(Some(Found::Nothing)),
            // The cut may have come while it read; then that is the error.
            Err(_) if self.shared.extent.generation() != self.generation => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn current(&self) -> Option<Record<'_>> {
        match &self.place {
            Place::Memory(unread) => {
                let payload = unread.node.bytes(unread.payload.clone());
                let lsn = Lsn::new(self.position - 1);
                Some(Record::new(lsn, payload, unread.node.header().wall_ns))
            }
            Place::Disk(reader) => reader.current(),
            Place::Unknown => None,
        }
    }

    /// Goes on in the log's new generation, unless what was cut had been given.
    fn take_cut(&mut self) -> Result<(), FollowError> {
        // Held by a truncation from before its first change until the numbers are right again.
        let _nobody_cuts = self.shared.extent.files();
        if let Some(kept) = self.shared.extent.kept_since(self.generation)
            && self.position > kept + 1
        {
            return Err(ReadError::Truncated { last: Lsn::new(kept) }.into());
        }
        self.place = Place::Unknown;
        self.waiting = Waiting::new();
        self.generation = self.shared.extent.generation();
        self.durable = self.shared.commit.watermark(Level::Synced);
        Ok(())
    }

    /// Blocks until there may be more than [`find`](Self::find) saw, or until the time is over.
    pub(super) fn wait(&mut self, deadline: Option<Instant>) -> Result<(), FollowError> {
        if self.position <= self.durable {
            // The disk does not show it yet.
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return Err(FollowError::TimedOut);
            }
            std::thread::sleep(PAUSE);
            return Ok(());
        }
        match self.shared.wait_unasked(self.position, self.generation, deadline) {
            Err(WaitError::TimedOut) => Err(FollowError::TimedOut),
            // What came of it, `find` says.
            _ => Ok(()),
        }
    }

    /// The same for a task. Ready: look again.
    pub(super) fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.position <= self.durable {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.waiting_for != self.position {
            self.waiting = Waiting::new();
            self.waiting_for = self.position;
        }
        let polled = self.waiting.poll(&self.shared.commit, self.position, Level::Synced, context);
        // Behind the waker's registration: a cut wakes all who are registered.
        if polled.is_pending() && self.shared.extent.generation() == self.generation {
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.shared.tail.leave();
    }
}
