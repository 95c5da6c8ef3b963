//! The disk's own sequential bandwidth: large aligned writes from huge pages over a pre-written
//! file, without any sync, one at a time and two at a time.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::buffer::HugeBuf;
use crate::clock::median;
use crate::error::Error;
use crate::scratch::{STEP_BYTES, WrittenFile};

/// A way to write: bytes at a time, and threads that do so.
const WAYS: [(usize, usize); 4] = [(1 << 20, 1), (2 << 20, 1), (4 << 20, 1), (2 << 20, 2)];

/// The file, and what was measured on it.
pub struct Raw {
    /// Pre-written; the reference loop writes there too.
    pub file: WrittenFile,
    buffer: HugeBuf,
    /// MB/s of each round, by way.
    rounds: [Vec<f64>; WAYS.len()],
}

/// The fastest way: by the median of its rounds.
#[derive(Clone, Copy)]
pub struct Best {
    /// In 10^6 bytes.
    pub mb_per_s: f64,
    /// Bytes of one write.
    pub chunk_bytes: usize,
    /// Writes under way at once.
    pub threads: usize,
}

impl Raw {
    /// Writes the file once: `bytes_max`, or less on a slow disk.
    pub fn prepare(dir: &Path, bytes_max: u64, direct: bool) -> Result<Self, Error> {
        let time_max = Duration::from_millis(700);
        let file = WrittenFile::create(dir.join("raw"), bytes_max, time_max, direct)?;
        let buffer = HugeBuf::new(STEP_BYTES, 0x5b).map_err(|error| Error::memory(&error))?;
        Ok(Raw { file, buffer, rounds: [const { Vec::new() }; WAYS.len()] })
    }

    /// Measures each way once: over the whole file, or for `length`.
    pub fn round(&mut self, length: Duration) -> Result<(), Error> {
        for (way, (chunk_bytes, threads)) in WAYS.into_iter().enumerate() {
            let rate = self
                .write(chunk_bytes, threads, length)
                .map_err(|error| Error::file("write", &self.file.path, error))?;
            self.rounds[way].push(rate);
        }
        Ok(())
    }

    /// MB/s of one pass with `threads` that each write the next `chunk_bytes`.
    fn write(&self, chunk_bytes: usize, threads: usize, length: Duration) -> io::Result<f64> {
        let next = AtomicU64::new(0);
        let started = Instant::now();
        let pass = || {
            while started.elapsed() < length {
                // Relaxed: the counter only shares out the file.
                let offset = next.fetch_add(chunk_bytes as u64, Ordering::Relaxed);
                if offset >= self.file.bytes {
                    break;
                }
                self.file.file.write_all_at(&self.buffer[..chunk_bytes], offset)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(pass)).collect();
            let mut result: io::Result<()> = pass();
            for other in others {
                result =
                    result.and(other.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())));
            }
            result
        })?;
        let written = next.load(Ordering::Relaxed).min(self.file.bytes);
        Ok(written as f64 / 1e6 / started.elapsed().as_secs_f64())
    }

    /// The fastest way so far.
    pub fn best(&self) -> Best {
        let mut best = Best { mb_per_s: 0.0, chunk_bytes: 0, threads: 0 };
        for ((chunk_bytes, threads), rounds) in WAYS.into_iter().zip(&self.rounds) {
            let mb_per_s = median(rounds);
            if mb_per_s > best.mb_per_s {
                best = Best { mb_per_s, chunk_bytes, threads };
            }
        }
        best
    }
}
