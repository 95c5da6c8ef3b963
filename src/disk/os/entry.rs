//! Entries of a log's directory: made with exactly the mode that was asked for, and opened only where they
//! are regular files. Nothing is followed, and nothing is waited for: not the other end of a named pipe,
//! whoever puts one there, and when.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Files that only their owner may read and write.
pub(super) const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Tries of an open beside somebody who makes and removes the file.
const TRIES_MAX: usize = 100;

/// Opens an entry as it is, where `flags` cannot make it wait.
pub(super) fn open_at(
    dir: &OwnedFd,
    name: impl rustix::path::Arg,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::io::retry_on_intr(|| fs::openat(dir, name.as_str()?, flags, Mode::empty()))
}

/// Makes a file that is not there. Its mode is the one given, whatever the umask is.
pub(super) fn create(
    dir: &OwnedFd,
    name: &str,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let flags =
        flags | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::io::retry_on_intr(|| fs::openat(dir, name, flags, PRIVATE & mode))?;
    match set_mode(&fd, mode) {
        Ok(()) => Ok(fd),
        Err(error) => {
            // The first error is the one to report.
            let _left_behind = fs::unlinkat(dir, name, AtFlags::empty());
            Err(error)
        }
    }
}

/// Gives what was just made its mode. File systems without modes may refuse that: theirs is what it has.
pub(super) fn set_mode(fd: &OwnedFd, mode: Mode) -> rustix::io::Result<()> {
    let now = fs::fstat(fd)?.st_mode;
    // A directory may have got its group from the one it stands in, and is to pass it on.
    let wanted = mode | Mode::from_raw_mode(now & 0o7000);
    match if now & 0o7777 == wanted.as_raw_mode() { Ok(()) } else { fs::fchmod(fd, wanted) } {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) | Ok(()) => Ok(()),
        failed => failed,
    }
}

/// Opens a regular file, and nothing else. Its type is looked at before, since opening a device may have
/// effects, and afterwards, since it may be another by then.
pub(super) fn open(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    check_type(fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)?;
    let fd = open_at(dir, name, flags | OFlags::NONBLOCK)?;
    check_type(fs::fstat(&fd)?.st_mode)?;
    // With it io_uring would not wait for a file system that must.
    let kept = fs::fcntl_getfl(&fd)? - OFlags::NONBLOCK;
    fs::fcntl_setfl(&fd, kept)?;
    Ok(fd)
}

/// Opens a regular file for reading and writing; makes it where there is none.
pub(super) fn open_or_create(dir: &OwnedFd, name: &str, mode: Mode) -> io::Result<OwnedFd> {
    for _ in 0..TRIES_MAX {
        match open(dir, name, OFlags::RDWR) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match create(dir, name, OFlags::empty(), mode) {
            Err(Errno::EXIST) => {}
            made => return Ok(made?),
        }
    }
    Err(Errno::BUSY.into())
}

fn check_type(mode: fs::RawMode) -> io::Result<()> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Ok(()),
        FileType::Symlink => Err(Errno::LOOP.into()),
        FileType::Directory => Err(Errno::ISDIR.into()),
        FileType::Fifo => Err(other("a named pipe")),
        FileType::Socket => Err(other("a socket")),
        FileType::CharacterDevice | FileType::BlockDevice => Err(other("a device")),
        FileType::Unknown => Err(other("no regular file")),
    }
}

fn other(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}"))
}
