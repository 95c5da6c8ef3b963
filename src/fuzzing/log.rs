//! A log as a writer leaves it, whose life the input tells: batches, syncs, segments, closing, crashing,
//! trimming, truncating, recycling.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::source::Source;
use crate::footer::footer_offset;
use crate::frame;
use crate::segment::SPARE_SUFFIX;
use crate::testing::{MemStore, TestWriter};

pub(super) const SEGMENT_BYTES: u64 = 64 << 10;
const STEPS_MAX: usize = 40;
const SEGMENTS_MAX: u64 = 10;

/// What was written.
#[derive(Default)]
pub(super) struct History {
    /// The payload that each number has, of the last generation.
    pub(super) records: BTreeMap<u64, Vec<u8>>,
    /// The first record of each segment.
    firsts: BTreeMap<u64, u64>,
    generation: u8,
}

impl History {
    fn payload(&self, lsn: u64, len: usize) -> Vec<u8> {
        let mut payload = format!("record {lsn} of {} ", self.generation).into_bytes();
        payload.resize(payload.len().max(len), lsn as u8);
        payload
    }
}

/// Lives the life that the input tells, in `store`, and ends without closing unless it says so.
pub(super) fn write(source: &mut Source<'_>, store: &Arc<MemStore>) -> History {
    let mut history = History::default();
    let mut writer = TestWriter::open(store, SEGMENT_BYTES);
    writer.keeps_footers = true;
    writer.wall_ns = 1000;
    for _ in 0..STEPS_MAX {
        if source.is_empty() {
            break;
        }
        writer.wall_ns += 10;
        match source.byte() % 16 {
            0..=5 => append(source, &mut writer, &mut history),
            6 | 7 => {
                writer.sync_then_batch(&[]);
            }
            8 => writer.prepare(1 + source.below(2)),
            9 => trim(source, &mut writer, &mut history),
            10 => truncate(source, &mut writer, &mut history),
            11 => {
                writer.sync_then_batch(&[]);
                writer.close();
                writer = reopened(store);
            }
            12 => {
                drop(writer);
                writer = reopened(store);
                history.records.retain(|&lsn, _| lsn < writer.next_lsn);
                history.recovered(&writer);
            }
            13 => recycle(store, &mut writer),
            _ => append(source, &mut writer, &mut history),
        }
    }
    if source.flag() {
        writer.close();
    }
    history
}

impl History {
    /// Recovery may have put a segment in the place of others, with other records.
    fn recovered(&mut self, writer: &TestWriter) {
        let live = writer.header.epoch;
        self.firsts.retain(|&epoch, _| epoch <= live);
        if writer.header.first_lsn > 0 {
            self.firsts.insert(live, writer.header.first_lsn);
        }
    }
}

fn reopened(store: &Arc<MemStore>) -> TestWriter {
    let mut writer = TestWriter::open(store, SEGMENT_BYTES);
    writer.keeps_footers = true;
    writer
}

fn append(source: &mut Source<'_>, writer: &mut TestWriter, history: &mut History) {
    let shape = source.byte();
    let count = usize::from(shape % 4);
    let len = match shape >> 4 {
        0..=7 => source.below(600),
        8..=12 => source.below(8000),
        _ => 14000,
    };
    let first = writer.next_lsn;
    let records: Vec<Vec<u8>> =
        (0..count as u64).map(|at| history.payload(first + at, len)).collect();
    let slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    let (old, footer) = (writer.header, writer.footer());
    if old.epoch >= SEGMENTS_MAX {
        return;
    }
    match shape & 8 == 0 {
        true => writer.batch(&slices),
        false => writer.sync_then_batch(&slices),
    };
    if writer.header.epoch != old.epoch {
        history.firsts.insert(writer.header.epoch, first);
        if source.flag() {
            let at = footer_offset(&old) as usize;
            writer.store.splice(&frame::segment_name(old.epoch), at, &footer);
        }
    }
    history.records.extend((first..).zip(records));
}

fn trim(source: &mut Source<'_>, writer: &mut TestWriter, history: &mut History) {
    let live = writer.header.epoch;
    let (lowest, first) = (writer.mark.get().first_epoch, writer.mark.get().first_lsn);
    let above = history.firsts.range(lowest + 1..).take_while(|(epoch, _)| **epoch <= live);
    let may: Vec<(u64, u64)> =
        above.map(|(&epoch, &lsn)| (epoch, lsn)).filter(|&(_, lsn)| lsn >= first).collect();
    if may.is_empty() {
        return;
    }
    let (epoch, lsn) = may[source.below(may.len())];
    // What is trimmed is durable, and so is the batch that the log starts with.
    writer.sync_then_batch(&[]);
    if writer.header.epoch == live && writer.trim(epoch, lsn).is_ok() {
        history.records = history.records.split_off(&lsn);
    }
}

fn truncate(source: &mut Source<'_>, writer: &mut TestWriter, history: &mut History) {
    let first = writer.mark.get().first_lsn;
    if writer.header.epoch >= SEGMENTS_MAX {
        return;
    }
    writer.sync_then_batch(&[]);
    let keep = first - 1 + source.below((writer.next_lsn - first + 1) as usize) as u64;
    writer.truncate(keep).expect("the log is cut");
    history.records.split_off(&(keep + 1));
    let live = writer.header.epoch;
    history.firsts.retain(|&epoch, _| epoch < live);
    history.firsts.insert(live, keep + 1);
    history.generation += 1;
}

fn recycle(store: &Arc<MemStore>, writer: &mut TestWriter) {
    let spare = store.names().into_iter().find(|name| name.ends_with(SPARE_SUFFIX));
    if let Some(spare) = spare
        && store.bytes(&spare).len() as u64 == SEGMENT_BYTES
        && writer.ready.len() < 2
    {
        writer.recycle(&spare);
    }
}
