//! A calibration's outcome, and the file that keeps it for later opens: lines of `key=value`, worth
//! nothing but time. Whatever is wrong with it means that it is measured again.

use std::fmt::Write as _;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Access, Method, MethodProbe, Store};
use crate::mem::AlignedBuf;

/// What was chosen, and how it came to that.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub(crate) method: Method,
    pub(crate) depth: usize,
    /// Completes the sentence "`method` is …".
    pub(crate) how: String,
    pub(crate) probes: Vec<MethodProbe>,
    /// How many seconds it holds.
    pub(crate) keep_s: u64,
}

/// How long a choice holds in seconds: a month, or some minutes where measuring was disturbed.
pub(crate) const KEEP_S: u64 = 30 * 24 * 3600;
/// See `KEEP_S`.
pub(crate) const KEEP_DISTURBED_S: u64 = 600;

/// What was to be chosen from, as the file keeps it: a choice among others is of no use.
pub(crate) fn asked(candidates: &[Method], depth: Option<usize>) -> String {
    let names: Vec<&str> = candidates.iter().map(|method| method.name()).collect();
    match depth {
        Some(depth) => format!("{} depth {depth}", names.join(" ")),
        None => format!("{} depth any", names.join(" ")),
    }
}

/// The kept choice, if it answers the same question on the same device and kernel and is not old.
pub(crate) fn load(store: &dyn Store, asked: &str) -> Option<Choice> {
    let file = store.open(KEPT_NAME, Access::Read).ok()?;
    let len = usize::try_from(file.len().ok()?).ok().filter(|&len| len <= FILE_BYTES_MAX)?;
    let mut buf = AlignedBuf::new(len.next_multiple_of(store.facts().block_bytes)).ok()?;
    let read = file.read_at(0, &mut buf).ok()?;
    parse(std::str::from_utf8(&buf[..read.min(len)]).ok()?, &heading(store, asked), now_s())
}

/// Keeps the choice. Not synced: a lost or torn file is measured again.
pub(crate) fn save(store: &dyn Store, asked: &str, choice: &Choice) -> io::Result<()> {
    let text = render(&heading(store, asked), choice, now_s());
    let mut buf = AlignedBuf::new(text.len().next_multiple_of(store.facts().block_bytes))?;
    // Whole blocks, for direct I/O: filled up with empty lines.
    buf.fill(b'\n');
    buf[..text.len()].copy_from_slice(text.as_bytes());
    match store.remove(TEMP_NAME) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    store.create(TEMP_NAME)?.write_at(0, &buf)?;
    store.rename(TEMP_NAME, KEPT_NAME)
}

/// The lines that must be the same for the file to be of use.
fn heading(store: &dyn Store, asked: &str) -> String {
    let facts = store.facts();
    format!(
        "version=1\ndevice={}\nfile_system={}\nkernel={}\nblock_bytes={}\nasked={asked}\n",
        facts.device, facts.file_system, facts.kernel, facts.block_bytes
    )
}

fn render(heading: &str, choice: &Choice, now_s: u64) -> String {
    let mut text = heading.to_owned();
    let Choice { method, depth, how, probes, keep_s } = choice;
    // Writing to a string cannot fail.
    let mut line = |args: std::fmt::Arguments<'_>| text.write_fmt(args).unwrap_or_default();
    line(format_args!("measured_s={now_s}\nkeep_s={keep_s}\n"));
    line(format_args!("method={method}\ndepth={depth}\nhow={how}\n"));
    for MethodProbe { method, depth, p50_us, p99_us, refused } in probes {
        match refused {
            Some(reason) => line(format_args!("refused={method} {}\n", one_line(reason))),
            None => line(format_args!("probe={method} {depth} {p50_us:.1} {p99_us:.1}\n")),
        }
    }
    line(format_args!("end=1\n"));
    text
}

