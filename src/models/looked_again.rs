//! Models of values that one thread hands on to the next, or that are looked at a second time.

use loom::sync::Arc;
use loom::thread;

use super::{check_published, model, publish};
use crate::commit::{Commit, Level};
use crate::numbers::Numbers;
use crate::options::Idle;
use crate::ring::{Ring, UNIT_BYTES};
use crate::waiters::Waiters;

/// The head that one producer saw serves another, which never looks at the head itself. Legal: each claim
/// finds room or does not; neither writes to a unit that the writer still reads.
#[test]
fn a_head_that_another_producer_saw_is_as_good() {
    model(2, || {
        let ring = Arc::new(Ring::new(2 * UNIT_BYTES));
        let numbers = Arc::new(Numbers::new(1));
        publish(&ring, &numbers, 1).unwrap();
        publish(&ring, &numbers, 2).unwrap();
        let producers: Vec<_> = [0x33, 0x44]
            .into_iter()
            .map(|mark| {
                let (ring, numbers) = (ring.clone(), numbers.clone());
                thread::spawn(move || publish(&ring, &numbers, mark))
            })
            .collect();
        assert!(check_published(&ring, 0) && check_published(&ring, 1));
        ring.give_back(2);
        let taken =
            producers.into_iter().map(|p| p.join().unwrap()).filter(Option::is_some).count();
        assert_eq!(check_published(&ring, 2), taken > 0);
        assert_eq!(check_published(&ring, 3), taken > 1);
    });
}

/// A record becomes durable, and then the log ends, while somebody asks for it. Legal: Ok, whatever of the
/// two the waiter saw first.
#[test]
fn what_was_done_before_the_end_is_ok() {
    model(2, || {
        let commit = Arc::new(Commit::new(0));
        let waiter = {
            let commit = commit.clone();
            thread::spawn(move || commit.wait(1, Level::Acked, None, Idle::Park, || None))
        };
        commit.advance(Level::Acked, 1);
        commit.end(None);
        Waiters::default().wake_all(&commit);
        assert!(waiter.join().unwrap().is_ok());
    });
}
