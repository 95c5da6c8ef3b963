//! What the log was given, and what it owes: the other side of every comparison.

use std::collections::BTreeMap;
use std::sync::Arc;

use uringlog::{CursorInfo, Lsn, ReadError, Reader};

use crate::rng::{Rng, mix};

/// One record's bytes, or how to make them.
#[derive(Clone)]
pub enum Payload {
    /// Drawn from a number that no other record has.
    Drawn { id: u64, len: usize },
    /// Bytes that stood in a segment file: whole batches, headers and all.
    Copied(Arc<[u8]>),
}

impl Payload {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        bytes
    }

    pub fn len(&self) -> usize {
        match self {
            Payload::Drawn { len, .. } => *len,
            Payload::Copied(bytes) => bytes.len(),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Payload::Copied(bytes) => out.extend_from_slice(bytes),
            &Payload::Drawn { id, len } => {
                let mut rng = Rng::new(mix(id));
                while out.len() < len {
                    out.extend_from_slice(&rng.next().to_le_bytes());
                }
                out.truncate(len);
            }
        }
    }
}

struct Accepted {
    payload: Payload,
    /// Numbers that survive a crash together.
    first: u64,
    last: u64,
}

/// All accepted records by number, and the least that the next recovery must find.
pub struct Model {
    records: Vec<Accepted>,
    next_id: u64,
    /// Everything up to here survives whatever happens: it was durable, or recovery reported it.
    pub durable: u64,
    /// The first record: everything below was trimmed, durably.
    pub first: u64,
    /// What a trim that failed wanted to be the first record: the mark may say so all the same.
    pub first_tried: u64,
    /// Truncations that are complete, as the log counts them.
    pub generation: u64,
    /// A truncation that was asked for and not reported done: the last record to keep.
    pub cutting: Option<u64>,
    /// Each cursor's position, with what else it may be found at: a change that was not reported done.
    pub cursors: BTreeMap<String, Vec<Option<u64>>>,
    /// The furthest place that each cursor was ever to stand at.
    pub cursors_furthest: BTreeMap<String, u64>,
    /// The next recovery must find everything up to here: after the death of the process alone, what
    /// was acknowledged; after a crash, what was durable.
    pub floor: u64,
    /// The durable watermark whenever it had moved: one batch at least for each step.
    steps: Vec<u64>,
    /// How many batches at the end may be lost in silence where something went bad: those that it
    /// touches, and those that were under way when the last intact header was sealed.
    pub unvouched_steps: usize,
    scratch: Vec<u8>,
}

impl Model {
    pub fn new(seed: u64) -> Self {
        Model {
            records: Vec::new(),
            // Numbers of their own for each seed, far apart.
            next_id: mix(seed),
            durable: 0,
            first: 1,
            first_tried: 1,
            generation: 0,
            cutting: None,
            cursors: BTreeMap::new(),
            cursors_furthest: BTreeMap::new(),
            floor: 0,
            steps: Vec::new(),
            unvouched_steps: 0,
            scratch: Vec::new(),
        }
    }

    /// A new payload; it is no record yet.
    pub fn draw(&mut self, len: usize) -> Payload {
        self.next_id = self.next_id.wrapping_add(1);
        Payload::Drawn { id: self.next_id, len }
    }

    /// Number of the last accepted record.
    pub fn last(&self) -> u64 {
        self.records.len() as u64
    }

    /// The log took these records under these numbers.
    pub fn accept(&mut self, first: Lsn, last: Lsn, payloads: Vec<Payload>) {
        assert_eq!(first.get(), self.last() + 1, "numbers are dense and in the order of appends");
        assert_eq!(last.get(), self.last() + payloads.len() as u64, "a number for each record");
        let (first, last) = (first.get(), last.get());
        self.records.extend(payloads.into_iter().map(|payload| Accepted { payload, first, last }));
    }

    /// Recovery found the records up to `last` in this generation: compares with what the log owes.
    pub fn check_end(&self, last: u64, generation: u64, rotten: bool) {
        if generation != self.generation {
            assert!(generation > self.generation, "an older generation came back");
            let cut = self.cutting.expect("CUT: nobody asked for it");
            let fits = last == cut || rotten && last < cut;
            assert!(fits, "CUT after {cut}: complete, and {last} records are there");
            return;
        }
        let floor = match rotten {
            true => self.vouched().min(self.floor),
            false => self.floor,
        };
        assert!(last >= floor, "LOST: {floor} records must be there, and {last} are");
        assert!(
            last <= self.last(),
            "INVENTED: {} records were accepted, {last} are there",
            self.last()
        );
        if let Some(record) = self.records.get((last as usize).wrapping_sub(1)) {
            let span = (record.first, record.last);
            assert_eq!(record.last, last, "SPLIT: the batch {span:?} is there only up to {last}");
        }
    }

