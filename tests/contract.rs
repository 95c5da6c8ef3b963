//! Rules of the contract at their edges: one test each, on a real directory or on the simulated disk.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use uringlog::sim::{self, SimDisk, SimOptions, Stepper, Turn};
use uringlog::{
    AppendError, Durability, FollowError, Lsn, OpenError, Options, ReadError, SegmentState,
};

/// Nobody waits so long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_panicking_waker_harms_nobody_else() {
    struct Bad;
    impl Wake for Bad {
        fn wake(self: Arc<Self>) {
            panic!("the executor is gone");
        }
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = Options::new().segment_bytes(1 << 20).ring_bytes(1 << 16).calibrate(false);
    let log = options.buffered(true).open(dir.path().join("log")).unwrap();
    let waker = Waker::from(Arc::new(Bad));
    let (sender, waited) = channel();
    for _ in 0..4 {
        let (log, sender) = (log.clone(), sender.clone());
        std::thread::spawn(move || {
            let durable = || log.append(b"w").is_ok_and(|ticket| ticket.wait().is_ok());
            let all = (0..200).all(|_| durable());
            sender.send(all).unwrap();
        });
    }
    let mut tickets = Vec::new();
    for _ in 0..500 {
        let mut ticket = log.append(b"a").unwrap().into_owned();
        let _ready = Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker));
        tickets.push(ticket);
    }
    for _ in 0..4 {
        assert!(waited.recv_timeout(PATIENCE).unwrap(), "all their records are durable");
    }
    assert!(log.poison().is_none());
    let closed = channel();
    std::thread::spawn(move || closed.0.send(log.close().is_ok()));
    assert!(closed.1.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn foreign_temporary_files_are_left_alone() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(dir.path().join("thesis.tmp"), "mine").unwrap();
    std::fs::create_dir(dir.path().join("folder.tmp")).unwrap();
    let options = Options::new().segment_bytes(1 << 20).ring_bytes(1 << 16).calibrate(false);
    options.buffered(true).open(dir.path()).unwrap().close().unwrap();
    assert_eq!(std::fs::read(dir.path().join("thesis.tmp")).unwrap(), b"mine");
    assert!(dir.path().join("folder.tmp").exists());
}

#[test]
fn poison_says_durable_of_nothing_that_was_only_written() {
    let disk = SimDisk::new(1, SimOptions::default());
    let options = Options::new().segment_bytes(1 << 20).rings(1).ring_bytes(65536);
    let (log, mut stepper) =
        sim::open(&disk, options.durability(Durability::Written), 1, 1).unwrap();
    for _ in 0..100 {
        while stepper.prepare() {}
        stepper.turn();
    }
    let ticket = log.try_append(b"x").unwrap();
    turns(&mut stepper, 10);
    assert!(ticket.is_done());
    disk.fail_sync_at(1, libc::EIO);
    for _ in 0..50 {
        stepper.advance(Duration::from_millis(10));
        stepper.turn();
    }
    let poison = log.poison().expect("the idle log's sync failed");
    assert_eq!((poison.durable_lsn(), log.durable_lsn()), (Lsn::NONE, Lsn::NONE));
}

#[test]
fn a_large_record_is_never_accepted_beyond_the_prepared_space() {
    let disk = SimDisk::new(1, SimOptions::default());
    let options = Options::new()
        .segment_bytes(1 << 20)
        .segments_ready(1)
        .rings(1)
        .rings_retired_max(0)
        .ring_bytes(65536)
        .batch_bytes_max(65536);
    let (log, mut stepper) = sim::open(&disk, options, 1, 1).unwrap();
    for _ in 0..100 {
        while stepper.prepare() {}
        stepper.turn();
    }
    disk.set_space(Some(disk.used_bytes()));
    let large = log.try_reserve(500_000).unwrap();
    let body = vec![7; 4000];
    for _ in 0..2000 {
        let refused = match log.try_append(&body) {
            Ok(_) => false,
            Err(AppendError::Full | AppendError::NoSpace) => true,
            Err(error) => panic!("{error}"),
        };
        turns(&mut stepper, 6);
        stepper.prepare();
        if refused {
            break;
        }
    }
    // Accepted or not: what is accepted becomes durable.
    let published = large.try_publish().map(|ticket| ticket.lsn());
    for _ in 0..2000 {
        stepper.advance(Duration::from_millis(1));
        stepper.turn();
        stepper.prepare();
    }
    assert_eq!(log.durable_lsn(), log.last_lsn(), "published: {published:?}");
    // And once there is space again, the log goes on.
    disk.set_space(None);
    for _ in 0..2000 {
        stepper.advance(Duration::from_millis(1));
        stepper.prepare();
        stepper.turn();
    }
    let large = log.try_append(&vec![1; 500_000]).unwrap();
    turns(&mut stepper, 50);
    assert!(large.is_done());
}

