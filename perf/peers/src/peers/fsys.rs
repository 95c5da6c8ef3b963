//! The journal of the crate fsys, with its default options.

use std::path::Path;

use fsys::JournalHandle;

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::workload::Kind;

pub const ENTRY: Entry = Entry {
    name: "fsys",
    version: "1.1.3",
    kinds: &[Kind::Durable, Kind::Batch, Kind::Stream, Kind::Submit],
    durable: "own buffered pwrite, then fdatasync by one of the waiting threads",
    submitted: "written to the page cache",
    more: "One growing file, whose name is not synced when it is new; a batch is one write, but not marked as one.",
    failure: "The first failed write or fdatasync ends writing; nothing is retried.",
    open,
};

fn open(dir: &Path, _: Kind) -> Opened {
    Ok(Box::new(Journal(fsys::new()?.journal(dir.join("journal"))?)))
}

struct Journal(JournalHandle);

impl Peer for Journal {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(JournalProducer(&self.0)))
    }

    fn sync(&self) -> Result<(), Error> {
        self.0.sync_through(self.0.next_lsn())?;
        Ok(())
    }
}

struct JournalProducer<'a>(&'a JournalHandle);

impl Producer for JournalProducer<'_> {
    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        let lsn = self.0.append(record)?;
        self.0.sync_through(lsn)?;
        Ok(())
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<(), Error> {
        let lsn = self.0.append_batch(records)?;
        self.0.sync_through(lsn)?;
        Ok(())
    }

    fn submit(&mut self, record: &[u8]) -> Result<(), Error> {
        self.0.append(record)?;
        Ok(())
    }
}
