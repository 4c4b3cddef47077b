//! Startup: begins with as much as the streams would begin with, doubles the rate each round, and
//! finds out when that is enough.
//!
//! A configured or a remembered rate goes before it; what then is not proved is in `claim.rs`.

use super::early_exit::{Arrival, EarlyExit};
use super::estimate::Estimate;
use super::queue::QueueSensor;
use super::sampler::Round;
use crate::config::RememberedPath;
use crate::congestion::initial::{INITIAL_DATAGRAMS, INITIAL_SPREAD};
use crate::congestion::rate::rate_of;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// First window: 10 datagrams for each stream, what its end's own TCP would begin with (RFC 6928),
/// but not in one burst.
const FLOW_DATAGRAMS: u64 = 10;
/// First window of all streams together: at most 160 datagrams, which is 16 streams' worth
/// (measured in `goodput.rs`, `many_streams_begin_like_as_many_connections`).
const LARGEST_INITIAL_DATAGRAMS: u64 = 160;
/// Gain of startup, thousandths: 4 ln 2, the smallest that doubles the delivery rate each round
/// (BBRStartupPacingGain of draft-ietf-ccwg-bbr).
const STARTUP_GAIN: u64 = 2_770;
/// A round trip below 50 µs is no measure of a rate: two TPOs on one host.
const SHORTEST_RTT: Nanos = MILLISECOND / 20;
/// Startup ends after 8 rounds in which the rate grew by less than a quarter, or after 3 when a
/// queue proves it (3 in draft-ietf-ccwg-bbr; random loss makes single rounds look slow).
const PLATEAU_ROUNDS: u32 = 8;
const PLATEAU_ROUNDS_QUEUED: u32 = 3;
/// A round with fewer than 30 datagrams proves nothing.
const PLATEAU_DATAGRAMS: u64 = 30;
/// Rounds with heavy loss that end startup when a queue stands.
const HEAVY_ROUNDS: u32 = 2;
/// In the first 6 rounds the window may be three products instead of two: what was delivered in the
/// last round says less of what the next may carry, because datagrams come in one burst in each
/// (`goodput.rs`, `startup_leaves_a_queue_when_it_sees_it`).
const EARLY_ROUNDS: u64 = 6;

/// The first window.
enum Initial {
    /// In datagrams. Holds until as much has been delivered.
    Granted(u64),
    /// It has been delivered: from here on the path is known a little.
    Delivered,
}

/// What startup bounds its window by.
pub(super) struct WindowBounds {
    /// The window so far, and all that left the path with this report.
    pub(super) grown: u64,
    /// What acknowledgements hold back, in bytes.
    pub(super) held_back: u64,
    /// The rounds that are over.
    pub(super) rounds: u64,
}

/// The data of the phase.
pub(super) struct Startup {
    /// A remembered path, until the first round trip tells whether this is it.
    remembered: Option<RememberedPath>,
    initial: Initial,
    early_exit: EarlyExit,
    /// The bandwidth from which growth is counted, and the rounds since in which it did not grow.
    plateau: u64,
    plateau_rounds: u32,
}

impl Startup {
    pub(super) fn new(remembered: Option<RememberedPath>, now: Nanos) -> Startup {
        Startup {
            remembered,
            initial: Initial::Granted(INITIAL_DATAGRAMS),
            early_exit: EarlyExit::new(now),
            plateau: 0,
            plateau_rounds: 0,
        }
    }

    /// The path that was remembered, once.
    pub(super) fn take_remembered(&mut self) -> Option<RememberedPath> {
        self.remembered.take()
    }

    /// This number of streams is carried: before anything is known of the path each may begin like
    /// a connection of its own. True if the first window grew.
    pub(super) fn grant(&mut self, flows: u64) -> bool {
        let wanted = (flows * FLOW_DATAGRAMS).min(LARGEST_INITIAL_DATAGRAMS);
        match &mut self.initial {
            Initial::Granted(datagrams) if wanted > *datagrams => {
                *datagrams = wanted;
                true
            }
            Initial::Granted(_) | Initial::Delivered => false,
        }
    }

    /// `delivered` bytes have arrived since the beginning.
    pub(super) fn on_delivered(&mut self, delivered: u64, datagram: u64) {
        if delivered >= self.initial_window(datagram) {
            self.initial = Initial::Delivered;
        }
    }

    /// A round trip was measured.
    pub(super) fn on_rtt(&mut self, arrival: &Arrival, queue: &QueueSensor, path: &Estimate) {
        let above = queue.standing_above(path) - path.min_rtt / 16;
        self.early_exit.on_rtt(arrival, above, path);
    }

