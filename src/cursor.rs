//! Cursors: named positions of consumers, kept beside the log, each in a small file that is replaced
//! atomically (`slots.rs`).
//!
//! Every change, and a trim's look at all of them, happens under the directory's cursor lock, which
//! works between threads and processes alike. So a trim never passes a position that was acknowledged,
//! and of two handles of one cursor neither takes it back by [`Cursor::advance`].

use core::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::commit::Level;
use crate::disk::os::OsStore;
use crate::disk::{LockGuard, Store};
use crate::error::{Damage, IoError, OpenError};
use crate::fork::ForkGuard;
use crate::frame::{LogId, NUMBER_MAX, get_u64};
use crate::log::Log;
use crate::lsn::Lsn;
use crate::mark::{MARK_NAME, Mark, read_mark};
use crate::read::Reader;
use crate::recovery;
use crate::segment::{self, ScanError, Segment};
use crate::shared::Shared;
use crate::slots::{self, Kind, Slot, SlotFile};
use crate::status::{self, StatusView};

pub use error::CursorError;

/// What follows a cursor's name in the name of its file.
pub(crate) const CURSOR_SUFFIX: &str = ".cursor";
const NAME_BYTES_MAX: usize = 100;
/// Looks at a file without the lock, while others may be writing it.
const LOOKS_MAX: u32 = 3;

/// A named position of a consumer in the log, durable: the number of the next record to consume.
///
/// [`Log::cursor`] opens one in the process that writes the log, [`Cursor::open_dir`] in any other.
/// Any number of handles, in any processes, may be open for one name. Trimming by age or size does
/// not pass a cursor, unless the log's options say so.
///
/// A handle does not keep the log open. Calls block: for the lock that all cursors of the log share,
/// which others hold for a small durable write or a trim's bookkeeping, and for the disk.
pub struct Cursor {
    place: Place,
    name: String,
    position: u64,
    /// Generation of the log that the handle last saw.
    generation: u64,
    /// Sequence number in the file that this handle knows to be durable.
    durable: Option<u64>,
    /// What was last seen to be durable in the log, and in which generation; without a writer here.
    end: Option<(u64, u64)>,
}

/// A cursor as it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CursorInfo {
    /// Its name.
    pub name: String,
    /// Number of the next record that its consumer will take.
    pub position: Lsn,
}

impl Log {
    /// The cursor `name`, made at the first record that the log holds if there is none. A name is 1 to
    /// 100 bytes of `[A-Za-z0-9._-]` and does not start with `.` or `-`. Durable when it returns.
    ///
    /// # Errors
    /// The name is none, or the cursor's file cannot be made or read: [`CursorError`].
    pub fn cursor(&self, name: &str) -> Result<Cursor, CursorError> {
        Cursor::open(Place::of_writer(self.shared())?, name)
    }

    /// All cursors of the log, by name.
    ///
    /// # Errors
    /// One cannot be read: [`CursorError`].
    pub fn cursors(&self) -> Result<Vec<CursorInfo>, CursorError> {
        list(&Place::of_writer(self.shared())?)
    }

    /// Removes the cursor `name`, durably: trimming no longer waits for it.
    ///
    /// # Errors
    /// There is none of that name, among others: [`CursorError`].
    pub fn remove_cursor(&self, name: &str) -> Result<(), CursorError> {
        remove(&Place::of_writer(self.shared())?, name)
    }
}

/// All cursors of the log in `dir`, by name. A writer may be at work; nothing is changed.
///
/// # Errors
/// There is no log, or a cursor cannot be read: [`CursorError`].
pub fn cursors(dir: impl AsRef<Path>) -> Result<Vec<CursorInfo>, CursorError> {
    let store = OsStore::open_read_only(dir.as_ref()).map_err(OpenError::into_read_error)?;
    list(&Place::of_dir(store)?)
}

/// Removes the cursor `name` of the log in `dir`, durably. A writer may be at work.
///
/// # Errors
/// There is no log, or no cursor of that name, among others: [`CursorError`].
pub fn remove_cursor(dir: impl AsRef<Path>, name: &str) -> Result<(), CursorError> {
    remove(&Place::of_dir(open_for_change(dir.as_ref())?)?, name)
}

