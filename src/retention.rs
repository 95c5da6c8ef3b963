//! Where the log starts: trimming what nobody needs any more, by hand or as the options say, and how
//! much space all of it takes.
//!
//! The mark is written first, and is durable before anything else happens: from then on the log
//! starts later, whatever becomes of the files. A crash before that leaves the log as it was; after
//! it, files that nobody reads, which are given up in the background or at the next opening.

use core::fmt;
use std::path::PathBuf;

use crate::commit::Level;
use crate::cursor;
use crate::error::{Damage, IoError, Poison};
use crate::extent::Files;
use crate::log::Log;
use crate::lsn::Lsn;
use crate::mark::Mark;
use crate::numbers::Shut;
use crate::segment::ScanError;
use crate::shared::Shared;

impl Log {
    /// Lets the log start at `before`: all earlier records are gone for readers when this returns,
    /// durably, and the files that hold nothing else are used again or removed in the background.
    /// Returns the first number that the log holds now, or would hold.
    ///
    /// That is `before` exactly, also inside a segment, unless a cursor stands at a lower number
    /// (what it has not consumed is kept), or `before` lies behind the next record that is to become durable
    /// (then nothing is left but what comes later), or the log started later already. Space is given
    /// back by whole segments only, and never that of the live one.
    ///
    /// Blocks for one small write and sync, and for a search that reads a block or two of some
    /// segments. Appends go on meanwhile; those that wait for space do so no longer than it takes to
    /// give some back.
    ///
    /// # Errors
    /// See [`TrimError`]. After an `Io` error of writing the mark the log goes on from where it started
    /// before, but may start at `before` when it is opened next.
    pub fn trim(&self, before: Lsn) -> Result<Lsn, TrimError> {
        let shared = self.shared();
        if shared.fork.forked() {
            return Err(TrimError::Forked);
        }
        loop {
            let mut files = shared.extent.files();
            // Under the right to change files: closing gives the directory's lock back only after it.
            if let Some(poison) = shared.poison() {
                return Err(TrimError::Poisoned(poison.clone()));
            }
            if shared.numbers.shut_reason().is_some_and(|reason| reason >= Shut::Closed) {
                return Err(TrimError::Closed);
            }
            if let Some(trimmed) = trim_exactly(shared, &mut files, before.get())? {
                return Ok(Lsn::new(trimmed));
            }
            // Somebody is at the cursors, in another process maybe: waited for with nothing in hand.
            drop(files);
            drop(shared.store.lock_cursors().map_err(TrimError::Io)?);
        }
    }

    /// The first number that the log holds, or would hold: 1, or what [`trim`](Self::trim) and the
    /// options about retaining made of it.
    pub fn first_lsn(&self) -> Lsn {
        Lsn::new(self.shared().extent.first_lsn())
    }

    /// What the log's files take on the disk. Looks at files, and blocks while it does; what changes
    /// meanwhile may be counted or not.
    ///
    /// # Errors
    /// A file cannot be looked at: [`TrimError::Io`], or one of those for a damaged header.
    pub fn space(&self) -> Result<SpaceReport, TrimError> {
        let shared = self.shared();
        if shared.fork.forked() {
            return Err(TrimError::Forked);
        }
        let mut files = shared.extent.files();
        Ok(space(shared, &mut files)?)
    }
}

/// Why a log was not trimmed.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrimError {
    /// The log is closed: open it again to trim it.
    Closed,
    /// A write or a sync failed earlier. What is on the disk stays as it is.
    Poisoned(Poison),
    /// This is a forked child of the process that opened the log.
    Forked,
    /// What tells where a segment, or a cursor, starts is damaged. Nothing was trimmed.
    Damaged(Damage),
    /// A file there is not what its name says. Nothing was trimmed.
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused something.
    Io(IoError),
}

