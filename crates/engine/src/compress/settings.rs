//! What is asked of compression, towards a peer and by a rule.

use super::level::{self, LEVELS};
use crate::Treatment;

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

/// How one buffer is to be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct How {
    pub(crate) compress: Compress,
    /// It shares nothing with other buffers.
    pub(crate) isolated: bool,
}

impl How {
    /// Whether a buffer that holds this beside something else stays uncompressed.
    pub(crate) fn keeps_apart(self) -> bool {
        self.isolated || self.compress == Compress::Off
    }
}

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
    /// Measures what a byte costs here, with the given stopwatch, in some milliseconds. The
    /// stopwatch runs what it is given and says how long that took.
    pub fn measured(
        isolated: bool,
        mut stopwatch: impl FnMut(&mut dyn FnMut()) -> std::time::Duration,
    ) -> Compression {
        let text = level::sample();
        let mut costs = [0.0; LEVELS.len()];
        for (level, cost) in LEVELS.iter().zip(&mut costs) {
            // The best of three: what else the machine does is not the level's cost.
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let took = stopwatch(&mut || level::try_once(&text, *level));
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

    /// How a flow's buffers are compressed, by its rule and what is set for the peer. What the far
    /// side's rule asks for counts unless compression is switched off here.
    pub(crate) fn of_flow(&self, asked: &Treatment, ours: bool) -> How {
        let compress = if self.compress == Compress::Off && !ours {
            Compress::Off
        } else {
            asked.compress.unwrap_or(self.compress)
        };
        How {
            compress,
            isolated: self.isolated || asked.isolated,
        }
    }

    /// How a buffer is compressed that holds messages of several flows, or of none. `apart`: one of
    /// them does not share its compression.
    pub(crate) fn of_many(&self, apart: bool) -> How {
        How {
            compress: self.compress,
            isolated: self.isolated || apart,
        }
    }
}
