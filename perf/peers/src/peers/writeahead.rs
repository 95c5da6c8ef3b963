//! The crate writeahead.

use std::path::Path;

use futures_executor::block_on;
use writeahead::{SimpleFile, WriteAhead, WriteAheadOptions};

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::workload::Kind;

pub const ENTRY: Entry = Entry {
    name: "writeahead",
    version: "0.4.1",
    kinds: &[Kind::Durable, Kind::Batch],
    durable: "buffered write, then fdatasync, by one writer thread",
    submitted: "no such call: every write waits for its sync",
    more: "Groups of up to 64 calls; windows of 256 KiB are zeroed ahead; a batch stays together in a file, but is not marked as one.",
    failure: "The callers of that group get the error; the next group is written over it, after a failed fdatasync too.",
    open,
};

fn open(dir: &Path, _: Kind) -> Opened {
    let log_dir = dir.join("log");
    std::fs::create_dir(&log_dir)?;
    let options = WriteAheadOptions { log_dir, ..Default::default() };
    let mut log = WriteAhead::with_options(options);
    log.start()?;
    Ok(Box::new(Writeahead(log)))
}

struct Writeahead(WriteAhead<SimpleFile>);

impl Peer for Writeahead {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(Handle(self.0.writer()?)))
    }
}

struct Handle(writeahead::WriteHandle);

impl Producer for Handle {
    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        block_on(self.0.write(record.to_vec()))?;
        Ok(())
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<(), Error> {
        let records = records.iter().map(|record| record.to_vec()).collect();
        block_on(self.0.write_batch(records))?;
        Ok(())
    }
}