    /// The watermark moved.
    pub fn moved(&mut self, durable: u64) {
        if self.steps.last() != Some(&durable) {
            self.steps.push(durable);
        }
        self.durable = durable;
    }

    /// What a batch that nothing touched vouches for, whichever batches at the end are gone.
    fn vouched(&self) -> u64 {
        let index = self.steps.len().checked_sub(1 + self.unvouched_steps);
        index.map_or(0, |index| self.steps[index])
    }

    /// The log starts at `first`, as it was found or as it says.
    pub fn check_first(&mut self, first: u64, last: u64, rotten: bool) {
        assert!(first >= self.first, "{first}: what was trimmed came back from {}", self.first);
        assert!(first <= last + 1, "the log starts at {first} and ends at {last}");
        // A trim that failed kept to the cursors that were there then, and may be found done; one that was made since
        // stands before it where the newer slot of the mark could not be read.
        for (name, positions) in self.cursors.iter().filter(|_| first > self.first_tried) {
            // A cursor whose newer slot went bad stands at its older position: before the start, where a trim
            // followed the newer one; and a trim may follow the older one where the newer one had set it back.
            let ever = self.cursors_furthest.get(name).filter(|_| rotten).copied();
            let furthest = positions.iter().map(|at| at.unwrap_or(u64::MAX)).chain(ever).max();
            assert!(furthest.is_none_or(|at| first <= at), "{first}: trimmed past cursor {name}");
        }
        self.first = first;
    }

    /// The cursors that were found, where the log ends at `last`.
    pub fn check_cursors(&mut self, found: &[CursorInfo], last: u64, rotten: bool) {
        for cursor in found {
            let may_be = self.cursors.get(&cursor.name).expect("a cursor that nobody made");
            let at = cursor.position.get();
            let fits =
                |may_be: &Option<u64>| may_be.is_some_and(|may_be| may_be.min(last + 1) == at);
            // A write that went elsewhere leaves an older position, which is the further one where the cursor
            // was set back.
            let ever = self.cursors_furthest.get(&cursor.name).copied().unwrap_or(0);
            let furthest = may_be.iter().flatten().copied().fold(ever, u64::max).min(last + 1);
            let fits = may_be.iter().any(fits) || rotten && at <= furthest;
            assert!(fits, "cursor {} at {at}: {may_be:?}", cursor.name);
        }
        for (name, positions) in &self.cursors {
            let is_there = found.iter().any(|cursor| cursor.name == *name);
            assert!(is_there || positions.contains(&None), "cursor {name} is gone: {positions:?}");
        }
        let found = found.iter().map(|cursor| {
            let at = cursor.position.get();
            let mut may_be = vec![Some(at)];
            if at < self.first && self.cursors[&cursor.name].contains(&None) {
                // Its removal failed half way, and records behind it were trimmed meanwhile.
                may_be.push(None);
            }
            (cursor.name.clone(), may_be)
        });
        self.cursors = found.collect();
    }

    /// The truncation is complete.
    pub fn truncated(&mut self, last: u64, generation: u64) {
        assert!(generation >= self.generation);
        self.generation = generation;
        self.cutting = None;
        self.cut(last);
        // A cut may go through what was appended together.
        for record in self.records.iter_mut().rev().take_while(|record| record.last > last) {
            record.last = last;
        }
        for positions in self.cursors.values_mut() {
            positions.iter_mut().flatten().for_each(|at| *at = (*at).min(last + 1));
        }
    }

    /// What was accepted behind `last` is gone.
    pub fn cut(&mut self, last: u64) {
        self.records.truncate(last as usize);
        self.steps.retain(|&step| step < last);
        self.moved(last);
        self.floor = last;
    }

    /// The record that a reader returned is the one that was accepted.
    pub fn check_record(&mut self, lsn: u64, bytes: &[u8]) {
        let record = &self.records[lsn as usize - 1];
        assert_eq!(bytes.len(), record.payload.len(), "WRONG length of record {lsn}");
        record.payload.write(&mut self.scratch);
        assert!(bytes == self.scratch, "WRONG bytes of record {lsn}");
    }

    /// Reads what there is up to `durable`. Every record is right; returns the number of the last.
    pub fn read(&mut self, reader: &mut Reader, durable: u64) -> Result<u64, ReadError> {
        loop {
            let position = reader.next_lsn().get();
            let Some(record) = reader.next_record()? else { return Ok(position - 1) };
            let lsn = record.lsn().get();
            assert!(lsn <= durable, "UNDURABLE: record {lsn} was read, and {durable} are durable");
            assert_eq!(lsn, position, "a reader goes on where it was");
            let bytes = record.payload().to_vec();
            self.check_record(lsn, &bytes);
        }
    }
}
