//! Every call of the API, on every backend: what it gives, and which error it gives when.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]

mod common;

use std::io::IoSlice;
use std::time::Duration;

use common::{PATIENCE, each_backend, each_disk_backend, in_time, payload, read_all, read_from};
use uringlog::{AppendError, BackendChoice, Durability, Lsn, Options, WaitError};

#[test]
fn every_way_to_append_gives_the_next_numbers_at_once() {
    each_backend(|case| {
        let log = case.open();
        assert!(log.recovery().created);
        assert_eq!((log.last_lsn(), log.durable_lsn()), (Lsn::NONE, Lsn::NONE));
        let mut expected: Vec<Vec<u8>> = Vec::new();
        for round in 1..=50u8 {
            let next = expected.len() as u64 + 1;
            let ticket = log.append(&[round; 3]).unwrap();
            assert_eq!(ticket.lsn().get(), next);
            assert_eq!(ticket.lsns(), Lsn::new(next)..=Lsn::new(next));
            assert_eq!(log.try_append(&[round; 64]).unwrap().lsn().get(), next + 1);
            let ticket = log.append_timeout(&[round; 65], PATIENCE).unwrap();
            assert_eq!(ticket.lsn().get(), next + 2);
            let tail = [round];
            let parts = [b"ab".as_slice(), b"", b"cde", &tail].map(IoSlice::new);
            assert_eq!(log.append_vectored(&parts).unwrap().lsn().get(), next + 3);
            let batch = [vec![], vec![round], vec![round; 200]];
            let ticket = log.append_batch(&batch).unwrap();
            assert_eq!(ticket.lsns(), Lsn::new(next + 4)..=Lsn::new(next + 6));
            assert_eq!(ticket.lsn().get(), next + 6);
            let ticket = log.try_append_batch(&["x", "yz"]).unwrap();
            assert_eq!(ticket.lsns(), Lsn::new(next + 7)..=Lsn::new(next + 8));
            drop(log.reserve(10).unwrap());
            let mut filled = log.reserve(5).unwrap();
            assert_eq!(filled.len(), 5);
            filled.copy_from_slice(b"place");
            filled[0] = round;
            drop(log.try_reserve(0).unwrap());
            let last = filled.publish().unwrap();
            assert_eq!(last.lsn().get(), next + 9, "a dropped reservation takes no number");
            assert_eq!(log.last_lsn(), last.lsn());
            if round % 10 == 0 {
                assert_eq!(last.wait().unwrap().get(), next + 9);
                assert_eq!(log.durable_lsn().get(), next + 9);
            }
            expected.extend([vec![round; 3], vec![round; 64], vec![round; 65]]);
            expected.push([b"abcde".as_slice(), &[round]].concat());
            expected.extend(batch);
            expected.extend([b"x".to_vec(), b"yz".to_vec(), vec![round]]);
            expected.last_mut().unwrap().extend(b"lace");
        }
        assert_eq!(log.sync().unwrap(), log.last_lsn());
        assert_eq!(read_all(&log), expected);
        let from = log.reader(Lsn::new(317)).unwrap();
        assert_eq!(read_from(from, 317), expected[316..]);
        drop(log);
        let log = case.open();
        assert_eq!(log.recovery().last_lsn.get(), expected.len() as u64);
        assert!(log.recovery().clean, "{}: {}", case.name, log.recovery());
        assert_eq!(read_all(&log), expected);
    });
}

#[test]
fn records_of_every_size() {
    each_backend(|case| {
        let log = case.open();
        let max = log.record_bytes_max();
        let eighth = (64 << 10) / 8;
        let mut sizes: Vec<usize> = vec![0, 1, 63, 64, 65, 127, 128, 129, 255, 511, 512, 513];
        sizes.extend([4000, 4095, 4096, 4097, eighth - 1, eighth, eighth + 1, 65535, 65537]);
        sizes.extend([200_000, 256 << 10, max - 1, max]);
        let expected: Vec<Vec<u8>> = sizes.iter().map(|&len| payload(len, len)).collect();
        for (index, record) in expected.iter().enumerate() {
            let ticket = log.append(record).unwrap();
            assert_eq!(ticket.lsn().get(), index as u64 + 1);
        }
        let mut filled = log.reserve(max).unwrap();
        filled.copy_from_slice(&payload(7, max));
        filled.publish().unwrap().wait().unwrap();
        let reads = read_all(&log);
        assert!(reads[..sizes.len()] == expected, "{}", case.name);
        assert!(reads[sizes.len()] == payload(7, max));
        log.close().unwrap();
        assert!(read_all(&case.open())[..sizes.len()] == expected, "{}", case.name);
    });
}

