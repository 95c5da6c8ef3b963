//! Waiting as a task: the waker in the node, registered and replaced while the writer wakes.

use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::task::Wake;

use loom::sync::Arc;
use loom::sync::Notify;
use loom::thread;

use super::{model, wake_done};
use crate::commit::{Commit, Level};
use crate::waiters::{Waiters, Waiting};

/// The smallest executor: polls, and sleeps until it is woken.
struct Task(Notify);

impl Wake for Task {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.notify();
    }
}

fn run(commit: &Commit, lsn: u64, wakers: usize) -> bool {
    let tasks: Vec<_> = (0..wakers).map(|_| std::sync::Arc::new(Task(Notify::new()))).collect();
    let mut waiting = pin!(Waiting::new());
    for turn in 0.. {
        // Polled by one task, then by another, as when a future moves.
        let task = &tasks[turn.min(wakers - 1)];
        let waker = Waker::from(task.clone());
        let mut context = Context::from_waker(&waker);
        if let Poll::Ready(outcome) = waiting.poll(commit, lsn, Level::Acked, &mut context) {
            return outcome.is_ok();
        }
        if turn >= wakers - 1 {
            task.0.wait();
        }
    }
    unreachable!()
}

/// A task waits for a number while the writer makes it durable. Legal: it is ready, after one poll or
/// after being woken. Illegal, and found as a deadlock: nobody wakes it.
#[test]
fn a_task_is_never_left_behind() {
    model(2, || {
        let commit = Arc::new(Commit::new(0));
        let waiter = {
            let commit = commit.clone();
            thread::spawn(move || assert!(run(&commit, 1, 1)))
        };
        commit.advance(Level::Acked, 1);
        wake_done(&commit);
        waiter.join().unwrap();
    });
}

/// The same with a future that is polled by a second task before the first was woken: the last one to
/// poll is woken.
#[test]
fn the_last_task_to_poll_is_woken() {
    model(2, || {
        let commit = Arc::new(Commit::new(0));
        let waiter = {
            let commit = commit.clone();
            thread::spawn(move || assert!(run(&commit, 1, 2)))
        };
        commit.advance(Level::Acked, 1);
        wake_done(&commit);
        waiter.join().unwrap();
    });
}

/// The end comes while a task registers: it gets the error.
#[test]
fn the_end_reaches_a_task() {
    model(2, || {
        let commit = Arc::new(Commit::new(0));
        let waiter = {
            let commit = commit.clone();
            thread::spawn(move || assert!(!run(&commit, 1, 1)))
        };
        commit.end(None);
        Waiters::default().wake_all(&commit);
        waiter.join().unwrap();
    });
}

/// A wait is given up while the writer wakes it: nobody is harmed, and nothing is freed too early.
#[test]
fn a_wait_that_is_given_up_harms_nobody() {
    model(3, || {
        let commit = Arc::new(Commit::new(0));
        let waiter = {
            let commit = commit.clone();
            thread::spawn(move || {
                let mut waiting = Waiting::new();
                let mut context = Context::from_waker(Waker::noop());
                let _pending = waiting.poll(&commit, 1, Level::Acked, &mut context);
            })
        };
        commit.advance(Level::Acked, 1);
        wake_done(&commit);
        waiter.join().unwrap();
    });
}
