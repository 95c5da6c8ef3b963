//! The bare loop that the log is held against: one thread, one aligned write of a block and one
//! fdatasync, again and again, from the start of a pre-written file to its end and around.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::buffer::HugeBuf;
use super::clock::{Latencies, Pace};
use super::scratch::WrittenFile;
use crate::exit::Failure;
use crate::signals::Interrupt;

/// The loop, and what it measured.
pub struct Bare {
    file: WrittenFile,
    block: HugeBuf,
    offset: u64,
    rate: Option<f64>,
    /// What its commits took.
    pub latencies: Latencies,
    /// How long its rounds lasted together.
    pub elapsed: Duration,
}

const FILE_BYTES: u64 = 32 << 20;

impl Bare {
    /// Prepares a loop over a file in `dir` that writes `block_bytes` at a time, at most `rate`
    /// times a second.
    pub fn prepare(
        dir: &Path,
        block_bytes: usize,
        direct: bool,
        rate: Option<f64>,
    ) -> Result<Self, Failure> {
        let time_max = Duration::from_millis(500);
        let file = WrittenFile::create(dir.join("bare"), FILE_BYTES, time_max, direct)?;
        let block = HugeBuf::new(block_bytes, 0xb5)
            .map_err(|error| Failure::Failed(format!("cannot allocate a buffer: {error}")))?;
        Ok(Bare {
            file,
            block,
            offset: 0,
            rate,
            latencies: Latencies::new(),
            elapsed: Duration::ZERO,
        })
    }

    /// Bytes of one write.
    pub fn block_bytes(&self) -> usize {
        self.block.len()
    }

    /// One turn of the loop.
    pub fn round(&mut self, length: Duration, interrupt: &Interrupt) -> Result<(), Failure> {
        self.commit_for(length, interrupt)
            .map_err(|error| Failure::file("write", &self.file.path, &error))
    }

    fn commit_for(&mut self, length: Duration, interrupt: &Interrupt) -> io::Result<()> {
        let started = Instant::now();
        let mut pace = Pace::new(self.rate);
        while started.elapsed() < length && !interrupt.is_raised() {
            pace.wait();
            let start = Instant::now();
            self.file.file.write_all_at(&self.block, self.offset)?;
            self.file.file.sync_data()?;
            self.latencies.record(start.elapsed());
            self.offset += self.block.len() as u64;
            if self.offset + self.block.len() as u64 > self.file.bytes {
                self.offset = 0;
            }
        }
        self.elapsed += started.elapsed();
        Ok(())
    }

    /// Forgets what was measured so far, and returns it: latencies, and the time they took.
    pub fn take(&mut self) -> (Latencies, Duration) {
        (
            std::mem::replace(&mut self.latencies, Latencies::new()),
            std::mem::take(&mut self.elapsed),
        )
    }
}
