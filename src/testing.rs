//! What the unit tests of recovery and the readers run on: a store in memory that can be told to
//! fail after so many changes, and a writer that fills a log batch by batch.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Access, DeviceFacts, File, LockError, LockGuard, Store};
use crate::error::IoError;
use crate::footer;
use crate::frame::{self, BATCH_HEADER_BYTES, BatchContext, BatchHeader, Resume, TableEntry};
use crate::index::SegmentIndex;
use crate::mark::{Closed, Mark, MarkFile};
use crate::mem::AlignedBuf;
use crate::recovery::rewrite::{self, Rest};
use crate::recovery::{RecoverConfig, Recovered, recover};
use crate::segment::{self, Filler, LiveSegment};
use crate::truncate::{Place, TRUNCATION_TMP};
use crate::{OpenError, frame::SegmentHeader};

/// A directory in memory. Every change is durable at once.
pub(crate) struct MemStore {
    facts: DeviceFacts,
    files: Mutex<BTreeMap<String, Arc<MemFile>>>,
    /// What was done to names, in order.
    names_done: Mutex<Vec<String>>,
    /// Changes left until every further one fails.
    budget: Arc<AtomicI64>,
}

pub(crate) struct MemFile {
    bytes: Mutex<Vec<u8>>,
    block_bytes: usize,
    budget: Arc<AtomicI64>,
}

impl MemStore {
    pub(crate) fn new(block_bytes: usize) -> Arc<MemStore> {
        Arc::new(MemStore {
            facts: DeviceFacts {
                device: "0:0".to_owned(),
                file_system: "mem".to_owned(),
                volatile: true,
                direct: true,
                block_bytes,
                direct_align_bytes: block_bytes,
                logical_sector_bytes: block_bytes,
                physical_sector_bytes: block_bytes,
                write_cache: String::new(),
                fua: None,
                kernel: String::new(),
            },
            files: Mutex::default(),
            names_done: Mutex::default(),
            budget: Arc::new(AtomicI64::new(i64::MAX)),
        })
    }

    /// Lets `changes` more changes pass; every one after that fails and does nothing.
    pub(crate) fn stop_after(&self, changes: i64) {
        self.budget.store(changes, Ordering::Relaxed);
    }

    /// An empty directory beside this one: its changes count with those here.
    pub(crate) fn beside(&self) -> Arc<MemStore> {
        let mut beside = MemStore::new(self.facts.block_bytes);
        if let Some(beside) = Arc::get_mut(&mut beside) {
            beside.budget = self.budget.clone();
        }
        beside
    }

