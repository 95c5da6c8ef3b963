//! `uringlog append`: lines in, records out, acknowledged as they become durable.
//!
//! The main thread reads and cuts at newlines. It appends by itself, or hands whole lines to the
//! producers when there are several. The log pushes back when it is full, so nothing here grows
//! with the input other than the longest line. Acknowledgements are printed by a thread of their
//! own that follows the durable watermark.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use uringlog::{AppendError, Backend, Durability, Log, Lsn, MethodProbe, WaitError};
use uringlog_perf::durability_name;

use crate::choices::LogArgs;
use crate::exit::{Failure, note};
use crate::lines::{Lines, Refused};
use crate::signals::Interrupt;
use crate::{newline, units};

/// Arguments of `uringlog append`.
#[derive(clap::Args)]
#[command(after_help = "A record is a line without its newline (the byte 0A), whatever the \
    encoding; a carriage return stays part of it. `uringlog cat` gives the text back byte for \
    byte, a missing newline at the very end included. Ctrl-C stops reading, makes what was read \
    durable, and ends with code 0.")]
pub struct Args {
    /// The log's directory; created when it does not exist
    dir: PathBuf,
    /// Reads this file instead of standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Threads that append. With more than one, the order of lines is that of their appends
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    producers: u16,
    /// Prints each record's number on its own line as soon as it is acknowledged
    #[arg(long)]
    acks: bool,
    #[command(flatten)]
    log: LogArgs,
}

/// Runs `uringlog append`.
pub fn run(args: Args) -> Result<(), Failure> {
    let (mut input, name) = open_input(args.file.as_ref())?;
    let interrupt = Interrupt::install()
        .map_err(|error| Failure::Failed(format!("cannot watch for signals: {error}")))?;
    let log = args.log.open(&args.dir)?;
    let before = log.durable_lsn();
    if log.backend().backend == Backend::Psync && log.backend().probes.iter().any(is_refused_ring) {
        eprintln!("uringlog: without io_uring: {}", log.backend().why);
    }
    let started = Instant::now();
    let mut lines = Lines::new(&mut input, &interrupt, log.record_bytes_max());

    let acks = args.acks.then(|| {
        let log = log.clone();
        thread::spawn(move || print_acks(&log, before))
    });
    let fed = match args.producers {
        1 => feed_alone(&log, &mut lines),
        producers => feed_several(&log, &mut lines, usize::from(producers)),
    };
    // Whatever ended the input: what was accepted before it is made durable and counted.
    let synced = log.sync();
    let last = log.durable_lsn();
    let elapsed = started.elapsed();
    let level = format!(
        "{} ({}, {})",
        durability_name(log.durability()),
        log.backend().backend,
        log.backend().method
    );
    let sent_last = fed.as_ref().ok().copied().flatten();
    let marked = match (&synced, sent_last) {
        (Ok(_), Some(sent)) => mark_end(&args.dir, &lines, sent, last),
        _ => Ok(()),
    };
    let closed = log.close();
    let printed = match acks {
        Some(thread) => {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        }
        None => Ok(()),
    };

    summarize(&lines, &interrupt, before, last, elapsed, &level);
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            note(
                &"nobody read the acknowledgements to the end; the records are stored all the same",
            );
        }
        Err(error) => return Err(Failure::output(&error)),
        Ok(()) => {}
    }
    if let Err(stop) = fed {
        let stored = Stored {
            records: last.get().saturating_sub(before.get()),
            in_order: args.producers == 1,
        };
        return Err(stop.into_failure(&name, &stored));
    }
    synced?;
    closed?;
    marked.map_err(|error| {
        Failure::Failed(format!(
            "everything is stored, but not that its last line has no newline: {error}"
        ))
    })
}

/// Opens what is read, and gives it a name for messages.
fn open_input(file: Option<&PathBuf>) -> Result<(File, String), Failure> {
    match file {
        Some(path) => {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|error| Failure::reading(&name, &error))?;
            // Found out before a log is made; a directory can be opened, and fails when it is read.
            if file.metadata().is_ok_and(|file| file.is_dir()) {
                let error = io::Error::from(io::ErrorKind::IsADirectory);
                return Err(Failure::reading(&name, &error));
            }
            Ok((file, name))
        }
        None => {
            let name = "standard input".to_owned();
            let fd = io::stdin().as_fd().try_clone_to_owned();
            Ok((File::from(fd.map_err(|error| Failure::reading(&name, &error))?), name))
        }
    }
}

