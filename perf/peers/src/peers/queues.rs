//! Queues with a thread at the other end that takes records out and forgets them: what handing over costs at
//! least, without any log. And a call that does nothing, which shows what the measurement itself shows.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::Backoff;

use crate::peer::{Entry, Error, Peer, Producer};
use crate::workload::Kind;

pub const ARRAY_QUEUE: Entry = Entry {
    name: "ArrayQueue",
    version: "crossbeam-queue 0.3.14",
    kinds: &[Kind::Submit],
    durable: "no such call",
    submitted: "a copy in a queue of 8192 slots; no file",
    more: "A thread that never sleeps takes records out and forgets them.",
    failure: "It has nothing that fails.",
    open: |_: &Path, _| Ok(Box::new(Array::start()?)),
};

pub const MPSC: Entry = Entry {
    name: "std mpsc",
    version: "this toolchain",
    kinds: &[Kind::Submit],
    durable: "no such call",
    submitted: "a copy in an unbounded queue; no file",
    more: "A thread that sleeps when the queue is empty takes records out and forgets them.",
    failure: "It has nothing that fails.",
    open: |_: &Path, _| Ok(Box::new(Channel::start()?)),
};

pub const NOTHING: Entry = Entry {
    name: "nothing",
    version: "-",
    kinds: &[Kind::Submit],
    durable: "no such call",
    submitted: "nothing is done",
    more: "What the measurement itself shows once the clock's cost is subtracted.",
    failure: "It has nothing that fails.",
    open: |_: &Path, _| Ok(Box::new(Nothing)),
};

/// Records of all workloads that have queues.
const RECORD_BYTES: usize = 256;
const SLOTS: usize = 8192;

type Record = [u8; RECORD_BYTES];

fn record(bytes: &[u8]) -> Result<Record, Error> {
    Ok(bytes.try_into()?)
}

struct Array {
    queue: Arc<ArrayQueue<Record>>,
    ended: Arc<AtomicBool>,
    consumer: Option<JoinHandle<()>>,
}

impl Array {
    fn start() -> Result<Self, Error> {
        let (queue, ended) = (Arc::new(ArrayQueue::new(SLOTS)), Arc::new(AtomicBool::new(false)));
        let (taken, end) = (Arc::clone(&queue), Arc::clone(&ended));
        let consumer = thread::Builder::new().name("consumer".into()).spawn(move || {
            let backoff = Backoff::new();
            // Relaxed: nothing is handed over with it.
            while !end.load(Ordering::Relaxed) {
                match taken.pop() {
                    Some(record) => {
                        black_box(&record);
                        backoff.reset();
                    }
                    None => backoff.snooze(),
                }
            }
        })?;
        Ok(Array { queue, ended, consumer: Some(consumer) })
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        _ = self.consumer.take().map(JoinHandle::join);
    }
}

impl Peer for Array {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(ArrayProducer(&self.queue)))
    }
}

struct ArrayProducer<'a>(&'a ArrayQueue<Record>);

impl Producer for ArrayProducer<'_> {
    fn submit(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut next = record(bytes)?;
        while let Err(full) = self.0.push(next) {
            next = full;
            thread::yield_now();
        }
        Ok(())
    }
}

/// The consumer ends with the last sender.
struct Channel(mpsc::Sender<Record>);

impl Channel {
    fn start() -> Result<Self, Error> {
        let (sender, receiver) = mpsc::channel::<Record>();
        thread::Builder::new().name("consumer".into()).spawn(move || {
            while let Ok(record) = receiver.recv() {
                black_box(&record);
            }
        })?;
        Ok(Channel(sender))
    }
}

impl Peer for Channel {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(ChannelProducer(self.0.clone())))
    }
}

struct ChannelProducer(mpsc::Sender<Record>);

impl Producer for ChannelProducer {
    fn submit(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.0.send(record(bytes)?)?;
        Ok(())
    }
}

struct Nothing;

impl Peer for Nothing {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(Nothing))
    }
}

impl Producer for Nothing {
    fn submit(&mut self, bytes: &[u8]) -> Result<(), Error> {
        black_box(bytes);
        Ok(())
    }
}
