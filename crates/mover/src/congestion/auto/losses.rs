//! Is a round's loss too much? Loss judged over enough datagrams, outside of attempts to go up.

use super::loss_floor::LossFloor;
use super::sampler::{Round, Tally};

/// Loss is judged over 400 datagrams, or a round if that is more. Of many smaller looks some would
/// see too much by chance: at a product of 33 datagrams, about one in a second.
const JUDGED_DATAGRAMS: u64 = 400;
/// Heavy loss: more than 20 % of a round. Two such rounds in a row end startup if a queue stands.
const HEAVY_PERCENT: u64 = 20;
/// A round of 60 datagrams or fewer is too small to call its loss heavy.
const HEAVY_DATAGRAMS: u64 = 60;

/// Counts what is not judged yet.
#[derive(Default)]
pub(super) struct Losses {
    /// Since loss was judged last.
    unjudged: Tally,
    /// Rounds with heavy loss in a row.
    heavy_rounds: u32,
}

impl Losses {
    /// A round is over, whatever was done in it.
    pub(super) fn on_round(&mut self, round: &Round, datagram: u64) {
        let total = round.tally.total();
        let heavy =
            round.tally.lost * 100 > HEAVY_PERCENT * total && total > HEAVY_DATAGRAMS * datagram;
        self.heavy_rounds = if heavy { self.heavy_rounds + 1 } else { 0 };
    }

    pub(super) fn heavy_rounds(&self) -> u32 {
        self.heavy_rounds
    }

    /// Did this round and those not yet judged before it lose more than the loss floor explains?
    /// Short rounds are judged together.
    pub(super) fn judge(
        &mut self,
        tally: Tally,
        floor: &LossFloor,
        datagram: u64,
        queued: bool,
    ) -> bool {
        self.unjudged.add(tally);
        if self.unjudged.total() < JUDGED_DATAGRAMS * datagram {
            return false;
        }
        let judged = std::mem::take(&mut self.unjudged);
        floor.is_exceeded(judged, datagram, queued)
    }

    /// What is not judged yet has found its reason.
    pub(super) fn forget(&mut self) {
        self.unjudged = Tally::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM: u64 = 1_000;

    fn tally(delivered: u64, lost: u64) -> Tally {
        Tally {
            delivered: delivered * DATAGRAM,
            lost: lost * DATAGRAM,
        }
    }

    #[test]
    fn small_rounds_are_judged_together() {
        let floor = LossFloor::new(0.0);
        let mut losses = Losses::default();
        let mut judge = |tally| losses.judge(tally, &floor, DATAGRAM, false);
        assert!(!judge(tally(100, 99)), "too few to say");
        assert!(judge(tally(150, 51)), "150 of 400");
        assert!(!judge(tally(400, 0)), "and then they are forgotten");
    }
}
