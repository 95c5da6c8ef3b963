//! The files that the ring knows by index.

use std::sync::{Arc, Weak};

use io_uring::IoUring;

use crate::disk::File;

/// The files that the ring knows by index, which saves looking up the descriptor at every write. A
/// slot is given to another file only while nothing is under way on it.
pub(super) struct FileTable {
    pub(super) slots: Vec<FileSlot>,
    clock: u64,
}

pub(super) struct FileSlot {
    /// Weak, so that a removed segment's space is not held; its allocation stays, so that no other
    /// file can be mistaken for it. None: free.
    pub(super) file: Option<Weak<dyn File>>,
    /// Counts the files that the slot has had.
    generation: u64,
    pub(super) under_way: u32,
    used: u64,
}

/// A registered file in use by an operation.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub(super) index: usize,
    generation: u64,
}

impl FileTable {
    /// An empty table; without slots where the kernel refuses one.
    pub(super) fn new(ring: &IoUring) -> Self {
        let registered = ring.submitter().register_files(&[-1; FILE_SLOTS]).is_ok();
        let slots = if registered { FILE_SLOTS } else { 0 };
        let free = |_| FileSlot { file: None, generation: 0, under_way: 0, used: 0 };
        FileTable { slots: (0..slots).map(free).collect(), clock: 0 }
    }

    /// The file's slot, registering it if need be; none when it must go by its descriptor.
    pub(super) fn acquire(&mut self, ring: &IoUring, file: &Arc<dyn File>) -> Option<Slot> {
        self.clock += 1;
        let known = self.slots.iter().position(|slot| {
            slot.file
                .as_ref()
                .is_some_and(|known| std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(file)))
        });
        let index = match known {
            Some(index) => index,
            None => self.register(ring, file)?,
        };
        let slot = &mut self.slots[index];
        slot.used = self.clock;
        slot.under_way += 1;
        Some(Slot { index, generation: slot.generation })
    }

    /// Ends one operation's use of its slot.
    pub(super) fn release(&mut self, slot: Slot) {
        let held = &mut self.slots[slot.index];
        debug_assert_eq!(held.generation, slot.generation, "a slot in use got another file");
        held.under_way -= 1;
    }

    /// Puts the file into the slot that was used longest ago, and empties those of closed files.
    fn register(&mut self, ring: &IoUring, file: &Arc<dyn File>) -> Option<usize> {
        let idle = |slot: &FileSlot| slot.under_way == 0;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let closed = slot.file.as_ref().is_some_and(|file| file.strong_count() == 0);
            if closed
                && idle(slot)
                && ring.submitter().register_files_update(index as u32, &[-1]).is_ok()
            {
                slot.file = None;
                slot.used = 0;
            }
        }
        let (index, slot) = self
            .slots
            .iter_mut()
            .enumerate()
            .filter(|(_, slot)| idle(slot))
            .min_by_key(|(_, slot)| slot.used)?;
        // Forgotten first: after a failed update it is not known what the slot holds.
        slot.file = None;
        slot.generation += 1;
        ring.submitter().register_files_update(index as u32, &[file.raw_fd()]).ok()?;
        slot.file = Some(Arc::downgrade(file));
        Some(index)
    }
}

const FILE_SLOTS: usize = 4;
