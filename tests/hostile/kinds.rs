//! Something else stands where the log has a file of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::common::{in_time, skipped, temp_dir};
use crate::tools::{
    FIRST_SEGMENT, last_segment, look_at, look_into, make_device, make_log, make_pipe, names_it,
    open_all, options, text,
};

const KINDS: [&str; 6] = ["link", "dangling link", "directory", "pipe", "socket", "device"];

/// Puts something of this kind there; of a link, what it points to is outside. False: it cannot be made.
fn put(kind: &str, path: &Path, outside: &Path) -> bool {
    match kind {
        "link" => symlink(outside, path).expect("a link"),
        "dangling link" => symlink(outside.with_extension("missing"), path).expect("a link"),
        "directory" => {
            fs::create_dir(path).expect("a directory");
            fs::write(path.join("keep"), "mine").expect("a file in it");
        }
        "pipe" => make_pipe(path),
        // A socket's name is short.
        "socket" => match UnixListener::bind(path) {
            Ok(socket) => drop(socket),
            Err(_) => return false,
        },
        "device" => return make_device(path),
        _ => unreachable!(),
    }
    true
}

/// Every kind under every name.
#[test]
fn what_is_no_file_is_refused_by_name_and_left_alone() {
    let temp = temp_dir();
    let made = temp.path().join("made");
    make_log(&made);
    let last = last_segment(&made);
    let names = [
        FIRST_SEGMENT,
        &last,
        "log.mark",
        "log.lock",
        "cursors.lock",
        "c.cursor",
        "status",
        "calibration",
    ];
    for name in names {
        for kind in KINDS {
            let dir = temp.path().join("l");
            copy_log(&made, &dir);
            let path = dir.join(name);
            let outside = temp.path().join("outside");
            match fs::rename(&path, &outside) {
                Ok(()) => {}
                Err(_) => fs::write(&outside, vec![b'x'; 4096]).expect("a file"),
            }
            if !put(kind, &path, &outside) {
                skipped(&format!("{kind} as {name}"), "it cannot be made here");
            } else {
                check(&dir, name, kind, &outside);
            }
            fs::remove_dir_all(&dir).expect("it goes");
        }
    }
}

fn check(dir: &Path, name: &str, kind: &str, outside: &Path) {
    let path = dir.join(name);
    let (before, outside_before) = (look_at(&path), look_at(outside));
    let said = open_all(dir);
    let what = format!("{kind} as {name}: {said:#?}");
    // The page and what was measured are worth nothing: the log goes without, or makes its own.
    let is_worthless = matches!(name, "status" | "calibration");
    let is_read = !matches!(name, "log.lock" | "cursors.lock") && !is_worthless;
    match (is_worthless, name) {
        (true, _) => assert!(said.values().all(Result::is_ok), "{what}"),
        (_, "c.cursor") => names_it(&said["cursors"], name),
        (_, "cursors.lock") => names_it(&said["cursor"], name),
        // After a clean end the writer needs the last one only.
        (_, FIRST_SEGMENT) => names_it(&said["inspect"], name),
        _ => names_it(&said["writer"], name),
    }
    if is_read && name != "c.cursor" {
        for opener in ["reader", "back", "follower"] {
            // The first segment is read when its turn comes; the last one tells what is durable.
            names_it(&said[opener], name);
        }
    }
    for (opener, said) in &said {
        if let Err(error) = said {
            assert!(error.contains(name), "{opener}, {what}");
        }
    }
    assert_eq!(look_at(outside), outside_before, "{what}");
    if !is_worthless {
        assert_eq!(look_at(&path), before, "{what}");
    }
    if kind == "directory" {
        assert_eq!(fs::read(path.join("keep")).expect("it is there"), b"mine", "{what}");
    }
}

pub fn copy_log(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    for (name, _) in look_into(from) {
        fs::copy(from.join(&name), to.join(&name)).expect("it is copied");
    }
}

/// The directory itself may be reached by a link; anything else there is refused.
#[test]
fn the_directory_may_be_a_link_and_nothing_else_but_a_directory() {
    let temp = temp_dir();
    let made = temp.path().join("made");
    make_log(&made);
    let link = temp.path().join("link");
    symlink(&made, &link).expect("a link");
    assert!(open_all(&link).values().all(Result::is_ok), "{:?}", open_all(&link));

    let path = |name: &str| temp.path().join(name);
    symlink(path("missing"), path("dangling")).expect("a link");
    symlink(path("circle"), path("circle")).expect("a link");
    fs::write(path("file"), "mine").expect("a file");
    make_pipe(&path("pipe"));
    let inside = path("file").join("log");
    for dir in [path("dangling"), path("circle"), path("file"), path("pipe"), inside] {
        for (opener, said) in open_all(&dir) {
            let error = said.expect_err(opener);
            assert!(error.contains(dir.to_str().expect("text")), "{opener}: {error}");
        }
        let to_make = dir.clone();
        let made = in_time("create", move || text(options().open(&to_make).map(drop)));
        names_it(&made, dir.file_name().and_then(|name| name.to_str()).expect("text"));
    }
    assert_eq!(fs::read(path("file")).expect("it is there"), b"mine");
    assert!(!path("missing").exists());
}

/// The temporary names are the log's too: a link there is not followed, and a directory stops it.
#[test]
fn what_stands_under_a_temporary_name_is_not_written_to() {
    let temp = temp_dir();
    let outside = temp.path().join("outside");
    fs::write(&outside, "mine").expect("a file");
    let names = ["log.mark.tmp", "status.tmp", "c.cursor.tmp", "00000000000000000009.seg.tmp"];
    for name in names {
        for kind in ["link", "dangling link", "pipe", "directory"] {
            let dir = temp.path().join("l");
            make_log(&dir);
            put(kind, &dir.join(name), &outside);
            let said = open_all(&dir);
            match kind {
                "directory" => names_it(&said["writer"], name),
                _ => assert_eq!(said["writer"], Ok(()), "{kind} as {name}"),
            }
            assert_eq!(fs::read(&outside).expect("it is there"), b"mine", "{kind} as {name}");
            fs::remove_dir_all(&dir).expect("it goes");
        }
    }
}
