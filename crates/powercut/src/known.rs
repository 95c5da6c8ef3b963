//! What must be there: the notes up to an instant, and the check of a log against them.

use std::collections::{BTreeMap, HashMap, HashSet};

use uringlog::{Log, Lsn};

use crate::notes::{Change, Note, Opened, Outcome};
use crate::payload::Id;
use crate::workload::{BATCH, BATCHER};

/// What is known of the log after some notes.
#[derive(Clone, Default, Debug)]
pub struct Known {
    generation: u64,
    /// The log starts here, or later where `retains`.
    first: u64,
    cursors: BTreeMap<String, u64>,
    /// The change that is under way: it may have happened or not.
    pending: Option<Change>,
    cuts: Vec<Cut>,
    acked: Vec<Acked>,
    /// Records that a truncation took, and that nobody may see again.
    gone: HashSet<Id>,
    /// Generation and number up to which records had been there when the log was opened.
    had: Vec<(u64, u64)>,
    /// The log trims by itself, up to the lowest cursor.
    retains: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cut {
    after: u64,
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Acked {
    generation: u64,
    lsn: u64,
    id: Id,
}

/// What a check saw.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    pub records: u64,
    pub acked: u64,
    pub rewritten: u64,
    pub is_torn: bool,
}

impl Known {
    pub fn new(retains: bool) -> Known {
        Known { first: 1, retains, ..Known::default() }
    }

    /// Takes in one more note.
    ///
    /// # Errors
    /// A log that was opened again, after a kill or a close, does not hold what it had promised.
    pub fn learn(&mut self, note: &Note) -> Result<(), String> {
        match note {
            Note::Acked { generation, lsn, last, count } => {
                for back in 0..*count {
                    let id = Id { index: last.index - back, ..*last };
                    self.acked.push(Acked { generation: *generation, lsn: lsn - back, id });
                }
            }
            Note::Gone { last, count } => {
                let ids = (0..*count).map(|back| Id { index: last.index - back, ..*last });
                self.gone.extend(ids);
            }
            Note::Begins(change) => self.pending = Some(change.clone()),
            Note::Refused => self.pending = None,
            Note::Done(outcome) => self.done(*outcome),
            Note::Opened(opened) => {
                self.compare(opened)?;
                self.resolve(opened);
            }
            Note::Said(_) => {}
        }
        Ok(())
    }

    fn done(&mut self, outcome: Outcome) {
        match (self.pending.take(), outcome) {
            (Some(Change::Make { name } | Change::Advance { name, .. }), Outcome::Cursor(at)) => {
                self.cursors.insert(name, at);
            }
            (Some(Change::Trim { .. }), Outcome::Trimmed(first)) => {
                self.first = self.first.max(first);
            }
            (Some(Change::Truncate { after }), Outcome::Truncated(generation)) => {
                self.cut(Cut { after, generation });
            }
            (pending, outcome) => debug_assert!(false, "{outcome:?} of {pending:?}"),
        }
    }

    fn cut(&mut self, cut: Cut) {
        self.cuts.push(cut);
        self.generation = cut.generation;
        for at in self.cursors.values_mut() {
            *at = (*at).min(cut.after + 1);
        }
    }

    /// The cut that is under way, if this generation shows that it happened.
    fn cut_under_way(&self, generation: u64) -> Option<Cut> {
        match self.pending {
            Some(Change::Truncate { after }) if generation > self.generation => {
                Some(Cut { after, generation })
            }
            _ => None,
        }
    }

    /// Where the log starts, the generation and the cursors.
    fn compare(&self, opened: &Opened) -> Result<(), String> {
        let Opened { generation, first, .. } = *opened;
        if generation != self.generation && self.cut_under_way(generation).is_none() {
            return Err(format!("generation {generation}, and it was {}", self.generation));
        }
        for acked in &self.acked {
            if acked.generation > generation {
                return Err(format!("generation {generation} is back, and {acked:?}"));
            }
        }
        let mut first_max = self.first;
        if let Some(Change::Trim { before }) = self.pending {
            first_max = first_max.max(before);
        }
        if self.retains {
            first_max = first_max.max(self.cursors.values().copied().min().unwrap_or(u64::MAX));
        }
        if !(self.first..=first_max).contains(&first) {
            let range = format!("{} to {first_max}", self.first);
            return Err(format!("the log starts at {first}, and should at {range}"));
        }
        self.compare_cursors(opened)
    }