#[test]
fn what_is_too_large_is_an_error() {
    each_backend(|case| {
        let log = case.open();
        let max = log.record_bytes_max();
        let large = vec![1; max + 1];
        let is_too_large = |error: Option<AppendError>, bytes: usize| match error {
            Some(AppendError::TooLarge { bytes: found, max: limit }) => {
                assert_eq!((found, limit), (bytes, max));
            }
            other => panic!("{other:?}"),
        };
        is_too_large(log.append(&large).err(), max + 1);
        is_too_large(log.try_append(&large).err(), max + 1);
        is_too_large(log.append_timeout(&large, PATIENCE).err(), max + 1);
        let half = IoSlice::new(&large[..max / 2 + 1]);
        is_too_large(log.append_vectored(&[half, half]).err(), 2 * (max / 2 + 1));
        is_too_large(log.reserve(max + 1).err(), max + 1);
        is_too_large(log.reserve(usize::MAX).err(), usize::MAX);
        is_too_large(log.try_reserve(usize::MAX - 7).err(), usize::MAX - 7);
        is_too_large(log.append_batch(&[&large[..max - 7], &[]]).err(), max + 1);
        assert!(matches!(
            log.append_batch(&vec![[0u8; 0]; max]).err(),
            Some(AppendError::TooLarge { .. })
        ));
        let nothing: [&[u8]; 0] = [];
        assert!(matches!(log.append_batch(&nothing).err(), Some(AppendError::EmptyBatch)));
        assert!(matches!(log.try_append_batch(&nothing).err(), Some(AppendError::EmptyBatch)));
        // The largest that the documentation promises.
        let ticket = log.append_batch(&[&large[..max - 8], &[]]).unwrap();
        assert_eq!(ticket.lsns(), Lsn::new(1)..=Lsn::new(2));
        ticket.wait().unwrap();
        assert_eq!(read_all(&log), [&large[..max - 8], &[]]);
    });
}

#[test]
fn sixteen_mebibytes_with_the_default_sizes() {
    each_disk_backend(|case| {
        let choice = match case.backend {
            uringlog::Backend::Uring => BackendChoice::Uring,
            _ => BackendChoice::Psync,
        };
        let log = case.open_with(Options::new().backend(choice).calibrate(false));
        assert!(log.record_bytes_max() >= 16 << 20);
        let record = payload(3, 16 << 20);
        log.append(b"before").unwrap();
        assert_eq!(log.append(&record).unwrap().wait().unwrap().get(), 2);
        log.append(b"behind").unwrap().wait().unwrap();
        assert!(read_all(&log) == [b"before".to_vec(), record, b"behind".to_vec()]);
    });
}

#[test]
fn batches_larger_than_a_ring() {
    each_backend(|case| {
        let log = case.open();
        let batches: Vec<Vec<Vec<u8>>> = [(1, 100_000), (500, 300), (3000, 100), (40_000, 1)]
            .map(|(count, len)| (0..count).map(|seed| payload(seed, len)).collect())
            .into();
        let mut next = 1;
        for batch in &batches {
            let ticket = log.append_batch(batch).unwrap();
            let last = next + batch.len() as u64 - 1;
            assert_eq!(ticket.lsns(), Lsn::new(next)..=Lsn::new(last));
            next = last + 1;
        }
        log.sync().unwrap();
        assert!(read_all(&log) == batches.concat());
        log.close().unwrap();
        assert!(read_all(&case.open()) == batches.concat());
    });
}

