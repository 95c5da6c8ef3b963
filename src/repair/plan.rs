//! What is to be done to a damaged log.

use std::path::PathBuf;

use super::files::Asides;
use super::rebuild::rebuilt_header;
use super::step::Step;
use super::{Keep, RepairError, RepairReport, broken_cursors};
use crate::cursor;
use crate::disk::Store;
use crate::error::IoError;
use crate::frame::{self, LogId, SegmentHeader};
use crate::lsn::Lsn;
use crate::mark::{MARK_NAME, Mark};
use crate::recovery::{self, SEGMENT_UNIT_BYTES};
use crate::segment;
use crate::verify::census::{Found, Head, MarkState};
use crate::verify::walk::{Hole, Mend, Place, Walked};
use crate::verify::{self, FindingKind, Look, Lost};

/// A repair.
pub(crate) struct Plan {
    pub(super) log_id: LogId,
    pub(super) steps: Vec<Step>,
    lost: Vec<Lost>,
    leaving: Vec<(u64, u64)>,
    first_lsn: u64,
    last_lsn: u64,
    /// Names and sizes of the files that are copied.
    pub(super) kept: Vec<(String, u64)>,
    /// Names that given up segments get.
    pub(super) spares: Vec<String>,
    /// Bytes that the new files in the log need.
    pub(super) made_bytes: u64,
    /// What a new segment takes over from the log.
    pub(super) wall_ns: u64,
}

