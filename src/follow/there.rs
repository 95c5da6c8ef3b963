//! Following a log that another process writes: the files, and the status page that says how far they
//! are durable.
//!
//! The page is a hint. What it calls durable is read and verified like everything; where the files
//! end before it (a directory that was copied, and the page last), the page is doubted until it says
//! something else, and what the batches vouch for counts, as without a page.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::{FollowError, Found};
use crate::disk::Store;
use crate::disk::os::OsStore;
use crate::error::ReadError;
use crate::frame::LogId;
use crate::lsn::Lsn;
use crate::mark;
use crate::read::{Reader, Record};
use crate::segment::{self, Segment};
use crate::status::{Said, StatusView};

/// How long it looks away without a page, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How often it is looked whether the page is still the directory's own.
const PAGE_CHECK_EVERY: Duration = Duration::from_millis(100);
/// For how long it takes records from the memory without a look at the page.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long the page must say nothing new until the batches are asked whether they vouch for more: its
/// writer may have been killed before it said all.
const COMPARE_AFTER: Duration = Duration::from_secs(1);

pub(super) struct There {
    store: Arc<dyn Store>,
    log_id: LogId,
    /// Number of the next record.
    position: u64,
    /// By what the batches vouch for, or by the page.
    reader: Reader,
    by_page: bool,
    page: Option<Arc<StatusView>>,
    page_checked: Instant,
    looked: Instant,
    /// When the batches are asked whether they vouch for more than the page says: once behind the last
    /// record.
    compare_at: Option<Instant>,
    /// Which writer's number the page said when the files ended before it.
    doubted: Option<(u64, u64)>,
    /// The log's generation as the page told it last.
    generation: Option<u64>,
    pause: Duration,
    /// The thread that wakes the task.
    alarm: Option<Alarm>,
}

impl There {
    pub(super) fn open(dir: &Path, from: Lsn) -> Result<There, ReadError> {
        let store = OsStore::open_read_only(dir).map_err(|error| error.into_read_error())?;
        There::of_store(store, from)
    }

    /// Of a log in any store.
    pub(super) fn of_store(store: Arc<dyn Store>, from: Lsn) -> Result<There, ReadError> {
        let reader = Reader::vouched(store.clone(), from)?;
        let log_id = find_log_id(&*store)?;
        let mut there = There {
            position: reader.next_lsn().get(),
            reader,
            by_page: false,
            page: None,
            page_checked: Instant::now(),
            looked: Instant::now(),
            compare_at: None,
            doubted: None,
            generation: None,
            pause: PAUSE_MIN,
            alarm: None,
            log_id,
            store,
        };
        there.look_for_page();
        Ok(there)
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn current(&self) -> Option<Record<'_>> {
        self.reader.current()
    }

