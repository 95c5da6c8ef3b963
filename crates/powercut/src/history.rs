//! From what was written down to what may stand on the disk after a power cut.
//!
//! A write is durable once a flush is done that began after the write was done. Of the other writes that
//! had begun, a disk with a volatile cache may have any, and any 512-byte sectors of any: they are laid
//! over what is durable in the order in which they came, so that a sector may also hold what it held
//! between two of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::device::Event;
use crate::notes::Note;
use crate::random::Random;

const SECTOR: usize = 512;
const BLOCK: usize = 4096;
/// ext4's superblock, 1 KiB, is assumed by ext4 to be written whole: none of ours is in this block.
const UNTORN: u64 = 4096;
const NEVER: usize = usize::MAX;

/// Everything that happened in one recording.
pub struct History {
    pub events: Vec<Event>,
    /// For each write the event with which it begins, and the one with which it is durable.
    writes: Vec<(usize, usize)>,
    /// The disk before the first event.
    start: Vec<u8>,
}

impl History {
    pub fn new(start: Vec<u8>, events: Vec<Event>) -> History {
        let mut writes = vec![];
        // The first number: what came before the recording began is in `start`.
        let mut first = None;
        let mut done: Vec<usize> = Vec::new();
        let mut flushes: Vec<(usize, usize)> = Vec::new();
        let mut covered = 0;
        for (at, event) in events.iter().enumerate() {
            match event {
                Event::WriteBegins { write, .. } => {
                    first.get_or_insert(*write);
                    writes.push((at, NEVER));
                }
                Event::WriteDone { write } => {
                    // Of one that began before the recording there is nothing to say.
                    if let Some(index) = first.and_then(|first| write.checked_sub(first)) {
                        done.push(index);
                    }
                }
                Event::FlushBegins { flush } => flushes.push((*flush, done.len())),
                Event::FlushDone { flush } => {
                    let begun = flushes.iter().find(|(begun, _)| begun == flush);
                    let upto = begun.map_or(0, |(_, upto)| *upto);
                    flushes.retain(|(begun, _)| begun != flush);
                    for &write in done.get(covered..upto).unwrap_or_default() {
                        writes[write].1 = at;
                    }
                    covered = covered.max(upto);
                }
                Event::Noted(_) => {}
            }
        }
        History { events, writes, start }
    }

    /// How many writes the device got.
    pub fn writes(&self) -> usize {
        self.writes.len()
    }

    /// The notes of a recording up to an event.
    pub fn notes(&self, from: usize, to: usize) -> impl Iterator<Item = &Note> {
        self.events[from..to].iter().filter_map(|event| match event {
            Event::Noted(note) => Some(note),
            _ => None,
        })
    }

    /// `count` instants, in order: a quarter anywhere; a quarter right behind an acknowledged record, a
    /// quarter right behind another promise (a cursor, a trim, a truncation, a log that was opened); a
    /// quarter right before a flush is done, when most is at stake.
    pub fn instants(&self, count: usize, random: &mut Random) -> Vec<usize> {
        let places = |is_it: fn(&Event) -> bool, behind: usize| -> Vec<usize> {
            let all = 0..self.events.len();
            all.filter(|&at| is_it(&self.events[at])).map(|at| at + behind).collect()
        };
        let places = [
            places(|event| matches!(event, Event::Noted(Note::Acked { .. })), 1),
            places(|event| matches!(event, Event::Noted(Note::Done(_) | Note::Opened(_))), 1),
            places(|event| matches!(event, Event::FlushDone { .. }), 0),
            (0..=self.events.len()).collect(),
        ];
        let mut instants: Vec<usize> = (0..count)
            .map(|nth| {
                let some = &places[nth % places.len()];
                let some = if some.is_empty() { &places[3] } else { some };
                some[random.below(some.len() as u64) as usize]
            })
            .collect();
        instants.sort_unstable();
        instants
    }

    fn write(&self, index: usize) -> (u64, &[u8]) {
        match &self.events[self.writes[index].0] {
            Event::WriteBegins { offset, bytes, .. } => (*offset, bytes),
            _ => (0, &[]),
        }
    }
}

/// What a cut does with the writes that no flush covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// None is on the disk.
    None,
    /// All are.
    All,
    /// Each may be, as a whole.
    Some,
    /// Each may be, and many are torn.
    Torn,
    /// Most are.
    Most,
    /// Those up to a point, the last of them torn.
    UpTo,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::None, Kind::All, Kind::Some, Kind::Torn, Kind::Most, Kind::UpTo];

    pub fn name(self) -> &'static str {
        match self {
            Kind::None => "nothing unflushed kept",
            Kind::All => "everything kept",
            Kind::Some => "some kept",
            Kind::Torn => "some kept, many torn",
            Kind::Most => "most kept",
            Kind::UpTo => "kept up to one, that one torn",
        }
    }
}

/// What became of the unflushed writes.
#[derive(Clone, Copy, Default, Debug)]
pub struct Fate {
    pub kept: usize,
    pub torn: usize,
    pub dropped: usize,
}

/// The disk as it moves on through a recording.
pub struct Timeline<'a> {
    history: &'a History,
    durable: Vec<u8>,
    /// Blocks that may hold something else than zeros.
    used: Vec<bool>,
    at: usize,
}

