//! Tells a forked child from the process that opened the log, with one load and no system call.
//!
//! A page that the kernel wipes in every child (MADV_WIPEONFORK) holds the number of the process'
//! life. A guard remembers the number it was made under: in a child the page reads 0, which no
//! guard remembers. A child that opens a log of its own draws a new number, so that guards it
//! inherited stay forked and its own are not.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mem;

/// Made when a log is opened; knows ever after whether it is still in the process that did.
#[derive(Clone, Copy)]
pub(crate) struct ForkGuard {
    mark: Mark,
}

#[derive(Clone, Copy)]
enum Mark {
    /// The word that a fork wipes, and what it held when the guard was made.
    Life { word: &'static AtomicU64, life: u64 },
    /// Where the kernel cannot wipe: the process id, at the price of a system call a check.
    Pid(u32),
}

impl ForkGuard {
    pub(crate) fn new() -> Self {
        static WORD: OnceLock<Option<&'static AtomicU64>> = OnceLock::new();
        match *WORD.get_or_init(mem::wipe_on_fork_word) {
            Some(word) => ForkGuard { mark: Mark::Life { word, life: current_life(word) } },
            None => ForkGuard { mark: Mark::Pid(std::process::id()) },
        }
    }

    /// Whether this process is a forked child (or a later descendant) of the guard's maker.
    #[inline]
    pub(crate) fn forked(&self) -> bool {
        match self.mark {
            // Relaxed, here and below: within one process the word never changes again once a guard
            // has seen it; only a fork, which has one thread on the other side, resets it.
            Mark::Life { word, life } => word.load(Ordering::Relaxed) != life,
            Mark::Pid(pid) => std::process::id() != pid,
        }
    }
}

/// The number of this process' life, drawn now if a fork wiped the last one. A child inherits the
/// counter, so its number is none that any of its inherited guards can hold.
fn current_life(word: &AtomicU64) -> u64 {
    static NEXT_LIFE: AtomicU64 = AtomicU64::new(1);
    let life = word.load(Ordering::Relaxed);
    if life != 0 {
        return life;
    }
    let drawn = NEXT_LIFE.fetch_add(1, Ordering::Relaxed);
    match word.compare_exchange(0, drawn, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => drawn,
        Err(other) => other,
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;

    /// Runs `child` in a forked child and returns whether it said yes.
    fn in_child(child: impl FnOnce() -> bool) -> bool {
        // SAFETY: the child only loads, stores and forks again before it leaves by `_exit`.
        match unsafe { libc::fork() } {
            0 => {
                let code = if child() { 0 } else { 1 };
                // SAFETY: ends the child at once, without running the parent's destructors.
                unsafe { libc::_exit(code) }
            }
            pid => {
                assert!(pid > 0, "fork failed");
                let mut status = 0;
                // SAFETY: `pid` is our own child, and `status` outlives the call.
                assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
                libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
            }
        }
    }

    #[test]
    fn every_generation_knows_its_own_guards_only() {
        let guard = ForkGuard::new();
        assert!(matches!(guard.mark, Mark::Life { .. }), "this kernel wipes on fork");
        assert!(!guard.forked());
        assert!(in_child(|| {
            let first_look = guard.forked();
            let own = ForkGuard::new();
            first_look
                && guard.forked()
                && !own.forked()
                && in_child(|| {
                    let first_look = guard.forked() && own.forked();
                    let third = ForkGuard::new();
                    first_look && guard.forked() && own.forked() && !third.forked()
                })
                && !own.forked()
        }));
        assert!(!guard.forked());
        assert!(!ForkGuard::new().forked());
    }

    #[test]
    fn the_process_id_does_where_nothing_is_wiped() {
        let guard = ForkGuard { mark: Mark::Pid(std::process::id()) };
        assert!(!guard.forked());
        assert!(in_child(|| guard.forked()));
    }
}
