//! What the log holds: where it starts, in which generation it is, and who may change its files.
//!
//! Trimming moves the start, a truncation begins a new generation; both write the mark first. The
//! numbers here follow the mark: what they say is durable. Readers of this process look at them
//! without a lock.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_utils::CachePadded;

use crate::catalog::{Catalog, Extremes};
use crate::cursor::CURSOR_SUFFIX;
use crate::disk::{Access, Store};
use crate::error::IoError;
use crate::mark::{MARK_NAME, MarkFile};
use crate::segment::{self, ScanError};
use crate::shared::Shared;
use crate::spares::Spares;
use crate::sync::{AtomicU64, Ordering};

pub(crate) struct Extent {
    /// The first record that the log holds, or would hold.
    first_lsn: AtomicU64,
    /// The lowest segment of the log.
    first_epoch: AtomicU64,
    /// The segment that batches go to.
    live_epoch: AtomicU64,
    /// Payload bytes in it.
    live_payload_bytes: AtomicU64,
    /// Truncations so far, in the log's whole life. Producers read it with every record: nothing
    /// that changes stands beside it.
    generation: CachePadded<AtomicU64>,
    /// The truncations since the log was opened, in order.
    cuts: Mutex<Vec<Cut>>,
    files: Mutex<Files>,
}

/// A truncation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    /// The generation that it began.
    pub(crate) generation: u64,
    /// The last record that it kept.
    pub(crate) after: u64,
    /// The last record that there was.
    pub(crate) last: u64,
}

/// What one thread at a time may change: the segment files other than the live one, and the mark.
/// Held by the preparer for a step, by a trim, and by a truncation; never by the writer while it
/// writes, and never by a producer.
pub(crate) struct Files {
    pub(crate) mark: MarkFile,
    /// Epoch of the next segment to prepare. A truncation sets it back.
    pub(crate) next_epoch: u64,
    /// The lowest segment whose file may still have its name. Those from here to the log's first
    /// segment are trimmed, and about to be given up.
    pub(crate) first_file: u64,
    /// Files that are not part of the log any more.
    pub(crate) spares: Spares,
    /// Bytes of the file that is being made.
    pub(crate) making_bytes: u64,
    pub(crate) catalog: Catalog,
}

impl Files {
    /// What a log has when it is opened: all segments from the mark's first one up to `next_epoch`,
    /// and files that wait to be used again.
    pub(crate) fn new(mark: MarkFile, next_epoch: u64, spares: Spares) -> Self {
        let first_file = mark.get().first_epoch;
        let catalog = Catalog::default();
        Files { mark, next_epoch, first_file, spares, making_bytes: 0, catalog }
    }

    /// Bytes of all segment files: those of the log, trimmed ones not given up yet, spare ones,
    /// and the one that is being made.
    pub(crate) fn segment_files_bytes(&mut self, shared: &Shared) -> Result<u64, ScanError> {
        let live_epoch = shared.extent.live_epoch();
        let mut sum = self.spares.bytes() + self.making_bytes;
        for epoch in self.first_file..self.next_epoch {
            sum += match self.catalog.file_bytes(&*shared.store, epoch, live_epoch) {
                Err(ScanError::Io(error)) if error.source.kind() == io::ErrorKind::NotFound => 0,
                bytes => bytes?,
            };
        }
        Ok(sum)
    }

    /// Bytes of the log's other files.
    pub(crate) fn small_files_bytes(&self, store: &dyn Store) -> Result<u64, ScanError> {
        let failed = |e| IoError::new("list", segment::dir_path(store), e);
        let ours = |name: &String| {
            name.ends_with(CURSOR_SUFFIX) || [MARK_NAME, "calibration", "status"].contains(&&**name)
        };
        let mut sum = 0;
        for name in store.list().map_err(failed)?.into_iter().filter(ours) {
            match store.open(&name, Access::Read).and_then(|file| file.len()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let path = store.path(&name);
                    return Err(IoError::new("read the size of", path, error).into());
                }
                Ok(bytes) => sum += bytes,
            }
        }
        Ok(sum)
    }
}

impl Extent {
    pub(crate) fn new(files: Files, live_epoch: u64) -> Self {
        let mark = *files.mark.get();
        Extent {
            first_lsn: AtomicU64::new(mark.first_lsn),
            first_epoch: AtomicU64::new(mark.first_epoch),
            live_epoch: AtomicU64::new(live_epoch),
            live_payload_bytes: AtomicU64::new(0),
            generation: CachePadded::new(AtomicU64::new(mark.generation)),
            cuts: Mutex::new(Vec::new()),
            files: Mutex::new(files),
        }
    }

    /// The first record that the log holds, or would hold.
    pub(crate) fn first_lsn(&self) -> u64 {
        // Acquire: partner is the Release in `trimmed`.
        self.first_lsn.load(Ordering::Acquire)
    }

    /// The lowest segment of the log.
    pub(crate) fn first_epoch(&self) -> u64 {
        self.first_epoch.load(Ordering::Acquire)
    }

    /// The segment that batches go to. It may be a moment behind the writer.
    pub(crate) fn live_epoch(&self) -> u64 {
        self.live_epoch.load(Ordering::Acquire)
    }

    /// The writer moved on, or a truncation moved it back.
    pub(crate) fn set_live_epoch(&self, epoch: u64) {
        self.live_epoch.store(epoch, Ordering::Release);
    }

    /// Payload bytes in the live segment. It may be a moment behind the writer.
    pub(crate) fn live_payload_bytes(&self) -> u64 {
        self.live_payload_bytes.load(Ordering::Relaxed)
    }

    /// The writer's note of them.
    pub(crate) fn set_live_payload_bytes(&self, bytes: u64) {
        self.live_payload_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The log's segments that hold something.
    pub(crate) fn extremes(&self) -> Extremes {
        Extremes { first_epoch: self.first_epoch(), live_epoch: self.live_epoch() }
    }

    /// Truncations so far, in the log's whole life.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        // Acquire: partner is the Release in `truncated`.
        self.generation.load(Ordering::Acquire)
    }

    /// The last record that is left of what the log held in `generation`; none when nothing was cut
    /// since.
    pub(crate) fn kept_since(&self, generation: u64) -> Option<u64> {
        if self.generation() == generation {
            return None;
        }
        let cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        cuts.iter().filter(|cut| cut.generation > generation).map(|cut| cut.after).min()
    }

    /// The last record that was kept when the record `lsn`, which was there in `generation`, was cut
    /// off; none when it was not.
    #[inline]
    pub(crate) fn cut_off(&self, lsn: u64, generation: u64) -> Option<u64> {
        if self.generation() == generation {
            return None;
        }
        let cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        let hit = |cut: &&Cut| cut.generation > generation && cut.after < lsn && lsn <= cut.last;
        cuts.iter().find(hit).map(|cut| cut.after)
    }

    /// The mark says that the log starts later now.
    pub(crate) fn trimmed(&self, first_lsn: u64, first_epoch: u64) {
        self.first_epoch.store(first_epoch, Ordering::Release);
        // Release: partner is the Acquire in `first_lsn`.
        self.first_lsn.store(first_lsn, Ordering::Release);
    }

    /// A truncation is complete on disk.
    pub(crate) fn truncated(&self, cut: Cut) {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).push(cut);
        // Release: partner is the Acquire in `generation`.
        self.generation.store(cut.generation, Ordering::Release);
    }

    /// The right to change files. A panic elsewhere does not make them wrong: what is on disk is
    /// whole after every step.
    pub(crate) fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
