//! The mark: the one small file that says what the log holds where its segments cannot say it
//! themselves. Where it starts (all below was trimmed), which generation it is in (what a truncation
//! cut must not come back), and whether it was closed cleanly.

use crate::disk::Store;
use crate::error::{Damage, IoError};
use crate::frame::{LogId, NUMBER_MAX, get_u32, get_u64, is_zero, put_u32, put_u64};
use crate::segment::ScanError;
use crate::slots::{self, Kind, SlotFile};

/// Name of the file.
pub(crate) const MARK_NAME: &str = "log.mark";

const CONTENT_BYTES: usize = 64;

/// What the mark says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    /// The lowest segment of the log; what stands below is trimmed.
    pub(crate) first_epoch: u64,
    /// The first record of the log. It stands in that segment, at its start or behind it.
    pub(crate) first_lsn: u64,
    /// Truncations begun so far. It counts only where the segment `generation_epoch` is of this
    /// generation or a later one: its appearance is what completes a truncation.
    pub(crate) generation: u64,
    /// The segment that began, or will begin, this generation; 0 in generation 0.
    pub(crate) generation_epoch: u64,
    /// The last record that this generation's truncation kept.
    pub(crate) truncated_after: u64,
    /// Where the log ended when it was closed; taken back, durably, before anything is written.
    pub(crate) closed: Option<Closed>,
}

/// The end of a log that was closed cleanly.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Closed {
    pub(crate) epoch: u64,
    /// Offset behind the last batch in that segment.
    pub(crate) end_offset: u64,
    /// Header checksum of the last batch.
    pub(crate) crc: u32,
}

impl Mark {
    /// That of a log from which nothing was ever taken away. So is a log without a mark.
    pub(crate) fn new() -> Mark {
        Mark {
            first_epoch: 1,
            first_lsn: 1,
            generation: 0,
            generation_epoch: 0,
            truncated_after: 0,
            closed: None,
        }
    }

