//! [`Log`]: the handle. Opening puts the parts together, closing takes them down.

use std::io::IoSlice;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use crate::append::{self, Patience, Reservation};
use crate::clock::Clock;
use crate::commit::Level;
use crate::cursor;
use crate::disk::os::OsStore;
use crate::disk::{BackendInfo, LockError, LockGuard, Store};
use crate::error::{AppendError, CloseError, IoError, OpenError, Poison, WaitError};
use crate::extent::{Extent, Files};
use crate::index::LiveIndex;
use crate::lsn::Lsn;
use crate::options::{Durability, Options};
use crate::preparer::{Plan, Policies, Preparer, PreparerLink};
use crate::recovery::{RecoverConfig, RecoveryReport, recover};
use crate::rings::RingSet;
use crate::segment::{ScanError, system_entropy};
use crate::shared::{ASK_CLOSE, EntropySource, Limits, Shared, SharedParts};
use crate::space::{Space, Start};
use crate::spares::Spares;
use crate::stats::{Housekeeping, Stats};
use crate::status::StatusPage;
use crate::ticket::Ticket;
use crate::timing::BatchTiming;
use crate::writer::Writer;

/// A durable, totally ordered, append-only log, open for writing.
///
/// Clones are handles of the same log, for use on any thread. It is closed by [`close`](Self::close),
/// or when the last handle is dropped, which blocks as `close` does and can report no failure; both
/// write everything that was accepted. Readers and tickets
/// do not keep it open.
///
/// No call may be made in a signal handler: it may interrupt a thread inside the same log.
///
/// A forked child must not use the log of its parent: appending, waiting, following, trimming, cutting,
/// cursors and closing return an error there, and dropping handles, tickets and reservations does nothing
/// to the log. A reader goes on; one that the child opens itself is better. While such a child lives without `exec`, it keeps the directory locked if the parent is
/// killed.
#[derive(Clone)]
pub struct Log {
    handle: Arc<Handle>,
}

