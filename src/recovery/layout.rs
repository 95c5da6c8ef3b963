//! Which files make up a log: what the mark says, what the names say, and what a truncation left
//! behind. Segments are opened from the highest down, as far as they are needed.

use std::collections::BTreeSet;
use std::io;

use crate::disk::Store;
use crate::error::{Damage, IoError};
use crate::frame::{self, LogId};
use crate::lsn::Lsn;
use crate::mark::{self, Mark};
use crate::segment::{self, SPARE_SUFFIX, ScanError, Segment};

use super::survey::first_lsn_of;

/// The segments of a log.
pub(super) struct Layout<'a> {
    store: &'a dyn Store,
    /// What the mark says; that of a new log where there is none.
    pub(super) mark: Mark,
    /// Whose mark it is, or else the segment's that was opened first.
    log_id: Option<LogId>,
    /// All segments of the log in ascending order, without gaps.
    pub(super) epochs: Vec<u64>,
    /// The highest of them: those that were opened, in ascending order.
    pub(super) opened: Vec<Segment>,
    /// Segments below the log's start.
    pub(super) trimmed: Vec<u64>,
    /// Segments that a completed truncation cut off.
    pub(super) stale: Vec<Segment>,
    /// Where the last truncation is complete: the segment that it began with, and its generation.
    cut: Option<(u64, u64)>,
}

impl<'a> Layout<'a> {
    /// Reads the mark and the names. None: there is no log.
    pub(super) fn find(store: &'a dyn Store) -> Result<Option<Layout<'a>>, ScanError> {
        let found = mark::find_mark(store)?;
        let epochs = segment::list_segments(store)?;
        if found.is_none() && epochs.is_empty() {
            return Ok(None);
        }
        let (log_id, mark) = found.map_or((None, Mark::new()), |(id, mark)| (Some(id), mark));
        let (trimmed, epochs) = epochs.into_iter().partition(|&epoch| epoch < mark.first_epoch);
        let mut layout = Layout {
            store,
            mark,
            log_id,
            epochs,
            opened: Vec::new(),
            trimmed,
            stale: Vec::new(),
            cut: None,
        };
        if layout.epochs.first() != Some(&layout.mark.first_epoch) {
            return Err(layout.start_is_missing());
        }
        layout.set_stale_aside()?;
        layout.check_no_gap()?;
        Ok(Some(layout))
    }

    pub(super) fn log_id(&self) -> LogId {
        match (self.opened.first(), self.log_id) {
            (Some(segment), _) => segment.header.log_id,
            (None, id) => id.unwrap_or(LogId([0; 16])),
        }
    }

    /// Opens the highest segment that is not open yet. False: all are.
    pub(super) fn open_next(&mut self) -> Result<bool, ScanError> {
        let left = self.epochs.len() - self.opened.len();
        let Some(&epoch) = self.epochs[..left].last() else { return Ok(false) };
        let segment = self.open(epoch)?;
        self.check_whole(&segment, self.opened.first())?;
        self.check_generation(&segment)?;
        self.opened.insert(0, segment);
        Ok(true)
    }

    /// Whether the lowest segment that is open is the log's first.
    pub(super) fn is_all_open(&self) -> bool {
        self.opened.len() == self.epochs.len()
    }

    fn open(&mut self, epoch: u64) -> Result<Segment, ScanError> {
        let (segment, _) = Segment::open(self.store, epoch)?;
        if let Some(log_id) = self.log_id {
            segment.check_log(self.store, log_id)?;
        }
        self.log_id = Some(segment.header.log_id);
        Ok(segment)
    }

    /// Tells what a truncation cut off from what never was. It is complete once the segment that it
    /// began with has its name: segments above it of a lower generation are stale then, whatever they
    /// vouch for. Before that, nothing has happened.
    ///
    /// Where that segment is trimmed away by now, everything stale was given up long before.
    fn set_stale_aside(&mut self) -> Result<(), ScanError> {
        let (begin, generation) = (self.mark.generation_epoch, self.mark.generation);
        if generation == 0 || begin < self.mark.first_epoch {
            return Ok(());
        }
        let mut older = Vec::new();
        while let Some(&epoch) = self.epochs.last()
            && epoch >= begin
        {
            let segment = self.open(epoch)?;
            if segment.header.generation >= generation {
                self.check_whole(&segment, None)?;
                self.opened.push(segment);
                self.stale = older;
                self.cut = Some((begin, generation));
                return Ok(());
            }
            if epoch == begin {
                break;
            }
            self.epochs.pop();
            older.push(segment);
        }
        self.epochs.extend(older.iter().rev().map(|segment| segment.epoch));
        Ok(())
    }

    /// From one segment to the next the generation never goes down, it goes up only where a segment says that it
    /// begins one, and from the one on that the last truncation began with it is that truncation's, at least.
    fn check_generation(&self, segment: &Segment) -> Result<(), ScanError> {
        let cut = self.cut.filter(|(begin, _)| segment.epoch >= *begin).map(|(_, least)| least);
        let (found, least) = match self.opened.first() {
            Some(next) if next.header.generation < segment.header.generation => {
                (next, segment.header.generation)
            }
            Some(next) if next.header.resume.is_none() => (segment, next.header.generation),
            _ => (segment, cut.unwrap_or(0)),
        };
        if found.header.generation >= least {
            return Ok(());
        }
        Err(ScanError::Damaged(Damage {
            segment: segment::segment_path(self.store, found.epoch),
            offset: 0,
            lost: None,
            detail: older_header(found.header.generation, least),
        }))
    }

    fn check_no_gap(&self) -> Result<(), ScanError> {
        // Ready segments count too: they are made in order, and given up from the last one down.
        match self.epochs.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
            None => Ok(()),
            Some(pair) => Err(self.missing(pair[0] + 1, None)),
        }
    }