#[test]
fn a_batch_whose_records_change_under_it_is_no_damage() {
    /// Says another length each time it is asked.
    struct Fickle(std::cell::Cell<usize>, Vec<u8>, fn(usize) -> usize);
    impl AsRef<[u8]> for Fickle {
        fn as_ref(&self) -> &[u8] {
            self.0.set(self.0.get() + 1);
            &self.1[..(self.2)(self.0.get())]
        }
    }
    each_backend(|case| {
        let log = case.open();
        for scale in [100usize, 20_000] {
            let grows: fn(usize) -> usize = |asked| if asked > 1 { 12 } else { 8 };
            let shrinks: fn(usize) -> usize = |asked| if asked > 1 { 3 } else { 8 };
            for lens in [grows, shrinks] {
                let batch = [(); 3].map(|()| Fickle(0.into(), vec![7; scale], lens));
                let attempt = std::panic::AssertUnwindSafe(|| log.append_batch(&batch).is_ok());
                // Refused by a panic or accepted: but nothing inconsistent may reach the disk.
                let _either = std::panic::catch_unwind(attempt);
            }
        }
        log.append(b"behind").unwrap().wait().unwrap();
        assert_eq!(read_all(&log).last().unwrap(), b"behind");
        log.close().unwrap();
        let log = case.open();
        assert_eq!(read_all(&log).last().unwrap(), b"behind");
    });
}

#[test]
fn waiting_ends_when_it_should() {
    each_backend(|case| {
        let log = case.open();
        let ticket = log.append(b"one").unwrap();
        assert_eq!(ticket.wait_timeout(PATIENCE).unwrap(), Lsn::FIRST);
        assert_eq!(ticket.wait_timeout(Duration::ZERO).unwrap(), Lsn::FIRST, "asked again");
        assert!(ticket.is_done());
        log.wait_durable(Lsn::NONE).unwrap();
        log.wait_durable(Lsn::FIRST).unwrap();
        let beyond = Lsn::new(2);
        for _ in 0..3 {
            let timed_out = log.wait_durable_timeout(beyond, Duration::from_millis(2));
            assert!(matches!(timed_out, Err(WaitError::TimedOut)), "{timed_out:?}");
        }
        let timed_out = (0..1000).any(|_| {
            let ticket = log.append(b"more").unwrap();
            matches!(ticket.wait_timeout(Duration::ZERO), Err(WaitError::TimedOut))
        });
        assert!(timed_out, "no write is that fast");
        log.sync().unwrap();
        // A number that is not given out yet is waited for.
        let future = log.last_lsn().next();
        let waiter = log.clone();
        let waiting = std::thread::spawn(move || waiter.wait_durable(future));
        std::thread::sleep(Duration::from_millis(10));
        assert!(!waiting.is_finished());
        log.append(b"last").unwrap();
        in_time("wait for a number given out later", || waiting.join().unwrap()).unwrap();
    });
}

#[test]
fn stats_backend_and_report_tell_what_was_done() {
    each_backend(|case| {
        let log = case.open();
        assert!(log.memory_bytes_max() > 4 * (64 << 10));
        assert_eq!(log.durability(), Durability::Durable);
        assert!(log.poison().is_none());
        for _ in 0..10 {
            log.append(&[1; 100]).unwrap().wait().unwrap();
        }
        log.append_batch(&[[2; 50]; 10]).unwrap().wait().unwrap();
        let stats = log.stats();
        assert_eq!((stats.appends, stats.acknowledged), (20, 20));
        assert_eq!(stats.payload_bytes, 1500);
        assert!((11..=20).contains(&stats.batches), "{stats:?}");
        assert!(stats.disk_bytes >= stats.payload_bytes + stats.padding_bytes);
        let block_bytes = log.backend().facts.block_bytes as u64;
        assert_eq!(stats.disk_bytes % block_bytes, 0);
        let timing = log.batch_timing(Lsn::new(20)).unwrap();
        assert_eq!((timing.first_lsn, timing.last_lsn), (Lsn::new(11), Lsn::new(20)));
        assert!(format!("{timing:?}").len() > 10);
        assert!(log.batch_timing(Lsn::new(21)).is_none());

        let backend = log.backend();
        assert!(!backend.why.is_empty() && !backend.facts.kernel.is_empty());
        assert_eq!(backend.facts.direct, !case.is_buffered());
        assert_eq!(backend.method.is_ring(), case.backend == uringlog::Backend::Uring);

        let report = log.close().unwrap();
        assert_eq!(report.last_lsn.get(), 20);
        assert_eq!(report.stats.appends, 20);
        assert!(report.stats.vouches >= 1, "closing vouches for the last record");
        assert!(report.to_string().contains("20 records"), "{report}");
    });
}

