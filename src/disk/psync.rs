//! Plain system calls: [`Disk`] for where io_uring is refused, or loses. One operation at a time,
//! carried out by the thread that waits for it.

use std::io;
use std::time::{Duration, Instant};

use rustix::io::ReadWriteFlags;

use super::os::{file_fd, write_align, write_all_at};
use super::{DeviceFacts, Disk, Done, File, Method, Op, OpKind};
use crate::probes::stage;

/// The disk. Submitting only takes the operation in; reaping with `wait` executes it.
pub(crate) struct Psync {
    method: Method,
    align: usize,
    pending: Option<Op>,
    /// The file system has refused RWF_DSYNC: fdatasync does it from then on.
    dsync_refused: bool,
}

impl Psync {
    /// A disk with one of the two pwrite methods.
    pub(crate) fn new(method: Method, facts: &DeviceFacts) -> Self {
        debug_assert!(!method.is_ring());
        Psync { method, align: write_align(facts), pending: None, dsync_refused: false }
    }

    /// Whether durable writes fell back from RWF_DSYNC to fdatasync.
    pub(crate) fn dsync_refused(&self) -> bool {
        self.dsync_refused
    }

    /// Carries out one durable or plain write; returns how long it took without its sync.
    #[cfg_attr(not(feature = "usdt"), allow(unused_variables))]
    fn write(
        &mut self,
        token: u64,
        file: &dyn File,
        offset: u64,
        bytes: &[u8],
        durable: bool,
    ) -> io::Result<Duration> {
        let fd = file_fd(file)?;
        if durable && self.method == Method::PwriteDsync && !self.dsync_refused {
            stage!(sync, token, crate::probes::WITH_WRITE);
            match write_all_at(fd, offset, bytes, self.align, ReadWriteFlags::DSYNC) {
                // Refused as a whole, so nothing was written, and no sync has failed.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) =>
                {
                    self.dsync_refused = true;
                }
                result => return result.map(|()| Duration::ZERO),
            }
        }
        let start = Instant::now();
        write_all_at(fd, offset, bytes, self.align, ReadWriteFlags::empty())?;
        let write_took = if durable { start.elapsed() } else { Duration::ZERO };
        if durable {
            stage!(sync, token, crate::probes::BLOCKING);
            // Never tried again: after a failed sync the kernel may report success over lost data.
            rustix::fs::fdatasync(fd)?;
        }
        Ok(write_took)
    }
}

impl Disk for Psync {
    fn depth_max(&self) -> usize {
        1
    }

    fn submit(&mut self, op: Op) {
        debug_assert!(self.pending.is_none(), "one operation at a time");
        self.pending = Some(op);
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        if !wait {
            return;
        }
        let Some(Op { token, file, kind }) = self.pending.take() else { return };
        done.push(match kind {
            OpKind::Write { offset, buf, len, durable } => {
                let written = match buf.get(..len) {
                    Some(bytes) => self.write(token, &*file, offset, bytes, durable),
                    None => Err(io::ErrorKind::InvalidInput.into()),
                };
                let write_took = *written.as_ref().unwrap_or(&Duration::ZERO);
                Done { token, buf: Some(buf), result: written.map(|_| ()), write_took }
            }
            OpKind::Sync => {
                stage!(sync, token, crate::probes::BLOCKING);
                let result = file_fd(&*file).and_then(|fd| Ok(rustix::fs::fdatasync(fd)?));
                Done { token, buf: None, result, write_took: Duration::ZERO }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::os::tests::{OsDir, reap_one, write_op};
    use super::super::{Access, Store};
    use super::*;

    #[test]
    fn both_methods_write_and_sync() {
        let Some(dir) = OsDir::new() else { return };
        for method in [Method::PwriteDsync, Method::PwriteFdatasync] {
            let mut disk = Psync::new(method, dir.store.facts());
            dir.check_writes(&mut disk, method.name());
        }
    }

    #[test]
    fn nothing_is_executed_before_the_wait() {
        let Some(dir) = OsDir::new() else { return };
        let file = dir.file("a", 1 << 16);
        let mut disk = Psync::new(Method::PwriteDsync, dir.store.facts());
        disk.submit(write_op(1, &file, 0, 4096, 7, true));
        let mut done = Vec::new();
        disk.reap(false, &mut done);
        assert!(done.is_empty());
        assert_eq!(dir.read(&file, 0, 4096), vec![0; 4096]);
        assert!(reap_one(&mut disk).result.is_ok());
        assert_eq!(dir.read(&file, 0, 4096), vec![7; 4096]);
    }

    #[test]
    fn a_refused_write_gives_the_buffer_back() {
        let Some(dir) = OsDir::new() else { return };
        dir.file("a", 1 << 16);
        let file = dir.store.open("a", Access::Read).unwrap();
        let mut disk = Psync::new(Method::PwriteDsync, dir.store.facts());
        disk.submit(write_op(1, &file, 0, 4096, 7, true));
        let done = reap_one(&mut disk);
        assert_eq!(done.result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(done.buf.unwrap().len(), 4096);
    }
}
