//! Segment files: their headers, and the step-wise preparation of a new one under a temporary name.
//!
//! A segment appears under its final name only when it is whole: allocated, zero-filled, both header
//! copies written, synced, read back. So a file with a segment's name and without a readable header is damaged,
//! never merely unfinished.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{Access, File, Store};
use crate::error::{Damage, IoError, OpenError, ReadError};
use crate::frame::{
    self, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, LogId, SegmentHeader, SegmentHeaderError,
};
use crate::mem::AlignedBuf;

/// Ending of the name of a file that is not finished; recovery removes such files.
pub(crate) const TMP_SUFFIX: &str = ".tmp";

/// Ending of the name of a file that waits to be used again; what it holds is worth nothing.
pub(crate) const SPARE_SUFFIX: &str = ".spare";

/// Most bytes of zeros that one step writes.
const FILL_CHUNK_BYTES: usize = 2 << 20;

/// Where random numbers come from: the system, or a seeded simulation.
pub(crate) type Entropy<'a> = &'a dyn Fn() -> io::Result<u64>;

/// Random bits of the operating system.
pub(crate) fn system_entropy() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    // Requests of up to 256 bytes are never cut short.
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

/// A segment that batches can be written to.
pub(crate) struct LiveSegment {
    pub(crate) header: SegmentHeader,
    /// Open for writing.
    pub(crate) file: Arc<dyn File>,
}

/// Prepares a segment file step by step: [`start`](Self::start), [`step`](Self::step) until it
/// returns true, then [`finish`](Self::finish), or [`abandon`](Self::abandon) after an error. What was
/// a segment before needs no steps: [`adopt`](Self::adopt).
pub(crate) struct Filler {
    header: SegmentHeader,
    file: Arc<dyn File>,
    /// None: nothing needs to be filled.
    zeros: Option<AlignedBuf>,
    filled_bytes: u64,
}

impl Filler {
    /// Creates the file under its temporary name, in place of a leftover of that name, and reserves
    /// its space. Leaves nothing behind when it fails.
    pub(crate) fn start(store: &dyn Store, header: SegmentHeader) -> io::Result<Filler> {
        Filler::start_as(store, &tmp_name(header.epoch), header)
    }

    fn start_as(store: &dyn Store, name: &str, header: SegmentHeader) -> io::Result<Filler> {
        let zeros = AlignedBuf::new(FILL_CHUNK_BYTES.min(header.segment_bytes as usize))?;
        match store.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = store.create(name)?;
        if let Err(error) = file.allocate(header.segment_bytes) {
            drop(file);
            // The first error is the one to report; a leftover is swept at the next open.
            store.remove(name).ok();
            return Err(error);
        }
        Ok(Filler { header, file, zeros: Some(zeros), filled_bytes: 0 })
    }

    /// Makes a whole file of zeros for the segment with this header, under `name`, synced by nobody
    /// yet. Leaves nothing behind when it fails.
    pub(crate) fn fill_new(
        store: &dyn Store,
        name: &str,
        header: &SegmentHeader,
    ) -> io::Result<Arc<dyn File>> {
        let mut filler = Filler::start_as(store, name, *header)?;
        match filler.fill() {
            Ok(()) => Ok(filler.file),
            Err(error) => {
                drop(filler);
                // The first error is the one to report; a leftover is swept at the next open.
                store.remove(name).ok();
                Err(error)
            }
        }
    }

    /// Writes the next zeros: whole blocks, at least one, at most `bytes_max` and 2 MiB. True when
    /// the whole file is written.
    pub(crate) fn step(&mut self, bytes_max: usize) -> io::Result<bool> {
        let Some(zeros) = &self.zeros else { return Ok(true) };
        let left = self.header.segment_bytes - self.filled_bytes;
        let block = self.header.block_bytes as usize;
        let bytes = (bytes_max / block * block).max(block).min(zeros.len());
        let bytes = bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
        if bytes > 0 {
            self.file.write_at(self.filled_bytes, &zeros[..bytes])?;
            self.filled_bytes += bytes as u64;
        }
        Ok(self.filled_bytes == self.header.segment_bytes)
    }

    /// Writes what is left of the zeros.
    pub(crate) fn fill(&mut self) -> io::Result<()> {
        while !self.step(FILL_CHUNK_BYTES)? {}
        Ok(())
    }

