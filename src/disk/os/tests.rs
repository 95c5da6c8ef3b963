//! The store on a real directory, and the helpers with which the disks are tested on it.

use super::*;
use crate::disk::{Done, Op, OpKind};

/// A store in a temporary directory, for the tests of everything that stands on it.
pub(crate) struct OsDir {
    pub(crate) store: Arc<OsStore>,
    pub(crate) temp: tempfile::TempDir,
}

impl OsDir {
    /// None, with a line saying so, where there is no direct I/O.
    pub(crate) fn new() -> Option<OsDir> {
        let temp = tempfile::tempdir().unwrap();
        match OsStore::open(temp.path(), false, false) {
            Ok(store) => Some(OsDir { store, temp }),
            Err(error @ OpenError::Unsupported { .. }) => {
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The same through the page cache.
    pub(crate) fn buffered() -> OsDir {
        let temp = tempfile::tempdir().unwrap();
        let mut store = OsStore::open(temp.path(), false, true).unwrap();
        let facts = &mut Arc::get_mut(&mut store).unwrap().facts;
        (facts.direct, facts.direct_align_bytes) = (false, 0);
        OsDir { store, temp }
    }

    /// A new file of zeros.
    pub(crate) fn file(&self, name: &str, len: u64) -> Arc<dyn File> {
        let file = self.store.create(name).unwrap();
        file.allocate(len).unwrap();
        file.write_at(0, &AlignedBuf::new(len as usize).unwrap()).unwrap();
        file.sync().unwrap();
        file
    }

    pub(crate) fn read(&self, file: &Arc<dyn File>, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = AlignedBuf::new(len).unwrap();
        let read = file.read_at(offset, &mut buf).unwrap();
        buf[..read].to_vec()
    }

    /// Durable and plain writes of several sizes, then a sync, each checked on the file.
    pub(crate) fn check_writes(&self, disk: &mut dyn Disk, name: &str) {
        let file = self.file(name, 4 << 20);
        let mut offset = 0;
        for (token, len) in [4096, 65536, 1 << 20, 2 << 20].into_iter().enumerate() {
            let fill = token as u8 + 1;
            disk.submit(write_op(token as u64, &file, offset, len, fill, token != 1));
            let done = reap_one(disk);
            assert!(done.result.is_ok(), "{name}: {:?}", done.result);
            assert_eq!((done.token, done.buf.unwrap().len()), (token as u64, len));
            assert_eq!(self.read(&file, offset, len), vec![fill; len], "{name}");
            offset += len as u64;
        }
        disk.submit(Op { token: 99, file, kind: OpKind::Sync });
        let done = reap_one(disk);
        assert!(done.result.is_ok() && done.buf.is_none() && done.token == 99, "{name}");
        let mut none = Vec::new();
        disk.reap(true, &mut none);
        assert!(none.is_empty(), "nothing is under way, so nothing is waited for");
    }
}

pub(crate) fn write_op(
    token: u64,
    file: &Arc<dyn File>,
    offset: u64,
    len: usize,
    fill: u8,
    durable: bool,
) -> Op {
    let mut buf = AlignedBuf::new(len).unwrap();
    buf.fill(fill);
    let kind = OpKind::Write { offset, buf, len, durable };
    Op { token, file: Arc::clone(file), kind }
}

pub(crate) fn reap_one(disk: &mut dyn Disk) -> Done {
    let mut done = Vec::new();
    disk.reap(true, &mut done);
    assert_eq!(done.len(), 1);
    done.pop().unwrap()
}

#[test]
fn files_are_created_listed_renamed_cut_and_removed() {
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a/b");
    assert!(matches!(OsStore::open(&path, false, true), Err(OpenError::NotFound { .. })));
    let store = OsStore::open(&path, true, true).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert!(store.list().unwrap().is_empty(), "the probe's file is gone");

    let file = store.create("x").unwrap();
    assert_eq!(store.create("x").err().unwrap().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(mode(&store.path("x")), 0o600);
    file.allocate(1 << 20).unwrap();
    assert_eq!(file.len().unwrap(), 1 << 20);
    let block = store.facts().block_bytes;
    let mut buf = AlignedBuf::new(2 * block).unwrap();
    buf.fill(3);
    file.write_at(block as u64, &buf).unwrap();
    file.sync().unwrap();
    file.set_len(2 * block as u64).unwrap();
    store.rename("x", "y").unwrap();
    store.sync_dir().unwrap();
    assert_eq!(store.list().unwrap(), ["y"]);

    let file = store.open("y", Access::Read).unwrap();
    let mut back = AlignedBuf::new(4 * block).unwrap();
    assert_eq!(file.read_at(0, &mut back).unwrap(), 2 * block, "up to the end of the file");
    assert!(back[..block].iter().all(|&byte| byte == 0));
    assert!(back[block..2 * block].iter().all(|&byte| byte == 3));
    store.remove("y").unwrap();
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_file_that_ends_inside_a_block_is_read_to_its_end() {
    let dir = OsDir::buffered();
    std::fs::write(dir.store.path("t"), [9; 5000]).unwrap();
    for dir in [Some(dir), OsDir::new()].into_iter().flatten() {
        std::fs::write(dir.store.path("t"), [9; 5000]).unwrap();
        let file = dir.store.open("t", Access::Read).unwrap();
        assert_eq!(dir.read(&file, 0, 16384), [9; 5000]);
    }
}

#[test]
fn links_pipes_and_directories_are_refused() {
    let dir = OsDir::buffered();
    std::os::unix::fs::symlink("/etc/passwd", dir.store.path("link")).unwrap();
    std::fs::create_dir(dir.store.path("dir")).unwrap();
    fs::mknodat(&dir.store.dir, "pipe", FileType::Fifo, Mode::RUSR, 0).unwrap();
    for name in ["link", "dir", "pipe"] {
        assert!(dir.store.open(name, Access::Read).is_err(), "{name}");
    }
}

#[test]
fn the_lock_is_held_once_and_names_its_holder() {
    let dir = OsDir::buffered();
    let other = OsStore::open(dir.temp.path(), false, true).unwrap();
    let guard = dir.store.lock().ok().unwrap();
    let Err(LockError::Held(holder)) = other.lock() else { panic!("locked twice") };
    let holder = holder.unwrap();
    assert_eq!(holder.pid, std::process::id());
    assert!(holder.name.is_some());
    drop(guard);
    assert!(other.lock().is_ok());
}

#[test]
fn a_lock_on_a_removed_file_excludes_nobody_and_is_taken_again() {
    let dir = OsDir::buffered();
    let first = dir.store.lock().ok().unwrap();
    let open = entry::open_at(&dir.store.dir, LOCK_NAME, OFlags::RDWR).unwrap();
    assert!(dir.store.is_current(&open, LOCK_NAME));
    dir.store.remove(LOCK_NAME).unwrap();
    assert!(!dir.store.is_current(&open, LOCK_NAME));
    let _second = dir.store.lock().ok().unwrap();
    drop(first);
    assert!(matches!(dir.store.lock(), Err(LockError::Held(_))));
}

#[test]
fn holders_are_found_by_device_and_inode() {
    let locks = "1: POSIX  ADVISORY  WRITE 7 fe:00:55 0 EOF\n\
                 2: FLOCK  ADVISORY  WRITE 8 fe:01:55 0 EOF\n\
                 2: -> FLOCK  ADVISORY  WRITE 9 fe:00:55 0 EOF\n\
                 3: FLOCK  ADVISORY  WRITE 10 fe:00:55 0 EOF\n\
                 4: FLOCK  ADVISORY  WRITE 11 00:1f:66 0 EOF\nrubbish\n";
    assert_eq!(parse_holder(locks, 0xfe, 0, 55), Some(10));
    assert_eq!(parse_holder(locks, 0xfe, 2, 55), None, "two with this inode");
    assert_eq!(parse_holder(locks, 0, 0x22, 66), Some(11));
    assert_eq!(parse_holder(locks, 0xfe, 0, 77), None);
}

#[test]
fn reading_only_changes_nothing() {
    let Some(dir) = OsDir::new() else { return };
    assert!(OsStore::open_read_only(dir.temp.path()).unwrap().facts().direct);
    dir.file(&frame::segment_name(1), 1 << 16);
    let reader = OsStore::open_read_only(dir.temp.path()).unwrap();
    assert!(reader.facts().direct);
    assert_eq!(reader.facts().block_bytes, dir.store.facts().block_bytes);
    assert_eq!(reader.list().unwrap(), [frame::segment_name(1)]);
    let nowhere = OsStore::open_read_only(&dir.temp.path().join("none"));
    assert!(matches!(nowhere, Err(OpenError::NotFound { .. })));
}

#[test]
fn a_short_write_goes_on_from_the_alignment() {
    assert_eq!(aligned_progress(4096, 4096, 512), 4096);
    assert_eq!(aligned_progress(1000, 4096, 512), 512);
    assert_eq!(aligned_progress(1000, 1000, 512), 1000);
    assert_eq!(aligned_progress(100, 4096, 512), 0);
    assert_eq!(aligned_progress(100, 4096, 1), 100);
}
