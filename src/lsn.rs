//! [`Lsn`]: the number of a record, its key and its place in time.

use core::fmt;

/// A log sequence number: the position of one record in the log's total order.
///
/// The first record of a log is number 1 and numbers are dense: no number is skipped. [`Lsn::NONE`]
/// (0) stands before the first record, and is what [`Log::durable_lsn`](crate::Log::durable_lsn)
/// returns for an empty log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Lsn(u64);

impl Lsn {
    /// Before the first record; the number of no record.
    pub const NONE: Lsn = Lsn(0);
    /// The number of a log's first record.
    pub const FIRST: Lsn = Lsn(1);

    /// The number with this value.
    pub const fn new(value: u64) -> Self {
        Lsn(value)
    }

    /// The value of the number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of the next record. Saturates at `u64::MAX`, which no log reaches.
    #[must_use]
    pub const fn next(self) -> Self {
        Lsn(self.0.saturating_add(1))
    }

    /// The number of the record before; [`Lsn::NONE`] for the first.
    #[must_use]
    pub const fn prev(self) -> Self {
        Lsn(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<u64> for Lsn {
    fn from(value: u64) -> Self {
        Lsn(value)
    }
}

impl From<Lsn> for u64 {
    fn from(lsn: Lsn) -> Self {
        lsn.0
    }
}
