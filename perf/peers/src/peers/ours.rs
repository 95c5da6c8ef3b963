//! uringlog, with its default options.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use uringlog::{Log, Options};

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::workload::{Kind, STREAM_BYTES_MAX};

pub const ENTRY: Entry = Entry {
    name: "uringlog",
    version: "this commit",
    kinds: &[Kind::Durable, Kind::Batch, Kind::Stream, Kind::Submit],
    durable: "O_DIRECT write, then sync, by one writer thread",
    submitted: "numbered and in a ring; synced all along",
    more: "Segments are zeroed and synced beforehand; fdatasync or RWF_DSYNC, as calibrated; the number is known at once; a batch survives whole or not at all. Its stream fits into one segment that stands ready, as when segments are used again.",
    failure: "The first failed write or sync ends writing; whoever waits gets the error; nothing is retried.",
    open,
};

fn open(dir: &Path, kind: Kind) -> Opened {
    let options = match kind {
        // The stream fits into space that stands ready, as it does when segments are used again.
        Kind::Stream => Options::new()
            .segment_bytes((STREAM_BYTES_MAX + STREAM_BYTES_MAX / 4).next_multiple_of(1 << 20))
            .segments_ready(1)
            .prepare_bytes_per_s(1 << 40),
        _ => Options::new(),
    };
    let log = options.open(dir.join("log"))?;
    wait_prepared(&log);
    Ok(Box::new(Ours(log)))
}

/// Waits until the first segments are prepared: none was for a while. Gives up on slow disks.
fn wait_prepared(log: &Log) {
    const CALM: Duration = Duration::from_millis(60);
    const PATIENCE: Duration = Duration::from_secs(5);
    let started = Instant::now();
    let mut calm = Instant::now();
    while calm.elapsed() < CALM && started.elapsed() < PATIENCE {
        if log.housekeeping().preparing {
            calm = Instant::now();
        }
        thread::sleep(Duration::from_millis(5));
    }
}

struct Ours(Log);

impl Peer for Ours {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(OursProducer(&self.0)))
    }

    fn sync(&self) -> Result<(), Error> {
        self.0.sync()?;
        Ok(())
    }
}

struct OursProducer<'a>(&'a Log);

impl Producer for OursProducer<'_> {
    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        self.0.append(record)?.wait()?;
        Ok(())
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<(), Error> {
        self.0.append_batch(records)?.wait()?;
        Ok(())
    }

    #[inline]
    fn submit(&mut self, record: &[u8]) -> Result<(), Error> {
        // Whoever does not wait has no use for the ticket but the number.
        self.0.append(record)?.lsn();
        Ok(())
    }
}