impl Log {
    /// Opens the log in `dir` with the default [`Options`], creating it when there is none.
    ///
    /// # Errors
    /// See [`Options::open`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Log, OpenError> {
        Options::new().open(dir)
    }

    pub(crate) fn open_with(options: Options, dir: &Path) -> Result<Log, OpenError> {
        options.validate()?;
        let store = OsStore::open_with_mode(
            dir,
            options.create,
            options.buffered,
            Some(options.file_mode),
        )?;
        let parts = Parts::assemble(store, &options, Clock::system(), Arc::new(system_entropy))?;
        parts.start(options)
    }

    /// Appends one record and returns its number at once; the ticket is waited for until it is
    /// acknowledged. Waits while all rings are full, or while the next segment is being prepared.
    ///
    /// If this returned before another `append` was called, on any thread, the other's number is
    /// larger. From 0 to [`record_bytes_max`](Self::record_bytes_max) bytes.
    ///
    /// # Errors
    /// The record is too large, the log is closed, poisoned or out of space: [`AppendError`]. The
    /// record has no number then and is not in the log.
    #[inline]
    pub fn append(&self, record: &[u8]) -> Result<Ticket<'_>, AppendError> {
        append::append(&self.handle.shared, record, Patience::Forever)
    }

    /// As [`append`](Self::append), but never waits.
    ///
    /// # Errors
    /// As there, and [`AppendError::Full`] when there is no room now.
    #[inline]
    pub fn try_append(&self, record: &[u8]) -> Result<Ticket<'_>, AppendError> {
        append::append(&self.handle.shared, record, Patience::None)
    }

    /// As [`append`](Self::append), but waits for room no longer than `timeout`.
    ///
    /// # Errors
    /// As there, and [`AppendError::TimedOut`].
    pub fn append_timeout(
        &self,
        record: &[u8],
        timeout: Duration,
    ) -> Result<Ticket<'_>, AppendError> {
        append::append(&self.handle.shared, record, Patience::for_time(timeout))
    }

    /// Appends the parts, end to end, as one record. Otherwise as [`append`](Self::append).
    ///
    /// # Errors
    /// As there.
    pub fn append_vectored(&self, parts: &[IoSlice<'_>]) -> Result<Ticket<'_>, AppendError> {
        append::append_vectored(&self.handle.shared, parts)
    }

    /// Appends several records with consecutive numbers, all or nothing: after a crash either all of
    /// them are there, or none. Together they are at most [`record_bytes_max`](Self::record_bytes_max)
    /// bytes, with 8 for each further record. Otherwise as [`append`](Self::append).
    ///
    /// # Errors
    /// As there, and [`AppendError::EmptyBatch`].
    pub fn append_batch<R: AsRef<[u8]>>(&self, records: &[R]) -> Result<Ticket<'_>, AppendError> {
        append::append_batch(&self.handle.shared, records, Patience::Forever)
    }

    /// As [`append_batch`](Self::append_batch), but never waits.
    ///
    /// # Errors
    /// As there, and [`AppendError::Full`].
    pub fn try_append_batch<R: AsRef<[u8]>>(
        &self,
        records: &[R],
    ) -> Result<Ticket<'_>, AppendError> {
        append::append_batch(&self.handle.shared, records, Patience::None)
    }

    /// Takes room for a record of `len` bytes, to be filled in place and then published. It gets its
    /// number only when it is published. Waits as [`append`](Self::append) does.
    ///
    /// # Errors
    /// As there.
    pub fn reserve(&self, len: usize) -> Result<Reservation<'_>, AppendError> {
        let space = append::reserve_space(&self.handle.shared, len, Patience::Forever)?;
        Ok(Reservation::new(space))
    }

    /// As [`reserve`](Self::reserve), but never waits.
    ///
    /// # Errors
    /// As there, and [`AppendError::Full`].
    pub fn try_reserve(&self, len: usize) -> Result<Reservation<'_>, AppendError> {
        let space = append::reserve_space(&self.handle.shared, len, Patience::None)?;
        Ok(Reservation::new(space))
    }

    /// Blocks until everything accepted before this call is durable (synced, in every log), and
    /// returns the last number.
    ///
    /// # Errors
    /// A write or sync failed, now or earlier: [`WaitError`].
    pub fn sync(&self) -> Result<Lsn, WaitError> {
        if self.handle.shared.fork.forked() {
            return Err(WaitError::Forked);
        }
        let last = self.last_lsn();
        self.wait_durable(last)?;
        Ok(last)
    }

    /// The last number that is durable: it and all before it survived a sync.
    pub fn durable_lsn(&self) -> Lsn {
        Lsn::new(self.handle.shared.commit.watermark(Level::Synced))
    }

    /// The last number that is acknowledged at the log's [`Durability`].
    pub fn acknowledged_lsn(&self) -> Lsn {
        Lsn::new(self.handle.shared.commit.watermark(Level::Acked))
    }

    /// The last number given out; [`Lsn::NONE`] for an empty log.
    pub fn last_lsn(&self) -> Lsn {
        let shared = &self.handle.shared;
        Lsn::new(match shared.fork.forked() {
            false => shared.numbers.last(),
            true => shared.numbers.last_as_it_stands(),
        })
    }

    /// Blocks until `lsn` is durable. A number not given out yet is waited for too.
    ///
    /// # Errors
    /// A write or sync failed, or the log was closed before it reached the number: [`WaitError`].
    pub fn wait_durable(&self, lsn: Lsn) -> Result<(), WaitError> {
        self.handle.shared.wait(lsn.get(), Level::Synced, None, None)
    }

    /// As [`wait_durable`](Self::wait_durable), no longer than `timeout`.
    ///
    /// # Errors
    /// As there, and [`WaitError::TimedOut`].
    pub fn wait_durable_timeout(&self, lsn: Lsn, timeout: Duration) -> Result<(), WaitError> {
        self.handle.shared.wait(lsn.get(), Level::Synced, None, Some(timeout))
    }

    /// Counts and times since the log was opened.
    pub fn stats(&self) -> Stats {
        let shared = &self.handle.shared;
        let before = self.handle.recovery.last_lsn.get();
        let since = |lsn: Lsn| lsn.get().saturating_sub(before);
        shared.counters.snapshot(since(self.last_lsn()), since(self.acknowledged_lsn()))
    }

    /// What goes on in the background just now. Never blocks; a few loads.
    pub fn housekeeping(&self) -> Housekeeping {
        self.handle.shared.counters.housekeeping()
    }

    /// Which way to the disk the log takes, and why.
    pub fn backend(&self) -> &BackendInfo {
        &self.handle.backend
    }

    /// What was found when the log was opened.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.handle.recovery
    }

    /// What an acknowledgement of this log means.
    pub fn durability(&self) -> Durability {
        self.handle.shared.durability
    }

    /// The largest record in bytes: half a segment or the budget for large records, whichever is
    /// less, and less what describes it. About 32 MiB with the default options.
    pub fn record_bytes_max(&self) -> usize {
        self.handle.shared.limits.record_bytes_max()
    }

    /// The most memory that the log takes by its options, in bytes: rings, spare rings, window,
    /// buffers, large records. Most of it is touched only when it is needed.
    pub fn memory_bytes_max(&self) -> usize {
        self.handle.memory_bytes_max
    }

    /// When the batch with this record was sealed, submitted and durable; for the last 1024 batches.
    pub fn batch_timing(&self, lsn: Lsn) -> Option<BatchTiming> {
        let shared = &self.handle.shared;
        shared.timings.find(lsn, &shared.clock)
    }

    /// The failure that ended writing, if one did.
    pub fn poison(&self) -> Option<&Poison> {
        self.handle.shared.poison()
    }

    /// Closes the log: refuses further appends through any handle, writes and syncs everything that
    /// was accepted, vouches for it, and ends the writer. Blocks until that is done. Who waits for room
    /// in an append gets [`AppendError::Closed`].
    ///
    /// # Errors
    /// A write or sync failed, now or earlier: [`CloseError`]. What was acknowledged is durable.
    pub fn close(self) -> Result<CloseReport, CloseError> {
        let shared = &self.handle.shared;
        if shared.fork.forked() {
            return Err(CloseError::Forked);
        }
        self.handle.finish();
        match shared.poison() {
            Some(poison) => Err(CloseError::Poisoned(poison.clone())),
            None => Ok(CloseReport { last_lsn: self.last_lsn(), stats: self.stats() }),
        }
    }
}

