//! What a walk over a log met: runs of intact records, and the holes between them.

use crate::footer::Footer;

/// What a walk met.
pub(crate) struct Walked {
    pub(crate) segments: u64,
    pub(crate) batches: u64,
    pub(crate) bytes: u64,
    /// Runs of intact batches that hold records, in order.
    pub(crate) runs: Vec<Run>,
    pub(crate) holes: Vec<Hole>,
    pub(crate) holes_left_out: u64,
    /// Every record up to this number was durable.
    pub(crate) vouched_lsn: u64,
    /// Behind the last intact batch.
    pub(crate) end: Place,
    /// The latest clock of any.
    pub(crate) wall_ns: u64,
    /// The first record that was met, or that a header speaks of.
    pub(crate) anchor_lsn: Option<u64>,
    /// The first segment behind the last hole that begins with an intact batch, and the number of that.
    pub(crate) clean_from: Option<(u64, u64)>,
    pub(crate) mends: Vec<Mend>,
    /// Bytes that belong to nothing, where nothing is missing.
    pub(crate) odd: Vec<(u64, u64, String)>,
    /// Segments without a readable header that begin with an intact batch, and the offset of that.
    pub(crate) first_batches: Vec<(u64, u64)>,
    /// Blocks that the device does not give, by segment and offset.
    pub(crate) unreadable: Vec<(u64, u64, String)>,
}

/// Intact records that follow one another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) payload_bytes: u64,
}

/// A place in the chain, behind a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    /// Header checksum of the batch before, and the number behind it; none where no batch stands before.
    pub(crate) link: Option<(u32, u64)>,
}

/// A place where the chain breaks.
#[derive(Clone, Debug)]
pub(crate) struct Hole {
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    /// The first number that is missing, and the last where something tells. `last` before `first`: no
    /// record is missing, only what stood between.
    pub(crate) first: u64,
    pub(crate) last: Option<u64>,
    pub(crate) detail: String,
    /// Whether the place itself says that something durable stood there, whatever vouches for records.
    pub(crate) is_certain: bool,
    /// Behind the last intact batch before it.
    pub(crate) before: Place,
    /// [`Walked::clean_from`] as it was before it.
    pub(crate) clean_before: Option<(u64, u64)>,
}

/// Something that can be written anew without any loss.
#[derive(Clone, Debug)]
pub(crate) enum Mend {
    /// Bytes behind a batch's records that must be zero.
    Padding {
        epoch: u64,
        offset: u64,
    },
    Footer {
        epoch: u64,
        footer: Box<Footer>,
    },
}

impl Walked {
    /// Tells the holes that are damage, which come first; the rest is a torn tail, and what follows it
    /// is not of the log.
    pub(crate) fn settle(&mut self) -> Option<Hole> {
        for hole in &mut self.holes {
            if hole.last.is_none() && hole.first <= self.vouched_lsn {
                hole.last = Some(self.vouched_lsn);
            }
        }
        let torn = self.holes.iter().position(|h| !h.is_certain && h.first > self.vouched_lsn)?;
        let mut behind = self.holes.split_off(torn).into_iter();
        let torn = behind.next()?;
        // A file that is gone is damage wherever it stood.
        let certain = behind.filter(|hole| hole.is_certain);
        self.holes.extend(certain.map(|hole| Hole { before: torn.before, last: None, ..hole }));
        self.runs.retain(|run| run.first < torn.first);
        self.end = torn.before;
        if self.holes.last().is_none_or(|hole| hole.before != torn.before) {
            self.clean_from = torn.clean_before;
        }
        Some(torn)
    }
}
