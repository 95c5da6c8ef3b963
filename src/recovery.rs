//! Opening a log: finds the durable end, tells a torn tail from damage, and makes the place where
//! writing goes on. [`inspect`] looks without changing anything.
//!
//! Everything readable that no later batch vouches for is written again and synced before
//! [`recover`] returns: it may stand only in the drive's cache. After a clean end that is one empty
//! batch, rewritten in place. After a crash it goes into a fresh segment, whose header says where
//! the old one ended; the rename of that segment is the one step that changes what the log holds.

mod inspect;
mod layout;
mod meter;
mod names;
mod report;
pub(crate) mod rewrite;
mod survey;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Instant;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use inspect::inspect;
pub(crate) use inspect::vouched_lsn;
pub use inspect::{Inspection, SegmentInfo, SegmentState, inspect_dir};
pub use report::{RecoveryReport, TornTail};

use crate::disk::{Access, File, Store};
use crate::error::{IoError, OpenError};
use crate::footer::FOOTER_BYTES_MAX;
use crate::frame::{LogId, Resume, SegmentHeader};
use crate::index::SegmentIndex;
use crate::lsn::Lsn;
use crate::mark::{Mark, MarkFile};
use crate::mem::AlignedBuf;
use crate::segment::{self, Entropy, Filler, LiveSegment, ScanError};
pub(crate) use layout::{GiveUp, older_header};
use meter::Meter;
use names::{check_names_are_free, sweep_tmp};
use rewrite::{End, Rest};
use survey::Survey;
pub(crate) use survey::first_lsn_of;

/// A size of which every segment's is a multiple.
pub(crate) const SEGMENT_UNIT_BYTES: u64 = 64 << 10;
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
    /// What the live segment's footer will say.
    pub(crate) index: SegmentIndex,
    /// The segments that stand ready behind it, their epochs contiguous.
    pub(crate) ready: Vec<LiveSegment>,
    /// Files that wait to be used again, by name, with their sizes in bytes.
    pub(crate) spares: Vec<(String, u64)>,
    pub(crate) mark: MarkFile,
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
    let meter = Meter::new(store);
    let mut recovered = match survey::survey(&meter, false)? {
        None if !config.create => {
            return Err(OpenError::NotFound { dir: segment::dir_path(store) });
        }
        None => create(store, config)?,
        Some(survey) => {
            // Before anything else changes: from now on the end is not where the log was closed.
            let mark = take_over(store, &survey)?;
            clear_away(store, &survey)?;
            match resumes_in_place(store, &survey) {
                true => resume(store, config, &survey, mark)?,
                false => supersede(store, &meter, config, &survey, mark)?,
            }
        }
    };
    recovered.spares = layout::list_spares(store)?;
    recovered.report.swept_files = swept_files;
    recovered.report.bytes_read = meter.read_bytes();
    recovered.report.took = started.elapsed();
    Ok(recovered)
}

/// The mark, which says no longer that the log is closed. Where a truncation was begun that never
/// happened, or the mark is older than the log, it says what generation the log is in.
fn take_over(store: &dyn Store, survey: &Survey) -> Result<MarkFile, OpenError> {
    let (generation, truncated_after) = survey.generation();
    let mut mark = Mark { closed: None, ..survey.mark };
    if mark.generation != generation {
        mark.generation = generation;
        mark.truncated_after = truncated_after;
        // Nothing behind the tail is of another generation and counts.
        mark.generation_epoch = match generation {
            0 => 0,
            _ => survey.segments[survey.tail].epoch,
        };
    }
    let mut file = MarkFile::open_or_create(store, survey.log_id, mark)?;
    file.settle(store, mark)?;
    Ok(file)
}

