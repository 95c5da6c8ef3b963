//! `uringlog cat`: prints the durable records of a log, also while another process writes to it.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uringlog::{BackReader, Lsn, Reader};

use crate::exit::{Failure, note};
use crate::records::{FormArgs, Printer, Shown};
use crate::{units, verify};

/// Arguments of `uringlog cat`.
#[derive(clap::Args)]
#[command(
    after_help = "A time is RFC 3339 (2026-01-31T12:00:00Z, with an offset such as +02:00, or \
    a date alone), or so long ago: 90s, 5m, 2h, 3d, 1w."
)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    #[command(flatten)]
    start: StartArgs,
    /// Stops before the first record written at this time or later
    #[arg(long, value_name = "TIME", value_parser = units::parse_time)]
    until: Option<SystemTime>,
    /// Prints at most so many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Newest first: from the last record, or from --from, down
    #[arg(long)]
    reverse: bool,
    /// Goes on past damage: prints every intact record, says which are missing, exit code 3
    #[arg(long, conflicts_with_all = ["reverse", "last"])]
    skip_damage: bool,
    #[command(flatten)]
    form: FormArgs,
}

/// Where to start.
#[derive(clap::Args, Clone, Copy)]
#[group(multiple = false)]
pub struct StartArgs {
    /// Number of the first record to print [default: the first that the log holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub from: Option<u64>,
    /// Only the last N records
    #[arg(long, value_name = "N")]
    pub last: Option<u64>,
    /// Only what was written at this time or later
    #[arg(long, value_name = "TIME", value_parser = units::parse_time)]
    pub since: Option<SystemTime>,
}

/// Runs `uringlog cat`.
pub fn run(args: Args) -> Result<(), Failure> {
    let out = BufWriter::with_capacity(OUT_BYTES, io::stdout().lock());
    let mut printer = Printer::new(out, args.form, false);
    let printed = match (args.skip_damage, args.reverse) {
        (true, _) => print_intact(&args, &mut printer),
        (_, true) => print_back(&args, &mut printer),
        _ => print_records(&args, &mut printer),
    };
    // What was read before an error is printed before the error.
    let at_end = matches!(printed, Ok(true)) && !args.reverse;
    let flushed = printer.finish(at_end.then_some(&args.dir));
    let last = printer.last;
    printed?;
    flushed.map_err(|error| Failure::output(&error))?;
    if at_end {
        note_unvouched(&args.dir, last);
    }
    Ok(())
}

const OUT_BYTES: usize = 256 << 10;

/// Opens the log where `start` says; by default at the first record that it holds.
pub fn open(dir: &Path, start: StartArgs) -> Result<Reader, Failure> {
    Ok(match start {
        StartArgs { last: Some(n), .. } => Reader::open_dir_last(dir, n)?,
        StartArgs { since: Some(time), .. } => Reader::open_dir_at(dir, time)?,
        // No number stands for the first that there is.
        StartArgs { from, .. } => Reader::open_dir(dir, from.map_or(Lsn::NONE, Lsn::new))?,
    })
}

/// Prints records in order; returns whether the log ends behind them.
fn print_records(args: &Args, printer: &mut Printer<impl Write>) -> Result<bool, Failure> {
    let mut reader = open(&args.dir, args.start)?;
    let mut left = args.max.unwrap_or(u64::MAX).min(args.start.last.unwrap_or(u64::MAX));
    while left > 0 {
        let Some(record) = reader.next_record()? else { return Ok(true) };
        let record = Shown::from(&record);
        if args.until.is_some_and(|until| record.written_at >= until) {
            return Ok(false);
        }
        printer.print(record).map_err(|error| Failure::output(&error))?;
        left -= 1;
    }
    // The log may end here all the same, and then its last line may have no newline.
    Ok(args.max.is_none() && reader.next_record()?.is_none())
}

/// Prints records newest first.
fn print_back(args: &Args, printer: &mut Printer<impl Write>) -> Result<bool, Failure> {
    let from = args.start.from.map_or(Lsn::NONE, Lsn::new);
    let mut reader = BackReader::open_dir(&args.dir, from)?;
    let mut left = args.max.unwrap_or(u64::MAX).min(args.start.last.unwrap_or(u64::MAX));
    while left > 0 {
        let Some(record) = reader.next_record()? else { break };
        let record = Shown::from(&record);
        if args.start.since.is_some_and(|since| record.written_at < since) {
            break;
        }
        if args.until.is_some_and(|until| record.written_at >= until) {
            continue;
        }
        printer.print(record).map_err(|error| Failure::output(&error))?;
        left -= 1;
    }
    Ok(false)
}

/// Prints what is intact, over whatever is damaged. Always false: nobody knows whether a line had a newline.
fn print_intact(args: &Args, printer: &mut Printer<impl Write>) -> Result<bool, Failure> {
    let mut left = args.max.unwrap_or(u64::MAX);
    let mut failed = None;
    let report = uringlog::salvage(&args.dir, |record| {
        let record = Shown::from(&record);
        let is_before = args.start.from.is_some_and(|from| record.lsn.get() < from)
            || args.start.since.is_some_and(|since| record.written_at < since);
        if is_before {
            return true;
        }
        if left == 0 || args.until.is_some_and(|until| record.written_at >= until) {
            return false;
        }
        left -= 1;
        failed = printer.print(record).err();
        failed.is_none()
    })?;
    if let Some(error) = failed {
        return Err(Failure::output(&error));
    }
    if report.is_damaged() {
        let what = match report.lost.is_empty() {
            true => "no lost record is known".to_owned(),
            false => format!("missing: {}", verify::list(&report.lost)),
        };
        return Err(Failure::Damage(format!(
            "{what}; `uringlog verify` says where, `uringlog repair` what can be done"
        )));
    }
    Ok(false)
}

/// Says when more can be read than what is known to be durable.
fn note_unvouched(dir: &Path, last: Lsn) {
    // Only a note: an error here was met by the reader first, or does not matter to it.
    let Ok(found) = uringlog::inspect(dir) else { return };
    if found.last_lsn > found.vouched_lsn && found.last_lsn > last {
        note(&format!(
            "records {} to {} can be read too, but nothing yet says that they are durable: a \
             writer is about to say so, or died before it could (then opening the log keeps them)",
            found.vouched_lsn.max(last).next(),
            found.last_lsn
        ));
    }
}
