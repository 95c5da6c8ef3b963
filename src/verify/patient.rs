//! A file that is read block by block where the device fails: what cannot be read stands as bytes that
//! pass for nothing, and its place is noted. So one bad sector costs one block, not a chunk.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::{Access, File, Store};

/// What stands in place of bytes that the device does not give.
const FILL: u8 = 0xdb;
/// Places that are remembered.
const PLACES_MAX: usize = 1024;

/// A file that never fails to be read, other than at the first word about it.
pub(crate) struct PatientFile {
    inner: Arc<dyn File>,
    block_bytes: usize,
    unreadable: Mutex<Vec<(u64, String)>>,
}

impl PatientFile {
    pub(crate) fn open(store: &dyn Store, name: &str) -> io::Result<Arc<PatientFile>> {
        Ok(PatientFile::new(store.open(name, Access::Read)?, store.facts().block_bytes))
    }

    pub(crate) fn new(inner: Arc<dyn File>, block_bytes: usize) -> Arc<PatientFile> {
        Arc::new(PatientFile { inner, block_bytes, unreadable: Mutex::new(Vec::new()) })
    }

    /// Offsets of blocks that could not be read, with what the system said, in order.
    pub(crate) fn unreadable(&self) -> Vec<(u64, String)> {
        let mut places = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).clone();
        places.sort_unstable();
        places.dedup();
        places
    }
}

impl File for PatientFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if let Ok(read) = self.inner.read_at(offset, buf) {
            return Ok(read);
        }
        let len = self.inner.len()?;
        let mut filled = 0;
        for block in buf.chunks_mut(self.block_bytes) {
            let at = offset + filled as u64;
            let want = block.len().min(len.saturating_sub(at) as usize);
            if want == 0 {
                break;
            }
            match self.inner.read_at(at, block) {
                Ok(read) => filled += read,
                Err(error) => {
                    block[..want].fill(FILL);
                    filled += want;
                    let mut places = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
                    if places.len() < PLACES_MAX {
                        places.push((at, error.to_string()));
                    }
                }
            }
            if !filled.is_multiple_of(self.block_bytes) {
                break;
            }
        }
        Ok(filled)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn allocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn raw_fd(&self) -> i32 {
        -1
    }
    #[cfg(feature = "sim")]
    fn sim_id(&self) -> u64 {
        self.inner.sim_id()
    }
}