    fn compare_cursors(&self, opened: &Opened) -> Result<(), String> {
        let mut allowed: BTreeMap<&str, Vec<u64>> =
            self.cursors.iter().map(|(name, &at)| (name.as_str(), vec![at])).collect();
        let mut may_be_missing = None;
        match &self.pending {
            Some(Change::Make { name }) if !self.cursors.contains_key(name) => {
                may_be_missing = Some(name.as_str());
                allowed.insert(name, (self.first..=opened.first).collect());
            }
            Some(Change::Advance { name, to }) => allowed.entry(name).or_default().push(*to),
            Some(Change::Truncate { after }) => {
                for at in allowed.values_mut() {
                    at.push(at[0].min(after + 1));
                }
            }
            _ => {}
        }
        for (name, allowed) in &allowed {
            match opened.cursors.get(*name) {
                None if may_be_missing == Some(name) => {}
                None => return Err(format!("cursor {name} is gone")),
                Some(at) if allowed.contains(at) => {}
                Some(at) => return Err(format!("cursor {name} is at {at}, not at {allowed:?}")),
            }
        }
        match opened.cursors.keys().find(|name| !allowed.contains_key(name.as_str())) {
            Some(name) => Err(format!("nobody made cursor {name}")),
            None => Ok(()),
        }
    }

    /// What was under way is decided now.
    fn resolve(&mut self, opened: &Opened) {
        if let Some(cut) = self.cut_under_way(opened.generation) {
            self.cut(cut);
        }
        self.pending = None;
        self.first = opened.first;
        self.cursors = opened.cursors.clone();
        self.had.push((opened.generation, opened.last));
    }

    /// Compares a log that was opened after a cut.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, log: &Log, seed: u64) -> Result<Seen, String> {
        let cursors = log.cursors().map_err(|error| format!("cursors: {error}"))?;
        let opened = Opened {
            generation: log.generation(),
            first: log.first_lsn().get(),
            last: log.last_lsn().get(),
            cursors: cursors.into_iter().map(|info| (info.name, info.position.get())).collect(),
        };
        self.compare(&opened)?;
        let found = read(log, seed)?;
        let last = opened.first + found.len() as u64 - 1;
        if last != opened.last {
            return Err(format!(
                "{last} is the last record read, and the log says {}",
                opened.last
            ));
        }
        let mut cuts = self.cuts.clone();
        cuts.extend(self.cut_under_way(opened.generation));
        let is_cut_off = |generation: u64, lsn: u64| {
            cuts.iter().any(|cut| cut.generation > generation && lsn > cut.after)
        };
        let places: HashMap<Id, u64> = found.iter().copied().zip(opened.first..).collect();
        if places.len() != found.len() {
            return Err("a record is there twice".to_owned());
        }
        for Acked { generation, lsn, id } in self.acked.iter().copied() {
            let place = places.get(&id);
            if is_cut_off(generation, lsn) {
                if let Some(place) = place {
                    return Err(format!("{id:?} was cut off and is back, as record {place}"));
                }
            } else if lsn >= opened.first && place != Some(&lsn) {
                return Err(format!(
                    "record {lsn}, {id:?}, was acknowledged and is lost: the log holds {} to {last}",
                    opened.first
                ));
            }
        }
        if let Some(id) = self.gone.iter().find(|id| places.contains_key(id)) {
            return Err(format!("{id:?} was taken by a truncation and is back"));
        }
        for &(generation, had) in &self.had {
            let cuts = cuts.iter().filter(|cut| cut.generation > generation);
            let least = cuts.map(|cut| cut.after).min().unwrap_or(u64::MAX).min(had);
            if last < least {
                return Err(format!("the log had held {least} when it was opened, now {last}"));
            }
        }
        let afters: Vec<u64> = cuts.iter().map(|cut| cut.after).collect();
        check_order(&found, opened.first, &afters)?;
        Ok(Seen {
            records: found.len() as u64,
            acked: self.acked.len() as u64,
            rewritten: log.recovery().rewritten_records,
            is_torn: log.recovery().torn.is_some(),
        })
    }
}

/// Everything that the log holds; the numbers are dense, the records known.
fn read(log: &Log, seed: u64) -> Result<Vec<Id>, String> {
    let first = log.first_lsn();
    let mut reader = log.reader(first).map_err(|error| format!("reader: {error}"))?;
    let (mut found, mut next) = (Vec::new(), first);
    loop {
        let record = reader.next_record().map_err(|error| format!("at {next}: {error}"))?;
        let Some(record) = record else { return Ok(found) };
        if record.lsn() != next {
            return Err(format!("record {} follows {}", record.lsn(), next.get() - 1));
        }
        match Id::of(record.payload(), seed) {
            Some(id) => found.push(id),
            None => return Err(format!("nobody appended record {next}")),
        }
        next = Lsn::new(next.get() + 1);
    }
}

