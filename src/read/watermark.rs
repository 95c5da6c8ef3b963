//! Who tells a reader what is durable.

use std::sync::Arc;

use crate::commit::Level;
use crate::disk::Store;
use crate::error::ReadError;
use crate::recovery;
use crate::shared::Shared;

/// Who tells what is durable.
pub(crate) enum Watermark {
    /// The log, which this process writes to.
    Live(Arc<Shared>),
    /// Somebody who knows.
    Told(Box<dyn Fn() -> u64 + Send + Sync>),
    /// The log's own batches: what they vouch for.
    Vouched(Arc<dyn Store>),
}

impl Watermark {
    /// Everything up to this number is durable. It goes back only when the log is truncated.
    pub(super) fn durable(&mut self) -> Result<u64, ReadError> {
        match self {
            Watermark::Live(shared) => Ok(shared.commit.watermark(Level::Synced)),
            Watermark::Told(durable) => Ok(durable()),
            Watermark::Vouched(store) => recovery::vouched_lsn(&**store),
        }
    }

    /// The log, where this process writes to it.
    pub(super) fn live(&self) -> Option<&Arc<Shared>> {
        match self {
            Watermark::Live(shared) => Some(shared),
            _ => None,
        }
    }

    /// Whether asking costs so much that a cheap look comes first, whether there is anything new.
    pub(super) fn is_costly(&self) -> bool {
        matches!(self, Watermark::Vouched(_))
    }
}
