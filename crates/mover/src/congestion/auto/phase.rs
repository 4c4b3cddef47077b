//! The phases of `auto`, each with the data that only it needs.

use super::competitive::Competitive;
use super::cycle::Cycle;
use super::loss_floor::LossFloor;
use super::queue::QueueSensor;
use super::startup::Startup;
use super::up::Up;
use crate::timer::Nanos;

// Gains, in thousandths of the bandwidth.

/// Empties startup's queue of a round trip in two (BBR's drain gain).
const DRAIN_GAIN: u64 = 500;
/// A down takes back what an up queued; less so when no queue is seen (BBR's ProbeBW_DOWN: 900).
const DOWN_GAIN: u64 = 750;
const DOWN_QUIET_GAIN: u64 = 900;
/// While the loss floor is measured: below the bandwidth even if what was given back for the floor
/// believed so far was our own loss, so that no queue and no loss is ours.
const FLOOR_GAIN: u64 = 950;
/// Cruising leaves a fifth of a percent for the measurement's own error, 1.5 % when a queue begins,
/// and 4 % while a queue stands out.
const CRUISE_GAIN: u64 = 998;
const CRUISE_CAREFUL_GAIN: u64 = 985;
const CRUISE_QUEUED_GAIN: u64 = 960;
/// While a queue stands that others keep up: everybody who cruises like this gives room in
/// proportion (`fairness.rs`).
const CRUISE_STANDING_GAIN: u64 = 900;
/// While a deep queue stands: half of what the path carries then drains it.
pub(super) const DEEP_GAIN: u64 = 500;

/// What `auto` is doing. See the life of the machine in the module doc of `auto`.
pub(super) enum Phase {
    Startup(Startup),
    Drain,
    Cruise {
        /// When the next up is due.
        next_up: Nanos,
    },
    Up(Up),
    Down,
    /// A down that also measures the loss floor.
    MeasureFloor,
    ProbeRtt {
        /// The mode to go back to, if a rival was there and still is.
        competitive: Option<Box<Competitive>>,
    },
    Competitive(Box<Competitive>),
}

impl Phase {
    /// A short name, for people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Phase::Startup(_) => "startup",
            Phase::Drain => "drain",
            Phase::Cruise { .. } => "cruise",
            Phase::Up(_) => "up",
            Phase::Down => "down",
            Phase::MeasureFloor => "loss floor",
            Phase::ProbeRtt { .. } => "probe rtt",
            Phase::Competitive(_) => "competitive",
        }
    }

    /// Does the phase give way to a deep queue? Then the queue says that the path has become
    /// narrower. In the other phases a deep queue is our own, or a rival's.
    pub(super) fn gives_way(&self, queue: &QueueSensor) -> bool {
        match self {
            Phase::Cruise { .. } | Phase::Up(_) | Phase::Down | Phase::MeasureFloor => {
                queue.is_deep()
            }
            Phase::Startup(_) | Phase::Drain | Phase::ProbeRtt { .. } | Phase::Competitive(_) => {
                false
            }
        }
    }

    /// The pacing rate in thousandths of the bandwidth, apart from the fast part of an up. Startup
    /// and competitive mode have rates of their own.
    pub(super) fn gain(&self, queue: &QueueSensor, cycle: &Cycle, floor: &LossFloor) -> u64 {
        if self.gives_way(queue) {
            return DEEP_GAIN;
        }
        let queued = queue.stands_out();
        match self {
            Phase::Drain => DRAIN_GAIN,
            Phase::Startup(_) | Phase::Up(_) => 1_000,
            Phase::Down | Phase::MeasureFloor if floor.is_measuring() => {
                (FLOOR_GAIN as f64 * (1.0 - floor.ratio())) as u64
            }
            Phase::Down | Phase::MeasureFloor if queued => DOWN_GAIN,
            Phase::Down | Phase::MeasureFloor => DOWN_QUIET_GAIN,
            Phase::Cruise { .. } if queued && cycle.is_standing() => CRUISE_STANDING_GAIN,
            Phase::Cruise { .. } if queued => CRUISE_QUEUED_GAIN,
            Phase::Cruise { .. } if queue.begins() => CRUISE_CAREFUL_GAIN,
            Phase::Cruise { .. } | Phase::ProbeRtt { .. } | Phase::Competitive(_) => CRUISE_GAIN,
        }
    }

    /// The min RTT may be probed for from these phases.
    pub(super) fn may_probe_rtt(&self) -> bool {
        match self {
            Phase::Cruise { .. } | Phase::Down | Phase::Competitive(_) => true,
            Phase::Startup(_)
            | Phase::Drain
            | Phase::Up(_)
            | Phase::MeasureFloor
            | Phase::ProbeRtt { .. } => false,
        }
    }

    /// The competitive mode that the phase holds.
    pub(super) fn into_competitive(self) -> Option<Box<Competitive>> {
        match self {
            Phase::Competitive(competitive) => Some(competitive),
            Phase::ProbeRtt { competitive } => competitive,
            Phase::Startup(_)
            | Phase::Drain
            | Phase::Cruise { .. }
            | Phase::Up(_)
            | Phase::Down
            | Phase::MeasureFloor => None,
        }
    }
}