impl Cursor {
    /// The cursor `name` of the log in `dir`, from any process that may write files there; otherwise as
    /// [`Log::cursor`]. What is durable is found as a [`Follower`](crate::Follower) there finds it.
    ///
    /// # Errors
    /// As there, and there may be no log in `dir`.
    pub fn open_dir(dir: impl AsRef<Path>, name: &str) -> Result<Cursor, CursorError> {
        Cursor::open(Place::of_dir(open_for_change(dir.as_ref())?)?, name)
    }

    fn open(place: Place, name: &str) -> Result<Cursor, CursorError> {
        check_name(name)?;
        let (_lock, mark) = place.lock()?;
        let (file, position) = match place.open_file(name, None)? {
            Some(found) => {
                // Whoever made it may have died before its name was durable.
                place.sync_names()?;
                found
            }
            None => (place.create(name, mark.first_lsn)?, mark.first_lsn),
        };
        let durable = Some(file.sequence());
        let generation = place.generation(&mark)?;
        Ok(Cursor { place, name: name.to_owned(), position, generation, durable, end: None })
    }

    /// The cursor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of the next record to consume, as this handle last saw it: other handles may have
    /// moved the cursor since. A record at or behind it was not consumed; one before it was.
    pub fn position(&self) -> Lsn {
        Lsn::new(self.position)
    }

    /// Moves the cursor forward, so that `to` is the next record to consume: everything before it is
    /// done with. Durable when it returns. It never goes back: where it stands at `to` or further
    /// already, by whichever handle, it stays. One small write and a sync.
    ///
    /// # Errors
    /// `to` is further than one behind the last durable record, or the log starts later, or was
    /// truncated below `to` since this handle last looked (then the handle follows, and goes on from
    /// there); or the file cannot be written, and either position may be found again:
    /// [`CursorError`].
    pub fn advance(&mut self, to: Lsn) -> Result<(), CursorError> {
        self.place.check_fork()?;
        let (_lock, mark) = self.place.lock()?;
        let (mut file, stands) = self.find()?;
        let before = core::mem::replace(&mut self.position, stands);
        self.durable = Some(file.sequence());
        let generation = self.place.generation(&mark)?;
        if generation != self.generation {
            self.generation = generation;
            // A truncation that came before the last one left its trace in the position.
            let back = if stands < before { stands - 1 } else { u64::MAX };
            let last = mark.truncated_after.min(back);
            if to.get() > last + 1 {
                return Err(CursorError::Truncated { last: Lsn::new(last) });
            }
        }
        if to.get() <= stands {
            return Ok(());
        }
        self.check_range(to.get(), &mark)?;
        self.write(&mut file, to.get())
    }

    /// Moves the cursor to any record that the log holds, or one behind the last durable one, also back;
    /// [`Lsn::NONE`] for the first. Durable when it returns.
    ///
    /// # Errors
    /// The log does not hold that record; the file cannot be written, and either position may be found
    /// again: [`CursorError`].
    pub fn set(&mut self, to: Lsn) -> Result<(), CursorError> {
        self.place.check_fork()?;
        let (_lock, mark) = self.place.lock()?;
        let (mut file, stands) = self.find()?;
        self.position = stands;
        self.durable = Some(file.sequence());
        self.generation = self.place.generation(&mark)?;
        let to = if to == Lsn::NONE { mark.first_lsn } else { to.get() };
        self.check_range(to, &mark)?;
        self.write(&mut file, to)
    }

    fn find(&self) -> Result<(SlotFile, u64), CursorError> {
        match self.place.open_file(&self.name, self.durable)? {
            Some(found) => Ok(found),
            None => Err(CursorError::NotFound { name: self.name.clone() }),
        }
    }

    fn write(&mut self, file: &mut SlotFile, to: u64) -> Result<(), CursorError> {
        file.write(&*self.place.store, &to.to_le_bytes())?;
        self.position = to;
        self.durable = Some(file.sequence());
        Ok(())
    }

