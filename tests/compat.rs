//! Logs that earlier versions wrote stay readable: each fixture is opened by a reader without a lock,
//! then for writing, read again, and appended to.
//!
//! A fixture is the content of a directory in text: a line `file NAME BYTES` for each file, and under
//! it the rows of 32 bytes that are not all zeros, each with its offset. `tests/compat/v1/README.md` says
//! how each was made.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use uringlog::{Lsn, Options, Reader};

const ROW: usize = 32;

/// As it was before segments had footers and logs a mark: 33 records and the last one, closed.
#[test]
fn an_early_log_that_was_closed() {
    check("early-clean", 1, &|lsn| early(lsn, 34), 34, true);
}

/// The same, whose process died with an empty batch and one record behind it.
#[test]
fn an_early_log_that_was_not_closed() {
    check("early-crash", 1, &|lsn| early(lsn, 34), 34, false);
}

/// Trimmed, recycled, truncated twice, with cursors, and closed.
#[test]
fn a_log_with_a_past_that_was_closed() {
    let dir = check("past-clean", 41, &past, 75, true);
    let names: Vec<_> = uringlog::cursors(dir.path()).expect("the cursors are read");
    let cursors: Vec<_> = names.iter().map(|c| (c.name.as_str(), c.position.get())).collect();
    assert_eq!(cursors, [("clamped", 71), ("indexer", 45)]);
}

/// The same, whose process died.
#[test]
fn a_log_with_a_past_that_was_not_closed() {
    check("past-crash", 41, &past, 75, false);
}

fn early(lsn: u64, last: u64) -> Vec<u8> {
    match lsn {
        _ if lsn == last => b"the last".to_vec(),
        31 => b"batch one".to_vec(),
        32 => Vec::new(),
        33 => b"batch three".to_vec(),
        _ => {
            let mut record = format!("record {lsn} ").into_bytes();
            record.resize(record.len() + (lsn * 37 % 900) as usize, b'a' + (lsn % 26) as u8);
            record
        }
    }
}

fn past(lsn: u64) -> Vec<u8> {
    let generation = match lsn {
        ..=60 => 0,
        61..=70 => 1,
        _ => 2,
    };
    past_record(generation, lsn)
}

fn past_record(generation: u64, lsn: u64) -> Vec<u8> {
    format!("generation {generation}, record {lsn}").into_bytes()
}

/// What every fixture must show.
fn check(
    name: &str,
    first: u64,
    expected: &dyn Fn(u64) -> Vec<u8>,
    last: u64,
    clean: bool,
) -> tempfile::TempDir {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/compat/v1/{name}.txt"));
    let text = fs::read_to_string(path).expect("the fixture is read");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    unpack(&text, dir.path());
    // What nothing vouches for is seen by whoever opens the log.
    let vouched = if clean { last } else { last - 1 };
    let records = |reader: Reader| -> Vec<(u64, Vec<u8>)> {
        reader.map(|r| r.expect("a record")).map(|(lsn, bytes)| (lsn.get(), bytes)).collect()
    };
    let wanted = |last: u64| -> Vec<_> { (first..=last).map(|lsn| (lsn, expected(lsn))).collect() };
    let reader = Reader::open_dir(dir.path(), Lsn::NONE).expect("a reader");
    assert_eq!(records(reader), wanted(vouched), "{name}");
    let inspection = uringlog::inspect(dir.path()).expect("it is described");
    assert_eq!((inspection.first_lsn.get(), inspection.last_lsn.get()), (first, last));

    let options = || {
        Options::new()
            .create(false)
            .segment_bytes(64 << 10)
            .segments_ready(1)
            .rings(1)
            .ring_bytes(4096)
            .batch_bytes_max(64 << 10)
            .large_bytes_max(64 << 10)
            .calibrate(false)
            .buffered(true)
    };
    let log = options().open(dir.path()).expect("it opens");
    assert_eq!(log.recovery().clean, clean, "{name}");
    assert_eq!(records(log.reader(Lsn::NONE).expect("a reader")), wanted(last), "{name}");
    let from_the_start = log.reader_at(SystemTime::UNIX_EPOCH).expect("a reader");
    assert_eq!(from_the_start.next_lsn().get(), first);
    let late = SystemTime::now() + Duration::from_secs(3600);
    assert_eq!(log.reader_at(late).expect("a reader").next_lsn().get(), last + 1);
    let newest = log.reader_back(Lsn::NONE).expect("a reader").next().expect("one");
    assert_eq!(newest.expect("a record").0.get(), last);
    for lsn in last + 1..last + 40 {
        assert_eq!(log.append(&expected(lsn)).expect("room").wait().expect("durable").get(), lsn);
    }
    log.close().expect("it closes");
    let log = options().open(dir.path()).expect("it opens again");
    assert!(log.recovery().clean);
    assert_eq!(records(log.reader(Lsn::NONE).expect("a reader")).len() as u64, last + 40 - first);
    log.close().expect("it closes again");
    dir
}

