//! Finding a place by number and by time, with right indexes, wrong ones, and none.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use super::super::seek::Found;
use super::*;
use crate::disk::{Access, BackendInfo, DeviceFacts, Disk, File, LockError, LockGuard};
use crate::error::IoError;

type WriteFooters = fn(&Arc<MemStore>, u64);

/// What footers may be like.
fn footer_kinds() -> Vec<(&'static str, WriteFooters)> {
    vec![
        ("none", |_, _| {}),
        ("right", |store, last| write_footers(store, last, |_| {})),
        ("of other offsets", |store, last| {
            write_footers(store, last, |footer| {
                footer.entries.iter_mut().for_each(|entry| entry.offset += 512);
            });
        }),
        ("of lower numbers", |store, last| {
            write_footers(store, last, |footer| {
                footer.entries.iter_mut().for_each(|entry| entry.first_lsn -= 1);
            });
        }),
        ("of earlier times", |store, last| {
            write_footers(store, last, |footer| {
                footer.entries.iter_mut().for_each(|entry| entry.wall_ns = 0);
            });
        }),
        ("of other segments", |store, last| {
            write_footers(store, last, |footer| {
                let by = footer.entries.last().map_or(0, |entry| entry.first_lsn);
                footer.entries.iter_mut().for_each(|entry| entry.first_lsn = by);
            });
        }),
    ]
}

#[test]
fn every_number_is_found_whatever_the_footers_say() {
    for (kind, make) in footer_kinds() {
        let (store, last) = sparse_log();
        make(&store, last);
        for from in (1..=last).step_by(3) {
            let mut reader = live(&store, from, last);
            for lsn in from..(from + 3).min(last + 1) {
                let record = reader.next_record().expect("reads").expect("a record");
                assert_eq!(record.lsn().get(), lsn, "footers {kind}");
                assert_eq!(record.payload(), payload(lsn));
            }
        }
        assert_eq!(drain(&mut live(&store, 1, last)).len() as u64, last);
    }
}

#[test]
fn every_time_is_found_whatever_the_footers_say() {
    for (kind, make) in footer_kinds() {
        let (store, last) = sparse_log();
        let mut times = Vec::new();
        let mut reader = live(&store, 1, last);
        while let Some(record) = reader.next_record().expect("reads") {
            times.push(record.wall_ns);
        }
        make(&store, last);
        let view = live(&store, 1, last).view;
        let (low, high) = (times[0], times[times.len() - 1]);
        for time in (low - 2..high + 15).step_by(7).chain([0, u64::MAX]) {
            for durable in [last, last / 2] {
                let expected = times[..durable as usize].partition_point(|&wall| wall < time) + 1;
                let found = view.first_at(time, durable).expect("reads");
                // The first of a segment may be all that is known of it.
                let (Found::At(lsn) | Found::Somewhere(lsn)) = found;
                assert_eq!(lsn, expected as u64, "at {time} of {durable}, footers {kind}");
            }
        }
    }
}

#[test]
fn damage_before_the_first_record_does_not_hide_a_time() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, 256 << 10);
    let mut starts = Vec::new();
    while writer.header.epoch < 3 {
        starts.push((writer.next_lsn, writer.header.epoch, writer.offset, writer.wall_ns));
        writer.sync_then_batch(&[&[7; 1500]]);
        writer.wall_ns += 5;
    }
    let last = writer.next_lsn - 1;
    starts.retain(|start| start.1 == 1);
    let first = starts[starts.len() / 2].0;
    writer.trim(1, first).expect("it is trimmed");
    let (_, _, offset, _) = starts[starts.len() / 4];
    store.alter(&segment_name(1), offset as usize, 64, |byte| !byte);
    for &(lsn, _, _, wall_ns) in &starts {
        let store: Arc<dyn Store> = store.clone();
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(wall_ns);
        let from = open::From::Time(time);
        let mut reader =
            Reader::with(store, Watermark::Told(Box::new(move || last)), from).expect("a reader");
        let expected = starts.iter().find(|start| start.0 >= lsn.max(first)).expect("there is").0;
        assert_eq!(reader.next_lsn().get(), expected, "at {wall_ns}");
        let record = reader.next_record().expect("reads").expect("a record");
        assert_eq!(record.lsn().get(), expected);
        assert!(record.written_at() >= time);
    }
}

