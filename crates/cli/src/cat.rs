//! `uringlog cat`: prints the durable records of a log, also while another process writes to it.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use uringlog::{Lsn, ReadError, Reader, Record};

use crate::exit::{Failure, note};
use crate::{newline, units};

/// Arguments of `uringlog cat`.
#[derive(clap::Args)]
pub struct Args {
    /// The log's directory
    dir: PathBuf,
    /// Number of the first record to print [default: the first that the log holds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
    /// Prints at most so many records
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// One JSON object a line: lsn, time, bytes, and text (or base64 where it is not UTF-8)
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// The payloads alone, nothing between them
    #[arg(long)]
    raw: bool,
}

/// Runs `uringlog cat`.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut reader = open(&args)?;
    let mut out = BufWriter::with_capacity(OUT_BYTES, io::stdout().lock());
    // What was read before an error is printed before the error.
    let printed = print_records(&args, &mut reader, &mut out);
    let flushed = out.flush().map_err(|error| Failure::output(&error));
    let (last, at_end) = printed?;
    flushed?;
    if at_end {
        note_unvouched(&args.dir, last);
    }
    Ok(())
}

const OUT_BYTES: usize = 256 << 10;

/// Opens the log from `--from`, or from wherever it starts.
fn open(args: &Args) -> Result<Reader, ReadError> {
    // No number stands for the first that there is.
    Reader::open_dir(&args.dir, args.from.map_or(Lsn::NONE, Lsn::new))
}

/// Prints records; returns the last one's number, and whether the log ends there.
fn print_records(
    args: &Args,
    reader: &mut Reader,
    out: &mut impl Write,
) -> Result<(Lsn, bool), Failure> {
    let lines = !args.json && !args.raw;
    let mut left = args.max.unwrap_or(u64::MAX);
    let mut last = Lsn::NONE;
    // Whether the last record still needs its newline: it gets none when the text it came from had
    // none, which is known once nothing follows it.
    let mut owes_newline = false;
    while left > 0 {
        let Some(record) = reader.next_record()? else {
            if owes_newline && !newline::is_marked(&args.dir, last) {
                out.write_all(b"\n").map_err(|error| Failure::output(&error))?;
            }
            return Ok((last, true));
        };
        let printed = if owes_newline { out.write_all(b"\n") } else { Ok(()) };
        printed.and_then(|()| print_record(args, &record, out)).map_err(|e| Failure::output(&e))?;
        (last, owes_newline) = (record.lsn(), lines);
        left -= 1;
    }
    if owes_newline {
        out.write_all(b"\n").map_err(|error| Failure::output(&error))?;
    }
    Ok((last, false))
}

fn print_record(args: &Args, record: &Record<'_>, out: &mut impl Write) -> io::Result<()> {
    let payload = record.payload();
    if !args.json {
        return out.write_all(payload);
    }
    let (lsn, time) = (record.lsn(), units::rfc3339(record.written_at()));
    write!(out, r#"{{"lsn":{lsn},"time":"{time}","bytes":{},"#, payload.len())?;
    match std::str::from_utf8(payload) {
        Ok(text) => {
            out.write_all(br#""text":"#)?;
            serde_json::to_writer(&mut *out, text)?;
            out.write_all(b"}\n")
        }
        Err(_) => writeln!(out, r#""base64":"{}"}}"#, base64(payload)),
    }
}

/// Says when more can be read than what is known to be durable.
fn note_unvouched(dir: &Path, last: Lsn) {
    // Only a note: an error here was met by the reader first, or does not matter to it.
    let Ok(found) = uringlog::inspect(dir) else { return };
    if found.last_lsn > found.vouched_lsn && found.last_lsn > last {
        note(&format!(
            "records {} to {} can be read too, but nothing yet says that they are durable: a \
             writer is about to say so, or died before it could (then opening the log keeps them)",
            found.vouched_lsn.max(last).next(),
            found.last_lsn
        ));
    }
}

/// Base64 of `bytes` with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place) & 63) as usize;
            out.push(if place <= chunk.len() { char::from(ALPHABET[index]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0x00]), "//4A");
    }
}
