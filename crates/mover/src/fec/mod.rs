//! Parity where latency matters: lost datagrams are rebuilt by the receiver, without a round trip
//! (claims 18-23 stay as they are).
//!
//! Works on whole datagrams by their physical numbers. Those that carry urgent payloads are
//! *protected*: both sides keep their plain bytes for a moment. A few milliseconds later, so that
//! one burst of losses does not take both, the sender adds *parity rows* over them; of a lone
//! datagram that is a copy. A datagram that the receiver rebuilds counts as received: nobody sends
//! it again, but the acknowledgement tells how many were rebuilt, because they are losses all the
//! same (RFC 9265).
//!
//! `protect` is the sender's side, with `estimate` (how much the path loses) and `budget` (what
//! parity may cost); `rebuild` is the receiver's; `field` is the arithmetic, `gaps` how a row names
//! its datagrams. Bulk is not protected: for throughput, repairs are optimal.

mod budget;
mod estimate;
pub(crate) mod field;
mod gaps;
pub(crate) mod protect;
pub(crate) mod rebuild;

/// Length in front of the bytes of a shard: datagrams differ in length, and rows are as long as the
/// longest.
const SHARD_PREFIX: usize = 2;
/// What a parity subfield needs beside the longest datagram's bytes: a protected datagram leaves it
/// free.
pub(crate) const RESERVE: usize = crate::subfield::PARITY_HEADER + gaps::MOST_BYTES + SHARD_PREFIX;

#[cfg(test)]
mod tests;
