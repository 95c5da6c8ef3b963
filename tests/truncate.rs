//! Cutting the log: what is gone, what stays, who is told, and every crash on the way.

mod common;

use std::sync::mpsc::channel;
use std::time::Duration;

use common::{Case, PATIENCE, each_backend};
use uringlog::sim::{self, SimDisk, SimOptions, Stepper, Turn};
use uringlog::{AppendError, Durability, Log, Lsn, Options, TruncateError, WaitError};

fn payload(generation: u64, lsn: u64) -> Vec<u8> {
    format!("generation {generation} record {lsn}").into_bytes()
}

fn append_to(log: &Log, generation: u64, last: u64) {
    let mut tickets = Vec::new();
    while log.last_lsn().get() < last {
        let lsn = log.last_lsn().get() + 1;
        let ticket = log.append(&payload(generation, lsn)).unwrap();
        assert_eq!(ticket.lsn().get(), lsn);
        tickets.push(ticket.into_owned());
    }
    for ticket in tickets {
        ticket.wait().unwrap();
    }
}

/// What the log must hold: the last record of each generation, in order.
fn check(log: &Log, generations: &[(u64, u64)], name: &str) {
    let mut expected = Vec::new();
    let mut lsn = 1;
    for &(generation, last) in generations {
        while lsn <= last {
            expected.push((Lsn::new(lsn), payload(generation, lsn)));
            lsn += 1;
        }
    }
    log.sync().unwrap();
    let found: Vec<_> = log.reader(Lsn::NONE).unwrap().map(Result::unwrap).collect();
    assert!(found == expected, "{name}: {} found, {} expected", found.len(), expected.len());
}

#[test]
fn records_are_cut_and_their_numbers_used_again() {
    each_backend(|case: &Case| {
        for durability in [Durability::Durable, Durability::Written] {
            let dir = case.dir(&format!("cut-{durability:?}"));
            let options = case.options.clone().durability(durability);
            let log = options.clone().open(&dir).unwrap();
            append_to(&log, 0, 50);
            assert_eq!(log.generation(), 0);
            assert_eq!(log.truncate_after(Lsn::new(70)).unwrap(), Lsn::new(50), "nothing to cut");
            assert_eq!(log.generation(), 0);
            assert_eq!(log.truncate_after(Lsn::new(30)).unwrap(), Lsn::new(30));
            assert_eq!((log.last_lsn(), log.durable_lsn()), (Lsn::new(30), Lsn::new(30)));
            check(&log, &[(0, 30)], case.name);
            append_to(&log, 1, 60);
            check(&log, &[(0, 30), (1, 60)], case.name);
            log.truncate_after(Lsn::new(40)).unwrap();
            append_to(&log, 2, 45);
            log.truncate_after(Lsn::new(10)).unwrap();
            append_to(&log, 3, 20);
            assert_eq!(log.generation(), 3);
            check(&log, &[(0, 10), (3, 20)], case.name);
            let stats = log.stats();
            assert_eq!((stats.appends, stats.truncated_records), (50 + 30 + 5 + 10, 20 + 20 + 35));
            log.close().unwrap();
            let log = options.open(&dir).unwrap();
            assert_eq!(log.generation(), 3);
            check(&log, &[(0, 10), (3, 20)], case.name);
            // Nothing is left, and everything again.
            log.truncate_after(Lsn::NONE).unwrap();
            check(&log, &[], case.name);
            append_to(&log, 4, 5);
            check(&log, &[(4, 5)], case.name);
            log.close().unwrap();
        }
    });
}

/// Several segments are cut away, the cut goes through batches, and a batch is larger than most.
#[test]
fn a_cut_reaches_back_over_segments_and_through_batches() {
    each_backend(|case: &Case| {
        let options = case.options.clone().segment_bytes(64 << 10).ring_bytes(4096);
        let options = options.batch_bytes_max(64 << 10);
        for cut in [0u64, 1, 7, 99, 100, 101, 250, 399, 400] {
            let dir = case.dir(&format!("back-{cut}"));
            let log = options.clone().open(&dir).unwrap();
            let mut lsn = 1;
            while lsn <= 400 {
                // 20 records of 400 bytes at once.
                let records: Vec<Vec<u8>> = (lsn..lsn + 20)
                    .map(|lsn| [payload(0, lsn), vec![b'.'; 400]].concat())
                    .collect();
                log.append_batch(&records).unwrap().wait().unwrap();
                lsn += 20;
            }
            log.truncate_after(Lsn::new(cut)).unwrap();
            let again = |log: &Log| {
                let found: Vec<_> = log.reader(Lsn::NONE).unwrap().map(Result::unwrap).collect();
                assert_eq!(found.len() as u64, cut);
                for (at, (lsn, bytes)) in found.iter().enumerate() {
                    assert_eq!(lsn.get(), at as u64 + 1);
                    assert!(bytes.starts_with(&payload(0, lsn.get())));
                }
            };
            again(&log);
            log.close().unwrap();
            let log = options.clone().open(&dir).unwrap();
            again(&log);
            assert_eq!(log.last_lsn(), Lsn::new(cut));
            log.append(b"on").unwrap().wait().unwrap();
            log.close().unwrap();
        }
    });
}

