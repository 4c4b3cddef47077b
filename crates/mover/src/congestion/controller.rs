//! One enum over the controllers, chosen by the configuration. It only routes: each arm hands the
//! call to the controller that was chosen.

use super::auto::{Auto, Settings};
use super::cubic::Cubic;
use super::fixed::Fixed;
use super::report::AckReport;
use super::scavenger::Scavenger;
use crate::config::{Config, Congestion};
use crate::timer::Nanos;

/// The chosen controller.
pub(crate) enum Controller {
    Auto(Box<Auto>),
    Fixed(Fixed),
    Cubic(Cubic),
    Scavenger(Scavenger),
}

impl Controller {
    pub(crate) fn new(config: &Config, datagram: u64, now: Nanos) -> Controller {
        let seed = u64::from_le_bytes(
            config.seed[8..16]
                .try_into()
                .expect("eight bytes of thirty-two"),
        );
        match (config.congestion, config.rate) {
            (Congestion::Fixed, Some(rate)) => Controller::Fixed(Fixed::new(rate, datagram)),
            (Congestion::Cubic, cap) => Controller::Cubic(Cubic::new(cap, datagram)),
            (Congestion::Scavenger, cap) => {
                Controller::Scavenger(Scavenger::new(cap, config.loss_tolerance, datagram))
            }
            (Congestion::Fixed | Congestion::Auto, cap) => {
                let settings = Settings {
                    cap,
                    remembered: config.remembered_path,
                    loss_tolerance: config.loss_tolerance,
                    seed,
                };
                Controller::Auto(Box::new(Auto::new(settings, datagram, now)))
            }
        }
    }

    pub(crate) fn on_ack_report(&mut self, report: &AckReport<'_>, now: Nanos) {
        match self {
            Controller::Auto(auto) => auto.on_ack_report(report, now),
            Controller::Fixed(fixed) => fixed.on_ack_report(report, now),
            Controller::Cubic(cubic) => cubic.on_ack_report(report, now),
            Controller::Scavenger(scavenger) => scavenger.on_ack_report(report, now),
        }
    }

    /// Time passed, and data leaves. True if the rate changed.
    pub(crate) fn handle_time(&mut self, now: Nanos) -> bool {
        match self {
            Controller::Auto(auto) => auto.handle_time(now),
            Controller::Fixed(_) | Controller::Cubic(_) | Controller::Scavenger(_) => false,
        }
    }

    /// `flows` streams are carried. True if the rate changed.
    pub(crate) fn set_flows(&mut self, flows: usize) -> bool {
        match self {
            Controller::Auto(auto) => auto.set_flows(flows as u64),
            Controller::Fixed(_) | Controller::Cubic(_) | Controller::Scavenger(_) => false,
        }
    }

    /// The peer was silent for several probes and is heard again: the path may have changed.
    pub(crate) fn on_outage_end(&mut self, now: Nanos) {
        match self {
            Controller::Auto(auto) => auto.on_outage_end(now),
            Controller::Fixed(_) => {}
            Controller::Cubic(cubic) => cubic.on_outage_end(now),
            Controller::Scavenger(scavenger) => scavenger.on_outage_end(now),
        }
    }

    /// Bytes per second for the pacer.
    pub(crate) fn rate(&self) -> u64 {
        match self {
            Controller::Auto(auto) => auto.rate(),
            Controller::Fixed(fixed) => fixed.rate(),
            Controller::Cubic(cubic) => cubic.rate(),
            Controller::Scavenger(scavenger) => scavenger.rate(),
        }
    }

    /// Bytes that may be on their way.
    pub(crate) fn window(&self) -> u64 {
        match self {
            Controller::Auto(auto) => auto.window(),
            Controller::Fixed(fixed) => fixed.window(),
            Controller::Cubic(cubic) => cubic.window(),
            Controller::Scavenger(scavenger) => scavenger.window(),
        }
    }

    /// The path's bandwidth as estimated, bytes per second; 0: not known.
    pub(crate) fn bandwidth(&self) -> u64 {
        match self {
            Controller::Auto(auto) => auto.bandwidth(),
            Controller::Fixed(fixed) => fixed.rate(),
            Controller::Cubic(cubic) => cubic.bandwidth(),
            Controller::Scavenger(scavenger) => scavenger.bandwidth(),
        }
    }

    /// A short name of what it is doing, for people.
    pub(crate) fn phase(&self) -> &'static str {
        match self {
            Controller::Auto(auto) => auto.phase(),
            Controller::Fixed(fixed) => fixed.phase(),
            Controller::Cubic(cubic) => cubic.phase(),
            Controller::Scavenger(scavenger) => scavenger.phase(),
        }
    }
}