impl<'a> Timeline<'a> {
    pub fn new(history: &'a History) -> Timeline<'a> {
        let durable = history.start.clone();
        let used = durable.chunks(BLOCK).map(|block| block.iter().any(|&byte| byte != 0)).collect();
        Timeline { history, durable, used, at: 0 }
    }

    /// Goes on to an instant, never back: the events before it have happened.
    pub fn advance(&mut self, to: usize) {
        for (index, &(_, durable)) in self.history.writes.iter().enumerate() {
            if durable != NEVER && (self.at..to).contains(&durable) {
                let (offset, bytes) = self.history.write(index);
                self.durable[offset as usize..][..bytes.len()].copy_from_slice(bytes);
                let blocks = offset as usize / BLOCK..=(offset as usize + bytes.len() - 1) / BLOCK;
                self.used[blocks].fill(true);
            }
        }
        self.at = to;
    }

    /// Writes what is on the disk after a cut of this kind, here, into an empty file.
    pub fn cut(&self, kind: Kind, random: &mut Random, file: &File) -> io::Result<Fate> {
        file.set_len(self.durable.len() as u64)?;
        for (index, block) in self.durable.chunks(BLOCK).enumerate() {
            if self.used[index] {
                file.write_all_at(block, (index * BLOCK) as u64)?;
            }
        }
        let pending: Vec<usize> = (0..self.history.writes.len())
            .filter(|&index| {
                let (begins, durable) = self.history.writes[index];
                begins < self.at && durable >= self.at
            })
            .collect();
        let last = random.below(pending.len() as u64 + 1) as usize;
        let mut fate = Fate::default();
        for (nth, &index) in pending.iter().enumerate() {
            let (offset, bytes) = self.history.write(index);
            let (is_kept, is_torn) = match kind {
                Kind::None => (false, false),
                Kind::All => (true, false),
                Kind::Some => (random.once_in(2), false),
                Kind::Torn => (!random.once_in(4), !random.once_in(4)),
                Kind::Most => (!random.once_in(8), random.once_in(4)),
                Kind::UpTo => (nth <= last, nth == last),
            };
            if !is_kept {
                fate.dropped += 1;
            } else if is_torn && bytes.len() > SECTOR && offset >= UNTORN {
                tear(file, offset, bytes, random)?;
                fate.torn += 1;
            } else {
                file.write_all_at(bytes, offset)?;
                fate.kept += 1;
            }
        }
        Ok(fate)
    }
}

/// Writes some sectors only: the first ones, the last ones, or any.
fn tear(file: &File, offset: u64, bytes: &[u8], random: &mut Random) -> io::Result<()> {
    let sectors = bytes.len().div_ceil(SECTOR);
    let (way, middle) = (random.below(3), 1 + random.below(sectors as u64 - 1) as usize);
    for (nth, sector) in bytes.chunks(SECTOR).enumerate() {
        let is_kept = match way {
            0 => nth < middle,
            1 => nth >= middle,
            _ => random.once_in(2),
        };
        if is_kept {
            file.write_all_at(sector, offset + (nth * SECTOR) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn begins(write: usize, sector: u64, byte: u8) -> Event {
        let bytes = vec![byte; 2 * SECTOR].into_boxed_slice();
        Event::WriteBegins { write, offset: UNTORN + sector * SECTOR as u64, bytes }
    }

    fn image(history: &History, at: usize, kind: Kind, seed: u64) -> (Vec<u8>, Fate) {
        let mut timeline = Timeline::new(history);
        timeline.advance(at);
        let mut file = tempfile::tempfile().unwrap();
        let fate = timeline.cut(kind, &mut Random::new(&[seed]), &file).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        (bytes[UNTORN as usize..].chunks(SECTOR).map(|sector| sector[0]).collect(), fate)
    }

    /// Two writes; the flush begins when only the first is done.
    fn overtaken() -> History {
        let events = vec![
            begins(0, 0, 1),
            Event::WriteDone { write: 0 },
            begins(1, 2, 2),
            Event::FlushBegins { flush: 0 },
            Event::WriteDone { write: 1 },
            Event::FlushDone { flush: 0 },
            Event::FlushBegins { flush: 1 },
            Event::FlushDone { flush: 1 },
        ];
        History::new(vec![0; 3 * BLOCK], events)
    }

    #[test]
    fn a_flush_covers_what_was_done_when_it_began() {
        let history = overtaken();
        assert_eq!(history.writes(), 2);
        let none = |at| image(&history, at, Kind::None, 0).0[..4].to_vec();
        assert_eq!(none(5), [0, 0, 0, 0], "no flush is done");
        assert_eq!(none(6), [1, 1, 0, 0], "the second write was not done when the flush began");
        assert_eq!(none(8), [1, 1, 2, 2]);
        assert_eq!(image(&history, 1, Kind::All, 0).0[..4], [1, 1, 0, 0], "not yet begun");
        assert_eq!(image(&history, 6, Kind::All, 0).0[..4], [1, 1, 2, 2]);
    }

    #[test]
    fn every_outcome_of_an_unflushed_write_comes_up() {
        let history = overtaken();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..400 {
            let (bytes, fate) = image(&history, 6, Kind::Torn, seed);
            assert_eq!(bytes[..2], [1, 1], "what was flushed stands");
            assert_eq!(fate.kept + fate.torn + fate.dropped, 1);
            seen.insert(bytes[2..4].to_vec());
        }
        assert_eq!(seen.len(), 4, "none, either half, both: {seen:?}");
    }

    #[test]
    fn a_write_that_failed_may_be_there_and_is_never_durable() {
        let events =
            vec![begins(0, 0, 1), Event::FlushBegins { flush: 0 }, Event::FlushDone { flush: 0 }];
        let history = History::new(vec![0; 2 * BLOCK], events);
        assert_eq!(image(&history, 3, Kind::None, 0).0[0], 0);
        assert_eq!(image(&history, 3, Kind::All, 0).0[0], 1);
    }
}
