//! Ctrl-C, SIGTERM and SIGHUP: the first asks a command to end cleanly, a second ends the process at
//! once. SIGXFSZ does nothing: a file size limit is an error of the write that meets it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::{flag, low_level};

/// Keeps a file size limit (`ulimit -f`) from ending the process: the write fails with EFBIG instead.
pub fn survive_file_size_limits() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false))).map(drop)
}

/// Tells whether the process was asked to end. Cheap to clone.
#[derive(Clone)]
pub struct Interrupt {
    raised: Arc<AtomicBool>,
    wake: Arc<UnixStream>,
}

/// What ended a pause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// The time.
    Time,
    /// A signal.
    Signal,
    /// Nobody reads the output any more.
    Closed,
}

impl Interrupt {
    /// Takes over SIGINT, SIGTERM and SIGHUP.
    pub fn install() -> io::Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        let (wake, signalled) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // The order counts: a second signal finds the flag set by the first.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&raised))?;
            flag::register(signal, Arc::clone(&raised))?;
            low_level::pipe::register(signal, signalled.try_clone()?)?;
        }
        Ok(Interrupt { raised, wake: Arc::new(wake) })
    }

    /// Whether a signal came.
    pub fn is_raised(&self) -> bool {
        // Relaxed: nothing else is handed over with the flag.
        self.raised.load(Ordering::Relaxed)
    }

    /// The flag behind it: true once a signal came.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.raised)
    }

    /// Blocks for `time`, or until a signal came or nobody reads `out` any more.
    pub fn pause(&self, out: BorrowedFd<'_>, time: Duration) -> io::Result<Woken> {
        let mut fds = [
            // Nothing is asked for: that the other end is gone is told all the same.
            PollFd::new(&out, PollFlags::empty()),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        let timeout =
            Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if self.is_raised() {
            return Ok(Woken::Signal);
        }
        let closed = fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        Ok(if closed { Woken::Closed } else { Woken::Time })
    }

    /// Blocks until `fd` can be read (or has ended) or a signal came.
    pub fn wait_readable(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let mut fds = [
            PollFd::new(&fd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
        ];
        loop {
            match poll(&mut fds, None) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) if self.is_raised() => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
