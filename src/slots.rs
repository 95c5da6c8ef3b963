//! A small file that is replaced as a whole and atomically: two slots, written in turn.
//!
//! Each write goes to the slot that is not the current one, under a sequence number that is one
//! higher, and is synced before it counts. A torn write leaves the other slot as it was. The mark
//! and the cursors of a log are such files.
//!
//! ```text
//! slot  ┌ magic 4 ┬ crc 4 ┬ log_id 16 ┬ kind 4 ┬ length 4 ┬ sequence 8 ┬ content ┬ zeros to 512 ┐
//! ```
//!
//! The second slot stands 64 KiB behind the first, whatever the block of the device.

use std::io;
use std::sync::Arc;

use crate::disk::{Access, File, Store};
use crate::error::{Damage, IoError};
use crate::frame::{
    BLOCK_BYTES_MAX, LogId, NUMBER_MAX, crc32c, get_u32, get_u64, is_zero, put_u32, put_u64,
};
use crate::mem::AlignedBuf;
use crate::segment::{self, ScanError, TMP_SUFFIX};

const MAGIC: [u8; 4] = *b"ULs1";
const SLOT_BYTES: usize = 512;
pub(crate) const SLOT_STRIDE: u64 = BLOCK_BYTES_MAX as u64;
const HEAD_BYTES: usize = 40;
/// Most bytes of content.
pub(crate) const CONTENT_BYTES_MAX: usize = SLOT_BYTES - HEAD_BYTES;

/// What a slot file is for; a file of another kind is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Kind {
    Mark = 1,
    Cursor = 2,
}

/// A slot file open for writing.
pub(crate) struct SlotFile {
    file: Arc<dyn File>,
    name: String,
    kind: Kind,
    log_id: LogId,
    sequence: u64,
}

/// The content that counts, and the sequence number it was written under.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(crate) log_id: LogId,
    pub(crate) sequence: u64,
    pub(crate) content: Vec<u8>,
}

impl SlotFile {
    /// Makes the file, durably, with its first content. It appears whole or not at all, in place of
    /// a file of that name.
    pub(crate) fn create(
        store: &dyn Store,
        name: &str,
        kind: Kind,
        log_id: LogId,
        content: &[u8],
    ) -> Result<SlotFile, IoError> {
        let tmp = name.to_owned() + TMP_SUFFIX;
        let make = || -> io::Result<Arc<dyn File>> {
            match store.remove(&tmp) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = store.create(&tmp)?;
            file.set_len(2 * SLOT_STRIDE)?;
            let block = block_bytes(store);
            // Both slots are written once, so that later writes change no metadata.
            file.write_at(SLOT_STRIDE, &AlignedBuf::new(block)?[..block])?;
            file.write_at(0, &slot_block(block, kind, log_id, 0, content)?[..block])?;
            file.sync()?;
            store.rename(&tmp, name)?;
            store.sync_dir()?;
            Ok(file)
        };
        match make() {
            Ok(file) => Ok(SlotFile { file, name: name.to_owned(), kind, log_id, sequence: 0 }),
            Err(error) => {
                // The first error is the one to report; a leftover is swept at the next open.
                store.remove(&tmp).ok();
                Err(IoError::new("make", store.path(name), error))
            }
        }
    }

    /// Opens the file for writing, and reads what counts. It is durable then: whoever wrote it may have
    /// died before the sync, or seen it fail, so the same bytes are written again and synced. (The next
    /// write goes over the other slot, which nobody may lose before.) None: there is no such file.
    pub(crate) fn open(
        store: &dyn Store,
        name: &str,
        kind: Kind,
    ) -> Result<Option<(SlotFile, Slot)>, ScanError> {
        SlotFile::open_since(store, name, kind, None)
    }

    /// As [`open`](Self::open); nothing is written where what counts is still what the caller knows to
    /// be durable, by its sequence number.
    pub(crate) fn open_since(
        store: &dyn Store,
        name: &str,
        kind: Kind,
        durable: Option<u64>,
    ) -> Result<Option<(SlotFile, Slot)>, ScanError> {
        let file = match store.open(name, Access::Write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(segment::not_opened(store.path(name), error)),
            Ok(file) => file,
        };
        let slot = read_file(store, &*file, name, kind)?;
        let (log_id, sequence) = (slot.log_id, slot.sequence);
        let opened = SlotFile { file, name: name.to_owned(), kind, log_id, sequence };
        if durable != Some(sequence) {
            opened.put(store, sequence, &slot.content)?;
        }
        Ok(Some((opened, slot)))
    }

    /// The sequence number of what counts.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Replaces the content; it is durable when this returns. After an error either content may
    /// count.
    pub(crate) fn write(&mut self, store: &dyn Store, content: &[u8]) -> Result<(), IoError> {
        let sequence = self.sequence + 1;
        self.put(store, sequence, content)?;
        self.sequence = sequence;
        Ok(())
    }

