//! [`Options`]: how a log is opened.

use std::path::Path;
use std::time::Duration;

use crate::disk::Method;
use crate::error::OpenError;
use crate::frame;
use crate::ring::UNIT_BYTES;

/// What an acknowledgement means.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Durability {
    /// The record survived a sync on the device: it is there after a power cut.
    #[default]
    Durable,
    /// The record was handed to the device (or to the page cache, where buffered I/O was asked for): it
    /// is there after the process dies, but a power cut may take it, and everything after it. [`Log::sync`](crate::Log::sync) makes it durable.
    Written,
}

/// Which way to the disk to take.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum BackendChoice {
    /// io_uring where it works, plain system calls where it does not.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Plain system calls.
    Psync,
}

/// How a thread waits when it has nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Idle {
    /// Sleep on a futex: costs no CPU, and a wake-up of some microseconds. (A waiter in a crowd yields first, unless
    /// [`Options::yields_in_crowd`] says no.)
    #[default]
    Park,
    /// Burn the core: the lowest latency, only with more cores than busy threads.
    Spin,
    /// Give the core away again and again: in between.
    Yield,
}

/// How a log is opened: sizes, durability, strategies. Every setter takes and returns the options by
/// value; [`open`](Options::open) checks them all.
#[must_use = "options do nothing until `open` is called"]
#[derive(Clone, Debug)]
pub struct Options {
    pub(crate) create: bool,
    pub(crate) durability: Durability,
    pub(crate) segment_bytes: u64,
    pub(crate) segments_ready: usize,
    pub(crate) rings: Option<usize>,
    pub(crate) ring_bytes: usize,
    pub(crate) rings_retired_max: usize,
    pub(crate) window_records: Option<usize>,
    pub(crate) batch_bytes_max: usize,
    pub(crate) large_bytes_max: usize,
    pub(crate) writer_idle: Idle,
    pub(crate) waiter_idle: Idle,
    pub(crate) yields_in_crowd: bool,
    pub(crate) writer_core: Option<usize>,
    pub(crate) linger_max: Duration,
    pub(crate) vouch_after: Duration,
    pub(crate) backend: BackendChoice,
    pub(crate) method: Option<Method>,
    pub(crate) depth: Option<usize>,
    pub(crate) buffered: bool,
    pub(crate) calibrate: bool,
    pub(crate) prepare_bytes_per_s: u64,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) spares_max: usize,
    pub(crate) retain_bytes: Option<u64>,
    pub(crate) retain_age: Option<Duration>,
    pub(crate) retain_past_cursors: bool,
    pub(crate) tail_bytes: usize,
    pub(crate) file_mode: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            create: true,
            durability: Durability::Durable,
            segment_bytes: 64 << 20,
            segments_ready: 2,
            rings: None,
            ring_bytes: 1 << 20,
            rings_retired_max: 16,
            window_records: None,
            batch_bytes_max: 4 << 20,
            large_bytes_max: 64 << 20,
            writer_idle: Idle::Park,
            waiter_idle: Idle::Park,
            yields_in_crowd: true,
            writer_core: None,
            linger_max: Duration::from_micros(100),
            vouch_after: Duration::from_millis(5),
            backend: BackendChoice::Auto,
            method: None,
            depth: None,
            buffered: false,
            calibrate: true,
            prepare_bytes_per_s: 64 << 20,
            max_bytes: None,
            spares_max: 2,
            retain_bytes: None,
            retain_age: None,
            retain_past_cursors: false,
            tail_bytes: 4 << 20,
            file_mode: 0o600,
        }
    }
}

impl Options {
    /// The default options.
    pub fn new() -> Self {
        Options::default()
    }

