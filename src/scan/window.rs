//! The bytes of a segment file that are in memory: read in aligned chunks, and ahead of time where
//! much is read in sequence.

use std::io;
use std::sync::Arc;

use super::ahead::{Ahead, Extent, PIECE_BYTES, Piece};
use crate::disk::File;
use crate::mem::AlignedBuf;

/// Bytes that one read takes at most, unless a batch is larger.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Bytes that are read first: a follower finds little that is new, a scan soon reads more.
const CHUNK_BYTES_MIN: usize = 64 << 10;
/// Bytes read in sequence from which on they are read ahead.
const AHEAD_AFTER_BYTES: u64 = 4 << 20;

/// Aligned reads, a chunk at a time. Grows to the largest batch met, never beyond the file.
pub(super) struct Window {
    file: Arc<dyn File>,
    io_block_bytes: usize,
    buf: AlignedBuf,
    /// The part of the file that `buf` holds.
    start: u64,
    len: usize,
    /// What was read ahead and is looked at now.
    piece: Option<Piece>,
    chunk_bytes: usize,
    /// Bytes read in sequence, up to the end of what is held.
    run_bytes: u64,
    /// Up to where the file may be read ahead: it does not change any more.
    ahead_end: u64,
    ahead: Option<Ahead>,
    /// The file that follows, where it is known; planned for reading ahead.
    next: Option<(Arc<dyn File>, u64)>,
    pub(super) bytes_read: u64,
}

impl Window {
    pub(super) fn new(file: Arc<dyn File>, io_block_bytes: usize) -> io::Result<Window> {
        let chunk_bytes = CHUNK_BYTES_MIN.next_multiple_of(io_block_bytes);
        Ok(Window {
            file,
            io_block_bytes,
            buf: AlignedBuf::new(chunk_bytes)?,
            start: 0,
            len: 0,
            piece: None,
            chunk_bytes,
            run_bytes: 0,
            ahead_end: 0,
            ahead: None,
            next: None,
            bytes_read: 0,
        })
    }

    /// Forgets what was read, ahead too.
    pub(super) fn invalidate(&mut self) {
        self.len = 0;
        self.piece = None;
        self.ahead = None;
        self.next = None;
        self.run_bytes = 0;
        self.stay_small();
    }

    /// The next read is a small one.
    pub(super) fn stay_small(&mut self) {
        self.chunk_bytes = CHUNK_BYTES_MIN.next_multiple_of(self.io_block_bytes);
    }

    /// The bytes at `offset`: `want` of them, fewer where the file ends.
    pub(super) fn bytes(&mut self, offset: u64, want: usize) -> io::Result<&[u8]> {
        if self.held(offset, want).len() < want && !self.join(offset, want)? {
            self.refill(offset, want)?;
        }
        Ok(self.held(offset, want))
    }

    /// The same for somebody who goes backwards: what is read with it stands before it, down to `floor`.
    pub(super) fn bytes_back(&mut self, offset: u64, want: usize, floor: u64) -> io::Result<&[u8]> {
        if self.held(offset, want).len() < want {
            let before = (offset + want as u64).saturating_sub(CHUNK_BYTES_MIN as u64);
            let from = before.max(floor).min(offset);
            self.refill(from, (offset - from) as usize + want)?;
        }
        Ok(self.held(offset, want))
    }

    /// What is in memory of these bytes.
    pub(super) fn held(&self, offset: u64, want: usize) -> &[u8] {
        let read = part(&self.buf[..self.len], self.start, offset, want);
        match &self.piece {
            Some(piece) => {
                let ahead = part(&piece.buf[..piece.len], piece.start, offset, want);
                if ahead.len() > read.len() { ahead } else { read }
            }
            None => read,
        }
    }

    /// Goes on in another file, and returns the one before. What was read ahead of it stays.
    pub(super) fn enter(&mut self, file: Arc<dyn File>) -> Arc<dyn File> {
        self.len = 0;
        self.ahead_end = 0;
        if let Some((next, end)) = self.next.take()
            && Arc::ptr_eq(&next, &file)
        {
            self.ahead_end = end;
        }
        self.drop_piece();
        core::mem::replace(&mut self.file, file)
    }

    /// Allows to read the file ahead, up to `end`: what stands before it does not change any more.
    pub(super) fn allow_ahead(&mut self, end: u64) {
        self.ahead_end = end;
    }

    /// Whether reading ahead comes to the end of the file and should go on in the next.
    pub(super) fn wants_next(&self) -> bool {
        self.next.is_none() && self.ahead.as_ref().is_some_and(Ahead::is_planned_out)
    }

    /// Reading ahead goes on in `file`, from `from` to `end`.
    pub(super) fn expect_next(&mut self, file: Arc<dyn File>, from: u64, end: u64) {
        self.next = Some((file.clone(), end));
        if let Some(ahead) = &mut self.ahead {
            let from = from - from % self.io_block_bytes as u64;
            ahead.extend(Extent { file, from, end }, self.io_block_bytes);
        }
    }

    #[cfg(test)]
    pub(super) fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// Whether reading goes on behind what is held, and what follows may be read ahead.
    fn may_read_ahead(&self, offset: u64, at: u64) -> bool {
        at < self.ahead_end
            && self.run_bytes >= AHEAD_AFTER_BYTES
            && self.file.raw_fd() >= 0
            && self.follows(offset)
    }

