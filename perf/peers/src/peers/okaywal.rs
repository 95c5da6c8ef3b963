//! The crate okaywal, with its default configuration: segments of 1 MiB, used again.

use std::path::Path;

use okaywal::{LogVoid, WriteAheadLog};

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::workload::Kind;

pub const ENTRY: Entry = Entry {
    name: "okaywal",
    version: "0.3.1",
    kinds: &[Kind::Durable, Kind::Batch],
    durable: "buffered write, then fdatasync by one of the waiting threads",
    submitted: "no such call: every commit waits for its sync",
    more: "Segments of 1 MiB (the default) that are used again once a manager has had the data, here one that keeps nothing; an entry of many chunks survives whole or not at all.",
    failure: "The thread whose fdatasync failed gets the error; those that wait for it wait for ever.",
    open,
};

fn open(dir: &Path, _: Kind) -> Opened {
    Ok(Box::new(Okay(WriteAheadLog::recover(dir.join("log"), LogVoid)?)))
}

struct Okay(WriteAheadLog);

impl Peer for Okay {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(OkayProducer(&self.0)))
    }
}

struct OkayProducer<'a>(&'a WriteAheadLog);

impl Producer for OkayProducer<'_> {
    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        self.append_batch(&[record])
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<(), Error> {
        let mut entry = self.0.begin_entry()?;
        for record in records {
            entry.write_chunk(record)?;
        }
        entry.commit()?;
        Ok(())
    }
}