    /// Whether to create the directory and the log in it when there is none. Default: yes.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// What an acknowledgement means. Default: [`Durability::Durable`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Size of a new segment file in bytes. 64 KiB to 4 GiB, a multiple of 64 KiB; default 64 MiB.
    /// It also bounds the largest record and batch: see
    /// [`Log::record_bytes_max`](crate::Log::record_bytes_max).
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Segments that stand ready behind the live one, at least: 1 to 64, default 2. More are kept
    /// where the rings could hold more than these take.
    pub fn segments_ready(mut self, segments: usize) -> Self {
        self.segments_ready = segments;
        self
    }

    /// Number of rings: 1 to 1024. Default: one for each core that the process may run on.
    pub fn rings(mut self, rings: usize) -> Self {
        self.rings = Some(rings);
        self
    }

    /// Payload bytes that one ring holds: a power of two, 4 KiB to 1 GiB, default 1 MiB. Beside
    /// them a ring has half as many bytes of slot entries. Records of more than an eighth of a ring
    /// take a heap buffer instead.
    pub fn ring_bytes(mut self, bytes: usize) -> Self {
        self.ring_bytes = bytes;
        self
    }

    /// Most rings that may stand retired at once, pinned by a reservation that was leaked or is
    /// held for very long: 0 to 1024, default 16. Beyond it such a ring's space stays lost until
    /// the reservation ends.
    pub fn rings_retired_max(mut self, rings: usize) -> Self {
        self.rings_retired_max = rings;
        self
    }

    /// Records that the writer's reordering window holds: a power of two, 16 to 2^24. Default: what
    /// the rings can hold in their smallest slots. With fewer, records beyond it are kept in a list
    /// that is slower.
    pub fn window_records(mut self, records: usize) -> Self {
        self.window_records = Some(records);
        self
    }

    /// Most bytes of one gathered write: a power of two, 64 KiB to 16 MiB, default 4 MiB. Two such
    /// buffers are allocated (and one more for each further write that may be under way).
    pub fn batch_bytes_max(mut self, bytes: usize) -> Self {
        self.batch_bytes_max = bytes;
        self
    }

    /// Heap bytes that records and batches too large for a ring may hold together while they are
    /// not yet written: 64 KiB to 64 GiB, default 64 MiB. It also bounds the largest record.
    pub fn large_bytes_max(mut self, bytes: usize) -> Self {
        self.large_bytes_max = bytes;
        self
    }

    /// How the writer thread waits for records. Default: [`Idle::Park`], which costs no CPU while
    /// nothing is appended.
    pub fn writer_idle(mut self, idle: Idle) -> Self {
        self.writer_idle = idle;
        self
    }

    /// How a thread in [`Ticket::wait`](crate::Ticket::wait) waits. Default: [`Idle::Park`].
    pub fn waiter_idle(mut self, idle: Idle) -> Self {
        self.waiter_idle = idle;
        self
    }

    /// Whether a thread that waits without a deadline, and would sleep ([`Idle::Park`]), yields first where it is one
    /// of a crowd: where one batch wakes six of them or more for each core, or three for a batch of 64 KiB or more.
    /// Default: yes.
    ///
    /// It sleeps at once, too, for a time after a yield that lasted 1 ms or more: then others want the cores.
    ///
    /// A crowd that yields keeps the cores busy while the disk works, though any other thread that is ready runs
    /// in between; a crowd that sleeps leaves them idle, and takes longer to be back. With 32 producers on two cores,
    /// yielding brings 1.4 times the records a second, for 1.3 times the processor time each
    /// (`uringlog bench --producers 32`, beside the same with `--idle sleep`).
    pub fn yields_in_crowd(mut self, yields: bool) -> Self {
        self.yields_in_crowd = yields;
        self
    }

    /// Pins the writer thread to a core. Default: not pinned, which is faster where the kernel can
    /// run it beside the producer it answers.
    pub fn writer_core(mut self, core: usize) -> Self {
        self.writer_core = Some(core);
        self
    }

    /// Longest that the writer waits, after it woke those who shared a batch, for the next one to
    /// grow as large: 0 (never) to 10 ms, default 100 µs. It waits less the more records share a batch. Once in a
    /// while, and the less often the less it brings, it waits so for those it wakes while records of others are
    /// pending, so that producers who take turns come to share their batches. Never for a producer that is alone and waits for each of its records.
    pub fn linger_max(mut self, linger: Duration) -> Self {
        self.linger_max = linger;
        self
    }

