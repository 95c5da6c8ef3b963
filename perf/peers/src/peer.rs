//! What a peer is: something that records are appended to, what it promises, and how it is opened.

use std::path::Path;

use crate::peers;
use crate::workload::Kind;

/// Whatever a peer says when it fails.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What opening a peer gives.
pub type Opened = Result<Box<dyn Peer>, Error>;

/// A log, or a queue, that several threads use.
pub trait Peer: Sync {
    /// What one thread appends with; called on that thread, once.
    fn producer(&self, index: usize) -> Result<Box<dyn Producer + '_>, Error>;

    /// Returns once all that was submitted is on the device.
    fn sync(&self) -> Result<(), Error> {
        Err("it has no such call".into())
    }
}

/// One thread's end of a [`Peer`]. It has the calls of the kinds that its [`Entry`] names.
pub trait Producer {
    /// Appends a record, and returns once it is on the device.
    fn append(&mut self, _record: &[u8]) -> Result<(), Error> {
        Err("it has no such call".into())
    }

    /// Appends all records by one call, and returns once they are on the device.
    fn append_batch(&mut self, _records: &[&[u8]]) -> Result<(), Error> {
        Err("it has no such call".into())
    }

    /// Hands a record over, and does not wait for the device.
    fn submit(&mut self, _record: &[u8]) -> Result<(), Error> {
        Err("it has no such call".into())
    }
}

/// A peer as results name it.
pub struct Entry {
    pub name: &'static str,
    pub version: &'static str,
    /// The kinds of work that it has calls for.
    pub kinds: &'static [Kind],
    /// What has happened when its durable call returns, as its code has it. Short.
    pub durable: &'static str,
    /// What has happened when the call returns that does not wait. Short.
    pub submitted: &'static str,
    /// What else should be known beside its figures.
    pub more: &'static str,
    /// What it does when a write or a sync fails, as its code has it.
    pub failure: &'static str,
    /// Opens it in an empty directory, ready to be measured.
    pub open: fn(&Path, Kind) -> Opened,
}

/// All of them, in the order of the tables.
pub const ENTRIES: [&Entry; 12] = [
    &peers::ours::ENTRY,
    &peers::plain::ENTRY,
    &peers::writeahead::ENTRY,
    &peers::raft_engine::ENTRY,
    &peers::okaywal::ENTRY,
    &peers::fsys::ENTRY,
    &peers::wal_db::ENTRY,
    &peers::walrus::ENTRY,
    &peers::tracing_appender::ENTRY,
    &peers::queues::ARRAY_QUEUE,
    &peers::queues::MPSC,
    &peers::queues::NOTHING,
];

/// The one with this name.
pub fn entry(name: &str) -> Option<&'static Entry> {
    ENTRIES.into_iter().find(|entry| entry.name == name)
}
