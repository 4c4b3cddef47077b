//! What can be wrong with a datagram of a session: facts for the counters, never a reason to panic.

use thiserror::Error;

/// A subfield that the wire does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(crate) enum ParseError {
    /// Fewer bytes than the fixed part of a subfield needs.
    #[error("subfield cut off: {need} bytes needed, {have} there")]
    Short {
        /// Bytes that the subfield needs.
        need: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// The subfield's own length is smaller than its fixed part or reaches beyond the datagram.
    #[error("subfield of type {kind} says it has {length} bytes")]
    Length {
        /// The type code.
        kind: u8,
        /// The length found in it.
        length: usize,
    },
    /// No such type code.
    #[error("subfield of unknown type {0}")]
    Kind(u8),
    /// A data subfield names another physical number than the datagram's header.
    #[error("data subfield of another datagram")]
    Physical,
    /// A segment that does not lie inside its payload, or a payload too large or empty.
    #[error("segment at {offset}+{length} of a payload of {size} bytes")]
    Segment {
        /// Where it starts.
        offset: usize,
        /// Its length.
        length: usize,
        /// The payload's size.
        size: usize,
    },
    /// The flags of an acknowledgement end inside a token.
    #[error("acknowledgement flags cut off")]
    Words,
}

/// Why a datagram did not open. A fact about the network, to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum OpenError {
    /// Too short for header and tag, or not a session datagram.
    #[error("no session datagram of {length} bytes")]
    Form { length: usize },
    /// Not the index that this side chose for this session.
    #[error("session index {found:#08x} is not ours")]
    Index { found: u32 },
    /// Neither the phase before, nor the present, nor the next.
    #[error("key phase {found} while {current} is in use")]
    Phase { found: u8, current: u8 },
    /// The tag does not fit: forged, damaged, or sealed under another number.
    #[error("the tag does not fit")]
    Tag,
    /// Too many forgeries: this session opens nothing any more and must be replaced.
    #[error("the session has seen its limit of forgeries")]
    Worn,
}

/// Why an acknowledgement was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AckError {
    /// It names a datagram that was never sent.
    Unsent,
    /// Its flags cannot be read.
    Malformed(ParseError),
}
