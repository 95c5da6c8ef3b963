//! The errors of this crate: what failed, where, with which errno, the likely cause and the fix.

use core::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::lsn::Lsn;

/// A failed call to the operating system: what was asked, of which file, and what came back.
#[derive(Debug)]
pub struct IoError {
    /// What was being done, as a verb phrase: "write a batch at offset 8192 of".
    pub action: String,
    /// The file or directory.
    pub path: PathBuf,
    /// What the system answered, with its errno.
    pub source: io::Error,
    /// What most likely caused it and what to do about it; empty when nothing is known.
    pub hint: &'static str,
}

impl IoError {
    pub(crate) fn new(
        action: impl Into<String>,
        path: impl Into<PathBuf>,
        source: io::Error,
    ) -> Self {
        let hint = hint_for(&source);
        IoError { action: action.into(), path: path.into(), source, hint }
    }

    /// Whether the file system or a quota is full.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
    }
}

/// The likely cause and the fix for an errno that users meet.
fn hint_for(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            "check the owner and mode of the directory and of the files in it"
        }
        Some(libc::ENOSPC) => {
            "the file system is full: free space, or use smaller segments (segment_bytes)"
        }
        Some(libc::EDQUOT) => {
            "the disk quota is used up: raise it, or use smaller segments (segment_bytes)"
        }
        Some(libc::EFBIG) => "a file size limit (ulimit -f) is below the segment size: raise it",
        Some(libc::EROFS) => "the file system is mounted read-only: see the kernel's log for why",
        Some(libc::EMFILE | libc::ENFILE) => "too many open files: raise ulimit -n",
        Some(libc::EIO) => {
            "the device failed: see the kernel's log, and check the disk before anything else"
        }
        Some(libc::ENOENT) => "the directory or file is gone: was it removed while in use?",
        Some(libc::ELOOP) => {
            "a symbolic link has the name of one of the log's files, or the path goes in circles: move \
             it away"
        }
        Some(libc::EISDIR) => "a directory has the name of one of the log's files: move it away",
        Some(libc::ENOTDIR) => "a part of the path is a file: choose another path",
        Some(libc::EEXIST) => "something else has that name: move it away, or choose another path",
        None if error.kind() == io::ErrorKind::InvalidInput => {
            "something that is no file has the name of one of the log's files: move it away"
        }
        Some(libc::EINVAL) => "the file system may not support direct I/O at this alignment",
        _ => "",
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.action, self.path.display(), self.source)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for IoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Damage to data that the log had acknowledged, or to what is needed to find it. Nothing is cut
/// or rewritten when it is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The segment file.
    pub segment: PathBuf,
    /// Offset in the segment, in bytes, where the damage was met.
    pub offset: u64,
    /// The acknowledged records that cannot be read, where both ends are known: first and last.
    pub lost: Option<(Lsn, Lsn)>,
    /// What was found there.
    pub detail: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "damage in {} at offset {}: {}",
            self.segment.display(),
            self.offset,
            self.detail
        )?;
        match self.lost {
            Some((first, last)) if first == last => write!(f, "; record {first} is lost"),
            Some((first, last)) => write!(f, "; records {first} to {last} are lost"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Damage {}

/// Why a log could not be opened. Nothing was changed, other than leftovers of an unfinished
/// preparation that were swept.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// An option is out of its range.
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What is wrong with it, and what its range is.
        reason: String,
    },
    /// Another process (or another `Log` in this one) has the directory open for writing.
    Locked {
        /// The log's directory.
        dir: PathBuf,
        /// Who holds it, where the system tells.
        holder: Option<LockHolder>,
    },
    /// The directory holds no log, and the options forbid to create one.
    NotFound {
        /// The log's directory.
        dir: PathBuf,
    },
    /// Acknowledged data is damaged.
    Damaged(Damage),
    /// A file in the directory is not what its name says: another log's segment, a newer format, a
    /// symbolic link.
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The machine cannot do what the options ask for: no io_uring when it was forced, no direct
    /// I/O when buffered I/O was not allowed.
    Unsupported {
        /// What is missing.
        what: String,
        /// What to do about it.
        fix: &'static str,
    },
    /// The system refused something.
    Io(IoError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidOption { option, reason } => write!(f, "option {option}: {reason}"),
            Self::Locked { dir, holder } => {
                write!(f, "the log in {} is open for writing ", dir.display())?;
                match holder {
                    Some(holder) => write!(f, "by {holder}")?,
                    None => f.write_str("by another process")?,
                }
                f.write_str("; only one writer at a time: stop it first, or only read")
            }
            Self::NotFound { dir } => write!(
                f,
                "there is no log in {}; allow it to be created, or check the path",
                dir.display()
            ),
            Self::Damaged(damage) => write!(f, "{damage}; nothing was changed"),
            Self::Foreign { path, reason } => {
                write!(f, "{} does not belong here: {reason}; move it away", path.display())
            }
            Self::Unsupported { what, fix } => write!(f, "{what}; {fix}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Damaged(damage) => Some(damage),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<IoError> for OpenError {
    fn from(error: IoError) -> Self {
        OpenError::Io(error)
    }
}

impl From<Damage> for OpenError {
    fn from(damage: Damage) -> Self {
        OpenError::Damaged(damage)
    }
}

/// The process that holds a log's lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LockHolder {
    /// Its process id, as seen from this process' namespace.
    pub pid: u32,
    /// Its name, where /proc tells it.
    pub name: Option<String>,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == std::process::id() {
            return f.write_str("this process itself, through another `Log`");
        }
        match &self.name {
            Some(name) => write!(f, "process {} ({name})", self.pid),
            None => write!(f, "process {}", self.pid),
        }
    }
}

