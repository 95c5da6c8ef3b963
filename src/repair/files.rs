//! Which files a repair copies, and which it cannot copy: a link, a pipe or a directory under a name of the
//! log's gets another name, and so does a file that stands where a segment is to go.

use std::collections::BTreeSet;
use std::io;

use super::RepairError;
use super::plan::Plan;
use super::step::Step;
use crate::cursor::CURSOR_SUFFIX;
use crate::disk::{Access, Store};
use crate::error::IoError;
use crate::frame;
use crate::mark::MARK_NAME;
use crate::segment;
use crate::verify::census::{Census, misplaced_name};

/// Gives names to what is kept in the log's directory, out of the way.
pub(super) struct Asides<'a> {
    store: &'a dyn Store,
    names: BTreeSet<String>,
}

impl<'a> Asides<'a> {
    pub(super) fn new(store: &'a dyn Store) -> Result<Self, IoError> {
        Ok(Asides { store, names: list(store)?.into_iter().collect() })
    }

    /// The step for what stands under a name and cannot be opened as a file; none where it can, or is gone.
    pub(super) fn unless_a_file(&mut self, name: &str) -> Result<Option<Step>, IoError> {
        match self.store.open(name, Access::Read) {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if no_file(&error) => {
                let what = match std::fs::read_link(self.store.path(name)) {
                    Ok(target) => format!("a symbolic link to {}", target.display()),
                    Err(_) => format!("no regular file ({error})"),
                };
                Ok(Some(self.step(name, what)))
            }
            Err(error) => Err(IoError::new("open", self.store.path(name), error)),
        }
    }

    /// The steps for what stands where misplaced segments go by and to, and goes nowhere itself.
    pub(super) fn before(&mut self, misplaced: &[(String, u64)]) -> Vec<Step> {
        let targets = misplaced
            .iter()
            .flat_map(|(_, epoch)| [misplaced_name(*epoch), frame::segment_name(*epoch)]);
        let moves = |name: &String| misplaced.iter().any(|(from, _)| from == name);
        let stand: Vec<String> =
            targets.filter(|name| self.names.contains(name) && !moves(name)).collect();
        let what = || "it stands where a segment of the log goes".to_owned();
        stand.iter().map(|name| self.step(name, what())).collect()
    }

    fn step(&mut self, name: &str, what: String) -> Step {
        let free = (1..=u64::MAX).map(|number| format!("{name}.stray-{number}"));
        let to = free.into_iter().find(|to| !self.names.contains(to)).unwrap_or_default();
        self.names.insert(to.clone());
        Step::Aside { name: name.to_owned(), to, what }
    }
}

/// Whether a file could not be opened because it is none.
fn no_file(error: &io::Error) -> bool {
    let kinds = matches!(error.kind(), io::ErrorKind::IsADirectory | io::ErrorKind::InvalidInput);
    kinds || matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO))
}

fn list(store: &dyn Store) -> Result<Vec<String>, IoError> {
    store.list().map_err(|error| IoError::new("list", segment::dir_path(store), error))
}

impl Step {
    /// Whether what stands under the name gets another one, and is not copied.
    fn moves(&self, of: &str) -> bool {
        matches!(self, Step::Aside { name, .. } if name == of)
    }

    /// From what to what it renames something that is kept.
    pub(super) fn renamed(&self) -> Option<(String, String)> {
        match self {
            Step::Aside { name, to, .. } => Some((name.clone(), to.clone())),
            _ => None,
        }
    }
}

impl Plan {
    /// The files that the steps change or take away, with the mark and all cursors.
    pub(super) fn keep_files(
        &mut self,
        store: &dyn Store,
        census: &Census,
    ) -> Result<(), RepairError> {
        if self.steps.is_empty() {
            return Ok(());
        }
        let mut names = Vec::new();
        let epochs = || census.segments.iter().map(|found| found.epoch);
        let given_up = || census.given_up.iter().copied();
        for step in &self.steps {
            match step {
                Step::Header { epoch, .. }
                | Step::Padding { epoch, .. }
                | Step::Footer { epoch, .. }
                | Step::Rewrite { epoch } => names.push(frame::segment_name(*epoch)),
                Step::Away { name } | Step::Back { name, .. } => names.push(name.clone()),
                Step::Start { mark } => {
                    let gone = epochs().chain(given_up()).filter(|e| *e < mark.first_epoch);
                    names.extend(gone.map(frame::segment_name));
                }
                // That before the new one is cut short at the next open.
                Step::Cut { header, .. } => {
                    let gone = epochs().chain(given_up()).filter(|e| *e + 1 >= header.epoch);
                    names.extend(gone.map(frame::segment_name));
                }
                Step::Mark { .. } | Step::Aside { .. } => {}
                Step::Cursor { file, .. } | Step::Clamp { file, .. } => names.push(file.clone()),
            }
        }
        names.push(MARK_NAME.to_owned());
        let listed = list(store)?;
        self.spares = self.spares_of(&listed, &census.strays);
        names.extend(listed.into_iter().filter(|name| name.ends_with(CURSOR_SUFFIX)));
        names.sort_unstable();
        names.dedup();
        let aside = |name: &String| self.steps.iter().any(|step| step.moves(name));
        names.retain(|name| !aside(name));
        for name in names {
            match store.open(&name, Access::Read).and_then(|file| file.len()) {
                Ok(bytes) => self.kept.push((name, bytes)),
                // Of what is missing there is no copy.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // It is no cursor, and stays.
                Err(error) if name.ends_with(CURSOR_SUFFIX) && no_file(&error) => {}
                Err(error) => return Err(IoError::new("open", store.path(&name), error).into()),
            }
        }
        Ok(())
    }
}
