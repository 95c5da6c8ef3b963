//! Aligned buffers for direct I/O, on huge pages where they are large.
/// stub
pub(crate) struct AlignedBuf;