/// The first failed write or sync of a log: from then on nothing more becomes durable.
#[derive(Clone, Debug)]
pub struct Poison(pub(crate) Arc<PoisonCause>);

#[derive(Debug)]
pub(crate) struct PoisonCause {
    pub(crate) durable: Lsn,
    pub(crate) cause: PoisonKind,
}

#[derive(Debug)]
pub(crate) enum PoisonKind {
    Io(IoError),
    Panic(String),
}

impl Poison {
    pub(crate) fn io(durable: Lsn, error: IoError) -> Self {
        Poison(Arc::new(PoisonCause { durable, cause: PoisonKind::Io(error) }))
    }

    pub(crate) fn panic(durable: Lsn, message: String) -> Self {
        Poison(Arc::new(PoisonCause { durable, cause: PoisonKind::Panic(message) }))
    }

    /// The last record that is durable; it never moves again.
    pub fn durable_lsn(&self) -> Lsn {
        self.0.durable
    }

    /// The failed call, where a call failed (a bug in the writer thread has none).
    pub fn io_error(&self) -> Option<&IoError> {
        match &self.0.cause {
            PoisonKind::Io(error) => Some(error),
            PoisonKind::Panic(_) => None,
        }
    }
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.cause {
            PoisonKind::Io(error) => error.fmt(f)?,
            PoisonKind::Panic(message) => write!(f, "the writer thread panicked: {message}")?,
        }
        write!(
            f,
            "; writing has ended, records up to {} are durable, reopen the log to go on",
            self.0.durable
        )
    }
}

impl std::error::Error for Poison {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.io_error().map(|error| error as _)
    }
}

/// Why a record was not accepted. It has no number and will never be in the log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AppendError {
    /// There is no room now: in the rings, in the budget for large records, or because the next
    /// segment is still being prepared. Only the `try_` calls return it.
    Full,
    /// There was no room within the given time: see [`Full`](Self::Full).
    TimedOut,
    /// The record or batch is larger than any that this log takes.
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The largest that fits, in bytes.
        max: usize,
    },
    /// The system has no memory for a record too large for a ring.
    OutOfMemory {
        /// The bytes that were asked for.
        bytes: usize,
    },
    /// A record of a batch gave other bytes when its `as_ref` was called a second time.
    RecordChanged,
    /// A batch without records, which would have no number.
    EmptyBatch,
    /// No space on the file system (or no file descriptor, or no memory) for further segments. Nothing
    /// accepted is lost; appends work again once there is.
    NoSpace,
    /// The log was truncated after this reservation was made. What it was to follow may be gone.
    Truncated,
    /// The log is closed.
    Closed,
    /// A write or a sync failed earlier.
    Poisoned(Poison),
    /// This is a forked child of the process that opened the log.
    Forked,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("no room in the rings now; wait for the writer, or try later"),
            Self::TimedOut => f.write_str("there was no room in the rings for the given time"),
            Self::TooLarge { bytes, max } => write!(
                f,
                "{bytes} bytes are too many for one record or batch of this log, which takes {max}; \
                 split it, or raise segment_bytes and large_bytes_max"
            ),
            Self::OutOfMemory { bytes } => write!(
                f,
                "no memory for a buffer of {bytes} bytes; lower large_bytes_max or free some"
            ),
            Self::RecordChanged => f.write_str(
                "a record of the batch changed its length meanwhile; its `as_ref` must not",
            ),
            Self::EmptyBatch => f.write_str("a batch must have at least one record"),
            Self::NoSpace => f.write_str(
                "no space on the file system (or no file descriptor, or memory) for further segments; \
                 free some, appends go on then",
            ),
            Self::Truncated => f.write_str(
                "the log was truncated after the reservation was made; reserve again if the record \
                 is still wanted",
            ),
            Self::Closed => f.write_str("the log is closed"),
            Self::Poisoned(poison) => poison.fmt(f),
            Self::Forked => f.write_str(FORKED),
        }
    }
}

