//! The copy of what a repair changes: whole files under their own names, in a directory of their own, durable
//! before anything is changed. `repair.txt` comes last: a directory without it is no whole copy.

use std::io;

use super::{RepairError, RepairReport};
use crate::disk::{File, Store};
use crate::error::IoError;
use crate::mem::AlignedBuf;
use crate::verify::patient::PatientFile;

/// Name of the file that says what was done.
pub(super) const NOTE_NAME: &str = "repair.txt";
const CHUNK_BYTES: usize = 1 << 20;

/// Copies the files that the report names.
pub(super) fn keep(
    store: &dyn Store,
    kept: &dyn Store,
    report: &RepairReport,
) -> Result<(), RepairError> {
    let mut unreadable = Vec::new();
    for (name, _) in &report.kept {
        let from = PatientFile::open(store, name)
            .map_err(|error| IoError::new("open", store.path(name), error))?;
        copy(&from, kept, name).map_err(|error| IoError::new("copy to", kept.path(name), error))?;
        unreadable
            .extend(from.unreadable().into_iter().map(|(at, error)| (name.clone(), at, error)));
    }
    let text = note(store, report, &unreadable);
    let write = || -> io::Result<()> {
        write_file(kept, NOTE_NAME, text.as_bytes())?;
        kept.sync_dir()
    };
    Ok(write().map_err(|error| IoError::new("write", kept.path(NOTE_NAME), error))?)
}

/// Copies a file, block by block where the device fails, and syncs the copy.
pub(super) fn copy(from: &PatientFile, to: &dyn Store, name: &str) -> io::Result<()> {
    let block = to.facts().block_bytes as u64;
    let len = from.len()?;
    let file = to.create(name)?;
    file.set_len(len.next_multiple_of(block))?;
    let mut buf = AlignedBuf::new(CHUNK_BYTES)?;
    let mut at = 0;
    while at < len {
        let read = from.read_at(at, &mut buf)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let whole = read.next_multiple_of(block as usize);
        buf[read..whole].fill(0);
        file.write_at(at, &buf[..whole])?;
        at += read as u64;
    }
    file.set_len(len)?;
    file.sync()
}

fn write_file(store: &dyn Store, name: &str, bytes: &[u8]) -> io::Result<()> {
    let block = store.facts().block_bytes;
    let whole = bytes.len().next_multiple_of(block);
    let mut buf = AlignedBuf::new(whole)?;
    buf[..bytes.len()].copy_from_slice(bytes);
    let file = store.create(name)?;
    file.set_len(whole as u64)?;
    file.write_at(0, &buf[..whole])?;
    file.set_len(bytes.len() as u64)?;
    file.sync()
}

fn note(store: &dyn Store, report: &RepairReport, unreadable: &[(String, u64, String)]) -> String {
    let mut text = format!(
        "What a repair of the log in {} changed. The files here are as they were before.\n\n",
        store.path("").display()
    );
    for step in &report.steps {
        text += &format!("{step}\n");
    }
    for lost in &report.lost {
        text += &format!("lost: {lost}\n");
    }
    for (first, last) in &report.leaving {
        text += &format!("intact, and here only: records {first} to {last}\n");
    }
    for (name, offset, error) in unreadable {
        text += &format!("{name} could not be read at offset {offset}: {error}\n");
    }
    text += "\nTo get intact records out of here: uringlog cat --skip-damage THIS-DIRECTORY\n\
             To undo the repair, before anything is appended to the log:\n";
    for name in &report.made {
        text += &format!("  remove {name} from the log\n");
    }
    for (name, to) in &report.renamed {
        text += &format!("  rename {to} in the log to {name}\n");
    }
    for (name, _) in &report.kept {
        text += &format!("  copy {name} from here into the log, in place of what is there\n");
    }
    text
}
