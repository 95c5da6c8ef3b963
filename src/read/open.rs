//! Where readers come from: a log of this process, or a directory.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::seek::Found;
use super::view::View;
use super::{BackReader, Reader, Watermark, open_failed};
use crate::disk::Store;
use crate::disk::os::OsStore;
use crate::error::ReadError;
use crate::log::Log;
use crate::lsn::Lsn;
use crate::shared::Shared;

/// Where a reader starts.
#[derive(Clone, Copy)]
pub(super) enum From {
    /// At this number; 0: at the first there is.
    Lsn(u64),
    /// At the first record written then or later.
    Time(SystemTime),
    /// So many records before the end.
    Last(u64),
}

impl Log {
    /// A reader that starts at `from` ([`Lsn::NONE`] for the beginning; a number not reached yet is
    /// fine) and returns durable records only, while the log is written. It reads from the disk, and
    /// blocks while it does. A reader does not keep the log open.
    ///
    /// # Errors
    /// The log starts later, or its files cannot be read: [`ReadError`].
    pub fn reader(&self, from: Lsn) -> Result<Reader, ReadError> {
        self.reader_from(From::Lsn(from.get()))
    }

    /// A reader that starts at the first record whose batch was sealed at `time` or later, by the
    /// writer's clock ([`Record::written_at`](crate::Record::written_at)), which never goes back in a
    /// log. Where all durable records are older, it starts behind them. Finds the place by one search over
    /// the log, from the disk, and blocks meanwhile.
    ///
    /// # Errors
    /// The log's files cannot be read: [`ReadError`].
    pub fn reader_at(&self, time: SystemTime) -> Result<Reader, ReadError> {
        self.reader_from(From::Time(time))
    }

    /// A reader of the last `n` records that are durable now, or of all where there are fewer, and of
    /// what follows. Otherwise as [`reader`](Self::reader).
    ///
    /// # Errors
    /// The log's files cannot be read: [`ReadError`].
    pub fn reader_last(&self, n: u64) -> Result<Reader, ReadError> {
        self.reader_from(From::Last(n))
    }

    /// A reader of the records from `from` (inclusive) back to the log's first, newest first.
    /// [`Lsn::NONE`], and a number that is not durable yet, start at the last durable record.
    ///
    /// # Errors
    /// The log starts later, or its files cannot be read: [`ReadError`].
    pub fn reader_back(&self, from: Lsn) -> Result<BackReader, ReadError> {
        BackReader::with(self.shared().store.clone(), self.watermark(), from)
    }

    fn reader_from(&self, from: From) -> Result<Reader, ReadError> {
        Reader::with(self.shared().store.clone(), self.watermark(), from)
    }

    fn watermark(&self) -> Watermark {
        Watermark::Live(self.shared().clone())
    }
}

impl Reader {
    /// A reader of the log in `dir` that another process may be writing to. [`Lsn::NONE`] starts at
    /// the first record that the log holds; before a number that is not reached yet,
    /// [`next_record`](Self::next_record) gives `None`. Reads from the disk, and blocks while it does.
    ///
    /// It takes a record as durable when a later batch in the log says so. A writer says so with its
    /// next batch, or a few milliseconds after it has become idle, or when it closes.
    ///
    /// # Errors
    /// No log there, a number that the log no longer holds, damage, or a failed system call.
    pub fn open_dir(dir: impl AsRef<Path>, from: Lsn) -> Result<Reader, ReadError> {
        Reader::of_dir(dir.as_ref(), From::Lsn(from.get()))
    }

    /// As [`open_dir`](Self::open_dir), from the first record written at `time` or later: see
    /// [`Log::reader_at`].
    ///
    /// # Errors
    /// As there.
    pub fn open_dir_at(dir: impl AsRef<Path>, time: SystemTime) -> Result<Reader, ReadError> {
        Reader::of_dir(dir.as_ref(), From::Time(time))
    }

    /// As [`open_dir`](Self::open_dir), from so many records before the end: see
    /// [`Log::reader_last`].
    ///
    /// # Errors
    /// As there.
    pub fn open_dir_last(dir: impl AsRef<Path>, n: u64) -> Result<Reader, ReadError> {
        Reader::of_dir(dir.as_ref(), From::Last(n))
    }

    /// A reader of a log that this process writes to.
    pub(crate) fn live(shared: &Arc<Shared>, from: Lsn) -> Result<Reader, ReadError> {
        let watermark = Watermark::Live(shared.clone());
        Reader::with(shared.store.clone(), watermark, From::Lsn(from.get()))
    }

