//! Ctrl-C and SIGTERM: the first asks a command to end cleanly, a second Ctrl-C ends the process
//! at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Tells whether the process was asked to end. Cheap to clone.
#[derive(Clone)]
pub struct Interrupt {
    raised: Arc<AtomicBool>,
    wake: Arc<UnixStream>,
}

impl Interrupt {
    /// Takes over SIGINT and SIGTERM.
    pub fn install() -> io::Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        let (wake, signalled) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM] {
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
