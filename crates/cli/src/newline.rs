//! Whether the text that was appended last ended with a newline.
//!
//! A record is a line without its newline, and `cat` puts one behind each record. That gives a text
//! back byte for byte, other than one whose last line ends without a newline. So that it comes
//! back exactly too, `append` leaves the number of such a record in a small file beside the
//! segments, and `cat` leaves the newline away when that record is the last one it prints and the
//! last one of the log. Records themselves are never touched; without the file, or once more
//! was appended, the line has a newline like every other.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use uringlog::Lsn;

const NAME: &str = "text-end";
/// More than any number takes with its newline.
const TEXT_BYTES_MAX: u64 = 32;

/// Notes that record `lsn` of the log came from a last line without a newline. The caller holds the
/// log open for writing, and the record is durable.
pub fn mark(dir: &Path, lsn: Lsn) -> io::Result<()> {
    // What a crash leaves of it is removed the next time. Whatever it is by now, nothing is written through it.
    let unfinished = dir.join(format!("{NAME}.tmp"));
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    writeln!(file, "{lsn}")?;
    file.sync_all()?;
    fs::rename(&unfinished, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

/// Removes a mark that no longer counts because more was appended.
pub fn unmark(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether record `lsn` came from a last line without a newline. An unreadable mark is none.
pub fn is_marked(dir: &Path, lsn: Lsn) -> bool {
    read(&dir.join(NAME)).is_ok_and(|text| text == format!("{lsn}\n"))
}

/// The mark's text. Anything else of that name is neither followed, nor waited for, nor read to its end.
fn read(path: &Path) -> io::Result<String> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let mut text = String::new();
    if file.metadata()?.is_file() {
        file.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    }
    Ok(text)
}
