//! The changes that a repair is made of, and what is said of each.

use super::RepairStep;
use crate::disk::Store;
use crate::footer::Footer;
use crate::frame::SegmentHeader;
use crate::mark::{Closed, MARK_NAME, Mark};
use crate::segment;

/// One change. Each is done wholly, or can be done again.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Writes the copies of the header that are not intact.
    Header {
        epoch: u64,
        header: SegmentHeader,
        copies: [bool; 2],
    },
    /// Writes a batch again, with zeros where zeros must be.
    Padding {
        epoch: u64,
        header: SegmentHeader,
        offset: u64,
    },
    Footer {
        epoch: u64,
        header: SegmentHeader,
        footer: Box<Footer>,
    },
    /// Writes the file to other places on the device: it has blocks that cannot be read, and hold nothing.
    Rewrite {
        epoch: u64,
    },
    /// Gives a segment its name back. With such steps in a plan there are no others.
    Back {
        name: String,
        epoch: u64,
    },
    /// Gives what stands under a name another one: it is no file, or stands where a segment goes.
    Aside {
        name: String,
        to: String,
        what: String,
    },
    /// Takes a file away that does not belong here.
    Away {
        name: String,
    },
    /// Writes the mark anew.
    Mark {
        mark: Mark,
    },
    /// The log starts later.
    Start {
        mark: Mark,
    },
    /// The log ends earlier: the segment with this header supersedes what follows.
    Cut {
        mark: Mark,
        header: SegmentHeader,
        /// What the mark says of the end until the segment stands: by it alone the end may be known to be
        /// lost.
        closed: Option<Closed>,
        /// Segments with records that stay and that nothing shows to be durable, and where those end.
        unsynced: Vec<(u64, u64)>,
    },
    /// Sets a cursor back that stands behind the cut: every truncation does.
    Clamp {
        file: String,
        from: u64,
        to: u64,
    },
    /// Makes a cursor anew that cannot be read.
    Cursor {
        file: String,
        position: u64,
    },
}

impl Step {
    pub(super) fn named(&self, store: &dyn Store) -> RepairStep {
        let segment = |epoch: &u64| segment::segment_path(store, *epoch);
        let (file, what) = match self {
            Step::Header { epoch, copies: [false, false], .. } => (
                segment(epoch),
                "both copies of the header are written anew, from what the batches and the other \
                 segments tell; no record is lost"
                    .to_owned(),
            ),
            Step::Header { epoch, .. } => (
                segment(epoch),
                "one copy of the header is written anew from the other".to_owned(),
            ),
            Step::Padding { epoch, offset, .. } => (
                segment(epoch),
                format!("bytes behind the records of the batch at {offset} become zeros again"),
            ),
            Step::Footer { epoch, .. } => (
                segment(epoch),
                "the footer, a cache, is written anew from the batches".to_owned(),
            ),
            Step::Rewrite { epoch } => (
                segment(epoch),
                "the file is copied to other places of the device: it has blocks that cannot be read"
                    .to_owned(),
            ),
            Step::Back { name, epoch } => (
                store.path(name),
                format!(
                    "it is segment {epoch}, and gets that name back; repair again for what else there is"
                ),
            ),
            Step::Aside { name, to, what } => {
                (store.path(name), format!("{what}: it is kept here, and renamed to {to}"))
            }
            Step::Away { name } => {
                (store.path(name), "it does not belong here, and is taken away".to_owned())
            }
            Step::Mark { .. } => {
                (store.path(MARK_NAME), "it is written anew; no record is lost by that".to_owned())
            }
            Step::Start { mark } => (
                store.path(MARK_NAME),
                format!(
                    "the log starts at record {} now, in segment {}; what stands before leaves it",
                    mark.first_lsn, mark.first_epoch
                ),
            ),
            Step::Cut { header, .. } => (
                segment(&header.epoch),
                format!(
                    "the log is cut behind record {}, as a truncation, generation {}; what stands behind \
                     leaves it, and the numbers from {} on will be given out again",
                    header.truncated_after, header.generation, header.first_lsn
                ),
            ),
            Step::Clamp { file, from, to } => (
                store.path(file),
                format!(
                    "the cursor is set back from {from} to {to}: the log had records at least to {}, by it",
                    from - 1
                ),
            ),
            Step::Cursor { file, position } => {
                (store.path(file), format!("the cursor is made anew, and stands at {position}"))
            }
        };
        RepairStep { file, what }
    }
}
