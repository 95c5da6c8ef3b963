//! Who may do what: the modes of what the log makes, and directories and files without rights.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use uringlog::{OpenError, Options};

use crate::common::{eventually, role, run_again, say, skipped, with_mount};
use crate::tools::{
    FIRST_SEGMENT, c_path, is_root, last_segment, look_into, make_log, names_it, open_all, options,
    record,
};

/// A place that another user can reach.
fn reachable_dir() -> tempfile::TempDir {
    let temp = tempfile::tempdir().expect("a directory");
    chmod(temp.path(), 0o755);
    temp
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("the mode is set");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o7777
}

/// Lives a life in which every file is made: segments, spares, mark, cursor, locks, status.
fn live(dir: &Path, options: Options) {
    let log = options.spares_max(4).open(dir).expect("it opens");
    for lsn in 1..=80 {
        log.append(&record(lsn)).expect("room").wait().expect("durable");
    }
    log.cursor("c").expect("a cursor");
    log.trim(uringlog::Lsn::new(60)).expect("it is trimmed");
    log.truncate_after(uringlog::Lsn::new(70)).expect("it is cut");
    log.close().expect("it closes");
    uringlog::Cursor::open_dir(dir, "of-another-process").expect("a cursor");
}

#[test]
fn what_is_made_has_the_mode_that_was_asked_for_whatever_the_umask() {
    const TEST: &str = "rights::what_is_made_has_the_mode_that_was_asked_for_whatever_the_umask";
    if let Some((umask, dir)) = role() {
        // SAFETY: takes no pointers.
        unsafe { libc::umask(umask.parse().expect("a number")) };
        for (name, asked) in [("private", None), ("group", Some(0o640)), ("all", Some(0o666))] {
            let options = asked.map_or_else(options, |mode| options().file_mode(mode));
            live(&dir.join(name), options);
        }
        return;
    }
    for umask in [0o000, 0o022, 0o077, 0o777] {
        let temp = reachable_dir();
        // With 0777 its parent would be a directory that even its owner cannot enter.
        run_again(TEST, &umask.to_string(), temp.path());
        for (name, of_dir, of_file) in [
            ("private", 0o700, 0o600),
            ("group", 0o750, 0o640),
            ("all", 0o777 & !0o022 | 0o022, 0o666),
        ] {
            let dir = temp.path().join(name);
            assert_eq!(mode(&dir), of_dir, "umask {umask:o}, {name}");
            for (file, found) in look_into(&dir) {
                assert_eq!(found.mode, of_file, "umask {umask:o}, {name}, {}", file.display());
            }
        }
    }
}

#[test]
fn a_mode_that_keeps_its_owner_out_or_runs_is_refused() {
    let temp = reachable_dir();
    for mode in [0, 0o400, 0o066, 0o700, 0o4600] {
        let opened = options().file_mode(mode).open(temp.path().join("log"));
        assert!(matches!(opened, Err(OpenError::InvalidOption { option: "file_mode", .. })));
    }
}

/// Everything that opens the log, as nobody.
fn as_nobody(test: &str, dir: &Path) -> Vec<(String, Result<(), String>)> {
    let lines = run_again(test, "nobody", dir);
    let split = |line: &String| {
        let (opener, said) = line.split_once(": ").expect("what it says");
        let said = if said == "ok" { Ok(()) } else { Err(said.to_owned()) };
        (opener.to_owned(), said)
    };
    lines.iter().map(split).collect()
}

/// The other process of these tests.
fn be_nobody(dir: &Path) {
    // SAFETY: takes no pointers; the process gives its rights up for good.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setgid(65534), 0);
        assert_eq!(libc::setuid(65534), 0);
    }
    for (opener, said) in open_all(dir) {
        say(format_args!("{opener}: {}", said.err().unwrap_or_else(|| "ok".to_owned())));
    }
}

fn of(said: &[(String, Result<(), String>)], opener: &str) -> Result<(), String> {
    said.iter().find(|(found, _)| found == opener).expect("it was tried").1.clone()
}