/// Remembers a last line without a newline, so that `cat` can give it back as it was.
fn mark_end(dir: &std::path::Path, lines: &Lines<'_>, sent: Lsn, last: Lsn) -> io::Result<()> {
    if !lines.unterminated {
        return newline::unmark(dir);
    }
    if sent != last {
        note(&format!(
            "the last line has no newline; cat will put one behind it (record {sent}), because it \
             is not the last record"
        ));
        return newline::unmark(dir);
    }
    note(&format!(
        "the last line has no newline; cat gives record {sent} back without one while it is the \
         last"
    ));
    newline::mark(dir, sent)
}

fn summarize(
    lines: &Lines<'_>,
    interrupt: &Interrupt,
    before: Lsn,
    last: Lsn,
    elapsed: Duration,
    level: &str,
) {
    let records = last.get().saturating_sub(before.get());
    let noun = if records == 1 { "record" } else { "records" };
    let range = match records {
        0 => String::new(),
        1 => format!(" (number {last})"),
        _ => format!(" (numbers {} to {last})", before.next()),
    };
    let interrupted = if interrupt.is_raised() { "interrupted: " } else { "" };
    // What was read and not stored is in no sum.
    let (bytes, rate) = match records == lines.lines {
        true => (
            format!(", {}", units::bytes(lines.payload_bytes)),
            format!(", {:.1} MB/s", units::per_second(lines.payload_bytes, elapsed) / 1e6),
        ),
        false => (String::new(), String::new()),
    };
    note(&format!(
        "{interrupted}appended {} {noun}{range}{bytes} in {:.3} s: {} records/s{rate}, {level}",
        units::count(records),
        elapsed.as_secs_f64(),
        units::count(units::per_second(records, elapsed) as u64),
    ));
    if lines.unfinished_bytes > 0 {
        note(&format!(
            "{} of a line that was not finished when the signal came are not stored",
            units::bytes(lines.unfinished_bytes as u64)
        ));
    }
}

/// How much of the input was stored when it ended early.
struct Stored {
    records: u64,
    /// Whether these are its first lines.
    in_order: bool,
}

impl Stored {
    fn text(&self, name: &str) -> String {
        let records = self.records;
        match (records, self.in_order) {
            (0, _) => format!("no line of {name} is stored"),
            (_, true) => format!(
                "lines 1 to {records} of {name} are stored, what follows is not: once that is mended, \
                 go on from line {}",
                records + 1
            ),
            (_, false) => format!(
                "{records} lines of {name} are stored; with several producers these need not be the \
                 first ones"
            ),
        }
    }
}

/// What ended the input early.
enum Stop {
    Input(Refused),
    Append(AppendError),
    /// A producer is gone without having said why.
    Lost,
}

impl Stop {
    fn into_failure(self, name: &str, stored: &Stored) -> Failure {
        match self {
            Stop::Input(Refused::Read(error)) => Failure::reading(&name, &error),
            Stop::Input(Refused::TooLong { line, max }) => Failure::Failed(format!(
                "line {line} of {name} is longer than a record may be, which is {max} bytes here \
                 ({}); the lines before it are stored, it and what follows are not; raise \
                 --segment-bytes, or split it",
                units::bytes(max as u64)
            )),
            Stop::Append(AppendError::NoSpace) => Failure::Failed(format!(
                "no space on the file system (or no file descriptor, or memory) for a further \
                 segment; {}",
                stored.text(name)
            )),
            Stop::Append(error) => Failure::Failed(format!("{error}; {}", stored.text(name))),
            Stop::Lost => Failure::Failed("a producer thread panicked".to_owned()),
        }
    }
}

/// Appends every line from this thread: numbers follow the input. Returns the last number.
fn feed_alone(log: &Log, lines: &mut Lines<'_>) -> Result<Option<Lsn>, Stop> {
    let mut last = None;
    while let Some(piece) = lines.next_piece()? {
        last = append_lines(log, piece)?.or(last);
    }
    Ok(last)
}