    /// The header that the segment gets.
    pub(crate) fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The file under its temporary name: recovery writes batches to it before it is finished.
    pub(crate) fn file(&self) -> &Arc<dyn File> {
        &self.file
    }

    /// Takes a file of the right size that was a segment before, in place of a leftover of the
    /// temporary name. Nothing in it is changed yet. When it fails, the file has its old name.
    pub(crate) fn adopt(
        store: &dyn Store,
        header: SegmentHeader,
        spare: &str,
    ) -> io::Result<Filler> {
        let file = store.open(spare, Access::Write)?;
        if file.has_other_names()? {
            // Somebody keeps what is in it.
            store.remove(spare)?;
            return Err(io::ErrorKind::NotFound.into());
        }
        store.rename(spare, &tmp_name(header.epoch))?;
        Ok(Filler { header, file, zeros: None, filled_bytes: header.segment_bytes })
    }

    /// Writes both header copies, syncs the file and looks whether they are there, gives it its final name
    /// (replacing a file that has it) and makes the name durable. When it fails, the file may have either name.
    pub(crate) fn finish(self, store: &dyn Store) -> io::Result<Arc<dyn File>> {
        write_headers(&*self.file, &self.header)?;
        self.file.sync()?;
        check_headers(&*self.file, &self.header)?;
        self.take_name(store)?;
        store.sync_dir()?;
        Ok(self.file)
    }

    /// Writes both header copies. In a file that was a segment before, zeros follow up to where a
    /// header of any block size could stand: no header of its earlier life is left.
    pub(crate) fn write_headers(&self) -> io::Result<()> {
        let headers = self.header.data_offset() as usize;
        let bytes = match self.header.recycled && !self.had_same_block()? {
            true => headers.max((2 * BLOCK_BYTES_MAX).min(self.header.segment_bytes as usize)),
            false => headers,
        };
        write_start(&*self.file, &self.header, bytes)
    }

    /// Whether the headers of the file's earlier life stand where the new ones will.
    fn had_same_block(&self) -> io::Result<bool> {
        let block = self.header.block_bytes as usize;
        let mut start = AlignedBuf::new(block)?;
        let read = self.file.read_at(0, &mut start[..block])?;
        let before = SegmentHeader::decode(&start[..read.min(block)]);
        Ok(before.is_ok_and(|before| before.block_bytes == self.header.block_bytes))
    }

    /// Gives the file its final name, which is not durable yet.
    pub(crate) fn take_name(&self, store: &dyn Store) -> io::Result<()> {
        let epoch = self.header.epoch;
        store.rename(&tmp_name(epoch), &frame::segment_name(epoch))
    }

    /// The segment, when all is done.
    pub(crate) fn into_segment(self) -> LiveSegment {
        LiveSegment { header: self.header, file: self.file }
    }

    /// Removes the unfinished file.
    pub(crate) fn abandon(self, store: &dyn Store) -> io::Result<()> {
        let name = tmp_name(self.header.epoch);
        drop(self.file);
        store.remove(&name)
    }
}

/// Writes both copies of the header. The caller syncs.
pub(crate) fn write_headers(file: &dyn File, header: &SegmentHeader) -> io::Result<()> {
    write_start(file, header, header.data_offset() as usize)
}

/// Reads both copies of the header back, and says whether they are there. The caller synced them. Of a file that the
/// page cache stands before, this proves nothing.
pub(crate) fn stands(file: &dyn File, header: &SegmentHeader) -> io::Result<bool> {
    let bytes = header.data_offset() as usize;
    let (mut copy, mut start) = (vec![0; header.block_bytes as usize], AlignedBuf::new(bytes)?);
    header.encode(&mut copy);
    let read = file.read_at(0, &mut start[..bytes])?;
    Ok(read == bytes && start[..bytes].chunks_exact(copy.len()).all(|found| found == copy))
}

/// As [`stands`], where nothing can go on without.
pub(crate) fn check_headers(file: &dyn File, header: &SegmentHeader) -> io::Result<()> {
    if stands(file, header)? { Ok(()) } else { Err(lost_header()) }
}

/// What to say where the header does not stand.
pub(crate) fn lost_header() -> io::Error {
    io::Error::other(
        "the device said that it had written a segment's header, and something else is there",
    )
}

