//! [`repair`]: makes a damaged log one that opens again, and keeps a copy of every file that it changes.
//!
//! A log is a dense prefix: it cannot hold what stands before a hole and what stands behind it. So a repair
//! keeps one of the two ([`RepairOptions::keep`]). By default it **cuts**: what stands before the first lost
//! record stays, and the cut is a truncation, with a new generation, so that readers and cursors learn of it.
//! Where that is asked for, or where nothing intact leaves the log by it, the log **starts** behind the last
//! hole instead, as if all before were trimmed. The intact records that leave the log stand in the copy:
//! [`salvage`](crate::salvage) reads them there.
//!
//! What can be written anew without loss (one copy of a header, padding, a footer, a slot of the mark) is, in
//! place. The steps are in [`carry_out`](carry_out::carry_out): the copy is durable before the first change,
//! and each change leaves the log as it was, or repaired, or damaged as before, for the next repair.

mod carry_out;
mod error;
mod files;
mod keep;
mod plan;
mod rebuild;
mod step;
#[cfg(test)]
mod tests;

use core::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use error::RepairError;

use crate::cursor;
use crate::disk::os::OsStore;
use crate::disk::{LockError, Store};
use crate::error::{IoError, OpenError};
use crate::lsn::Lsn;
use crate::segment;
use crate::verify::{self, Lost, VerifyReport};
use plan::Plan;

/// How a log is repaired.
#[derive(Clone, Debug, Default)]
pub struct RepairOptions {
    keep: Keep,
    copy_to: Option<PathBuf>,
}

/// What stays in a log that has a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Keep {
    /// What stands before the first lost record; where nothing does, what stands behind the last one, if no
    /// intact record leaves the log by that.
    #[default]
    Before,
    /// What stands behind the last lost record, from the beginning of a segment on.
    After,
}

impl RepairOptions {
    /// Keeps what stands before the hole.
    pub fn new() -> Self {
        RepairOptions::default()
    }

    /// What stays in a log that has a hole.
    #[must_use]
    pub fn keep(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self
    }

    /// The directory for the copy of what is changed, which is made; it may be on another file system. Default:
    /// beside the log, `DIR.repair-1`, or the next number that is free.
    #[must_use]
    pub fn copy_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.copy_to = Some(path.into());
        self
    }

    /// Where the copy will be. What stands there already is an error.
    fn place(&self, dir: &Path) -> Result<PathBuf, RepairError> {
        let Some(path) = &self.copy_to else { return free_name(dir) };
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.clone()),
            Err(error) => Err(IoError::new("look for", path, error).into()),
            Ok(_) => Err(IoError::new("make", path, io::ErrorKind::AlreadyExists.into()).into()),
        }
    }
}

/// What a repair does, or has done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RepairReport {
    /// What is changed, in order; empty: nothing has to be.
    pub steps: Vec<RepairStep>,
    /// The acknowledged records that are lost for good.
    pub lost: Vec<Lost>,
    /// Intact records that leave the log, as ranges: first and last. They are in the copy.
    pub leaving: Vec<(Lsn, Lsn)>,
    /// The first record of the log afterwards, or the number that its first one will get.
    pub first_lsn: Lsn,
    /// The last one; one less than `first_lsn` when there is none.
    pub last_lsn: Lsn,
    /// The files that are kept as they were, with their sizes in bytes.
    pub kept: Vec<(String, u64)>,
    /// Files that are new.
    pub made: Vec<String>,
    /// What stays in the log's directory under another name: the old one and the new one.
    pub renamed: Vec<(String, String)>,
    /// The directory in which they are kept.
    pub kept_in: PathBuf,
    /// Bytes that the repair needs, for the copy and for new files in the log.
    pub needed_bytes: u64,
    /// What the log is like afterwards; none for a plan.
    pub after: Option<VerifyReport>,
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RepairStep {
    /// The file.
    pub file: PathBuf,
    /// What happens to it.
    pub what: String,
}

impl fmt::Display for RepairStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.what)
    }
}

/// Says what [`repair`] would do to the log in `dir`. Reads all of it, changes nothing, takes no lock.
///
/// # Errors
/// See [`RepairError`].
pub fn plan_repair(
    dir: impl AsRef<Path>,
    options: &RepairOptions,
) -> Result<RepairReport, RepairError> {
    let dir = dir.as_ref();
    let store = OsStore::open_read_only(dir).map_err(OpenError::into_read_error)?;
    let plan = Plan::make(&*store, options.keep)?;
    Ok(plan.report(&*store, options.place(dir)?))
}