impl Plan {
    /// Looks at the log and makes the plan.
    pub(crate) fn make(store: &dyn Store, keep: Keep) -> Result<Plan, RepairError> {
        let look = verify::look(store)?;
        if look.is_unsteady() {
            return Err(RepairError::Unsteady);
        }
        // Without it no batch can be told from one of another log.
        let log_id = look.census.log_id.ok_or(RepairError::Unidentified)?;
        let mut asides = Asides::new(store)?;
        let lost = |hole: &Hole| hole.lost(look.walked.vouched_lsn);
        let lost = look.walked.holes.iter().filter_map(lost).collect();
        let last = look.walked.runs.last().map_or(look.first_lsn - 1, |run| run.last);
        let mut plan = Plan {
            log_id,
            steps: Vec::new(),
            lost,
            leaving: Vec::new(),
            first_lsn: look.first_lsn,
            last_lsn: last,
            kept: Vec::new(),
            spares: Vec::new(),
            made_bytes: 0,
            wall_ns: look.walked.wall_ns,
        };
        if !look.census.misplaced.is_empty() {
            // What else there is to do shows when each file has its name.
            let back =
                |(name, epoch): &(String, u64)| Step::Back { name: name.clone(), epoch: *epoch };
            plan.steps = asides.before(&look.census.misplaced);
            plan.steps.extend(look.census.misplaced.iter().map(back));
            plan.lost.clear();
            plan.keep_files(store, &look.census)?;
            return Ok(plan);
        }
        let mut mark = Mark { first_lsn: look.first_lsn, ..look.census.mark };
        // The bounds of what stays in the log: segments outside of them are not mended.
        let mut stays = 0..=u64::MAX;
        let rebuilt = rebuilt_header(&look);
        let holes = &look.walked.holes;
        let first_hole = holes.iter().find(|hole| !rebuilt.iter().any(|r| hole.is_of(r.epoch)));
        let bounds = match first_hole {
            None => None,
            Some(hole) => Some(plan.bounds(&look, hole, keep)?),
        };
        match &bounds {
            Some(Bounds::From(epoch, _)) => stays = *epoch..=u64::MAX,
            Some(Bounds::UpTo(place, _)) => stays = 0..=place.epoch,
            Some(Bounds::Nothing) => stays = u64::MAX..=u64::MAX,
            None => {}
        }
        for header in rebuilt.into_iter().filter(|header| stays.contains(&header.epoch)) {
            plan.steps.push(Step::Header { epoch: header.epoch, header, copies: [false; 2] });
        }
        plan.mend(&look, &stays);
        for name in &look.census.strays {
            plan.steps.push(match asides.unless_a_file(name)? {
                Some(aside) => aside,
                None => Step::Away { name: name.clone() },
            });
        }
        match bounds {
            Some(Bounds::From(epoch, first)) => {
                plan.last_lsn = plan.last_lsn.max(first - 1);
                mark = Mark { first_epoch: epoch, first_lsn: first, ..mark };
                plan.leave(&look.walked, first..=u64::MAX);
                plan.first_lsn = first;
                plan.steps.push(Step::Start { mark });
            }
            Some(Bounds::UpTo(place, last)) => {
                let header = superseding(store, &look, log_id, &place, last);
                plan.cut(&look, header, mark, unsynced(store, &look, &place, last)?);
            }
            Some(Bounds::Nothing) => {
                let place = Place { epoch: mark.first_epoch - 1, offset: 0, link: None };
                let last = look.first_lsn - 1;
                let header = superseding(store, &look, log_id, &place, last);
                plan.cut(&look, header, mark, Vec::new());
            }
            None if look.census.mark_state == MarkState::Lost => {
                plan.steps.push(Step::Mark { mark });
            }
            None => {}
        }
        if look.census.mark_state == MarkState::OneSlot && bounds_is_none(&plan) {
            plan.steps.push(Step::Mark { mark });
        }
        plan.clamp_cursors(store, look.census.log_id)?;
        for (file, position) in broken_cursors(store, look.census.log_id)? {
            let lowest = plan.first_lsn;
            let position =
                position.unwrap_or(lowest).clamp(lowest, plan.last_lsn.max(lowest - 1) + 1);
            plan.steps.extend(asides.unless_a_file(&file)?);
            plan.steps.push(Step::Cursor { file, position });
        }
        let mark_is_bad = look.findings.iter().any(|finding| {
            finding.kind != FindingKind::Note && finding.file == store.path(MARK_NAME)
        });
        let is_note = |step: &Step| match step {
            Step::Footer { .. } => true,
            Step::Mark { .. } => !mark_is_bad,
            _ => false,
        };
        // A log in which nothing else is amiss is whole: they are written anew by the way only.
        if plan.steps.iter().all(is_note) {
            plan.steps.clear();
        }
        plan.keep_files(store, &look.census)?;
        Ok(plan)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What stays of a log with a hole.
    fn bounds(&self, look: &Look, hole: &Hole, keep: Keep) -> Result<Bounds, RepairError> {
        let behind = look
            .walked
            .clean_from
            .map(|(epoch, first)| Bounds::From(epoch, first.max(look.first_lsn)));
        let last = hole.before.link.map_or(0, |(_, next)| next - 1);
        let any_behind =
            look.walked.runs.last().is_some_and(|run| {
                look.walked.clean_from.is_some_and(|(_, first)| first <= run.last)
            });
        let drops = |first: u64| look.walked.runs.iter().any(|run| run.first < first);
        let any_before = last >= look.first_lsn && hole.before.link.is_some();
        match (keep, behind) {
            (Keep::After, Some(behind)) if any_behind => Ok(behind),
            (Keep::After, _) => Err(RepairError::NothingBehind),
            (Keep::Before, _) if any_before => Ok(Bounds::UpTo(hole.before, last)),
            (Keep::Before, Some(Bounds::From(_, first))) if drops(first) => {
                Err(RepairError::NothingBefore)
            }
            (Keep::Before, Some(behind)) => Ok(behind),
            (Keep::Before, None) => Ok(Bounds::Nothing),
        }
    }

    /// What can be written anew without loss.
    fn mend(&mut self, look: &Look, stays: &std::ops::RangeInclusive<u64>) {
        let staying = || look.census.segments.iter().filter(|found| stays.contains(&found.epoch));
        for found in staying() {
            if let Head::Intact { segment, copies } = &found.head
                && copies.contains(&false)
            {
                let (epoch, header) = (found.epoch, segment.header);
                self.steps.push(Step::Header { epoch, header, copies: *copies });
            }
        }
        let header = |epoch| staying().find(|found| found.epoch == epoch).and_then(Found::header);
        for mend in &look.walked.mends {
            match mend {
                Mend::Padding { epoch, offset } => {
                    if let Some(&header) = header(*epoch) {
                        let (epoch, offset) = (*epoch, *offset);
                        self.steps.push(Step::Padding { epoch, header, offset });
                    }
                }
                Mend::Footer { epoch, footer } => {
                    if let Some(&header) = header(*epoch) {
                        let (epoch, footer) = (*epoch, footer.clone());
                        self.steps.push(Step::Footer { epoch, header, footer });
                    }
                }
            }
        }
        let mut bad: Vec<u64> = look.walked.unreadable.iter().map(|(epoch, ..)| *epoch).collect();
        bad.dedup();
        for epoch in bad.into_iter().filter(|epoch| header(*epoch).is_some()) {
            let bytes = staying().find(|found| found.epoch == epoch).and_then(Found::segment);
            self.made_bytes += bytes.map_or(0, |segment| segment.file_bytes);
            self.steps.insert(0, Step::Rewrite { epoch });
        }
    }

    fn cut(&mut self, look: &Look, header: SegmentHeader, mark: Mark, unsynced: Vec<(u64, u64)>) {
        let last = header.truncated_after;
        let closed = mark.closed;
        let mark = Mark {
            generation: header.generation,
            generation_epoch: header.epoch,
            truncated_after: last,
            closed: None,
            ..mark
        };
        self.leave(&look.walked, 0..=last);
        self.last_lsn = last;
        self.made_bytes += header.segment_bytes;
        self.steps.push(Step::Cut { mark, header, closed, unsynced });
    }

    /// The cursors that a cut sets back.
    fn clamp_cursors(&mut self, store: &dyn Store, id: Option<LogId>) -> Result<(), IoError> {
        let Some(last) = self.steps.iter().find_map(Step::new_last) else { return Ok(()) };
        for cursor in cursor::examine(store, id)?.into_iter().filter(|c| !c.is_damaged()) {
            if let Some(from) = cursor.position.filter(|from| *from > last + 1) {
                self.steps.push(Step::Clamp { file: cursor.file, from, to: last + 1 });
            }
        }
        Ok(())
    }

    /// Takes note of the intact records that leave: those outside of these.
    fn leave(&mut self, walked: &Walked, stays: std::ops::RangeInclusive<u64>) {
        for run in &walked.runs {
            let before = (run.first, run.last.min(stays.start().saturating_sub(1)));
            let behind = (run.first.max(stays.end().saturating_add(1)), run.last);
            for (first, last) in [before, behind].into_iter().filter(|(first, last)| first <= last)
            {
                match self.leaving.last_mut() {
                    Some((_, end)) if *end + 1 == first => *end = last,
                    _ => self.leaving.push((first, last)),
                }
            }
        }
    }

    /// Bytes that the copy needs.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.kept.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The names that segments get which leave the log.
    pub(super) fn spares_of(&self, listed: &[String], strays: &[String]) -> Vec<String> {
        let leaves = |epoch: u64| {
            self.steps.iter().any(|step| match step {
                Step::Start { mark } => epoch < mark.first_epoch,
                Step::Cut { header, .. } => epoch > header.epoch,
                _ => false,
            })
        };
        let stay = listed.iter().filter(|name| !strays.contains(name));
        let epochs = stay.filter_map(|name| frame::parse_segment_name(name));
        let free = |epoch| {
            let mut names = (0..).map(|number| segment::spare_name(epoch, number));
            names.find(|name| !listed.contains(name))
        };
        epochs.filter(|epoch| leaves(*epoch)).filter_map(free).collect()
    }

    /// The files that are there only afterwards.
    fn made(&self) -> Vec<String> {
        let mut made = self.spares.clone();
        for step in &self.steps {
            match step {
                Step::Cut { header, .. } => made.push(frame::segment_name(header.epoch)),
                Step::Back { epoch, .. } => made.push(frame::segment_name(*epoch)),
                _ => {}
            }
            if matches!(step, Step::Mark { .. } | Step::Start { .. } | Step::Cut { .. }) {
                made.push(MARK_NAME.to_owned());
            }
        }
        made.sort_unstable();
        made.dedup();
        made.retain(|made| !self.kept.iter().any(|(name, _)| name == made));
        made
    }

    /// For people.
    pub(crate) fn report(&self, store: &dyn Store, kept_in: PathBuf) -> RepairReport {
        let range = |&(first, last): &(u64, u64)| (Lsn::new(first), Lsn::new(last));
        RepairReport {
            steps: self.steps.iter().map(|step| step.named(store)).collect(),
            lost: self.lost.clone(),
            leaving: self.leaving.iter().map(range).collect(),
            first_lsn: Lsn::new(self.first_lsn),
            last_lsn: Lsn::new(self.last_lsn),
            kept: self.kept.clone(),
            made: self.made(),
            renamed: self.steps.iter().filter_map(Step::renamed).collect(),
            kept_in,
            needed_bytes: self.kept_bytes() + self.made_bytes,
            after: None,
        }
    }
}

enum Bounds {
    /// From this segment on, whose first record is this one.
    From(u64, u64),
    /// Up to this place, where this record is the last.
    UpTo(Place, u64),
    Nothing,
}

fn bounds_is_none(plan: &Plan) -> bool {
    !plan
        .steps
        .iter()
        .any(|step| matches!(step, Step::Start { .. } | Step::Cut { .. } | Step::Mark { .. }))
}

/// The header of a segment that supersedes what follows `place`, with `last` as the last record.
fn superseding(
    store: &dyn Store,
    look: &Look,
    log_id: LogId,
    place: &Place,
    last: u64,
) -> SegmentHeader {
    let any = || look.census.segments.iter().find_map(Found::header);
    let of_place = look.census.segments.iter().find(|found| found.epoch == place.epoch);
    let model = of_place.and_then(Found::header).or_else(any);
    let device = store.facts().block_bytes as u32;
    let block_bytes = model
        .map(|model| model.block_bytes)
        .filter(|block| block.is_multiple_of(device))
        .unwrap_or(device);
    let segment_bytes = model.map_or(64 << 20, |model| model.segment_bytes);
    SegmentHeader {
        log_id,
        epoch: place.epoch + 1,
        // Drawn when it is made.
        salt: 0,
        block_bytes,
        segment_bytes: segment_bytes.next_multiple_of(SEGMENT_UNIT_BYTES),
        created_wall_ns: look.walked.wall_ns,
        first_lsn: last + 1,
        resume: Some(frame::Resume {
            prev_end_offset: place.offset,
            prev_batch_crc: place.link.map_or(0, |(crc, _)| crc),
        }),
        generation: look.census.generation_max + 1,
        truncated_after: last,
        recycled: false,
    }
}

/// The segments up to `place` with records that nothing shows to be durable, and where those end in each.
/// The new segment vouches for them: that they can be read does not say that they were ever synced.
fn unsynced(
    store: &dyn Store,
    look: &Look,
    place: &Place,
    last: u64,
) -> Result<Vec<(u64, u64)>, RepairError> {
    let vouched = look.walked.vouched_lsn;
    let mut all = Vec::new();
    if last <= vouched {
        return Ok(all);
    }
    let below = look.census.segments.iter().rev().filter(|found| found.epoch <= place.epoch);
    for segment in below.filter_map(Found::segment) {
        let is_last = segment.epoch == place.epoch;
        all.push((segment.epoch, if is_last { place.offset } else { segment.file_bytes }));
        if recovery::first_lsn_of(store, segment)?.is_some_and(|first| first <= vouched + 1) {
            break;
        }
    }
    Ok(all)
}
