//! Every setting: forced methods, ways to wait, sizes at the ends of their ranges, and beyond them.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]

mod common;

use std::time::Duration;

use common::{each_backend, payload, read_all, skipped};
use uringlog::{BackendChoice, Idle, Log, Lsn, Method, OpenError, Options, WaitError};

#[test]
fn every_method_can_be_forced() {
    let mut ran = 0;
    for method in Method::ALL {
        assert_eq!(Method::from_name(method.name()), Some(method));
        let temp = common::temp_dir();
        let options = common::small_options().method(method);
        let log = match options.open(temp.path()) {
            Err(OpenError::Unsupported { what, .. }) => {
                skipped(method.name(), what);
                continue;
            }
            opened => opened.unwrap(),
        };
        assert_eq!(log.backend().method, method);
        works(&log);
        ran += 1;
    }
    assert!(ran > 0);
    let several = common::small_options().method(Method::RingDsync).depth(4);
    let temp = common::temp_dir();
    match several.open(temp.path()) {
        Err(OpenError::Unsupported { what, .. }) => drop(skipped("depth 4", what)),
        opened => {
            let log = opened.unwrap();
            assert_eq!(log.backend().depth, 4);
            works(&log);
            drop(log);
            assert_eq!(read_all(&common::small_options().open(temp.path()).unwrap()).len(), 2003);
        }
    }
}

#[test]
fn every_way_to_wait_works() {
    for writer in [Idle::Park, Idle::Spin, Idle::Yield] {
        for waiter in [Idle::Park, Idle::Spin, Idle::Yield] {
            let temp = common::temp_dir();
            let options = common::small_options().writer_idle(writer).waiter_idle(waiter);
            let log = options.open(temp.path()).unwrap();
            log.append(b"x").unwrap().wait().unwrap();
            let timed_out = log.wait_durable_timeout(Lsn::new(2), Duration::from_millis(2));
            assert!(matches!(timed_out, Err(WaitError::TimedOut)));
            log.append(b"y").unwrap();
            log.sync().unwrap();
            log.close().unwrap();
        }
    }
    for core in [common::cores()[0], 1000] {
        let temp = common::temp_dir();
        works(&common::small_options().writer_core(core).open(temp.path()).unwrap());
    }
}

/// Three waited for, two thousand at once.
fn works(log: &Log) {
    for _ in 0..3 {
        log.append(&[7; 300]).unwrap().wait().unwrap();
    }
    for _ in 0..2000 {
        log.append(&[8; 300]).unwrap();
    }
    assert_eq!(log.sync().unwrap().get(), 2003);
    assert_eq!(read_all(log).len(), 2003);
}

#[test]
fn calibration_is_kept_for_the_next_open() {
    let temp = common::temp_dir();
    let options = common::small_options().calibrate(true);
    let log = options.clone().open(temp.path()).unwrap();
    let (method, probes) = (log.backend().method, log.backend().probes.len());
    assert!(probes > 0);
    works(&log);
    drop(log);
    let log = options.open(temp.path()).unwrap();
    assert_eq!((log.backend().method, log.backend().probes.len()), (method, probes));
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let ms = Duration::from_millis;
    let new = Options::new;
    let wrong = [
        ("segment_bytes", new().segment_bytes(0)),
        ("segment_bytes", new().segment_bytes(32 << 10)),
        ("segment_bytes", new().segment_bytes((64 << 10) + 4096)),
        ("segment_bytes", new().segment_bytes((4 << 30) + (64 << 10))),
        ("segments_ready", new().segments_ready(0)),
        ("segments_ready", new().segments_ready(65)),
        ("writer_core", new().writer_core(1024)),
        ("rings", new().rings(0)),
        ("rings", new().rings(1025)),
        ("ring_bytes", new().ring_bytes(2048)),
        ("ring_bytes", new().ring_bytes(5000)),
        ("ring_bytes", new().ring_bytes(2 << 30)),
        ("rings_retired_max", new().rings_retired_max(1025)),
        ("window_records", new().window_records(8)),
        ("window_records", new().window_records(100)),
        ("window_records", new().window_records(1 << 25)),
        ("batch_bytes_max", new().batch_bytes_max(32 << 10)),
        ("batch_bytes_max", new().batch_bytes_max(100_000)),
        ("batch_bytes_max", new().batch_bytes_max(32 << 20)),
        ("large_bytes_max", new().large_bytes_max(0)),
        ("large_bytes_max", new().large_bytes_max(usize::MAX)),
        ("linger_max", new().linger_max(ms(11))),
        ("linger_max", new().linger_max(Duration::from_micros(10_001))),
        ("vouch_after", new().vouch_after(Duration::ZERO)),
        ("vouch_after", new().vouch_after(Duration::MAX)),
        ("prepare_bytes_per_s", new().prepare_bytes_per_s(0)),
        ("prepare_bytes_per_s", new().prepare_bytes_per_s(u64::MAX)),
        ("depth", new().depth(0)),
        ("depth", new().depth(17)),
        ("depth", new().depth(2).method(Method::PwriteDsync)),
        ("depth", new().depth(2).backend(BackendChoice::Psync)),
        ("method", new().method(Method::RingDsync).backend(BackendChoice::Psync)),
        ("method", new().method(Method::PwriteDsync).backend(BackendChoice::Uring)),
    ];
    let temp = common::temp_dir();
    for (name, options) in wrong {
        match options.clone().open(temp.path()) {
            Err(OpenError::InvalidOption { option, reason }) => {
                assert_eq!(option, name);
                assert!(!reason.is_empty());
            }
            other => panic!("{options:?}: {other:?}"),
        }
    }
    assert!(common::small_options().create(false).open(temp.path()).is_err(), "nothing was made");
}

#[test]
fn the_smallest_and_the_largest_of_the_small_options_work() {
    each_backend(|case| {
        let options = Options::new()
            .backend(match case.backend {
                uringlog::Backend::Uring => BackendChoice::Uring,
                _ => BackendChoice::Psync,
            })
            .buffered(case.is_buffered())
            .calibrate(false)
            .segment_bytes(64 << 10)
            .segments_ready(1)
            .rings(1)
            .ring_bytes(4096)
            .rings_retired_max(0)
            .window_records(16)
            .batch_bytes_max(64 << 10)
            .large_bytes_max(64 << 10)
            .linger_max(Duration::ZERO)
            .vouch_after(Duration::from_millis(1));
        let log = case.open_with(options.clone());
        works(&log);
        let max = log.record_bytes_max();
        for len in [max, 0, max / 2, max] {
            log.append(&payload(len, len)).unwrap();
        }
        log.sync().unwrap();
        assert!(log.append(&vec![0; max + 1]).is_err());
        log.close().unwrap();
        let log = case.open_with(options.rings(1024).ring_bytes(4096).segments_ready(64));
        assert_eq!(log.recovery().last_lsn.get(), 2007);
        log.append(b"x").unwrap().wait().unwrap();
        assert_eq!(read_all(&log).len(), 2008);
    });
}
