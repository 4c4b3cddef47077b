//! What a lane shows of itself in its [`Pulse`], and when it wakes the gate to look at it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tpo_engine::{Peer, Usage};

use super::calls::MOST_WAITING;
use crate::edge::shares::FarRoom;
use crate::lanes::pulse::Pulse;

/// The lane's side of its pulse.
pub(super) struct Shown {
    pulse: Arc<Pulse>,
    /// Whether the far TPO has room for our flows.
    far_room: FarRoom,
    /// Something is used up to its high mark, which the gate has been told.
    is_short: bool,
    /// Makes the gate look at the pulse at once.
    on_change: Box<dyn Fn() + Send>,
}

impl Shown {
    pub(super) fn new(pulse: Arc<Pulse>, on_change: Box<dyn Fn() + Send>) -> Shown {
        Shown {
            pulse,
            far_room: FarRoom::new(),
            is_short: false,
            on_change,
        }
    }

    /// The pulse itself.
    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Shows that the loop turns, and whether the peer can take connections.
    pub(super) fn beat(&self, is_up: bool, now: Instant) {
        if self.pulse.beat(now, is_up) {
            (self.on_change)();
        }
    }

    /// Shows how much of its room is used; `waiting`: connections that wait for the peer. The gate
    /// looks often enough by itself, but when a high mark is reached it shall look at once.
    pub(super) fn show_room(&mut self, peer: &Peer, waiting: usize, now: Instant) {
        let Usage {
            streams,
            most_streams,
            held,
            budget,
            refused_there,
        } = peer.usage();
        for (shown, now) in [
            (&self.pulse.flows, [streams, most_streams]),
            (&self.pulse.held, [held, budget]),
            (&self.pulse.calling, [waiting, MOST_WAITING]),
        ] {
            shown[0].store(now[0], Ordering::Relaxed);
            shown[1].store(now[1], Ordering::Relaxed);
        }
        self.pulse
            .far_is_full
            .store(self.far_room.is_full(refused_there, now), Ordering::Relaxed);
        let is_short = self
            .pulse
            .levels()
            .iter()
            .any(|level| level.used >= level.marks.high);
        if std::mem::replace(&mut self.is_short, is_short) != is_short {
            (self.on_change)();
        }
    }
}
