//! The crate walrus-rust: one topic for all threads.
//!
//! It takes its directory and its silence from the environment: `turn` sets both for the process that runs it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;

use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::sync_file_system;
use crate::workload::Kind;

pub const ENTRY: Entry = Entry {
    name: "walrus",
    version: "0.2.0",
    kinds: &[Kind::Durable, Kind::Batch, Kind::Stream, Kind::Submit],
    durable: "O_SYNC write, then fsync, under a lock, for each call",
    submitted: "written to the page cache; a thread syncs every 200 ms",
    more: "A batch goes by an io_uring made for it, one batch at a time: other threads are told to come back, and do. A sparse file of 1 GB. No call waits for the device after a submit: the test ends the stream by syncfs.",
    failure: "The results of single writes are not looked at; a failed fsync is returned, and forgotten.",
    open,
};

fn open(dir: &Path, kind: Kind) -> Opened {
    let schedule = match kind {
        Kind::Durable | Kind::Batch => FsyncSchedule::SyncEach,
        Kind::Stream | Kind::Submit => FsyncSchedule::Milliseconds(200),
    };
    let reading = ReadConsistency::AtLeastOnce { persist_every: 1000 };
    let log = Walrus::with_consistency_and_schedule(reading, schedule)?;
    Ok(Box::new(Topic { log, dir: dir.to_owned() }))
}

const TOPIC: &str = "records";

struct Topic {
    log: Walrus,
    dir: PathBuf,
}

impl Peer for Topic {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(TopicProducer(&self.log)))
    }

    fn sync(&self) -> Result<(), Error> {
        sync_file_system(&self.dir)
    }
}

struct TopicProducer<'a>(&'a Walrus);

impl Producer for TopicProducer<'_> {
    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        self.0.append_for_topic(TOPIC, record)?;
        Ok(())
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<(), Error> {
        loop {
            match self.0.batch_append_for_topic(TOPIC, records) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                done => return Ok(done?),
            }
        }
    }

    fn submit(&mut self, record: &[u8]) -> Result<(), Error> {
        self.append(record)
    }
}
