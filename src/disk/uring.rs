//! io_uring: [`Disk`] whose writes are on their way while the writer thread fills the next batch.
//!
//! A buffer and a file belong to the kernel from submission until every completion of their
//! operation has arrived, whatever is dropped meanwhile. An operation may take several rounds (a
//! short write is finished, then synced); each round is one write, one FSYNC, or the two linked,
//! and the next starts only when all completions of the last are there.
#![allow(unsafe_code)]

mod files;
mod flight;

use std::io;
use std::time::Duration;

use io_uring::{IoUring, types};

use self::files::FileTable;
use self::flight::{Flight, Round, split_user_data};
use super::os::write_align;
use super::{DeviceFacts, Disk, Done, Method, Op, OpKind};
use crate::mem::AlignedBuf;

/// The disk: one ring, used only by the thread that made it.
pub(crate) struct Uring {
    ring: IoUring,
    ring_flags: &'static str,
    method: Method,
    align: usize,
    /// The operations under way; their index is in the completions' user data.
    flights: Vec<Option<Flight>>,
    /// Results that wait for `reap`.
    ready: Vec<Done>,
    files: FileTable,
    /// Ids of the registered buffers, by their index in the kernel's table.
    buffers: Vec<u64>,
    /// Fixed-buffer writes hang on ZFS.
    buffers_allowed: bool,
    /// The errno with which entering the kernel failed for good: the ring is not touched any more.
    broken: Option<i32>,
}

impl Uring {
    /// A ring for one of the three ring methods and up to `depth` operations at once, 16 at most.
    /// Called on the thread that will use it.
    pub(crate) fn new(method: Method, depth: usize, facts: &DeviceFacts) -> io::Result<Self> {
        Uring::with_level(method, depth, facts, 0)
    }

    fn with_level(
        method: Method,
        depth: usize,
        facts: &DeviceFacts,
        level: usize,
    ) -> io::Result<Self> {
        debug_assert!(method.is_ring());
        let (ring, ring_flags) = set_up(level)?;
        let files = FileTable::new(&ring);
        Ok(Uring {
            ring,
            ring_flags,
            method,
            align: write_align(facts),
            flights: (0..depth.clamp(1, DEPTH_MAX)).map(|_| None).collect(),
            ready: Vec::with_capacity(DEPTH_MAX),
            files,
            buffers: Vec::new(),
            buffers_allowed: facts.file_system != "zfs",
            broken: None,
        })
    }

    /// Goes over to another ring method and depth. Nothing is under way.
    pub(crate) fn set(&mut self, method: Method, depth: usize) {
        debug_assert!(method.is_ring() && !self.under_way());
        self.method = method;
        self.flights.clear();
        self.flights.resize_with(depth.clamp(1, DEPTH_MAX), || None);
    }

