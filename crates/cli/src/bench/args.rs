//! Arguments of `uringlog bench`.

use std::path::PathBuf;

use uringlog::Options;

use crate::choices::{IdleArg, LogArgs};
use crate::units::parse_bytes;

/// Arguments of `uringlog bench`.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = "Without arguments it measures 1, 8 and 32 producers that wait for each of \
    their records, then one producer that waits only at the end, within 15 seconds. Log and bare \
    loop take turns in one run on one file system: only their ratios carry over to other runs."
)]
pub struct Args {
    /// Threads that append; each waits for its record before it appends the next
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub producers: Option<u16>,
    /// Payload bytes of a record [default: 256, with --async 4096]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub size: Option<u64>,
    /// Seconds to measure, the log's turns and the others' together [default: 4]
    #[arg(long, value_name = "S", value_parser = parse_seconds)]
    pub seconds: Option<f64>,
    /// Makes its temporary directory in this one [default: ./target, or else .]
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
    /// One producer publishes without waiting, and syncs once at the end of each burst
    #[arg(long = "async", conflicts_with = "producers")]
    pub is_async: bool,
    /// How writer and producers wait when they have nothing to do
    #[arg(long, value_enum, default_value = "park")]
    pub idle: IdleArg,
    /// Appends a second of all producers together; the bare loop keeps the same pace. With --async
    /// it is the pace at which submitting is measured [default there: 100000, at most 100 MB/s]
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Turns of each kind [default: one for each half second]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: Option<u32>,
    /// Forces the number of writes under way at once
    #[arg(long, value_name = "N")]
    pub depth: Option<usize>,
    /// Measures what one waiting producer notices of rotation, preparation, recycling, removal and
    /// trimming, with small segments
    #[arg(long, conflicts_with_all = ["is_async", "producers", "rate", "rounds"])]
    pub rotation: bool,
    /// With --async, measures a mutex, a Vec and one writer thread beside the log [default: only
    /// with records of up to 64 bytes]
    #[arg(long, requires = "is_async")]
    pub reference: bool,
    /// Prints one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub log: LogArgs,
}

impl Args {
    /// Whether one workload was named, as opposed to the default set of them.
    pub fn is_single(&self) -> bool {
        self.json
            || self.is_async
            || self.rotation
            || self.producers.is_some()
            || self.size.is_some()
            || self.rate.is_some()
            || self.rounds.is_some()
    }

    /// The options to open the measured log with.
    pub fn options(&self) -> Options {
        let idle = self.idle.into();
        let options = self.log.options().writer_idle(idle).waiter_idle(idle);
        match self.depth {
            Some(depth) => options.depth(depth),
            None => options,
        }
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    in_range(text, 0.1, 3600.0)
}

fn parse_rate(text: &str) -> Result<f64, String> {
    in_range(text, 0.1, 1e8)
}

fn in_range(text: &str, min: f64, max: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "a number".to_owned())?;
    if (min..=max).contains(&value) { Ok(value) } else { Err(format!("{min} to {max}")) }
}