    fn start_is_missing(&self) -> ScanError {
        let first = self.mark.first_lsn;
        // The first number of the next segment, where it tells: the first error is the one to report.
        let next = self.epochs.first().and_then(|&epoch| {
            let (segment, _) = Segment::open(self.store, epoch).ok()?;
            first_lsn_of(self.store, &segment).ok()?
        });
        let lost = next.filter(|&next| next > first);
        self.missing(self.mark.first_epoch, lost.map(|next| (Lsn::new(first), Lsn::new(next - 1))))
    }

    fn missing(&self, epoch: u64, lost: Option<(Lsn, Lsn)>) -> ScanError {
        ScanError::Damaged(Damage {
            segment: segment::segment_path(self.store, epoch),
            offset: 0,
            lost,
            detail: "the segment file is missing".to_owned(),
        })
    }

    /// A segment has its full size from the start; only one that was superseded is cut. A shorter one
    /// has lost whatever stood behind, and nothing there can vouch for it any more.
    fn check_whole(&self, segment: &Segment, next: Option<&Segment>) -> Result<(), ScanError> {
        let superseded = next.is_some_and(|next| next.header.resume.is_some());
        if segment.file_bytes >= segment.header.segment_bytes || superseded {
            return Ok(());
        }
        Err(ScanError::Damaged(Damage {
            segment: segment::segment_path(self.store, segment.epoch),
            offset: segment.file_bytes,
            lost: None,
            detail: format!(
                "the file was cut to {} of {} bytes; records behind that are lost, if there were any",
                segment.file_bytes, segment.header.segment_bytes
            ),
        }))
    }
}

/// What is wrong with a segment whose generation is lower than what stands before it, or than a truncation's that
/// came before it.
pub(crate) fn older_header(generation: u64, least: u64) -> String {
    format!(
        "its header is of generation {generation}, from before the truncation that began generation {least}: when \
         the file was used again, the write of its new header never reached this place"
    )
}

/// The files that wait to be used again, with their sizes in bytes. What cannot be opened is left
/// alone.
pub(super) fn list_spares(store: &dyn Store) -> Result<Vec<(String, u64)>, IoError> {
    let mut spares = Vec::new();
    for name in list(store)?.into_iter().filter(|name| is_spare(name)) {
        let opened = store.open(&name, crate::disk::Access::Read);
        if let Ok(bytes) = opened.and_then(|file| file.len()) {
            spares.push((name, bytes));
        }
    }
    spares.sort_unstable();
    Ok(spares)
}

/// Gives up segments' files: they will be used again, or removed bit by bit.
pub(crate) struct GiveUp<'a> {
    store: &'a dyn Store,
    names: BTreeSet<String>,
}

impl<'a> GiveUp<'a> {
    pub(crate) fn new(store: &'a dyn Store) -> Result<Self, IoError> {
        Ok(GiveUp { store, names: list(store)?.into_iter().collect() })
    }

    /// Takes the segment's name away from its file. The caller syncs the directory.
    pub(crate) fn rename(&mut self, epoch: u64, generation: u64) -> Result<(), IoError> {
        let free =
            |generation: &u64| !self.names.contains(&segment::spare_name(epoch, *generation));
        // There are fewer names than numbers.
        let generation = (generation..=u64::MAX).find(free).unwrap_or(generation);
        let (old, new) = (frame::segment_name(epoch), segment::spare_name(epoch, generation));
        let store = self.store;
        store.rename(&old, &new).map_err(|e| IoError::new("give up", store.path(&old), e))?;
        self.names.insert(new);
        Ok(())
    }
}

fn list(store: &dyn Store) -> Result<Vec<String>, IoError> {
    store.list().map_err(|e: io::Error| IoError::new("list", segment::dir_path(store), e))
}

/// Whether a name is that of a file of ours that waits to be used again.
fn is_spare(name: &str) -> bool {
    let Some((epoch, number)) =
        name.strip_suffix(SPARE_SUFFIX).and_then(|stem| stem.split_once('-'))
    else {
        return false;
    };
    frame::parse_segment_name(&format!("{epoch}.seg")).is_some()
        && number.parse().is_ok_and(|parsed: u64| parsed.to_string() == number)
}
