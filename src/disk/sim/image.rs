//! The bytes of a simulated file: sparse pages that copies share, so that a zero page costs nothing
//! and a copy of a file costs a pointer a page.

use core::ops::Range;
use std::sync::Arc;

use crate::frame::is_zero;

const PAGE_BYTES: usize = 4096;

/// One state of a file. What is stored behind `len` does not show until the file grows over it.
#[derive(Clone, Default)]
pub(super) struct Image {
    pages: Vec<Option<Arc<[u8; PAGE_BYTES]>>>,
    pub(super) len: u64,
}

/// What is written to a range: `None` stands for zeros.
pub(super) type Bytes<'a> = Option<&'a [u8]>;

impl Image {
    /// Fills `buf`, which ends at or before the end of the file, or reads as zeros behind it.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) {
        for piece in pieces(offset..offset + buf.len() as u64) {
            let out = &mut buf[piece.at..piece.at + piece.within.len()];
            match self.pages.get(piece.page) {
                Some(Some(page)) => out.copy_from_slice(&page[piece.within]),
                // A fresh buffer costs less while nobody writes to it.
                _ if is_zero(out) => {}
                _ => out.fill(0),
            }
        }
    }

    /// Stores bytes. Does not move the end of the file.
    pub(super) fn write(&mut self, range: Range<u64>, bytes: Bytes<'_>) {
        for piece in pieces(range) {
            let bytes = bytes.map(|bytes| &bytes[piece.at..piece.at + piece.within.len()]);
            match bytes.filter(|bytes| !is_zero(bytes)) {
                Some(bytes) => self.page(piece.page)[piece.within].copy_from_slice(bytes),
                None => self.clear(piece.page, piece.within),
            }
        }
    }

    /// Cuts what stands behind `len`, or grows with what is stored there.
    pub(super) fn set_len(&mut self, len: u64) {
        let end = self.pages.len() as u64 * PAGE_BYTES as u64;
        if len < end {
            let pages = len.div_ceil(PAGE_BYTES as u64);
            self.clear((len as usize) / PAGE_BYTES, len as usize % PAGE_BYTES..PAGE_BYTES);
            self.pages.truncate(pages as usize);
        }
        self.len = len;
    }

    fn page(&mut self, index: usize) -> &mut [u8; PAGE_BYTES] {
        if self.pages.len() <= index {
            self.pages.resize(index + 1, None);
        }
        Arc::make_mut(self.pages[index].get_or_insert_with(|| Arc::new([0; PAGE_BYTES])))
    }

    fn clear(&mut self, index: usize, within: Range<usize>) {
        let Some(slot) = self.pages.get_mut(index) else { return };
        match slot {
            Some(_) if within == (0..PAGE_BYTES) => *slot = None,
            Some(page) if !is_zero(&page[within.clone()]) => Arc::make_mut(page)[within].fill(0),
            _ => {}
        }
    }
}

struct Piece {
    page: usize,
    within: Range<usize>,
    /// Where the piece starts in the buffer.
    at: usize,
}

/// Cuts a range of a file at its page boundaries.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Piece> {
    let (start, end) = (range.start as usize, range.end as usize);
    let mut next = start;
    core::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let from = next;
        let page = from / PAGE_BYTES;
        next = ((page + 1) * PAGE_BYTES).min(end);
        Some(Piece {
            page,
            within: from - page * PAGE_BYTES..next - page * PAGE_BYTES,
            at: from - start,
        })
    })
}