fn parse(text: &str, heading: &str, now_s: u64) -> Option<Choice> {
    let mut lines = text.strip_prefix(heading)?.lines();
    let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix('=');
    let measured_s: u64 = value("measured_s")?.parse().ok()?;
    let keep_s: u64 = value("keep_s")?.parse().ok()?;
    if now_s.checked_sub(measured_s)? > keep_s.min(KEEP_S) {
        return None;
    }
    let method = Method::from_name(value("method")?)?;
    let depth = value("depth")?.parse().ok().filter(|depth| (1..=16).contains(depth))?;
    let how = value("how")?.to_owned();
    let mut probes = Vec::new();
    for line in lines {
        if line == "end=1" {
            return Some(Choice { method, depth, how, probes, keep_s });
        }
        probes.push(match line.split_once('=')? {
            ("probe", probe) => {
                let mut words = probe.split(' ');
                MethodProbe {
                    method: Method::from_name(words.next()?)?,
                    depth: words.next()?.parse().ok()?,
                    p50_us: words.next()?.parse().ok()?,
                    p99_us: words.next()?.parse().ok()?,
                    refused: None,
                }
            }
            ("refused", refused) => {
                let (method, reason) = refused.split_once(' ')?;
                let method = Method::from_name(method)?;
                let refused = Some(reason.to_owned());
                MethodProbe { method, depth: 1, p50_us: 0.0, p99_us: 0.0, refused }
            }
            _ => return None,
        });
    }
    // No end: the file was torn.
    None
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Name of the file.
pub(crate) const KEPT_NAME: &str = "calibration";
const TEMP_NAME: &str = "calibration.tmp";
const FILE_BYTES_MAX: usize = 64 << 10;

/// Reads a kept choice for a fuzz target: what is accepted can be written, and read again as the same.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_text(bytes: &[u8]) {
    const HEADING: &str = "version=1\ndevice=8:1\n";
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for text in [text.to_owned(), format!("{HEADING}{text}")] {
        let Some(choice) = parse(&text, HEADING, 1000) else { continue };
        assert!(choice.probes.len() <= text.len(), "no more than the text says");
        let again = parse(&render(HEADING, &choice, 1000), HEADING, 1000);
        let again = again.map(|again| (again.method, again.depth, again.probes.len()));
        assert_eq!(again, Some((choice.method, choice.depth, choice.probes.len())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "version=1\ndevice=8:1\n";

    fn choice() -> Choice {
        let probe = |method, refused| MethodProbe {
            method,
            depth: 1,
            p50_us: if refused { 0.0 } else { 88.5 },
            p99_us: if refused { 0.0 } else { 220.0 },
            refused: refused.then(|| "not allowed = here".to_owned()),
        };
        Choice {
            method: Method::PwriteDsync,
            depth: 1,
            how: "the only way".to_owned(),
            probes: vec![probe(Method::RingDsync, true), probe(Method::PwriteDsync, false)],
            keep_s: KEEP_DISTURBED_S,
        }
    }

    #[test]
    fn what_is_kept_comes_back() {
        let text = render(HEADING, &choice(), 1000) + "\n\n\n";
        let back = parse(&text, HEADING, 1000).unwrap();
        assert_eq!(format!("{back:?}"), format!("{:?}", choice()));
    }

    #[test]
    fn another_question_an_old_answer_or_a_torn_file_is_measured_again() {
        let text = render(HEADING, &choice(), 1000);
        assert!(parse(&text, HEADING, 1000 + KEEP_DISTURBED_S).is_some());
        assert!(parse(&text, HEADING, 1001 + KEEP_DISTURBED_S).is_none());
        assert!(parse(&text, HEADING, 999).is_none(), "measured in the future");
        assert!(parse(&text, "version=1\ndevice=8:2\n", 1000).is_none());
        for cut in 0..text.len() - 1 {
            assert!(parse(&text[..cut], HEADING, 1000).is_none(), "cut at {cut}");
            let zeros = format!("{}{}", &text[..cut], "\0".repeat(text.len() - cut));
            assert!(parse(&zeros, HEADING, 1000).is_none(), "zeros from {cut}");
        }
    }
}