/// Of each producer what is there is a run without gaps, but for what cuts and trims took; lives follow
/// each other; batches are whole.
fn check_order(found: &[Id], first: u64, cuts: &[u64]) -> Result<(), String> {
    let mut next: HashMap<(u32, u32), (u64, u64)> = HashMap::new();
    let mut life = 0;
    for (&id, lsn) in found.iter().zip(first..) {
        if id.life < life {
            return Err(format!("record {lsn}, {id:?}, comes after life {life}"));
        }
        life = id.life;
        let before = next.insert((id.life, id.producer), (id.index + 1, lsn));
        let (due, from) = before.unwrap_or((0, 0));
        // From the producer's last record to this one, or from the log's start.
        let is_cut = cuts.iter().any(|cut| (from..lsn).contains(cut));
        let is_trimmed = before.is_none() && first > 1;
        if id.index < due || (id.index > due && !is_cut && !is_trimmed) {
            return Err(format!("record {lsn} is {id:?}, and {due} was to follow"));
        }
    }
    for ((life, producer), (end, lsn)) in next {
        let is_cut = cuts.contains(&lsn);
        if producer == BATCHER && !end.is_multiple_of(BATCH) && !is_cut {
            return Err(format!("record {lsn} ends a part of a batch of life {life}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(producer: u32, index: u64) -> Id {
        Id { life: 1, producer, index }
    }

    #[test]
    fn order_is_checked() {
        let run = [id(0, 0), id(1, 0), id(0, 1)];
        assert_eq!(check_order(&run, 1, &[]), Ok(()));
        assert_eq!(check_order(&[id(0, 3), id(0, 4)], 9, &[]), Ok(()), "trimmed");
        assert!(check_order(&[id(0, 1)], 1, &[]).is_err(), "the first is missing");
        assert!(check_order(&[id(0, 0), id(0, 2)], 1, &[]).is_err(), "a gap");
        assert_eq!(check_order(&[id(0, 0), id(0, 2)], 1, &[1]), Ok(()), "a cut between them");
        assert!(check_order(&[id(0, 1), id(0, 0)], 5, &[]).is_err(), "the wrong way round");
        let later = [Id { life: 2, producer: 0, index: 0 }, id(0, 0)];
        assert!(check_order(&later, 1, &[]).is_err(), "lives mixed");
        let batch: Vec<Id> = (0..BATCH).map(|index| id(BATCHER, index)).collect();
        assert_eq!(check_order(&batch, 1, &[]), Ok(()));
        assert!(check_order(&batch[..3], 1, &[]).is_err(), "a part of a batch");
        assert_eq!(check_order(&batch[..3], 1, &[3]), Ok(()), "cut there");
    }

    #[test]
    fn a_change_under_way_may_have_happened_or_not() {
        let mut known = Known::new(false);
        let opened = |generation, first, at| Opened {
            generation,
            first,
            last: 0,
            cursors: BTreeMap::from([("c".to_owned(), at)]),
        };
        let name = || "c".to_owned();
        for note in [
            Note::Begins(Change::Make { name: name() }),
            Note::Done(Outcome::Cursor(1)),
            Note::Begins(Change::Advance { name: name(), to: 7 }),
        ] {
            known.learn(&note).unwrap();
        }
        assert_eq!(known.compare(&opened(0, 1, 1)), Ok(()));
        assert_eq!(known.compare(&opened(0, 1, 7)), Ok(()));
        assert!(known.compare(&opened(0, 1, 6)).is_err());
        known.learn(&Note::Done(Outcome::Cursor(7))).unwrap();
        assert!(known.compare(&opened(0, 1, 1)).is_err(), "an acknowledged position is lost");
        known.learn(&Note::Begins(Change::Trim { before: 5 })).unwrap();
        assert_eq!(known.compare(&opened(0, 5, 7)), Ok(()));
        known.learn(&Note::Done(Outcome::Trimmed(5))).unwrap();
        assert!(known.compare(&opened(0, 1, 7)).is_err(), "what was trimmed is back");
        known.learn(&Note::Begins(Change::Truncate { after: 5 })).unwrap();
        assert_eq!(known.compare(&opened(0, 5, 7)), Ok(()));
        assert_eq!(known.compare(&opened(1, 5, 6)), Ok(()));
        known.learn(&Note::Done(Outcome::Truncated(1))).unwrap();
        assert!(known.compare(&opened(0, 5, 6)).is_err(), "the cut is undone");
        assert!(known.compare(&opened(1, 5, 7)).is_err());
    }
}