    /// A round is over.
    pub(super) fn on_round(&mut self, round: &Round, queue: &QueueSensor, path: &Estimate) {
        let stood = queue.stood_throughout(round, path);
        let few = round.tally.delivered < PLATEAU_DATAGRAMS * path.datagram;
        if !round.full || (few && !stood) {
            return;
        }
        if path.bandwidth >= self.plateau + self.plateau / 4 {
            self.plateau = path.bandwidth;
            self.plateau_rounds = 0;
        } else {
            // A queue that stood for the whole round is all the proof that is needed.
            self.plateau_rounds += if stood { PLATEAU_ROUNDS_QUEUED } else { 1 };
        }
    }

    /// Has startup found out what the path carries? The configured rate (`cap`) is all that is
    /// wanted.
    pub(super) fn is_over(
        &self,
        bandwidth: u64,
        cap: Option<u64>,
        heavy_rounds: u32,
        queue: &QueueSensor,
    ) -> bool {
        let enough = if queue.stands_out() || heavy_rounds > 0 {
            PLATEAU_ROUNDS_QUEUED
        } else {
            PLATEAU_ROUNDS
        };
        self.plateau_rounds >= enough
            || self.early_exit.is_due()
            || cap.is_some_and(|cap| bandwidth >= cap)
            || (heavy_rounds >= HEAVY_ROUNDS && queue.stands_out())
    }

    /// The pacing rate of startup, bytes per second. `smoothed`: the smoothed round trip.
    pub(super) fn rate(&self, bandwidth: u64, smoothed: Option<Nanos>, datagram: u64) -> u64 {
        let smoothed = smoothed.unwrap_or(SECOND).max(SHORTEST_RTT);
        let known = bandwidth.max(rate_of(self.initial_window(datagram), smoothed));
        // When a queue seems to stand, nothing is added to it until that is sure.
        let rate = if self.early_exit.suspects() {
            known
        } else {
            known * STARTUP_GAIN / 1_000
        };
        rate.max(self.first_rate(datagram))
    }

    /// The rate at which many streams begin, so that the last one's first answer waits no longer
    /// than its end could notice. 0: not many.
    pub(super) fn first_rate(&self, datagram: u64) -> u64 {
        match self.initial {
            Initial::Granted(datagrams) if datagrams > INITIAL_DATAGRAMS => {
                rate_of(datagrams * datagram, INITIAL_SPREAD)
            }
            Initial::Granted(_) | Initial::Delivered => 0,
        }
    }

    /// The window of startup, in bytes.
    pub(super) fn window(
        &self,
        bounds: &WindowBounds,
        queue: &QueueSensor,
        path: &Estimate,
    ) -> u64 {
        let early = bounds.rounds < EARLY_ROUNDS && !queue.begins();
        let products = if early { 3 } else { 2 };
        let most = products * path.product() + bounds.held_back;
        bounds
            .grown
            .min(most.max(self.initial_window(path.datagram)))
    }

    /// The first window, in bytes.
    pub(super) fn initial_window(&self, datagram: u64) -> u64 {
        match self.initial {
            Initial::Granted(datagrams) => datagrams * datagram,
            Initial::Delivered => INITIAL_DATAGRAMS * datagram,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::congestion::auto::sampler::Sampler;

    const DATAGRAM: u64 = 1_500;

    #[test]
    fn many_streams_begin_with_more_until_that_was_delivered() {
        let mut startup = Startup::new(None, 0);
        assert!(
            !startup.grant(3),
            "32 datagrams are more than three times ten"
        );
        assert!(startup.grant(5));
        assert_eq!(startup.initial_window(DATAGRAM), 50 * DATAGRAM);
        assert!(startup.grant(1_000));
        assert_eq!(startup.initial_window(DATAGRAM), 160 * DATAGRAM);
        assert_eq!(startup.first_rate(DATAGRAM), 50 * 160 * DATAGRAM);
        startup.on_delivered(160 * DATAGRAM, DATAGRAM);
        assert!(!startup.grant(1_000));
        assert_eq!(startup.initial_window(DATAGRAM), 32 * DATAGRAM);
    }

    #[test]
    fn eight_rounds_without_growth_end_it_and_three_if_a_queue_stood() {
        let rounds_until_over = |rtt| {
            let (mut startup, mut sampler) = (Startup::new(None, 0), Sampler::new(0));
            let queue = QueueSensor::new(0);
            let path = Estimate {
                bandwidth: 12_500_000,
                min_rtt: 100 * MILLISECOND,
                datagram: DATAGRAM,
            };
            (0..20).find(|_| {
                sampler.on_rtt(rtt);
                sampler.on_rate(path.bandwidth, false);
                sampler.on_acked(100 * DATAGRAM);
                let round = sampler.end_round(0, 0);
                startup.on_round(&round, &queue, &path);
                startup.is_over(path.bandwidth, None, 0, &queue)
            })
        };
        assert_eq!(rounds_until_over(100 * MILLISECOND), Some(8));
        assert_eq!(rounds_until_over(200 * MILLISECOND), Some(3));
    }
}
