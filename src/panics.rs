//! Panics in the log's own threads: whoever waits gets the typed error, closing and dropping come to an
//! end, and what was acknowledged is there afterwards. The panics come from a store that wraps the real one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::clock::Clock;
use crate::disk::os::OsStore;
use crate::disk::{
    Access, BackendInfo, DeviceFacts, Disk, Done, File, LockError, LockGuard, Op, Store,
};
use crate::error::{AppendError, CloseError, IoError, OpenError, WaitError};
use crate::log::{Log, Parts};
use crate::mem::AlignedBuf;
use crate::options::{BackendChoice, Options};
use crate::segment::system_entropy;
use crate::truncate::TruncateError;
use crate::{FollowError, Lsn};

/// Nobody waits so long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the next panic comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
enum Place {
    /// In the writer, before the disk has the batch.
    Submit = 1,
    /// In the writer, while the disk works on a batch.
    Reap = 2,
    /// In the preparer, with the files in hand.
    Prepare = 3,
    /// In the writer in the middle of a truncation, with the files in hand.
    Cut = 4,
}

struct Panicky {
    store: Arc<OsStore>,
    armed: Arc<AtomicU32>,
}

fn panic_if(armed: &AtomicU32, place: Place) {
    let place = place as u32;
    if armed.compare_exchange(place, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        panic!("as the test wants it");
    }
}

impl Store for Panicky {
    fn path(&self, name: &str) -> PathBuf {
        self.store.path(name)
    }
    fn facts(&self) -> &DeviceFacts {
        self.store.facts()
    }
    fn lock(&self) -> Result<LockGuard, LockError> {
        self.store.lock()
    }
    fn lock_cursors(&self) -> Result<LockGuard, IoError> {
        self.store.lock_cursors()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.store.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.store.create(name)
    }
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.store.open(name, access)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match std::thread::current().name() {
            Some("uringlog-prepare") => panic_if(&self.armed, Place::Prepare),
            Some("uringlog-writer") => panic_if(&self.armed, Place::Cut),
            _ => {}
        }
        self.store.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.store.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.store.sync_dir()
    }
    fn disk(self: Arc<Self>, options: &Options) -> Result<(Box<dyn Disk>, BackendInfo), OpenError> {
        let (disk, info) = self.store.clone().disk(options)?;
        Ok((Box::new(PanickyDisk { disk, armed: self.armed.clone() }), info))
    }
}

struct PanickyDisk {
    disk: Box<dyn Disk>,
    armed: Arc<AtomicU32>,
}

impl Disk for PanickyDisk {
    fn depth_max(&self) -> usize {
        self.disk.depth_max()
    }
    fn submit(&mut self, op: Op) {
        panic_if(&self.armed, Place::Submit);
        self.disk.submit(op);
    }
    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        if wait {
            panic_if(&self.armed, Place::Reap);
        }
        self.disk.reap(wait, done);
    }
    fn register_buffers(&mut self, bufs: &[AlignedBuf]) -> bool {
        self.disk.register_buffers(bufs)
    }
}

fn options(choice: BackendChoice) -> Options {
    Options::new()
        .segment_bytes(256 << 10)
        .segments_ready(1)
        .rings(1)
        .ring_bytes(16 << 10)
        .batch_bytes_max(64 << 10)
        .large_bytes_max(128 << 10)
        .calibrate(false)
        .buffered(true)
        .backend(choice)
}

