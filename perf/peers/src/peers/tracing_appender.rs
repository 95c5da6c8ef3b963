//! The non-blocking writer of tracing-appender over a file, told to wait instead of dropping lines.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::sync_file_system;
use crate::workload::Kind;

pub const ENTRY: Entry = Entry {
    name: "tracing-appender",
    version: "0.2.5",
    kinds: &[Kind::Stream, Kind::Submit],
    durable: "no such call",
    submitted: "a copy on the heap, in a queue; a thread writes it to the page cache",
    more: "Told to wait instead of dropping lines when its queue (128,000 lines) is full. Nothing is ever synced: the test ends the stream by syncfs.",
    failure: "A write error drops the line and is not told.",
    open,
};

const FILE_NAME: &str = "lines";

fn open(dir: &Path, _: Kind) -> Opened {
    let file = tracing_appender::rolling::never(dir, FILE_NAME);
    let (writer, guard) = NonBlockingBuilder::default().lossy(false).finish(file);
    Ok(Box::new(Appender { writer, _guard: guard, dir: dir.to_owned(), bytes: AtomicU64::new(0) }))
}

struct Appender {
    writer: NonBlocking,
    _guard: WorkerGuard,
    dir: PathBuf,
    /// Handed over by producers that are gone.
    bytes: AtomicU64,
}

impl Peer for Appender {
    fn producer(&self, _: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(Lines { writer: self.writer.clone(), bytes: 0, all: &self.bytes }))
    }

    fn sync(&self) -> Result<(), Error> {
        // Nothing tells when the queue is empty but the file.
        let file = self.dir.join(FILE_NAME);
        while std::fs::metadata(&file)?.len() < self.bytes.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        sync_file_system(&self.dir)
    }
}

struct Lines<'a> {
    writer: NonBlocking,
    bytes: u64,
    all: &'a AtomicU64,
}

impl Producer for Lines<'_> {
    fn submit(&mut self, record: &[u8]) -> Result<(), Error> {
        self.writer.write_all(record)?;
        self.bytes += record.len() as u64;
        Ok(())
    }
}

impl Drop for Lines<'_> {
    fn drop(&mut self) {
        self.all.fetch_add(self.bytes, Ordering::Relaxed);
    }
}