/// Many at once, between two turns of the writer: nobody but the producers' own account refuses them.
#[test]
fn large_records_at_once_are_accepted_as_far_as_the_prepared_space_goes() {
    let disk = SimDisk::new(1, SimOptions::default());
    let options = Options::new()
        .segment_bytes(1 << 20)
        .segments_ready(1)
        .rings(1)
        .rings_retired_max(0)
        .ring_bytes(65536)
        .batch_bytes_max(65536);
    let (log, mut stepper) = sim::open(&disk, options, 1, 1).unwrap();
    for _ in 0..100 {
        while stepper.prepare() {}
        stepper.turn();
    }
    disk.set_space(Some(disk.used_bytes()));
    let large = vec![7; 300_000];
    let mut accepted = 0;
    loop {
        match log.try_append(&large) {
            Ok(_ticket) => accepted += 1,
            Err(AppendError::Full | AppendError::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(accepted > 0);
    for _ in 0..2000 {
        stepper.advance(Duration::from_millis(1));
        stepper.turn();
        stepper.prepare();
    }
    assert_eq!(log.durable_lsn(), log.last_lsn(), "accepted: {accepted}");
}

#[test]
fn a_segment_that_was_cut_or_is_missing_is_damage() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = dir.path().join("log");
    let options = || {
        let options = Options::new().segment_bytes(256 << 10).rings(1).ring_bytes(4096);
        options.batch_bytes_max(65536).calibrate(false).buffered(true)
    };
    let log = options().open(&dir).unwrap();
    for _ in 0..120 {
        log.append(&[7; 3000]).unwrap().wait().unwrap();
    }
    log.close().unwrap();
    let live = uringlog::inspect(&dir).unwrap();
    let live = live.segments.iter().rfind(|segment| segment.state == SegmentState::Live).unwrap();
    assert!(live.epoch > 1);
    let path = dir.join(&live.name);
    let whole = std::fs::read(&path).unwrap();
    let is_damage = |what: &str| {
        let opened = options().open(&dir).err();
        assert!(matches!(opened, Some(OpenError::Damaged(_))), "{what}: {opened:?}");
        let looked = uringlog::inspect(&dir).err();
        assert!(matches!(looked, Some(ReadError::Damaged(_))), "{what}: {looked:?}");
    };
    for len in (0..whole.len()).step_by(20_480) {
        std::fs::write(&path, &whole[..len]).unwrap();
        is_damage(&format!("cut to {len}"));
    }
    std::fs::remove_file(&path).unwrap();
    is_damage("removed, and ready segments stand behind it");
    std::fs::write(&path, &whole).unwrap();
    let log = options().open(&dir).unwrap();
    assert_eq!((log.last_lsn().get(), log.recovery().clean), (120, true));
}

/// Turn by turn, so that the time between asking and ending is as long as the test likes.
#[test]
fn closing_refuses_at_once_and_writes_all_that_was_accepted() {
    let disk = SimDisk::new(1, SimOptions::default());
    let options = Options::new().segment_bytes(1 << 20).rings(1).ring_bytes(65536);
    let (log, mut stepper) = sim::open(&disk, options, 1, 1).unwrap();
    for _ in 0..100 {
        while stepper.prepare() {}
        stepper.turn();
    }
    let tickets = [log.try_append(b"a"), log.try_append(b"b")].map(Result::unwrap);
    // Without threads it only asks.
    log.clone().close().unwrap();
    assert!(!tickets[1].is_done());
    stepper.turn();
    assert!(matches!(log.try_append(b"late").err(), Some(AppendError::Closed)));
    while stepper.turn() != Turn::Ended {}
    assert!(tickets[0].is_done() && tickets[1].is_done());
    assert_eq!((log.last_lsn().get(), log.durable_lsn().get()), (2, 2));
}

fn turns(stepper: &mut Stepper, count: usize) {
    for _ in 0..count {
        stepper.turn();
    }
}

#[test]
fn a_follower_gets_all_that_was_durable_and_then_the_poison() {
    let disk = SimDisk::new(5, SimOptions::default());
    let options = Options::new().segment_bytes(1 << 20).rings(1).ring_bytes(1 << 16);
    let (log, mut stepper) = sim::open(&disk, options, 7, 1_000_000_000).unwrap();
    for _ in 0..100 {
        while stepper.prepare() {}
        stepper.turn();
    }
    let mut follower = log.follow(Lsn::FIRST).unwrap();
    let mut late = log.follow(Lsn::FIRST).unwrap();
    for number in 1..=5u64 {
        let ticket = log.try_append(&[number as u8; 30]).unwrap();
        // It has its number, and is not written yet.
        assert!(matches!(follower.try_recv(), Err(FollowError::TimedOut)));
        turns(&mut stepper, 10);
        assert!(ticket.is_done());
        let record = follower.try_recv().unwrap().unwrap();
        assert_eq!((record.lsn().get(), record.payload()), (number, &[number as u8; 30][..]));
    }
    disk.fail_write_at(1, libc::EIO);
    let _never = log.try_append(b"never").unwrap();
    turns(&mut stepper, 10);
    assert!(log.poison().is_some());
    for follower in [&mut follower, &mut late] {
        while follower.next_lsn() <= Lsn::new(5) {
            follower.try_recv().unwrap().unwrap();
        }
        for _ in 0..2 {
            let Err(FollowError::Poisoned(poison)) = follower.recv() else { panic!("no poison") };
            assert_eq!(poison.durable_lsn(), Lsn::new(5));
        }
    }
}
