//! Which names in a log's directory are the log's own: what is swept when it is opened, and what must be
//! free where it is made.

use std::io;

use crate::cursor::{self, CURSOR_SUFFIX};
use crate::disk::choice::KEPT_NAME;
use crate::disk::{Access, Store};
use crate::error::{IoError, OpenError};
use crate::frame;
use crate::mark::MARK_NAME;
use crate::mem::AlignedBuf;
use crate::segment::{self, TMP_SUFFIX};
use crate::status::STATUS_NAME;

/// Removes what an interrupted preparation or recovery left.
pub(super) fn sweep_tmp(store: &dyn Store) -> Result<usize, IoError> {
    let names = store.list().map_err(|e| IoError::new("list", segment::dir_path(store), e))?;
    let mut swept = 0;
    for name in names.iter().filter(|name| is_ours(name)) {
        store.remove(name).map_err(|e| IoError::new("remove", store.path(name), e))?;
        swept += 1;
    }
    Ok(swept)
}

/// Whether a name is that of a temporary file of the log's. Others are the user's.
fn is_ours(name: &str) -> bool {
    name.strip_suffix(TMP_SUFFIX).is_some_and(|stem| {
        frame::parse_segment_name(stem).is_some()
            || stem == MARK_NAME
            || stem == "truncation"
            || stem == STATUS_NAME
            || stem.strip_suffix(CURSOR_SUFFIX).is_some_and(cursor::is_name)
            || stem == "calibrate"
            || stem == "calibration"
            || stem.strip_prefix("direct-").is_some_and(is_process_and_serial)
    })
}

fn is_process_and_serial(name: &str) -> bool {
    let is_number = |word: &str| word.parse().is_ok_and(|number: u32| number.to_string() == word);
    name.split_once('-').is_some_and(|(process, serial)| is_number(process) && is_number(serial))
}

/// In a directory without a log, a file may have the name of one that the log would write over: somebody
/// else's, unless it begins as the log's own does.
pub(super) fn check_names_are_free(store: &dyn Store) -> Result<(), OpenError> {
    for (name, start) in [(STATUS_NAME, &b"ULstatus"[..]), (KEPT_NAME, b"version=")] {
        let path = store.path(name);
        let file = match store.open(name, Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(segment::not_opened(path, error).into()),
            Ok(file) => file,
        };
        let failed = |error| IoError::new("read", &path, error);
        let mut block = AlignedBuf::new(store.facts().block_bytes).map_err(failed)?;
        let read = file.read_at(0, &mut block).map_err(failed)?;
        // One that is empty, or zeros, was being made.
        if !block[..read].starts_with(start) && !frame::is_zero(&block[..read]) {
            let reason = "there is no log here, and the log would write over this file".to_owned();
            return Err(OpenError::Foreign { path, reason });
        }
    }
    Ok(())
}
