//! Files with the right names and the wrong insides: empty, of absurd size, or changing while they are read.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Random, limit, role, run_again, say, skipped, temp_dir};
use crate::kinds::copy_log;
use crate::tools::{
    FIRST_SEGMENT, crc32c, last_segment, look_at, make_log, make_pipe, names_it, open_all,
};

#[test]
fn an_empty_file_is_told_from_a_good_one() {
    let temp = temp_dir();
    let made = temp.path().join("made");
    make_log(&made);
    let last = last_segment(&made);
    for (name, refuses) in [
        (FIRST_SEGMENT, Some("reader")),
        (&*last, Some("writer")),
        ("log.mark", Some("writer")),
        ("c.cursor", Some("cursors")),
        ("log.lock", None),
        ("cursors.lock", None),
        ("status", None),
        ("calibration", None),
    ] {
        let dir = temp.path().join("log");
        copy_log(&made, &dir);
        fs::write(dir.join(name), "").expect("it is emptied");
        let said = open_all(&dir);
        match refuses {
            Some(opener) => {
                names_it(&said[opener], name);
                assert_eq!(look_at(&dir.join(name)).expect("it is there").len, 0, "{name}");
            }
            None => assert!(said.values().all(Result::is_ok), "{name}: {said:#?}"),
        }
        fs::remove_dir_all(&dir).expect("it goes");
    }
}

/// As large as the file system allows, nearly all of it a hole; and a header that says it should be so.
#[test]
fn a_file_of_absurd_size_costs_neither_memory_nor_time() {
    const TEST: &str = "contents::a_file_of_absurd_size_costs_neither_memory_nor_time";
    if let Some((_, dir)) = role() {
        // What is allocated by a size runs into this.
        limit(libc::RLIMIT_AS, 2 << 30, true);
        for (opener, said) in open_all(&dir) {
            say(format_args!("{opener}: {}", said.err().unwrap_or_else(|| "ok".to_owned())));
        }
        return;
    }
    let temp = temp_dir();
    let made = temp.path().join("made");
    make_log(&made);
    let last = last_segment(&made);
    for name in [FIRST_SEGMENT, &last, "log.mark", "c.cursor", "status", "calibration", "claims"] {
        let dir = temp.path().join("log");
        copy_log(&made, &dir);
        let path = dir.join(if name == "claims" { &last } else { name });
        let Some(bytes) = grow(&path) else {
            skipped(name, "the file system takes no large file");
            return;
        };
        if name == "claims" {
            claim(&path, bytes);
            // The mark knows better where it ended: without it, every block is looked at.
            fs::remove_file(dir.join("log.mark")).expect("it goes");
        }
        let said = run_again(TEST, "open", &dir);
        assert_eq!(said.len(), 7, "{name}: {said:#?}");
        let complains = |line: &String| line.contains("memory") || line.contains("allocate");
        assert!(!said.iter().any(complains), "{name}: {said:#?}");
        fs::remove_dir_all(&dir).expect("it goes");
    }
}

/// Makes the file as large as it can be. None: only a little.
fn grow(path: &Path) -> Option<u64> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).open(path).expect("it opens");
    (41..=62).rev().map(|bits| (1u64 << bits) - 65536).find(|&bytes| file.set_len(bytes).is_ok())
}

/// Has both header copies say that the segment is as large as that.
fn claim(path: &Path, bytes: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it opens");
    let mut block = [0; 512];
    file.read_exact_at(&mut block, 0).expect("it reads");
    let block_bytes = u32::from_le_bytes(block[12..16].try_into().expect("four bytes"));
    block[48..56].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32c(&block[..132]);
    block[132..136].copy_from_slice(&crc.to_le_bytes());
    for offset in [0, u64::from(block_bytes)] {
        file.write_all_at(&block, offset).expect("it is written");
    }
}

/// Files vanish, come back, and are something else for a moment, while everybody opens the log.
#[test]
fn what_changes_while_it_is_opened_ends_in_an_error_or_does_not_matter() {
    let temp = temp_dir();
    let (made, dir) = (temp.path().join("made"), temp.path().join("log"));
    make_log(&made);
    copy_log(&made, &dir);
    let last = last_segment(&made);
    let stop = Arc::new(AtomicBool::new(false));
    let meddler = {
        let (made, dir, stop) = (made.clone(), dir.clone(), stop.clone());
        let names = [FIRST_SEGMENT.to_owned(), last, "log.mark".into(), "status".into()];
        std::thread::spawn(move || {
            let mut random = Random::new(7);
            while !stop.load(Ordering::Relaxed) {
                meddle(&made, &dir, &names[random.below(4) as usize], random.below(6));
            }
        })
    };
    let mut refused = 0;
    for _ in 0..12 {
        // Each within a time, and without a panic.
        refused += open_all(&dir).values().filter(|said| said.is_err()).count();
    }
    stop.store(true, Ordering::Relaxed);
    meddler.join().expect("it ends");
    assert!(refused > 0, "nobody met anything");
}

fn meddle(made: &Path, dir: &Path, name: &str, how: u64) {
    let (path, aside) = (dir.join(name), dir.join("aside"));
    // Whatever fails here fails because others are at work, too.
    let _moved = fs::rename(&path, &aside);
    match how {
        0 => make_pipe_if_free(&path),
        1 => drop(symlink("/dev/zero", &path)),
        2 => drop(fs::create_dir(&path)),
        3 => drop(File::create(&path)),
        4 => drop(fs::write(&path, [0x5a; 5000])),
        _ => {}
    }
    std::thread::yield_now();
    let _removed = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
    if fs::rename(&aside, &path).is_err() {
        let _copied = fs::copy(made.join(name), &path);
    }
}

fn make_pipe_if_free(path: &Path) {
    if !path.exists() {
        make_pipe(path);
    }
}