    /// A copy of all that is there, on a device with another block.
    pub(crate) fn copy(&self, block_bytes: usize) -> Arc<MemStore> {
        let copy = MemStore::new(block_bytes);
        for (name, file) in lock(&self.files).iter() {
            copy.put(name, lock(&file.bytes).clone());
        }
        copy
    }

    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        let file = MemFile {
            bytes: Mutex::new(bytes),
            block_bytes: self.facts.block_bytes,
            budget: self.budget.clone(),
        };
        lock(&self.files).insert(name.to_owned(), Arc::new(file));
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        lock(&lock(&self.files)[name].bytes).clone()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.files).keys().cloned().collect()
    }

    pub(crate) fn total_bytes(&self) -> usize {
        lock(&self.files).values().map(|file| lock(&file.bytes).len()).sum()
    }

    /// What was done to names since the last call: "remove NAME", "rename NAME", "sync".
    pub(crate) fn take_names_done(&self) -> Vec<String> {
        core::mem::take(&mut lock(&self.names_done))
    }

    /// Puts bytes into a file behind everyone's back.
    pub(crate) fn splice(&self, name: &str, offset: usize, new: &[u8]) {
        let files = lock(&self.files);
        lock(&files[name].bytes)[offset..offset + new.len()].copy_from_slice(new);
    }

    /// Changes bytes behind everyone's back.
    pub(crate) fn alter(&self, name: &str, offset: usize, len: usize, change: impl Fn(u8) -> u8) {
        let files = lock(&self.files);
        let mut bytes = lock(&files[name].bytes);
        bytes[offset..offset + len].iter_mut().for_each(|byte| *byte = change(*byte));
    }

    fn change(&self) -> io::Result<()> {
        change(&self.budget)
    }

    fn file(&self, name: &str) -> io::Result<Arc<MemFile>> {
        lock(&self.files).get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn change(budget: &AtomicI64) -> io::Result<()> {
    match budget.fetch_sub(1, Ordering::Relaxed) {
        left if left > 0 => Ok(()),
        _ => Err(io::Error::other("stopped")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics under a lock")
}

impl Store for MemStore {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("mem").join(name)
    }
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }
    fn lock(&self) -> Result<LockGuard, LockError> {
        Ok(LockGuard(Box::new(())))
    }
    fn lock_cursors(&self) -> Result<LockGuard, crate::IoError> {
        Ok(LockGuard(Box::new(())))
    }
    fn disk(
        self: Arc<Self>,
        _: &crate::Options,
    ) -> Result<(Box<dyn crate::disk::Disk>, crate::BackendInfo), OpenError> {
        Err(OpenError::Unsupported { what: "no writer runs on it".to_owned(), fix: "" })
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.change()?;
        if self.file(name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.put(name, Vec::new());
        Ok(self.file(name)?)
    }
    fn open(&self, name: &str, _: Access) -> io::Result<Arc<dyn File>> {
        Ok(self.file(name)?)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change()?;
        let file = lock(&self.files).remove(from).ok_or(io::ErrorKind::NotFound)?;
        lock(&self.files).insert(to.to_owned(), file);
        lock(&self.names_done).push(format!("rename {to}"));
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name)?;
        self.change()?;
        lock(&self.files).remove(name);
        lock(&self.names_done).push(format!("remove {name}"));
        Ok(())
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.change()?;
        lock(&self.names_done).push("sync".to_owned());
        Ok(())
    }
}

impl MemFile {
    fn check(&self, offset: u64, buf: &[u8]) {
        let aligned = |n: usize| n.is_multiple_of(self.block_bytes);
        assert!(aligned(offset as usize) && aligned(buf.len()), "{offset} {}", buf.len());
        assert!(buf.as_ptr().addr().is_multiple_of(self.block_bytes.min(4096)));
    }
}

impl File for MemFile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.bytes).len() as u64)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.check(offset, buf);
        let bytes = lock(&self.bytes);
        let at = bytes.len().min(offset as usize);
        let len = buf.len().min(bytes.len() - at);
        buf[..len].copy_from_slice(&bytes[at..at + len]);
        Ok(len)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check(offset, buf);
        change(&self.budget)?;
        let mut bytes = lock(&self.bytes);
        let end = offset as usize + buf.len();
        assert!(end <= bytes.len(), "a write grows the file");
        bytes[offset as usize..end].copy_from_slice(buf);
        Ok(())
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        change(&self.budget)?;
        lock(&self.bytes).resize(len as usize, 0);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        change(&self.budget)
    }
    fn raw_fd(&self) -> i32 {
        -1
    }
}

