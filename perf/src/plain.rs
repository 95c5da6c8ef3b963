//! The plain log that every better one has to beat: producers push into a `Vec` under a mutex, one
//! writer thread swaps it for an empty one, writes it with direct I/O to a pre-written file, syncs, and
//! wakes who waits. It does for each record what no log can leave out: a number, a length, and the same
//! checksum as the log's, made before the mutex is taken.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::rounds::{Producer, Target, Work};
use crate::scratch::WrittenFile;
use crate::stages::Stages;
use crate::target::payload;

/// Its durable form, as a [`Target`]: every producer waits until its records are synced.
pub struct Plain {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

const FILE_BYTES: u64 = 64 << 20;

impl Plain {
    /// Prepares a file in `dir`, and starts the writer thread.
    pub fn prepare(dir: &Path, direct: bool) -> Result<Self, Error> {
        let time_max = Duration::from_millis(500);
        let file = WrittenFile::create(dir.join("plain"), FILE_BYTES, time_max, direct)?;
        let shared = Arc::new(Shared::new());
        let writer = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("plain-writer".to_owned())
            .spawn(move || writer.write(&file))
            .map_err(|error| Error::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Plain { shared, writer: Some(writer) })
    }

    /// Hands records over together, and returns the last one's number. Waits for room only.
    pub fn submit<R: AsRef<[u8]>>(&self, records: &[R]) -> io::Result<u64> {
        self.shared.push(records)
    }

    /// Waits until record `number` is durable.
    pub fn wait(&self, number: u64) -> io::Result<()> {
        self.shared.wait(number)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.shared.end(None);
        _ = self.writer.take().map(JoinHandle::join);
    }
}

impl Target for Plain {
    fn producer(&self, work: Work) -> Result<Box<dyn Producer + '_>, Error> {
        let records = vec![payload(work.record_bytes); work.batch.max(1)];
        Ok(Box::new(PlainProducer { shared: &self.shared, records }))
    }
}

struct PlainProducer<'a> {
    shared: &'a Shared,
    records: Vec<Vec<u8>>,
}

impl Producer for PlainProducer<'_> {
    fn append(&mut self, _: &mut Stages) -> Result<(), Error> {
        self.shared
            .push(&self.records)
            .and_then(|number| self.shared.wait(number))
            .map_err(|error| Error::Failed(format!("the mutex + writer thread log: {error}")))
    }
}

/// Its asynchronous form: appends `records` times `payload`, waits until all is durable, and returns how
/// long that took.
pub fn append(file: &WrittenFile, payload: &[u8], records: u64) -> io::Result<Duration> {
    let shared = Shared::new();
    thread::scope(|scope| {
        let writer = scope.spawn(|| shared.write(file));
        let started = Instant::now();
        let pushed = (0..records).try_for_each(|_| shared.push(&[payload]).map(drop));
        let result = pushed.and_then(|()| shared.wait(records));
        let took = started.elapsed();
        shared.end(None);
        // Its failures reach the producers.
        _ = writer.join();
        result.map(|()| took)
    })
}

struct Shared {
    state: Mutex<State>,
    /// The writer waits for records.
    work: Condvar,
    /// Producers wait for a sync, or for room.
    synced: Condvar,
}

struct State {
    pending: Pending,
    /// Number of the last record, and of the last that is durable.
    last: u64,
    durable: u64,
    writer_waits: bool,
    ended: bool,
    error: Option<io::ErrorKind>,
}

/// Producers wait while so much is pending.
const PENDING_BYTES_MAX: usize = 4 << 20;
const BLOCK_BYTES: usize = 4096;
/// Number, length, checksum.
const HEADER_BYTES: usize = 16;

/// Records that take the mutex together, at most.
const TOGETHER_MAX: usize = 256;

/// How many of the records, at least one, can be pending together.
fn fitting<R: AsRef<[u8]>>(records: &[R]) -> io::Result<usize> {
    let mut bytes = 0;
    let fits = |record: &R| {
        bytes += record.as_ref().len() + HEADER_BYTES;
        bytes <= PENDING_BYTES_MAX
    };
    match records.iter().take(TOGETHER_MAX).map(fits).take_while(|&fits| fits).count() {
        0 => Err(io::ErrorKind::InvalidInput.into()),
        count => Ok(count),
    }
}

