//! What a life appends, in every way there is.

use uringlog::{AppendError, Ticket};

use super::Life;
use crate::count;
use crate::model::Payload;

/// What goes into every ring; more may take a buffer of its own.
const INLINE_BYTES: usize = 400;

impl<'a> Life<'a> {
    /// Returns whether the record was taken.
    pub(super) fn append(&mut self, len: usize) -> bool {
        let payload = self.world.model.draw(len);
        let outcome = self.log.try_append(&payload.bytes());
        self.took(outcome, vec![payload])
    }

    /// A record that looks like a part of the log.
    pub(super) fn append_copied(&mut self) {
        let files = self.world.disk.files();
        let name = files[self.rng.below(files.len() as u64) as usize].clone();
        let Some(bytes) = self.world.disk.read_raw(&name) else { return };
        let most = bytes.len().min(self.log.record_bytes_max());
        let len = self.rng.below(most as u64 / 512 + 1) as usize * 512;
        let start = self.rng.below((bytes.len() - len) as u64 / 512 + 1) as usize * 512;
        let payload = Payload::Copied(bytes[start..start + len].into());
        let outcome = self.log.try_append(&payload.bytes());
        self.took(outcome, vec![payload]);
    }

    pub(super) fn append_batch(&mut self, count: u64, len_max: u64) {
        self.rng.next();
        let payloads: Vec<Payload> = (0..count)
            .map(|_| {
                let len = self.rng.below(len_max) as usize;
                self.world.model.draw(len)
            })
            .collect();
        let bytes: Vec<Vec<u8>> = payloads.iter().map(Payload::bytes).collect();
        let outcome = self.log.try_append_batch(&bytes);
        self.took(outcome, payloads);
    }

    pub(super) fn took(
        &mut self,
        outcome: Result<Ticket<'a>, AppendError>,
        payloads: Vec<Payload>,
    ) -> bool {
        match outcome {
            Ok(ticket) => {
                count::add_many(&count::RECORDS, payloads.len() as u64);
                let lsns = ticket.lsns();
                self.world.model.accept(*lsns.start(), *lsns.end(), payloads);
                assert_eq!(self.log.last_lsn(), *lsns.end());
                if self.tickets.len() < 40 {
                    self.tickets.push(ticket.into_owned());
                }
                true
            }
            Err(error) => {
                self.refused(&error, payloads.iter().map(Payload::len).sum());
                false
            }
        }
    }

    /// Every refusal has its reason.
    pub(super) fn refused(&mut self, error: &AppendError, bytes: usize) {
        let max = self.log.record_bytes_max();
        match error {
            AppendError::Full => count::add(&count::FULL),
            AppendError::NoSpace => {
                assert!(self.may_lack_space(), "there is space");
                count::add(&count::NO_SPACE);
            }
            AppendError::TooLarge { .. } => assert!(bytes + 8 * 12 > max, "{bytes} of {max}"),
            AppendError::Poisoned(_) => self.see_poison(),
            error => panic!("refused without a reason: {error}"),
        }
    }

    pub(super) fn may_lack_space(&self) -> bool {
        self.plan.space.is_some() || self.may_break()
    }

    // ---- reservations ----

    pub(super) fn reserve(&mut self) {
        if self.held.len() >= 6 {
            return;
        }
        let most = if self.rng.one_in(6) { 9000 } else { INLINE_BYTES as u64 };
        let payload = self.world.model.draw(self.rng.below(most) as usize);
        match self.log.try_reserve(payload.len()) {
            Ok(mut reservation) => {
                reservation.copy_from_slice(&payload.bytes());
                self.held.push((reservation, payload, self.log.generation()));
            }
            Err(error) => self.refused(&error, payload.len()),
        }
    }

    pub(super) fn publish(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let (reservation, payload, generation) =
            self.held.swap_remove(self.rng.clone().below(self.held.len() as u64) as usize);
        if generation != self.log.generation() {
            let outcome = reservation.try_publish();
            assert!(
                matches!(outcome, Err(AppendError::Truncated | AppendError::Poisoned(_))),
                "a reservation from before a truncation: {outcome:?}"
            );
            return;
        }
        if self.truncation.is_some() {
            // The gate is shut: publishing would wait.
            return;
        }
        if payload.len() > INLINE_BYTES {
            // It needs a slot of its own, for which publishing would wait: it goes into empty
            // rings, and only where the gate cannot be shut.
            if !self.held.is_empty() || self.leaked > 0 || self.may_lack_space() {
                return;
            }
            self.settle();
            let appended = self.append(0);
            self.settle();
            if self.is_over() || !appended {
                return;
            }
        } else if !self.append(0) {
            // Publishing waits while the gate is shut: it is.
            return;
        }
        let outcome = reservation.publish();
        self.took(outcome, vec![payload]);
    }

    pub(super) fn give_up(&mut self) {
        if !self.held.is_empty() {
            let index = self.rng.below(self.held.len() as u64) as usize;
            drop(self.held.swap_remove(index));
        }
    }
}
