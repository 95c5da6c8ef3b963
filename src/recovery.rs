//! Opening a log: finds the durable end, tells a torn tail from damage, and makes the place where
//! writing goes on. [`inspect`] looks without changing anything.
//!
//! Everything readable that no later batch vouches for is written again and synced before
//! [`recover`] returns: it may stand only in the drive's cache. After a clean end that is one empty
//! batch, rewritten in place. After a crash it goes into a fresh segment, whose header says where
//! the old one ended; the rename of that segment is the one step that changes what the log holds.

mod inspect;
mod report;
mod survey;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use inspect::inspect;
pub use inspect::{Inspection, SegmentInfo, SegmentState, inspect_dir};
pub use report::{RecoveryReport, TornTail};

use crate::disk::{Access, File, Store};
use crate::error::{Damage, IoError, OpenError};
use crate::frame::{
    self, BATCH_HEADER_BYTES, BatchContext, BatchHeader, LogId, Resume, SegmentHeader,
};
use crate::lsn::Lsn;
use crate::mem::AlignedBuf;
use crate::scan::Placed;
use crate::segment::{self, Entropy, Filler, LiveSegment, ScanError, Segment, TMP_SUFFIX};
use survey::Survey;
pub(crate) use survey::first_lsn_of;

/// A size of which every segment's is a multiple.
const SEGMENT_UNIT_BYTES: u64 = 64 << 10;
/// Most bytes of empty batches that are rewritten in place; one block is usual.
const EMPTIES_BYTES_MAX: u64 = 1 << 20;

/// How a log is recovered.
pub(crate) struct RecoverConfig<'a> {
    /// Whether to create a log where there is none.
    pub(crate) create: bool,
    /// Size of new segments; ready ones of another size are removed.
    pub(crate) segment_bytes: u64,
    /// The wall clock, nanoseconds since the Unix epoch.
    pub(crate) wall_now_ns: u64,
    /// Where the log's id and the segments' salts come from.
    pub(crate) entropy: Entropy<'a>,
}

/// A log that writing can go on in.
pub(crate) struct Recovered {
    /// The segment that the next batch goes to.
    pub(crate) live: LiveSegment,
    /// Where the next batch goes.
    pub(crate) offset: u64,
    /// The number of the next record.
    pub(crate) next_lsn: u64,
    /// Header checksum of the batch before, the link that the next one carries.
    pub(crate) prev_crc: u32,
    /// The largest of the clock given and of all seen: batches' clocks never go back.
    pub(crate) wall_ns: u64,
    /// The segments that stand ready behind it, their epochs contiguous.
    pub(crate) ready: Vec<LiveSegment>,
    pub(crate) report: RecoveryReport,
}

/// Recovers the log in `store`, or creates it. The caller holds the store's lock.
///
/// Every record up to `next_lsn - 1` is durable when it returns. When it is cut short at any point,
/// the next call finds the same records.
pub(crate) fn recover(
    store: &Arc<dyn Store>,
    config: &RecoverConfig<'_>,
) -> Result<Recovered, OpenError> {
    let started = Instant::now();
    let store = &**store;
    let swept_files = sweep_tmp(store)?;
    // A process that was killed may have left names that are there but not durable yet.
    sync_dir(store)?;
    let mut recovered = match survey::survey(store, false)? {
        None if !config.create => {
            return Err(OpenError::NotFound { dir: segment::dir_path(store) });
        }
        None => create(store, config)?,
        Some(survey) if resumes_in_place(store, &survey) => resume(store, config, &survey)?,
        Some(survey) => supersede(store, config, &survey)?,
    };
    recovered.report.swept_files = swept_files;
    recovered.report.took = started.elapsed();
    Ok(recovered)
}

/// Removes what an interrupted preparation or recovery left.
fn sweep_tmp(store: &dyn Store) -> Result<usize, IoError> {
    let names = store.list().map_err(|e| IoError::new("list", segment::dir_path(store), e))?;
    let mut swept = 0;
    for name in names.iter().filter(|name| is_ours(name)) {
        store.remove(name).map_err(|e| IoError::new("remove", store.path(name), e))?;
        swept += 1;
    }
    Ok(swept)
}

/// Whether a name is that of a temporary file of the log's. Others are the user's.
fn is_ours(name: &str) -> bool {
    name.strip_suffix(TMP_SUFFIX).is_some_and(|stem| {
        frame::parse_segment_name(stem).is_some()
            || stem == "calibrate"
            || stem == "calibration"
            || stem.starts_with("direct-")
    })
}