    /// Makes the slot that does not count say the same as the other, durably. Where it does, it is written
    /// again as it stands, which takes no number; after an error either content may count.
    pub(crate) fn write_other(&mut self, store: &dyn Store, content: &[u8]) -> Result<(), IoError> {
        let other = SLOT_OFFSETS[(self.sequence + 1) as usize % 2];
        let found = examine(store, &self.name, self.kind)?.into_iter().flatten();
        let says_it = found.zip(SLOT_OFFSETS).any(|(found, offset)| {
            offset == other
                && matches!(found, Found::Intact(slot)
                    if slot.content == content && slot.sequence + 1 == self.sequence)
        });
        match says_it {
            true => self.put(store, self.sequence - 1, content),
            false => self.write(store, content),
        }
    }

    fn put(&self, store: &dyn Store, sequence: u64, content: &[u8]) -> Result<(), IoError> {
        let put = || -> io::Result<()> {
            if sequence > NUMBER_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no number is left for it"));
            }
            let block = block_bytes(store);
            let bytes = slot_block(block, self.kind, self.log_id, sequence, content)?;
            self.file.write_at(sequence % 2 * SLOT_STRIDE, &bytes[..block])?;
            self.file.sync_data()
        };
        put().map_err(|error| IoError::new("write", store.path(&self.name), error))
    }
}

/// Reads what counts in a slot file, without changing it. None: there is no such file.
pub(crate) fn read(store: &dyn Store, name: &str, kind: Kind) -> Result<Option<Slot>, ScanError> {
    match store.open(name, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(segment::not_opened(store.path(name), error)),
        Ok(file) => read_file(store, &*file, name, kind).map(Some),
    }
}