#[test]
fn everybody_is_told() {
    each_backend(|case: &Case| {
        let log = case.open();
        append_to(&log, 0, 10);
        let done = log.append(b"done").unwrap().into_owned();
        let kept = log.append(b"kept until it is cut").unwrap().into_owned();
        log.sync().unwrap();
        let mut reservation = log.reserve(5).unwrap();
        reservation.copy_from_slice(b"later");
        let large = log.reserve(log.record_bytes_max()).unwrap();
        // Somebody waits for a number that is not given out yet; it stays so.
        let (sender, waited) = channel();
        let waiter = log.clone();
        let thread =
            std::thread::spawn(move || sender.send(waiter.wait_durable(Lsn::new(20)).is_ok()));
        log.truncate_after(Lsn::new(11)).unwrap();
        assert!(done.is_done());
        assert_eq!(done.wait().unwrap(), Lsn::new(11));
        assert!(!kept.is_done());
        let last = Lsn::new(11);
        let told = kept.wait_timeout(PATIENCE);
        assert!(matches!(told, Err(WaitError::Truncated { last: at }) if at == last), "{told:?}");
        let told = futures_executor::block_on(kept);
        assert!(matches!(told, Err(WaitError::Truncated { .. })), "{told:?}");
        for reservation in [reservation, large] {
            let told = reservation.publish().map(|ticket| ticket.lsn());
            assert!(matches!(told, Err(AppendError::Truncated)), "{told:?}");
        }
        assert!(waited.recv_timeout(Duration::from_millis(20)).is_err());
        append_to(&log, 1, 20);
        assert!(waited.recv_timeout(PATIENCE).unwrap());
        thread.join().unwrap().unwrap();
        log.clone().close().unwrap();
        let told = log.truncate_after(Lsn::new(3));
        assert!(matches!(told, Err(TruncateError::Closed)), "{told:?}");
    });
}

/// Producers that append all the time, and a thread that cuts.
#[test]
fn appends_go_on_around_it() {
    each_backend(|case: &Case| {
        let log = case.open_with(case.options.clone().segment_bytes(256 << 10));
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        match log.append(&[7; 100]).unwrap().wait() {
                            Ok(_) | Err(WaitError::Truncated { .. }) => {}
                            Err(error) => panic!("{}: {error}", case.name),
                        }
                    }
                });
            }
            let mut generation = 0;
            for round in 1..=20u64 {
                log.wait_durable_timeout(Lsn::new(round * 10), PATIENCE).unwrap();
                let cut = log.truncate_after(Lsn::new(round * 8)).unwrap();
                assert!(cut.get() <= round * 8);
                generation += 1;
                assert_eq!(log.generation(), generation);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        log.sync().unwrap();
        let count = log.reader(Lsn::NONE).unwrap().map(Result::unwrap).count() as u64;
        assert_eq!(count, log.last_lsn().get(), "{}", case.name);
    });
}

// ---- on the simulated disk: a crash at every boundary ----

const NOW_NS: u64 = 1_700_000_000_000_000_000;

fn sim_options() -> Options {
    Options::new()
        .segment_bytes(64 << 10)
        .segments_ready(1)
        .rings(1)
        .ring_bytes(4096)
        .batch_bytes_max(64 << 10)
        .large_bytes_max(64 << 10)
        .method(uringlog::Method::RingDsync)
}

fn settle(stepper: &mut Stepper) {
    for _ in 0..300 {
        let turn = stepper.turn();
        let more = stepper.prepare();
        stepper.advance(Duration::from_micros(200));
        if turn == Turn::Ended || (turn == Turn::Idle && !more) {
            break;
        }
    }
}

fn sim_append_to(log: &Log, stepper: &mut Stepper, generation: u64, last: u64) {
    while log.last_lsn().get() < last {
        let lsn = log.last_lsn().get() + 1;
        let bytes = [payload(generation, lsn), vec![b'.'; 700]].concat();
        match log.try_append(&bytes) {
            Ok(_) => {}
            Err(AppendError::Full) => settle(stepper),
            Err(_) => return,
        }
        if lsn.is_multiple_of(7) {
            settle(stepper);
        }
    }
    settle(stepper);
}