    /// How long the log must be idle before one empty batch vouches for the last acknowledged
    /// record: 1 ms to 1 h, default 5 ms. Until then damage to that record cannot be told from a
    /// torn write.
    pub fn vouch_after(mut self, idle: Duration) -> Self {
        self.vouch_after = idle;
        self
    }

    /// Which way to the disk to take. Default: [`BackendChoice::Auto`].
    pub fn backend(mut self, backend: BackendChoice) -> Self {
        self.backend = backend;
        self
    }

    /// Forces the way in which batches are made durable. Default: the fastest of those that work,
    /// measured when the log is opened.
    pub fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// Forces the number of writes under way at once: 1 to 16. Only [`Method::RingDsync`] takes
    /// more than 1. Default: 1, unless calibration shows that 2 pays.
    pub fn depth(mut self, depth: usize) -> Self {
        self.depth = Some(depth);
        self
    }

    /// Goes through the page cache where the file system refuses direct I/O. Default: no, such a
    /// file system is an error.
    pub fn buffered(mut self, buffered: bool) -> Self {
        self.buffered = buffered;
        self
    }

    /// Whether to measure the methods on a scratch file when the log is opened and no earlier
    /// measurement for this device is stored with it. Default: yes; without it the first that works
    /// is taken.
    pub fn calibrate(mut self, calibrate: bool) -> Self {
        self.calibrate = calibrate;
        self
    }

    /// Bytes a second at which new segments are filled with zeros while enough stand ready: 1 MiB
    /// to 1 TiB, default 64 MiB. The preparer is not held back while less than one stands ready,
    /// and follows the rate at which the log is written.
    pub fn prepare_bytes_per_s(mut self, bytes: u64) -> Self {
        self.prepare_bytes_per_s = bytes;
        self
    }

    /// Most bytes that the log's segment files may take together: those with records, those that
    /// stand ready, spare ones, and the one that is being made. At least what the live segment and
    /// those that stand ready take; default: no limit but the file system's.
    ///
    /// Where one more segment would go beyond it, none is made: appends get
    /// [`NoSpace`](crate::AppendError::NoSpace) once the prepared space is used up, nothing that was
    /// accepted is lost, and appending goes on by itself when [`trim`](crate::Log::trim), or what is
    /// to be retained, has made room. What opening the log after a crash, or a truncation, needs is
    /// made all the same. The small files beside the segments are not counted (less than 200 KiB
    /// for the log and for each cursor).
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Most files of trimmed segments that are kept to become segments again, which saves filling
    /// new ones with zeros: 0 to 64, default 2. The others are removed, slowly.
    pub fn spares_max(mut self, files: usize) -> Self {
        self.spares_max = files;
        self
    }

    /// Trims the log, by whole segments, to at most so many bytes of segment files with records,
    /// the live one included. The live one is never trimmed. Default: not; 0 keeps the live one
    /// only. Records that a cursor has not consumed are kept; see
    /// [`retain_past_cursors`](Self::retain_past_cursors).
    pub fn retain_bytes(mut self, bytes: u64) -> Self {
        self.retain_bytes = Some(bytes);
        self
    }

    /// Trims segments whose last record is older than this, by the wall clock of when it was
    /// written. Looked at about every second. The live segment is never trimmed, however old it is.
    /// At least 1 ms; default: not.
    pub fn retain_age(mut self, age: Duration) -> Self {
        self.retain_age = Some(age);
        self
    }

    /// Whether [`retain_bytes`](Self::retain_bytes) may trim records that a cursor has not consumed
    /// yet. Its reader then gets [`ReadError::Trimmed`](crate::ReadError::Trimmed). Default: no; a
    /// cursor that stands still then lets the log grow, up to [`max_bytes`](Self::max_bytes).
    pub fn retain_past_cursors(mut self, past: bool) -> Self {
        self.retain_past_cursors = past;
        self
    }