fn create(store: &dyn Store, config: &RecoverConfig<'_>) -> Result<Recovered, OpenError> {
    let mut id = [0; 16];
    for half in id.chunks_exact_mut(8) {
        half.copy_from_slice(&draw(store, config)?.to_le_bytes());
    }
    let header = SegmentHeader {
        log_id: LogId(id),
        epoch: 1,
        salt: draw(store, config)?,
        block_bytes: store.facts().block_bytes as u32,
        segment_bytes: config.segment_bytes,
        created_wall_ns: config.wall_now_ns,
        first_lsn: Lsn::FIRST.get(),
        resume: None,
    };
    let file = build(store, header, |_| Ok(()))?;
    Ok(Recovered {
        live: LiveSegment { header, file },
        offset: header.data_offset(),
        next_lsn: Lsn::FIRST.get(),
        prev_crc: 0,
        wall_ns: config.wall_now_ns,
        ready: Vec::new(),
        report: RecoveryReport {
            created: true,
            clean: true,
            first_lsn: Lsn::FIRST,
            segments: 1,
            ..RecoveryReport::new()
        },
    })
}

/// Whether writing can go on right behind the last batch: everything is vouched for, and only zeros
/// follow, so that nothing that was ever written there can come back.
fn resumes_in_place(store: &dyn Store, survey: &Survey) -> bool {
    let tail = &survey.segments[survey.tail];
    let chain = &survey.chain;
    chain.last_lsn() == survey.vouched_lsn
        && survey.torn.is_none()
        && chain.end_segment == survey.tail
        && tail.file_bytes >= tail.header.segment_bytes
        && fits_device(store, &tail.header)
        && chain.empties.is_none_or(|(segment, offset)| {
            segment == survey.tail && chain.end_offset - offset <= EMPTIES_BYTES_MAX
        })
}

/// Whether batches of the segment can be written to this device without rewriting a part of a
/// sector that holds acknowledged records.
fn fits_device(store: &dyn Store, header: &SegmentHeader) -> bool {
    (header.block_bytes as usize).is_multiple_of(store.facts().block_bytes)
}

/// Goes on in the last segment.
fn resume(
    store: &dyn Store,
    config: &RecoverConfig<'_>,
    survey: &Survey,
) -> Result<Recovered, OpenError> {
    let tail = &survey.segments[survey.tail];
    let chain = &survey.chain;
    let file = segment::open_file(store, tail.epoch, Access::Write)?;
    if let Some((_, offset)) = chain.empties {
        // Nothing vouches for the last empty batch itself. The next batch links to it, so it must
        // be durable: the same bytes are written again. They hold no record.
        let len = (chain.end_offset - offset) as usize;
        let rewrite = || -> io::Result<()> {
            let mut bytes = AlignedBuf::new(len)?;
            read_exact(&*file, offset, &mut bytes[..len])?;
            file.write_at(offset, &bytes[..len])?;
            file.sync()
        };
        rewrite().map_err(|e| {
            let path = segment::segment_path(store, tail.epoch);
            IoError::new("write the last empty batch again in", path, e)
        })?;
    }
    let live = LiveSegment { header: tail.header, file };
    finish(store, config, survey, live, chain.end_offset, chain.prev_crc, 0)
}

/// Goes on in a fresh segment, which takes up what nothing vouches for and supersedes what follows
/// the last vouched record.
fn supersede(
    store: &dyn Store,
    config: &RecoverConfig<'_>,
    survey: &Survey,
) -> Result<Recovered, OpenError> {
    let header = superseding_header(store, config, survey)?;
    let mut end = (header.data_offset(), 0, 0);
    let file = build(store, header, |filler| {
        end = write_again(store, survey, filler, config.wall_now_ns)?;
        Ok(())
    })?;
    let (offset, prev_crc, rewritten) = end;
    let live = LiveSegment { header, file };
    let mut recovered = finish(store, config, survey, live, offset, prev_crc, rewritten)?;
    recovered.report.clean = false;
    Ok(recovered)
}

/// The header of the superseding segment.
fn superseding_header(
    store: &dyn Store,
    config: &RecoverConfig<'_>,
    survey: &Survey,
) -> Result<SegmentHeader, OpenError> {
    let keep = survey.chain.keep;
    let old = &survey.segments[keep.segment].header;
    let block_bytes = match fits_device(store, old) {
        true => old.block_bytes,
        false => store.facts().block_bytes as u32,
    };
    // A segment that holds nothing that counts is replaced: crash after crash, the log does not
    // grow by one such segment each time.
    let known_start = old.resume.is_some() || old.first_lsn == Lsn::FIRST.get();
    let replaces = keep.offset == old.data_offset() && known_start;
    let (epoch, resume) = match replaces {
        true => (old.epoch, old.resume),
        false => {
            let resume = Resume { prev_end_offset: keep.offset, prev_batch_crc: keep.prev_crc };
            (old.epoch + 1, Some(resume))
        }
    };
    let mut header = SegmentHeader {
        log_id: survey.log_id,
        epoch,
        salt: draw(store, config)?,
        block_bytes,
        segment_bytes: 0,
        created_wall_ns: config.wall_now_ns,
        first_lsn: keep.next_lsn,
        resume,
    };
    let block = u64::from(block_bytes);
    let again: u64 =
        survey.chain.rest.iter().map(|(_, batch)| batch.header.disk_bytes(block)).sum();
    // What was written without syncs may be more than a segment takes: then this one is larger.
    let needed = (header.data_offset() + again + block).next_multiple_of(SEGMENT_UNIT_BYTES);
    header.segment_bytes = config.segment_bytes.max(needed);
    Ok(header)
}