impl Log {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Whether this is the writer's own thread, which calls the wakers: it must wait for nothing.
    pub(crate) fn is_writer_thread(&self) -> bool {
        self.handle.writer_id == Some(std::thread::current().id())
    }
}

impl core::fmt::Debug for Log {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.handle.shared.store.path(""))
            .field("last_lsn", &self.last_lsn())
            .field("durable_lsn", &self.durable_lsn())
            .finish_non_exhaustive()
    }
}

/// What a log did until it was closed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CloseReport {
    /// The last record; it is durable, as are all before it.
    pub last_lsn: Lsn,
    /// What was counted since the log was opened.
    pub stats: Stats,
}

impl core::fmt::Display for CloseReport {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "closed at {}: {} records in {} batches, {} bytes on disk, {} of them padding",
            self.last_lsn,
            self.stats.appends,
            self.stats.batches,
            self.stats.disk_bytes,
            self.stats.padding_bytes
        )
    }
}

/// What the clones share; its drop closes the log.
struct Handle {
    shared: Arc<Shared>,
    backend: BackendInfo,
    recovery: RecoveryReport,
    memory_bytes_max: usize,
    writer_id: Option<ThreadId>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    preparer: Option<JoinHandle<()>>,
    /// The writer's and the preparer's threads hold it too: it is free when nobody writes.
    lock: Option<Arc<LockGuard>>,
}

impl Handle {
    /// Asks the writer to finish and waits for it. The lock goes last. Called again, it waits too.
    fn finish(&self) {
        self.shared.ask(ASK_CLOSE);
        if self.writer_id == Some(std::thread::current().id()) {
            // A waker that closes the log, or drops the last handle, runs on the writer's own
            // thread. It ends by itself, and so does the preparer; the lock goes with them.
            return;
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for handle in [threads.writer.take(), threads.preparer.take()].into_iter().flatten() {
            // A panic of the thread has poisoned the log and is reported so.
            handle.join().ok();
        }
        // Whoever is trimming just now finishes first; who comes later finds the log closed.
        drop(self.shared.extent.files());
        threads.lock = None;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.shared.fork.forked() {
            // The threads and the lock are the parent's.
            let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
            core::mem::forget(core::mem::take(threads));
            return;
        }
        self.finish();
    }
}

/// The parts of a log before any thread runs.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) space: Space,
    pub(crate) preparer: Preparer,
    pub(crate) recovery: RecoveryReport,
    pub(crate) window_records: usize,
    lock: LockGuard,
}

