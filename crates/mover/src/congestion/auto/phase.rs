//! The phases of `auto`, each with the data that only it needs.

use super::competitive::Competitive;
use super::startup::Startup;
use super::up::Up;
use crate::timer::Nanos;

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

    /// A deep queue in these phases says that the path has become narrower. In the others it is
    /// our own, or a rival's.
    pub(super) fn heeds_deep_queue(&self) -> bool {
        match self {
            Phase::Cruise { .. } | Phase::Up(_) | Phase::Down | Phase::MeasureFloor => true,
            Phase::Startup(_) | Phase::Drain | Phase::ProbeRtt { .. } | Phase::Competitive(_) => {
                false
            }
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