impl fmt::Display for TrimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the log is closed; open it again to trim it"),
            Self::Poisoned(poison) => write!(f, "{poison}; a log that failed is not trimmed"),
            Self::Forked => f.write_str(
                "this process was forked from the one that opened the log; open the log here instead",
            ),
            Self::Damaged(damage) => write!(f, "{damage}; nothing was trimmed"),
            Self::Foreign { path, reason } => {
                write!(f, "{} does not belong here: {reason}; nothing was trimmed", path.display())
            }
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TrimError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Poisoned(poison) => Some(poison),
            Self::Damaged(damage) => Some(damage),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ScanError> for TrimError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Damaged(damage) => TrimError::Damaged(damage),
            ScanError::Foreign { path, reason } => TrimError::Foreign { path, reason },
            ScanError::Io(error) => TrimError::Io(error),
        }
    }
}

impl From<TrimTrouble> for TrimError {
    fn from(trouble: TrimTrouble) -> Self {
        match trouble {
            TrimTrouble::Unreadable(error) => error.into(),
            TrimTrouble::Mark(error) => TrimError::Io(error),
        }
    }
}

/// What a log's files take, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SpaceReport {
    /// The segment that is written to.
    pub live_bytes: u64,
    /// Segments with records behind which the log moved on.
    pub sealed_bytes: u64,
    /// Segments that stand ready, and the one that is being made.
    pub ready_bytes: u64,
    /// Files that were segments, and wait to become one again or are being removed.
    pub spare_bytes: u64,
    /// All files of the log, the small ones among them.
    pub total_bytes: u64,
    /// Payload bytes in the live and sealed segments. `None` where a segment has no intact footer
    /// to tell. The lowest segment counts whole, even if the log starts inside it.
    pub payload_bytes: Option<u64>,
    /// `total_bytes` for each byte of payload; `None` where that is not known or zero.
    pub amplification: Option<f64>,
}

/// How far a trim may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bound {
    /// To what is durable, whatever a cursor has not consumed.
    Durable,
    /// To the lowest cursor.
    Cursors,
}

/// Why a trim was not done.
#[derive(Debug)]
pub(crate) enum TrimTrouble {
    /// Nothing was written.
    Unreadable(ScanError),
    /// Either mark may be found when the log is opened next.
    Mark(IoError),
}

impl From<ScanError> for TrimTrouble {
    fn from(error: ScanError) -> Self {
        TrimTrouble::Unreadable(error)
    }
}

/// Lets the log start at `before`, or as near as it may. None: others hold the cursors.
fn trim_exactly(
    shared: &Shared,
    files: &mut Files,
    before: u64,
) -> Result<Option<u64>, TrimTrouble> {
    let first = shared.extent.first_lsn();
    if before <= first {
        return Ok(Some(first));
    }
    let store = &*shared.store;
    let durable = shared.commit.watermark(Level::Synced);
    // No cursor may move back, or come into being, between the look and the mark.
    let Some(_cursors) = store.try_lock_cursors().map_err(ScanError::Io)? else {
        return Ok(None);
    };
    let lowest = cursor::lowest_position(store)?.unwrap_or(u64::MAX);
    let start = before.min(durable + 1).min(lowest);
    if start <= first {
        return Ok(Some(first));
    }
    // A segment with a durable batch stays: it is where recovery finds the end of the log.
    files.catalog.keep_up(shared.extent.generation());
    let epoch = files.catalog.segment_of(store, shared.extent.extremes(), start.min(durable))?;
    set_start(shared, files, start, epoch)?;
    Ok(Some(start))
}

/// Trims the segments below `epoch`, or as many of them as may go. True: at least one.
pub(crate) fn trim_segments(
    shared: &Shared,
    files: &mut Files,
    epoch: u64,
    bound: Bound,
) -> Result<bool, TrimTrouble> {
    let store = &*shared.store;
    let among = shared.extent.extremes();
    if epoch <= among.first_epoch {
        return Ok(false);
    }
    // Who holds it may be stopped; the preparer must not be with it. It is tried again soon.
    let Some(_cursors) = store.try_lock_cursors().map_err(ScanError::Io)? else {
        return Ok(false);
    };
    let lowest = match bound {
        Bound::Durable => u64::MAX,
        Bound::Cursors => cursor::lowest_position(store)?.unwrap_or(u64::MAX),
    };
    let reach = shared.commit.watermark(Level::Synced).min(lowest);
    let epoch = epoch.min(files.catalog.segment_of(store, among, reach)?);
    let start = files.catalog.first_lsn_from(store, epoch, among.live_epoch)?;
    let Some(start) = start.filter(|&start| epoch > among.first_epoch && start <= reach) else {
        return Ok(false);
    };
    set_start(shared, files, start.max(shared.extent.first_lsn()), epoch)?;
    Ok(true)
}

