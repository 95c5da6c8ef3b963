//! Tickets as futures: on tokio, on futures' executor, on a bare poll loop; dropped, moved between
//! tasks, polled with one waker and then another.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]

mod common;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use common::{each_backend, eventually, in_time, read_all};
use uringlog::{Log, Lsn, OwnedTicket, Ticket, WaitError};

fn assert_send_static<T: Send + Sync + Unpin + 'static>(_: &T) {}

#[test]
fn on_tokio_with_many_threads() {
    each_backend(|case| {
        let log = case.open();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
        runtime.block_on(on_tokio(&log));
    });
}

#[test]
fn on_tokio_with_one_thread() {
    each_backend(|case| {
        let log = case.open();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(on_tokio(&log));
    });
}

async fn on_tokio(log: &Log) {
    for number in 1..=20 {
        assert_eq!(log.append(b"one at a time").unwrap().await.unwrap().get(), number);
        assert_eq!(log.durable_lsn().get(), number);
    }
    let tasks: Vec<_> = (0..50u8)
        .map(|task| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut last = Lsn::NONE;
                for round in 0..20 {
                    let ticket = log.append(&[task, round]).unwrap().into_owned();
                    assert_send_static(&ticket);
                    let lsn = ticket.await.unwrap();
                    assert!(lsn > last);
                    last = lsn;
                }
                let batch = log.append_batch(&[[task], [task]]).unwrap();
                let last = *batch.lsns().end();
                assert_eq!(batch.await.unwrap(), last);
                assert!(log.durable_lsn() >= last);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(log.sync().unwrap().get(), 20 + 50 * 22);
}

#[test]
fn ten_thousand_tickets_at_once() {
    each_backend(|case| {
        let log = case.open();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let tasks: Vec<_> = (1..=10_000u64)
                .map(|number| {
                    let ticket = log.append(&number.to_le_bytes()).unwrap().into_owned();
                    assert_eq!(ticket.lsn().get(), number);
                    tokio::spawn(ticket)
                })
                .collect();
            for (index, task) in tasks.into_iter().enumerate() {
                assert_eq!(task.await.unwrap().unwrap().get(), index as u64 + 1);
            }
        });
    });
}

#[test]
fn on_the_executor_of_futures() {
    each_backend(|case| {
        let log = case.open();
        for number in 1..=50 {
            let ticket = log.append(b"x").unwrap();
            assert_eq!(futures_executor::block_on(ticket).unwrap().get(), number);
        }
        let mut pool = futures_executor::LocalPool::new();
        let done = std::rc::Rc::new(std::cell::Cell::new(0));
        for _ in 0..1000 {
            let ticket = log.append(b"y").unwrap().into_owned();
            let done = done.clone();
            pool.run_until(async move {
                ticket.await.unwrap();
                done.set(done.get() + 1);
            });
        }
        assert_eq!(done.get(), 1000);
    });
}

/// A waker that counts, and wakes the thread that runs the loop.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
    count: AtomicUsize,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        *self.rung.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

fn run<F: Future>(future: F, bell: &Arc<Bell>) -> F::Output {
    let waker = Waker::from(bell.clone());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let rung = bell.rung.lock().unwrap();
        *bell.changed.wait_while(rung, |rung| !*rung).unwrap() = false;
    }
}

#[test]
fn on_a_bare_poll_loop() {
    each_backend(|case| {
        let log = case.open();
        in_time("a bare poll loop", move || {
            let bell = Arc::new(Bell::default());
            for number in 1..=200 {
                let ticket = log.append(b"x").unwrap();
                assert_eq!(run(ticket, &bell).unwrap().get(), number);
            }
            assert!(bell.count.load(Ordering::Relaxed) > 0, "it never had to wait");
            // Done already: ready at once, as often as it is asked.
            let ticket = log.append(b"y").unwrap();
            log.sync().unwrap();
            assert_eq!(run(ticket, &bell).unwrap().get(), 201);
        });
    });
}

fn poll_once(ticket: &mut OwnedTicket, bell: &Arc<Bell>) -> Poll<Result<Lsn, WaitError>> {
    let waker = Waker::from(bell.clone());
    Pin::new(ticket).poll(&mut Context::from_waker(&waker))
}

/// Each poll comes with another waker; the last one is the one that must be woken.
#[test]
fn the_last_waker_is_woken() {
    each_backend(|case| {
        let log = case.open();
        for _ in 0..300 {
            let mut ticket = log.append(b"x").unwrap().into_owned();
            let bells: Vec<_> = (0..4).map(|_| Arc::new(Bell::default())).collect();
            if bells.iter().any(|bell| poll_once(&mut ticket, bell).is_ready()) {
                continue;
            }
            let last = bells[3].clone();
            in_time("the last waker", move || {
                let rung = last.rung.lock().unwrap();
                drop(last.changed.wait_while(rung, |rung| !*rung).unwrap());
            });
            assert!(matches!(poll_once(&mut ticket, &bells[0]), Poll::Ready(Ok(_))));
        }
    });
}

