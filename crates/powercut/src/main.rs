//! Power cuts and device faults under a log, on real file systems. `scripts/powercut` says how to use it.
//!
//! A log works on ext4 or XFS, on a loop device, on a file that this program serves by FUSE. Every write
//! and flush of that device is written down, and every acknowledgement of the log between them. Then disks
//! are made as a power cut at some instant may have left them; each is mounted, the log in it recovered,
//! and compared with what had been acknowledged.
//!
//! `device.rs` serves and writes down, `workload.rs` is the log at work, `record.rs` joins them;
//! `history.rs` makes the disks, `known.rs` says what must be there, `check.rs` looks. `faults.rs` has the
//! device faults, `sys.rs` the mounts.

mod check;
mod device;
mod faults;
mod history;
mod known;
mod notes;
mod payload;
mod random;
mod record;
mod sys;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use clap::{Parser, Subcommand};

use check::{Checker, Totals};
use history::Kind;
use random::Random;
use sys::Fs;
use workload::PROFILES;

#[derive(Parser)]
#[command(about = "Power cuts and device faults under a log, on real file systems")]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// A directory for mount points.
    #[arg(long, global = true, default_value = "/tmp")]
    work: PathBuf,
    /// A directory in memory, for images.
    #[arg(long, global = true, default_value = "/dev/shm")]
    memory: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Records, cuts, checks.
    Cut(Cut),
    /// Device faults.
    Faults {
        #[arg(long, value_enum)]
        fs: Fs,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only faults whose name has these words in it.
        #[arg(long, default_value = "")]
        only: String,
        /// Succeeds when a fault goes wrong, and only then.
        #[arg(long)]
        planted: bool,
    },
    /// Checks an image that was kept.
    Replay { dir: PathBuf },
    /// What the recorded process is.
    #[command(hide = true)]
    Workload(workload::Args),
}

#[derive(clap::Args)]
struct Cut {
    #[arg(long, value_enum)]
    fs: Fs,
    #[arg(long)]
    images: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Images of one recording.
    #[arg(long)]
    each: Option<usize>,
    /// Only this profile, by its number.
    #[arg(long)]
    profile: Option<usize>,
    /// Succeeds when an image fails, and only then: there is a bug in the library, planted.
    #[arg(long)]
    planted: bool,
    /// Where failed images are kept.
    #[arg(long, default_value = "target/powercut")]
    keep: PathBuf,
    /// Images checked at a time.
    #[arg(long)]
    jobs: Option<usize>,
}

/// Images of one recording, unless asked otherwise.
const EACH_MAX: usize = 125;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Command::Workload(life) = &args.command {
        return match workload::run(life) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("said {error}");
                ExitCode::FAILURE
            }
        };
    }
    let result = match sys::own_mounts() {
        Ok(()) => run(&args),
        Err(error) => Err(format!("cannot have mounts of its own: {error}")),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("powercut: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool, String> {
    let temp = |dir: &Path| {
        tempfile::Builder::new()
            .prefix("powercut-")
            .tempdir_in(dir)
            .map_err(|error| format!("{}: {error}", dir.display()))
    };
    let (work, memory) = (temp(&args.work)?, temp(&args.memory)?);
    let (work, memory) = (work.path(), memory.path());
    let skip = |fs: Fs| {
        let missing = fs.missing();
        if let Some(why) = &missing {
            println!("skipped: {}: {why}", fs.name());
        }
        missing.is_some()
    };
    match &args.command {
        Command::Cut(cut) if skip(cut.fs) => Ok(true),
        Command::Cut(cut) => run_cuts(cut, work, memory),
        Command::Faults { fs, .. } if skip(*fs) => Ok(true),
        Command::Faults { fs, seed, only, planted } => {
            let is_well = faults::run(*fs, *seed, only, work, memory)?;
            Ok(is_well != *planted)
        }
        Command::Replay { dir } => {
            let result = check::replay(dir, memory);
            println!("{result:?}");
            Ok(result.is_ok())
        }
        Command::Workload(_) => Ok(false),
    }
}

fn run_cuts(cut: &Cut, work: &Path, memory: &Path) -> Result<bool, String> {
    // Every profile gets its turn.
    let each = cut.each.unwrap_or(cut.images.div_ceil(PROFILES.len()).clamp(1, EACH_MAX));
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let kept = AtomicUsize::new(0);
    let jobs = cut.jobs.unwrap_or(cores + 1);
    let checker = Checker { fs: cut.fs, work: memory, jobs, keep: &cut.keep, kept: &kept };
    let started = Instant::now();
    let mut totals = Totals::default();
    let mut recordings = 0;
    while totals.images < cut.images {
        let seed = Random::new(&[cut.seed, recordings]).below(1 << 32);
        let profile = cut.profile.unwrap_or((cut.seed + recordings) as usize) % PROFILES.len();
        recordings += 1;
        let recording = match record::record(cut.fs, profile, seed, work) {
            Ok(recording) => recording,
            // A planted bug may well show while the log runs.
            Err(error) if cut.planted => {
                println!("  recording {recordings}: {error}");
                if recordings > cut.images as u64 {
                    return Err("no recording succeeds".to_owned());
                }
                continue;
            }
            Err(error) => return Err(format!("recording with seed {seed}: {error}")),
        };
        let recorded = started.elapsed();
        let count = each.min(cut.images - totals.images);
        let found = checker.check(&recording, count);
        let writes = recording.history.writes();
        println!(
            "  {} seed {seed}, {}: {} lives, {} of them killed, {} events, {writes} writes, \
             {} files recycled; {count} images, {} failures [{:.0} s]",
            cut.fs.name(),
            PROFILES[profile].name,
            recording.lives,
            recording.kills,
            recording.history.events.len(),
            recording.recycled,
            found.failures.len(),
            recorded.as_secs_f64(),
        );
        for said in &recording.said {
            println!("    {said}");
        }
        totals.add(found);
        totals.failures.extend(violations(&recording.said, seed));
    }
    report(cut, &totals, recordings, started.elapsed().as_secs_f64());
    Ok(totals.failures.is_empty() != cut.planted)
}

fn violations(said: &[String], seed: u64) -> Vec<String> {
    let wrong = said.iter().filter(|words| words.contains("violation:"));
    wrong.map(|words| format!("seed {seed}: {words}")).collect()
}

fn report(cut: &Cut, totals: &Totals, recordings: u64, seconds: f64) {
    println!(
        "{}: {} images of {recordings} recordings in {seconds:.0} s: {} failures",
        cut.fs.name(),
        totals.images,
        totals.failures.len()
    );
    for (kind, (images, failures)) in Kind::ALL.iter().zip(totals.kinds) {
        println!("  {:<32} {images:>6} images, {failures} failures", kind.name());
    }
    println!(
        "  unflushed writes: {} kept, {} torn, {} dropped; {} records read, {} acknowledgements compared",
        totals.kept, totals.torn, totals.dropped, totals.records, totals.acked
    );
    println!(
        "  recovery wrote records again in {} images, and cut a torn tail in {}",
        totals.with_rewritten, totals.with_torn_tail
    );
    for failure in totals.failures.iter().take(if cut.planted { 2 } else { 20 }) {
        println!("  FAILED {failure}");
    }
    if cut.planted {
        let caught = totals.failures.len() as f64 / totals.images as f64 * 100.0;
        println!(
            "  planted bug: {} of {} images caught it ({caught:.0}%)",
            totals.failures.len(),
            totals.images
        );
    }
}
