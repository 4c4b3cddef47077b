//! Which level of zstd pays best.
//!
//! A byte gets through at the lower of two speeds: that of the link, which compression multiplies,
//! and that of the CPU, which it divides. The level is taken at which it gets through fastest.

use zstd_safe::{CCtx, compress_bound};

use crate::config::FINEST_BELOW;

/// The levels of zstd that `auto` chooses from.
pub(super) const LEVELS: [i32; 4] = [1, 3, 6, 9];

/// Size after compression at each level, relative to the first (measured over text and binaries).
pub(super) const FINER: [f64; LEVELS.len()] = [1.0, 0.93, 0.86, 0.83];

/// What packing and sending a byte costs beside compression, nanoseconds.
const OTHERWISE: f64 = 1.5;

/// The level's cost counts twice: the core has more to do, and other lanes.
const CAUTION: f64 = 2.0;

/// What is known for the levels that are chosen from, for any level.
pub(super) fn between(known: &[f64; LEVELS.len()], level: i32) -> f64 {
    let above = LEVELS
        .iter()
        .position(|known| *known >= level)
        .unwrap_or(LEVELS.len() - 1);
    let below = above.saturating_sub(1);
    let (from, to) = (f64::from(LEVELS[below]), f64::from(LEVELS[above]));
    let share = if above == below {
        1.0
    } else {
        (f64::from(level) - from) / (to - from)
    };
    known[below] + (known[above] - known[below]) * share
}

/// The level at which a byte gets through fastest, by its place among [`LEVELS`]; none:
/// uncompressed. `costs`: nanoseconds for each byte at each level; `ratio`: size after compression
/// at the first level; `rate`: what the link takes, bytes per second.
pub(super) fn choose(costs: &[f64; LEVELS.len()], ratio: f64, rate: u64) -> Option<usize> {
    let speed =
        |ratio: f64, cost: f64| (rate as f64 / ratio).min(1e9 / (OTHERWISE + CAUTION * cost));
    let mut best = (speed(1.0, 0.0), None);
    // The finest takes two milliseconds for a large buffer, in which nothing else leaves.
    let levels = if rate > FINEST_BELOW {
        LEVELS.len() - 1
    } else {
        LEVELS.len()
    };
    for level in 0..levels {
        let speed = speed(
            if ratio < 1.0 {
                ratio * FINER[level]
            } else {
                ratio
            },
            costs[level],
        );
        // A hundredth faster is not worth the CPU.
        if speed > best.0 * 1.01 {
            best = (speed, Some(level));
        }
    }
    best.1
}

/// Some text of 32 KiB to measure with: words of changing length, some of them again and again.
pub(super) fn sample() -> Vec<u8> {
    let mut state = 1_u64;
    let mut text = Vec::with_capacity(33 << 10);
    while text.len() < 32 << 10 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let word = state >> 40;
        // Small numbers are frequent.
        text.extend_from_slice(format!("{:x} ", (word * word) >> 36).as_bytes());
    }
    text
}

/// Compresses once at a level, for the stopwatch.
pub(super) fn try_once(text: &[u8], level: i32) {
    let mut out = vec![0; compress_bound(text.len())];
    // What it gives does not matter.
    let _ = CCtx::create().compress(&mut out[..], text, level);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Compression;

    #[test]
    fn a_slow_link_deserves_the_best_level_and_a_fast_one_none() {
        let costs = Compression::default().costs;
        let at = |mbit: u64, ratio| choose(&costs, ratio, mbit * 125_000);
        assert_eq!(at(2, 0.3), Some(3));
        assert_eq!(at(20, 0.3), Some(2));
        assert!(
            at(1_000, 0.3).is_some_and(|level| level < 2),
            "{:?}",
            at(1_000, 0.3)
        );
        assert_eq!(at(10_000, 0.3), None);
        assert_eq!(at(2, 1.1), None, "what does not shrink");
    }

    #[test]
    fn what_lies_between_the_levels_is_guessed() {
        let costs = [2.0, 4.0, 7.0, 13.0];
        let at = |level| between(&costs, level);
        assert_eq!([1, 2, 3, 4, 6, 9].map(at), [2.0, 3.0, 4.0, 5.0, 7.0, 13.0]);
    }
}
