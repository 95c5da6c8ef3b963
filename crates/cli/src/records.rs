//! How records are printed: lines, JSON, or payloads alone.

use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use uringlog::{Lsn, Record};

use crate::{newline, units};

/// The form in which records are printed.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct FormArgs {
    /// One JSON object a line: lsn, time, bytes, and text (or base64 where it is not UTF-8)
    #[arg(long, conflicts_with = "raw")]
    json: bool,
    /// The payloads alone, nothing between them
    #[arg(long)]
    raw: bool,
}

/// A record, wherever its bytes are kept.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    pub lsn: Lsn,
    pub written_at: SystemTime,
    pub payload: &'a [u8],
}

impl<'a> From<&Record<'a>> for Shown<'a> {
    fn from(record: &Record<'a>) -> Self {
        Shown { lsn: record.lsn(), written_at: record.written_at(), payload: record.payload() }
    }
}

/// Prints records one after the other.
pub struct Printer<W: Write> {
    out: W,
    form: FormArgs,
    /// Whether each line is ended at once, because nobody knows when the next one comes.
    at_once: bool,
    /// The last record still needs its newline: it gets none when the text it came from had none,
    /// which is known once nothing follows it.
    owes_newline: bool,
    /// The last record printed.
    pub last: Lsn,
    /// Records printed.
    pub count: u64,
}

impl<W: Write> Printer<W> {
    /// A printer; with `at_once` every line gets its newline as soon as it is printed.
    pub fn new(out: W, form: FormArgs, at_once: bool) -> Self {
        Printer { out, form, at_once, owes_newline: false, last: Lsn::NONE, count: 0 }
    }

    /// Prints one record.
    pub fn print(&mut self, record: Shown<'_>) -> io::Result<()> {
        if self.owes_newline {
            self.out.write_all(b"\n")?;
        }
        self.owes_newline = false;
        if self.form.json {
            print_json(&mut self.out, record)?;
        } else {
            self.out.write_all(record.payload)?;
            match (self.form.raw, self.at_once) {
                (true, _) => {}
                (false, true) => self.out.write_all(b"\n")?,
                (false, false) => self.owes_newline = true,
            }
        }
        self.last = record.lsn;
        self.count += 1;
        Ok(())
    }

    /// Ends the last line. `log_end` is the log's directory where the log ends there: the line may
    /// have come without a newline.
    pub fn finish(&mut self, log_end: Option<&Path>) -> io::Result<()> {
        let bare = log_end.is_some_and(|dir| newline::is_marked(dir, self.last));
        if self.owes_newline && !bare {
            self.out.write_all(b"\n")?;
        }
        self.owes_newline = false;
        self.out.flush()
    }

    /// Hands on what was printed.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn print_json(out: &mut impl Write, record: Shown<'_>) -> io::Result<()> {
    let Shown { lsn, payload, .. } = record;
    let time = units::rfc3339(record.written_at);
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