#[test]
fn the_last_records_and_the_time_of_a_system_clock() {
    let (store, last) = sparse_log();
    let with = |from| {
        let store: Arc<dyn Store> = store.clone();
        Reader::with(store, Watermark::Told(Box::new(move || last)), from).expect("a reader")
    };
    for n in [0, 1, 2, 300, last, last + 1, u64::MAX] {
        let numbers = drain(&mut with(open::From::Last(n)));
        assert_eq!(numbers, (last - n.min(last) + 1..=last).collect::<Vec<_>>());
    }
    let time =
        with(open::From::Lsn(77)).next_record().expect("reads").expect("is there").written_at();
    let mut reader = with(open::From::Time(time));
    let from = reader.next_lsn().get();
    assert_eq!(reader.next_record().expect("reads").expect("is there").written_at(), time);
    assert!(from <= 77);
    if from > 1 {
        let mut before = with(open::From::Lsn(from - 1));
        assert!(before.next_record().expect("reads").expect("is there").written_at() < time);
    }
    let before_all = with(open::From::Time(SystemTime::UNIX_EPOCH - Duration::from_secs(1)));
    assert_eq!(before_all.next_lsn(), Lsn::FIRST);
    let after_all = with(open::From::Time(SystemTime::now()));
    assert_eq!(after_all.next_lsn().get(), last + 1);
}

#[test]
fn a_seek_in_a_log_of_many_segments_reads_few_blocks() {
    let store = MemStore::new(512);
    let mut writer = TestWriter::open(&store, 1 << 20);
    while writer.header.epoch < 66 {
        writer.sync_then_batch(&[&[7; 1500], &[8; 1800]]);
        writer.wall_ns += 5;
    }
    let last = writer.next_lsn - 1;
    write_footers(&store, last, |_| {});
    let per_segment = last / 65;
    for from in (1..last - 2 * per_segment).step_by(per_segment as usize / 2 + 7) {
        let counting = Arc::new(Counting::new(store.clone()));
        let dyn_store: Arc<dyn Store> = counting.clone();
        let mut reader =
            Reader::new(dyn_store, Box::new(move || last), Lsn::new(from)).expect("a reader");
        let record = reader.next_record().expect("reads").expect("a record");
        assert_eq!(record.lsn().get(), from);
        let (reads, bytes) = counting.counts();
        // Seven steps of a header (4 KiB) and a batch's first block, the mark, the footer, and from
        // its entry on at most 64 KiB of headers, in chunks of that size.
        assert!(reads <= 40, "{reads} reads for {from}");
        assert!(bytes <= 400 << 10, "{bytes} bytes for {from}");
    }
}

/// A store that counts what is read.
struct Counting {
    store: Arc<MemStore>,
    reads: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
}

struct CountingFile {
    file: Arc<dyn File>,
    reads: Arc<AtomicUsize>,
    bytes: Arc<AtomicUsize>,
}

impl Counting {
    fn new(store: Arc<MemStore>) -> Counting {
        Counting { store, reads: Arc::default(), bytes: Arc::default() }
    }

    fn counts(&self) -> (usize, usize) {
        (self.reads.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

impl Store for Counting {
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
        let file = Store::open(&*self.store, name, access)?;
        Ok(Arc::new(CountingFile { file, reads: self.reads.clone(), bytes: self.bytes.clone() }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.store.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.store.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.store.sync_dir()
    }
    fn disk(
        self: Arc<Self>,
        options: &crate::Options,
    ) -> Result<(Box<dyn Disk>, BackendInfo), OpenError> {
        self.store.clone().disk(options)
    }
}

impl File for CountingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len(), Ordering::Relaxed);
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, buf)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn raw_fd(&self) -> i32 {
        self.file.raw_fd()
    }
}
