//! One simulated file: what is visible, what is durable, and the changes in between.

use core::ops::Range;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::frame::is_zero;

use super::fate::{Fate, Shape};
use super::image::Image;
use super::rng::Rng;
use super::{SECTOR_BYTES, SimStats, sectors};

#[derive(Clone, Default)]
pub(super) struct Inode {
    /// What reads see.
    pub(super) visible: Image,
    /// What is there after a crash, before any of `changes` is added.
    durable: Image,
    /// Applied, visible, not durable; in the order in which they were applied.
    changes: Vec<Change>,
    /// Submitted, not yet applied: invisible, but the device may have some of it at a crash.
    in_flight: Vec<Change>,
    bad_sectors: BTreeSet<u64>,
    /// Shared with the open files, to count them.
    pub(super) handles: Arc<()>,
}

/// A change that no sync made durable.
#[derive(Clone)]
struct Change {
    /// The operation that made it.
    op: u64,
    what: What,
    /// When its operation's completion was delivered: a sync submitted later covers it.
    done_at: Option<u64>,
    /// A sync that covered it failed, or the write itself did: the system believes it clean, and no
    /// later sync makes it durable.
    lost: bool,
}

#[derive(Clone)]
enum What {
    /// The file's size became this.
    Size(u64),
    Data(Data),
}

#[derive(Clone)]
struct Data {
    range: Range<u64>,
    /// The range of the whole write, of which this may be a part.
    span: Range<u64>,
    /// The bytes of the whole write; `None` for zeros.
    bytes: Option<Arc<[u8]>>,
}

impl Inode {
    /// A write was submitted.
    pub(super) fn submit(&mut self, op: u64, offset: u64, bytes: &[u8]) {
        let range = offset..offset + bytes.len() as u64;
        let bytes = (!is_zero(bytes)).then(|| bytes.into());
        let data = Data { span: range.clone(), range, bytes };
        self.in_flight.push(Change::new(op, What::Data(data)));
    }

    /// Applies all of a submitted write, or what is left of it.
    pub(super) fn apply(&mut self, op: u64) {
        for change in self.take_in_flight(op) {
            self.push(change);
        }
    }

    /// Applies a random part of a submitted write ahead of the rest.
    pub(super) fn apply_part(&mut self, op: u64, rng: &mut Rng) {
        for mut change in self.take_in_flight(op) {
            let What::Data(data) = &change.what else { continue };
            let all = sectors(&data.range);
            if all.end - all.start < 2 || data.range.end > self.visible.len {
                self.in_flight.push(change);
                continue;
            }
            let cut = (all.start + 1 + rng.below(all.end - all.start - 1)) * SECTOR_BYTES;
            let (mut now, mut later) = (data.slice(0..cut), data.slice(cut..u64::MAX));
            if rng.chance(1, 2) {
                core::mem::swap(&mut now, &mut later);
            }
            let rest = Change { what: What::Data(later), ..change.clone() };
            change.what = What::Data(now);
            self.push(change);
            self.in_flight.push(rest);
        }
    }

    /// A submitted write fails. Nothing, a first part, or any sectors of it were written; with
    /// `short`, always a first part, and never all.
    pub(super) fn apply_failed(&mut self, op: u64, short: bool, rng: &mut Rng) {
        for change in self.take_in_flight(op) {
            let What::Data(data) = &change.what else { continue };
            let all = sectors(&data.range);
            let prefix =
                Shape::Before(all.start + 1 + rng.below((all.end - all.start).saturating_sub(1)));
            let shape = match rng.below(4) {
                _ if all.end - all.start < 2 => Shape::Drop,
                _ if short => prefix,
                0 => Shape::Drop,
                1 => Shape::Keep,
                2 => prefix,
                _ => Shape::Scatter(rng.next(), 8),
            };
            for run in shape.kept(&data.range) {
                self.push(Change { what: What::Data(data.slice(run)), ..change.clone() });
            }
        }
        self.lose(op);
    }

    /// A submitted write is refused before anything of it was written.
    pub(super) fn refuse(&mut self, op: u64) {
        self.in_flight.retain(|change| change.op != op);
    }