/// The headers, then zeros, `bytes` together.
fn write_start(file: &dyn File, header: &SegmentHeader, bytes: usize) -> io::Result<()> {
    let mut start = AlignedBuf::new(bytes)?;
    let headers = header.data_offset() as usize;
    for copy in start[..headers].chunks_exact_mut(header.block_bytes as usize) {
        header.encode(copy);
    }
    file.write_at(0, &start[..bytes])
}

/// A name under which a segment's file waits to be used again. After a truncation an epoch is used
/// once more, so the second number keeps names apart.
pub(crate) fn spare_name(epoch: u64, number: u64) -> String {
    format!("{epoch:020}-{number}{SPARE_SUFFIX}")
}

/// Which segment the file of such a name was.
pub(crate) fn spare_epoch(name: &str) -> Option<u64> {
    let (epoch, _number) = name.strip_suffix(SPARE_SUFFIX)?.split_once('-')?;
    epoch.parse().ok()
}

/// The name under which the segment `epoch` is prepared.
pub(crate) fn tmp_name(epoch: u64) -> String {
    frame::segment_name(epoch) + TMP_SUFFIX
}

/// The epochs of all segment files, in ascending order.
pub(crate) fn list_segments(store: &dyn Store) -> Result<Vec<u64>, IoError> {
    let names = store.list().map_err(|e| IoError::new("list", dir_path(store), e))?;
    let mut epochs: Vec<u64> =
        names.iter().filter_map(|name| frame::parse_segment_name(name)).collect();
    epochs.sort_unstable();
    Ok(epochs)
}

/// The log's directory, for error messages.
pub(crate) fn dir_path(store: &dyn Store) -> PathBuf {
    // Joining an empty name leaves a trailing slash, which collecting the components drops.
    store.path("").components().collect()
}

/// A segment file found in the directory.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) epoch: u64,
    pub(crate) header: SegmentHeader,
    /// Size of the file in bytes: `header.segment_bytes`, or less where it was cut.
    pub(crate) file_bytes: u64,
}

impl Segment {
    /// Opens the segment `epoch` for reading, and reads its header.
    pub(crate) fn open(store: &dyn Store, epoch: u64) -> Result<Opened, ScanError> {
        match Segment::open_once(store, epoch) {
            // A writer may have taken the file away, and made another segment of it, between the
            // look at its name and the look at its header. Then the name is gone, or another file's.
            Err(ScanError::Foreign { .. } | ScanError::Damaged(_)) => {
                Segment::open_once(store, epoch)
            }
            opened => opened,
        }
    }

    fn open_once(store: &dyn Store, epoch: u64) -> Result<Opened, ScanError> {
        let file = open_file(store, epoch, Access::Read)?;
        let path = segment_path(store, epoch);
        let file_bytes = file.len().map_err(|e| IoError::new("read the size of", &path, e))?;
        let header = read_header(&*file, path, epoch, file_bytes, store.facts().block_bytes)?;
        Ok((Segment { epoch, header, file_bytes }, file))
    }

