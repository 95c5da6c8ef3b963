//! Cursors in whatever state, for those who verify and repair a log.

use super::{file_name, get_position, names};
use crate::disk::Store;
use crate::error::IoError;
use crate::frame::LogId;
use crate::slots::{self, Found, Kind};
use crate::verify::{FindingKind, slot_trouble};

/// What a cursor's file is like.
pub(crate) struct Examined {
    pub(crate) file: String,
    pub(crate) slots: [Found; 2],
    /// Of another log.
    foreign: Option<LogId>,
    /// What the newest slot that is intact says.
    pub(crate) position: Option<u64>,
}

/// All cursors of a log.
pub(crate) fn examine(store: &dyn Store, log_id: Option<LogId>) -> Result<Vec<Examined>, IoError> {
    let mut all = Vec::new();
    for name in names(store)? {
        let file = file_name(&name);
        let Some(slots) = slots::examine(store, &file, Kind::Cursor)? else { continue };
        let newest = slots
            .iter()
            .filter_map(|slot| match slot {
                Found::Intact(slot) => Some(slot),
                _ => None,
            })
            .max_by_key(|slot| slot.sequence);
        let position = newest.and_then(|slot| get_position(&slot.content));
        let foreign = newest.map(|slot| slot.log_id).filter(|id| Some(*id) != log_id);
        all.push(Examined { file, slots, foreign, position });
    }
    Ok(all)
}

impl Examined {
    /// What is wrong with it; `vouched_lsn` is the last record that is durable.
    pub(crate) fn trouble(&self, vouched_lsn: u64) -> Option<(FindingKind, String)> {
        if let Some(id) = self.foreign {
            return Some((FindingKind::Stray, format!("it is a cursor of another log, {id}")));
        }
        if let Some(trouble) = slot_trouble(&self.slots) {
            return Some(trouble);
        }
        match self.position {
            None => Some((FindingKind::Damage, "the cursor's position is out of range".to_owned())),
            Some(position) if position > vouched_lsn + 1 => Some((
                FindingKind::Note,
                format!("it stands at {position}, behind what is vouched for"),
            )),
            Some(_) => None,
        }
    }

    /// Whether consumers and trims get an error from it.
    pub(crate) fn is_damaged(&self) -> bool {
        self.foreign.is_none()
            && matches!(self.trouble(u64::MAX - 1), Some((FindingKind::Damage, _)))
    }
}
