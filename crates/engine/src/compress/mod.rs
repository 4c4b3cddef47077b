//! The compression engine (claims 17 and 32): buffers are compressed one by one, when it pays, at
//! the level that pays best at the moment.
//!
//! [`shrink`] is the sender's side, which alone decides; what it did stands in the buffer, so the
//! sides cannot disagree. [`expand`] is the other one. A buffer may refer to a dictionary: bytes of
//! earlier buffers of the same direction. The sender proposes one, and uses it when the receiver
//! has said that it holds all of it. So a lost datagram never keeps another buffer from being read.
//! `docs/wire.md` section 4 has the bytes.

mod expand;
mod shrink;
mod work;

pub(crate) use expand::Expander;
pub(crate) use shrink::{How, Proposal, Record, Shrinker};
pub(crate) use work::Made;
pub use work::{Work, Worked};

/// Function type of the routing header: messages, compressed.
pub(crate) const COMPRESSED: u8 = 2;
/// Bytes in front of what zstd wrote: routing header, number, length when taken apart.
pub(crate) const HEADER: usize = 16;
/// The four bytes with which every zstd frame begins (RFC 8878 section 3.1.1); they are not sent.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Whether a compressed payload names no more messages than it has bytes. Zstd makes thousands of
/// like messages from some tens of bytes; who takes them apart would have as much to do for one
/// datagram as otherwise for thousands.
fn is_worth_its_messages(payload: &[u8]) -> bool {
    usize::from(u16::from_be_bytes([payload[2], payload[3]])) <= payload.len()
}

/// What is asked of compression, by a peer's or a rule's `compress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compress {
    /// Whatever is fastest at the moment.
    #[default]
    Auto,
    /// Nothing is compressed.
    Off,
    /// This level of zstd, 1 to 6, for all that shrinks.
    Level(u8),
}

/// How compression is used towards a peer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compression {
    /// Of flows whose rule says nothing of it.
    pub compress: Compress,
    /// Each buffer by itself, and none that holds messages of several flows: nothing can be learned
    /// about one flow from the size of another.
    pub isolated: bool,
    /// What a byte costs on this machine at zstd's levels 1, 3, 6 and 9, nanoseconds.
    pub costs: [f64; 4],
}

/// The levels of zstd that `auto` chooses from.
const LEVELS: [i32; 4] = [1, 3, 6, 9];

impl Default for Compression {
    fn default() -> Compression {
        // As measured on one core of an EPYC, text in buffers of 16 KiB.
        Compression {
            compress: Compress::Auto,
            isolated: false,
            costs: [2.0, 2.6, 7.0, 20.0],
        }
    }
}

impl Compression {
    /// Measures what a byte costs here, with the given stopwatch, in some milliseconds.
    pub fn measured(
        isolated: bool,
        mut stopwatch: impl FnMut(&mut dyn FnMut()) -> std::time::Duration,
    ) -> Compression {
        let text = shrink::sample();
        let mut costs = [0.0; LEVELS.len()];
        for (level, cost) in LEVELS.iter().zip(&mut costs) {
            // The best of three: what else the machine does is not the level's cost.
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let took = stopwatch(&mut || shrink::try_level(&text, *level));
                best = best.min(took.as_secs_f64() * 1e9 / text.len() as f64);
            }
            *cost = best;
        }
        Compression {
            compress: Compress::Auto,
            isolated,
            costs,
        }
    }
}

#[cfg(test)]
mod tests;
