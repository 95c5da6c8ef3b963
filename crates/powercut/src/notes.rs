//! What the workload tells while it runs: lines on its standard output, which the recorder puts into the
//! order of the device's writes and flushes.
//!
//! An acknowledgement is told after it was received; recorded late, it asks for less. What is about to be
//! changed (a cursor, the start, a cut) is told before, and waits until it is recorded.

use std::collections::BTreeMap;
use std::fmt;

use crate::payload::Id;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// Records `lsn - count + 1` to `lsn` are acknowledged, in this generation; `last` is the last one.
    Acked { generation: u64, lsn: u64, last: Id, count: u64 },
    /// Records that a truncation took away again, as their tickets said.
    Gone { last: Id, count: u64 },
    /// A change begins. At most one is under way.
    Begins(Change),
    /// The change that was under way is done.
    Done(Outcome),
    /// The change that was under way was refused, and nothing changed.
    Refused,
    /// The log was opened, and holds this.
    Opened(Opened),
    /// For people, and for the checks of device faults.
    Said(String),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A cursor is made.
    Make { name: String },
    /// A cursor moves.
    Advance { name: String, to: u64 },
    /// The log is to start here.
    Trim { before: u64 },
    /// The log is to end here.
    Truncate { after: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Where the cursor stands.
    Cursor(u64),
    /// Where the log starts.
    Trimmed(u64),
    /// The generation that the cut began.
    Truncated(u64),
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Opened {
    pub generation: u64,
    pub first: u64,
    pub last: u64,
    pub cursors: BTreeMap<String, u64>,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Acked { generation, lsn, last, count } => {
                let Id { life, producer, index } = last;
                write!(f, "acked {generation} {lsn} {life} {producer} {index} {count}")
            }
            Note::Gone { last: Id { life, producer, index }, count } => {
                write!(f, "gone {life} {producer} {index} {count}")
            }
            Note::Begins(Change::Make { name }) => write!(f, "begins make {name}"),
            Note::Begins(Change::Advance { name, to }) => write!(f, "begins advance {name} {to}"),
            Note::Begins(Change::Trim { before }) => write!(f, "begins trim {before}"),
            Note::Begins(Change::Truncate { after }) => write!(f, "begins truncate {after}"),
            Note::Done(Outcome::Cursor(at)) => write!(f, "done cursor {at}"),
            Note::Done(Outcome::Trimmed(at)) => write!(f, "done trim {at}"),
            Note::Done(Outcome::Truncated(at)) => write!(f, "done truncate {at}"),
            Note::Refused => f.write_str("refused"),
            Note::Opened(opened) => {
                write!(f, "opened {} {} {}", opened.generation, opened.first, opened.last)?;
                opened.cursors.iter().try_for_each(|(name, at)| write!(f, " {name} {at}"))
            }
            Note::Said(words) => write!(f, "said {words}"),
        }
    }
}

impl Note {
    /// The note in a line; none where it is not one.
    pub fn parse(line: &str) -> Option<Note> {
        let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
        if kind == "said" {
            return Some(Note::Said(rest.to_owned()));
        }
        let words: Vec<&str> = rest.split(' ').filter(|word| !word.is_empty()).collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        let id = |at: usize| {
            let (life, producer) = (number(at)? as u32, number(at + 1)? as u32);
            Some(Id { life, producer, index: number(at + 2)? })
        };
        let name = || Some((*words.get(1)?).to_owned());
        Some(match (kind, words.first().copied()) {
            ("acked", _) => Note::Acked {
                generation: number(0)?,
                lsn: number(1)?,
                last: id(2)?,
                count: number(5)?,
            },
            ("gone", _) => Note::Gone { last: id(0)?, count: number(3)? },
            ("begins", Some("make")) => Note::Begins(Change::Make { name: name()? }),
            ("begins", Some("advance")) => {
                Note::Begins(Change::Advance { name: name()?, to: number(2)? })
            }
            ("begins", Some("trim")) => Note::Begins(Change::Trim { before: number(1)? }),
            ("begins", Some("truncate")) => Note::Begins(Change::Truncate { after: number(1)? }),
            ("done", Some("cursor")) => Note::Done(Outcome::Cursor(number(1)?)),
            ("done", Some("trim")) => Note::Done(Outcome::Trimmed(number(1)?)),
            ("done", Some("truncate")) => Note::Done(Outcome::Truncated(number(1)?)),
            ("refused", _) => Note::Refused,
            ("opened", _) => {
                let mut cursors = BTreeMap::new();
                for pair in words.get(3..)?.chunks(2) {
                    cursors.insert(pair[0].to_owned(), pair.get(1)?.parse().ok()?);
                }
                Note::Opened(Opened {
                    generation: number(0)?,
                    first: number(1)?,
                    last: number(2)?,
                    cursors,
                })
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_were_said() {
        let id = Id { life: 1, producer: 2, index: 30 };
        let name = "a".to_owned();
        let cursors = BTreeMap::from([("a".to_owned(), 5), ("b".to_owned(), 6)]);
        for note in [
            Note::Acked { generation: 3, lsn: 4, last: id, count: 5 },
            Note::Gone { last: id, count: 5 },
            Note::Begins(Change::Make { name: name.clone() }),
            Note::Begins(Change::Advance { name, to: 9 }),
            Note::Begins(Change::Trim { before: 9 }),
            Note::Begins(Change::Truncate { after: 9 }),
            Note::Done(Outcome::Cursor(1)),
            Note::Done(Outcome::Trimmed(2)),
            Note::Done(Outcome::Truncated(3)),
            Note::Refused,
            Note::Opened(Opened { generation: 1, first: 2, last: 3, cursors }),
            Note::Opened(Opened::default()),
            Note::Said("whatever it is".to_owned()),
        ] {
            assert_eq!(Note::parse(&note.to_string()), Some(note));
        }
        assert_eq!(Note::parse("acked 1 2 3"), None);
    }
}
