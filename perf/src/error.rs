//! What can go wrong while measuring.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uringlog::{AppendError, CloseError, OpenError, TrimError, WaitError};

/// Why a measurement ended without a result.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// It was asked to stop: [`Stop`].
    Interrupted,
    /// A file of the measurement's own could not be used.
    File {
        /// What was tried: "create", "write", "read".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The log could not be opened.
    Open(OpenError),
    /// Anything else, told in words: what failed and why.
    Failed(String),
}

impl Error {
    /// A failure on one of the measurement's own files.
    pub fn file(action: &'static str, path: &Path, error: io::Error) -> Self {
        Error::File { action, path: path.to_owned(), error }
    }

    /// Memory for buffers could not be had.
    pub fn memory(error: &io::Error) -> Self {
        Error::Failed(format!("cannot allocate a buffer: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Interrupted => f.write_str("interrupted; the temporary directory is removed"),
            Error::File { action, path, error } => {
                write!(f, "cannot {action} {}: {error}", path.display())
            }
            Error::Open(error) => error.fmt(f),
            Error::Failed(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::File { error, .. } => Some(error),
            Error::Open(error) => Some(error),
            _ => None,
        }
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        Error::Open(error)
    }
}

impl From<AppendError> for Error {
    fn from(error: AppendError) -> Self {
        Error::Failed(error.to_string())
    }
}

impl From<WaitError> for Error {
    fn from(error: WaitError) -> Self {
        Error::Failed(error.to_string())
    }
}

impl From<CloseError> for Error {
    fn from(error: CloseError) -> Self {
        Error::Failed(error.to_string())
    }
}

impl From<TrimError> for Error {
    fn from(error: TrimError) -> Self {
        Error::Failed(error.to_string())
    }
}

/// Asks a measurement to stop, from a signal handler or another thread. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// One that follows `flag`: true means stop.
    pub fn following(flag: Arc<AtomicBool>) -> Self {
        Stop(flag)
    }

    /// Asks for it.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked for.
    pub fn is_raised(&self) -> bool {
        // Relaxed: nothing else is handed over with the flag.
        self.0.load(Ordering::Relaxed)
    }

    /// [`Error::Interrupted`] when it was.
    pub fn check(&self) -> Result<(), Error> {
        match self.is_raised() {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }
}
