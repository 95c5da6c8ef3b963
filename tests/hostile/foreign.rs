//! Files that are not the log's.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use uringlog::{Lsn, OpenError};

use crate::common::temp_dir;
use crate::kinds::copy_log;
use crate::tools::{
    FIRST_SEGMENT, RECORDS, last_segment, look_at, look_into, make_log, names_it, open_all,
    options, record,
};

/// Near misses of each name that the log has, and names that nobody could read.
const FOREIGN: [&[u8]; 28] = [
    b"notes.txt",
    b".hidden",
    b"1.seg",
    b"00000000000000000000.seg",
    b"0000000000000000001.seg",
    b"000000000000000000001.seg",
    b"+0000000000000000001.seg",
    b"00000000000000000001.seg.bak",
    b"00000000000000000001.SEG",
    b"18446744073709551614.seg",
    b"18446744073709551615.seg",
    b"18446744073709551616.seg",
    b"99999999999999999999.seg",
    b"18446744073709551615.seg.tmp",
    b"00000000000000000001.spare",
    b"00000000000000000001-mine.spare",
    b"00000000000000000001-007.spare",
    b"00000000000000000001-99999999999999999999.spare",
    b"my notes.cursor",
    b"my notes.cursor.tmp",
    b".x.cursor.tmp",
    b"direct-mail.tmp",
    b"direct-1-x.tmp",
    b"notes.tmp",
    b"log.mark.bak",
    b"\xff\xfe.seg",
    b"\xd9\xa1.seg",
    b"0000000000000000000\xff.seg.tmp",
];

fn put_foreign(dir: &Path) {
    for name in FOREIGN {
        fs::write(dir.join(OsStr::from_bytes(name)), name).expect("a file");
    }
}

/// Opened, written, trimmed, truncated, closed, after a kill and without: they stay as they are.
#[test]
fn files_with_other_names_are_left_alone() {
    let temp = temp_dir();
    let dir = temp.path().join("log");
    fs::create_dir(&dir).expect("a directory");
    put_foreign(&dir);
    for number in 0..2000 {
        fs::write(dir.join(format!("foreign-{number}")), "x").expect("a file");
    }
    let before = look_into(&dir);
    make_log(&dir);
    let said = open_all(&dir);
    assert!(said.values().all(Result::is_ok), "{said:#?}");
    let log = options().spares_max(0).open(&dir).expect("it opens");
    log.cursor("c").expect("a cursor").set(Lsn::new(40)).expect("it moves");
    log.trim(Lsn::new(30)).expect("it is trimmed");
    log.truncate_after(Lsn::new(50)).expect("it is cut");
    for lsn in 51..90 {
        log.append(&record(lsn)).expect("room").wait().expect("durable");
    }
    log.close().expect("it closes");
    // Without the mark's word for a clean end everything is looked at.
    let copy = temp.path().join("copy");
    copy_log(&dir, &copy);
    fs::remove_file(copy.join("status")).ok();
    let after = look_into(&dir);
    for (name, found) in &before {
        assert_eq!(after.get(name), Some(found), "{}", name.to_string_lossy());
    }
}

/// Making a log in a directory that is not empty is fine, unless it would write over somebody's file.
#[test]
fn a_new_log_does_not_write_over_a_file_that_was_there() {
    for (name, is_ours) in [("status", false), ("calibration", false), ("notes", true)] {
        for content in [&b"my own words"[..], &[b'w'; 4096]] {
            let temp = temp_dir();
            let path = temp.path().join(name);
            fs::write(&path, content).expect("a file");
            match options().open(temp.path()) {
                Ok(log) => {
                    assert!(is_ours, "{name}");
                    log.close().expect("it closes");
                }
                Err(OpenError::Foreign { path: found, .. }) => {
                    assert!(!is_ours && found == path, "{name}");
                }
                Err(error) => panic!("{name}: {error}"),
            }
            assert_eq!(fs::read(&path).expect("it is there"), content, "{name}");
        }
    }
}

/// Another log's segment, mark or cursor is told apart, whichever name it has.
#[test]
fn files_of_another_log_are_refused_by_name_and_left_alone() {
    let temp = temp_dir();
    let (ours, theirs) = (temp.path().join("ours"), temp.path().join("theirs"));
    make_log(&ours);
    make_log(&theirs);
    let last = last_segment(&ours);
    let behind = format!("{:020}.seg", last[..20].parse::<u64>().expect("a number") + 1);
    for (from, to) in [
        (FIRST_SEGMENT, FIRST_SEGMENT),
        (&*last, &*last),
        (FIRST_SEGMENT, &*behind),
        (FIRST_SEGMENT, &*last),
        ("log.mark", "log.mark"),
        ("c.cursor", "c.cursor"),
    ] {
        let dir = temp.path().join("mixed");
        copy_log(&ours, &dir);
        let from = if from == last { last_segment(&theirs) } else { from.to_owned() };
        fs::copy(theirs.join(&from), dir.join(to)).expect("it is copied");
        let before = look_into(&dir);
        let said = open_all(&dir);
        let what = format!("{from} as {to}: {said:#?}");
        // The first segment is not looked at before somebody reads it.
        let (opener, named) = match to {
            FIRST_SEGMENT => ("reader", FIRST_SEGMENT),
            "c.cursor" => ("cursors", "c.cursor"),
            // It is the mark, or what does not fit the mark, that is foreign.
            "log.mark" => ("writer", ".seg"),
            name => ("writer", name),
        };
        names_it(&said[opener], named);
        let after = look_into(&dir);
        assert_eq!(before[OsStr::new(to)], after[OsStr::new(to)], "{what}");
        fs::remove_dir_all(&dir).expect("it goes");
    }
}

/// A second name for a file of the log: somebody's copy, they may think.
#[test]
fn a_hard_link_is_not_written_through() {
    let temp = temp_dir();
    let dir = temp.path().join("log");
    make_log(&dir);
    let mine = temp.path().join("mine");
    fs::write(&mine, [b'm'; 4096]).expect("a file");
    fs::remove_file(dir.join("status")).ok();
    fs::hard_link(&mine, dir.join("status")).expect("a link");
    let before = look_at(&mine).expect("it is there").content;
    let said = open_all(&dir);
    assert!(said.values().all(Result::is_ok), "{said:#?}");
    assert_eq!(look_at(&mine).expect("it is there").content, before);
    let log = options().open(&dir).expect("it opens");
    assert_eq!(log.last_lsn().get(), RECORDS + 1);
}
