//! The journal of the crate fsys, without its window of 500 us, in which a leader waits for eight others before
//! it syncs: with fewer threads than that each sync would come so much later.

use std::path::Path;

use fsys::{JournalHandle, JournalOptions};

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::workload::Kind;

pub const ENTRY: Entry = Entry {
    name: "fsys",
    version: "1.1.3",
    kinds: &[Kind::Durable, Kind::Batch, Kind::Stream, Kind::Submit],
    durable: "own buffered pwrite, then fdatasync by one of the waiting threads",
    submitted: "written to the page cache",
    more: "Without its default window of 500 us, in which a sync waits for eight threads. One growing file, whose name is not synced when it is new; a batch is one write, but not marked as one.",
    failure: "The first failed write or fdatasync ends writing; nothing is retried.",
    open,
};

fn open(dir: &Path, _: Kind) -> Opened {
    let options = JournalOptions::new().group_commit_window(None);
    Ok(Box::new(Journal(fsys::new()?.journal_with(dir.join("journal"), options)?)))
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
