//! What is known of the segments: sizes, first records, clocks. Looked up on the disk when it is
//! asked for, and remembered of the sealed ones, which do not change any more.

use std::collections::BTreeMap;

use crate::disk::{Access, File, Store};
use crate::error::IoError;
use crate::footer::{Footer, footer_bytes, footer_offset};
use crate::mem::AlignedBuf;
use crate::recovery::first_lsn_of;
use crate::scan;
use crate::segment::{self, ScanError, Segment};

/// What is remembered. Whoever has it holds [`Files`](crate::extent::Files).
#[derive(Default)]
pub(crate) struct Catalog {
    segments: BTreeMap<u64, Known>,
    /// The generation in which all that was seen. A truncation changes what sealed segments hold.
    generation: u64,
}

#[derive(Clone, Copy, Default)]
struct Known {
    file_bytes: Option<u64>,
    facts: Option<Facts>,
    /// The clock of its last batch, where it was looked for. 0: it has none.
    last_wall_ns: Option<u64>,
}

/// What a segment holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Facts {
    /// Number of its first record, or of the one that follows where it holds none; none where no
    /// batch tells.
    pub(crate) first_lsn: Option<u64>,
    /// The writer's clock at its last batch, where its footer is intact.
    pub(crate) last_wall_ns: Option<u64>,
    /// Bytes of its payloads, where its footer is intact.
    pub(crate) payload_bytes: Option<u64>,
}

/// The segments that a log has just now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extremes {
    pub(crate) first_epoch: u64,
    /// What is below it is sealed.
    pub(crate) live_epoch: u64,
}

impl Catalog {
    /// Forgets everything where the log was truncated since.
    pub(crate) fn keep_up(&mut self, generation: u64) {
        if self.generation != generation {
            self.segments.clear();
            self.generation = generation;
        }
    }

    /// Forgets segments that are not there any more.
    pub(crate) fn forget_below(&mut self, epoch: u64) {
        self.segments = self.segments.split_off(&epoch);
    }

    /// A segment was sealed, and this is its footer.
    pub(crate) fn sealed(&mut self, footer: &Footer) {
        let known = self.segments.entry(footer.context.epoch).or_default();
        known.facts = Some(Facts::from_footer(footer));
    }

    /// Size of the segment's file in bytes.
    pub(crate) fn file_bytes(
        &mut self,
        store: &dyn Store,
        epoch: u64,
        live_epoch: u64,
    ) -> Result<u64, ScanError> {
        let known = self.segments.get(&epoch).and_then(|known| known.file_bytes);
        if let Some(bytes) = known {
            return Ok(bytes);
        }
        let file = segment::open_file(store, epoch, Access::Read)?;
        let path = segment::segment_path(store, epoch);
        let bytes = file.len().map_err(|e| IoError::new("read the size of", path, e))?;
        if epoch < live_epoch {
            self.segments.entry(epoch).or_default().file_bytes = Some(bytes);
        }
        Ok(bytes)
    }

    /// What the segment holds.
    pub(crate) fn facts(
        &mut self,
        store: &dyn Store,
        epoch: u64,
        live_epoch: u64,
    ) -> Result<Facts, ScanError> {
        if let Some(facts) = self.segments.get(&epoch).and_then(|known| known.facts) {
            return Ok(facts);
        }
        let (segment, file) = Segment::open(store, epoch)?;
        let footer = match epoch < live_epoch {
            true => read_footer(store, &segment, &*file)?,
            false => None,
        };
        let facts = match footer {
            Some(footer) => Facts::from_footer(&footer),
            None => Facts {
                first_lsn: first_lsn_of(store, &segment)?,
                last_wall_ns: None,
                payload_bytes: None,
            },
        };
        if epoch < live_epoch {
            self.segments.entry(epoch).or_default().facts = Some(facts);
        }
        Ok(facts)
    }