#[test]
fn a_ticket_moves_between_tasks_and_ways_to_wait() {
    each_backend(|case| {
        let log = case.open();
        for _ in 0..100 {
            let bell = Arc::new(Bell::default());
            let mut ticket = log.append(b"x").unwrap().into_owned();
            let _pending_or_not = poll_once(&mut ticket, &bell);
            let on_other_thread = in_time("block on a polled ticket", move || ticket.wait());
            on_other_thread.unwrap();
            let mut ticket = log.append(b"y").unwrap().into_owned();
            let _pending_or_not = poll_once(&mut ticket, &bell);
            ticket.wait_timeout(common::PATIENCE).unwrap();
            assert!(matches!(poll_once(&mut ticket, &bell), Poll::Ready(Ok(_))));
        }
    });
}

#[test]
fn dropped_futures_take_nothing_back_and_keep_nothing() {
    each_backend(|case| {
        let log = case.open();
        let bell = Arc::new(Bell::default());
        let (mut pending, mut kept) = (0, 0);
        for _ in 0..5000 {
            let mut ticket = log.append(b"dropped").unwrap().into_owned();
            pending += usize::from(poll_once(&mut ticket, &bell).is_pending());
            drop(ticket);
            kept += Arc::strong_count(&bell) - 1;
        }
        // The writer may be just about to wake one, but as a rule it has none left.
        assert!(pending > 0 && kept <= pending / 2, "{kept} of {pending} wakers were kept");
        // Never reached, polled and dropped again and again: the writer forgets them.
        for _ in 0..5000 {
            let waiting = log.wait_durable_timeout(Lsn::new(1 << 40), std::time::Duration::ZERO);
            assert!(matches!(waiting, Err(WaitError::TimedOut)));
        }
        log.append(b"behind").unwrap().wait().unwrap();
        eventually("no waker is kept", || Arc::strong_count(&bell) == 1);
        assert_eq!(read_all(&log).len(), 5001);
    });
}

#[test]
fn futures_end_when_the_log_does() {
    each_backend(|case| {
        let log = case.open();
        let tickets: Vec<_> = (0..100).map(|_| log.append(b"x").unwrap().into_owned()).collect();
        let bell = Arc::new(Bell::default());
        log.close().unwrap();
        for (index, mut ticket) in tickets.into_iter().enumerate() {
            match poll_once(&mut ticket, &bell) {
                Poll::Ready(Ok(lsn)) => assert_eq!(lsn.get(), index as u64 + 1),
                other => panic!("{other:?}"),
            }
        }
    });
}

/// A task whose waker holds the last handle: it is dropped on the writer's own thread.
#[test]
fn the_last_handle_may_be_dropped_by_a_waker() {
    struct Owner(Mutex<Option<Log>>, Arc<Bell>);
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
            self.1.clone().wake();
        }
    }
    each_backend(|case| {
        for _ in 0..20 {
            let log = case.open();
            let bell = Arc::new(Bell::default());
            let mut ticket = log.append(b"x").unwrap().into_owned();
            let second = log.append(b"y").unwrap().into_owned();
            let waker = Waker::from(Arc::new(Owner(Mutex::new(Some(log)), bell.clone())));
            if Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)).is_ready() {
                continue;
            }
            let rung = bell.clone();
            in_time("the waker that drops the log", move || {
                let rung_now = rung.rung.lock().unwrap();
                drop(rung.changed.wait_while(rung_now, |rung| !*rung).unwrap());
            });
            assert!(matches!(poll_once(&mut ticket, &bell), Poll::Ready(Ok(_))));
            in_time("the ticket behind it", move || second.wait()).unwrap();
            // It closes by itself, and the directory is free again.
            eventually("the log is closed", || match case.options.clone().open(&case.dir) {
                Ok(log) => {
                    assert!(log.recovery().clean, "{}", log.recovery());
                    true
                }
                Err(uringlog::OpenError::Locked { .. }) => false,
                Err(error) => panic!("{error}"),
            });
        }
    });
}

#[test]
fn a_borrowed_ticket_is_a_future_too() {
    fn check<'a>(ticket: Ticket<'a>) -> impl Future<Output = Result<Lsn, WaitError>> + Send + 'a {
        ticket
    }
    each_backend(|case| {
        let log = case.open();
        let batch = log.append_batch(&["a", "b", "c"]).unwrap();
        assert_eq!(futures_executor::block_on(check(batch)).unwrap().get(), 3);
    });
}
