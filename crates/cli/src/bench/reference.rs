//! The plain log that every better one has to beat: producers push into a `Vec` under a mutex, one
//! writer thread swaps it for an empty one, writes it with direct I/O to a pre-written file, and
//! syncs. It does for each record what no log can leave out: a number, a length, and the same
//! checksum as the log's, made before the mutex is taken.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::scratch::WrittenFile;

/// Appends `records` times `payload`, waits until all is durable, and returns how long that took.
pub fn append(file: &WrittenFile, payload: &[u8], records: u64) -> io::Result<Duration> {
    let plain = Plain {
        state: Mutex::new(State {
            pending: Pending::new(),
            last: 0,
            writer_waits: false,
            ended: false,
        }),
        changed: Condvar::new(),
    };
    thread::scope(|scope| {
        let writer = scope.spawn(|| plain.write(file));
        let started = Instant::now();
        for _ in 0..records {
            if plain.push(payload).is_none() {
                break;
            }
        }
        plain.end();
        let result = writer.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        result.map(|()| started.elapsed())
    })
}

struct Plain {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    pending: Pending,
    /// Number of the last record.
    last: u64,
    writer_waits: bool,
    ended: bool,
}

/// Producers wait while so much is pending.
const PENDING_BYTES_MAX: usize = 4 << 20;
const BLOCK_BYTES: usize = 4096;
const HEADER_BYTES: usize = 8;

impl Plain {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends one record and returns its number; nothing when the writer is gone.
    fn push(&self, payload: &[u8]) -> Option<u64> {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&crc_fast::crc32_iscsi(payload).to_le_bytes());
        let mut state = self.lock();
        while state.pending.len() + payload.len() + HEADER_BYTES > PENDING_BYTES_MAX && !state.ended
        {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended {
            return None;
        }
        state.pending.bytes.extend_from_slice(&header);
        state.pending.bytes.extend_from_slice(payload);
        state.last += 1;
        let number = state.last;
        if std::mem::take(&mut state.writer_waits) {
            drop(state);
            self.changed.notify_all();
        }
        Some(number)
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The writer thread, until the end.
    fn write(&self, file: &WrittenFile) -> io::Result<()> {
        let mut full = Pending::new();
        let mut offset = 0;
        loop {
            let mut state = self.lock();
            while state.pending.len() == 0 && !state.ended {
                state.writer_waits = true;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.pending.len() == 0 {
                return Ok(());
            }
            std::mem::swap(&mut state.pending, &mut full);
            drop(state);
            self.changed.notify_all();
            let bytes = full.padded();
            if offset + bytes.len() as u64 > file.bytes {
                offset = 0;
            }
            let written =
                file.file.write_all_at(bytes, offset).and_then(|()| file.file.sync_data());
            if written.is_err() {
                self.end();
                return written;
            }
            offset += bytes.len() as u64;
            full.clear();
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
