//! Arguments of `uringlog bench`.

use std::path::PathBuf;
use std::time::Duration;

use uringlog::Options;

use crate::choices::{IdleArg, LogArgs};
use crate::units::parse_bytes;

/// Arguments of `uringlog bench`.
#[derive(clap::Args, Clone, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Without arguments it measures 1, 8 and 32 producers that wait for each of \
    their records, one at a steady rate, and one that waits only at the end, within 15 seconds. \
    The log, the bare loop and the mutex + Vec + writer thread log take turns in one run on one \
    file system: only their ratios carry over to other runs."
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Threads that append; each waits for its records before its next call
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub producers: Option<u16>,
    /// Payload bytes of a record [default: 256, with --async 4096, with --scaling 64]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub size: Option<u64>,
    /// Records of one call: more than one are appended as a batch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub batch: Option<u16>,
    /// Time to measure, everybody's turns together, in seconds (or 500ms, 2m) [default: 4, with
    /// --sweep 20]
    #[arg(long = "duration", visible_alias = "seconds", value_name = "S", value_parser = parse_time)]
    pub duration: Option<Duration>,
    /// Time that each of them runs before anything counts, such as 1 or 500ms [default: 50ms]
    #[arg(long, value_name = "S", value_parser = parse_warm_up)]
    pub warmup: Option<Duration>,
    /// Makes its temporary directory in this one [default: ./target, or else .]
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
    /// Open loop: so many records a second of all producers together, each call with its intended
    /// start, from which its latency counts. With --async the pace at which submitting is measured
    /// [default there: 100000, at most 100 MB/s]. Without it a closed loop: each as fast as it can
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Open loops at rising rates: throughput against latency, and its knee
    #[arg(long, conflicts_with_all = ["is_async", "rotation", "scaling", "rate", "rounds"])]
    pub sweep: bool,
    /// One producer publishes without waiting, and syncs once at the end of each burst
    #[arg(long = "async", conflicts_with_all = ["producers", "batch"])]
    pub is_async: bool,
    /// What one append costs its caller, with 1, 2, 4 and so on up to --producers at once [default
    /// there: one for each CPU]; each on a CPU of its own
    #[arg(long, conflicts_with_all = ["is_async", "rate", "rounds", "batch"])]
    pub scaling: bool,
    /// How writer and producers wait when they have nothing to do
    #[arg(long, value_enum, default_value = "park")]
    pub idle: IdleArg,
    /// Measures the log also with so many producers that offer the same rate together
    #[arg(long, value_name = "N", requires = "rate", conflicts_with = "is_async",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub beside: Option<u16>,
    /// Ties producer N to CPU N, around
    #[arg(long, conflicts_with_all = ["is_async", "rotation"])]
    pub pin: bool,
    /// Turns of each [default: one for each quarter of a second]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: Option<u32>,
    /// Forces the number of writes under way at once
    #[arg(long, value_name = "N")]
    pub depth: Option<usize>,
    /// Forces the number of rings that producers publish into [default: one for each CPU]
    #[arg(long, value_name = "N")]
    pub rings: Option<usize>,
    /// Measures what one waiting producer notices of rotation, preparation, recycling, removal and
    /// trimming, with small segments
    #[arg(long, conflicts_with_all = ["is_async", "scaling", "producers", "batch", "rate", "rounds"])]
    pub rotation: bool,
    /// With --async, measures a mutex, a Vec and one writer thread beside the log [default: only
    /// with records of up to 64 bytes]
    #[arg(long, requires = "is_async")]
    pub reference: bool,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
    /// Writes an interval log for HdrHistogram's tools: one interval a turn, in ns
    #[arg(long, value_name = "PATH", conflicts_with_all = NOT_WAITING)]
    pub hlog: Option<PathBuf>,
    /// Writes the log's percentile distribution as HdrHistogram's plotters read it, in us; the
    /// others' beside it, with their names before the extension
    #[arg(long, value_name = "PATH", conflicts_with_all = NOT_WAITING)]
    pub hgrm: Option<PathBuf>,
    /// Draws SVG plots into this directory: percentile curves and latency over time, with --sweep
    /// throughput against latency, with --scaling the cost of an append
    #[arg(long, value_name = "DIR", conflicts_with_all = ["is_async", "rotation"])]
    pub plots: Option<PathBuf>,
    /// Keeps so much of the log and trims the rest, so that segments are used again, as in a log that has
    /// lived for long [default: all is kept, and every byte needs one of zeros before it]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, conflicts_with_all = ["is_async", "rotation"])]
    pub retain: Option<u64>,
    #[command(flatten)]
    pub log: LogArgs,
}

