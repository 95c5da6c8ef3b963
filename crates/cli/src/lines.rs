//! Cuts an input at newlines: large reads, whole lines out, a signal ends it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use crate::signals::Interrupt;

/// Cuts the input into pieces of whole lines.
pub struct Lines<'a> {
    input: &'a mut File,
    interrupt: &'a Interrupt,
    line_bytes_max: usize,
    /// `buf[start..end]` was read and not handed out; `buf[start..searched]` has no newline.
    buf: Vec<u8>,
    start: usize,
    searched: usize,
    end: usize,
    ended: bool,
    /// Lines handed out so far.
    pub lines: u64,
    /// Bytes of the lines handed out so far, newlines not counted.
    pub payload_bytes: u64,
    /// The input's last line had no newline.
    pub unterminated: bool,
    /// Bytes of a line that a signal cut short.
    pub unfinished_bytes: usize,
}

/// What ended the input early.
pub enum Refused {
    /// It could not be read.
    Read(io::Error),
    /// This line is longer than `max` bytes.
    TooLong {
        /// The first line is number 1.
        line: u64,
        max: usize,
    },
}

/// Bytes asked of one read.
const READ_BYTES: usize = 1 << 20;

impl<'a> Lines<'a> {
    /// Cuts what `input` gives from here on; a line may have `line_bytes_max` bytes, its newline
    /// not counted.
    pub fn new(input: &'a mut File, interrupt: &'a Interrupt, line_bytes_max: usize) -> Self {
        Lines {
            input,
            interrupt,
            line_bytes_max,
            buf: vec![0; READ_BYTES],
            start: 0,
            searched: 0,
            end: 0,
            ended: false,
            lines: 0,
            payload_bytes: 0,
            unterminated: false,
            unfinished_bytes: 0,
        }
    }

    /// The next whole lines, newlines included; only at the input's end may the last line be
    /// without. `None` at the end, and after a signal.
    pub fn next_piece(&mut self) -> Result<Option<&[u8]>, Refused> {
        loop {
            if let Some(at) = memchr::memrchr(b'\n', &self.buf[self.searched..self.end]) {
                let end = self.searched + at + 1;
                return self.hand_out(end).map(Some);
            }
            self.searched = self.end;
            if self.end - self.start > self.line_bytes_max {
                return Err(Refused::TooLong { line: self.lines + 1, max: self.line_bytes_max });
            }
            if self.interrupt.is_raised() {
                self.unfinished_bytes = self.end - self.start;
                return Ok(None);
            }
            if self.ended {
                if self.start == self.end {
                    return Ok(None);
                }
                self.unterminated = true;
                return self.hand_out(self.end).map(Some);
            }
            self.fill()?;
        }
    }

    /// Hands out `buf[start..end]`, up to a line that is too long: that one is met at the next
    /// call.
    fn hand_out(&mut self, mut end: usize) -> Result<&[u8], Refused> {
        let start = self.start;
        if end - start > self.line_bytes_max {
            end = self.end_of_allowed(end);
            if end == start {
                return Err(Refused::TooLong { line: self.lines + 1, max: self.line_bytes_max });
            }
        }
        let piece = &self.buf[start..end];
        let newlines = memchr::memchr_iter(b'\n', piece).count();
        self.lines += newlines as u64 + u64::from(!piece.ends_with(b"\n"));
        self.payload_bytes += (piece.len() - newlines) as u64;
        self.start = end;
        self.searched = end;
        Ok(piece)
    }

    /// Where the first line that is too long starts in `buf[start..end]`, or `end`.
    fn end_of_allowed(&self, end: usize) -> usize {
        let mut line_start = self.start;
        while line_start < end {
            let line_end =
                memchr::memchr(b'\n', &self.buf[line_start..end]).map_or(end, |at| line_start + at);
            if line_end - line_start > self.line_bytes_max {
                return line_start;
            }
            line_start = line_end + 1;
        }
        end
    }

    /// Reads more behind `end`.
    fn fill(&mut self) -> Result<(), Refused> {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.searched -= self.start;
            self.start = 0;
        }
        if self.buf.len() - self.end < READ_BYTES / 2 {
            // A long line. What the record's maximum does not allow is never read.
            let wanted = (self.buf.len() * 2).min(self.line_bytes_max + READ_BYTES);
            self.buf.resize(wanted.max(self.end + 1), 0);
        }
        self.interrupt.wait_readable(self.input.as_fd()).map_err(Refused::Read)?;
        if self.interrupt.is_raised() {
            return Ok(());
        }
        match self.input.read(&mut self.buf[self.end..]) {
            Ok(0) => self.ended = true,
            Ok(bytes) => self.end += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Refused::Read(error)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    /// Cuts `text` with a limit on lines; returns the lines and whether one was too long.
    fn cut(text: &[u8], line_bytes_max: usize) -> (Vec<Vec<u8>>, Option<u64>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        file.rewind().unwrap();
        let interrupt = Interrupt::install().unwrap();
        let mut lines = Lines::new(&mut file, &interrupt, line_bytes_max);
        let mut all = Vec::new();
        loop {
            match lines.next_piece() {
                Ok(Some(piece)) => {
                    all.extend(piece.split_inclusive(|&b| b == b'\n').map(<[u8]>::to_vec))
                }
                Ok(None) => return (all, None),
                Err(Refused::TooLong { line, .. }) => return (all, Some(line)),
                Err(_) => panic!("no other error is expected"),
            }
        }
    }

    #[test]
    fn lines_longer_than_a_read_are_whole() {
        let mut text = vec![b'x'; 3 * READ_BYTES + 7];
        text.extend_from_slice(b"\n\nshort\n");
        text.extend(vec![b'y'; READ_BYTES]);
        let (lines, too_long) = cut(&text, 4 * READ_BYTES);
        assert_eq!(too_long, None);
        assert_eq!(lines.len(), 4);
        assert_eq!(lines.concat(), text);
    }

    #[test]
    fn a_line_too_long_is_named_and_costs_nothing_before_it() {
        let (lines, too_long) = cut(b"one\ntwo\nthree and more\nfour\n", 5);
        assert_eq!(lines, [b"one\n", b"two\n"]);
        assert_eq!(too_long, Some(3));
        let (lines, too_long) = cut(b"12345\n123456", 5);
        assert_eq!((lines.len(), too_long), (1, Some(2)));
    }
}
