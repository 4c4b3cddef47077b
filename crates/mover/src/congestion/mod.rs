//! How much may be on its way and how fast it leaves: one enum over the controllers, chosen by the
//! configuration.
//!
//! `send` reports every acknowledgement with its delivery-rate sample and its losses; it reads
//! `rate` for the pacer and `window` as the limit of bytes in flight. All bytes are wire bytes, IP
//! headers included.

mod bbr;
mod crowd;
mod cubic;
mod fixed;
mod floor;
mod policer;
mod scavenger;

use crate::config::{Config, Congestion};
use crate::rtt::Rtt;
use crate::send::flight::Sample;
use crate::timer::{MILLISECOND, Nanos, SECOND};

/// Datagrams that may leave before anything is known of the path.
const INITIAL_DATAGRAMS: u64 = 32;
/// And for each stream, up to so many: what its end's own TCP would begin with (RFC 6928), but not
/// in one burst.
const FLOW_DATAGRAMS: u64 = 10;
const MOST_INITIAL_DATAGRAMS: u64 = 160;
/// They are spread over so much time: a burst for a short path, and not long for a long one.
const INITIAL_SPREAD: Nanos = 20 * MILLISECOND;
/// The window never falls below so many datagrams: fewer cannot keep acknowledgements coming.
const SMALLEST_WINDOW_DATAGRAMS: u64 = 4;

/// One acknowledgement, as a controller sees it.
pub(crate) struct News<'a> {
    pub(crate) rtt: &'a Rtt,
    /// The round trip of the newest datagram, if this acknowledgement measured one.
    pub(crate) measured: Option<Nanos>,
    /// Bytes newly acknowledged.
    pub(crate) acked: u64,
    /// Datagrams newly counted as lost.
    pub(crate) lost: &'a [Lost],
    pub(crate) in_flight: u64,
    /// Bytes delivered since the beginning.
    pub(crate) delivered: u64,
    pub(crate) sample: Option<Sample>,
    /// What became of all datagrams that left before this is known.
    pub(crate) decided: Nanos,
    /// Wire bytes of a full datagram now.
    pub(crate) datagram: u64,
}

/// A datagram that was lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    pub(crate) number: u64,
    pub(crate) sent: Nanos,
    pub(crate) bytes: u64,
}

/// The chosen controller.
pub(crate) enum Controller {
    Auto(Box<bbr::Bbr>),
    Fixed(fixed::Fixed),
    Cubic(cubic::Cubic),
    Scavenger(scavenger::Scavenger),
}

impl Controller {
    pub(crate) fn new(config: &Config, datagram: u64, now: Nanos) -> Controller {
        let seed = u64::from_le_bytes(
            config.seed[8..16]
                .try_into()
                .expect("eight bytes of thirty-two"),
        );
        match (config.congestion, config.rate) {
            (Congestion::Fixed, Some(rate)) => Controller::Fixed(fixed::Fixed::new(rate, datagram)),
            (Congestion::Cubic, cap) => Controller::Cubic(cubic::Cubic::new(cap, datagram)),
            (Congestion::Scavenger, cap) => Controller::Scavenger(scavenger::Scavenger::new(
                cap,
                config.loss_tolerance,
                datagram,
            )),
            (Congestion::Fixed | Congestion::Auto, cap) => Controller::Auto(Box::new(
                bbr::Bbr::new(cap, config.path, config.loss_tolerance, datagram, seed, now),
            )),
        }
    }

    pub(crate) fn on_news(&mut self, news: &News<'_>, now: Nanos) {
        match self {
            Controller::Auto(bbr) => bbr.on_news(news, now),
            Controller::Fixed(fixed) => fixed.on_news(news, now),
            Controller::Cubic(cubic) => cubic.on_news(news, now),
            Controller::Scavenger(scavenger) => scavenger.on_news(news, now),
        }
    }

    /// Time passed, and data leaves. True if the rate changed.
    pub(crate) fn on_time(&mut self, now: Nanos) -> bool {
        match self {
            Controller::Auto(bbr) => bbr.on_time(now),
            Controller::Fixed(_) | Controller::Cubic(_) | Controller::Scavenger(_) => false,
        }
    }

    /// So many streams are carried. True if the rate changed.
    pub(crate) fn on_flows(&mut self, flows: usize) -> bool {
        match self {
            Controller::Auto(bbr) => bbr.on_flows(flows as u64),
            Controller::Fixed(_) | Controller::Cubic(_) | Controller::Scavenger(_) => false,
        }
    }

    /// The peer was silent for several probes and is heard again: the path may have changed.
    pub(crate) fn on_outage_end(&mut self, now: Nanos) {
        match self {
            Controller::Auto(bbr) => bbr.on_outage_end(now),
            Controller::Fixed(_) => {}
            Controller::Cubic(cubic) => cubic.on_outage_end(now),
            Controller::Scavenger(scavenger) => scavenger.on_outage_end(now),
        }
    }

    /// Bytes per second for the pacer.
    pub(crate) fn rate(&self) -> u64 {
        match self {
            Controller::Auto(bbr) => bbr.rate(),
            Controller::Fixed(fixed) => fixed.rate(),
            Controller::Cubic(cubic) => cubic.rate(),
            Controller::Scavenger(scavenger) => scavenger.rate(),
        }
    }

    /// Bytes that may be on their way.
    pub(crate) fn window(&self) -> u64 {
        match self {
            Controller::Auto(bbr) => bbr.window(),
            Controller::Fixed(fixed) => fixed.window(),
            Controller::Cubic(cubic) => cubic.window(),
            Controller::Scavenger(scavenger) => scavenger.window(),
        }
    }

    /// The path's bandwidth as estimated, bytes per second; 0: not known.
    pub(crate) fn bandwidth(&self) -> u64 {
        match self {
            Controller::Auto(bbr) => bbr.bandwidth(),
            Controller::Fixed(fixed) => fixed.rate(),
            Controller::Cubic(cubic) => cubic.bandwidth(),
            Controller::Scavenger(scavenger) => scavenger.bandwidth(),
        }
    }

    /// A short name of what it is doing, for people.
    pub(crate) fn phase(&self) -> &'static str {
        match self {
            Controller::Auto(bbr) => bbr.phase(),
            Controller::Fixed(fixed) => fixed.phase(),
            Controller::Cubic(cubic) => cubic.phase(),
            Controller::Scavenger(scavenger) => scavenger.phase(),
        }
    }
}

fn initial_rate(cap: Option<u64>, datagram: u64) -> u64 {
    let rate = INITIAL_DATAGRAMS * datagram * (SECOND / INITIAL_SPREAD);
    cap.map_or(rate, |cap| rate.min(cap))
}

fn bytes_in(rate: u64, time: Nanos) -> u64 {
    u64::try_from(u128::from(rate) * u128::from(time) / u128::from(SECOND)).unwrap_or(u64::MAX)
}

fn rate_of(bytes: u64, time: Nanos) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(SECOND) / u128::from(time.max(1)))
        .unwrap_or(u64::MAX)
}