/// Gives up what stands outside of the log: below its start, and what a truncation cut off.
fn clear_away(store: &dyn Store, survey: &Survey) -> Result<(), OpenError> {
    if survey.trimmed.is_empty() && survey.stale.is_empty() {
        return Ok(());
    }
    let mut spares = GiveUp::new(store)?;
    for &epoch in &survey.trimmed {
        spares.rename(epoch, survey.mark.generation)?;
    }
    for segment in &survey.stale {
        spares.rename(segment.epoch, segment.header.generation)?;
    }
    Ok(sync_dir(store)?)
}

fn create(store: &dyn Store, config: &RecoverConfig<'_>) -> Result<Recovered, OpenError> {
    check_names_are_free(store)?;
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
        generation: 0,
        truncated_after: 0,
        recycled: false,
    };
    let file = build(store, header, |_| Ok(()))?;
    let mark = MarkFile::open_or_create(store, header.log_id, Mark::new())?;
    Ok(Recovered {
        index: SegmentIndex::new(&header, Lsn::FIRST.get()),
        mark,
        live: LiveSegment { header, file },
        offset: header.data_offset(),
        next_lsn: Lsn::FIRST.get(),
        prev_crc: 0,
        wall_ns: config.wall_now_ns,
        ready: Vec::new(),
        spares: Vec::new(),
        report: RecoveryReport {
            created: true,
            clean: true,
            first_lsn: Lsn::FIRST,
            segments: 1,
            ..RecoveryReport::new()
        },
    })
}

/// Whether writing can go on right behind the last batch: everything is vouched for, and nothing
/// follows, so that nothing that was ever written there can come back. What an earlier life of the
/// file left there can not.
fn resumes_in_place(store: &dyn Store, survey: &Survey) -> bool {
    let tail = &survey.segments[survey.tail];
    let chain = &survey.chain;
    chain.last_lsn() == survey.vouched_lsn
        && survey.torn.is_none()
        && !survey.is_sealed
        && chain.is_linked
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
    mark: MarkFile,
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
    let end = End {
        offset: chain.end_offset,
        prev_crc: chain.prev_crc,
        rewritten_records: 0,
        index: chain.index.clone(),
    };
    finish(store, config, survey, mark, live, end)
}

/// Goes on in a fresh segment, which takes up what nothing vouches for and supersedes what follows
/// the last vouched record.
fn supersede(
    store: &dyn Store,
    meter: &Meter<'_>,
    config: &RecoverConfig<'_>,
    survey: &Survey,
    mark: MarkFile,
) -> Result<Recovered, OpenError> {
    let header = superseding_header(store, config, survey)?;
    let mut end = End {
        offset: header.data_offset(),
        prev_crc: 0,
        rewritten_records: 0,
        index: SegmentIndex::new(&header, header.first_lsn),
    };
    let file = build(store, header, |filler| {
        let wall_ns = survey.wall_ns.max(config.wall_now_ns);
        let rest = Rest {
            segments: &survey.segments,
            batches: &survey.chain.rest,
            last_lsn: survey.chain.last_lsn(),
            vouched_lsn: survey.vouched_lsn,
        };
        end = rewrite::write_again(meter, &rest, &header, &**filler.file(), wall_ns)?;
        Ok(())
    })?;
    let live = LiveSegment { header, file };
    let mut recovered = finish(store, config, survey, mark, live, end)?;
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
    let replaces = keep.offset == old.data_offset() && (known_start || !survey.chain.is_linked);
    let (epoch, resume) = match replaces {
        true if survey.chain.is_linked => (old.epoch, old.resume),
        // Of what stood before, nothing is left: the chain starts anew.
        true => (old.epoch, Some(Resume { prev_end_offset: 0, prev_batch_crc: 0 })),
        false => {
            let resume = Resume { prev_end_offset: keep.offset, prev_batch_crc: keep.prev_crc };
            (old.epoch + 1, Some(resume))
        }
    };
    let (generation, truncated_after) = survey.generation();
    let mut header = SegmentHeader {
        log_id: survey.log_id,
        epoch,
        salt: draw(store, config)?,
        block_bytes,
        segment_bytes: 0,
        created_wall_ns: config.wall_now_ns,
        first_lsn: keep.next_lsn,
        resume,
        generation,
        truncated_after,
        recycled: false,
    };
    let block = u64::from(block_bytes);
    let again: u64 =
        survey.chain.rest.iter().map(|(_, batch)| batch.header.disk_bytes(block)).sum();
    // What was written without syncs may be more than a segment takes: then this one is larger.
    let needed = header.data_offset() + again + block + FOOTER_BYTES_MAX;
    let needed = needed.next_multiple_of(SEGMENT_UNIT_BYTES);
    header.segment_bytes = config.segment_bytes.max(needed);
    Ok(header)
}