    pub(crate) fn encode(&self) -> [u8; CONTENT_BYTES] {
        let mut bytes = [0; CONTENT_BYTES];
        put_u64(&mut bytes, 0, self.first_epoch);
        put_u64(&mut bytes, 8, self.first_lsn);
        put_u64(&mut bytes, 16, self.generation);
        put_u64(&mut bytes, 24, self.generation_epoch);
        put_u64(&mut bytes, 32, self.truncated_after);
        if let Some(closed) = self.closed {
            put_u64(&mut bytes, 40, closed.epoch);
            put_u64(&mut bytes, 48, closed.end_offset);
            put_u32(&mut bytes, 56, closed.crc);
            put_u32(&mut bytes, 60, 1);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Mark> {
        if bytes.len() != CONTENT_BYTES {
            return None;
        }
        let closed = match get_u32(bytes, 60) {
            0 if !is_zero(&bytes[40..60]) => return None,
            0 => None,
            1 => Some(Closed {
                epoch: get_u64(bytes, 40),
                end_offset: get_u64(bytes, 48),
                crc: get_u32(bytes, 56),
            }),
            _ => return None,
        };
        let mark = Mark {
            first_epoch: get_u64(bytes, 0),
            first_lsn: get_u64(bytes, 8),
            generation: get_u64(bytes, 16),
            generation_epoch: get_u64(bytes, 24),
            truncated_after: get_u64(bytes, 32),
            closed,
        };
        let in_range = (0..5).all(|index| get_u64(bytes, 8 * index) <= NUMBER_MAX);
        (in_range && mark.first_epoch > 0 && mark.first_lsn > 0).then_some(mark)
    }
}

/// The mark of a log that is open for writing.
pub(crate) struct MarkFile {
    file: SlotFile,
    mark: Mark,
}

impl MarkFile {
    /// Opens the mark, or makes one that says `new` where there is none. Its slots may differ until
    /// [`settle`](Self::settle): whoever wrote it last may have died between the two.
    pub(crate) fn open_or_create(
        store: &dyn Store,
        log_id: LogId,
        new: Mark,
    ) -> Result<MarkFile, ScanError> {
        let Some((file, slot)) = SlotFile::open(store, MARK_NAME, Kind::Mark)? else {
            let bytes = new.encode();
            let mut file = SlotFile::create(store, MARK_NAME, Kind::Mark, log_id, &bytes)?;
            file.write(store, &bytes)?;
            return Ok(MarkFile { file, mark: new });
        };
        let mark = checked(store, &slot, Some(log_id))?;
        Ok(MarkFile { file, mark })
    }

    /// Makes the file anew, in place of one that cannot be read. It says `mark` in both slots.
    pub(crate) fn replace(
        store: &dyn Store,
        log_id: LogId,
        mark: Mark,
    ) -> Result<MarkFile, IoError> {
        let bytes = mark.encode();
        let mut file = SlotFile::create(store, MARK_NAME, Kind::Mark, log_id, &bytes)?;
        file.write(store, &bytes)?;
        Ok(MarkFile { file, mark })
    }

    pub(crate) fn get(&self) -> &Mark {
        &self.mark
    }

    /// Makes both slots say `mark`, durably, where they may differ.
    pub(crate) fn settle(&mut self, store: &dyn Store, mark: Mark) -> Result<(), IoError> {
        match self.mark == mark {
            true => self.file.write_other(store, &mark.encode()),
            false => self.set(store, mark),
        }
    }

    /// Replaces the mark; it is durable when this returns. After an error nobody knows which of the
    /// two will be found.
    ///
    /// Both slots get it: a sector that goes bad later brings no older mark back.
    pub(crate) fn set(&mut self, store: &dyn Store, mark: Mark) -> Result<(), IoError> {
        let bytes = mark.encode();
        // Both slots, each durable: a sector that goes bad brings no older mark back.
        self.file.write(store, &bytes)?;
        self.file.write(store, &bytes)?;
        self.mark = mark;
        Ok(())
    }
}

/// The mark of a log as it stands, without a lock: a writer may be at work. None: there is no file.
pub(crate) fn read_mark(
    store: &dyn Store,
    log_id: Option<LogId>,
) -> Result<Option<Mark>, ScanError> {
    let Some(slot) = slots::read(store, MARK_NAME, Kind::Mark)? else { return Ok(None) };
    checked(store, &slot, log_id).map(Some)
}

/// The same, with the log that it says it is of.
pub(crate) fn find_mark(store: &dyn Store) -> Result<Option<(LogId, Mark)>, ScanError> {
    let Some(slot) = slots::read(store, MARK_NAME, Kind::Mark)? else { return Ok(None) };
    Ok(Some((slot.log_id, checked(store, &slot, None)?)))
}

fn checked(
    store: &dyn Store,
    slot: &slots::Slot,
    log_id: Option<LogId>,
) -> Result<Mark, ScanError> {
    let path = store.path(MARK_NAME);
    if log_id.is_some_and(|log_id| log_id != slot.log_id) {
        let reason = format!("it is of log {}", slot.log_id);
        return Err(ScanError::Foreign { path, reason });
    }
    Mark::decode(&slot.content).ok_or_else(|| {
        ScanError::Damaged(Damage {
            segment: path,
            offset: 0,
            lost: None,
            detail: "the mark's fields are out of range".to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back() {
        let closed = Some(Closed { epoch: 9, end_offset: 4096, crc: 7 });
        let mark = Mark {
            first_epoch: 2,
            first_lsn: 3,
            generation: 4,
            generation_epoch: 5,
            truncated_after: 6,
            closed,
        };
        for mark in [mark, Mark { closed: None, ..mark }, Mark::new()] {
            assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        }
    }

    #[test]
    fn opening_ends_what_a_crash_between_the_slots_left() {
        for slot in [0, 65536] {
            let store = crate::testing::MemStore::new(512);
            let id = LogId([3; 16]);
            let mut file = MarkFile::open_or_create(&*store, id, Mark::new()).expect("it is made");
            let mark = Mark { first_lsn: 7, ..Mark::new() };
            // One slot only: the process died then.
            file.file.write(&*store, &mark.encode()).expect("it is written");
            let mut file = MarkFile::open_or_create(&*store, id, Mark::new()).expect("it opens");
            assert_eq!(file.get().first_lsn, 7);
            file.settle(&*store, mark).expect("it is written");
            store.alter(MARK_NAME, slot + 40, 1, |byte| byte ^ 1);
            let mark = read_mark(&*store, Some(id)).expect("it reads").expect("it is there");
            assert_eq!(mark.first_lsn, 7, "without the slot at {slot}");
        }
    }

    #[test]
    fn either_slot_alone_has_the_last_mark() {
        for slot in [0, 65536] {
            let store = crate::testing::MemStore::new(512);
            let id = LogId([3; 16]);
            let mut file = MarkFile::open_or_create(&*store, id, Mark::new()).expect("it is made");
            for first_lsn in [5, 6, 7] {
                let mark = Mark { first_lsn, ..Mark::new() };
                file.set(&*store, mark).expect("it is written");
            }
            store.alter(MARK_NAME, slot + 40, 1, |byte| byte ^ 1);
            let mark = read_mark(&*store, Some(id)).expect("it reads").expect("it is there");
            assert_eq!(mark.first_lsn, 7);
        }
    }
}