fn unpack(text: &str, dir: &Path) {
    let mut file: Option<(String, Vec<u8>)> = None;
    let write = |file: &mut Option<(String, Vec<u8>)>| {
        if let Some((name, bytes)) = file.take() {
            fs::write(dir.join(name), bytes).expect("a file is written");
        }
    };
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["file", name, bytes] = words[..] {
            write(&mut file);
            file = Some((name.to_owned(), vec![0; bytes.parse().expect("a size")]));
        } else if let ([offset, row], Some((_, bytes))) = (&words[..], &mut file) {
            let offset = usize::from_str_radix(offset, 16).expect("an offset");
            for (at, digits) in row.as_bytes().chunks(2).enumerate() {
                let digits = std::str::from_utf8(digits).expect("digits");
                bytes[offset + at] = u8::from_str_radix(digits, 16).expect("a byte");
            }
        }
    }
    write(&mut file);
}

fn pack(dir: &Path) -> String {
    let mut text = String::new();
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    names.sort();
    for path in names {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let bytes = fs::read(&path).expect("a file");
        writeln!(text, "file {name} {}", bytes.len()).expect("memory");
        for (at, row) in bytes.chunks(ROW).enumerate() {
            if row.iter().any(|&byte| byte != 0) {
                write!(text, "{:06x} ", at * ROW).expect("memory");
                row.iter().for_each(|byte| write!(text, "{byte:02x}").expect("memory"));
                text.push('\n');
            }
        }
    }
    text
}

/// Packs the directory that COMPAT_PACK names: `COMPAT_PACK=DIR cargo test --test compat -- --ignored pack
/// --nocapture`.
#[test]
#[ignore = "makes a fixture"]
fn pack_a_directory() {
    let Some(dir) = std::env::var_os("COMPAT_PACK") else { return };
    let out = std::env::var_os("COMPAT_OUT").expect("COMPAT_OUT names the file to write");
    fs::write(out, pack(Path::new(&dir))).expect("the fixture is written");
}

/// Makes the logs with a past in the directory that COMPAT_PAST names.
#[test]
#[ignore = "makes a fixture"]
fn make_a_past() {
    let Some(base) = std::env::var_os("COMPAT_PAST") else { return };
    for end in ["past-clean", "past-crash"] {
        let dir = Path::new(&base).join(end);
        let options = Options::new()
            .segment_bytes(64 << 10)
            .segments_ready(1)
            .rings(1)
            .ring_bytes(4096)
            .batch_bytes_max(64 << 10)
            .large_bytes_max(64 << 10)
            .calibrate(false);
        let log = options.open(&dir).expect("it opens");
        let append_to = |generation: u64, last: u64| {
            while log.last_lsn().get() < last {
                let lsn = log.last_lsn().get() + 1;
                let ticket = log.append(&past_record(generation, lsn)).expect("room");
                ticket.wait().expect("durable");
            }
        };
        append_to(0, 66);
        log.cursor("indexer").expect("a cursor").set(Lsn::new(45)).expect("it is set");
        let mut clamped = log.cursor("clamped").expect("a cursor");
        clamped.set(Lsn::new(64)).expect("it is set");
        log.trim(Lsn::new(41)).expect("it is trimmed");
        // Time for the trimmed segments to be used again.
        std::thread::sleep(Duration::from_millis(300));
        log.truncate_after(Lsn::new(60)).expect("it is cut");
        append_to(1, 75);
        clamped.set(Lsn::new(76)).expect("it is set");
        log.truncate_after(Lsn::new(70)).expect("it is cut again");
        append_to(2, 74);
        std::thread::sleep(Duration::from_millis(100));
        append_to(2, 75);
        if end == "past-crash" {
            // The files as they stand.
            let copy = Path::new(&base).join("copy");
            fs::create_dir(&copy).expect("a directory");
            for entry in fs::read_dir(&dir).expect("a directory") {
                let path = entry.expect("an entry").path();
                fs::copy(&path, copy.join(path.file_name().expect("a name"))).expect("a copy");
            }
            log.close().expect("it closes");
            fs::remove_dir_all(&dir).expect("it goes");
            fs::rename(&copy, &dir).expect("it is renamed");
        } else {
            log.close().expect("it closes");
        }
    }
}
