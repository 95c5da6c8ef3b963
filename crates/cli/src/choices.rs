//! The options of a log that more than one subcommand takes, as they stand on the command line.

use std::path::Path;

use clap::ValueEnum;
use uringlog::{BackendChoice, Durability, Idle, Log, Method, OpenError, Options};

/// How to open a log for writing.
#[derive(clap::Args, Clone, Debug)]
pub struct LogArgs {
    /// What an acknowledgement means: synced on the device, or only handed to it
    #[arg(long, value_enum, default_value = "durable")]
    pub durability: DurabilityArg,
    /// Which way to the disk to take
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: BackendArg,
    /// Forces the durable method instead of measuring: ring-dsync, ring-fdatasync,
    /// ring-linked-fsync, pwrite-dsync, pwrite-fdatasync
    #[arg(long, value_parser = parse_method)]
    pub method: Option<Method>,
    /// Size of a new segment file (such as 64M)
    #[arg(long, value_parser = crate::units::parse_bytes)]
    pub segment_bytes: Option<u64>,
    /// Goes through the page cache where the file system refuses direct I/O
    #[arg(long)]
    pub buffered: bool,
}

impl LogArgs {
    /// The options that these arguments ask for.
    pub fn options(&self) -> Options {
        let mut options = Options::new()
            .durability(self.durability.into())
            .backend(self.backend.into())
            .buffered(self.buffered);
        if let Some(method) = self.method {
            options = options.method(method);
        }
        if let Some(bytes) = self.segment_bytes {
            options = options.segment_bytes(bytes);
        }
        options
    }

    /// Opens the log in `dir` with these arguments, creating it when there is none.
    pub fn open(&self, dir: &Path) -> Result<Log, OpenError> {
        self.options().open(dir)
    }
}

fn parse_method(name: &str) -> Result<Method, String> {
    Method::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Method::ALL.iter().map(|method| method.name()).collect();
        format!("one of {}", names.join(", "))
    })
}

/// See [`Durability`].
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum DurabilityArg {
    /// Survives a power cut; also called synced
    #[value(alias = "synced")]
    Durable,
    /// Survives the end of the process, not a power cut
    Written,
}

impl From<DurabilityArg> for Durability {
    fn from(arg: DurabilityArg) -> Self {
        match arg {
            DurabilityArg::Durable => Durability::Durable,
            DurabilityArg::Written => Durability::Written,
        }
    }
}

/// See [`BackendChoice`].
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackendArg {
    /// io_uring where it works
    Auto,
    /// io_uring, or exit code 4
    Uring,
    /// Plain system calls
    Psync,
}

impl From<BackendArg> for BackendChoice {
    fn from(arg: BackendArg) -> Self {
        match arg {
            BackendArg::Auto => BackendChoice::Auto,
            BackendArg::Uring => BackendChoice::Uring,
            BackendArg::Psync => BackendChoice::Psync,
        }
    }
}

/// See [`Idle`].
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdleArg {
    /// Sleep: no CPU while nothing happens; producers in a crowd yield first
    Park,
    /// Sleep, in a crowd too
    Sleep,
    /// Burn a core
    Spin,
    /// Give the core away again and again
    Yield,
}

impl IdleArg {
    /// The strategy's name.
    pub fn name(self) -> &'static str {
        match self {
            IdleArg::Park => "park",
            IdleArg::Sleep => "sleep",
            IdleArg::Spin => "spin",
            IdleArg::Yield => "yield",
        }
    }
}

impl From<IdleArg> for Idle {
    fn from(arg: IdleArg) -> Self {
        match arg {
            IdleArg::Park | IdleArg::Sleep => Idle::Park,
            IdleArg::Spin => Idle::Spin,
            IdleArg::Yield => Idle::Yield,
        }
    }
}