    /// A reader that goes by what the log's batches vouch for.
    pub(crate) fn vouched(store: Arc<dyn Store>, from: Lsn) -> Result<Reader, ReadError> {
        Reader::with(store.clone(), Watermark::Vouched(store), From::Lsn(from.get()))
    }

    /// The same from a time on.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn vouched_at(store: Arc<dyn Store>, time: SystemTime) -> Result<Reader, ReadError> {
        Reader::with(store.clone(), Watermark::Vouched(store), From::Time(time))
    }

    /// A reader of a log of which `durable` tells the watermark.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        durable: Box<dyn Fn() -> u64 + Send + Sync>,
        from: Lsn,
    ) -> Result<Reader, ReadError> {
        Reader::with(store, Watermark::Told(durable), From::Lsn(from.get()))
    }

    /// The reader that goes on where `other` stopped, which was told of no truncation since.
    pub(crate) fn going_on(mut self, other: &Reader) -> Reader {
        self.view.generation = self.view.generation.min(other.view.generation);
        self
    }

    fn of_dir(dir: &Path, from: From) -> Result<Reader, ReadError> {
        let store = open_store(dir)?;
        Reader::with(store.clone(), Watermark::Vouched(store), from)
    }

    pub(super) fn with(
        store: Arc<dyn Store>,
        watermark: Watermark,
        from: From,
    ) -> Result<Reader, ReadError> {
        let mut view = View::new(store, watermark)?;
        loop {
            let start = view.unless_moved(|view| view.start(from))?;
            let mut reader = Reader {
                view,
                position: start.position,
                durable: start.durable,
                cursor: None,
                batch: None,
                next: None,
                next_of: 0,
                checked_bytes: u64::MAX,
                failed: false,
            };
            let Some(wall_ns) = start.older_than_ns else { return Ok(reader) };
            match reader.skip_older(wall_ns) {
                // What stood in front was trimmed meanwhile.
                Err(ReadError::Trimmed { .. }) => view = reader.view,
                skipped => return skipped.map(|()| reader),
            }
        }
    }

    /// Steps over the records from before that time.
    fn skip_older(&mut self, wall_ns: u64) -> Result<(), ReadError> {
        while self.advance()? {
            if self.batch.as_ref().is_some_and(|unread| unread.batch.header.wall_ns >= wall_ns) {
                self.position -= 1;
                self.leave();
                break;
            }
        }
        Ok(())
    }
}

/// Where a reader starts, and what was durable then.
struct Start {
    position: u64,
    durable: u64,
    /// There may be records in front that are from before this time, and are not wanted.
    older_than_ns: Option<u64>,
}

impl View {
    fn start(&mut self, from: From) -> Result<Start, ReadError> {
        let durable = self.watermark.durable()?;
        let first = self.bounds()?.first_lsn;
        let position = match from {
            From::Lsn(0) => first,
            From::Lsn(lsn) if lsn < first => {
                return Err(ReadError::Trimmed { first: Lsn::new(first) });
            }
            From::Lsn(lsn) => lsn,
            From::Time(time) => match self.first_at(wall_ns(time), durable)? {
                Found::At(lsn) => lsn,
                Found::Somewhere(lsn) => {
                    let older_than_ns = Some(wall_ns(time));
                    return Ok(Start { position: lsn, durable, older_than_ns });
                }
            },
            From::Last(n) => (durable + 1).saturating_sub(n).max(first),
        };
        Ok(Start { position, durable, older_than_ns: None })
    }
}

impl BackReader {
    /// As [`Log::reader_back`], of the log in `dir` that another process may be writing to; what is durable
    /// is found as by [`Reader::open_dir`].
    ///
    /// # Errors
    /// No log there, a number that the log no longer holds, damage, or a failed system call.
    pub fn open_dir(dir: impl AsRef<Path>, from: Lsn) -> Result<BackReader, ReadError> {
        let store = open_store(dir.as_ref())?;
        BackReader::with(store.clone(), Watermark::Vouched(store), from)
    }
}

fn open_store(dir: &Path) -> Result<Arc<dyn Store>, ReadError> {
    let store = OsStore::open_read_only(dir).map_err(|error| open_failed(dir, error))?;
    Ok(store)
}

/// As batches say it: nanoseconds since the Unix epoch.
fn wall_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
