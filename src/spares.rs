//! Files that were segments once and are not part of the log any more. They wait to become segments
//! again, or to be removed; what is in them is worthless.
//!
//! None becomes the segment that it was. Its old header would be one of that segment still, and count, with all that
//! stood behind it, where the device loses the write of the new one. In any other place it is a foreign one.

use std::collections::VecDeque;
use std::io;

use crate::disk::{Access, Store};
use crate::frame;
use crate::segment;

/// The files that wait, the oldest first.
#[derive(Default)]
pub(crate) struct Spares {
    waiting: VecDeque<Spare>,
    /// A file got its name here and the directory was not synced since. Until it is, the file may
    /// come back as the segment that it was: so nothing in it may change before.
    names_pending: bool,
    /// The one that is being removed, with what is left of it.
    pub(crate) leaving: Option<Spare>,
}

/// A file that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Spare {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

impl Spare {
    /// Whether it was this segment.
    fn was(&self, epoch: u64) -> bool {
        segment::spare_epoch(&self.name) == Some(epoch)
    }
}

impl Spares {
    /// Those that recovery found: names and sizes.
    pub(crate) fn new(found: Vec<(String, u64)>) -> Self {
        let waiting = found.into_iter().map(|(name, bytes)| Spare { name, bytes }).collect();
        Spares { waiting, names_pending: false, leaving: None }
    }

    /// Makes the segment file `epoch`, which nobody counts as part of the log any more, one of them.
    /// False: there is no such file.
    ///
    /// A crash may leave either name. The caller has made durable, before, what says that the
    /// segment does not count: the mark, or a header of a later generation.
    ///
    /// A file that somebody has linked elsewhere, to keep it, only loses its name here.
    pub(crate) fn retire(&mut self, store: &dyn Store, epoch: u64) -> io::Result<bool> {
        let segment = frame::segment_name(epoch);
        let file = match store.open(&segment, Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            found => found?,
        };
        if file.has_other_names()? {
            store.remove(&segment)?;
            self.names_pending = true;
            return Ok(true);
        }
        let bytes = file.len()?;
        let name = self.free_name(epoch);
        store.rename(&segment, &name)?;
        self.names_pending = true;
        self.waiting.push_back(Spare { name, bytes });
        Ok(true)
    }

    /// Makes the names durable, where they are not.
    pub(crate) fn settle_names(&mut self, store: &dyn Store) -> io::Result<()> {
        if self.names_pending {
            store.sync_dir()?;
            self.names_pending = false;
        }
        Ok(())
    }

    /// Whether one has exactly this size, and was not the segment `epoch`.
    pub(crate) fn any_for(&self, epoch: u64, bytes: u64) -> bool {
        self.place_of(epoch, bytes).is_some()
    }

    /// Takes one to make the segment `epoch` of: of exactly this size, and one that was another segment.
    pub(crate) fn take_for(&mut self, epoch: u64, bytes: u64) -> Option<Spare> {
        let index = self.place_of(epoch, bytes)?;
        self.waiting.remove(index)
    }

    fn place_of(&self, epoch: u64, bytes: u64) -> Option<usize> {
        let fits = |spare: &Spare| spare.bytes == bytes && !spare.was(epoch);
        self.waiting.iter().position(fits)
    }

    /// Takes one that is to go: of another size, or beyond the `keep` that stay.
    pub(crate) fn take_surplus(&mut self, bytes: u64, keep: usize) -> Option<Spare> {
        let index = match self.waiting.iter().position(|spare| spare.bytes != bytes) {
            Some(index) => index,
            None if self.waiting.len() > keep => 0,
            None => return None,
        };
        self.waiting.remove(index)
    }

    /// Whether [`take_surplus`](Self::take_surplus) would take one.
    pub(crate) fn is_surplus(&self, bytes: u64, keep: usize) -> bool {
        self.waiting.len() > keep || self.waiting.iter().any(|spare| spare.bytes != bytes)
    }

    /// Gives one back that was not used.
    pub(crate) fn put_back(&mut self, spare: Spare) {
        self.waiting.push_front(spare);
    }

    /// Bytes of all that wait, and of the one that is being removed.
    pub(crate) fn bytes(&self) -> u64 {
        self.waiting.iter().chain(&self.leaving).map(|spare| spare.bytes).sum()
    }

    /// A name that none has.
    fn free_name(&self, epoch: u64) -> String {
        let mut number = 0;
        loop {
            let name = segment::spare_name(epoch, number);
            let leaving = self.leaving.as_ref().is_some_and(|spare| spare.name == name);
            if !leaving && self.waiting.iter().all(|spare| spare.name != name) {
                return name;
            }
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemStore;

    fn store_with(epochs: &[u64]) -> std::sync::Arc<MemStore> {
        let store = MemStore::new(4096);
        epochs.iter().for_each(|&epoch| store.put(&frame::segment_name(epoch), vec![1; 4096]));
        store
    }

    /// A name that is not durable may turn back into the segment's: its bytes must not have changed
    /// by then.
    #[test]
    fn names_are_settled_once_and_only_where_something_got_one() {
        let store = store_with(&[3, 4]);
        let mut spares = Spares::new(Vec::new());
        spares.settle_names(&*store).unwrap();
        assert!(store.take_names_done().is_empty(), "nothing is pending");
        assert!(spares.retire(&*store, 3).unwrap());
        assert!(spares.retire(&*store, 4).unwrap());
        assert!(!spares.retire(&*store, 5).unwrap(), "there is no such file");
        let named = |epoch| format!("rename {}", segment::spare_name(epoch, 0));
        assert_eq!(store.take_names_done(), [named(3), named(4)]);
        spares.settle_names(&*store).unwrap();
        spares.settle_names(&*store).unwrap();
        assert_eq!(store.take_names_done(), ["sync"]);
    }

    #[test]
    fn none_becomes_the_segment_that_it_was() {
        let store = store_with(&[3, 4]);
        let mut spares = Spares::new(vec![(segment::spare_name(5, 7), 8192)]);
        (3..=4).for_each(|epoch| assert!(spares.retire(&*store, epoch).unwrap()));
        assert!(!spares.any_for(5, 8192) && spares.any_for(4, 8192) && !spares.any_for(4, 100));
        let name = |spare: Option<Spare>| spare.map(|spare| spare.name);
        assert_eq!(name(spares.take_for(3, 4096)), Some(segment::spare_name(4, 0)));
        assert_eq!(name(spares.take_for(3, 4096)), None);
        assert_eq!(name(spares.take_for(4, 4096)), Some(segment::spare_name(3, 0)));
        assert_eq!(name(spares.take_for(5, 8192)), None);
    }

    #[test]
    fn what_could_not_be_settled_is_settled_later() {
        let store = store_with(&[3]);
        let mut spares = Spares::new(Vec::new());
        spares.retire(&*store, 3).unwrap();
        store.take_names_done();
        store.stop_after(0);
        assert!(spares.settle_names(&*store).is_err());
        store.stop_after(i64::MAX);
        spares.settle_names(&*store).unwrap();
        assert_eq!(store.take_names_done(), ["sync"]);
    }
}