    /// Takes a submitted write back, or what is left of it, with its offsets and bytes.
    pub(super) fn withdraw(&mut self, op: u64) -> Vec<(u64, Vec<u8>)> {
        let parts = self.take_in_flight(op).into_iter().filter_map(|change| match change.what {
            What::Data(data) => Some((data.range.start, data.to_vec())),
            What::Size(_) => None,
        });
        parts.collect()
    }

    /// The completion of `op` is delivered.
    pub(super) fn complete(&mut self, op: u64, now: u64) {
        for change in self.changes.iter_mut().filter(|change| change.op == op) {
            change.done_at = Some(now);
        }
    }

    /// The changes of `op` are written, but no sync will ever make them durable.
    pub(super) fn lose(&mut self, op: u64) {
        for change in self.changes.iter_mut().filter(|change| change.op == op) {
            change.lost = true;
        }
    }

    /// Makes exactly the bytes of one write durable. The file's size goes with them only where the
    /// write itself made the file longer, or where an earlier cut would take them away again.
    pub(super) fn harden(&mut self, op: u64) {
        let ends = self.changes.iter().filter(|change| change.op == op).map(|change| {
            let What::Data(data) = &change.what else { return 0 };
            data.range.end
        });
        let end = ends.max().unwrap_or(0);
        let sizes = self
            .changes
            .iter()
            .any(|change| matches!(change.what, What::Size(len) if change.op == op || len < end));
        self.settle(|change| {
            let size = matches!(change.what, What::Size(_));
            change.op == op || (sizes && size && !change.lost)
        });
    }

    /// A sync that was submitted at `submitted_at` succeeds.
    pub(super) fn sync(&mut self, submitted_at: u64) {
        self.settle(|change| change.covered_by(submitted_at));
    }

    /// A sync that was submitted at `submitted_at` fails.
    pub(super) fn sync_failed(&mut self, submitted_at: u64) {
        for change in self.changes.iter_mut().filter(|change| change.covered_by(submitted_at)) {
            change.lost = true;
        }
    }

    pub(super) fn set_len(&mut self, op: u64, len: u64) {
        if len != self.visible.len {
            self.push(Change::new(op, What::Size(len)));
        }
    }

    /// The machine loses power.
    pub(super) fn crash(&mut self, fate: &mut Fate, stats: &mut SimStats) {
        let mut pending = core::mem::take(&mut self.changes);
        pending.append(&mut self.in_flight);
        for change in pending {
            match change.what {
                What::Size(len) if fate.keeps_size() => self.durable.set_len(len),
                What::Size(_) => stats.sizes_dropped += 1,
                What::Data(data) => {
                    let kept = fate.shape(change.op, &data.span).kept(&data.range);
                    match kept.first() {
                        None => stats.writes_dropped += 1,
                        Some(run) if *run == data.range => stats.writes_kept += 1,
                        Some(_) => stats.writes_torn += 1,
                    }
                    kept.into_iter().for_each(|run| data.slice(run).store(&mut self.durable));
                }
            }
        }
        self.durable.set_len(self.durable.len);
        self.visible = self.durable.clone();
        self.handles = Arc::default();
    }

    /// The process dies and the machine lives on: each write in flight is applied, or never was.
    pub(super) fn orphan(&mut self, rng: &mut Rng) {
        for change in core::mem::take(&mut self.in_flight) {
            if rng.chance(1, 2) {
                self.push(change);
            }
        }
        for change in &mut self.changes {
            change.done_at.get_or_insert(0);
        }
        self.handles = Arc::default();
    }