#[test]
fn without_rights_the_error_names_the_file_and_nothing_is_changed() {
    const TEST: &str = "rights::without_rights_the_error_names_the_file_and_nothing_is_changed";
    if let Some((_, dir)) = role() {
        return be_nobody(&dir);
    }
    if !is_root() {
        skipped("another user", "only root can become one");
        return;
    }
    let temp = reachable_dir();
    let dir = temp.path().join("log");
    make_log(&dir);
    let before = look_into(&dir);
    let last = last_segment(&dir);

    // Private, as it was made: nobody else gets in.
    for (opener, said) in as_nobody(TEST, &dir) {
        let error = said.expect_err(&opener);
        assert!(error.contains(dir.to_str().expect("text")), "{opener}: {error}");
        assert!(error.contains("owner and mode"), "{opener}: {error}");
    }
    // The directory lets them in, the files do not.
    chmod(&dir, 0o755);
    let said = as_nobody(TEST, &dir);
    for opener in ["reader", "follower", "inspect"] {
        names_it(&of(&said, opener), "log.mark");
    }
    names_it(&of(&said, "writer"), dir.to_str().expect("text"));
    // They may read: all that only reads works, and a writer is refused.
    for name in before.keys() {
        chmod(&dir.join(name), 0o644);
    }
    let said = as_nobody(TEST, &dir);
    for opener in ["reader", "back", "follower", "inspect", "cursors"] {
        assert_eq!(of(&said, opener), Ok(()), "{opener}");
    }
    for opener in ["writer", "cursor"] {
        names_it(&of(&said, opener), dir.to_str().expect("text"));
    }
    // They may write files, but one.
    chmod(&dir, 0o777);
    for (name, opener) in [("log.lock", "writer"), (&*last, "writer"), ("c.cursor", "cursor")] {
        for name in before.keys() {
            chmod(&dir.join(name), 0o666);
        }
        chmod(&dir.join(name), 0o444);
        names_it(&of(&as_nobody(TEST, &dir), opener), name);
    }
    // One file that nobody may read.
    chmod(&dir, 0o755);
    for name in before.keys() {
        chmod(&dir.join(name), 0o644);
    }
    chmod(&dir.join(FIRST_SEGMENT), 0o000);
    names_it(&of(&as_nobody(TEST, &dir), "reader"), FIRST_SEGMENT);
    for (name, found) in look_into(&dir) {
        // Where they had the right to write it, the mark no longer says that the log was closed.
        if !matches!(name.to_str(), Some("log.lock" | "log.mark" | "status")) {
            assert_eq!(found.content, before[&name].content, "{}", name.display());
        }
    }
}

#[test]
fn a_read_only_file_system_is_read_and_not_written() {
    let done = with_mount("tmpfs", "size=16m", |point| {
        let dir = point.join("log");
        make_log(&dir);
        let before = look_into(&dir);
        let path = c_path(point);
        let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
        let none = std::ptr::null();
        // A ring that is being taken down keeps its files open for a moment.
        eventually("nothing there is open", || {
            // SAFETY: the string ends in 0 and outlives the call; where null stands it is allowed.
            unsafe { libc::mount(none, path.as_ptr(), none, flags, none.cast()) == 0 }
        });
        let said = open_all(&dir);
        for opener in ["reader", "back", "follower", "inspect", "cursors"] {
            assert_eq!(said[opener], Ok(()), "{opener}");
        }
        for opener in ["writer", "cursor"] {
            names_it(&said[opener], "log");
            assert!(said[opener].as_ref().is_err_and(|error| error.contains("read-only")));
        }
        assert_eq!(look_into(&dir), before);
    });
    if let Err(error) = done {
        skipped("read-only", format!("nothing can be mounted: {error}"));
    }
}

/// A file that not even root may change.
#[test]
fn an_immutable_file_is_an_error_that_names_it() {
    let temp = crate::common::temp_dir();
    let dir = temp.path().join("log");
    make_log(&dir);
    let last = last_segment(&dir);
    for (name, opener) in [(&*last, "writer"), ("log.mark", "writer"), ("c.cursor", "cursor")] {
        let path = dir.join(name);
        let before = look_into(&dir);
        if !set_immutable(&path, true) {
            skipped("immutable", "the file system or this user cannot");
            return;
        }
        let said = open_all(&dir);
        // Before anything is asserted: it could not be removed otherwise.
        assert!(set_immutable(&path, false));
        names_it(&said[opener], name);
        for opener in ["reader", "back", "follower", "inspect"] {
            assert_eq!(said[opener], Ok(()), "{opener} with {name}");
        }
        assert_eq!(look_into(&dir)[std::ffi::OsStr::new(name)], before[std::ffi::OsStr::new(name)]);
    }
}

fn set_immutable(path: &Path, is_set: bool) -> bool {
    const IMMUTABLE: libc::c_long = 0x10;
    let Ok(file) = fs::File::open(path) else { return false };
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let mut flags: libc::c_long = 0;
    // SAFETY: the pointer is to a word that outlives the call.
    if unsafe { libc::ioctl(fd, libc::FS_IOC_GETFLAGS, &raw mut flags) } != 0 {
        return false;
    }
    flags = if is_set { flags | IMMUTABLE } else { flags & !IMMUTABLE };
    // SAFETY: as above.
    unsafe { libc::ioctl(fd, libc::FS_IOC_SETFLAGS, &raw const flags) == 0 }
}
