//! `uringlog trim`: lets a log that nobody writes start later, and gives the space back.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use uringlog::{
    BackendChoice, Inspection, Log, Lsn, Method, OpenError, Options, SegmentState, TrimError,
};

use crate::exit::Failure;
use crate::units;

/// Arguments of `uringlog trim`.
#[derive(clap::Args)]
#[command(
    after_help = "The log's first record is exactly N then, unless a cursor stands lower: what \
    it has not consumed is kept (see `uringlog cursor`). Space is given back by whole segments. This \
    needs the writer's lock; a log that is being written is trimmed by its writer."
)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    /// Number of the first record to keep
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    before: u64,
    /// Says what would be trimmed, and changes nothing
    #[arg(long)]
    dry_run: bool,
}

/// Files that the log keeps to use them again.
const SPARES_KEPT: u64 = 2;
/// What takes longer is left to the next writer.
const GIVE_BACK_MAX: Duration = Duration::from_secs(20);

/// Runs `uringlog trim`.
pub fn run(args: Args) -> Result<(), Failure> {
    let log = uringlog::inspect(&args.dir)?;
    let plan = plan(&args.dir, &log, args.before)?;
    let text = match args.dry_run {
        true => plan.text("would trim", "would start"),
        false => Plan { to: trim(&args.dir, &log, args.before)?, ..plan }.text("trimmed", "starts"),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::output(&e))
}

fn trim(dir: &Path, found: &Inspection, before: u64) -> Result<Lsn, Failure> {
    // Nothing is measured and little prepared for so short an opening.
    let mut options = Options::new()
        .create(false)
        .buffered(true)
        .backend(BackendChoice::Psync)
        .method(Method::PwriteFdatasync)
        .segments_ready(1)
        .spares_max(SPARES_KEPT as usize);
    if let Some(live) = found.segments.iter().find(|s| s.state == SegmentState::Live) {
        options = options.segment_bytes(live.bytes);
    }
    let log = options.open(dir).map_err(locked_means)?;
    let first = log.trim(Lsn::new(before)).map_err(failure)?;
    // The space is given back bit by bit, but for what is kept to be used again.
    let kept = SPARES_KEPT * log.space().map_err(failure)?.live_bytes;
    let started = Instant::now();
    while log.space().map_err(failure)?.spare_bytes > kept && started.elapsed() < GIVE_BACK_MAX {
        thread::sleep(Duration::from_millis(10));
    }
    Log::close(log)?;
    Ok(first)
}

fn locked_means(error: OpenError) -> Failure {
    match Failure::from(error) {
        Failure::Locked(message) => Failure::Locked(format!(
            "{message}; or let the writer trim: Log::trim, or the options retain_bytes and retain_age"
        )),
        failure => failure,
    }
}

fn failure(error: TrimError) -> Failure {
    match error {
        TrimError::Damaged(damage) => Failure::Damage(format!("{damage}; nothing was trimmed")),
        error => Failure::Failed(error.to_string()),
    }
}

/// What a trim comes to.
struct Plan {
    from: Lsn,
    to: Lsn,
    wanted: Lsn,
    /// The cursor that keeps it from going further.
    held_by: Option<String>,
    /// Ends and sizes of the segments that are not written to any more.
    sealed: Vec<(Lsn, u64)>,
}

fn plan(dir: &Path, log: &Inspection, before: u64) -> Result<Plan, Failure> {
    let wanted = Lsn::new(before);
    let mut to = wanted.min(log.last_lsn.next());
    let mut held_by = None;
    for cursor in uringlog::cursors(dir)? {
        if cursor.position < to {
            to = cursor.position;
            held_by = Some(cursor.name);
        }
    }
    let sealed = log.segments.iter().filter(|segment| segment.state == SegmentState::Sealed);
    let sealed = sealed.filter_map(|s| Some((s.last_lsn?, s.bytes))).collect();
    Ok(Plan { from: log.first_lsn, to: to.max(log.first_lsn), wanted, held_by, sealed })
}

impl Plan {
    fn text(&self, trims: &str, starts: &str) -> String {
        let records = self.to.get().saturating_sub(self.from.get());
        let given: Vec<u64> = self
            .sealed
            .iter()
            .filter(|(last, _)| *last < self.to)
            .map(|(_, bytes)| *bytes)
            .collect();
        let mut text = format!(
            "{trims} {} records: the log {starts} at {}; {} segments, {}\n",
            units::count(records),
            self.to,
            given.len(),
            units::bytes(given.iter().sum()),
        );
        if let Some(name) = self.held_by.as_ref().filter(|_| self.to < self.wanted) {
            text += &format!("cursor {name:?} keeps what comes from {} on\n", self.to);
        }
        text
    }
}
