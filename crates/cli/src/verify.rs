//! `uringlog verify`: reads all of a log, goes on past damage, and says what is lost.

use std::path::PathBuf;

use serde_json::{Value, json};
use uringlog::{Finding, Lost, Lsn, VerifyReport};

use crate::exit::{self, Failure};
use crate::units;

/// Arguments of `uringlog verify`.
#[derive(clap::Args)]
#[command(
    after_help = "Changes nothing and takes no lock: a writer may be at work, and then what was vouched \
    for is verified. Exit code 3 when any file is not as it was written, even where nothing is lost by it. \
    A torn tail, as a crash leaves it, is no damage. `uringlog repair` mends what can be mended."
)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `uringlog verify`.
pub fn run(args: Args) -> Result<(), Failure> {
    let report = uringlog::verify(&args.dir)?;
    let text = match args.json {
        true => format!("{}\n", json_of(&args.dir, &report)),
        false => text_of(&args.dir, &report),
    };
    exit::print(
        &text,
        match report.is_whole() {
            true => Ok(()),
            false => Err(Failure::Damage(verdict(&report))),
        },
    )
}

/// The end of it in one line.
fn verdict(report: &VerifyReport) -> String {
    match (report.is_damaged(), report.lost.is_empty()) {
        (true, false) => format!("acknowledged records are lost: {}", list(&report.lost)),
        (true, true) => "damage was found, and no lost record is known".to_owned(),
        (false, _) => "damage was found, and no record is lost".to_owned(),
    }
}

/// Lost records for people.
pub fn list(lost: &[Lost]) -> String {
    let some: Vec<String> = lost.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    match lost.len().saturating_sub(LISTED_MAX) {
        0 => some.join(", "),
        more => format!("{}, and {more} more ranges", some.join(", ")),
    }
}

const LISTED_MAX: usize = 20;

fn text_of(dir: &std::path::Path, report: &VerifyReport) -> String {
    let id = report.log_id.map_or("unknown".to_owned(), |id| id.to_string());
    let mut text = format!("log            {id} in {}\n", dir.display());
    let ranges: Vec<String> = report.intact.iter().take(LISTED_MAX).map(range).collect();
    let more = match report.intact.len().saturating_sub(LISTED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more ranges"),
    };
    text += &match report.records {
        0 => "intact         no records\n".to_owned(),
        n => format!(
            "intact         {} records, {} payload, in {} batches: {}{more}\n",
            units::count(n),
            units::bytes(report.payload_bytes),
            units::count(report.batches),
            ranges.join(", ")
        ),
    };
    text += &format!(
        "checked        {} segments, {}\n",
        units::count(report.segments),
        units::bytes(report.bytes)
    );
    if report.vouched_lsn < report.last_lsn {
        text += &format!("known durable  up to {}\n", report.vouched_lsn);
    }
    text += &format!(
        "lost           {}\n",
        if report.lost.is_empty() { "nothing known".to_owned() } else { list(&report.lost) }
    );
    for finding in &report.findings {
        text += &format!("{finding}\n");
    }
    if report.findings_left_out > 0 {
        text += &format!("and {} findings more\n", units::count(report.findings_left_out));
    }
    if report.unsteady {
        text += "the log changed all the time: look again when its writer is idle\n";
    }
    text
}

fn range((first, last): &(Lsn, Lsn)) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

/// Lost records for programs.
pub fn lost_json(lost: &[Lost]) -> Value {
    Value::from_iter(lost.iter().map(one_lost))
}

fn one_lost(lost: &Lost) -> Value {
    json!({ "first": lost.first.get(), "last": lost.last.map(Lsn::get) })
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "kind": finding.kind.name(),
        "file": finding.file.to_string_lossy(),
        "offset": finding.offset,
        "detail": finding.detail,
        "lost": finding.lost.as_ref().map(one_lost),
    })
}

fn json_of(dir: &std::path::Path, report: &VerifyReport) -> Value {
    json!({
        "dir": dir.to_string_lossy(),
        "log_id": report.log_id.map(|id| id.to_string()),
        "whole": report.is_whole(),
        "damaged": report.is_damaged(),
        "first_lsn": report.first_lsn.get(),
        "last_lsn": report.last_lsn.get(),
        "vouched_lsn": report.vouched_lsn.get(),
        "generation": report.generation,
        "segments": report.segments,
        "batches": report.batches,
        "records": report.records,
        "payload_bytes": report.payload_bytes,
        "bytes": report.bytes,
        "spares": report.spares,
        "unsteady": report.unsteady,
        "intact": Value::from_iter(
            report.intact.iter().map(|(first, last)| json!([first.get(), last.get()])),
        ),
        "lost": lost_json(&report.lost),
        "findings": Value::from_iter(report.findings.iter().map(finding_json)),
        "findings_left_out": report.findings_left_out,
    })
}
