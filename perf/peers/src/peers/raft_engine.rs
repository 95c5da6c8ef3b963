//! raft-engine, the log of TiKV: one key for each thread, overwritten, so that its index stays small.

use std::path::Path;

use raft_engine::{Config, Engine, LogBatch};

use crate::peer::{Entry, Error, Opened, Peer, Producer};
use crate::workload::Kind;

pub const ENTRY: Entry = Entry {
    name: "raft-engine",
    version: "0.4.2",
    kinds: &[Kind::Durable, Kind::Batch, Kind::Stream, Kind::Submit],
    durable: "buffered write, then fdatasync, by the leader of a group",
    submitted: "written to the page cache",
    more: "Space is allocated 2 MiB ahead, not zeroed; a batch is one checksummed unit; values are indexed in memory, here under one key for each thread. The stream ends with one synced write, for its `sync` does nothing.",
    failure: "It panics on a failed fdatasync.",
    open,
};

fn open(dir: &Path, _: Kind) -> Opened {
    let dir = dir.join("log").to_string_lossy().into_owned();
    Ok(Box::new(Raft(Engine::open(Config { dir, ..Config::default() })?)))
}

struct Raft(Engine);

impl Peer for Raft {
    fn producer(&self, index: usize) -> Result<Box<dyn Producer + '_>, Error> {
        Ok(Box::new(RaftProducer { engine: &self.0, region: index as u64 + 1 }))
    }

    fn sync(&self) -> Result<(), Error> {
        let mut last = LogBatch::default();
        last.put(u64::from(u32::MAX), b"end".to_vec(), Vec::new())?;
        self.0.write(&mut last, true)?;
        Ok(())
    }
}

struct RaftProducer<'a> {
    engine: &'a Engine,
    region: u64,
}

impl RaftProducer<'_> {
    fn write(&self, records: &[&[u8]], sync: bool) -> Result<(), Error> {
        let mut batch = LogBatch::with_capacity(records.len());
        for (index, record) in records.iter().enumerate() {
            batch.put(self.region, vec![b'r', index as u8], record.to_vec())?;
        }
        self.engine.write(&mut batch, sync)?;
        Ok(())
    }
}

impl Producer for RaftProducer<'_> {
    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        self.write(&[record], true)
    }

    fn append_batch(&mut self, records: &[&[u8]]) -> Result<(), Error> {
        self.write(records, true)
    }

    fn submit(&mut self, record: &[u8]) -> Result<(), Error> {
        self.write(&[record], false)
    }
}
