//! `uringlog repair`: makes a damaged log one that opens again, and keeps a copy of what it changes.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Value, json};
use uringlog::{Keep, Lsn, RepairError, RepairOptions, RepairReport};

use crate::exit::{self, Failure};
use crate::{units, verify};

/// Arguments of `uringlog repair`.
#[derive(clap::Args)]
#[command(
    after_help = "Without --yes nothing is changed: it says what would be. A log cannot have a hole: where \
    acknowledged records are lost, the log ends before the first of them (--keep before, the default), as \
    if it were truncated there, or starts behind the last (--keep after), as if it were trimmed. Every file \
    that is changed is copied first, to a new directory, beside the log or where --copy-to says; the intact records that leave \
    the log can be read there with `uringlog cat --skip-damage`. Exit code 0: the log is whole, or was; 3: \
    there is something to repair, or damage is left."
)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    /// Does it
    #[arg(long)]
    yes: bool,
    /// What stays where records are lost
    #[arg(long, value_enum, default_value = "before")]
    keep: KeepArg,
    /// The directory for the copy of what is changed, which must not exist yet [default: beside the log]
    #[arg(long, value_name = "DIR")]
    copy_to: Option<PathBuf>,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// See [`Keep`].
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeepArg {
    /// What stands before the first lost record
    Before,
    /// What stands behind the last lost record, from the start of a segment on
    After,
}

/// Runs `uringlog repair`.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut options = RepairOptions::new().keep(match args.keep {
        KeepArg::Before => Keep::Before,
        KeepArg::After => Keep::After,
    });
    if let Some(path) = &args.copy_to {
        options = options.copy_to(path);
    }
    let report = match args.yes {
        true => uringlog::repair(&args.dir, &options),
        false => uringlog::plan_repair(&args.dir, &options),
    }
    .map_err(failure)?;
    let text = match args.json {
        true => format!("{}\n", json_of(&args, &report)),
        false => text_of(&args, &report),
    };
    let verdict = match &report.after {
        None if report.steps.is_empty() => Ok(()),
        None => Err(Failure::Damage("nothing was changed: add --yes to do it".to_owned())),
        Some(after) if after.is_whole() => Ok(()),
        Some(_) => Err(Failure::Damage(
            "the log is not whole yet: look at it with `uringlog verify`, and repair it again"
                .to_owned(),
        )),
    };
    exit::print(&text, verdict)
}

fn failure(error: RepairError) -> Failure {
    match error {
        RepairError::Locked { .. } => Failure::Locked(error.to_string()),
        RepairError::NothingBehind | RepairError::NothingBefore => {
            Failure::Usage(error.to_string())
        }
        RepairError::Read(error) => error.into(),
        error => Failure::Failed(error.to_string()),
    }
}

fn ranges(ranges: &[(Lsn, Lsn)]) -> String {
    let one = |(first, last): &(Lsn, Lsn)| match first == last {
        true => first.to_string(),
        false => format!("{first} to {last}"),
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn count(ranges: &[(Lsn, Lsn)]) -> u64 {
    ranges.iter().map(|(first, last)| last.get() + 1 - first.get()).sum()
}

fn text_of(args: &Args, report: &RepairReport) -> String {
    if report.steps.is_empty() {
        return format!("{}: there is nothing to repair\n", args.dir.display());
    }
    let done = report.after.is_some();
    let mut text = String::new();
    for step in &report.steps {
        text += &format!("{}         {step}\n", if done { "done" } else { "plan" });
    }
    if !report.lost.is_empty() {
        text += &format!("lost         {}\n", verify::list(&report.lost));
    }
    if !report.leaving.is_empty() {
        text += &format!(
            "{}      {} intact records, in the copy only: {}\n",
            if done { "left   " } else { "leaving" },
            units::count(count(&report.leaving)),
            ranges(&report.leaving)
        );
    }
    text += &match report.last_lsn < report.first_lsn {
        true => format!("the log      no records, the next is number {}\n", report.last_lsn.next()),
        false => format!("the log      records {} to {}\n", report.first_lsn, report.last_lsn),
    };
    text += &format!(
        "the copy     {}: {} files; {} are needed in all\n",
        report.kept_in.display(),
        report.kept.len(),
        units::bytes(report.needed_bytes)
    );
    text
}

fn json_of(args: &Args, report: &RepairReport) -> Value {
    let pair = |(first, last): &(Lsn, Lsn)| json!([first.get(), last.get()]);
    json!({
        "dir": args.dir.to_string_lossy(),
        "done": report.after.is_some(),
        "whole": report.after.as_ref().map_or(report.steps.is_empty(), |after| after.is_whole()),
        "steps": Value::from_iter(report.steps.iter().map(|step| json!({
            "file": step.file.to_string_lossy(),
            "what": step.what,
        }))),
        "lost": verify::lost_json(&report.lost),
        "leaving": Value::from_iter(report.leaving.iter().map(pair)),
        "first_lsn": report.first_lsn.get(),
        "last_lsn": report.last_lsn.get(),
        "kept_in": report.kept_in.to_string_lossy(),
        "kept": Value::from_iter(report.kept.iter().map(|(name, bytes)| {
            json!({ "name": name, "bytes": bytes })
        })),
        "renamed": Value::from_iter(report.renamed.iter().map(|(name, to)| {
            json!({ "name": name, "to": to })
        })),
        "needed_bytes": report.needed_bytes,
    })
}