fn panic_at(place: Place, choice: BackendChoice) {
    let temp = tempfile::tempdir().unwrap();
    let armed = Arc::new(AtomicU32::new(0));
    let store = OsStore::open(temp.path(), true, true).unwrap();
    let store: Arc<dyn Store> = Arc::new(Panicky { store, armed: armed.clone() });
    let clock = Clock::system();
    let parts = Parts::assemble(store, &options(choice), clock, Arc::new(system_entropy)).unwrap();
    let log = match parts.start(options(choice)) {
        Ok(log) => log,
        Err(error) => return eprintln!("skipped: {choice:?}: {error}"),
    };
    for _ in 0..20 {
        log.append(b"acknowledged").unwrap().wait().unwrap();
    }
    // Those who wait when it comes. Each says what it got.
    let (sender, got) = channel();
    let waits = |who: &'static str, wait: Box<dyn FnOnce(&Log) -> bool + Send>| {
        let (log, sender) = (log.clone(), sender.clone());
        std::thread::spawn(move || sender.send((who, wait(&log))).unwrap());
    };
    let is_poison = |outcome: Result<(), WaitError>| matches!(outcome, Err(WaitError::Poisoned(_)));
    let far = Lsn::new(1 << 40);
    waits("waits for a number", Box::new(move |log| is_poison(log.wait_durable(far))));
    waits(
        "follows",
        Box::new(|log| {
            let mut follower = log.follow(Lsn::FIRST).unwrap();
            loop {
                match follower.recv() {
                    Ok(Some(_)) => {}
                    Err(FollowError::Poisoned(_)) => return true,
                    _ => return false,
                }
            }
        }),
    );
    for _ in 0..3 {
        waits(
            "appends",
            Box::new(|log| {
                loop {
                    match log.append(&[7; 500]) {
                        Ok(_) => {}
                        Err(AppendError::Poisoned(_)) => return true,
                        Err(_) => return false,
                    }
                }
            }),
        );
    }
    waits(
        "waits for a ticket, as a task",
        Box::new(|log| {
            loop {
                match log.append(b"task").map(futures_executor::block_on) {
                    Ok(Ok(_)) => {}
                    Ok(Err(WaitError::Poisoned(_))) | Err(AppendError::Poisoned(_)) => return true,
                    _ => return false,
                }
            }
        }),
    );
    // Each of the waiters waits by then, or is just about to.
    std::thread::sleep(Duration::from_millis(20));
    armed.store(place as u32, Ordering::Relaxed);
    if place == Place::Cut {
        // The one who asked gets an error too; whether it was cut shows when the log is opened again.
        let cut = log.truncate_after(Lsn::new(10));
        assert!(matches!(cut, Err(TruncateError::Closed | TruncateError::Poisoned(_))), "{cut:?}");
    }
    for _ in 0..6 {
        let (who, is_right) = got.recv_timeout(PATIENCE).expect("everybody is told");
        assert!(is_right, "{place:?}: {who}: another error");
    }
    let poison = log.poison().expect("it is poisoned").to_string();
    assert!(poison.contains("panicked"), "{poison}");
    // Who comes late is told at once.
    assert!(is_poison(log.wait_durable(far)));
    assert!(log.trim(Lsn::new(5)).is_err() && log.truncate_after(Lsn::new(5)).is_err());
    let (log, durable) = (log.clone(), log.durable_lsn());
    let (sender, closed) = channel();
    std::thread::spawn(move || {
        let closed = log.clone().close();
        drop(log);
        sender.send(closed).unwrap();
    });
    let closed = closed.recv_timeout(PATIENCE).expect("closing comes to an end");
    assert!(matches!(closed, Err(CloseError::Poisoned(_))));
    // The other handles of those who waited are gone by now, or soon.
    let reopened = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        options(choice).open(temp.path()).ok()
    });
    let log = reopened.expect("it opens again");
    let kept = if place == Place::Cut { log.last_lsn() } else { durable };
    assert!(log.last_lsn() >= kept && log.last_lsn() >= Lsn::new(10));
    log.append(b"and on").unwrap().wait().unwrap();
    log.close().unwrap();
}

#[test]
fn a_panic_in_the_writer_or_the_preparer_poisons_and_everybody_is_told() {
    for choice in [BackendChoice::Psync, BackendChoice::Uring] {
        for place in [Place::Submit, Place::Reap, Place::Prepare, Place::Cut] {
            panic_at(place, choice);
        }
    }
}
