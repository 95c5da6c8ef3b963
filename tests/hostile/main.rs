//! Directories that somebody, or something, has tampered with: links, pipes and devices under the log's
//! names, foreign files, other logs' segments, files without rights, of absurd size, or that come and go
//! while the log is opened. Every time: a typed error that names the file, or the log opens; nothing hangs,
//! nothing is allocated by what a file claims, and nothing of the user's is changed.
#![allow(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;
mod contents;
mod foreign;
mod kinds;
mod rights;
mod tools;