    pub(super) fn find(&mut self) -> Result<Found, FollowError> {
        if self.reader.holds_next() && self.looked.elapsed() < LOOK_EVERY {
            // A look costs as much as some records.
            if self.reader.advance()? {
                self.position += 1;
                return Ok(Found::Record);
            }
        }
        loop {
            self.check_page()?;
            self.looked = Instant::now();
            let said = self.trusted();
            let durable = said.map(|said| said.durable());
            self.check_generation(said)?;
            match durable {
                None if self.by_page => self.read_by_batches()?,
                Some(durable) if durable >= self.position && !self.by_page => {
                    self.read_by_page()?
                }
                Some(durable) if durable < self.position && self.by_page => {
                    if self.compare_at.is_none_or(|at| self.looked < at) {
                        return Ok(Found::Nothing);
                    }
                    // A page that was left behind says less than the batches do.
                    self.compare_at = None;
                    self.read_by_batches()?;
                }
                _ => {}
            }
            match self.reader.advance() {
                // What was read may be of a new generation only if the page says so by now.
                Ok(true) if self.is_cut() => {}
                Ok(true) => {
                    self.position += 1;
                    self.pause = PAUSE_MIN;
                    self.compare_at = Some(self.looked + COMPARE_AFTER);
                    return Ok(Found::Record);
                }
                // That is all that the batches vouch for: from here on the page tells.
                Ok(false) if !self.by_page && durable.is_some() => self.read_by_page()?,
                Ok(false) if !self.by_page => return Ok(Found::Nothing),
                // The files do not have what the page says. If it is damage, the batches say so too.
                Ok(false) | Err(ReadError::Damaged(_)) if self.by_page => {
                    self.doubted = said.map(|said| said.source);
                    self.read_by_batches()?;
                }
                Ok(false) => return Ok(Found::Nothing),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the page says now, where there is one and it is not doubted.
    fn trusted(&self) -> Option<Said> {
        let said = self.page.as_ref()?.look()?;
        (self.doubted != Some(said.source)).then_some(said)
    }

    fn read_by_batches(&mut self) -> Result<(), ReadError> {
        let reader = Reader::vouched(self.store.clone(), Lsn::new(self.position))?;
        self.reader = reader.going_on(&self.reader);
        self.by_page = false;
        Ok(())
    }

    fn read_by_page(&mut self) -> Result<(), ReadError> {
        let Some(page) = self.page.clone() else { return Ok(()) };
        // A page that says nothing now says nothing new.
        let durable = Box::new(move || page.look().map_or(0, |said| said.durable()));
        let reader = Reader::new(self.store.clone(), durable, Lsn::new(self.position))?;
        self.reader = reader.going_on(&self.reader);
        self.by_page = true;
        Ok(())
    }

    // ---- the page ----

    fn look_for_page(&mut self) {
        self.page = StatusView::open(&*self.store, self.log_id).map(Arc::new);
        if let Some(page) = &self.page {
            page.announce();
        }
        self.compare_at = Some(Instant::now());
    }

    /// From time to time: is the page that is mapped still the one of the directory, or is there one?
    fn check_page(&mut self) -> Result<(), ReadError> {
        if self.page_checked.elapsed() < PAGE_CHECK_EVERY {
            return Ok(());
        }
        self.page_checked = Instant::now();
        if let Some(page) = self.page.as_ref().filter(|page| page.is_current(&*self.store)) {
            page.announce();
            return Ok(());
        }
        self.look_for_page();
        // The reader looks at the page that there was.
        if self.by_page { self.read_by_batches() } else { Ok(()) }
    }

    /// Whether the page tells of a truncation that was not looked at yet.
    fn is_cut(&self) -> bool {
        let now = self.trusted().map(|said| said.generation);
        self.generation.is_some() && now.is_some() && now != self.generation
    }

    /// A truncation: a reader that looks anew finds out whether what was given is among what was cut.
    fn check_generation(&mut self, said: Option<Said>) -> Result<(), ReadError> {
        let Some(now) = said.map(|said| said.generation) else { return Ok(()) };
        match self.generation.replace(now) {
            Some(before) if before != now => self.read_by_batches(),
            _ => Ok(()),
        }
    }

    // ---- waiting ----

    /// Blocks until there may be more than [`find`](Self::find) saw, or until the time is over.
    pub(super) fn wait(&mut self, deadline: Option<Instant>) -> Result<(), FollowError> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(FollowError::TimedOut);
        }
        let within = |time: Duration| left.map_or(time, |left| left.min(time));
        let (position, generation) = (self.position, self.generation);
        let waited = self.page_to_wait_at().is_some_and(|page| {
            page.wait(within(PAGE_CHECK_EVERY), |said| is_news(said, position, generation))
        });
        if !waited {
            std::thread::sleep(within(self.pause));
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        Ok(())
    }

    fn page_to_wait_at(&self) -> Option<&Arc<StatusView>> {
        // What it calls durable and the files do not show would end every wait at once.
        let can_wait = self.by_page && self.trusted()?.durable() < self.position;
        self.page.as_ref().filter(|page| can_wait && page.can_wait())
    }

    /// The same for a task, by a thread that waits in its place.
    pub(super) fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let page = self.page_to_wait_at().cloned();
        let request = Request { position: self.position, generation: self.generation, page };
        if self.alarm.is_none() {
            self.alarm = Alarm::start();
        }
        match &self.alarm {
            Some(alarm) => {
                alarm.set(request, context.waker());
            }
            None => {
                // No thread to be had: the task looks again and again.
                std::thread::sleep(PAUSE_MIN);
                context.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }
}

/// From the mark; a log that has none yet loses no segments meanwhile.
fn find_log_id(store: &dyn Store) -> Result<LogId, ReadError> {
    if let Some((log_id, _)) = mark::find_mark(store)? {
        return Ok(log_id);
    }
    let not_found = || ReadError::NotFound { dir: segment::dir_path(store) };
    let newest = *segment::list_segments(store)?.last().ok_or_else(not_found)?;
    Ok(Segment::open(store, newest)?.0.header.log_id)
}

/// A thread that waits for a task. It ends with its follower.
struct Alarm {
    requests: SyncSender<Request>,
    waker: Arc<Mutex<Option<Waker>>>,
}

/// What the thread is to wait for.
struct Request {
    position: u64,
    generation: Option<u64>,
    page: Option<Arc<StatusView>>,
}

impl Request {
    fn wait(&self) {
        let waited = self.page.as_ref().is_some_and(|page| {
            page.wait(PAUSE_MAX, |said| is_news(said, self.position, self.generation))
        });
        if !waited {
            std::thread::sleep(PAUSE_MAX);
        }
    }
}

/// Whether the page says something to who waits for a record.
fn is_news(said: &Said, position: u64, generation: Option<u64>) -> bool {
    said.durable() >= position || generation.is_some_and(|before| said.generation != before)
}

impl Alarm {
    fn start() -> Option<Alarm> {
        let (requests, asked) = sync_channel::<Request>(1);
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let slot = waker.clone();
        let run = move || {
            while let Ok(request) = asked.recv() {
                request.wait();
                let waker = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(waker) = waker {
                    // The user's code: if it panics, its task stays asleep, and the thread goes on.
                    let _panicked = catch_unwind(AssertUnwindSafe(|| waker.wake()));
                }
            }
        };
        let started = std::thread::Builder::new().name("uringlog-follow".to_owned()).spawn(run);
        started.is_ok().then_some(Alarm { requests, waker })
    }

    /// Has the task woken when it is time to look again: some milliseconds from now at the latest.
    fn set(&self, request: Request, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        match self.requests.try_send(request) {
            // Full: the thread takes the waker behind the request that it has, or the one after that.
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => waker.wake_by_ref(),
        }
    }
}
