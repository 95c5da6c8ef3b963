//! The crate wal-db, a log in one growing file.

use std::path::Path;

use wal_db::Wal;

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::workload::Kind;

pub const ENTRY: Entry = Entry {
    name: "wal-db",
    version: "1.1.0",
    kinds: &[Kind::Durable, Kind::Stream, Kind::Submit],
    durable: "own buffered pwrite, then fdatasync by one of the waiting threads",
    submitted: "written to the page cache, counted under a mutex",
    more: "One growing file, whose name is not synced when it is new; no batches.",
    failure: "A failed write ends the log there; after a failed fdatasync the next waiting thread tries again, and may report success over lost data.",
    open,
};

fn open(dir: &Path, _: Kind) -> Opened {
    Ok(Box::new(Db(Wal::open(dir.join("wal"))?)))
}

struct Db(Wal);

impl Peer for Db {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(DbProducer(&self.0)))
    }

    fn sync(&self) -> Result<(), Error> {
        self.0.sync()?;
        Ok(())
    }
}

struct DbProducer<'a>(&'a Wal);

impl Producer for DbProducer<'_> {
    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        self.0.append_and_sync(record).map(drop)?;
        Ok(())
    }

    fn submit(&mut self, record: &[u8]) -> Result<(), Error> {
        self.0.append(record).map(drop)?;
        Ok(())
    }
}