    fn check_range(&mut self, to: u64, mark: &Mark) -> Result<(), CursorError> {
        if to < mark.first_lsn {
            return Err(CursorError::Trimmed { first: Lsn::new(mark.first_lsn) });
        }
        // What was trimmed had been durable.
        if to == mark.first_lsn {
            return Ok(());
        }
        if let Some(durable) = self.place.writer_durable(mark, to - 1) {
            return within(to, durable);
        }
        if let Some((generation, durable)) = self.end
            && generation == self.generation
            && to <= durable + 1
        {
            return Ok(());
        }
        if self.place.is_shown_durable(mark, self.generation, to - 1) {
            self.end = Some((self.generation, to - 1));
            return Ok(());
        }
        let durable = recovery::vouched_lsn(&*self.place.store)?;
        // Only what was seen after the last truncation was complete may be remembered.
        self.end = (self.generation == mark.generation).then_some((mark.generation, durable));
        within(to, durable)
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("name", &self.name)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// The lowest position of all cursors, durable; none where there is no cursor. The caller holds the
/// cursor lock until it has acted on it. A cursor that cannot be read is an error, since nobody knows
/// what it still needs.
pub(crate) fn lowest_position(store: &dyn Store) -> Result<Option<u64>, ScanError> {
    let mut lowest = None;
    for name in names(store)? {
        // Opened for writing, which makes it durable: it must not come back lower than the trim.
        let Some((_, slot)) = SlotFile::open(store, &file_name(&name), Kind::Cursor)? else {
            continue;
        };
        let position = decode(store, &name, &slot)?;
        lowest = Some(lowest.map_or(position, |lowest: u64| lowest.min(position)));
    }
    Ok(lowest)
}

/// Takes back every cursor that stands further than one behind `last`, durably: for a truncation that
/// cut what they had passed, and for an open after one that a crash cut short. Takes the cursor lock.
/// The other cursors are treated also when one cannot be; the first error is returned.
pub(crate) fn clamp(store: &dyn Store, last: u64) -> Result<(), ScanError> {
    let names_now = names(store)?;
    if names_now.is_empty() {
        // One made from now on is made in what the log holds now.
        return Ok(());
    }
    let _lock = store.lock_cursors()?;
    clamp_locked(store, last)
}

/// The same, for a caller that holds the cursor lock, or on whose behalf somebody does.
pub(crate) fn clamp_locked(store: &dyn Store, last: u64) -> Result<(), ScanError> {
    let mut result = Ok(());
    for name in names(store)? {
        let clamped = clamp_one(store, &name, last);
        result = result.and(clamped);
    }
    result
}

fn clamp_one(store: &dyn Store, name: &str, last: u64) -> Result<(), ScanError> {
    let Some((mut file, slot)) = SlotFile::open(store, &file_name(name), Kind::Cursor)? else {
        return Ok(());
    };
    if decode(store, name, &slot)? > last + 1 {
        file.write(store, &(last + 1).to_le_bytes())?;
    }
    Ok(())
}

/// Where cursors live: the directory, and the writer's end of the log where that is in this process.
struct Place {
    store: Arc<dyn Store>,
    log_id: LogId,
    writer: Option<Arc<Shared>>,
    fork: ForkGuard,
}

impl Place {
    fn of_writer(shared: &Arc<Shared>) -> Result<Place, CursorError> {
        if shared.fork.forked() {
            return Err(CursorError::Forked);
        }
        let mut place = Place::of_dir(shared.store.clone())?;
        place.writer = Some(shared.clone());
        Ok(place)
    }

    fn of_dir(store: Arc<dyn Store>) -> Result<Place, CursorError> {
        match find_log_id(&*store)? {
            Some(log_id) => Ok(Place { store, log_id, writer: None, fork: ForkGuard::new() }),
            None => Err(CursorError::NoLog { dir: segment::dir_path(&*store) }),
        }
    }

    fn check_fork(&self) -> Result<(), CursorError> {
        if self.fork.forked() { Err(CursorError::Forked) } else { Ok(()) }
    }

    /// Takes the lock, and reads what the log says of itself: no trim moves it until the guard goes.
    fn lock(&self) -> Result<(LockGuard, Mark), CursorError> {
        let lock = self.store.lock_cursors()?;
        let mark = read_mark(&*self.store, Some(self.log_id))?.unwrap_or_else(Mark::new);
        Ok((lock, mark))
    }

    fn open_file(
        &self,
        name: &str,
        durable: Option<u64>,
    ) -> Result<Option<(SlotFile, u64)>, CursorError> {
        let store = &*self.store;
        match SlotFile::open_since(store, &file_name(name), Kind::Cursor, durable)? {
            None => Ok(None),
            Some((file, slot)) => Ok(Some((file, self.checked(name, &slot)?))),
        }
    }

    fn checked(&self, name: &str, slot: &Slot) -> Result<u64, CursorError> {
        if slot.log_id != self.log_id {
            let reason = format!("it is of log {}, and this is log {}", slot.log_id, self.log_id);
            return Err(CursorError::Foreign { path: self.store.path(&file_name(name)), reason });
        }
        Ok(decode(&*self.store, name, slot)?)
    }

    fn create(&self, name: &str, position: u64) -> Result<SlotFile, CursorError> {
        let content = position.to_le_bytes();
        let make = || {
            let store = &*self.store;
            SlotFile::create(store, &file_name(name), Kind::Cursor, self.log_id, &content)
        };
        match make() {
            // A log that is being opened meanwhile sweeps unfinished files.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(make()?),
            made => Ok(made?),
        }
    }

    fn sync_names(&self) -> Result<(), CursorError> {
        let failed = |error| IoError::new("sync", segment::dir_path(&*self.store), error);
        Ok(self.store.sync_dir().map_err(failed)?)
    }

    /// What the writer in this process knows to be durable; none where it does not know of `lsn`.
    fn writer_durable(&self, mark: &Mark, lsn: u64) -> Option<u64> {
        let shared = self.writer.as_ref()?;
        // While a truncation is under way, and after one by another process, it does not know.
        if shared.extent.generation() != mark.generation {
            return None;
        }
        match shared.commit.outcome(lsn, Level::Synced) {
            Some(Ok(())) | None => Some(shared.commit.watermark(Level::Synced)),
            // It has ended, and another one may have gone on.
            Some(Err(_)) => None,
        }
    }

    /// Whether a writer in another process shows the record to be durable, on the status page: at once,
    /// where batches vouch for it only later. The page alone does not do, since it may have been copied
    /// with files of another time: the record must be there, in the generation that the log is in.
    fn is_shown_durable(&self, mark: &Mark, generation: u64, lsn: u64) -> bool {
        // While a truncation is under way, what the page says may be of either generation.
        if self.writer.is_some() || generation != mark.generation {
            return false;
        }
        let Some(page) = StatusView::open(&*self.store, self.log_id) else { return false };
        let is_shown = || {
            page.look().is_some_and(|said| said.durable() >= lsn && said.generation == generation)
        };
        if !is_shown() {
            // Without readers the page is some milliseconds old.
            std::thread::sleep(2 * status::LOOK_EVERY);
            if !is_shown() {
                return false;
            }
        }
        let reader = Reader::new(self.store.clone(), Box::new(move || lsn), Lsn::new(lsn));
        // Where it cannot be read, what the batches vouch for tells why.
        reader.and_then(|mut reader| reader.advance()).unwrap_or(false)
    }

    /// The generation that the log is in. The mark tells of the next one already while a truncation is
    /// under way, or where one came to nothing: what begins it is a segment.
    fn generation(&self, mark: &Mark) -> Result<u64, CursorError> {
        if mark.generation == 0 || mark.generation_epoch < mark.first_epoch {
            return Ok(mark.generation);
        }
        let segment = Segment::open_if_there(&*self.store, mark.generation_epoch)?;
        let begun = segment.is_some_and(|(found, _)| found.header.generation >= mark.generation);
        Ok(if begun { mark.generation } else { mark.generation - 1 })
    }
}

fn within(to: u64, durable: u64) -> Result<(), CursorError> {
    if to <= durable + 1 {
        return Ok(());
    }
    Err(CursorError::BeyondEnd { durable: Lsn::new(durable) })
}

fn open_for_change(dir: &Path) -> Result<Arc<OsStore>, CursorError> {
    Ok(OsStore::open(dir, false, true).map_err(OpenError::into_read_error)?)
}

fn find_log_id(store: &dyn Store) -> Result<Option<LogId>, CursorError> {
    if let Some(slot) = slots::read(store, MARK_NAME, Kind::Mark)? {
        return Ok(Some(slot.log_id));
    }
    for epoch in segment::list_segments(store)? {
        // A writer may take one away at any moment.
        if let Some((segment, _)) = Segment::open_if_there(store, epoch)? {
            return Ok(Some(segment.header.log_id));
        }
    }
    Ok(None)
}

fn list(place: &Place) -> Result<Vec<CursorInfo>, CursorError> {
    let mut infos = Vec::new();
    for name in names(&*place.store)? {
        if let Some(position) = look(place, &name)? {
            infos.push(CursorInfo { name, position: Lsn::new(position) });
        }
    }
    Ok(infos)
}

/// Reads a cursor without the lock. A handle that moves it twice meanwhile can make both slots look
/// torn: damage counts only when it is still there.
fn look(place: &Place, name: &str) -> Result<Option<u64>, CursorError> {
    let mut looks = 0;
    loop {
        looks += 1;
        match slots::read(&*place.store, &file_name(name), Kind::Cursor) {
            Err(ScanError::Damaged(_)) if looks < LOOKS_MAX => {}
            Err(error) => return Err(error.into()),
            Ok(None) => return Ok(None),
            Ok(Some(slot)) => return place.checked(name, &slot).map(Some),
        }
    }
}

fn remove(place: &Place, name: &str) -> Result<(), CursorError> {
    check_name(name)?;
    let (_lock, _) = place.lock()?;
    let file = file_name(name);
    let removed = place.store.remove(&file);
    // Also where it is gone: whoever removed it may have died before this.
    place.sync_names()?;
    match removed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(CursorError::NotFound { name: name.to_owned() })
        }
        Err(error) => Err(IoError::new("remove", place.store.path(&file), error).into()),
    }
}

