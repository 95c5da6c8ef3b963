//! The plain log that a hundred lines make: a mutex, a `Vec`, and one writer thread on a pre-written file.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use uringlog_perf::Plain;

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::workload::Kind;

pub const ENTRY: Entry = Entry {
    name: "mutex+writer",
    version: "perf/src/plain.rs",
    kinds: &[Kind::Durable, Kind::Batch, Kind::Stream, Kind::Submit],
    durable: "O_DIRECT write, then fdatasync, by one writer thread",
    submitted: "in a `Vec` of at most 4 MiB; synced all along",
    more: "Over and over in one file of 64 MiB that was written before: no recovery, no reading, no rotation.",
    failure: "The first failed write or sync ends writing; whoever waits gets the error.",
    open,
};

fn open(dir: &Path, _: Kind) -> Opened {
    // Where direct I/O is refused, as on some file systems in memory, through the page cache.
    let log = Plain::prepare(dir, true).or_else(|_| {
        std::fs::remove_dir_all(dir)?;
        std::fs::create_dir(dir)?;
        Plain::prepare(dir, false).map_err(Error::from)
    })?;
    Ok(Box::new(Simple { log, last: AtomicU64::new(0) }))
}

struct Simple {
    log: Plain,
    /// Number of the last record that a producer which is gone handed over.
    last: AtomicU64,
}

impl Peer for Simple {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(SimpleProducer { of: self, last: 0 }))
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(self.log.wait(self.last.load(Ordering::Relaxed))?)
    }
}

struct SimpleProducer<'a> {
    of: &'a Simple,
    last: u64,
}

impl Producer for SimpleProducer<'_> {
    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        self.append_batch(&[record])
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<(), Error> {
        let number = self.of.log.submit(records)?;
        Ok(self.of.log.wait(number)?)
    }

    #[inline]
    fn submit(&mut self, record: &[u8]) -> Result<(), Error> {
        self.last = self.of.log.submit(&[record])?;
        Ok(())
    }
}

impl Drop for SimpleProducer<'_> {
    fn drop(&mut self) {
        self.of.last.fetch_max(self.last, Ordering::Relaxed);
    }
}