    /// Bytes of the last batches that are kept in memory while the log is followed
    /// ([`Log::follow`](crate::Log::follow)): 0 (followers read the disk), or 64 KiB to 1 GiB; default
    /// 4 MiB. Batches of more than 256 KiB are not kept. Each follower may hold one batch beside it.
    pub fn tail_bytes(mut self, bytes: usize) -> Self {
        self.tail_bytes = bytes;
        self
    }

    /// Mode of the files that the log makes, whatever the umask is: 0600 (the default: private to the
    /// user who writes), and bits of 0066 with it. A directory that is made gets the same bits, and the right
    /// to search it where there is one to read: 0700 unless asked otherwise. What is there already keeps
    /// its mode.
    ///
    /// Readers that run as another user need the right to read: 0640 for a group, 0644 for all (and
    /// a directory that lets them in). With no right to write they follow the log too, but are not woken:
    /// they look every 20 ms at the latest. Who moves cursors needs the right to write, too: 0660. Cursors made by another
    /// process than the writer get the mode of the file `log.lock`.
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.file_mode = mode;
        self
    }

    /// The most memory in bytes that a log opened with these options takes: rings and their spares,
    /// window, buffers, large records, the tail for followers. Most of it is touched only when it is
    /// needed.
    pub fn memory_bytes_max(&self) -> usize {
        let rings = self.lanes().saturating_add(self.rings_retired_max);
        let rings = rings.saturating_mul(self.ring_bytes);
        // For each unit a slot entry of 32 bytes, and 4 bytes of the writer's; 24 for each record of
        // the window.
        let units = (rings / UNIT_BYTES).saturating_mul(36);
        let buffers =
            self.depth.unwrap_or(2).saturating_add(1).saturating_mul(self.batch_bytes_max);
        [
            units,
            self.window().saturating_mul(24),
            buffers,
            self.large_bytes_max,
            self.tail_bytes,
            1 << 20,
        ]
        .into_iter()
        .fold(rings, usize::saturating_add)
    }

    /// Rings in use: one for each core, unless asked otherwise.
    pub(crate) fn lanes(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get());
        self.rings.unwrap_or_else(|| cores().min(1024))
    }

    /// Records of the window: what the rings hold in their smallest slots, unless asked otherwise.
    pub(crate) fn window(&self) -> usize {
        let smallest =
            || (self.lanes().saturating_mul(self.ring_bytes) / UNIT_BYTES).next_power_of_two();
        self.window_records.unwrap_or_else(smallest)
    }

    /// Opens the log in `dir`, recovering it after a crash.
    ///
    /// Blocks while it reads the log's tail, measures the device (some tens of milliseconds the first
    /// time), and fills the first segment of a new log with zeros. Right after it, appends may wait
    /// (or say [`Full`](crate::AppendError::Full)) until further segments stand ready, where the
    /// rings could hold more than the first takes.
    ///
    /// The files that it makes are private to the user: see [`file_mode`](Self::file_mode). `dir` may be a
    /// symbolic link to a directory; in it nothing is followed: what has the name of one of the log's
    /// files and is a link, a pipe, or a device is an error. Files with other names are left alone.
    ///
    /// A file size limit (`ulimit -f`) below the segment size sends SIGXFSZ, which ends a process that
    /// does not ignore it.
    ///
    /// # Errors
    /// An option out of range, a directory that another process writes to, damage to acknowledged
    /// data, a machine that cannot do what the options force, or a failed system call: see
    /// [`OpenError`].
    pub fn open(self, dir: impl AsRef<Path>) -> Result<crate::Log, OpenError> {
        crate::Log::open_with(self, dir.as_ref())
    }

    /// Checks every option and every relation between them.
    pub(crate) fn validate(&self) -> Result<(), OpenError> {
        const MIB: u64 = 1 << 20;
        check("segment_bytes", self.segment_bytes, 64 << 10, 4096 * MIB, "bytes")?;
        if !self.segment_bytes.is_multiple_of(64 << 10) {
            return invalid("segment_bytes", "must be a multiple of 64 KiB (65536)");
        }
        check("segments_ready", self.segments_ready as u64, 1, 64, "segments")?;
        if let Some(rings) = self.rings {
            check("rings", rings as u64, 1, 1024, "rings")?;
        }
        check("ring_bytes", self.ring_bytes as u64, 4096, 1024 * MIB, "bytes")?;
        power_of_two("ring_bytes", self.ring_bytes)?;
        check("rings_retired_max", self.rings_retired_max as u64, 0, 1024, "rings")?;
        if let Some(window) = self.window_records {
            check("window_records", window as u64, 16, 1 << 24, "records")?;
            power_of_two("window_records", window)?;
        }
        check("batch_bytes_max", self.batch_bytes_max as u64, 64 << 10, 16 * MIB, "bytes")?;
        power_of_two("batch_bytes_max", self.batch_bytes_max)?;
        check("large_bytes_max", self.large_bytes_max as u64, 64 << 10, 65536 * MIB, "bytes")?;
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        check("linger_max", us(self.linger_max), 0, 10_000, "µs")?;
        check("vouch_after", us(self.vouch_after), 1000, 3_600_000_000, "µs")?;
        check("prepare_bytes_per_s", self.prepare_bytes_per_s, MIB, MIB << 20, "bytes/s")?;
        check("spares_max", self.spares_max as u64, 0, 64, "files")?;
        if let Some(max) = self.max_bytes {
            check("max_bytes", max, 2 * self.segment_bytes, u64::MAX, "bytes")?;
        }
        if let Some(age) = self.retain_age {
            check("retain_age", us(age), 1000, u64::MAX, "µs")?;
        }
        if self.tail_bytes != 0 {
            check("tail_bytes", self.tail_bytes as u64, 64 << 10, 1024 * MIB, "bytes")?;
        }
        if self.file_mode & !0o666 != 0 || self.file_mode & 0o600 != 0o600 {
            return invalid(
                "file_mode",
                "must have the bits 0600, and none but those of 0666: 0600, 0640, 0660, …",
            );
        }
        if let Some(core) = self.writer_core {
            check("writer_core", core as u64, 0, libc::CPU_SETSIZE as u64 - 1, "")?;
        }
        if let Some(depth) = self.depth {
            check("depth", depth as u64, 1, 16, "writes")?;
            let other_method = self.method.is_some_and(|method| method != Method::RingDsync);
            if depth > 1 && (other_method || self.backend == BackendChoice::Psync) {
                return invalid(
                    "depth",
                    "only method ring-dsync takes more than one write at a time",
                );
            }
        }
        match (self.backend, self.method) {
            (BackendChoice::Psync, Some(method)) if method.is_ring() => {
                invalid("method", "a ring method needs io_uring, but backend psync is forced")
            }
            (BackendChoice::Uring, Some(method)) if !method.is_ring() => {
                invalid("method", "a pwrite method needs backend psync, but uring is forced")
            }
            _ => Ok(()),
        }
    }
}

fn check(
    option: &'static str,
    value: u64,
    min: u64,
    max: u64,
    unit: &str,
) -> Result<(), OpenError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(OpenError::InvalidOption {
        option,
        reason: format!("{value} {unit} is out of range, which is {min} to {max}"),
    })
}

fn power_of_two(option: &'static str, value: usize) -> Result<(), OpenError> {
    if value.is_power_of_two() {
        return Ok(());
    }
    Err(OpenError::InvalidOption { option, reason: format!("{value} is not a power of two") })
}

fn invalid(option: &'static str, reason: &str) -> Result<(), OpenError> {
    Err(OpenError::InvalidOption { option, reason: reason.to_owned() })
}

const _: () = assert!((64 << 10) % frame::BLOCK_BYTES_MAX == 0, "segments are whole blocks");
