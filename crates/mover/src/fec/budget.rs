//! What parity may cost: a share of the bytes that leave, saved up for a while.

use crate::timer::{MILLISECOND, Nanos, SECOND};

/// Parity's share of the bytes that leave: one part of 16, which is 6 % in the long run, so that a
/// stream with all its headers stays within 15 %. What is short is protected from [`MOST`].
const SHARE: u64 = 16;
/// The share when bulk waits for what parity takes: 5 %.
const SHARE_SATURATED: u64 = 20;
/// The share where losses come in bursts of [`LONG_BURSTS`]: they take more than rows bring back,
/// and what is repaired counts as well.
pub(super) const SHARE_IN_BURSTS: u64 = 24;
/// The mean length of bursts of losses from which on they are long, datagrams.
const LONG_BURSTS: f64 = 3.0;
/// The share beside [`SHARE`], while nothing else waits, for blocks that have ended: a short answer
/// cannot wait for its share as a stream can. Together 15 %.
const SHARE_ENDED: u64 = 12;
/// Parity that is always allowed, bytes per second, so that a few messages are protected on any
/// link.
const ALWAYS: u64 = 32_000;
/// Bytes of parity that may leave at once after a rest: an answer of 64 kB, protected.
pub(super) const MOST: i64 = 24_000;
/// On a slow link not more than it carries in this time: there the rest of the answer would wait
/// for parity longer than it is likely to wait for a repair.
const MOST_TIME: Nanos = 20 * MILLISECOND;
/// On any link, bytes: two full datagrams.
const LEAST: i64 = 3_000;

/// What may be spent now, in bytes.
pub(super) struct Budget {
    left: i64,
    /// What only blocks that have ended may use, beside it.
    for_ended: i64,
    most: i64,
    at: Nanos,
}

impl Budget {
    pub(super) fn new(now: Nanos) -> Budget {
        Budget {
            left: MOST,
            for_ended: 0,
            most: MOST,
            at: now,
        }
    }

    /// `bytes` on the wire left: parity earns its share of them. `burst`: the mean length of runs
    /// of losses. `saturated`: more waits to leave. `rate`: what may leave, bytes per second.
    pub(super) fn on_sent(
        &mut self,
        bytes: u64,
        burst: f64,
        saturated: bool,
        rate: u64,
        now: Nanos,
    ) {
        let elapsed = now.saturating_sub(self.at).min(SECOND);
        self.at = now;
        let earned = bytes / share(burst, saturated) + ALWAYS * elapsed / SECOND;
        if earned == 0 && elapsed > 0 {
            // Too little time to count: it counts the next time.
            self.at -= elapsed;
        }
        let most = (u128::from(rate) * u128::from(MOST_TIME) / u128::from(SECOND)) as i64;
        self.most = most.clamp(LEAST, MOST);
        self.left = (self.left + earned as i64).min(self.most);
        if !saturated {
            self.for_ended = (self.for_ended + (bytes / SHARE_ENDED) as i64).min(self.most);
        }
    }

    /// Bytes that a block may cost. `ended`: it may use what only such blocks may.
    pub(super) fn available(&self, ended: bool) -> usize {
        let more = if ended { self.for_ended } else { 0 };
        usize::try_from(self.left + more).unwrap_or(0)
    }

    /// Less than a half is left: the first row of a block is worth most.
    pub(super) fn is_scarce(&self) -> bool {
        self.left + self.for_ended < self.most / 2
    }

    /// A block costs `bytes`, which were available.
    pub(super) fn spend(&mut self, bytes: usize, ended: bool) {
        let bytes = bytes as i64;
        let own = if ended { bytes.min(self.for_ended) } else { 0 };
        self.for_ended -= own;
        self.left -= bytes - own;
    }

    /// Takes `bytes` if there are as many.
    pub(super) fn pay(&mut self, bytes: u64) -> bool {
        let pays = self.left >= bytes as i64;
        if pays {
            self.left -= bytes as i64;
        }
        pays
    }
}

fn share(burst: f64, saturated: bool) -> u64 {
    if burst >= LONG_BURSTS {
        SHARE_IN_BURSTS
    } else if saturated {
        SHARE_SATURATED
    } else {
        SHARE
    }
}
