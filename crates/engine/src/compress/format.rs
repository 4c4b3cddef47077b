//! A compressed payload on the wire, as far as both directions must know it.

/// Function type of the routing header: messages, compressed.
pub(crate) const COMPRESSED: u8 = 2;

/// Bytes in front of what zstd wrote: routing header, the buffer's number, its length when
/// decompressed.
pub(crate) const HEADER: usize = 16;

/// The four bytes with which every zstd frame begins (RFC 8878 section 3.1.1); they are not sent.
pub(super) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A dictionary that the receiver is asked to make: from the buffers with these numbers, in this
/// order. The last one may be yet to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proposal {
    /// The dictionary's number, not zero.
    pub(crate) generation: u8,
    pub(crate) first: u32,
    pub(crate) last: u32,
}

/// Whether a compressed payload names no more messages than it has bytes. Zstd makes thousands of
/// like messages from some tens of bytes; who takes them apart would have as much to do for one
/// datagram as otherwise for thousands.
pub(super) fn is_worth_its_messages(payload: &[u8]) -> bool {
    usize::from(u16::from_be_bytes([payload[2], payload[3]])) <= payload.len()
}
