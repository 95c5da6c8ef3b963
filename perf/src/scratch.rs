//! The temporary directory of a benchmark, and the pre-written files in it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::buffer::HugeBuf;
use crate::error::Error;

/// A directory that is removed when it is dropped.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one in `dir`, or on the file system of the working directory.
    pub fn create(dir: Option<&Path>) -> Result<Self, Error> {
        let base = match dir {
            Some(dir) => dir.to_owned(),
            None if Path::new("target").is_dir() => PathBuf::from("target"),
            None => PathBuf::from("."),
        };
        let base = fs::create_dir_all(&base)
            .and_then(|()| fs::canonicalize(&base))
            .map_err(|error| Error::file("use", &base, error))?;
        let path = base.join(format!("uringlog-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| Error::file("create", &path, error))?;
        Ok(Scratch { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the file system has left for this user.
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.path)
            .map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody to tell it to: what is left lies under `target` or where the caller asked for it.
        _ = fs::remove_dir_all(&self.path);
    }
}

/// A file whose every byte was written and synced once, so that writing it again changes no
/// metadata: what the log's own segments are.
pub struct WrittenFile {
    /// Open for reading and writing.
    pub file: File,
    /// Where it is.
    pub path: PathBuf,
    /// Its length, a multiple of [`STEP_BYTES`].
    pub bytes: u64,
}

/// What a file is written in, first and raw.
pub const STEP_BYTES: usize = 4 << 20;

impl WrittenFile {
    /// Writes a new file of `bytes_max`, or less where that takes longer than `time_max`, for
    /// direct I/O where `direct`.
    pub fn create(
        path: PathBuf,
        bytes_max: u64,
        time_max: Duration,
        direct: bool,
    ) -> Result<Self, Error> {
        let flags = if direct { OFlags::DIRECT.bits() as i32 } else { 0 };
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .custom_flags(flags)
            .open(&path)
            .map_err(|error| Error::file("create", &path, error))?;
        let mut made = WrittenFile { file, path, bytes: 0 };
        match made.fill(bytes_max, time_max) {
            Ok(()) => Ok(made),
            Err(error) => Err(Error::file("write", &made.path, error)),
        }
    }

    fn fill(&mut self, bytes_max: u64, time_max: Duration) -> io::Result<()> {
        let zeros = HugeBuf::new(STEP_BYTES, 0)?;
        let started = Instant::now();
        while self.bytes < bytes_max && (self.bytes == 0 || started.elapsed() < time_max) {
            self.file.write_all_at(&zeros, self.bytes)?;
            self.bytes += STEP_BYTES as u64;
        }
        self.file.sync_all()
    }
}
