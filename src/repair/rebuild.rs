//! Segment headers of which both copies are gone, or are those of an earlier life of the file, from what the batches and
//! the neighbours tell.

use crate::frame::SegmentHeader;
use crate::segment::Segment;
use crate::verify::census::{Head, MarkState};
use crate::verify::walk::Hole;
use crate::verify::{Look, generation_of};

impl Hole {
    /// Whether it is that the header of this segment is gone, and nothing else.
    pub(super) fn is_of(&self, epoch: u64) -> bool {
        self.epoch == epoch && self.offset == 0 && self.last.is_some_and(|last| last < self.first)
    }
}

/// Headers that their segments' neighbours and batches tell: nothing else is missing there.
pub(super) fn rebuilt_header(look: &Look) -> Vec<SegmentHeader> {
    let mut rebuilt = Vec::new();
    let segments = &look.census.segments;
    for (index, found) in segments.iter().enumerate() {
        let Head::Broken { guess: Some(guess), .. } = &found.head else { continue };
        if index == 0 {
            rebuilt.extend(rebuilt_first(look, guess));
            continue;
        }
        let Some(before) = segments[index - 1].header() else { continue };
        let next = segments.get(index + 1).map(|next| next.header());
        // Where the segment began a generation, nothing here tells of it.
        let same = match next {
            Some(Some(next)) => next.generation == before.generation,
            Some(None) => false,
            None => generation_of(&look.census) == before.generation,
        };
        let fits = look.walked.holes.iter().any(|hole| hole.is_of(found.epoch));
        let starts = look.walked.first_batches.contains(&(found.epoch, guess.header.data_offset()));
        let block = u64::from(before.block_bytes);
        let whole = guess.file_bytes.is_multiple_of(block) && guess.file_bytes >= 4 * block;
        if same && fits && starts && whole && guess.header.block_bytes == before.block_bytes {
            rebuilt.push(SegmentHeader {
                generation: before.generation,
                truncated_after: before.truncated_after,
                ..guess.header
            });
        }
    }
    rebuilt
}

/// The header of the log's first segment, where the mark tells what no segment before it can.
fn rebuilt_first(look: &Look, guess: &Segment) -> Option<SegmentHeader> {
    let mark = &look.census.mark;
    let next = look.census.segments.get(1).map(|next| next.header());
    // Where the segment began a generation, it had more to say; and of an older one than the last, nothing
    // here tells.
    let began_before = mark.generation == 0 || mark.generation_epoch < guess.epoch;
    let same = match next {
        Some(Some(next)) => next.generation == mark.generation && next.resume.is_none(),
        Some(None) => false,
        None => true,
    };
    let is_told = matches!(look.census.mark_state, MarkState::Intact | MarkState::OneSlot);
    let fits = look.walked.holes.iter().any(|hole| hole.is_of(guess.epoch));
    let starts = look.walked.first_batches.contains(&(guess.epoch, guess.header.data_offset()));
    let block = u64::from(guess.header.block_bytes);
    let whole = guess.file_bytes.is_multiple_of(block) && guess.file_bytes >= 4 * block;
    (is_told && guess.epoch == mark.first_epoch && began_before && same && fits && starts && whole)
        .then_some(SegmentHeader {
            generation: mark.generation,
            truncated_after: mark.truncated_after,
            ..guess.header
        })
}