#[test]
fn the_last_handle_closes_the_log() {
    each_backend(|case| {
        let log = case.open();
        let other = log.clone();
        let ticket = log.append(b"first").unwrap().into_owned();
        drop(log);
        let last = other.append(b"second").unwrap().into_owned();
        drop(other);
        // The tickets do not keep it open, and what was accepted is durable.
        assert!(ticket.is_done() && last.is_done());
        assert_eq!(last.wait().unwrap().get(), 2);
        assert_eq!(ticket.wait().unwrap().get(), 1);
        let log = case.open();
        assert!(log.recovery().clean, "{}", log.recovery());
        assert_eq!(read_all(&log), [b"first".as_slice(), b"second"]);
    });
}

#[test]
fn a_closed_log_refuses_and_still_reads() {
    each_backend(|case| {
        let log = case.open();
        let other = log.clone();
        let waiter = log.clone();
        let ticket = log.append(b"kept").unwrap().into_owned();
        let mut held = other.reserve(4).unwrap();
        let mut held_large = other.reserve(100_000).unwrap();
        let waiting = std::thread::spawn(move || waiter.wait_durable(Lsn::new(2)));
        assert_eq!(log.close().unwrap().last_lsn, Lsn::FIRST);
        let ended = in_time("wait beyond the end", || waiting.join().unwrap());
        assert!(matches!(ended, Err(WaitError::Closed)), "{ended:?}");
        held.fill(1);
        held_large.fill(1);
        assert!(matches!(held.publish().err(), Some(AppendError::Closed)));
        assert!(matches!(held_large.publish().err(), Some(AppendError::Closed)));
        let refusals = [
            other.append(b"x").err(),
            other.append(&[1; 100_000]).err(),
            other.try_append(b"x").err(),
            other.append_timeout(b"x", PATIENCE).err(),
            other.append_vectored(&[IoSlice::new(b"x")]).err(),
            other.append_batch(&["x"]).err(),
            other.append_batch(&[&[1; 100_000]]).err(),
            other.try_append_batch(&["x"]).err(),
            other.reserve(1).and_then(|held| held.publish()).err(),
            other.try_reserve(1).and_then(|held| held.publish()).err(),
        ];
        for refusal in refusals {
            assert!(matches!(refusal, Some(AppendError::Closed)), "{refusal:?}");
        }
        assert_eq!(other.last_lsn(), Lsn::FIRST, "refused appends take no number");
        assert_eq!(ticket.wait().unwrap(), Lsn::FIRST);
        other.wait_durable(Lsn::FIRST).unwrap();
        assert!(matches!(other.wait_durable(Lsn::new(2)), Err(WaitError::Closed)));
        assert_eq!(other.sync().unwrap(), Lsn::FIRST);
        assert_eq!(read_all(&other), [b"kept"]);
        // The directory is free as soon as `close` returned, whatever handles are left.
        let again = case.open();
        assert_eq!(again.append(b"again").unwrap().wait().unwrap().get(), 2);
        assert_eq!(other.close().unwrap().last_lsn, Lsn::FIRST);
    });
}

