//! Dictionaries are made beside the data path: to prepare one of some megabytes takes up to thirty
//! milliseconds, which no buffer shall wait for. Whoever owns the peer runs the work on another
//! thread, or at once where time does not count, and gives the result back.

use std::{fmt, sync::Arc};

use zstd_safe::{CDict, DDict};

/// A dictionary to be made.
pub struct Work {
    pub(super) make: Make,
    /// Buffers of which it is made, in order.
    pub(super) parts: Vec<Arc<[u8]>>,
}

/// For which side, and which one it is: results of earlier sessions may still come.
#[derive(Debug, Clone, Copy)]
pub(super) enum Make {
    Compress { serial: u64, level: i32 },
    Decompress { serial: u64 },
}

/// A dictionary that is made.
pub struct Worked(pub(crate) Made);

pub(crate) enum Made {
    Compress {
        serial: u64,
        dictionary: CDict<'static>,
    },
    Decompress {
        serial: u64,
        dictionary: DDict<'static>,
    },
}

impl Work {
    /// Bytes of which it is made.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Makes it: some milliseconds for each megabyte.
    pub fn run(self) -> Worked {
        let bytes = self.parts.concat();
        Worked(match self.make {
            Make::Compress { serial, level } => Made::Compress {
                serial,
                dictionary: CDict::create(&bytes, level),
            },
            Make::Decompress { serial } => Made::Decompress {
                serial,
                dictionary: DDict::create(&bytes),
            },
        })
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("make", &self.make)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Worked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worked").finish_non_exhaustive()
    }
}