/// Seals the batches that nothing vouches for again, in the new segment, and behind them an empty
/// one that does. Returns where they end, the last checksum, and the number of records.
fn write_again(
    store: &dyn Store,
    survey: &Survey,
    filler: &Filler,
    wall_now_ns: u64,
) -> Result<(u64, u32, u64), ScanError> {
    let header = filler.header();
    let block = u64::from(header.block_bytes);
    let context = BatchContext::from(header);
    let path = store.path(&segment::tmp_name(header.epoch));
    let failed = |e| IoError::new("write records again to", &path, e);
    let mut offset = header.data_offset();
    let mut prev_crc = header.resume.map_or(0, |resume| resume.prev_batch_crc);
    let mut rewritten = 0;
    let mut next_lsn = header.first_lsn;
    let mut source: Option<(usize, Arc<dyn File>)> = None;
    for (index, batch) in survey.chain.rest.iter().filter(|(_, batch)| batch.header.count > 0) {
        let file = match &source {
            Some((open, file)) if open == index => file.clone(),
            _ => segment::open_file(store, survey.segments[*index].epoch, Access::Read)?,
        };
        let old = read_batch(store, &*file, &survey.segments[*index], batch)?;
        source = Some((*index, file));
        let content = batch.header.content_bytes() as usize;
        let bytes = batch.header.disk_bytes(block);
        let mut new = AlignedBuf::new(bytes as usize).map_err(failed)?;
        new[BATCH_HEADER_BYTES..content].copy_from_slice(&old[BATCH_HEADER_BYTES..content]);
        let sealed = BatchHeader {
            context,
            offset,
            // As it was: what the new segment adds is vouched for only by its empty batch.
            synced_lsn: survey.vouched_lsn.min(batch.header.first_lsn - 1),
            prev_crc,
            ..batch.header
        };
        prev_crc = sealed.encode(&mut new);
        filler.file().write_at(offset, &new[..bytes as usize]).map_err(failed)?;
        offset += bytes;
        rewritten += u64::from(batch.header.count);
        next_lsn = batch.header.last_lsn() + 1;
    }
    // The file gets its name only after it was synced: whoever finds this batch finds those before
    // it on the disk.
    let vouch = BatchHeader {
        context,
        offset,
        first_lsn: next_lsn,
        count: 0,
        payload_bytes: 0,
        wall_ns: survey.wall_ns.max(wall_now_ns),
        synced_lsn: next_lsn - 1,
        prev_crc,
        table_crc: frame::crc32c(&[]),
    };
    let mut bytes = AlignedBuf::new(block as usize).map_err(failed)?;
    prev_crc = vouch.encode(&mut bytes);
    filler.file().write_at(offset, &bytes[..block as usize]).map_err(failed)?;
    Ok((offset + block, prev_crc, rewritten))
}

/// Reads a batch again and verifies it again: it may have gone bad since.
fn read_batch(
    store: &dyn Store,
    file: &dyn File,
    segment: &Segment,
    batch: &Placed,
) -> Result<AlignedBuf, ScanError> {
    let path = segment::segment_path(store, segment.epoch);
    let failed = |e| IoError::new("read", &path, e);
    let offset = batch.header.offset;
    let len = (batch.end - offset) as usize;
    // The device may need a larger alignment than the log's block.
    let io_block = store.facts().block_bytes as u64;
    let start = offset - offset % io_block;
    let skip = (offset - start) as usize;
    let mut bytes =
        AlignedBuf::new((skip + len).next_multiple_of(io_block as usize)).map_err(failed)?;
    let read = file.read_at(start, &mut bytes).map_err(failed)?;
    let intact = read >= skip + len
        && BatchHeader::decode(&bytes[skip..], &batch.header.context, offset)
            .is_ok_and(|(header, _)| header == batch.header)
        && batch.header.verify_body(&bytes[skip..skip + len]).is_ok();
    if !intact {
        return Err(ScanError::Damaged(Damage {
            segment: path,
            offset,
            lost: Some((Lsn::new(batch.header.first_lsn), Lsn::new(batch.header.last_lsn()))),
            detail: "a batch that was valid a moment ago is not any more".to_owned(),
        }));
    }
    bytes.copy_within(skip..skip + len, 0);
    Ok(bytes)
}