/// A sequence of random numbers that is the same in every run.
pub(crate) struct Seeded(AtomicU64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Seeded {
        Seeded(AtomicU64::new(seed))
    }

    /// Steps of splitmix64.
    pub(crate) fn draw(&self) -> u64 {
        let state = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Recovers with test settings.
pub(crate) fn open(store: &Arc<MemStore>, segment_bytes: u64) -> Result<Recovered, OpenError> {
    open_store(store.clone(), store.total_bytes() as u64 + 7, segment_bytes)
}

/// The same, in any store, with a seed for what is drawn.
pub(crate) fn open_store(
    store: Arc<dyn Store>,
    seed: u64,
    segment_bytes: u64,
) -> Result<Recovered, OpenError> {
    let random = Seeded::new(seed);
    let entropy = || Ok(random.draw());
    let config =
        RecoverConfig { create: true, segment_bytes, wall_now_ns: 1_000, entropy: &entropy };
    recover(&store, &config)
}

/// Writes batches the way the writer does, without its threads.
pub(crate) struct TestWriter {
    pub(crate) store: Arc<MemStore>,
    pub(crate) header: SegmentHeader,
    file: Arc<dyn File>,
    pub(crate) offset: u64,
    pub(crate) next_lsn: u64,
    pub(crate) synced_lsn: u64,
    pub(crate) prev_crc: u32,
    pub(crate) wall_ns: u64,
    pub(crate) ready: Vec<LiveSegment>,
    pub(crate) mark: MarkFile,
    index: SegmentIndex,
    /// Whether the end of each segment is kept free for its footer.
    pub(crate) keeps_footers: bool,
    segment_bytes: u64,
}

impl TestWriter {
    pub(crate) fn new(store: &Arc<MemStore>, segment_bytes: u64, recovered: Recovered) -> Self {
        TestWriter {
            store: store.clone(),
            header: recovered.live.header,
            file: recovered.live.file,
            offset: recovered.offset,
            next_lsn: recovered.next_lsn,
            synced_lsn: recovered.next_lsn - 1,
            prev_crc: recovered.prev_crc,
            wall_ns: recovered.wall_ns,
            ready: recovered.ready,
            mark: recovered.mark,
            index: recovered.index,
            keeps_footers: false,
            segment_bytes,
        }
    }

    pub(crate) fn open(store: &Arc<MemStore>, segment_bytes: u64) -> Self {
        let recovered = open(store, segment_bytes).expect("the log opens");
        TestWriter::new(store, segment_bytes, recovered)
    }

    /// Prepares segments until `count` stand ready.
    pub(crate) fn prepare(&mut self, count: usize) {
        while self.ready.len() < count {
            let epoch = self.header.epoch + 1 + self.ready.len() as u64;
            let header = SegmentHeader {
                epoch,
                salt: epoch * 77,
                segment_bytes: self.segment_bytes,
                created_wall_ns: 5,
                first_lsn: 0,
                resume: None,
                recycled: false,
                ..self.header
            };
            let mut filler = Filler::start(&*self.store, header).expect("starts");
            filler.fill().expect("fills");
            let file = filler.finish(&*self.store).expect("finishes");
            self.ready.push(LiveSegment { header, file });
        }
    }

    /// Writes a batch that vouches for everything up to `synced_lsn`; returns its offset.
    pub(crate) fn batch(&mut self, records: &[&[u8]]) -> u64 {
        let block = u64::from(self.header.block_bytes);
        let payload_bytes: usize = records.iter().map(|record| record.len()).sum();
        let content = frame::batch_content_bytes(payload_bytes as u64, records.len() as u64);
        let limit = match self.keeps_footers {
            true => footer::footer_offset(&self.header),
            false => self.header.segment_bytes,
        };
        if self.offset + content.next_multiple_of(block) > limit {
            self.prepare(1);
            let next = self.ready.remove(0);
            self.header = next.header;
            self.file = next.file;
            self.offset = self.header.data_offset();
            self.index = SegmentIndex::new(&self.header, self.next_lsn);
        }
        let (bytes, crc) = seal(self, records);
        let (header, _) =
            BatchHeader::decode(&bytes, &BatchContext::from(&self.header), self.offset)
                .expect("it was just sealed");
        self.index.add(&header, crc, self.offset + bytes.len() as u64);
        let mut aligned = AlignedBuf::new(bytes.len()).expect("memory");
        aligned[..bytes.len()].copy_from_slice(&bytes);
        self.file.write_at(self.offset, &aligned[..bytes.len()]).expect("writes");
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        self.next_lsn += records.len() as u64;
        self.prev_crc = crc;
        offset
    }

    /// The same, after all that was written before is synced.
    pub(crate) fn sync_then_batch(&mut self, records: &[&[u8]]) -> u64 {
        self.synced_lsn = self.next_lsn - 1;
        self.batch(records)
    }

    /// Ends as a clean close does.
    pub(crate) fn close(mut self) {
        self.sync_then_batch(&[]);
        let (epoch, end_offset, crc) = (self.header.epoch, self.offset, self.prev_crc);
        let mark = Mark { closed: Some(Closed { epoch, end_offset, crc }), ..*self.mark.get() };
        self.mark.set(&*self.store, mark).expect("the mark is written");
    }

    /// The footer of the live segment as it stands.
    pub(crate) fn footer(&self) -> Vec<u8> {
        let bytes = footer::footer_bytes(self.header.segment_bytes, self.header.block_bytes);
        let mut footer = vec![0; bytes as usize];
        self.index.footer().encode(&mut footer);
        footer
    }

    /// Prepares one more segment, out of a spare.
    pub(crate) fn recycle(&mut self, spare: &str) {
        let epoch = self.header.epoch + 1 + self.ready.len() as u64;
        let header = SegmentHeader {
            epoch,
            salt: epoch * 79 + (self.header.generation << 32),
            segment_bytes: self.segment_bytes,
            created_wall_ns: 5,
            first_lsn: 0,
            resume: None,
            recycled: true,
            ..self.header
        };
        let tmp = segment::tmp_name(epoch);
        self.store.rename(spare, &tmp).expect("it is there");
        let file = self.store.open(&tmp, Access::Write).expect("it opens");
        segment::write_headers(&*file, &header).expect("it is written");
        self.store.rename(&tmp, &frame::segment_name(epoch)).expect("it gets its name");
        self.ready.push(LiveSegment { header, file });
    }

    /// Trims as the log does: the mark, then the segments below it.
    pub(crate) fn trim(&mut self, first_epoch: u64, first_lsn: u64) -> io::Result<()> {
        let other = |error| io::Error::other(format!("{error:?}"));
        let mark = Mark { first_epoch, first_lsn, ..*self.mark.get() };
        self.mark.set(&*self.store, mark).map_err(other)?;
        for epoch in segment::list_segments(&*self.store).map_err(other)? {
            if epoch < first_epoch {
                self.store.rename(
                    &frame::segment_name(epoch),
                    &segment::spare_name(epoch, self.header.generation),
                )?;
            }
        }
        self.store.sync_dir()
    }

    /// Truncates as the log does. After an error the writer is of no use any more.
    pub(crate) fn truncate(&mut self, lsn: u64) -> io::Result<()> {
        self.truncate_on_disk(lsn).map_err(|error| io::Error::other(format!("{error:?}")))
    }

    fn truncate_on_disk(&mut self, lsn: u64) -> Result<(), OpenError> {
        let store = self.store.clone();
        let failed = |error| OpenError::Io(IoError::new("truncate", store.path(""), error));
        let mark = *self.mark.get();
        let place = Place::find(&*store, mark.first_epoch, self.header.epoch, lsn)?;
        let header = SegmentHeader {
            epoch: place.segment.epoch + 1,
            salt: self.header.salt ^ (lsn + 1) << 32 ^ self.header.generation,
            segment_bytes: self.segment_bytes,
            first_lsn: place.next_lsn,
            resume: Some(Resume { prev_end_offset: place.offset, prev_batch_crc: place.crc }),
            generation: mark.generation.max(self.header.generation) + 1,
            truncated_after: lsn,
            recycled: false,
            ..self.header
        };
        let file = Filler::fill_new(&*store, TRUNCATION_TMP, &header).map_err(failed)?;
        let rest = Rest {
            segments: core::slice::from_ref(&place.segment),
            batches: &place.rest,
            last_lsn: lsn,
            vouched_lsn: lsn,
        };
        let end = rewrite::write_again(&*store, &rest, &header, &*file, self.wall_ns)?;
        segment::write_headers(&*file, &header).map_err(failed)?;
        file.sync().map_err(failed)?;
        let mark = Mark {
            generation: header.generation,
            generation_epoch: header.epoch,
            truncated_after: lsn,
            ..mark
        };
        self.mark.set(&*store, mark)?;
        store.rename(TRUNCATION_TMP, &frame::segment_name(header.epoch)).map_err(failed)?;
        store.sync_dir().map_err(failed)?;
        for epoch in segment::list_segments(&*store)? {
            if epoch > header.epoch {
                let spare = segment::spare_name(epoch, self.header.generation);
                store.rename(&frame::segment_name(epoch), &spare).map_err(failed)?;
            }
        }
        store.sync_dir().map_err(failed)?;
        (self.header, self.file) = (header, file);
        (self.offset, self.prev_crc, self.index) = (end.offset, end.prev_crc, end.index);
        (self.next_lsn, self.synced_lsn) = (lsn + 1, lsn);
        self.ready.clear();
        Ok(())
    }
}

/// The bytes of the next batch of `writer`, and its header's checksum.
pub(crate) fn seal(writer: &TestWriter, records: &[&[u8]]) -> (Vec<u8>, u32) {
    let payload_bytes: usize = records.iter().map(|record| record.len()).sum();
    let content = frame::batch_content_bytes(payload_bytes as u64, records.len() as u64) as usize;
    let mut bytes = vec![0; content.next_multiple_of(writer.header.block_bytes as usize)];
    let mut at = BATCH_HEADER_BYTES;
    let mut entry_at = frame::table_offset(payload_bytes);
    let table_at = entry_at;
    for record in records {
        bytes[at..at + record.len()].copy_from_slice(record);
        at += record.len();
        let entry = TableEntry { len: record.len() as u32, crc: frame::crc32c(record) };
        bytes[entry_at..entry_at + 8].copy_from_slice(&entry.to_bits().to_le_bytes());
        entry_at += 8;
    }
    let header = BatchHeader {
        context: BatchContext::from(&writer.header),
        offset: writer.offset,
        first_lsn: writer.next_lsn,
        count: records.len() as u32,
        payload_bytes: payload_bytes as u32,
        wall_ns: writer.wall_ns,
        synced_lsn: writer.synced_lsn,
        prev_crc: writer.prev_crc,
        table_crc: frame::crc32c(&bytes[table_at..entry_at]),
    };
    let crc = header.encode(&mut bytes);
    (bytes, crc)
}