/// Repairs the log in `dir`, which nobody may have open for writing. Every file that is changed or taken
/// away is copied to a new directory first ([`RepairOptions::copy_to`]; else beside the log, `DIR.repair-1`),
/// with a file `repair.txt` that says what was done and how to undo it.
///
/// Records can leave the log by it: see [`plan_repair`] before. Does nothing where nothing is damaged.
/// Reads all of the log twice, and blocks meanwhile.
///
/// # Errors
/// See [`RepairError`]. What was not repaired is as damaged as before, and can be repaired again.
pub fn repair(dir: impl AsRef<Path>, options: &RepairOptions) -> Result<RepairReport, RepairError> {
    let dir = dir.as_ref();
    let store = OsStore::open(dir, false, true).map_err(RepairError::opening)?;
    let _lock = lock(&*store)?;
    let plan = Plan::make(&*store, options.keep)?;
    let mut report = plan.report(&*store, options.place(dir)?);
    if plan.is_empty() {
        return Ok(report);
    }
    check_space(dir, &report.kept_in, plan.made_bytes, plan.kept_bytes())?;
    let kept = OsStore::open(&report.kept_in, true, true).map_err(RepairError::opening)?;
    report.after = Some(repair_store(&*store, &*kept, &plan, &report)?);
    Ok(report)
}

/// Carries the plan out; `kept` is a new directory.
pub(crate) fn repair_store(
    store: &dyn Store,
    kept: &dyn Store,
    plan: &Plan,
    report: &RepairReport,
) -> Result<VerifyReport, RepairError> {
    let _cursors = store.lock_cursors()?;
    keep::keep(store, kept, report)?;
    carry_out::carry_out(store, plan)?;
    Ok(verify::verify_store(store)?)
}

fn lock(store: &dyn Store) -> Result<crate::disk::LockGuard, RepairError> {
    store.lock().map_err(|error| match error {
        LockError::Held(holder) => RepairError::Locked { dir: segment::dir_path(store), holder },
        LockError::Io(error) => RepairError::Io(error),
    })
}

/// The first name beside the log that is free.
fn free_name(dir: &Path) -> Result<PathBuf, RepairError> {
    let failed = |error| IoError::new("find", dir, error);
    // "." and the like have no name to add to.
    let whole = match dir.file_name() {
        Some(_) => dir.to_owned(),
        None => std::fs::canonicalize(dir).map_err(failed)?,
    };
    let Some(name) = whole.file_name() else {
        return Err(failed(io::Error::other("nothing can stand beside it")).into());
    };
    // Not by its end: "log/" is "log".
    let free = (1..u64::MAX).map(|number| {
        let mut name = name.to_owned();
        name.push(format!(".repair-{number}"));
        whole.with_file_name(name)
    });
    let taken = |path: &PathBuf| std::fs::symlink_metadata(path).is_ok();
    Ok(free.into_iter().find(|path| !taken(path)).unwrap_or_default())
}

/// The new files go to the log's file system, the copy to that of the directory that it is made in.
fn check_space(
    dir: &Path,
    copy: &Path,
    made_bytes: u64,
    kept_bytes: u64,
) -> Result<(), RepairError> {
    let beside = match copy.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let device = |path: &Path| {
        let found =
            std::fs::metadata(path).map(|found| std::os::unix::fs::MetadataExt::dev(&found));
        found.map_err(|error| IoError::new("look for", path, error))
    };
    if device(dir)? == device(beside)? {
        return check_free(dir, made_bytes + kept_bytes);
    }
    check_free(dir, made_bytes)?;
    check_free(beside, kept_bytes)
}

fn check_free(dir: &Path, needed_bytes: u64) -> Result<(), RepairError> {
    let free = rustix::fs::statvfs(dir)
        .map_err(|error| IoError::new("ask for the free space of", dir, error.into()))?;
    let free_bytes = free.f_bavail.saturating_mul(free.f_frsize);
    match needed_bytes <= free_bytes {
        true => Ok(()),
        false => Err(RepairError::NoSpace { dir: dir.to_owned(), needed_bytes, free_bytes }),
    }
}

/// Cursors that consumers and trims get an error from, by file name.
fn broken_cursors(
    store: &dyn Store,
    log_id: Option<crate::LogId>,
) -> Result<Vec<(String, Option<u64>)>, IoError> {
    let all = cursor::examine(store, log_id)?;
    Ok(all.into_iter().filter(|c| c.is_damaged()).map(|c| (c.file, c.position)).collect())
}