    /// Number of the first record in this segment or behind it, up to the live one; none where no
    /// batch is there yet.
    pub(crate) fn first_lsn_from(
        &mut self,
        store: &dyn Store,
        epoch: u64,
        live_epoch: u64,
    ) -> Result<Option<u64>, ScanError> {
        for epoch in epoch..=live_epoch {
            if let Some(first) = self.facts(store, epoch, live_epoch)?.first_lsn {
                return Ok(Some(first));
            }
        }
        Ok(None)
    }

    /// The last segment that begins at `lsn` or before it: a search, not a scan.
    pub(crate) fn segment_of(
        &mut self,
        store: &dyn Store,
        among: Extremes,
        lsn: u64,
    ) -> Result<u64, ScanError> {
        let (mut low, mut high) = (among.first_epoch, among.live_epoch + 1);
        // The segment at `low` begins at `lsn` or before it, the one at `high` does not.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.first_lsn_from(store, middle, among.live_epoch)? {
                Some(first) if first <= lsn => low = middle,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// The writer's clock at the last batch of a sealed segment: from its footer, or else found by
    /// a look at all of its blocks. None: it has no batch.
    pub(crate) fn last_wall_ns(
        &mut self,
        store: &dyn Store,
        epoch: u64,
        live_epoch: u64,
    ) -> Result<Option<u64>, ScanError> {
        if let Some(wall_ns) = self.facts(store, epoch, live_epoch)?.last_wall_ns {
            return Ok(Some(wall_ns));
        }
        let known = self.segments.get(&epoch).and_then(|known| known.last_wall_ns);
        let wall_ns = match known {
            Some(wall_ns) => wall_ns,
            None => {
                let (segment, file) = Segment::open(store, epoch)?;
                let limit = limit_of(store, &segment)?;
                let data_offset = segment.header.data_offset();
                let block = store.facts().block_bytes;
                let sweep = scan::sweep(&file, &segment, block, data_offset, limit, |_| false)
                    .map_err(|e| IoError::new("read", segment::segment_path(store, epoch), e))?;
                self.segments.entry(epoch).or_default().last_wall_ns = Some(sweep.wall_ns);
                sweep.wall_ns
            }
        };
        Ok((wall_ns != 0).then_some(wall_ns))
    }
}

impl Facts {
    fn from_footer(footer: &Footer) -> Facts {
        let any = !footer.entries.is_empty();
        Facts {
            first_lsn: any.then_some(footer.first_lsn),
            last_wall_ns: any.then_some(footer.last_wall_ns),
            payload_bytes: Some(footer.payload_bytes),
        }
    }
}

/// The footer of a sealed segment. None: there is none, or it tells of batches that do not count.
fn read_footer(
    store: &dyn Store,
    segment: &Segment,
    file: &dyn File,
) -> Result<Option<Footer>, ScanError> {
    let header = &segment.header;
    let offset = footer_offset(header);
    let bytes = footer_bytes(header.segment_bytes, header.block_bytes) as usize;
    if segment.file_bytes < header.segment_bytes {
        return Ok(None);
    }
    let failed =
        |e| IoError::new("read the footer of", segment::segment_path(store, segment.epoch), e);
    let mut buf = AlignedBuf::new(bytes).map_err(failed)?;
    let read = file.read_at(offset, &mut buf[..bytes]);
    // A cache that cannot be read is a cache that is not there.
    let Ok(read) = read else { return Ok(None) };
    let Some(footer) = Footer::decode(&buf[..read], header) else { return Ok(None) };
    Ok((footer.end_offset <= limit_of(store, segment)?).then_some(footer))
}

/// Where the segment's batches end at the latest: the one behind it may say so.
fn limit_of(store: &dyn Store, segment: &Segment) -> Result<u64, ScanError> {
    let next = Segment::open_if_there(store, segment.epoch + 1)?;
    Ok(segment.limit(next.as_ref().map(|(next, _)| &next.header)))
}