const FORKED: &str =
    "this process was forked from the one that opened the log; open the log here instead";

impl std::error::Error for AppendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Poisoned(poison) => Some(poison),
            _ => None,
        }
    }
}

/// Why waiting for a record ended without it being durable.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WaitError {
    /// The given time passed first. The record may still become durable.
    TimedOut,
    /// The record was cut off again by `truncate_after`.
    Truncated {
        /// The last record that was kept.
        last: Lsn,
    },
    /// The log was closed and never gave out this number.
    Closed,
    /// A write or a sync failed; the record may or may not be there when the log is opened again.
    Poisoned(Poison),
    /// This is a forked child of the process that opened the log.
    Forked,
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("the record was not durable within the given time"),
            Self::Truncated { last } => {
                write!(f, "the log was truncated after record {last}; the record is gone")
            }
            Self::Closed => f.write_str("the log was closed before it reached this number"),
            Self::Poisoned(poison) => poison.fmt(f),
            Self::Forked => f.write_str(FORKED),
        }
    }
}

impl std::error::Error for WaitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Poisoned(poison) => Some(poison),
            _ => None,
        }
    }
}

/// Why a record could not be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// Durable data is damaged.
    Damaged(Damage),
    /// The log no longer holds this number: what it holds starts later.
    Trimmed {
        /// The first number that the log still holds.
        first: Lsn,
    },
    /// What the reader had before it was cut by `truncate_after`: it had read records that are not in
    /// the log any more, or stood behind them. A new reader starts in what is there now.
    Truncated {
        /// The last record that was kept. In another process than the writer's it may be an earlier one,
        /// below the log's first, where the segments that would tell were trimmed since.
        last: Lsn,
    },
    /// There is no log in the directory.
    NotFound {
        /// The log's directory.
        dir: PathBuf,
    },
    /// A file in the directory is not what its name says.
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused something.
    Io(IoError),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(damage) => damage.fmt(f),
            Self::Trimmed { first } => {
                write!(f, "the record is no longer in the log, which starts at {first}")
            }
            Self::Truncated { last } => write!(
                f,
                "the log was truncated after record {last}; start a new reader at a number that it \
                 still holds"
            ),
            Self::NotFound { dir } => write!(f, "there is no log in {}", dir.display()),
            Self::Foreign { path, reason } => {
                write!(f, "{} does not belong here: {reason}; move it away", path.display())
            }
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Damaged(damage) => Some(damage),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl OpenError {
    /// The same failure, met while a directory was opened for reading only.
    pub(crate) fn into_read_error(self) -> ReadError {
        match self {
            OpenError::NotFound { dir } => ReadError::NotFound { dir },
            OpenError::Foreign { path, reason } => ReadError::Foreign { path, reason },
            OpenError::Damaged(damage) => ReadError::Damaged(damage),
            OpenError::Io(error) => ReadError::Io(error),
            // Reading takes no lock and no options, and needs nothing of the machine.
            other => ReadError::Foreign { path: PathBuf::new(), reason: other.to_string() },
        }
    }
}

impl From<IoError> for ReadError {
    fn from(error: IoError) -> Self {
        ReadError::Io(error)
    }
}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> Self {
        ReadError::Damaged(damage)
    }
}

/// Why closing did not end well. The log is closed all the same.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CloseError {
    /// A write or a sync failed, now or earlier.
    Poisoned(Poison),
    /// This is a forked child of the process that opened the log; the log is still open there.
    Forked,
}

impl fmt::Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poisoned(poison) => poison.fmt(f),
            Self::Forked => f.write_str(FORKED),
        }
    }
}

impl std::error::Error for CloseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Poisoned(poison) => Some(poison),
            Self::Forked => None,
        }
    }
}
