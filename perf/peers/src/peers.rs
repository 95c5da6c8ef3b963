//! The peers, one to a file. What is said of a guarantee was read in the code of that version.
pub mod fsys;
pub mod okaywal;
pub mod ours;
pub mod plain;
pub mod queues;
pub mod raft_engine;
pub mod tracing_appender;
pub mod wal_db;
pub mod walrus;
pub mod writeahead;