/// What both ways have in common: gives up what must not follow the live segment, cuts what it
/// superseded, and opens the ready segments.
fn finish(
    store: &dyn Store,
    config: &RecoverConfig<'_>,
    survey: &Survey,
    mark: MarkFile,
    live: LiveSegment,
    end: End,
) -> Result<Recovered, OpenError> {
    let epoch = live.header.epoch;
    let (generation, _) = survey.generation();
    let mut ready = Vec::new();
    for (index, segment) in survey.segments.iter().enumerate() {
        let usable = index > survey.tail
            && survey.usable[index]
            && segment.epoch == epoch + 1 + ready.len() as u64
            && segment.header.segment_bytes == config.segment_bytes
            && segment.file_bytes == config.segment_bytes
            && segment.header.block_bytes == live.header.block_bytes
            && segment.header.first_lsn == 0
            && segment.header.generation == generation;
        if usable {
            let file = segment::open_file(store, segment.epoch, Access::Write)?;
            ready.push(LiveSegment { header: segment.header, file });
        }
    }
    // From the last one down, each durably before the next: a gap below a segment is taken for a
    // lost segment.
    let last_ready = epoch + ready.len() as u64;
    let mut spares = GiveUp::new(store)?;
    for segment in survey.segments.iter().rev().take_while(|segment| segment.epoch > last_ready) {
        spares.rename(segment.epoch, segment.header.generation)?;
        sync_dir(store)?;
    }
    cut_superseded(store, survey, &live.header)?;
    let chain = &survey.chain;
    let report = RecoveryReport {
        clean: true,
        first_lsn: Lsn::new(survey.mark.first_lsn),
        last_lsn: Lsn::new(chain.last_lsn()),
        vouched_lsn: Lsn::new(survey.vouched_lsn),
        rewritten_records: end.rewritten_records,
        torn: survey.torn.clone(),
        segments: survey.epochs.iter().filter(|&&segment| segment < epoch).count() + 1,
        ready_segments: ready.len(),
        ..RecoveryReport::new()
    };
    Ok(Recovered {
        live,
        offset: end.offset,
        next_lsn: chain.next_lsn,
        prev_crc: end.prev_crc,
        wall_ns: survey.wall_ns.max(config.wall_now_ns),
        index: end.index,
        mark,
        ready,
        spares: Vec::new(),
        report,
    })
}

/// Gives back the space behind the place where the segment before was superseded. Only a segment
/// made by recovery says so, or by a truncation, and it is durable by now.
fn cut_superseded(
    store: &dyn Store,
    survey: &Survey,
    live: &SegmentHeader,
) -> Result<(), OpenError> {
    let Some(resume) = live.resume else { return Ok(()) };
    let before = live.epoch - 1;
    if resume.prev_end_offset == 0 || survey.epochs.binary_search(&before).is_err() {
        return Ok(());
    }
    let file = segment::open_file(store, before, Access::Write)?;
    let cut = || match file.len()? > resume.prev_end_offset {
        true => file.set_len(resume.prev_end_offset),
        false => Ok(()),
    };
    Ok(cut().map_err(|e| {
        IoError::new("cut the torn tail of", segment::segment_path(store, before), e)
    })?)
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
