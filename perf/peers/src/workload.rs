//! The work that every peer is given.

/// What is asked of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Append a record, wait until it is on the device, and again.
    Durable,
    /// The same with 64 records by one call.
    Batch,
    /// Append without waiting, and have all of it on the device at the end.
    Stream,
    /// Append without waiting, at a steady pace: what the call costs its caller.
    Submit,
}

/// One row of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    pub name: &'static str,
    pub kind: Kind,
    pub threads: usize,
    pub record_bytes: usize,
}

/// Records of one batch.
pub const BATCH_RECORDS: usize = 64;
/// Submits a second.
pub const SUBMIT_RATE: f64 = 100_000.0;
/// A stream ends when it has so many bytes, if its time is not over before.
pub const STREAM_BYTES_MAX: u64 = 384 << 20;

/// All of it.
pub const WORKLOADS: [Workload; 8] = [
    of("durable-1", Kind::Durable, 1, 256),
    of("durable-8", Kind::Durable, 8, 256),
    of("durable-32", Kind::Durable, 32, 256),
    of("batch-1", Kind::Batch, 1, 256),
    of("batch-8", Kind::Batch, 8, 256),
    of("stream-256", Kind::Stream, 1, 256),
    of("stream-4096", Kind::Stream, 1, 4096),
    of("submit", Kind::Submit, 1, 256),
];

const fn of(name: &'static str, kind: Kind, threads: usize, record_bytes: usize) -> Workload {
    Workload { name, kind, threads, record_bytes }
}

impl Workload {
    /// The work with this name.
    pub fn named(name: &str) -> Option<Workload> {
        WORKLOADS.into_iter().find(|workload| workload.name == name)
    }

    /// What it is, for people.
    pub fn told(&self) -> String {
        let (threads, bytes) = (self.threads, self.record_bytes);
        let threads =
            if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        match self.kind {
            Kind::Durable => format!("Durable appends of {bytes} B, {threads}, closed loop"),
            Kind::Batch => {
                format!("Durable batches of {BATCH_RECORDS} x {bytes} B, {threads}, closed loop")
            }
            Kind::Stream => {
                format!("Stream of {bytes} B records, {threads}, on the device at the end")
            }
            Kind::Submit => {
                let rate = SUBMIT_RATE as u64;
                format!("Submit latency: {bytes} B, {threads}, {rate} a second, nobody waits")
            }
        }
    }
}
