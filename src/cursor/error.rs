//! Why something could not be done with a cursor.

use core::fmt;
use std::path::PathBuf;

use super::NAME_BYTES_MAX;
use crate::error::{Damage, IoError, ReadError};
use crate::lsn::Lsn;
use crate::segment::ScanError;

/// Why a cursor could not be opened, moved or removed. Unless said otherwise it stands where it stood.
#[derive(Debug)]
#[non_exhaustive]
pub enum CursorError {
    /// The name is none: 1 to 100 bytes of `[A-Za-z0-9._-]`, not starting with `.` or `-`.
    InvalidName {
        /// What was given.
        name: String,
    },
    /// There is no cursor of that name, or it was removed since the handle was made.
    NotFound {
        /// The cursor's name.
        name: String,
    },
    /// There is no log in the directory.
    NoLog {
        /// The directory.
        dir: PathBuf,
    },
    /// The log starts later than where the cursor should go.
    Trimmed {
        /// The first number that the log still holds.
        first: Lsn,
    },
    /// A cursor stands at most one behind the last record that is durable.
    BeyondEnd {
        /// The last record that is known to be durable.
        durable: Lsn,
    },
    /// The log was truncated since this handle last looked: what the cursor should pass was cut. The
    /// handle stands where the cursor was taken back to, and may go on from there.
    Truncated {
        /// The last record that was kept.
        last: Lsn,
    },
    /// The cursor's file, or the log's mark, is damaged. Removing the cursor and making it anew mends
    /// the former.
    Damaged(Damage),
    /// A file is not what its name says: the cursor of another log, a symbolic link.
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// This is a forked child of the process that opened the cursor or the log.
    Forked,
    /// The system refused something. If it was a write, either position may be found again.
    Io(IoError),
}

impl fmt::Display for CursorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidName { name } => write!(
                f,
                "{name:?} is no name for a cursor: 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or \
                 '-', the first not '.' or '-'"
            ),
            Self::NotFound { name } => write!(f, "there is no cursor {name:?}"),
            Self::NoLog { dir } => write!(f, "there is no log in {}", dir.display()),
            Self::Trimmed { first } => {
                write!(f, "the log starts at {first}; a cursor cannot stand before that")
            }
            Self::BeyondEnd { durable } => write!(
                f,
                "the last durable record is {durable}; a cursor stands at most at {}",
                durable.next()
            ),
            Self::Truncated { last } => write!(
                f,
                "the log was truncated after record {last}, below where the cursor should go; go on \
                 from {}",
                last.next()
            ),
            Self::Damaged(damage) => damage.fmt(f),
            Self::Foreign { path, reason } => {
                write!(f, "{} does not belong here: {reason}; move it away", path.display())
            }
            Self::Forked => f.write_str(
                "this process was forked from the one that opened the cursor; open it here instead",
            ),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CursorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Damaged(damage) => Some(damage),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<IoError> for CursorError {
    fn from(error: IoError) -> Self {
        CursorError::Io(error)
    }
}

impl From<ScanError> for CursorError {
    fn from(error: ScanError) -> Self {
        ReadError::from(error).into()
    }
}

impl From<ReadError> for CursorError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged(damage) => CursorError::Damaged(damage),
            ReadError::Foreign { path, reason } => CursorError::Foreign { path, reason },
            ReadError::NotFound { dir } => CursorError::NoLog { dir },
            ReadError::Trimmed { first } => CursorError::Trimmed { first },
            ReadError::Truncated { last } => CursorError::Truncated { last },
            ReadError::Io(error) => CursorError::Io(error),
        }
    }
}