impl Shared {
    fn new() -> Self {
        Shared {
            state: Mutex::new(State {
                pending: Pending::new(),
                last: 0,
                durable: 0,
                writer_waits: false,
                ended: false,
                error: None,
            }),
            work: Condvar::new(),
            synced: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends records together, and returns the last one's number.
    fn push<R: AsRef<[u8]>>(&self, records: &[R]) -> io::Result<u64> {
        let mut number = 0;
        let mut rest = records;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(fitting(rest)?);
            number = self.push_fitting(now)?;
            rest = later;
        }
        Ok(number)
    }

    fn push_fitting<R: AsRef<[u8]>>(&self, records: &[R]) -> io::Result<u64> {
        // On the stack: nothing is allocated.
        let mut sums = [0; TOGETHER_MAX];
        let mut bytes = 0;
        for (sum, record) in sums.iter_mut().zip(records) {
            *sum = crc_fast::crc32_iscsi(record.as_ref());
            bytes += record.as_ref().len() + HEADER_BYTES;
        }
        let mut state = self.lock();
        while state.pending.len() + bytes > PENDING_BYTES_MAX && !state.ended {
            state = self.synced.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended {
            return Err(state.error.unwrap_or(io::ErrorKind::BrokenPipe).into());
        }
        for (sum, record) in sums.iter().zip(records) {
            let record = record.as_ref();
            state.last += 1;
            let number = state.last;
            let pending = &mut state.pending.bytes;
            pending.extend_from_slice(&number.to_le_bytes());
            pending.extend_from_slice(&(record.len() as u32).to_le_bytes());
            pending.extend_from_slice(&sum.to_le_bytes());
            pending.extend_from_slice(record);
        }
        let number = state.last;
        if std::mem::take(&mut state.writer_waits) {
            drop(state);
            self.work.notify_one();
        }
        Ok(number)
    }

    /// Waits until record `number` is durable.
    fn wait(&self, number: u64) -> io::Result<()> {
        let mut state = self.lock();
        while state.durable < number {
            if let Some(error) = state.error {
                return Err(error.into());
            }
            state = self.synced.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn end(&self, error: Option<io::ErrorKind>) {
        let mut state = self.lock();
        state.ended = true;
        state.error = state.error.or(error);
        drop(state);
        self.work.notify_all();
        self.synced.notify_all();
    }

    /// The writer thread, until the end.
    fn write(&self, file: &WrittenFile) {
        let mut full = Pending::new();
        let mut offset = 0;
        loop {
            let mut state = self.lock();
            while state.pending.len() == 0 && !state.ended {
                state.writer_waits = true;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.pending.len() == 0 {
                return;
            }
            std::mem::swap(&mut state.pending, &mut full);
            let last = state.last;
            drop(state);
            let bytes = full.padded();
            if offset + bytes.len() as u64 > file.bytes {
                offset = 0;
            }
            let written =
                file.file.write_all_at(bytes, offset).and_then(|()| file.file.sync_data());
            if let Err(error) = written {
                self.end(Some(error.kind()));
                return;
            }
            offset += bytes.len() as u64;
            full.clear();
            self.lock().durable = last;
            self.synced.notify_all();
        }
    }
}

/// A `Vec` whose content starts at an aligned address; it never grows beyond its first capacity.
struct Pending {
    bytes: Vec<u8>,
    start: usize,
}

impl Pending {
    fn new() -> Self {
        let mut bytes: Vec<u8> = Vec::with_capacity(PENDING_BYTES_MAX + 2 * BLOCK_BYTES);
        let address = bytes.as_ptr().addr();
        let start = address.next_multiple_of(BLOCK_BYTES) - address;
        bytes.resize(start, 0);
        Pending { bytes, start }
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// The content, filled up with zeros to whole blocks.
    fn padded(&mut self) -> &[u8] {
        let padded = self.len().next_multiple_of(BLOCK_BYTES);
        self.bytes.resize(self.start + padded, 0);
        &self.bytes[self.start..]
    }

    fn clear(&mut self) {
        self.bytes.truncate(self.start);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::Stop;
    use crate::rounds::{Contender, Load, Plan, run};

    #[test]
    fn every_record_stands_in_the_file_with_its_number() {
        let dir = tempfile::tempdir().expect("a directory");
        let plain = Plain::prepare(dir.path(), false).expect("a file");
        let work = Work { record_bytes: 10, batch: 1 };
        let mut producer = plain.producer(work).expect("a producer");
        for _ in 0..3 {
            producer.append(&mut Stages::new()).expect("it is synced");
        }
        let bytes = fs::read(dir.path().join("plain")).expect("the file");
        for number in 1..=3_u64 {
            // Each was waited for, so each has a block of its own.
            let block = &bytes[(number as usize - 1) * BLOCK_BYTES..];
            let header = &block[..HEADER_BYTES];
            assert_eq!(header[..8], number.to_le_bytes());
            assert_eq!(header[8..12], 10_u32.to_le_bytes());
            assert_eq!(header[12..], crc_fast::crc32_iscsi(&payload(10)).to_le_bytes());
            assert_eq!(block[HEADER_BYTES..][..10], payload(10));
        }
    }

    #[test]
    fn many_producers_and_batches() {
        let dir = tempfile::tempdir().expect("a directory");
        let plain = Plain::prepare(dir.path(), false).expect("a file");
        let work = Work { record_bytes: 64, batch: 300 };
        let contender =
            Contender { name: "plain", target: &plain, producers: 8, load: Load::Closed };
        let plan = Plan::of(work, Duration::from_millis(60), 1, Some(1));
        let measured = run(&[contender], &plan, None, &Stop::default()).expect("it runs");
        let written = plain.shared.lock().durable;
        assert!(measured[0].records > 0 && measured[0].records.is_multiple_of(300));
        assert!(measured[0].records <= written, "{} <= {written}", measured[0].records);
    }

    #[test]
    fn a_failed_write_reaches_the_producers() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let file = WrittenFile::create(path.clone(), 1 << 20, Duration::ZERO, false);
        let mut file = file.expect("a file");
        file.file = fs::File::open(path).expect("for reading");
        append(&file, b"abc", 10).expect_err("it cannot be written");
    }
}