/// Hands whole lines to producer threads in turn. Returns the number of the input's last line,
/// where the producer that got it was the last to append.
fn feed_several(log: &Log, lines: &mut Lines<'_>, producers: usize) -> Result<Option<Lsn>, Stop> {
    let last = AtomicU64::new(0);
    let (send, receive) = sync_channel(producers);
    let receive = Mutex::new(receive);
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..producers).map(|_| scope.spawn(|| producer(log, &receive, &last))).collect();
        let mut fed = distribute(lines, &send, producers);
        drop(send);
        for thread in threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => fed = Err(Stop::Append(error)),
                Err(_) => fed = Err(Stop::Lost),
            }
        }
        // Relaxed: the joins order it.
        fed.map(|()| match last.load(Ordering::Relaxed) {
            0 => None,
            lsn => Some(Lsn::new(lsn)),
        })
    })
}

/// A share of lines, and whether the input ends with it.
struct Share {
    text: Vec<u8>,
    is_last: bool,
}

fn distribute(
    lines: &mut Lines<'_>,
    send: &SyncSender<Share>,
    producers: usize,
) -> Result<(), Stop> {
    while let Some(piece) = lines.next_piece()? {
        let share_bytes = piece.len().div_ceil(producers);
        let mut rest = piece;
        while !rest.is_empty() {
            let wanted = share_bytes.min(rest.len()) - 1;
            let cut =
                memchr::memchr(b'\n', &rest[wanted..]).map_or(rest.len(), |at| wanted + at + 1);
            let (share, tail) = rest.split_at(cut);
            rest = tail;
            // Only the input's very last line can be without a newline.
            let is_last = !share.ends_with(b"\n");
            if send.send(Share { text: share.to_vec(), is_last }).is_err() {
                return Err(Stop::Lost);
            }
        }
    }
    Ok(())
}

fn producer(
    log: &Log,
    shares: &Mutex<Receiver<Share>>,
    last: &AtomicU64,
) -> Result<(), AppendError> {
    loop {
        // The lock is held while waiting: one producer waits for a share, the others for the lock.
        let share = match shares.lock() {
            Ok(shares) => shares.recv(),
            Err(_) => return Ok(()),
        };
        let Ok(share) = share else { return Ok(()) };
        let appended = append_lines(log, &share.text);
        if appended.is_err() {
            // Takes what is still queued, so that the reader never blocks on dead producers.
            while shares.lock().is_ok_and(|shares| shares.recv().is_ok()) {}
        }
        if let (Some(lsn), true) = (appended?, share.is_last) {
            last.store(lsn.get(), Ordering::Relaxed);
        }
    }
}

/// Appends each line of `text`, which only at the end of the input ends without a newline. Returns
/// the last number.
fn append_lines(log: &Log, text: &[u8]) -> Result<Option<Lsn>, AppendError> {
    let mut last = None;
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', text) {
        last = Some(log.append(&text[start..end])?.lsn());
        start = end + 1;
    }
    if start < text.len() {
        last = Some(log.append(&text[start..])?.lsn());
    }
    Ok(last)
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Stop::Input(refused)
    }
}

impl From<AppendError> for Stop {
    fn from(error: AppendError) -> Self {
        Stop::Append(error)
    }
}

/// Prints every number behind `printed` once it is durable, in order, until the log is closed.
fn print_acks(log: &Log, mut printed: Lsn) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut text = Vec::new();
    loop {
        let ended = match wait_acknowledged(log, printed.next()) {
            Ok(()) | Err(WaitError::TimedOut) => false,
            // The log is closed, or nothing more becomes durable: what was acknowledged still
            // counts. The main thread meets the same error and reports it.
            Err(_) => true,
        };
        let acknowledged = log.acknowledged_lsn();
        while printed < acknowledged {
            text.clear();
            while printed < acknowledged && text.len() < ACK_BYTES_MAX {
                printed = printed.next();
                writeln!(text, "{printed}")?;
            }
            out.write_all(&text)?;
            out.flush()?;
        }
        if ended {
            return Ok(());
        }
    }
}

const ACK_BYTES_MAX: usize = 64 << 10;

/// Blocks until the number is acknowledged, or for a while where only durability can be waited
/// for: a log that acknowledges what is written is seldom synced.
fn wait_acknowledged(log: &Log, lsn: Lsn) -> Result<(), WaitError> {
    const WRITTEN_POLL: Duration = Duration::from_millis(5);
    match log.durability() {
        Durability::Durable => log.wait_durable(lsn),
        Durability::Written => log.wait_durable_timeout(lsn, WRITTEN_POLL),
    }
}
/// Whether io_uring was tried and refused.
fn is_refused_ring(probe: &MethodProbe) -> bool {
    probe.method.is_ring() && probe.refused.is_some()
}