    /// The same, where the file may be missing: no error then.
    pub(crate) fn open_if_there(
        store: &dyn Store,
        epoch: u64,
    ) -> Result<Option<Opened>, ScanError> {
        match Segment::open(store, epoch) {
            Err(ScanError::Io(e)) if e.source.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Refuses a segment of another log.
    pub(crate) fn check_log(&self, store: &dyn Store, log_id: LogId) -> Result<(), ScanError> {
        if self.header.log_id == log_id {
            return Ok(());
        }
        let path = segment_path(store, self.epoch);
        let found = self.header.log_id;
        let reason = format!("it is of log {found}, and the others are of log {log_id}");
        Err(ScanError::Foreign { path, reason })
    }

    /// Where its batches end at the latest, given the segment behind it: a successor made by
    /// recovery says where this one ended, whatever bytes follow.
    pub(crate) fn limit(&self, next: Option<&SegmentHeader>) -> u64 {
        let resume_end =
            next.and_then(|next| next.resume).map_or(u64::MAX, |resume| resume.prev_end_offset);
        self.file_bytes.min(self.header.segment_bytes).min(resume_end)
    }
}

/// A segment and its file.
pub(crate) type Opened = (Segment, Arc<dyn File>);

/// The path of a segment file, for error messages.
pub(crate) fn segment_path(store: &dyn Store, epoch: u64) -> PathBuf {
    store.path(&frame::segment_name(epoch))
}

/// Opens the file of the segment `epoch`.
pub(crate) fn open_file(
    store: &dyn Store,
    epoch: u64,
    access: Access,
) -> Result<Arc<dyn File>, ScanError> {
    store.open(&frame::segment_name(epoch), access).map_err(|error| {
        let path = segment_path(store, epoch);
        not_opened(path, error)
    })
}

/// Why a file of the log could not be opened: something else may have its name.
pub(crate) fn not_opened(path: PathBuf, error: io::Error) -> ScanError {
    let reason = match error.raw_os_error() {
        Some(libc::ELOOP) => "it is a symbolic link".to_owned(),
        Some(libc::EISDIR) => "it is a directory".to_owned(),
        // A pipe, a socket, a device: the store says which.
        None if error.kind() == io::ErrorKind::InvalidInput => error.to_string(),
        _ => return ScanError::Io(IoError::new("open", path, error)),
    };
    ScanError::Foreign { path, reason }
}

/// Reads a segment's header: the first copy, or the second where the first is damaged.
pub(crate) fn read_header(
    file: &dyn File,
    path: PathBuf,
    epoch: u64,
    file_bytes: u64,
    io_block_bytes: usize,
) -> Result<SegmentHeader, ScanError> {
    let read = |bytes: usize| -> Result<(AlignedBuf, usize), ScanError> {
        let bytes = bytes.next_multiple_of(io_block_bytes);
        let failed = |e| IoError::new("read the header of", &path, e);
        let mut buf = AlignedBuf::new(bytes).map_err(failed)?;
        let len = file.read_at(0, &mut buf[..bytes]).map_err(failed)?;
        Ok((buf, len))
    };
    // The padding behind the header belongs to it: a block larger than what was read is read whole.
    let (buf, len) = read(4096)?;
    let mut found = SegmentHeader::decode(&buf[..len]);
    if !found.is_ok_and(|header| header.block_bytes as usize <= len) {
        let (buf, len) = read((2 * BLOCK_BYTES_MAX).min(file_bytes as usize))?;
        found = SegmentHeader::decode(&buf[..len]);
        if found.is_err() {
            // The second copy stands where the block size that is written in it says.
            let offsets = (BLOCK_BYTES_MIN.ilog2()..=BLOCK_BYTES_MAX.ilog2()).map(|bits| 1 << bits);
            let second = offsets.take_while(|&offset| offset < len).find_map(|offset| {
                let copy = SegmentHeader::decode(&buf[offset..len]).ok()?;
                (copy.block_bytes as usize == offset).then_some(copy)
            });
            found = second.map_or(found, Ok);
        }
    }
    match found {
        Ok(header) if header.epoch == epoch => Ok(header),
        Ok(header) => Err(ScanError::Foreign {
            path,
            reason: format!("its header says that it is segment {}", header.epoch),
        }),
        Err(error @ SegmentHeaderError::Version(_)) => {
            Err(ScanError::Foreign { path, reason: error.to_string() })
        }
        Err(error) => Err(ScanError::Damaged(Damage {
            segment: path,
            offset: 0,
            lost: None,
            detail: format!("both copies of the segment header are unreadable: {error}"),
        })),
    }
}

/// Why segments could not be read: what [`OpenError`] and [`ReadError`] have in common.
#[derive(Debug)]
pub(crate) enum ScanError {
    Damaged(Damage),
    Foreign { path: PathBuf, reason: String },
    Io(IoError),
}

impl From<IoError> for ScanError {
    fn from(error: IoError) -> Self {
        ScanError::Io(error)
    }
}

impl From<ScanError> for OpenError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Damaged(damage) => OpenError::Damaged(damage),
            ScanError::Foreign { path, reason } => OpenError::Foreign { path, reason },
            ScanError::Io(error) => OpenError::Io(error),
        }
    }
}

impl From<ScanError> for ReadError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Damaged(damage) => ReadError::Damaged(damage),
            ScanError::Foreign { path, reason } => ReadError::Foreign { path, reason },
            ScanError::Io(error) => ReadError::Io(error),
        }
    }
}
