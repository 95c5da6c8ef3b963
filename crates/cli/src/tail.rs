//! `uringlog tail`: the last records of a log, and with `-f` those that come, from whichever process
//! writes them.

use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use uringlog::{FollowError, Follower, Lsn, ReadError, Reader};

use crate::cat::{self, StartArgs};
use crate::exit::{Failure, note};
use crate::records::{FormArgs, Printer, Shown};
use crate::signals::{Interrupt, Woken};

/// Arguments of `uringlog tail`.
#[derive(clap::Args)]
#[command(
    after_help = "With -f it goes on until Ctrl-C, or until nobody reads its output any more: \
    also while nobody writes, and when the writer ends, crashes and starts again. A time is RFC 3339 \
    or so long ago, as for `uringlog cat`."
)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    /// Prints records as they become durable
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    start: StartArgs,
    #[command(flatten)]
    form: FormArgs,
}

/// Records that are printed when nothing else is asked for.
const LAST: u64 = 10;

/// Runs `uringlog tail`.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut start = args.start;
    if start.from.is_none() && start.since.is_none() {
        start.last = start.last.or(Some(LAST));
    }
    let reader = cat::open(&args.dir, start)?;
    let out = BufWriter::with_capacity(OUT_BYTES, io::stdout().lock());
    let mut printer = Printer::new(out, args.form, args.follow);
    if args.follow {
        return follow(&args.dir, reader.next_lsn(), &mut printer);
    }
    let printed = drain(reader, &mut printer);
    let flushed = printer.finish(printed.is_ok().then_some(&args.dir));
    printed?;
    flushed.map_err(|error| Failure::output(&error))
}

const OUT_BYTES: usize = 64 << 10;

fn drain(mut reader: Reader, printer: &mut Printer<impl Write>) -> Result<(), Failure> {
    while let Some(record) = reader.next_record()? {
        printer.print(Shown::from(&record)).map_err(|error| Failure::output(&error))?;
    }
    Ok(())
}

/// Prints what there is and what comes, until a signal or until nobody reads it any more.
fn follow(dir: &Path, from: Lsn, printer: &mut Printer<impl Write>) -> Result<(), Failure> {
    let interrupt = Interrupt::install()
        .map_err(|error| Failure::Failed(format!("cannot watch for signals: {error}")))?;
    let stdout = io::stdout();
    let mut source = Source { dir: dir.to_owned(), next: from, follower: None, failures: 0 };
    loop {
        // What is there is printed in one go; then it is looked whether anybody is still there.
        let looked = Instant::now();
        let mut wait = Duration::ZERO;
        while !interrupt.is_raised() && looked.elapsed() < LOOK_EVERY {
            let printed = source.next(wait, |record| printer.print(record))?;
            match printed {
                Some(printed) => {
                    printed.map_err(|error| Failure::output(&error))?;
                    wait = Duration::ZERO;
                }
                None if wait.is_zero() => {
                    printer.flush().map_err(|error| Failure::output(&error))?;
                    wait = WAIT;
                }
                None => break,
            }
        }
        printer.flush().map_err(|error| Failure::output(&error))?;
        match interrupt.pause(stdout.as_fd(), Duration::ZERO) {
            Ok(Woken::Time) => {}
            Ok(Woken::Signal) => return Ok(()),
            Ok(Woken::Closed) => return Err(Failure::OutputClosed),
            Err(error) => return Err(Failure::Failed(format!("cannot wait: {error}"))),
        }
    }
}

/// How often it is looked for signals, and whether anybody reads the output.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long it waits for a record at most.
const WAIT: Duration = Duration::from_millis(50);

/// Gives records in order, over trims, truncations and restarts of the writer.
struct Source {
    dir: PathBuf,
    /// The record to give next.
    next: Lsn,
    follower: Option<Follower>,
    /// Errors since the last look that succeeded.
    failures: u32,
}

/// A writer that starts again changes files under a reader: an error counts when it stays.
const FAILURES_MAX: u32 = 20;

impl Source {
    /// Hands the next record to `take`, if one comes in time.
    fn next<T>(
        &mut self,
        wait: Duration,
        take: impl FnOnce(Shown<'_>) -> T,
    ) -> Result<Option<T>, Failure> {
        match self.receive(wait, take) {
            Ok(taken) => {
                self.failures = 0;
                Ok(taken)
            }
            Err(FollowError::TimedOut) => {
                self.failures = 0;
                Ok(None)
            }
            Err(FollowError::Read(ReadError::Trimmed { first })) => {
                note(&format!(
                    "records {} to {} were trimmed before they were printed",
                    self.next,
                    first.prev()
                ));
                self.go_to(first);
                Ok(None)
            }
            Err(FollowError::Read(ReadError::Truncated { last })) => {
                note(&format!("the log was truncated after record {last}; going on from there"));
                self.go_to(last.next());
                Ok(None)
            }
            Err(_) if self.failures < FAILURES_MAX => {
                self.failures += 1;
                self.follower = None;
                thread::sleep(wait);
                Ok(None)
            }
            Err(FollowError::Read(error)) => Err(error.into()),
            Err(error) => Err(Failure::Failed(error.to_string())),
        }
    }

    fn go_to(&mut self, next: Lsn) {
        self.next = next;
        self.follower = None;
    }

    fn receive<T>(
        &mut self,
        wait: Duration,
        take: impl FnOnce(Shown<'_>) -> T,
    ) -> Result<Option<T>, FollowError> {
        if self.follower.is_none() {
            self.follower = Some(Follower::open_dir(&self.dir, self.next)?);
        }
        let Some(follower) = &mut self.follower else { return Ok(None) };
        let record = match wait.is_zero() {
            true => follower.try_recv()?,
            false => follower.recv_timeout(wait)?,
        };
        let Some(record) = record else { return Ok(None) };
        self.next = record.lsn().next();
        Ok(Some(take(Shown::from(&record))))
    }
}