#[test]
fn a_full_ring_pushes_back() {
    each_backend(|case| {
        let options = case.options.clone().rings(1).ring_bytes(4096).rings_retired_max(0);
        let log = case.open_with(options);
        // Nothing behind the held reservation is given back, and the ring has 64 places.
        let held = log.reserve(1).unwrap();
        for _ in 0..63 {
            log.try_append(b"x").unwrap();
        }
        log.sync().unwrap();
        assert!(matches!(log.try_append(b"y").err(), Some(AppendError::Full)));
        assert!(matches!(log.try_append_batch(&["y"]).err(), Some(AppendError::Full)));
        assert!(matches!(log.try_reserve(1).err(), Some(AppendError::Full)));
        let short = Duration::from_millis(20);
        assert!(matches!(log.append_timeout(b"y", short).err(), Some(AppendError::TimedOut)));
        assert!(log.stats().ring_full.count >= 4);
        assert_eq!(log.last_lsn().get(), 63);
        let waiter = log.clone();
        let waiting =
            std::thread::spawn(move || waiter.append(b"y").map(|ticket| ticket.lsn().get()));
        std::thread::sleep(short);
        assert!(!waiting.is_finished());
        drop(held);
        let lsn = in_time("append after room came", || waiting.join().unwrap()).unwrap();
        assert_eq!(lsn, 64);
        log.try_append(b"z").unwrap().wait().unwrap();
        assert_eq!(read_all(&log).len(), 65);
    });
}

#[test]
fn the_budget_for_large_records_pushes_back() {
    each_backend(|case| {
        let log = case.open();
        let max = log.record_bytes_max();
        // The budget of 1 MiB takes two of half a segment.
        let first = log.reserve(max).unwrap();
        let second = log.reserve(max).unwrap();
        assert!(matches!(log.try_append(&vec![1; max]).err(), Some(AppendError::Full)));
        let short = Duration::from_millis(20);
        let timed_out = log.append_timeout(&vec![1; max], short).err();
        assert!(matches!(timed_out, Some(AppendError::TimedOut)));
        log.try_append(b"small ones go on").unwrap().wait().unwrap();
        drop(first);
        log.append(&vec![2; max]).unwrap().wait().unwrap();
        second.publish().unwrap().wait().unwrap();
        assert_eq!(log.last_lsn().get(), 3);
    });
}

#[test]
fn a_written_log_syncs_when_asked() {
    each_backend(|case| {
        let never_idle = Duration::from_secs(3600);
        let options = case.options.clone().durability(Durability::Written).vouch_after(never_idle);
        let log = case.open_with(options.clone());
        assert_eq!(log.durability(), Durability::Written);
        for _ in 0..20 {
            log.append(&[1; 100]).unwrap().wait().unwrap();
        }
        assert_eq!(log.acknowledged_lsn().get(), 20);
        assert_eq!(log.durable_lsn(), Lsn::NONE, "nobody asked for a sync");
        assert!(read_all(&log).is_empty(), "readers see durable records only");
        assert_eq!(log.sync().unwrap().get(), 20);
        assert_eq!(log.durable_lsn().get(), 20);
        assert!(log.stats().syncs >= 1);
        assert_eq!(read_all(&log).len(), 20);
        // Over several segments.
        for _ in 0..100 {
            log.append(&[2; 50_000]).unwrap();
        }
        let last = log.append(b"last").unwrap().wait().unwrap();
        log.wait_durable(last).unwrap();
        assert!(log.stats().rotations >= 2);
        assert_eq!(read_all(&log).len(), 121);
        log.append(b"closing syncs too").unwrap();
        log.close().unwrap();
        assert_eq!(read_all(&case.open_with(options)).len(), 122);
    });
}

#[test]
fn who_waits_for_a_far_number_does_not_keep_others_from_a_sync() {
    each_backend(|case| {
        let never_idle = Duration::from_secs(3600);
        let options = case.options.clone().durability(Durability::Written).vouch_after(never_idle);
        let log = case.open_with(options);
        let far = log.wait_durable_timeout(Lsn::new(1 << 40), Duration::from_millis(5));
        assert!(matches!(far, Err(WaitError::TimedOut)));
        log.append(b"near").unwrap().wait().unwrap();
        let other = log.clone();
        assert_eq!(in_time("sync", move || other.sync()).unwrap(), Lsn::FIRST);
        assert_eq!(log.durable_lsn(), Lsn::FIRST);
    });
}