fn read_file(
    store: &dyn Store,
    file: &dyn File,
    name: &str,
    kind: Kind,
) -> Result<Slot, ScanError> {
    let failed = |error| IoError::new("read", store.path(name), error);
    let block = block_bytes(store);
    let mut bytes = AlignedBuf::new(block).map_err(failed)?;
    let mut newest: Option<Slot> = None;
    let mut first_error = None;
    for offset in [0, SLOT_STRIDE] {
        match file.read_at(offset, &mut bytes[..block]) {
            Ok(read) => {
                if let Some(slot) = decode(&bytes[..read], kind)
                    && may_stand(&slot, kind, offset)
                    && newest.as_ref().is_none_or(|newest| newest.sequence < slot.sequence)
                {
                    newest = Some(slot);
                }
            }
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    match (newest, first_error) {
        // The mark is in both slots. Elsewhere the one that cannot be read may be the one that counts.
        (Some(slot), None) => Ok(slot),
        (Some(slot), Some(_)) if kind == Kind::Mark => Ok(slot),
        (Some(_), Some(error)) => Err(failed(error).into()),
        (None, Some(error)) => Err(failed(error).into()),
        (None, None) => Err(ScanError::Damaged(Damage {
            segment: store.path(name),
            offset: 0,
            lost: None,
            detail: "neither of the file's two slots is intact".to_owned(),
        })),
    }
}

/// Whether a slot counts where it was found. One in the other's place came there by a write that the device misdirected.
/// A mark is that of this log wherever it stands, and an older one must not count beside it; opening it for writing
/// writes it again in its own place, before anything could go over it. A cursor's may be another cursor's.
fn may_stand(slot: &Slot, kind: Kind, offset: u64) -> bool {
    kind == Kind::Mark || slot.sequence % 2 * SLOT_STRIDE == offset
}

/// What stands in one slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    Intact(Slot),
    /// Zeros: it was never written.
    Zero,
    /// Neither, or the file ends before it.
    Broken,
    /// The device does not give it; what the system said.
    Unreadable(String),
}

/// Where each slot stands.
pub(crate) const SLOT_OFFSETS: [u64; 2] = [0, SLOT_STRIDE];

/// Looks at both slots, whatever their state. None: there is no such file.
pub(crate) fn examine(
    store: &dyn Store,
    name: &str,
    kind: Kind,
) -> Result<Option<[Found; 2]>, IoError> {
    let failed = |action: &str, error| IoError::new(action, store.path(name), error);
    let file = match store.open(name, Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Of the mark nobody knows what it says; without a cursor the log can be told.
        Err(error) if kind == Kind::Cursor => {
            return Ok(Some([(); 2].map(|()| Found::Unreadable(error.to_string()))));
        }
        opened => opened.map_err(|error| failed("open", error))?,
    };
    let block = block_bytes(store);
    let mut bytes = AlignedBuf::new(block).map_err(|error| failed("read", error))?;
    Ok(Some(SLOT_OFFSETS.map(|offset| {
        match file.read_at(offset, &mut bytes[..block]) {
            Err(error) => Found::Unreadable(error.to_string()),
            Ok(read) if read < SLOT_BYTES => Found::Broken,
            Ok(read) if is_zero(&bytes[..SLOT_BYTES]) && read >= SLOT_BYTES => Found::Zero,
            Ok(read) => decode(&bytes[..read], kind)
                .filter(|slot| may_stand(slot, kind, offset))
                .map_or(Found::Broken, Found::Intact),
        }
    })))
}

fn block_bytes(store: &dyn Store) -> usize {
    store.facts().block_bytes.max(SLOT_BYTES)
}

pub(crate) fn slot_block(
    block: usize,
    kind: Kind,
    log_id: LogId,
    sequence: u64,
    content: &[u8],
) -> io::Result<AlignedBuf> {
    if content.len() > CONTENT_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = AlignedBuf::new(block)?;
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[8..24].copy_from_slice(&log_id.0);
    put_u32(&mut bytes, 24, kind as u32);
    put_u32(&mut bytes, 28, content.len() as u32);
    put_u64(&mut bytes, 32, sequence);
    bytes[HEAD_BYTES..HEAD_BYTES + content.len()].copy_from_slice(content);
    let crc = crc32c(&bytes[8..SLOT_BYTES]);
    put_u32(&mut bytes, 4, crc);
    Ok(bytes)
}

fn decode(bytes: &[u8], kind: Kind) -> Option<Slot> {
    let slot = bytes.get(..SLOT_BYTES)?;
    if slot[..4] != MAGIC || get_u32(slot, 4) != crc32c(&slot[8..]) {
        return None;
    }
    let len = get_u32(slot, 28) as usize;
    if get_u32(slot, 24) != kind as u32
        || len > CONTENT_BYTES_MAX
        || get_u64(slot, 32) > NUMBER_MAX
        || !is_zero(&slot[HEAD_BYTES + len..])
    {
        return None;
    }
    let mut log_id = [0; 16];
    log_id.copy_from_slice(&slot[8..24]);
    Some(Slot {
        log_id: LogId(log_id),
        sequence: get_u64(slot, 32),
        content: slot[HEAD_BYTES..HEAD_BYTES + len].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemStore;

    const ID: LogId = LogId([3; 16]);

    #[test]
    fn the_last_write_counts_and_a_torn_one_does_not() {
        let store = MemStore::new(4096);
        let mut file =
            SlotFile::create(&*store, "c", Kind::Cursor, ID, b"one").expect("it is made");
        for content in [&b"two"[..], b"three", b""] {
            file.write(&*store, content).expect("it is written");
            let slot = read(&*store, "c", Kind::Cursor).expect("it reads").expect("it is there");
            assert_eq!((slot.content.as_slice(), slot.log_id), (content, ID));
        }
        // The last write, sequence 3, went to the second slot.
        store.alter("c", 65536 + 40, 1, |byte| byte ^ 1);
        let slot = read(&*store, "c", Kind::Cursor).expect("it reads").expect("it is there");
        assert_eq!(slot.content, b"three");
        let (mut file, _) =
            SlotFile::open(&*store, "c", Kind::Cursor).expect("it opens").expect("it is there");
        file.write(&*store, b"again").expect("it is written");
        let slot = read(&*store, "c", Kind::Cursor).expect("it reads").expect("it is there");
        assert_eq!(slot.content, b"again");
    }

    /// The write of the second copy of a mark lands on the first: no older mark counts, and it is mended.
    #[test]
    fn a_mark_in_the_others_place_counts_and_a_cursor_does_not() {
        for kind in [Kind::Mark, Kind::Cursor] {
            let store = MemStore::new(512);
            let mut file = SlotFile::create(&*store, "m", kind, ID, b"old").expect("it is made");
            file.write(&*store, b"old").expect("it is written");
            let old = store.bytes("m")[65536..].to_vec();
            (0..2).for_each(|_| file.write(&*store, b"new").expect("it is written"));
            let new = store.bytes("m")[65536..].to_vec();
            store.splice("m", 0, &new[..512]);
            store.splice("m", 65536, &old);
            let expected: &[u8] = if kind == Kind::Mark { b"new" } else { b"old" };
            let content =
                || read(&*store, "m", kind).expect("it reads").expect("it is there").content;
            assert_eq!(content(), expected, "{kind:?}");
            let (mut file, _) =
                SlotFile::open(&*store, "m", kind).expect("it opens").expect("it is");
            file.write_other(&*store, expected).expect("it is written");
            for offset in [0, 65536] {
                let spoilt = store.copy(512);
                spoilt.alter("m", offset, 512, |byte| !byte);
                let slot = read(&*spoilt, "m", kind).expect("it reads").expect("it is there");
                assert_eq!(slot.content, expected, "{kind:?}");
            }
        }
    }

    #[test]
    fn damage_to_both_slots_is_an_error_and_another_kind_too() {
        let store = MemStore::new(512);
        assert!(read(&*store, "c", Kind::Cursor).expect("it reads").is_none());
        SlotFile::create(&*store, "c", Kind::Cursor, ID, b"one").expect("it is made");
        assert!(matches!(read(&*store, "c", Kind::Mark), Err(ScanError::Damaged(_))));
        store.alter("c", 9, 1, |byte| byte ^ 1);
        assert!(matches!(read(&*store, "c", Kind::Cursor), Err(ScanError::Damaged(_))));
    }
}
