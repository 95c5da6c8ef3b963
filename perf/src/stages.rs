//! Where the time of an append goes: what each stage is, and how the log is asked.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use uringlog::{Log, Lsn};

use crate::latencies::Latencies;

/// Latencies of appends by stage. They follow one another: for one record their sum is the time from the
/// call until its thread goes on. To two digits: there is a set for every thread.
#[derive(Clone, Debug)]
pub struct Stages {
    /// Room was found in a ring.
    pub claim: Latencies,
    /// From there: copied, checksummed, numbered, and the writer can see it.
    pub publish: Latencies,
    /// From there until the writer had gathered it: the header of its batch was made.
    pub drain: Latencies,
    /// From there until the batch was handed to the disk.
    pub submit: Latencies,
    /// From there until it was written and synced, and acknowledged.
    pub complete: Latencies,
    /// From there until the thread that waits for it ran.
    pub wake: Latencies,
    /// Not a stage of its own: the whole call of append (claim and publish, and waking the writer where it
    /// sleeps), the timer's own cost taken off.
    pub append_returns: Latencies,
}

/// A stage's name, what it is, and how to get at it.
pub struct Stage {
    /// One word.
    pub name: &'static str,
    /// What happens in it.
    pub what: &'static str,
    /// Its latencies.
    pub of: fn(&Stages) -> &Latencies,
}

/// All stages, in their order.
pub const STAGES: [Stage; 6] = [
    Stage { name: "claim", what: "room is found in a ring", of: |s| &s.claim },
    Stage {
        name: "publish",
        what: "copied, checksummed, numbered, shown to the writer",
        of: |s| &s.publish,
    },
    Stage { name: "drain", what: "until the writer gathered it into a batch", of: |s| &s.drain },
    Stage { name: "submit", what: "until the batch was handed to the disk", of: |s| &s.submit },
    Stage { name: "complete", what: "until the batch was written and synced", of: |s| &s.complete },
    Stage { name: "wake", what: "until the thread that waits went on", of: |s| &s.wake },
];

impl Default for Stages {
    fn default() -> Self {
        Self::new()
    }
}

impl Stages {
    /// Nothing yet.
    pub fn new() -> Self {
        let none = Latencies::coarse;
        Stages {
            claim: none(),
            publish: none(),
            drain: none(),
            submit: none(),
            complete: none(),
            wake: none(),
            append_returns: none(),
        }
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        let Stages { claim, publish, drain, submit, complete, wake, append_returns } = self;
        for stage in [claim, publish, drain, submit, complete, wake, append_returns] {
            stage.clear();
        }
    }

    /// Adds all of `other`'s.
    pub fn add(&mut self, other: &Stages) {
        self.claim.add(&other.claim);
        self.publish.add(&other.publish);
        self.drain.add(&other.drain);
        self.submit.add(&other.submit);
        self.complete.add(&other.complete);
        self.wake.add(&other.wake);
        self.append_returns.add(&other.append_returns);
    }

    /// Splits up what record `lsn` took, where the log still knows its batch: published at
    /// `published`, and its thread went on at `woken`.
    pub fn split(&mut self, log: &Log, lsn: Lsn, published: Instant, woken: Option<Instant>) {
        let Some(batch) = log.batch_timing(lsn) else { return };
        self.drain.record(batch.sealed.saturating_duration_since(published));
        self.submit.record(batch.submitted.saturating_duration_since(batch.sealed));
        self.complete.record(batch.durable.saturating_duration_since(batch.submitted));
        if let Some(woken) = woken {
            self.wake.record(woken.saturating_duration_since(batch.durable));
        }
    }

    /// The stages' percentiles in us; those that nothing is known of are left out.
    pub fn to_json_us(&self) -> Value {
        let known = STAGES.iter().filter(|stage| (stage.of)(self).count() > 0);
        let object: Map<String, Value> =
            known.map(|stage| (stage.name.to_owned(), (stage.of)(self).to_json_us())).collect();
        json!(object)
    }

    /// Records how long a whole call took.
    pub(crate) fn append_returned(&mut self, took: Duration, timer: Duration) {
        self.append_returns.record(took.saturating_sub(timer));
    }
}
