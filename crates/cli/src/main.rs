//! The command `uringlog`: puts lines into a log, gets them out, looks at a log, and measures the
//! machine's own disk.
//!
//! [`append`], [`cat`], [`tail`], [`trim`], [`cursor`], [`info`], [`verify`],
//! [`repair`], [`dump`] and [`mod@bench`] each own one subcommand; [`exit`] owns what the
//! process ends with, [`signals`] how Ctrl-C reaches a command.
#![deny(unsafe_code)]

mod append;
mod bench;
mod cat;
mod choices;
mod cursor;
mod dump;
mod exit;
mod info;
mod lines;
mod newline;
mod records;
mod repair;
mod signals;
mod tail;
mod trim;
mod units;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = signals::survive_file_size_limits() {
        eprintln!("uringlog: cannot take over SIGXFSZ: {error}; a file size limit will end it");
    }
    let result = match cli.command {
        Command::Append(args) => append::run(args),
        Command::Cat(args) => cat::run(args),
        Command::Tail(args) => tail::run(args),
        Command::Trim(args) => trim::run(args),
        Command::Cursor(args) => cursor::run(args),
        Command::Info(args) => info::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Repair(args) => repair::run(args),
        Command::Dump(args) => dump::run(args),
        Command::Bench(args) => bench::run(*args),
    };
    exit::code(result)
}

/// A durable, totally ordered append-only log.
#[derive(Parser)]
#[command(
    name = "uringlog",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 damage found, 4 this machine cannot \
                  (no direct I/O, no io_uring when it is forced), 5 another process has the log \
                  open for writing."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Appends lines, one record each, from standard input or a file
    Append(append::Args),
    /// Prints the records of a log
    Cat(cat::Args),
    /// Prints the last records, and with -f those that come
    Tail(tail::Args),
    /// Lets a log that nobody writes start later, and gives the space back
    Trim(trim::Args),
    /// Lists, sets and removes cursors: named positions of consumers
    Cursor(cursor::Args),
    /// Describes a log: numbers, segments, sizes, torn tail, writer, memory
    Info(info::Args),
    /// Reads and checks all of a log, past damage too, and says what is lost
    Verify(verify::Args),
    /// Says how a damaged log can be made whole, and does it with --yes; keeps a copy
    Repair(repair::Args),
    /// Prints what stands in a log's files, intact or not
    Dump(dump::Args),
    /// Measures this machine's disk through a log and beside it with a bare loop
    Bench(Box<bench::args::Args>),
}
