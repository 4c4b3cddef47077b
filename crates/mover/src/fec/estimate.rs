//! How much a path loses, and in which bursts: what parity is measured by.
//!
//! The sender reports what arrived and what did not. Whole paths are forgotten: a stretch without
//! a loss that is long beyond chance says that the path is another now.

use crate::congestion::Lost;

/// Believed of a path that nobody has measured yet: one datagram of a hundred lost, and no more
/// weight than half of that, so that a clean path is known as one after a few thousand datagrams.
const PRIOR_DATAGRAMS: f64 = 50.0;
const PRIOR_LOST: f64 = 0.5;
/// Datagrams that the measured loss remembers.
const MEMORY: f64 = 16_000.0;
/// Probability below which a stretch without a loss is no chance: the path is another now. What
/// start-up pushed over the brim of its own queue is forgotten so.
const BY_CHANCE: f64 = 1e-3;
/// Standard deviations of the upper bound: 95 %, one-sided.
const CONFIDENCE: f64 = 1.64;
/// Losses from which on the mean length of bursts is believed.
const BURSTS_FROM: f64 = 10.0;

/// What was counted; all in datagrams.
pub(super) struct LossEstimate {
    delivered: f64,
    lost: f64,
    /// Losses, and the runs of consecutive numbers that they came in.
    losses: f64,
    runs: f64,
    last_lost: u64,
    /// Counted up to the last loss, and arrived since.
    known: f64,
    clean: f64,
}

impl LossEstimate {
    pub(super) fn new() -> LossEstimate {
        LossEstimate {
            delivered: PRIOR_DATAGRAMS - PRIOR_LOST,
            lost: PRIOR_LOST,
            losses: 0.0,
            runs: 0.0,
            last_lost: u64::MAX - 1,
            known: 0.0,
            clean: 0.0,
        }
    }

    /// `delivered` datagrams arrived, and these did not.
    pub(super) fn on_outcome(&mut self, delivered: u64, lost: &[Lost]) {
        self.delivered += delivered as f64;
        self.clean += delivered as f64;
        for loss in lost {
            self.lost += 1.0;
            self.losses += 1.0;
            if loss.number != self.last_lost + 1 {
                self.runs += 1.0;
            }
            self.last_lost = loss.number;
        }
        if !lost.is_empty() {
            (self.known, self.clean) = (self.delivered + self.lost, 0.0);
        } else if self.is_refuted() {
            (self.delivered, self.lost, self.losses, self.runs) =
                (self.clean.min(MEMORY), PRIOR_LOST, 0.0, 0.0);
        }
        if self.delivered + self.lost > MEMORY {
            for count in [
                &mut self.delivered,
                &mut self.lost,
                &mut self.losses,
                &mut self.runs,
                &mut self.known,
            ] {
                *count /= 2.0;
            }
        }
    }

    /// Is nothing lost any more? That is so when it is improbable that the datagrams since the last
    /// loss had no run of losses, given the runs in those before. (Losses are a Poisson process
    /// whose rate has the gamma distribution that the runs give it.)
    fn is_refuted(&self) -> bool {
        self.runs > 0.0 && (self.known / (self.known + self.clean)).powf(self.runs) < BY_CHANCE
    }

    /// The share of datagrams that this path loses at most (Wilson's upper bound).
    pub(super) fn loss(&self) -> f64 {
        let count = self.delivered + self.lost;
        let (share, z) = (self.lost / count, CONFIDENCE);
        let middle = share + z * z / (2.0 * count);
        let spread = z * (share * (1.0 - share) / count + z * z / (4.0 * count * count)).sqrt();
        (middle + spread) / (1.0 + z * z / count)
    }

    /// The mean length of the runs of losses.
    pub(super) fn burst(&self) -> f64 {
        if self.losses < BURSTS_FROM {
            1.0
        } else {
            self.losses / self.runs.max(1.0)
        }
    }
}
