//! What a life does to the log as a whole: trims it, cuts it, moves cursors, and looks for records by
//! number, by time, and backwards.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use uringlog::{Lsn, ReadError, TruncateError, WaitError, sim};

use super::Life;
use crate::count;

const CURSORS: [&str; 2] = ["one", "two"];

impl Life<'_> {
    pub(super) fn act_on_files(&mut self) {
        match self.rng.below(6) {
            0 | 1 => self.trim(),
            2 => self.truncate(),
            3 => self.move_cursor(),
            4 => self.seek(),
            _ => self.read_back(),
        }
    }

    fn may_fail(&self) -> bool {
        self.world.disk.crashed() || self.may_break() || self.log.poison().is_some()
    }

    fn trim(&mut self) {
        let durable = self.log.durable_lsn().get();
        let before = match self.rng.one_in(3) {
            true => durable + 1 - self.rng.below(3).min(durable),
            false => self.rng.below(durable + 3),
        };
        self.trim_before(before);
    }

    pub(super) fn trim_before(&mut self, before: u64) {
        let durable = self.log.durable_lsn().get();
        let first = self.log.first_lsn().get();
        let positions = &self.world.model.cursors;
        let is_sure = positions.values().all(|positions| positions.len() == 1);
        let cursors = positions.values().flatten().flatten();
        let allowed = cursors.copied().min().unwrap_or(u64::MAX).min(durable + 1);
        // A cursor that may be gone, or was never made, holds nothing up.
        let furthest = positions
            .values()
            .filter_map(|positions| positions.iter().map(|at| at.unwrap_or(u64::MAX)).max());
        let allowed_most = furthest.min().unwrap_or(u64::MAX).min(durable + 1);
        match self.log.trim(Lsn::new(before)) {
            Ok(now) => {
                let expected = before.min(allowed).max(first);
                let is_sure = is_sure && !self.world.rotten;
                let fits = now.get() == expected || (!is_sure && now.get() >= expected);
                let fits = fits || self.world.rotten;
                assert!(fits && now.get() <= before.max(first), "{now}, not {expected}: {before}");
                assert_eq!(now, self.log.first_lsn());
                let last = self.log.last_lsn().get();
                self.world.model.check_first(now.get(), last, self.world.rotten);
                count::add(&count::TRIMS);
            }
            Err(error) => {
                assert!(self.may_fail(), "trimming before {before}: {error}");
                let tried = &mut self.world.model.first_tried;
                *tried = before.min(allowed_most).max(*tried);
            }
        }
    }

    fn truncate(&mut self) {
        if self.truncation.is_some() {
            return;
        }
        let (first, last) = (self.log.first_lsn().get(), self.log.last_lsn().get());
        let keep = match self.rng.below(4) {
            0 => first - 1,
            1 => last,
            _ => first - 1 + self.rng.below(last + 2 - first),
        };
        self.world.model.cutting = Some(keep);
        self.truncation = Some(sim::truncate_after(self.log, Lsn::new(keep)));
    }

    /// After each turn: whether the truncation is done.
    pub(super) fn see_truncation(&mut self) {
        let Some(truncation) = &self.truncation else { return };
        let Some(outcome) = truncation.result() else { return };
        self.truncation = None;
        let keep = self.world.model.cutting.expect("it was asked for");
        let last = match outcome {
            Ok(last) => last.get(),
            Err(TruncateError::Trimmed { first }) => {
                // Trimming was faster.
                assert_eq!(first, self.log.first_lsn());
                assert!(keep + 1 < first.get(), "{keep} can be kept from {first} on");
                self.world.model.cutting = None;
                return;
            }
            Err(error) => {
                assert!(
                    self.may_fail() || self.may_lack_space(),
                    "truncating after {keep}: {error}"
                );
                if self.log.poison().is_none() && !self.world.disk.crashed() {
                    // Nothing was touched.
                    self.world.model.cutting = None;
                }
                return;
            }
        };
        let before = self.world.model.last();
        assert_eq!(last, keep.min(before));
        let generation = self.log.generation();
        assert_eq!(generation > self.world.model.generation, last < before);
        self.world.model.truncated(last, generation);
        assert_eq!([self.log.last_lsn(), self.log.durable_lsn()], [Lsn::new(last); 2]);
        if last < before {
            count::add(&count::CUTS);
            self.drop_cut_tickets(last);
            if self.follower.as_ref().is_some_and(|reader| reader.next_lsn().get() > last + 1) {
                let cut = self.follower_cut.unwrap_or(u64::MAX).min(last);
                self.follower_cut = Some(cut);
            }
        }
    }

    fn drop_cut_tickets(&mut self, last: u64) {
        let mut context = Context::from_waker(Waker::noop());
        self.tickets.retain_mut(|ticket| {
            if ticket.lsn().get() <= last {
                return true;
            }
            let polled = Future::poll(Pin::new(ticket), &mut context);
            assert!(
                matches!(polled, Poll::Ready(Err(WaitError::Truncated { last: at })) if at.get() == last),
                "a ticket of a record that is gone: {polled:?}"
            );
            false
        });
    }

    fn move_cursor(&mut self) {
        let (first, durable) = (self.world.model.first, self.log.durable_lsn().get());
        let to = first + self.rng.below(durable + 2 - first);
        self.cursor_to(to);
    }

    pub(super) fn cursor_to(&mut self, to: u64) {
        let name = self.rng.pick(&CURSORS);
        let durable = self.log.durable_lsn().get();
        let may_break = self.may_break();
        let model = &mut self.world.model;
        let first = model.first;
        let known = model.cursors.entry(name.to_owned()).or_insert_with(|| vec![None]);
        let is_new = known.contains(&None);
        if is_new {
            known.push(Some(first));
        }
        let mut cursor = match self.log.cursor(name) {
            Ok(cursor) => cursor,
            Err(error) => {
                if is_new {
                    known.extend((first + 1..=model.first_tried).map(Some));
                }
                return assert!(self.may_fail() || self.may_lack_space(), "{error}");
            }
        };
        let at = cursor.position().get();
        // After a trim that failed, the mark may say either.
        let fits = known.contains(&Some(at)) || (may_break && at > first);
        // A slot that went bad leaves an older position.
        let fits = fits || self.world.rotten;
        assert!(fits, "cursor {name} at {at}: {known:?}");
        *known = vec![Some(at)];
        let to = to.clamp(first, durable + 1);
        known.push(Some(to));
        let furthest = model.cursors_furthest.entry(name.to_owned()).or_default();
        *furthest = to.max(at).max(*furthest);
        let (moved, expected) = match self.rng.one_in(2) {
            true => (cursor.set(Lsn::new(to)), to),
            false => (cursor.advance(Lsn::new(to)), to.max(at)),
        };
        match moved {
            Ok(()) => {
                assert_eq!(cursor.position().get(), expected);
                *known = vec![Some(expected)];
                count::add(&count::CURSORS);
                if self.rng.one_in(5) {
                    drop(cursor);
                    known.push(None);
                    match self.log.remove_cursor(name) {
                        Ok(()) => {
                            self.world.model.cursors.remove(name);
                            self.world.model.cursors_furthest.remove(name);
                        }
                        Err(error) => assert!(self.may_fail(), "{error}"),
                    }
                }
            }
            Err(error) => assert!(self.may_fail(), "moving {name} from {at} to {to}: {error}"),
        }
    }

    /// By time: the record found was written at or after it, and the one before earlier.
    fn seek(&mut self) {
        const START_NS: u64 = 1_700_000_000_000_000_000;
        let after = self.rng.below(self.world.now_ns - START_NS + 2);
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(START_NS + after);
        let (first, durable) = (self.log.first_lsn().get(), self.log.durable_lsn().get());
        let outcome = (|| -> Result<(), ReadError> {
            let mut reader = self.log.reader_at(time)?;
            let at = reader.next_lsn().get();
            assert!(at >= first && at <= durable + 1, "{at} of {first} to {durable}");
            match reader.next_record()? {
                Some(record) => {
                    assert!(record.written_at() >= time);
                    let bytes = record.payload().to_vec();
                    self.world.model.check_record(at, &bytes);
                }
                None => assert_eq!(at, durable + 1, "nothing was written so late"),
            }
            if at > first {
                let mut before = self.log.reader(Lsn::new(at - 1))?;
                let record = before.next_record()?.expect("it is durable");
                assert!(record.written_at() < time, "record {} was written in time", at - 1);
            }
            Ok(())
        })();
        count::add(&count::SEEKS);
        if let Err(error) = outcome {
            assert!(self.may_fail(), "seeking: {error}");
        }
    }

    pub(super) fn read_back(&mut self) {
        let (first, durable) = (self.log.first_lsn().get(), self.log.durable_lsn().get());
        if durable < first {
            return;
        }
        let mut at = first + self.rng.below(durable + 1 - first);
        let outcome = (|| -> Result<(), ReadError> {
            let mut reader = self.log.reader_back(Lsn::new(at))?;
            for _ in 0..40 {
                let Some(record) = reader.next_record()? else {
                    assert_eq!(at, first - 1, "the first record is the last one");
                    break;
                };
                assert_eq!(record.lsn().get(), at);
                let bytes = record.payload().to_vec();
                self.world.model.check_record(at, &bytes);
                at -= 1;
            }
            Ok(())
        })();
        count::add(&count::SEEKS);
        if let Err(error) = outcome {
            assert!(self.may_fail(), "reading back: {error}");
        }
    }
}