/// What both ways have in common: removes what must not follow the live segment, cuts what it
/// superseded, and opens the ready segments.
fn finish(
    store: &dyn Store,
    config: &RecoverConfig<'_>,
    survey: &Survey,
    live: LiveSegment,
    offset: u64,
    prev_crc: u32,
    rewritten_records: u64,
) -> Result<Recovered, OpenError> {
    let epoch = live.header.epoch;
    let mut ready_epochs = Vec::new();
    for (index, segment) in survey.segments.iter().enumerate() {
        let usable = index > survey.tail
            && survey.zero[index]
            && segment.epoch == epoch + 1 + ready_epochs.len() as u64
            && segment.header.segment_bytes == config.segment_bytes
            && segment.file_bytes == config.segment_bytes
            && segment.header.block_bytes == live.header.block_bytes
            && segment.header.first_lsn == 0;
        if usable {
            ready_epochs.push(segment.epoch);
        }
    }
    // From the last one down, each durably before the next: a gap below a segment is taken for a
    // lost segment.
    for segment in survey.segments.iter().rev() {
        if segment.epoch <= epoch || ready_epochs.contains(&segment.epoch) {
            continue;
        }
        let name = frame::segment_name(segment.epoch);
        store.remove(&name).map_err(|e| IoError::new("remove", store.path(&name), e))?;
        sync_dir(store)?;
    }
    cut_superseded(store, survey, &live.header)?;
    let mut ready = Vec::new();
    for epoch in ready_epochs {
        let (header, file) = {
            let (segment, _) = Segment::open(store, epoch)?;
            (segment.header, segment::open_file(store, epoch, Access::Write)?)
        };
        ready.push(LiveSegment { header, file });
    }
    let chain = &survey.chain;
    let report = RecoveryReport {
        clean: true,
        first_lsn: Lsn::new(survey.first_lsn),
        last_lsn: Lsn::new(chain.last_lsn()),
        vouched_lsn: Lsn::new(survey.vouched_lsn),
        rewritten_records,
        torn: survey.torn.clone(),
        segments: survey.segments.iter().filter(|segment| segment.epoch < epoch).count() + 1,
        ready_segments: ready.len(),
        bytes_read: survey.bytes_read,
        ..RecoveryReport::new()
    };
    Ok(Recovered {
        live,
        offset,
        next_lsn: chain.next_lsn,
        prev_crc,
        wall_ns: survey.wall_ns.max(config.wall_now_ns),
        ready,
        report,
    })
}

/// Gives back the space behind the place where the segment before was superseded. Only a segment
/// made by recovery says so, and it is durable by now.
fn cut_superseded(
    store: &dyn Store,
    survey: &Survey,
    live: &SegmentHeader,
) -> Result<(), OpenError> {
    let Some(resume) = live.resume else { return Ok(()) };
    let before = survey.segments.iter().find(|segment| segment.epoch + 1 == live.epoch);
    let Some(before) = before else { return Ok(()) };
    let end = resume.prev_end_offset.max(before.header.data_offset());
    if before.file_bytes <= end {
        return Ok(());
    }
    let file = segment::open_file(store, before.epoch, Access::Write)?;
    file.set_len(end).map_err(|e| {
        IoError::new("cut the torn tail of", segment::segment_path(store, before.epoch), e)
    })?;
    Ok(())
}

/// Makes a segment: filled with zeros, then whatever `write` puts in, then synced and named.
fn build(
    store: &dyn Store,
    header: SegmentHeader,
    write: impl FnOnce(&Filler) -> Result<(), ScanError>,
) -> Result<Arc<dyn File>, OpenError> {
    let path = store.path(&segment::tmp_name(header.epoch));
    let failed = |e| ScanError::Io(IoError::new("prepare", &path, e));
    let mut filler = Filler::start(store, header).map_err(failed)?;
    let filled = filler.fill().map_err(failed).and_then(|()| write(&filler));
    if let Err(error) = filled {
        // The first error is the one to report; a leftover is swept at the next open.
        filler.abandon(store).ok();
        return Err(error.into());
    }
    Ok(filler.finish(store).map_err(failed)?)
}

fn draw(store: &dyn Store, config: &RecoverConfig<'_>) -> Result<u64, IoError> {
    (config.entropy)()
        .map_err(|e| IoError::new("draw random numbers for", segment::dir_path(store), e))
}

fn sync_dir(store: &dyn Store) -> Result<(), IoError> {
    store.sync_dir().map_err(|e| IoError::new("sync", segment::dir_path(store), e))
}

fn read_exact(file: &dyn File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    match file.read_at(offset, bytes)? {
        read if read == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