impl Parts {
    /// Takes the lock, recovers, and makes everything that needs no thread.
    pub(crate) fn assemble(
        store: Arc<dyn Store>,
        options: &Options,
        clock: Clock,
        entropy: EntropySource,
    ) -> Result<Parts, OpenError> {
        let lock = store.lock().map_err(|error| match error {
            LockError::Held(holder) => OpenError::Locked { dir: store.path(""), holder },
            LockError::Io(error) => OpenError::Io(error),
        })?;
        check_block(options, store.facts().block_bytes)?;
        let config = RecoverConfig {
            create: options.create,
            segment_bytes: options.segment_bytes,
            wall_now_ns: clock.wall_ns(),
            entropy: &*entropy,
        };
        let recovered = recover(&store, &config)?;
        clamp_cursors(&*store, recovered.next_lsn - 1)?;
        let rings = RingSet::new(
            options.lanes(),
            options.ring_bytes,
            options.rings_retired_max,
            options.large_bytes_max,
        );
        let block_bytes = recovered.live.header.block_bytes as usize;
        check_block(options, block_bytes)?;
        let limits = Limits::new(options, block_bytes);
        let window_records = options.window();
        let next_epoch = recovered.live.header.epoch + 1 + recovered.ready.len() as u64;
        check_max_bytes(options, &limits)?;
        let spares = Spares::new(recovered.spares);
        let files = Files::new(recovered.mark, next_epoch, spares);
        let extent = Extent::new(files, recovered.live.header.epoch);
        extent.set_live_payload_bytes(recovered.index.footer().payload_bytes);
        let link = Arc::new(PreparerLink::new(recovered.ready.len() as u64));
        let durable = recovered.next_lsn - 1;
        let log_id = recovered.live.header.log_id;
        let status = StatusPage::make(&*store, log_id, &*entropy, durable, &extent);
        let shared = Arc::new(Shared::new(
            SharedParts {
                rings,
                next_lsn: recovered.next_lsn,
                clock,
                entropy: entropy.clone(),
                store: store.clone(),
                preparer: link.clone(),
                extent,
                live_index: LiveIndex::new(&recovered.index),
                status,
                limits,
            },
            options,
        ));
        let (sender, deliveries) = channel();
        let (sealed_sender, sealed) = channel();
        let plan = Plan {
            log_id: recovered.live.header.log_id,
            block_bytes: recovered.live.header.block_bytes,
            segment_bytes: options.segment_bytes,
            bytes_per_s: options.prepare_bytes_per_s,
            max_bytes: options.max_bytes,
            spares_max: options.spares_max,
            entropy: Box::new(move || entropy()),
        };
        let policies = Policies::new(options);
        let preparer = Preparer::new(shared.clone(), link.clone(), sender, sealed, plan, policies);
        let start = Start {
            live: recovered.live,
            offset: recovered.offset,
            prev_crc: recovered.prev_crc,
            wall_ns: recovered.wall_ns,
            index: recovered.index,
            ready: recovered.ready,
        };
        let mut space = Space::new(store, start, deliveries, sealed_sender, link);
        space.account(&shared);
        Ok(Parts { shared, space, preparer, recovery: recovered.report, window_records, lock })
    }

    /// The handle and the state machines, for a caller that takes the writer's turns itself.
    #[cfg(feature = "sim")]
    pub(crate) fn stepped(self, options: &Options) -> Result<(Log, Writer, Preparer), OpenError> {
        let Parts { shared, space, preparer, recovery, window_records, lock } = self;
        let (disk, mut backend) = shared.store.clone().disk(options)?;
        let path = shared.store.path("");
        let writer =
            Writer::new(shared.clone(), disk, &mut backend, space, options, window_records)
                .map_err(|error| IoError::new("get memory for the buffers of", path, error))?;
        let memory_bytes_max = options.memory_bytes_max();
        let threads = Mutex::new(Threads { lock: Some(Arc::new(lock)), ..Threads::default() });
        let handle =
            Handle { shared, backend, recovery, memory_bytes_max, writer_id: None, threads };
        Ok((Log { handle: Arc::new(handle) }, writer, preparer))
    }

