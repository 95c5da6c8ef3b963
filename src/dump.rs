//! [`dump`]: what stands in the files of a log, piece by piece, intact or not. For people who look for what
//! is wrong; [`verify`](crate::verify) says what it means.

use std::path::Path;
use std::sync::Arc;

use crate::cursor::CURSOR_SUFFIX;
use crate::disk::os::OsStore;
use crate::disk::{File, Store};
use crate::error::{IoError, OpenError, ReadError};
use crate::footer::{self, Footer};
use crate::frame::{
    self, BATCH_HEADER_BYTES, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, BatchContext, BatchHeader,
    SegmentHeader, TABLE_ENTRY_BYTES, crc32c, get_u32, get_u64,
};
use crate::mark::{MARK_NAME, Mark};
use crate::mem::AlignedBuf;
use crate::segment::{SPARE_SUFFIX, dir_path};
use crate::slots::{self, Kind, SLOT_OFFSETS};
use crate::status::STATUS_NAME;
use crate::verify::census::header_copies;
use crate::verify::patient::PatientFile;
use crate::verify::walk::Aligned;

/// What of a log is dumped.
#[derive(Clone, Copy, Debug, Default)]
pub struct DumpOptions {
    segment: Option<u64>,
    batches: bool,
    records: bool,
}

impl DumpOptions {
    /// Headers, footers, gaps, the mark, cursors, the status page.
    pub fn new() -> Self {
        DumpOptions::default()
    }

    /// Only the segment with this epoch.
    #[must_use]
    pub fn segment(mut self, epoch: Option<u64>) -> Self {
        self.segment = epoch;
        self
    }

    /// Every batch too.
    #[must_use]
    pub fn batches(mut self, batches: bool) -> Self {
        self.batches = batches;
        self
    }

    /// Every record too, and so every batch.
    #[must_use]
    pub fn records(mut self, records: bool) -> Self {
        self.records = records;
        self
    }
}

/// One piece of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DumpPiece {
    /// What it is: "header", "batch", "record", "gap", "footer", "segment", "mark", "cursor", "status".
    pub what: &'static str,
    /// The file's name in the log's directory.
    pub file: String,
    /// Where it stands, in bytes.
    pub offset: u64,
    /// Empty when it is intact; otherwise what is wrong.
    pub trouble: String,
    /// What it says, by name.
    pub fields: Vec<(&'static str, DumpValue)>,
}

/// What a field says.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DumpValue {
    /// A count, an offset, a number.
    Number(u64),
    /// A checksum.
    Crc(u32),
    /// A moment, in nanoseconds since 1970.
    Time(u64),
    /// A text.
    Text(String),
    /// A payload.
    Bytes(Vec<u8>),
}

type Fields = Vec<(&'static str, DumpValue)>;
use DumpValue::{Bytes, Crc, Number, Text, Time};

/// Hands what stands in the files of a log to `each`, piece by piece; `each` returns false to have no more.
/// `path` is a log's directory, or one segment file. Changes nothing and takes no lock.
///
/// # Errors
/// The files cannot be opened: [`ReadError`]. Damage is no error.
pub fn dump(
    path: impl AsRef<Path>,
    options: DumpOptions,
    mut each: impl FnMut(DumpPiece) -> bool,
) -> Result<(), ReadError> {
    let path = path.as_ref();
    let is_file = path.is_file();
    let dir = match path.parent() {
        Some(parent) if is_file && parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) if is_file => parent,
        _ => path,
    };
    let store = OsStore::open_read_only(dir).map_err(OpenError::into_read_error)?;
    let only = path.file_name().and_then(|name| name.to_str()).filter(|_| is_file);
    dump_store(&*store, only, options, &mut each)
}

pub(crate) fn dump_store(
    store: &dyn Store,
    only: Option<&str>,
    options: DumpOptions,
    each: &mut dyn FnMut(DumpPiece) -> bool,
) -> Result<(), ReadError> {
    let mut names = store.list().map_err(|e| IoError::new("list", dir_path(store), e))?;
    names.sort_unstable();
    let mut any = false;
    for name in names {
        let epoch = frame::parse_segment_name(&name);
        let wanted = match (only, options.segment) {
            (Some(only), _) => name == only,
            (None, Some(segment)) => epoch == Some(segment),
            (None, None) => true,
        };
        if !wanted {
            continue;
        }
        let is_segment = epoch.is_some() || (only.is_some() && !is_slots(&name));
        let mut dumper = Dumper { store, name: &name, options, each: &mut *each };
        let going = if is_segment {
            dumper.segment()?
        } else if is_slots(&name) {
            dumper.slots()?
        } else if name == STATUS_NAME {
            dumper.status()?
        } else if name.ends_with(SPARE_SUFFIX) {
            dumper.give("spare", 0, String::new(), Vec::new())
        } else {
            continue;
        };
        any = true;
        if !going {
            return Ok(());
        }
    }
    match any {
        true => Ok(()),
        false => Err(ReadError::NotFound { dir: dir_path(store) }),
    }
}

