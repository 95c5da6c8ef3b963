//! What is to be retained: checked when the log moved on to another segment, and about every second.

use std::time::Duration;

use super::{Preparer, Trouble};
use crate::error::IoError;
use crate::extent::Files;
use crate::options::Options;
use crate::retention::{self, Bound, TrimTrouble};

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How much of the log is retained.
pub(crate) struct Policies {
    retain_bytes: Option<u64>,
    retain_age_ns: Option<u64>,
    past_cursors: bool,
    /// When it was looked at last, and the live segment then.
    looked: Option<(u64, u64)>,
}

impl Policies {
    pub(crate) fn new(options: &Options) -> Self {
        let ns = |age: Duration| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        Policies {
            retain_bytes: options.retain_bytes,
            retain_age_ns: options.retain_age.map(ns),
            past_cursors: options.retain_past_cursors,
            looked: None,
        }
    }

    fn any(&self) -> bool {
        self.retain_bytes.is_some() || self.retain_age_ns.is_some()
    }

    /// When to look again at the latest.
    pub(super) fn next_look(&self) -> Option<Duration> {
        self.any().then_some(LOOK_EVERY)
    }
}

impl Preparer {
    /// Trims what is not to be retained, where it is time to look or the caller is in need. True:
    /// something was trimmed.
    pub(super) fn apply_policies(&mut self, files: &mut Files, now: bool) -> Result<bool, Trouble> {
        if !self.policies.any() || !self.is_due(now) {
            return Ok(false);
        }
        match self.trim_by_policies(files) {
            Ok(trimmed) => Ok(trimmed),
            // What cannot be read cannot be judged: it stays.
            Err(TrimTrouble::Unreadable(_)) => {
                self.shared.counters.retention_failures.add(1);
                Ok(false)
            }
            Err(TrimTrouble::Mark(error)) => {
                let action = format!("prepare segments: {}", error.action);
                Err(Trouble::Failed(IoError { action, ..error }))
            }
        }
    }

    fn is_due(&mut self, now: bool) -> bool {
        let (clock_ns, live) = (self.shared.clock.now_ns(), self.shared.extent.live_epoch());
        let due = now
            || self.policies.looked.is_none_or(|(at_ns, epoch)| {
                epoch != live || clock_ns.saturating_sub(at_ns) >= LOOK_EVERY.as_nanos() as u64
            });
        if due {
            self.policies.looked = Some((clock_ns, live));
        }
        due
    }

    fn trim_by_policies(&mut self, files: &mut Files) -> Result<bool, TrimTrouble> {
        let shared = &*self.shared;
        let mut trimmed = false;
        if let Some(bytes) = self.policies.retain_bytes {
            let epoch = retention::first_within(shared, files, bytes)?;
            let bound = if self.policies.past_cursors { Bound::Durable } else { Bound::Cursors };
            trimmed |= retention::trim_segments(shared, files, epoch, bound)?;
        }
        if let Some(age_ns) = self.policies.retain_age_ns {
            let oldest_ns = shared.clock.wall_ns().saturating_sub(age_ns);
            let epoch = retention::first_younger(shared, files, oldest_ns)?;
            trimmed |= retention::trim_segments(shared, files, epoch, Bound::Cursors)?;
        }
        Ok(trimmed)
    }
}
