//! Batches of which only the padding is damaged.

use crate::disk::{File, Store};
use crate::frame::{self, BatchHeader};
use crate::mem::AlignedBuf;
use crate::segment::Segment;

/// The bytes of a batch with zeros where zeros must be, if that makes it valid, and its checksum.
pub(crate) fn mended_batch(
    store: &dyn Store,
    segment: &Segment,
    file: &dyn File,
    header: &BatchHeader,
) -> std::io::Result<Option<(Vec<u8>, u32)>> {
    let bytes = header.disk_bytes(u64::from(segment.header.block_bytes)) as usize;
    let mut buf = Aligned::read(store, file, header.offset, bytes)?;
    let Some(image) = buf.bytes(bytes) else { return Ok(None) };
    let payload_end = frame::BATCH_HEADER_BYTES + header.payload_bytes as usize;
    image[payload_end..header.table_offset()].fill(0);
    image[header.content_bytes() as usize..].fill(0);
    let Ok((again, crc)) = BatchHeader::decode(image, &header.context, header.offset) else {
        return Ok(None);
    };
    let is_valid = again == *header && header.verify_body(image).is_ok();
    Ok(is_valid.then(|| (image.to_vec(), crc)))
}

/// Bytes of a file at any multiple of 512, whatever the device's block is.
pub(crate) struct Aligned {
    buf: AlignedBuf,
    skip: usize,
    len: usize,
}

impl Aligned {
    pub(crate) fn read(
        store: &dyn Store,
        file: &dyn File,
        offset: u64,
        bytes: usize,
    ) -> std::io::Result<Aligned> {
        let block = store.facts().block_bytes as u64;
        let start = offset - offset % block;
        let skip = (offset - start) as usize;
        let want = (skip + bytes).next_multiple_of(block as usize);
        let mut buf = AlignedBuf::new(want)?;
        let len = file.read_at(start, &mut buf[..want])?;
        Ok(Aligned { buf, skip, len })
    }

    /// The first of them; none where the file ends before.
    pub(crate) fn bytes(&mut self, bytes: usize) -> Option<&mut [u8]> {
        match self.skip + bytes <= self.len {
            true => Some(&mut self.buf[self.skip..self.skip + bytes]),
            false => None,
        }
    }
}
