//! A peer that is called on demand, and the connections that wait for it.
//!
//! The loop says when the peer is needed and, each turn, whether anything is carried; the rules of
//! when to call and when to leave are those of [`Demand`].

use std::time::Instant;

use tpo_engine::Peer;
use tracing::{debug, warn};

use super::on_demand::{Demand, Turn};
use crate::edge::shares::ARRIVING;
use crate::intercept::tcp::reset_on_close;
use crate::lanes::handle::Accepted;

/// Connections that may wait for a peer that is called on demand: 3,000 a second for as long as it
/// may take to answer, and room for what arrives until the lease is dropped.
pub(super) const MOST_WAITING: usize = 4 * ARRIVING;

/// Calls to one peer.
pub(super) struct Calls {
    /// The peer's name, for logs.
    name: String,
    /// None: the peer is always called.
    demand: Option<Demand>,
    /// Connections that wait for the peer to answer.
    waiting: Vec<Accepted>,
    /// Connections that were reset because it did not.
    pub(super) given_up: u64,
}

impl Calls {
    pub(super) fn new(name: String, demand: Option<Demand>) -> Calls {
        Calls {
            name,
            demand,
            waiting: Vec::new(),
            given_up: 0,
        }
    }

    /// Connections that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody needs the peer, which is called on demand.
    pub(super) fn rests(&self, peer: &Peer) -> bool {
        !peer.is_connected() && self.demand.as_ref().is_some_and(Demand::rests)
    }

    /// Whether the peer, which is not connected, can take what comes: that is what calls it.
    pub(super) fn is_ready(&self, peer: &Peer) -> bool {
        !peer.is_connected() && self.demand.as_ref().is_some_and(Demand::is_ready)
    }

    /// The peer is needed: one that is called on demand is called. Whether it is worth waiting for.
    pub(super) fn need(&mut self, peer: &mut Peer, now: Instant) -> bool {
        let Some(demand) = self.demand.as_mut().filter(|_| !peer.is_connected()) else {
            return false;
        };
        if demand.need(now) {
            debug!(peer = %self.name, "called on demand");
            peer.connect(now);
        }
        demand.is_ready()
    }

    /// Keeps a connection until the peer has answered; gives it back when it is not worth waiting
    /// for the peer, or too many wait.
    pub(super) fn keep(
        &mut self,
        accepted: Accepted,
        peer: &mut Peer,
        now: Instant,
    ) -> Option<Accepted> {
        if !self.need(peer, now) || self.waiting.len() >= MOST_WAITING {
            return Some(accepted);
        }
        self.waiting.push(accepted);
        None
    }

    /// To be called each turn. `idle`: nothing is carried and nobody asks for anything.
    pub(super) fn turn(&mut self, idle: bool, peer: &mut Peer, now: Instant) {
        let Some(demand) = &mut self.demand else {
            return;
        };
        match demand.turn(peer.is_connected(), idle, now) {
            Turn::Stay => {}
            Turn::Leave => peer.disconnect(),
            Turn::GiveUp => {
                warn!(peer = %self.name, waiting = self.waiting.len(), "called on demand, but it does not answer");
                for accepted in self.waiting.drain(..) {
                    self.given_up += 1;
                    reset_on_close(&accepted.socket);
                }
            }
        }
    }

    /// The peer has answered, or called us: gives the connections that waited for it.
    pub(super) fn on_connected(&mut self) -> Vec<Accepted> {
        if let Some(demand) = &mut self.demand {
            demand.connected();
        }
        std::mem::take(&mut self.waiting)
    }

    /// The session is over; whether the peer is called again only when it is needed.
    pub(super) fn on_session_over(&mut self) -> bool {
        self.demand.as_mut().map(Demand::gone).is_some()
    }
}
