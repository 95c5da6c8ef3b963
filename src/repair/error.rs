//! Why a log was not repaired.

use core::fmt;
use std::path::PathBuf;

use crate::error::{IoError, LockHolder, OpenError, ReadError};
use crate::segment::ScanError;

/// Why a log was not repaired. What was changed by then is in the copy, and the log can be repaired again.
#[derive(Debug)]
#[non_exhaustive]
pub enum RepairError {
    /// A process has the log open for writing.
    Locked {
        /// The log's directory.
        dir: PathBuf,
        /// Who, where the system tells.
        holder: Option<LockHolder>,
    },
    /// No file tells which log it is: neither the mark nor the header of any segment can be read.
    Unidentified,
    /// Nothing that the log could start with stands behind the last lost record.
    NothingBehind,
    /// Nothing stands before the first lost record, and intact records would leave the log with it.
    NothingBefore,
    /// The copy and the new files need more space than there is. Nothing was changed.
    NoSpace {
        /// Where.
        dir: PathBuf,
        /// What they need, in bytes.
        needed_bytes: u64,
        /// What is free, in bytes.
        free_bytes: u64,
    },
    /// The log moved meanwhile: a writer is at work, or another repair.
    Unsteady,
    /// There is no log, or its files cannot be opened.
    Read(ReadError),
    /// The system refused something.
    Io(IoError),
}

impl RepairError {
    pub(super) fn opening(error: OpenError) -> Self {
        match error {
            OpenError::Locked { dir, holder } => RepairError::Locked { dir, holder },
            OpenError::Io(error) => RepairError::Io(error),
            error => RepairError::Read(error.into_read_error()),
        }
    }
}

impl fmt::Display for RepairError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locked { dir, holder } => {
                write!(f, "the log in {} is open for writing ", dir.display())?;
                match holder {
                    Some(holder) => write!(f, "by {holder}")?,
                    None => f.write_str("by another process")?,
                }
                f.write_str("; stop it before a repair")
            }
            Self::Unidentified => f.write_str(
                "neither the mark nor the header of any segment can be read: nothing tells which log this is, \
                 and so nothing which batches are its own; put log.mark or a segment back from a copy, and \
                 repair again",
            ),
            Self::NothingBehind => f.write_str(
                "behind the last lost record no segment begins with an intact batch: there is nothing to \
                 keep there; keep what stands before instead",
            ),
            Self::NothingBefore => f.write_str(
                "nothing stands before the first lost record, and the log can start only at a segment \
                 behind it: intact records before that leave the log; keep what stands behind (keep after) \
                 if that is right",
            ),
            Self::NoSpace { dir, needed_bytes, free_bytes } => write!(
                f,
                "what is copied and made needs {needed_bytes} bytes on the file system of {}, and \
                 {free_bytes} are free; nothing was changed. Free some, or have the copy made on another \
                 file system (copy_to, --copy-to)",
                dir.display()
            ),
            Self::Unsteady => {
                f.write_str("the log changes all the time: stop its writer before a repair")
            }
            Self::Read(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for RepairError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(error) => Some(error),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ReadError> for RepairError {
    fn from(error: ReadError) -> Self {
        RepairError::Read(error)
    }
}

impl From<IoError> for RepairError {
    fn from(error: IoError) -> Self {
        RepairError::Io(error)
    }
}

impl From<ScanError> for RepairError {
    fn from(error: ScanError) -> Self {
        RepairError::Read(error.into())
    }
}
