//! `uringlog dump`: what stands in the files of a log, piece by piece, intact or not.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use uringlog::{DumpOptions, DumpPiece, DumpValue};

use crate::exit::Failure;
use crate::units;

/// Arguments of `uringlog dump`.
#[derive(clap::Args)]
#[command(
    after_help = "Prints headers, footers, the mark, cursors and the status page, and of what stands between \
    the batches where it is. Damaged pieces are printed with what is wrong, and are no failure: \
    `uringlog verify` is the command that judges."
)]
pub struct Args {
    /// The log's directory, or one segment file
    path: PathBuf,
    /// Only the segment N
    #[arg(long, value_name = "N")]
    segment: Option<u64>,
    /// Every batch
    #[arg(long)]
    batches: bool,
    /// Every batch and every record
    #[arg(long)]
    records: bool,
    /// The records' payloads too, in hex
    #[arg(long, requires = "records")]
    hex: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Runs `uringlog dump`.
pub fn run(args: Args) -> Result<(), Failure> {
    let options =
        DumpOptions::new().segment(args.segment).batches(args.batches).records(args.records);
    let mut out = BufWriter::with_capacity(OUT_BYTES, io::stdout().lock());
    let mut failed = None;
    let dumped = uringlog::dump(&args.path, options, |piece| {
        let text = if args.json { json_of(&piece, args.hex) } else { text_of(&piece, args.hex) };
        let written = writeln!(out, "{text}");
        failed = written.err();
        failed.is_none()
    });
    let flushed = out.flush();
    dumped?;
    match failed.or(flushed.err()) {
        Some(error) => Err(Failure::output(&error)),
        None => Ok(()),
    }
}

const OUT_BYTES: usize = 64 << 10;

fn text_of(piece: &DumpPiece, hex: bool) -> String {
    let mut text = format!("{} {:>10} {:<7}", piece.file, piece.offset, piece.what);
    text += if piece.trouble.is_empty() { " ok" } else { " BAD" };
    for (name, value) in &piece.fields {
        if let DumpValue::Bytes(_) = value
            && !hex
        {
            continue;
        }
        text += &format!(" {name}={}", value_text(value));
    }
    if !piece.trouble.is_empty() {
        text += &format!(" ({})", piece.trouble);
    }
    text
}

fn value_text(value: &DumpValue) -> String {
    match value {
        DumpValue::Number(number) => number.to_string(),
        DumpValue::Crc(crc) => format!("{crc:08x}"),
        DumpValue::Time(0) => "-".to_owned(),
        DumpValue::Time(wall_ns) => units::rfc3339(time(*wall_ns)),
        DumpValue::Text(text) => text.clone(),
        DumpValue::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        _ => String::new(),
    }
}

fn time(wall_ns: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(wall_ns)
}

fn json_of(piece: &DumpPiece, hex: bool) -> String {
    let mut object = Map::new();
    object.insert("what".to_owned(), json!(piece.what));
    object.insert("file".to_owned(), json!(piece.file));
    object.insert("offset".to_owned(), json!(piece.offset));
    object.insert("ok".to_owned(), json!(piece.trouble.is_empty()));
    if !piece.trouble.is_empty() {
        object.insert("trouble".to_owned(), json!(piece.trouble));
    }
    for (name, value) in &piece.fields {
        let value = match value {
            DumpValue::Number(number) => json!(number),
            DumpValue::Bytes(_) if !hex => continue,
            value => json!(value_text(value)),
        };
        object.insert((*name).to_owned(), value);
    }
    Value::Object(object).to_string()
}