    /// The set-up flags that the kernel took.
    pub(crate) fn ring_flags(&self) -> &'static str {
        self.ring_flags
    }

    /// Whether files are registered.
    pub(crate) fn registers_files(&self) -> bool {
        !self.files.slots.is_empty()
    }

    /// Hands the next round of an operation to the kernel, or settles the operation when it needs
    /// no round (or the ring is broken).
    fn start_round(&mut self, index: usize) {
        loop {
            let Some(flight) = self.flights[index].as_mut() else { return };
            if let Some(errno) = self.broken {
                flight.error = Some(io::Error::from_raw_os_error(errno));
            }
            let round = flight.round(self.method);
            let Some(round) = round else { return self.settle(index) };
            if matches!(round, Round::BlockingSync) {
                flight.sync_blocking();
                continue;
            }
            let registered = flight.buf.as_ref().and_then(|buf| {
                self.buffers.iter().position(|&id| id == buf.id()).map(|at| at as u16)
            });
            let entries = flight.entries(index, round, registered);
            flight.due = entries.len() as u32;
            // SAFETY: buffer and file are owned by the flight, which stays in `flights` until all
            // `due` completions have arrived and is leaked if they cannot; neither moves memory.
            if unsafe { self.ring.submission().push_multiple(&entries) }.is_err() {
                // Cannot be: the queue has room for every round of every flight.
                flight.due = 0;
                flight.error = Some(io::ErrorKind::ResourceBusy.into());
                continue;
            }
            return self.enter(0, 0);
        }
    }

    /// Takes in every completion that is there, and goes on with its operation.
    fn collect(&mut self) {
        loop {
            let Some(completion) = self.ring.completion().next() else { return };
            let (index, step) = split_user_data(completion.user_data());
            let Some(flight) = self.flights.get_mut(index).and_then(Option::as_mut) else {
                debug_assert!(false, "a completion of nothing that is under way");
                continue;
            };
            flight.due -= 1;
            flight.complete(step, completion.result(), self.align);
            if flight.due == 0 {
                flight.end_round();
                self.start_round(index);
            }
        }
    }

    /// Ends an operation that has no round left.
    fn settle(&mut self, index: usize) {
        let Some(flight) = self.flights[index].take() else { return };
        debug_assert_eq!(flight.due, 0);
        if let Some(slot) = flight.slot {
            self.files.release(slot);
        }
        self.ready.push(Done {
            token: flight.token,
            buf: flight.buf,
            result: flight.error.map_or(Ok(()), Err),
            write_took: flight.write_took,
        });
    }

    /// Enters the kernel: submits what is queued, runs what completions it has deferred (with
    /// GETEVENTS), and waits for `want` of them.
    fn enter(&mut self, want: u32, flags: u32) {
        if self.broken.is_some() {
            return;
        }
        let queued = self.ring.submission().len() as u32;
        // SAFETY: plain submission and wait, without an argument structure; what is queued upholds
        // the contract stated where it was pushed.
        let entered =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, want, flags, None) };
        self.entered(entered);
    }

    /// The same, but waits for one completion no longer than `time`. Kernels before 5.11 wait until
    /// it is there.
    fn enter_within(&mut self, time: Duration) {
        if self.broken.is_some() {
            return;
        }
        if !self.ring.params().is_feature_ext_arg() {
            return self.enter(1, GETEVENTS);
        }
        let time = types::Timespec::from(time);
        let args = types::SubmitArgs::new().timespec(&time);
        let entered = self.ring.submitter().submit_with_args(1, &args);
        self.entered(entered);
    }

    fn entered(&mut self, result: io::Result<usize>) {
        let Err(error) = result else { return };
        match error.raw_os_error() {
            // The time is over.
            Some(libc::ETIME) => {}
            // What was not submitted stays queued; whoever waits comes again.
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
            errno => self.break_down(errno.unwrap_or(libc::EIO)),
        }
    }

    /// The ring cannot be entered any more, so no completion can be waited for: all operations
    /// fail, and what the kernel may still use is leaked.
    fn break_down(&mut self, errno: i32) {
        self.broken = Some(errno);
        for flight in &mut self.flights {
            let Some(flight) = flight.take_if(|flight| flight.due > 0) else { continue };
            self.ready.push(Done {
                token: flight.token,
                buf: None,
                result: Err(io::Error::from_raw_os_error(errno)),
                write_took: Duration::ZERO,
            });
            std::mem::forget(flight);
        }
    }

    fn under_way(&self) -> bool {
        self.flights.iter().any(Option::is_some)
    }

    /// Completions worth waiting for: one, but both halves of a linked pair that is alone.
    fn want(&self) -> u32 {
        match &self.flights[..] {
            [Some(flight)] => flight.due.max(1),
            _ => 1,
        }
    }

    /// Whether the kernel has something for us that it shows only to who enters.
    fn must_enter(&mut self) -> bool {
        let queue = self.ring.submission();
        queue.taskrun() || queue.cq_overflow() || !queue.is_empty()
    }
}

impl Disk for Uring {
    fn depth_max(&self) -> usize {
        self.flights.len()
    }