    /// Starts the threads. The disk is made on the writer's own, as io_uring wants it.
    pub(crate) fn start(self, options: Options) -> Result<Log, OpenError> {
        let Parts { shared, space, preparer, recovery, window_records, lock } = self;
        let memory_bytes_max = options.memory_bytes_max();
        let lock = Arc::new(lock);
        let (sender, made) = channel();
        let writer = {
            let (shared, lock) = (shared.clone(), lock.clone());
            spawn("uringlog-writer", move || {
                if let Some(core) = options.writer_core {
                    // A core that is not there leaves the thread unpinned.
                    let _pinned =
                        core_affinity::set_for_current(core_affinity::CoreId { id: core });
                }
                let store = shared.store.clone();
                let path = store.path("");
                let writer = store.disk(&options).and_then(|(disk, mut backend)| {
                    Writer::new(shared, disk, &mut backend, space, &options, window_records)
                        .map(|writer| (writer, backend))
                        .map_err(|error| {
                            IoError::new("get memory for the buffers of", path, error).into()
                        })
                });
                match writer {
                    Ok((writer, backend)) => {
                        // If the opener is gone, the writer finds itself asked to close.
                        let _opener_gone = sender.send(Ok(backend));
                        writer.run();
                        drop(lock);
                    }
                    Err(error) => {
                        drop(lock);
                        let _opener_gone = sender.send(Err(error));
                    }
                }
            })?
        };
        let backend = receive(&made)?;
        let writer_id = Some(writer.thread().id());
        let held = lock.clone();
        let preparer = spawn("uringlog-prepare", move || {
            preparer.run();
            drop(held);
        });
        let (preparer, failed) = match preparer {
            Ok(handle) => (Some(handle), None),
            Err(error) => (None, Some(error)),
        };
        let threads = Threads { writer: Some(writer), preparer, lock: Some(lock) };
        let threads = Mutex::new(threads);
        let handle = Handle { shared, backend, recovery, memory_bytes_max, writer_id, threads };
        match failed {
            // Dropping the handle closes what was started.
            Some(error) => Err(error),
            None => Ok(Log { handle: Arc::new(handle) }),
        }
    }
}

/// A truncation takes back the cursors that it leaves behind the end; a crash may have come between.
fn clamp_cursors(store: &dyn Store, last: u64) -> Result<(), OpenError> {
    match cursor::clamp(store, last) {
        Err(ScanError::Io(error)) => Err(error.into()),
        // Its consumer will be told; nobody else needs it.
        Ok(()) | Err(ScanError::Damaged(_) | ScanError::Foreign { .. }) => Ok(()),
    }
}

/// What stands ready ahead must fit, or nothing could ever be appended.
fn check_max_bytes(options: &Options, limits: &Limits) -> Result<(), OpenError> {
    let Some(max) = options.max_bytes else { return Ok(()) };
    let segments = 1 + limits.segments_ready(options.lanes(), 0);
    let least = segments * options.segment_bytes;
    if max >= least {
        return Ok(());
    }
    Err(OpenError::InvalidOption {
        option: "max_bytes",
        reason: format!(
            "{max} bytes are too few: the live segment and those that stand ready ahead of it, \
             {segments} in all, take {least}; smaller rings, segments or large records need less"
        ),
    })
}

/// A segment must have room for headers, batches and padding.
fn check_block(options: &Options, block_bytes: usize) -> Result<(), OpenError> {
    if options.segment_bytes >= 16 * block_bytes as u64 {
        return Ok(());
    }
    Err(OpenError::InvalidOption {
        option: "segment_bytes",
        reason: format!(
            "{} bytes are less than 16 blocks of this device or log, {block_bytes} bytes each",
            options.segment_bytes
        ),
    })
}

fn receive(made: &Receiver<Result<BackendInfo, OpenError>>) -> Result<BackendInfo, OpenError> {
    made.recv().unwrap_or_else(|_| {
        Err(OpenError::Unsupported {
            what: "the writer thread ended while it was set up".to_owned(),
            fix: "this is a bug: please report it",
        })
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|error| {
        IoError::new("start a thread for the log of", std::path::PathBuf::from(name), error).into()
    })
}
