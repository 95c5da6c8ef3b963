//! `uringlog cursor`: lists, sets and removes the cursors of a log, also while a writer is at work.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Subcommand;
use serde_json::{Value, json};
use uringlog::{Cursor, CursorError, CursorInfo, Inspection, Lsn, Reader};

use crate::exit::Failure;
use crate::units;

/// Arguments of `uringlog cursor`.
#[derive(clap::Args)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Prints each cursor: the next record it will take, how far it is behind, and how old that is
    List {
        /// Prints one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Sets a cursor, forward or back; makes it where there is none
    Set {
        /// Its name: 1 to 100 of letters, digits, '.', '_' and '-', the first not '.' or '-'
        name: String,
        /// Number of the next record to take; or `first`, or `end` for behind the last durable one
        #[arg(value_parser = parse_target)]
        to: Target,
    },
    /// Removes a cursor: trimming no longer waits for it
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Lsn(u64),
    First,
    End,
}

fn parse_target(text: &str) -> Result<Target, String> {
    match (text, text.parse()) {
        ("first", _) => Ok(Target::First),
        ("end", _) => Ok(Target::End),
        (_, Ok(lsn)) if lsn > 0 => Ok(Target::Lsn(lsn)),
        _ => Err("a record's number from 1 on, first, or end".to_owned()),
    }
}

/// Runs `uringlog cursor`.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.action {
        Action::List { json } => list(&args.dir, json),
        Action::Set { name, to } => set(&args.dir, &name, to),
        Action::Rm { name } => Ok(uringlog::remove_cursor(&args.dir, &name)?),
    }
}

fn set(dir: &Path, name: &str, to: Target) -> Result<(), Failure> {
    let log = uringlog::inspect(dir)?;
    let to = match to {
        Target::Lsn(lsn) => Lsn::new(lsn),
        Target::First => log.first_lsn,
        Target::End => log.vouched_lsn.next(),
    };
    // Looked at first: a refused number makes no cursor.
    if to > log.vouched_lsn.next() {
        return Err(CursorError::BeyondEnd { durable: log.vouched_lsn }.into());
    }
    if to < log.first_lsn {
        return Err(CursorError::Trimmed { first: log.first_lsn }.into());
    }
    Ok(Cursor::open_dir(dir, name)?.set(to)?)
}

fn list(dir: &Path, json: bool) -> Result<(), Failure> {
    let cursors = standings(dir, &uringlog::inspect(dir)?)?;
    let text = match json {
        true => format!("{}\n", Value::from_iter(cursors.iter().map(Standing::json))),
        false => table(&cursors),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::output(&e))
}

/// A cursor and how far it is behind.
pub struct Standing {
    name: String,
    position: Lsn,
    /// Durable records that it has not passed.
    lag: u64,
    /// Records that it had not passed when they were trimmed.
    lost: u64,
    /// When the next record that it will take was written.
    written_at: Option<SystemTime>,
}

/// All cursors of the log, with how far they are behind.
pub fn standings(dir: &Path, log: &Inspection) -> Result<Vec<Standing>, CursorError> {
    let cursors = uringlog::cursors(dir)?;
    Ok(cursors.into_iter().map(|cursor| standing(dir, log, cursor)).collect())
}

fn standing(dir: &Path, log: &Inspection, cursor: CursorInfo) -> Standing {
    let next = cursor.position.max(log.first_lsn);
    let lag = (log.vouched_lsn.get() + 1).saturating_sub(next.get());
    let written_at =
        || Reader::open_dir(dir, next).ok()?.next_record().ok()?.map(|r| r.written_at());
    Standing {
        lag,
        lost: next.get() - cursor.position.get(),
        written_at: if lag > 0 { written_at() } else { None },
        name: cursor.name,
        position: cursor.position,
    }
}

/// A table for people.
pub fn table(cursors: &[Standing]) -> String {
    if cursors.is_empty() {
        return "no cursors\n".to_owned();
    }
    let width = cursors.iter().map(|cursor| cursor.name.len()).fold(6, usize::max);
    let mut text = format!("{:<width$} {:>14} {:>14}  {}\n", "cursor", "next", "behind", "age");
    for cursor in cursors {
        let age = cursor.written_at.map_or("-".to_owned(), units::age);
        let lost = match cursor.lost {
            0 => String::new(),
            n => format!("  ({} records were trimmed before it took them)", units::count(n)),
        };
        let (name, next, lag) = (&cursor.name, cursor.position, units::count(cursor.lag));
        text += &format!("{name:<width$} {next:>14} {lag:>14}  {age}{lost}\n");
    }
    text
}

impl Standing {
    /// One JSON object.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "position": self.position.get(),
            "lag": self.lag,
            "trimmed": self.lost,
            "next_time": self.written_at.map(units::rfc3339),
        })
    }
}