/// The generation of each record that a crash left, checked for order.
fn survivors(disk: &SimDisk, seed: u64) -> Vec<u64> {
    let (log, _stepper) = sim::open(disk, sim_options(), seed, NOW_NS).expect("the log opens");
    let reader = log.reader(Lsn::NONE).expect("a reader");
    let mut found = Vec::new();
    for (at, record) in reader.enumerate() {
        let (lsn, bytes) = record.expect("a record");
        assert_eq!(lsn.get(), at as u64 + 1);
        let generation = u64::from(bytes["generation ".len()] - b'0');
        assert!(bytes.starts_with(&payload(generation, lsn.get())), "record {lsn}");
        found.push(generation);
    }
    assert_eq!(found.len() as u64, log.last_lsn().get());
    found
}

/// Two truncations, the second one further back than the first; the power goes, or the process dies,
/// at every boundary, with several outcomes each, and once more while the log is opened.
#[test]
fn a_crash_at_every_boundary_leaves_the_old_log_or_the_new_one() {
    let (before, cut, more, cut_again, end) = (150, 90, 130, 40, 60);
    let run = |disk: &SimDisk| -> Vec<(u64, u64)> {
        // Each entry: what happened so far, as (generation, last) pairs that count.
        let mut so_far = vec![(0, 0)];
        let Ok((log, mut stepper)) = sim::open(disk, sim_options(), 5, NOW_NS) else {
            return so_far;
        };
        let mut durable = |log: &Log| {
            let (generation, durable) = (log.generation(), log.durable_lsn().get());
            so_far.push((generation, durable));
        };
        sim_append_to(&log, &mut stepper, 0, before);
        durable(&log);
        for (generation, cut, last) in [(1, cut, more), (2, cut_again, end)] {
            let truncation = sim::truncate_after(&log, Lsn::new(cut));
            let mut outcome = None;
            for _ in 0..2000 {
                stepper.turn();
                outcome = truncation.result();
                if outcome.is_some() {
                    break;
                }
                stepper.prepare();
                stepper.advance(Duration::from_micros(200));
            }
            match outcome {
                Some(Ok(kept)) => assert_eq!(kept.get(), cut),
                _ => return so_far,
            }
            durable(&log);
            sim_append_to(&log, &mut stepper, generation, last);
            durable(&log);
        }
        so_far
    };
    let disk = SimDisk::new(1, SimOptions::default());
    assert_eq!(run(&disk).last(), Some(&(2, end)));
    disk.restart();
    let whole: Vec<u64> = (1..=end).map(|lsn| if lsn <= cut_again { 0 } else { 2 }).collect();
    assert_eq!(survivors(&disk, 6), whole);
    let boundaries = disk.steps();
    for boundary in 1..=boundaries {
        for outcome in 0..3 {
            let disk = SimDisk::new(1, SimOptions::default());
            disk.set_crash_seed(boundary * 3 + outcome);
            match outcome {
                0 => disk.kill_after(boundary),
                _ => disk.crash_after(boundary),
            }
            let so_far = run(&disk);
            disk.restart();
            if outcome == 2 {
                // Once more, while it is opened.
                disk.crash_after(1 + boundary % 17);
                drop(sim::open(&disk, sim_options(), 7, NOW_NS));
                disk.restart();
            }
            let found = survivors(&disk, 8);
            let name = format!("boundary {boundary} outcome {outcome}: {so_far:?}");
            let (generation, durable) = *so_far.last().expect("an entry");
            // The generation is at least what was reported, and at most one further.
            let cuts = [u64::MAX, cut, cut_again];
            let newest = found.iter().copied().max().unwrap_or(0);
            assert!(newest <= generation + 1, "{name}: {newest}");
            let explained = |generation: usize| {
                // What is left of older generations is what all cuts since kept.
                found.iter().zip(1..).all(|(&of, lsn)| {
                    cuts[of as usize + 1..=generation].iter().all(|&cut| lsn <= cut)
                })
            };
            assert!(explained(newest as usize), "{name}: a record came back: {found:?}");
            let kept_from = durable.min(cuts[(generation as usize + 1).min(2)]);
            let must = match generation {
                2 => durable,
                _ => kept_from,
            };
            assert!(found.len() as u64 >= must, "{name}: {} of {must}", found.len());
        }
    }
}