/// Scenarios without producers that wait under one load.
const NOT_WAITING: [&str; 4] = ["is_async", "rotation", "sweep", "scaling"];

/// What else the command does.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Command {
    /// Sets two results of `bench --json` side by side: ratios, and a warning where machine, disk
    /// or work differ. Exit code 0; 1 where a file is not a result, or with --fail-above
    Compare(CompareArgs),
}

/// Arguments of `uringlog bench compare`.
#[derive(clap::Args, Clone, Debug)]
pub struct CompareArgs {
    /// The first result
    pub a: PathBuf,
    /// The second, told as a multiple of the first
    pub b: PathBuf,
    /// Ends with exit code 1 when a rate, a p50, p90 or p99, or the CPU time of an append is more
    /// than so many times worse in the second
    #[arg(long, value_name = "TIMES", value_parser = parse_times)]
    pub fail_above: Option<f64>,
}

impl Args {
    /// Whether one workload was named, as opposed to the default set of them.
    pub fn is_single(&self) -> bool {
        self.json
            || self.is_async
            || self.producers.is_some()
            || self.size.is_some()
            || self.batch.is_some()
            || self.rate.is_some()
            || self.rounds.is_some()
            || self.hlog.is_some()
            || self.hgrm.is_some()
            || self.plots.is_some()
    }

    /// The options to open the measured log with.
    pub fn options(&self) -> Options {
        let idle = self.idle.into();
        let in_crowd = self.idle != IdleArg::Sleep;
        let options = self.log.options().writer_idle(idle).waiter_idle(idle);
        let mut options = options.yields_in_crowd(in_crowd);
        if let Some(depth) = self.depth {
            options = options.depth(depth);
        }
        if let Some(rings) = self.rings {
            options = options.rings(rings);
        }
        match self.retain {
            Some(bytes) => options.retain_bytes(bytes),
            None => options,
        }
    }
}

/// The plain log, which gets the same work, has room for 4 MiB.
fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes <= 2 << 20 { Ok(bytes) } else { Err("at most 2 MiB".to_owned()) }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    seconds(text, 0.1)
}

fn parse_warm_up(text: &str) -> Result<Duration, String> {
    seconds(text, 0.0)
}

fn seconds(text: &str, min: f64) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        _ => return Err("seconds, or a number with ms, s or m".to_owned()),
    };
    let number: f64 = digits.parse().map_err(|_| "a number of seconds".to_owned())?;
    match (min..=3600.0).contains(&(number * unit)) {
        true => Ok(Duration::from_secs_f64(number * unit)),
        false => Err(format!("{min} to 3600 seconds")),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    in_range(text, 0.1, 1e8)
}

fn parse_times(text: &str) -> Result<f64, String> {
    in_range(text, 1.0, 1000.0)
}

fn in_range(text: &str, min: f64, max: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "a number".to_owned())?;
    if (min..=max).contains(&value) { Ok(value) } else { Err(format!("{min} to {max}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_take_units() {
        for (text, ms) in [("1", 1000), ("0.5", 500), ("500ms", 500), ("2s", 2000), ("1m", 60_000)]
        {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1", "1h", "NaN", "inf", "99999", "0"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
        assert_eq!(parse_warm_up("0"), Ok(Duration::ZERO));
    }
}