    /// Stores bytes as if they had always been there, durable; may make the file longer.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) {
        const OP: u64 = 0;
        self.submit(OP, offset, bytes);
        self.apply(OP);
        self.harden(OP);
    }

    /// Changes the sector around `offset`, for good; false where the file does not reach so far.
    pub(super) fn alter(&mut self, offset: u64, alter: impl FnOnce(&mut [u8], usize)) -> bool {
        if offset >= self.visible.len {
            return false;
        }
        let start = offset - offset % SECTOR_BYTES;
        let mut sector = vec![0; SECTOR_BYTES.min(self.visible.len - start) as usize];
        self.visible.read(start, &mut sector);
        alter(&mut sector, (offset - start) as usize);
        self.put(start, &sector);
        true
    }

    pub(super) fn spoil(&mut self, range: &Range<u64>) {
        self.bad_sectors.extend(sectors(range));
    }

    pub(super) fn is_bad(&self, range: &Range<u64>) -> bool {
        self.bad_sectors.range(sectors(range)).next().is_some()
    }

    fn take_in_flight(&mut self, op: u64) -> Vec<Change> {
        self.in_flight.extract_if(.., |change| change.op == op).collect()
    }

    /// Makes a change visible. A write behind the end of the file changes the size first.
    fn push(&mut self, change: Change) {
        match &change.what {
            What::Size(len) => self.visible.set_len(*len),
            What::Data(data) => {
                if data.range.end > self.visible.len {
                    let size = What::Size(data.range.end);
                    self.visible.set_len(data.range.end);
                    self.changes.push(Change { what: size, ..change.clone() });
                }
                if !self.bad_sectors.is_empty() {
                    let written = sectors(&data.range);
                    self.bad_sectors.retain(|sector| !written.contains(sector));
                }
                data.store(&mut self.visible);
            }
        }
        self.changes.push(change);
    }

    /// Makes every covered change durable. What was applied before it and is not covered must not
    /// come back over it.
    fn settle(&mut self, covered: impl Fn(&Change) -> bool) {
        let mut rest: Vec<Change> = Vec::new();
        for change in core::mem::take(&mut self.changes) {
            if !covered(&change) {
                rest.push(change);
                continue;
            }
            match change.what {
                What::Data(data) => {
                    cut(&mut rest, &data.range);
                    data.store(&mut self.durable);
                }
                What::Size(len) => {
                    rest.retain(|change| matches!(change.what, What::Data(_)));
                    cut(&mut rest, &(len..u64::MAX));
                    self.durable.set_len(len);
                }
            }
        }
        self.changes = rest;
    }
}

impl Change {
    fn new(op: u64, what: What) -> Self {
        Change { op, what, done_at: None, lost: false }
    }

    fn covered_by(&self, submitted_at: u64) -> bool {
        !self.lost && self.done_at.is_some_and(|done_at| done_at < submitted_at)
    }
}

impl Data {
    /// The part inside `range`; empty when there is none.
    fn slice(&self, range: Range<u64>) -> Data {
        let start = range.start.max(self.range.start);
        let end = range.end.min(self.range.end).max(start);
        Data { range: start..end, ..self.clone() }
    }

    fn to_vec(&self) -> Vec<u8> {
        let len = (self.range.end - self.range.start) as usize;
        let from = (self.range.start - self.span.start) as usize;
        self.bytes.as_ref().map_or_else(|| vec![0; len], |bytes| bytes[from..from + len].to_vec())
    }

    fn store(&self, image: &mut Image) {
        let base = self.span.start;
        let within = (self.range.start - base) as usize..(self.range.end - base) as usize;
        let bytes = self.bytes.as_ref().map(|bytes| &bytes[within]);
        image.write(self.range.clone(), bytes);
    }
}

/// Takes `range` out of every change of bytes.
fn cut(changes: &mut Vec<Change>, range: &Range<u64>) {
    let overlaps = |change: &Change| match &change.what {
        What::Data(data) => data.range.start < range.end && range.start < data.range.end,
        What::Size(_) => false,
    };
    if !changes.iter().any(overlaps) {
        return;
    }
    for change in core::mem::take(changes) {
        match &change.what {
            What::Data(data) if overlaps(&change) => {
                let sides = [data.slice(0..range.start), data.slice(range.end..u64::MAX)];
                let sides = sides.into_iter().filter(|side| !side.range.is_empty());
                changes
                    .extend(sides.map(|side| Change { what: What::Data(side), ..change.clone() }));
            }
            _ => changes.push(change),
        }
    }
}
