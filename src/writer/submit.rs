//! Batch to disk: giving a batch its place and its header, and handing it to the disk.

use std::sync::Arc;

use super::{Flight, What, Writer};
use crate::batch::{Large, Seal, Sealed, seal_image};
use crate::commit::Level;
use crate::disk::{File, Op, OpKind};
use crate::options::Durability;
use crate::probes::stage;
use crate::timing::RawTiming;

impl Writer {
    /// Submits what is pending, as much as the disk takes.
    pub(super) fn submit_all(&mut self) {
        while !self.ended && self.flight.len() < self.disk.depth_max() {
            if self.is_sync_due() {
                // It covers writes that are done, so those under way come first.
                if self.flight.is_empty() {
                    self.submit_sync();
                }
                return;
            }
            if let Some((lsn, large)) = self.large.take() {
                if large.buf.len() as u64 > self.space.room() && !self.rotate() {
                    self.large = Some((lsn, large));
                    return;
                }
                self.submit_large(lsn, *large);
            } else if !self.batch.is_empty() {
                let Some(spare) = self.spare.pop() else { return };
                let seal = self.seal(self.batch.first_lsn());
                let appends = self.batch.appends();
                let sealed = self.batch.seal(&seal, spare);
                self.batch_full = false;
                self.linger.end(false);
                self.submit_batch(&seal, sealed, appends, 0);
            } else {
                return;
            }
            self.fill();
        }
    }

    pub(super) fn submit_large(&mut self, lsn: u64, large: Large) {
        let budget = large.buf.len() as u64;
        let seal = self.seal(lsn);
        let sealed = seal_image(large.buf, &large.content, &seal);
        self.shared.rings.large_sealed(budget);
        self.submit_batch(&seal, sealed, 1, budget);
    }

    /// One empty batch, which vouches for all that is synced.
    pub(super) fn submit_vouch(&mut self) {
        if self.space.room() == 0 && !self.rotate() {
            return;
        }
        let Some(spare) = self.spare.pop() else { return };
        let seal = self.seal(self.drain.next_lsn());
        let sealed = self.batch.seal(&seal, spare);
        self.shared.counters.vouches.add(1);
        self.submit_batch(&seal, sealed, 0, 0);
    }

    pub(super) fn seal(&mut self, first_lsn: u64) -> Seal {
        let (context, offset, prev_crc) = self.space.at();
        Seal {
            context,
            offset,
            first_lsn,
            wall_ns: self.space.wall_ns(self.shared.clock.wall_ns()),
            synced_lsn: self.shared.commit.watermark(Level::Synced),
            prev_crc,
            block_bytes: self.space.block_bytes(),
        }
    }

    pub(super) fn submit_batch(&mut self, seal: &Seal, sealed: Sealed, appends: u64, budget: u64) {
        let now = self.shared.clock.now_ns();
        let file = self.space.advance(&self.shared, &sealed.header, sealed.crc);
        let last = sealed.header.last_lsn();
        self.count_batch(&sealed);
        self.submitted_bytes = sealed.header.payload_bytes as usize;
        let durable = self.tuning.durability == Durability::Durable;
        if !durable {
            self.unsynced = Some(file.clone());
        }
        let kind = OpKind::Write { offset: seal.offset, buf: sealed.buf, len: sealed.len, durable };
        let timing = RawTiming {
            first_lsn: seal.first_lsn,
            last_lsn: last,
            bytes: sealed.len as u64,
            sealed_ns: now,
            ..RawTiming::default()
        };
        stage!(write, seal.first_lsn, sealed.header.count, sealed.len, self.next_token);
        let what = What::Batch { header: sealed.header, appends, budget };
        self.submit(file, kind, what, timing);
    }

    pub(super) fn count_batch(&self, sealed: &Sealed) {
        let counters = &self.shared.counters;
        let content = sealed.header.content_bytes();
        counters.batches.add(u64::from(sealed.header.count > 0));
        counters.payload_bytes.add(u64::from(sealed.header.payload_bytes));
        counters.disk_bytes.add(sealed.len as u64);
        counters.padding_bytes.add(sealed.len as u64 - content);
    }

    /// Syncs what was written. Nothing is under way.
    pub(super) fn submit_sync(&mut self) {
        let Some(file) = self.unsynced.take() else { return };
        let covers = self.shared.commit.watermark(Level::Acked);
        self.submit(file, OpKind::Sync, What::Sync { covers }, RawTiming::default());
    }

    /// Whether somebody waits for a sync, of a log that syncs when asked, and all that it is to cover
    /// is written.
    pub(super) fn is_sync_due(&self) -> bool {
        let target = self.shared.sync_target();
        let synced = self.shared.commit.watermark(Level::Synced);
        let acked = self.shared.commit.watermark(Level::Acked);
        // Who waits for a number not yet given out must not keep others from theirs.
        self.unsynced.is_some()
            && target > synced
            && (target <= acked || (target > self.shared.numbers.last() && acked > synced))
    }

    pub(super) fn submit(
        &mut self,
        file: Arc<dyn File>,
        kind: OpKind,
        what: What,
        timing: RawTiming,
    ) {
        let token = self.next_token;
        self.next_token += 1;
        self.flight.push_back(Flight { token, what, finished: false, image: None, timing });
        self.disk.submit(Op { token, file, kind });
        if let Some(flight) = self.flight.back_mut() {
            flight.timing.submitted_ns = self.shared.clock.now_ns();
        }
    }
}