/// Writes the mark; then, and only then, the log starts there.
fn set_start(
    shared: &Shared,
    files: &mut Files,
    first_lsn: u64,
    first_epoch: u64,
) -> Result<(), TrimTrouble> {
    let mark = Mark { first_lsn, first_epoch, ..*files.mark.get() };
    files.mark.set(&*shared.store, mark).map_err(TrimTrouble::Mark)?;
    let before = shared.extent.first_lsn();
    shared.extent.trimmed(first_lsn, first_epoch);
    shared.counters.trims.add(1);
    shared.counters.trimmed_records.add(first_lsn - before);
    // It gives the files up, and whoever waits for space gets it.
    shared.preparer.tell();
    Ok(())
}

/// The lowest segment from which on at most `bytes` stand in files; the live one at the latest.
pub(crate) fn first_within(
    shared: &Shared,
    files: &mut Files,
    bytes: u64,
) -> Result<u64, ScanError> {
    let among = shared.extent.extremes();
    let mut sum = 0u64;
    for epoch in (among.first_epoch..=among.live_epoch).rev() {
        sum += files.catalog.file_bytes(&*shared.store, epoch, among.live_epoch)?;
        if sum > bytes {
            return Ok((epoch + 1).min(among.live_epoch));
        }
    }
    Ok(among.first_epoch)
}

/// The lowest segment whose last batch is not older than `oldest_ns`; the live one at the latest.
pub(crate) fn first_younger(
    shared: &Shared,
    files: &mut Files,
    oldest_ns: u64,
) -> Result<u64, ScanError> {
    let among = shared.extent.extremes();
    for epoch in among.first_epoch..among.live_epoch {
        let last = files.catalog.last_wall_ns(&*shared.store, epoch, among.live_epoch)?;
        if last.is_some_and(|last| last >= oldest_ns) {
            return Ok(epoch);
        }
    }
    Ok(among.live_epoch)
}

fn space(shared: &Shared, files: &mut Files) -> Result<SpaceReport, ScanError> {
    let store = &*shared.store;
    let among = shared.extent.extremes();
    files.catalog.keep_up(shared.extent.generation());
    let live_bytes = files.catalog.file_bytes(store, among.live_epoch, among.live_epoch)?;
    let (mut sealed_bytes, mut payload_bytes) = (0, Some(shared.extent.live_payload_bytes()));
    for epoch in among.first_epoch..among.live_epoch {
        sealed_bytes += files.catalog.file_bytes(store, epoch, among.live_epoch)?;
        let payload = files.catalog.facts(store, epoch, among.live_epoch)?.payload_bytes;
        payload_bytes = payload_bytes.zip(payload).map(|(sum, payload)| sum + payload);
    }
    let mut ready_bytes = files.making_bytes;
    for epoch in among.live_epoch + 1..files.next_epoch {
        ready_bytes += files.catalog.file_bytes(store, epoch, among.live_epoch)?;
    }
    // Trimmed segments whose files were not given up yet are no different.
    let all = files.segment_files_bytes(shared)?;
    let total_bytes = all + files.small_files_bytes(store)?;
    Ok(SpaceReport {
        live_bytes,
        sealed_bytes,
        ready_bytes,
        spare_bytes: all.saturating_sub(live_bytes + sealed_bytes + ready_bytes),
        total_bytes,
        payload_bytes,
        amplification: payload_bytes
            .filter(|&bytes| bytes > 0)
            .map(|bytes| total_bytes as f64 / bytes as f64),
    })
}
