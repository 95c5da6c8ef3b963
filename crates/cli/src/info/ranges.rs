//! The table of segments: runs of segments of one kind on one line.

use uringlog::{Inspection, Lsn, SegmentInfo, SegmentState};

use super::state_name;
use crate::units;

/// One line for each run of segments of one state, or with `all` for each.
pub fn table(log: &Inspection, all: bool) -> String {
    let mut text = format!(
        "{:<6} {:>17} {:>14} {:>14} {:>10} {:>10}\n",
        "state", "segments", "first", "last", "used", "size"
    );
    let segments: Vec<&SegmentInfo> = log.segments.iter().chain(&log.spares).collect();
    let same = |a: &&SegmentInfo, b: &&SegmentInfo| !all && a.state == b.state;
    for run in segments.chunk_by(same) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let number = |lsn: Option<Lsn>| lsn.map_or("-".to_owned(), |lsn| lsn.to_string());
        let epochs = match (first.state, run.len()) {
            (_, 1) => first.epoch.to_string(),
            // The places that they had need not be one behind the other.
            (SegmentState::Spare, n) => format!("{n} files"),
            _ => format!("{} to {}", first.epoch, last.epoch),
        };
        text += &format!(
            "{:<6} {epochs:>17} {:>14} {:>14} {:>10} {:>10}\n",
            state_name(first.state),
            number(run.iter().find_map(|segment| segment.first_lsn)),
            number(run.iter().rev().find_map(|segment| segment.last_lsn)),
            units::bytes(run.iter().map(|segment| segment.used_bytes).sum()),
            units::bytes(run.iter().map(|segment| segment.bytes).sum()),
        );
    }
    text
}
