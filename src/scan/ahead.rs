//! Reading ahead: a thread that reads the next pieces while this one checks the last.
//!
//! Whoever reads says what is to come, as places in files; nothing is read that was not asked for.
//! Pieces come back in the order in which they were asked for, in buffers that go round. The thread
//! ends when the reader is dropped.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::disk::File;
use crate::fork::ForkGuard;
use crate::mem::AlignedBuf;

/// Bytes of one read: enough for the device to be busy with many requests at once.
pub(super) const PIECE_BYTES: usize = 2 << 20;
/// Buffers: one is looked at, one is read into, and one waits for either.
const PIECES: usize = 3;

pub(super) struct Ahead {
    requests: Sender<Request>,
    pieces: Receiver<Piece>,
    /// What was asked for and has not been taken, in order.
    asked: VecDeque<(Arc<dyn File>, u64)>,
    /// What is still to be asked for, in order.
    plan: VecDeque<Extent>,
    spare: Vec<AlignedBuf>,
    /// A forked child has the reader, but not its thread: there nothing comes.
    fork: ForkGuard,
}

/// A part of a file that will not change any more.
pub(super) struct Extent {
    pub(super) file: Arc<dyn File>,
    pub(super) from: u64,
    pub(super) end: u64,
}

struct Request {
    file: Arc<dyn File>,
    start: u64,
    len: usize,
    buf: AlignedBuf,
}

/// What one read gave.
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) len: usize,
    pub(super) buf: AlignedBuf,
    /// The read failed; whoever needs the bytes reads them again, and gets the error.
    failed: bool,
}

impl Ahead {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Ahead> {
        let spare = (0..PIECES).map(|_| AlignedBuf::new(PIECE_BYTES)).collect::<io::Result<_>>()?;
        let (requests, asked) = channel();
        let (sender, pieces) = channel();
        std::thread::Builder::new()
            .name("uringlog-read".to_owned())
            .spawn(move || serve(&asked, &sender))?;
        Ok(Ahead {
            requests,
            pieces,
            asked: VecDeque::new(),
            plan: VecDeque::new(),
            spare,
            fork: ForkGuard::new(),
        })
    }

    /// Adds to what is to come.
    pub(super) fn extend(&mut self, extent: Extent, io_block_bytes: usize) {
        self.plan.push_back(extent);
        self.ask(io_block_bytes);
    }

    /// Whether nothing more is planned.
    pub(super) fn is_planned_out(&self) -> bool {
        self.plan.is_empty()
    }

    /// Whether all that was planned was taken.
    pub(super) fn is_idle(&self) -> bool {
        self.plan.is_empty() && self.asked.is_empty()
    }

    /// The piece that starts there, waited for. None: another one comes next, or none, or it could not
    /// be read.
    pub(super) fn take(
        &mut self,
        file: &Arc<dyn File>,
        start: u64,
        io_block_bytes: usize,
    ) -> Option<Piece> {
        if self.fork.forked() {
            return None;
        }
        self.ask(io_block_bytes);
        let (next, at) = self.asked.pop_front()?;
        if !Arc::ptr_eq(&next, file) || at != start {
            return None;
        }
        self.pieces.recv().ok().filter(|piece| !piece.failed && piece.len > 0)
    }

    /// Takes a buffer back.
    pub(super) fn give(&mut self, buf: AlignedBuf, io_block_bytes: usize) {
        self.spare.push(buf);
        self.ask(io_block_bytes);
    }

    fn ask(&mut self, io_block_bytes: usize) {
        while let Some(extent) = self.plan.front_mut() {
            let left =
                usize::try_from(extent.end.saturating_sub(extent.from)).unwrap_or(usize::MAX);
            let len = left.min(PIECE_BYTES) / io_block_bytes * io_block_bytes;
            if len == 0 {
                self.plan.pop_front();
                continue;
            }
            let Some(buf) = self.spare.pop() else { return };
            let (file, start) = (extent.file.clone(), extent.from);
            extent.from += len as u64;
            self.asked.push_back((file.clone(), start));
            // A thread that is gone gives no piece; then the reader reads itself.
            let _thread_gone = self.requests.send(Request { file, start, len, buf });
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if self.fork.forked() {
            // The thread may have stood in the middle of either channel, and never goes on here.
            core::mem::forget(core::mem::replace(&mut self.requests, channel().0));
            core::mem::forget(core::mem::replace(&mut self.pieces, channel().1));
        }
    }
}

/// The thread: reads what is asked for, until nobody asks any more.
fn serve(requests: &Receiver<Request>, pieces: &Sender<Piece>) {
    for request in requests {
        let Request { file, start, len, mut buf } = request;
        let read = file.read_at(start, &mut buf[..len]);
        drop(file);
        let failed = read.is_err();
        let len = read.unwrap_or(0).min(len);
        if pieces.send(Piece { start, len, buf, failed }).is_err() {
            return;
        }
    }
}
