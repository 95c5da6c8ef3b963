//! The bare loop that the log is held against: one thread, one aligned write of a block and one
//! fdatasync, again and again, from the start of a pre-written file to its end and around.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use crate::buffer::HugeBuf;
use crate::clock::Pace;
use crate::error::{Error, Stop};
use crate::latencies::Latencies;
use crate::rounds::{Producer, Target, Work};
use crate::scratch::WrittenFile;
use crate::stages::Stages;

/// The loop, as a [`Target`] of one producer.
pub struct Bare {
    block_bytes: usize,
    loops: Mutex<Loop>,
}

struct Loop {
    file: WrittenFile,
    block: HugeBuf,
    offset: u64,
}

const FILE_BYTES: u64 = 32 << 20;

impl Bare {
    /// Prepares a loop over a file in `dir` that writes `block_bytes` at a time.
    pub fn prepare(dir: &Path, block_bytes: usize, direct: bool) -> Result<Self, Error> {
        let time_max = Duration::from_millis(500);
        let file = WrittenFile::create(dir.join("bare"), FILE_BYTES, time_max, direct)?;
        let block = HugeBuf::new(block_bytes, 0xb5).map_err(|error| Error::memory(&error))?;
        Ok(Bare { block_bytes, loops: Mutex::new(Loop { file, block, offset: 0 }) })
    }

    /// Runs for `length` on the calling thread, at most `rate` times a second; returns how long it was.
    pub fn turn(
        &self,
        length: Duration,
        rate: Option<f64>,
        latencies: &mut Latencies,
        stop: &Stop,
    ) -> Result<Duration, Error> {
        let mut producer = self.producer(Work { record_bytes: 0, batch: 1 })?;
        let mut stages = Stages::new();
        let (started, mut pace) = (Instant::now(), Pace::new(rate));
        while started.elapsed() < length && !stop.is_raised() {
            pace.wait();
            let start = Instant::now();
            producer.append(&mut stages)?;
            latencies.record(start.elapsed());
        }
        Ok(started.elapsed())
    }

    /// Bytes of one write.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }
}

impl Target for Bare {
    fn producer(&self, _: Work) -> Result<Box<dyn Producer + '_>, Error> {
        match self.loops.try_lock() {
            Ok(guard) => Ok(Box::new(BareProducer(guard))),
            Err(TryLockError::Poisoned(poisoned)) => {
                Ok(Box::new(BareProducer(poisoned.into_inner())))
            }
            Err(TryLockError::WouldBlock) => {
                Err(Error::Failed("the bare loop has one producer".to_owned()))
            }
        }
    }
}

struct BareProducer<'a>(MutexGuard<'a, Loop>);

impl Producer for BareProducer<'_> {
    fn append(&mut self, _: &mut Stages) -> Result<(), Error> {
        let Loop { file, block, offset } = &mut *self.0;
        file.file
            .write_all_at(block, *offset)
            .and_then(|()| file.file.sync_data())
            .map_err(|error| Error::file("write", &file.path, error))?;
        *offset += block.len() as u64;
        if *offset + block.len() as u64 > file.bytes {
            *offset = 0;
        }
        Ok(())
    }
}
