//! What a flow's recent buffers did when they were compressed, and what is expected of the next.

use super::level::{FINER, between};
use crate::CompressionStats;

/// A flow whose buffer did not shrink is left alone for this many times the buffer's bytes, doubled
/// with each failure.
const BACK_OFF: usize = 4;

/// Bytes for which a flow is left alone at most.
const MOST_BACK_OFF: usize = 4 << 20;

/// Size after compression, relative to before, that is expected of a flow of which nothing is
/// known, and of one that is tried again. With less hope no fast link would ever try.
const HOPE: f64 = 0.3;

/// Of a buffer for which somebody waits, the ratio is taken to be worse than it was by this factor,
/// so that it does not need another datagram.
const CAREFUL: f64 = 0.75;

/// Bytes that are taken to come out of one byte of room at most, of a buffer for which somebody
/// waits: a wrong guess costs another datagram.
const MOST_CAREFUL: f64 = 8.0;

/// The same of any other buffer: a wrong guess costs memory for a moment.
const MOST_STRETCH: f64 = 20.0;

/// What a flow's recent buffers did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    /// Size after compression at the first level, relative to before, smoothed.
    ratio: f64,
    /// Bytes for which the flow is left alone.
    skip: usize,
    /// Buffers that did not shrink since the last one that did.
    failures: u32,
    /// One buffer has shrunk.
    known: bool,
    pub(crate) compression: CompressionStats,
}

impl Default for Record {
    fn default() -> Record {
        Record {
            ratio: HOPE,
            skip: 0,
            failures: 0,
            known: false,
            compression: CompressionStats::default(),
        }
    }
}

impl Record {
    /// Whether the flow is left alone for the next buffer, of `bytes`, which counts as passed over
    /// then.
    pub(super) fn pass_over(&mut self, bytes: usize) -> bool {
        let passes = self.skip > 0;
        self.skip = self.skip.saturating_sub(bytes);
        passes
    }

    /// Whether the last buffer that was tried did not shrink: the next one is an experiment, at the
    /// lowest level.
    pub(super) fn is_experiment(&self) -> bool {
        self.failures > 0
    }

    /// The ratio that is expected of the next buffer at the first level.
    pub(super) fn expected(&self) -> f64 {
        if self.is_experiment() {
            HOPE
        } else {
            self.ratio
        }
    }

    /// A buffer was tried. `ratio`: what it would have been at the first level.
    pub(super) fn on_tried(&mut self, ratio: f64) {
        self.ratio = if self.is_experiment() {
            ratio
        } else {
            self.ratio + (ratio - self.ratio) / 4.0
        };
    }

    /// A buffer of `bytes` did not shrink.
    pub(super) fn on_failure(&mut self, bytes: usize) {
        self.skip = ((BACK_OFF * bytes) << self.failures.min(16)).min(MOST_BACK_OFF);
        self.failures += 1;
    }

    /// A buffer has shrunk.
    pub(super) fn on_success(&mut self) {
        (self.failures, self.known) = (0, true);
    }

    /// How many bytes of the flow come out of one byte of room at this level, if its buffers are
    /// known to shrink. `urgent`: somebody waits for the buffer.
    pub(super) fn stretch(&self, level: i32, urgent: bool) -> Option<f64> {
        let (caution, most) = if urgent {
            (CAREFUL, MOST_CAREFUL)
        } else {
            (1.0, MOST_STRETCH)
        };
        let ratio = self.ratio * between(&FINER, level);
        (self.known && !self.is_experiment()).then(|| (caution / ratio).clamp(1.0, most))
    }
}
