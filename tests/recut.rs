//! A cut through a batch that is larger than the segments are by now.

use uringlog::{Log, Lsn, Options};

fn numbers(log: &Log) -> Vec<(u64, usize)> {
    log.reader(Lsn::NONE)
        .unwrap()
        .map(|record| record.map(|(lsn, payload)| (lsn.get(), payload.len())).unwrap())
        .collect()
}

#[test]
fn what_a_cut_keeps_of_a_batch_fits_whatever_the_segments_are_now() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options::new().ring_bytes(64 << 10).buffered(true);
    let log = options().segment_bytes(4 << 20).open(dir.path()).unwrap();
    let records: Vec<Vec<u8>> = (0..16).map(|index| vec![index; 64 << 10]).collect();
    log.append_batch(&records).unwrap().wait().unwrap();
    log.close().unwrap();
    let small = || options().segment_bytes(256 << 10);
    let log = small().open(dir.path()).unwrap();
    assert_eq!(log.truncate_after(Lsn::new(12)).unwrap(), Lsn::new(12));
    let mut kept: Vec<_> = (1..=12).map(|lsn| (lsn, 64 << 10)).collect();
    assert_eq!(numbers(&log), kept);
    log.append(b"x").unwrap().wait().unwrap();
    log.close().unwrap();
    kept.push((13, 1));
    let log = small().open(dir.path()).unwrap();
    assert_eq!(numbers(&log), kept);
    // Again, with the larger segment in the log, and a crash's view of it: nothing is torn.
    assert_eq!(log.truncate_after(Lsn::new(3)).unwrap(), Lsn::new(3));
    drop(log);
    let log = small().open(dir.path()).unwrap();
    kept.truncate(3);
    assert_eq!(numbers(&log), kept);
}