fn is_slots(name: &str) -> bool {
    name == MARK_NAME || name.ends_with(CURSOR_SUFFIX)
}

struct Dumper<'a> {
    store: &'a dyn Store,
    name: &'a str,
    options: DumpOptions,
    each: &'a mut dyn FnMut(DumpPiece) -> bool,
}

impl Dumper<'_> {
    fn give(&mut self, what: &'static str, offset: u64, trouble: String, fields: Fields) -> bool {
        (self.each)(DumpPiece { what, file: self.name.to_owned(), offset, trouble, fields })
    }

    fn failed(&self, error: std::io::Error) -> ReadError {
        ReadError::Io(IoError::new("read", self.store.path(self.name), error))
    }

    fn open(&self) -> Result<(Arc<PatientFile>, u64), ReadError> {
        let file = PatientFile::open(self.store, self.name).map_err(|e| self.failed(e))?;
        let bytes = file.len().map_err(|e| self.failed(e))?;
        Ok((file, bytes))
    }

    fn segment(&mut self) -> Result<bool, ReadError> {
        let (file, bytes) = self.open()?;
        let block = self.store.facts().block_bytes;
        let want = (2 * BLOCK_BYTES_MAX).min(bytes as usize).next_multiple_of(block);
        let mut start = AlignedBuf::new(want).map_err(|e| self.failed(e))?;
        let read = file.read_at(0, &mut start[..want]).map_err(|e| self.failed(e))?;
        let start = &start[..read];
        let (first, second) = header_copies(start);
        let header = first.or(second).ok();
        let second_at = header.map_or(BLOCK_BYTES_MIN, |header| header.block_bytes as usize);
        for (copy, at) in [(first, 0), (second, second_at)] {
            let raw = start.get(at..).unwrap_or_default();
            let (trouble, mut fields) = match &copy {
                Ok(header) => (String::new(), header_fields(header)),
                Err(error) => (error.to_string(), Vec::new()),
            };
            if let Some(raw) = raw.get(..BLOCK_BYTES_MIN) {
                fields.push(("crc", Crc(get_u32(raw, 132))));
                fields.push(("computed_crc", Crc(crc32c(&raw[..132]))));
            }
            if !self.give("header", at as u64, trouble, fields) {
                return Ok(false);
            }
        }
        self.batches(&file, bytes, header.as_ref())
    }

    /// Every block that a batch may begin with.
    fn batches(
        &mut self,
        file: &Arc<PatientFile>,
        bytes: u64,
        header: Option<&SegmentHeader>,
    ) -> Result<bool, ReadError> {
        let block = header.map_or(BLOCK_BYTES_MIN as u64, |header| u64::from(header.block_bytes));
        let context = header.map(BatchContext::from);
        let footer_at = header.map(footer::footer_offset).unwrap_or(u64::MAX);
        let mut at = header.map_or(2 * block, SegmentHeader::data_offset);
        let (mut batches, mut records, mut end) = (0, 0, at);
        let mut gap: Option<(u64, bool)> = None;
        while at < bytes {
            if at == footer_at
                && let Some(header) = header
            {
                if !self.close_gap(&mut gap, at) || !self.footer(file, header)? {
                    return Ok(false);
                }
                break;
            }
            let mut head = Aligned::read(self.store, &**file, at, BLOCK_BYTES_MIN)
                .map_err(|e| self.failed(e))?;
            let Some(head) = head.bytes(BLOCK_BYTES_MIN) else { break };
            let found = match &context {
                Some(context) => {
                    BatchHeader::decode(head, context, at).ok().map(|(found, _)| found)
                }
                None => BatchHeader::decode_any(head).filter(|found| found.offset == at),
            };
            let Some(found) = found else {
                let is_zero = frame::is_zero(head);
                match gap {
                    Some((_, zero)) if zero == is_zero => {}
                    _ => {
                        if !self.close_gap(&mut gap, at) {
                            return Ok(false);
                        }
                        gap = Some((at, is_zero));
                    }
                }
                at += block;
                continue;
            };
            if !self.close_gap(&mut gap, at) {
                return Ok(false);
            }
            let batch_bytes = found.disk_bytes(block);
            let fits = at + batch_bytes <= bytes;
            let mut image = match fits {
                true => Aligned::read(self.store, &**file, at, batch_bytes as usize),
                false => Aligned::read(self.store, &**file, at, BLOCK_BYTES_MIN),
            }
            .map_err(|e| self.failed(e))?;
            let image = match fits {
                true => image.bytes(batch_bytes as usize),
                false => None,
            };
            let trouble = match &image {
                None => "the file ends inside the batch".to_owned(),
                Some(image) => {
                    found.verify_body(image).err().map_or(String::new(), |e| e.to_string())
                }
            };
            batches += 1;
            records += u64::from(found.count);
            let is_intact = trouble.is_empty();
            let told = self.options.batches || self.options.records || !is_intact;
            if told && !self.give("batch", at, trouble, batch_fields(&found, batch_bytes)) {
                return Ok(false);
            }
            if self.options.records
                && let Some(image) = image
                && !self.records(&found, image)
            {
                return Ok(false);
            }
            at += if is_intact { batch_bytes } else { block };
            end = at;
        }
        if !self.close_gap(&mut gap, at) {
            return Ok(false);
        }
        let fields = vec![
            ("batches", Number(batches)),
            ("records", Number(records)),
            ("end", Number(end)),
            ("bytes", Number(bytes)),
        ];
        let unreadable = file.unreadable();
        let trouble = match unreadable.first() {
            None => String::new(),
            Some((at, error)) => {
                format!("{} blocks cannot be read, the first at {at}: {error}", unreadable.len())
            }
        };
        Ok(self.give("segment", 0, trouble, fields))
    }

    fn close_gap(&mut self, gap: &mut Option<(u64, bool)>, end: u64) -> bool {
        let Some((start, is_zero)) = gap.take() else { return true };
        let content = if is_zero { "zeros" } else { "no batch" };
        let fields = vec![("bytes", Number(end - start)), ("content", Text(content.to_owned()))];
        self.give("gap", start, String::new(), fields)
    }

    fn footer(
        &mut self,
        file: &Arc<PatientFile>,
        header: &SegmentHeader,
    ) -> Result<bool, ReadError> {
        let at = footer::footer_offset(header);
        let bytes = footer::footer_bytes(header.segment_bytes, header.block_bytes) as usize;
        let mut image =
            Aligned::read(self.store, &**file, at, bytes).map_err(|e| self.failed(e))?;
        let Some(image) = image.bytes(bytes) else { return Ok(true) };
        if frame::is_zero(image) {
            return Ok(true);
        }
        let crcs = [("crc", Crc(get_u32(image, 4))), ("computed_crc", Crc(crc32c(&image[8..])))];
        let (trouble, mut fields) = match Footer::decode(image, header) {
            None => ("no valid footer of this segment".to_owned(), Vec::new()),
            Some(footer) => (
                String::new(),
                vec![
                    ("first_lsn", Number(footer.first_lsn)),
                    ("next_lsn", Number(footer.next_lsn)),
                    ("end", Number(footer.end_offset)),
                    ("end_crc", Crc(footer.end_crc)),
                    ("first_time", Time(footer.first_wall_ns)),
                    ("last_time", Time(footer.last_wall_ns)),
                    ("payload_bytes", Number(footer.payload_bytes)),
                    ("entries", Number(footer.entries.len() as u64)),
                ],
            ),
        };
        fields.extend(crcs);
        Ok(self.give("footer", at, trouble, fields))
    }

    /// The records of a batch, each by its own checksum, as far as the table tells.
    fn records(&mut self, batch: &BatchHeader, image: &[u8]) -> bool {
        let table_at = batch.table_offset();
        let table = image.get(table_at..table_at + batch.count as usize * TABLE_ENTRY_BYTES);
        if table.is_none_or(|table| crc32c(table) != batch.table_crc) {
            // Nothing tells where a record ends.
            return true;
        }
        let mut at = BATCH_HEADER_BYTES;
        for index in 0..batch.count as usize {
            let entry = frame::table_entry(image, table_at, index);
            let Some(payload) = image.get(at..at + entry.len as usize) else { return true };
            let crc = crc32c(payload);
            let trouble = match crc == entry.crc {
                true => String::new(),
                false => "the payload's checksum does not match".to_owned(),
            };
            let fields = vec![
                ("lsn", Number(batch.first_lsn + index as u64)),
                ("bytes", Number(u64::from(entry.len))),
                ("crc", Crc(entry.crc)),
                ("computed_crc", Crc(crc)),
                ("payload", Bytes(payload.to_vec())),
            ];
            if !self.give("record", batch.offset + at as u64, trouble, fields) {
                return false;
            }
            at += entry.len as usize;
        }
        true
    }

    /// The mark, or a cursor.
    fn slots(&mut self) -> Result<bool, ReadError> {
        let is_mark = self.name == MARK_NAME;
        let (what, kind) = if is_mark { ("mark", Kind::Mark) } else { ("cursor", Kind::Cursor) };
        let Some(found) = slots::examine(self.store, self.name, kind)? else { return Ok(true) };
        for (slot, offset) in found.into_iter().zip(SLOT_OFFSETS) {
            let mut fields = Vec::new();
            let trouble = match slot {
                slots::Found::Zero => "never written".to_owned(),
                slots::Found::Broken => "the checksum does not match".to_owned(),
                slots::Found::Unreadable(error) => error,
                slots::Found::Intact(slot) => {
                    fields.push(("sequence", Number(slot.sequence)));
                    fields.push(("log_id", Text(slot.log_id.to_string())));
                    match (is_mark, Mark::decode(&slot.content)) {
                        (true, Some(mark)) => fields.extend(mark_fields(&mark)),
                        (false, _) if slot.content.len() == 8 => {
                            fields.push(("position", Number(get_u64(&slot.content, 0))));
                        }
                        _ => fields.push(("content", Bytes(slot.content))),
                    }
                    String::new()
                }
            };
            if !self.give(what, offset, trouble, fields) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn status(&mut self) -> Result<bool, ReadError> {
        let (file, _) = self.open()?;
        let mut page =
            Aligned::read(self.store, &*file, 0, 80).map_err(|error| self.failed(error))?;
        let Some(page) = page.bytes(80) else {
            return Ok(self.give("status", 0, "it is too short".to_owned(), Vec::new()));
        };
        let computed = crc32c(&page[..76]);
        let trouble = match get_u32(page, 76) == computed {
            true => String::new(),
            false => "the checksum does not match".to_owned(),
        };
        let state = match get_u32(page, 72) {
            0 => "opening",
            1 => "open",
            2 => "closed",
            3 => "poisoned",
            _ => "unknown",
        };
        let fields = vec![
            ("version", Number(u64::from(get_u32(page, 8)))),
            ("pid", Number(u64::from(get_u32(page, 12)))),
            ("generation", Number(get_u64(page, 40))),
            ("live_epoch", Number(get_u64(page, 48))),
            ("first_lsn", Number(get_u64(page, 56))),
            ("durable", Number(get_u64(page, 64))),
            ("state", Text(state.to_owned())),
            ("crc", Crc(get_u32(page, 76))),
            ("computed_crc", Crc(computed)),
        ];
        Ok(self.give("status", 0, trouble, fields))
    }
}

fn header_fields(header: &SegmentHeader) -> Fields {
    let mut fields = vec![
        ("log_id", Text(header.log_id.to_string())),
        ("epoch", Number(header.epoch)),
        ("salt", Text(format!("{:016x}", header.salt))),
        ("block_bytes", Number(u64::from(header.block_bytes))),
        ("segment_bytes", Number(header.segment_bytes)),
        ("created", Time(header.created_wall_ns)),
        ("first_lsn", Number(header.first_lsn)),
        ("generation", Number(header.generation)),
        ("truncated_after", Number(header.truncated_after)),
        ("recycled", Number(u64::from(header.recycled))),
    ];
    if let Some(resume) = header.resume {
        fields.push(("prev_end", Number(resume.prev_end_offset)));
        fields.push(("prev_batch_crc", Crc(resume.prev_batch_crc)));
    }
    fields
}

fn batch_fields(batch: &BatchHeader, bytes: u64) -> Fields {
    vec![
        ("first_lsn", Number(batch.first_lsn)),
        ("count", Number(u64::from(batch.count))),
        ("bytes", Number(bytes)),
        ("payload_bytes", Number(u64::from(batch.payload_bytes))),
        ("time", Time(batch.wall_ns)),
        ("synced_lsn", Number(batch.synced_lsn)),
        ("prev_crc", Crc(batch.prev_crc)),
        ("table_crc", Crc(batch.table_crc)),
    ]
}

fn mark_fields(mark: &Mark) -> Fields {
    let mut fields = vec![
        ("first_epoch", Number(mark.first_epoch)),
        ("first_lsn", Number(mark.first_lsn)),
        ("generation", Number(mark.generation)),
        ("generation_epoch", Number(mark.generation_epoch)),
        ("truncated_after", Number(mark.truncated_after)),
    ];
    if let Some(closed) = mark.closed {
        fields.push(("closed_epoch", Number(closed.epoch)));
        fields.push(("closed_end", Number(closed.end_offset)));
        fields.push(("closed_crc", Crc(closed.crc)));
    }
    fields
}