    fn submit(&mut self, op: Op) {
        let Some(index) = self.flights.iter().position(Option::is_none) else {
            debug_assert!(false, "more operations than depth_max");
            let buf = if let OpKind::Write { buf, .. } = op.kind { Some(buf) } else { None };
            let result = Err(io::ErrorKind::ResourceBusy.into());
            self.ready.push(Done { token: op.token, buf, result, write_took: Duration::ZERO });
            return;
        };
        let slot = self.files.acquire(&self.ring, &op.file);
        self.flights[index] = Some(Flight::new(op, slot));
        // A sync that blocks is left to `reap`.
        let defer = self.method == Method::RingFdatasync
            && self.flights[index].as_ref().is_some_and(|flight| flight.buf.is_none());
        if !defer {
            self.start_round(index);
        }
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        for index in 0..self.flights.len() {
            if self.flights[index].as_ref().is_some_and(|flight| flight.due == 0) {
                self.start_round(index);
            }
        }
        self.collect();
        if wait {
            while self.ready.is_empty() && self.under_way() {
                self.enter(self.want(), GETEVENTS);
                self.collect();
            }
        } else if self.ready.is_empty() && self.under_way() && self.must_enter() {
            self.enter(0, GETEVENTS);
            self.collect();
        }
        done.append(&mut self.ready);
    }

    fn reap_within(&mut self, time: Duration, done: &mut Vec<Done>) {
        self.reap(false, done);
        if done.is_empty() && self.under_way() {
            self.enter_within(time);
            self.reap(false, done);
        }
    }

    fn register_buffers(&mut self, bufs: &[AlignedBuf]) -> bool {
        if !self.buffers_allowed || !self.buffers.is_empty() || bufs.is_empty() {
            return false;
        }
        let vectors: Vec<libc::iovec> = bufs
            .iter()
            .map(|buf| libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() })
            .collect();
        // SAFETY: the ranges are mapped now, which is when the kernel pins their pages. A buffer
        // that is unmapped later is never written from by its index: it is looked up by an id that
        // no other buffer gets.
        let registered = unsafe { self.ring.submitter().register_buffers(&vectors) }.is_ok();
        if registered {
            self.buffers = bufs.iter().map(AlignedBuf::id).collect();
        }
        registered
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // What has no round in the kernel is not waited for: nothing would ever come.
        for flight in &mut self.flights {
            drop(flight.take_if(|flight| flight.due == 0));
        }
        while self.under_way() && self.broken.is_none() {
            // No further round is started: what is cut short here was never reported as done.
            self.enter(1, GETEVENTS);
            loop {
                let Some(completion) = self.ring.completion().next() else { break };
                let (index, _) = split_user_data(completion.user_data());
                if let Some(flight) = self.flights.get_mut(index).and_then(Option::as_mut) {
                    flight.due -= 1;
                }
            }
            for flight in &mut self.flights {
                drop(flight.take_if(|flight| flight.due == 0));
            }
        }
    }
}

/// Sets up a ring with the best flags that the kernel knows, from `LEVELS[level]` on.
fn set_up(level: usize) -> io::Result<(IoUring, &'static str)> {
    let (flags, set) = LEVELS[level];
    let mut builder = IoUring::builder();
    // A forked child gets no part of the ring's memory.
    set(builder.dontfork());
    let mut tries = 0;
    loop {
        // Each flight has at most two entries queued.
        let error = match builder.build(2 * DEPTH_MAX as u32) {
            Ok(ring) => return Ok((ring, flags)),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINVAL) if level + 1 < LEVELS.len() => return set_up(level + 1),
            // A closed ring's share of RLIMIT_MEMLOCK comes back some milliseconds later.
            Some(libc::ENOMEM) if tries < 10 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            _ => return Err(error),
        }
    }
}

/// Set-up flags, best first: from Linux 6.1, from 5.19, and before. With TASKRUN_FLAG, looking for
/// completions costs no system call while there are none.
const LEVELS: [(&str, SetFlags); 3] = [
    ("SINGLE_ISSUER|DEFER_TASKRUN|TASKRUN_FLAG", |builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    }),
    ("COOP_TASKRUN|TASKRUN_FLAG", |builder| {
        builder.setup_coop_taskrun().setup_taskrun_flag();
    }),
    ("none", |_| {}),
];

type SetFlags = fn(&mut io_uring::Builder);

/// Most operations under way at once that the options allow.
const DEPTH_MAX: usize = 16;
/// IORING_ENTER_GETEVENTS.
const GETEVENTS: u32 = 1;

#[cfg(test)]
mod tests;
