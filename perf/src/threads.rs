//! Threads of which all run or none: those that are started wait for the others at barriers, and would wait for ever
//! where the system refused one.

use std::sync::{PoisonError, RwLock};
use std::thread::{Builder, Scope};

use crate::error::Error;

/// What they wait for before they begin.
#[derive(Default)]
pub(crate) struct Threads {
    all_started: RwLock<bool>,
}

impl Threads {
    /// Starts a thread for each of `works`. If the system refuses one, none of them does its work.
    pub(crate) fn start<'scope, 'env, W: FnOnce() + Send + 'scope>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        works: impl Iterator<Item = W>,
    ) -> Result<(), Error> {
        let mut all_started = self.all_started.write().unwrap_or_else(PoisonError::into_inner);
        for (number, work) in works.enumerate() {
            let thread = Builder::new().spawn_scoped(scope, move || {
                let all_started = *self.all_started.read().unwrap_or_else(PoisonError::into_inner);
                if all_started {
                    work();
                }
            });
            thread.map_err(|error| {
                Error::Failed(format!(
                    "cannot start a thread beside {number} others: {error}; raise the limit of threads \
                     (ulimit -u, the container's pids limit), or take fewer producers"
                ))
            })?;
        }
        *all_started = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn all_begin_once_all_are_there() {
        let (threads, barrier, count) = (Threads::default(), Barrier::new(5), AtomicUsize::new(0));
        thread::scope(|scope| {
            let work = || {
                barrier.wait();
                count.fetch_add(1, Ordering::Relaxed);
            };
            threads.start(scope, (0..5).map(|_| work)).expect("five threads");
        });
        assert_eq!(count.into_inner(), 5);
    }
}