/// The names of all cursors, in order.
fn names(store: &dyn Store) -> Result<Vec<String>, IoError> {
    let all = store.list().map_err(|e| IoError::new("list", segment::dir_path(store), e))?;
    let mut names: Vec<String> = all
        .iter()
        .filter_map(|file| file.strip_suffix(CURSOR_SUFFIX))
        .filter(|name| is_name(name))
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn file_name(name: &str) -> String {
    name.to_owned() + CURSOR_SUFFIX
}

/// Whether it may be a cursor's name.
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['.', '-'])
}

fn check_name(name: &str) -> Result<(), CursorError> {
    if is_name(name) { Ok(()) } else { Err(CursorError::InvalidName { name: name.to_owned() }) }
}

fn decode(store: &dyn Store, name: &str, slot: &Slot) -> Result<u64, ScanError> {
    match get_position(&slot.content) {
        Some(position) => Ok(position),
        None => Err(ScanError::Damaged(Damage {
            segment: store.path(&file_name(name)),
            offset: 0,
            lost: None,
            detail: "the cursor's position is out of range".to_owned(),
        })),
    }
}

fn get_position(content: &[u8]) -> Option<u64> {
    (content.len() == 8)
        .then(|| get_u64(content, 0))
        .filter(|position| (1..=NUMBER_MAX).contains(position))
}

/// Reads a cursor's file for a fuzz target: a position that is accepted is one that a cursor can have.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_position(store: &dyn Store, name: &str) {
    let Ok(Some(slot)) = slots::read(store, &file_name(name), Kind::Cursor) else { return };
    if let Ok(position) = decode(store, name, &slot) {
        assert!(position > 0 && position <= NUMBER_MAX);
        assert_eq!(position.to_le_bytes()[..], slot.content[..]);
    }
}

mod error;
mod examine;
pub(crate) use examine::examine;
#[cfg(test)]
mod tests;