    /// Whether nothing lies between what is held and `offset`. When nothing is held, the file was just
    /// entered.
    fn follows(&self, offset: u64) -> bool {
        let (start, end) = self.held_range();
        start == end || (start..=end).contains(&offset)
    }

    fn held_range(&self) -> (u64, u64) {
        match &self.piece {
            Some(piece) => (piece.start, piece.start + piece.len as u64),
            None => (self.start, self.start + self.len as u64),
        }
    }

    /// Takes the bytes from what is read ahead. False: it is not, or not so far.
    fn join(&mut self, offset: u64, want: usize) -> io::Result<bool> {
        let mut have = self.held(offset, want).len();
        let mut at = match have {
            0 => offset - offset % self.io_block_bytes as u64,
            have => offset + have as u64,
        };
        if !at.is_multiple_of(self.io_block_bytes as u64) || !self.may_read_ahead(offset, at) {
            return Ok(false);
        }
        let Some(mut ahead) = self.ahead.take().or_else(|| Ahead::start().ok()) else {
            // No memory, or no thread: it goes without, and is not tried again in this file.
            self.ahead_end = 0;
            return Ok(false);
        };
        if ahead.is_idle() {
            let extent = Extent { file: self.file.clone(), from: at, end: self.ahead_end };
            ahead.extend(extent, self.io_block_bytes);
        }
        if have > 0 {
            self.keep_only(offset, have, want)?;
        }
        loop {
            self.drop_piece_into(&mut ahead);
            let Some(piece) = ahead.take(&self.file, at, self.io_block_bytes) else {
                // What was read ahead is of no use: dropping it ends the thread.
                return Ok(false);
            };
            self.bytes_read += piece.len as u64;
            self.run_bytes += piece.len as u64;
            at += piece.len as u64;
            let bytes =
                part(&piece.buf[..piece.len], piece.start, offset + have as u64, want - have);
            let whole = have + bytes.len() == want;
            if have > 0 || !whole {
                // It stands in more than one piece.
                if have == 0 {
                    self.start = offset;
                    if self.buf.len() < want {
                        self.buf = AlignedBuf::new(join_bytes(want))?;
                    }
                }
                self.buf[have..have + bytes.len()].copy_from_slice(bytes);
                have += bytes.len();
                self.len = have;
            }
            self.piece = Some(piece);
            if whole || at >= self.ahead_end {
                self.ahead = Some(ahead);
                return Ok(whole);
            }
        }
    }

    /// Moves the bytes at `offset` to the front of `buf`, and makes room for `want`.
    fn keep_only(&mut self, offset: u64, have: usize, want: usize) -> io::Result<()> {
        let in_piece = self
            .piece
            .as_ref()
            .filter(|piece| part(&piece.buf[..piece.len], piece.start, offset, want).len() == have);
        let from = match in_piece {
            Some(piece) => (offset - piece.start) as usize,
            None => (offset - self.start) as usize,
        };
        if self.buf.len() < want {
            let mut buf = AlignedBuf::new(join_bytes(want))?;
            let source = in_piece.map_or(&self.buf, |piece| &piece.buf);
            buf[..have].copy_from_slice(&source[from..from + have]);
            self.buf = buf;
        } else if let Some(piece) = in_piece {
            self.buf[..have].copy_from_slice(&piece.buf[from..from + have]);
        } else {
            self.buf.copy_within(from..from + have, 0);
        }
        (self.start, self.len) = (offset, have);
        Ok(())
    }

    fn drop_piece(&mut self) {
        if let Some(mut ahead) = self.ahead.take() {
            self.drop_piece_into(&mut ahead);
            self.ahead = Some(ahead);
        }
        self.piece = None;
    }

    fn drop_piece_into(&mut self, ahead: &mut Ahead) {
        if let Some(piece) = self.piece.take() {
            ahead.give(piece.buf, self.io_block_bytes);
        }
    }

    fn refill(&mut self, offset: u64, want: usize) -> io::Result<()> {
        if !self.follows(offset) {
            // A jump: what follows may not be wanted.
            self.run_bytes = 0;
            self.stay_small();
        }
        self.drop_piece();
        self.len = 0;
        let start = offset - offset % self.io_block_bytes as u64;
        let need = ((offset - start) as usize + want).next_multiple_of(self.io_block_bytes);
        let bytes = need.max(self.chunk_bytes);
        if self.buf.len() < bytes {
            self.buf = AlignedBuf::new(bytes)?;
        }
        self.start = start;
        self.len = self.file.read_at(start, &mut self.buf[..bytes])?.min(bytes);
        self.bytes_read += self.len as u64;
        self.run_bytes += self.len as u64;
        self.chunk_bytes =
            (self.chunk_bytes * 4).min(CHUNK_BYTES_MAX).next_multiple_of(self.io_block_bytes);
        Ok(())
    }
}

/// Room for a batch that stands in several pieces: it is not made anew for each larger one.
fn join_bytes(want: usize) -> usize {
    want.checked_next_power_of_two().unwrap_or(want).max(PIECE_BYTES)
}

/// The part of `bytes`, which stand at `start`, that stands at `offset`.
fn part(bytes: &[u8], start: u64, offset: u64, want: usize) -> &[u8] {
    if offset < start || offset >= start + bytes.len() as u64 {
        return &[];
    }
    let at = (offset - start) as usize;
    &bytes[at..bytes.len().min(at.saturating_add(want))]
}
