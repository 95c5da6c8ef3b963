//! uringlog
#![deny(unsafe_code)]

#[allow(dead_code)]
mod disk;
mod error;
#[doc(hidden)]
pub mod frame;
mod lsn;
#[allow(dead_code)]
mod mem;
mod options;

pub use disk::{DeviceFacts, Method};
pub use error::{
    AppendError, Damage, IoError, LockHolder, OpenError, Poison, ReadError, WaitError,
};
pub use lsn::Lsn;
pub use options::{BackendChoice, Durability, Idle, Options};

/// stub
pub struct Log;
impl Log {
    pub(crate) fn open_with(_: Options, _: &std::path::Path) -> Result<Log, OpenError> {
        Err(OpenError::Unsupported { what: String::new(), fix: "" })
    }
}
