//! A fuzzer's input, taken apart: numbers and choices from the front, and when it is used up, zeros.

/// What is left of an input.
pub(super) struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    pub(super) fn new(input: &'a [u8]) -> Source<'a> {
        Source { rest: input }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Up to `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub(super) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(super) fn number(&mut self, bytes: usize) -> u64 {
        self.bytes(bytes).iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// A number below `end`, or 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { self.number(3) as usize % end }
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// A number of the kind that breaks things, or any.
    pub(super) fn odd_number(&mut self) -> u64 {
        const EDGES: [u64; 16] = [
            0,
            1,
            2,
            511,
            512,
            4096,
            65536,
            1 << 31,
            u32::MAX as u64,
            1 << 32,
            1 << 61,
            (1 << 62) - 1,
            1 << 62,
            1 << 63,
            u64::MAX - 1,
            u64::MAX,
        ];
        let kind = self.byte();
        match kind {
            0..=127 => EDGES[usize::from(kind) % EDGES.len()],
            128..=191 => self.number(1),
            192..=223 => self.number(2) * 512,
            _ => self.number(8),
        }
    }
}
