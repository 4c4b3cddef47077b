//! One lane's part in multicast: which groups its peer wants from us and which ones we want from
//! the peer, said in messages that cross in a flow of packets of their own.
//!
//! Multicast's thread tells the lane what to want ([`super::Multicast`]) and looks at what the
//! peers want ([`Wanted`]).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tpo_engine::{Class, Delivery, FlowId, PacketKey, Peer};

use super::emit::{Emitted, Emitter};
use super::groups::{For, TELL_EVERY, Wanted, emit_membership, membership_key, parse_membership};
use crate::packets::directory::GroupTable;
use crate::table::peers::PeerId;

/// What a peer and we want from each other.
pub(crate) struct Membership {
    peer: PeerId,
    /// Whether the peer may ask us for groups.
    may_ask: bool,
    /// What the peers want.
    wanted: Arc<Wanted>,
    /// Told when that has changed.
    on_change: Box<dyn Fn() + Send>,
    /// Where what the peer brings goes out.
    emitter: Emitter,
    /// To which other peers it goes on.
    passes: Option<Arc<GroupTable>>,
    /// What we want, by [`For`].
    asks: [Ask; 2],
    /// Number of the last message that we sent.
    number: u32,
    /// When what we want is said again; none: there is nothing to say.
    say_at: Option<Instant>,
    /// The last message of the peer, by [`For`].
    heard: [Option<Heard>; 2],
    message: Vec<u8>,
}

/// What we ask a peer for.
#[derive(Default)]
struct Ask {
    groups: Vec<IpAddr>,
    /// The peer may believe that we want something.
    believed: bool,
}

/// A message of the peer, by its flow and number.
#[derive(Clone, Copy)]
struct Heard {
    flow: FlowId,
    number: u32,
}

impl Membership {
    /// Nothing is asked for yet.
    pub(crate) fn new(
        emitter: Emitter,
        may_ask: bool,
        wanted: Arc<Wanted>,
        passes: Option<Arc<GroupTable>>,
        on_change: Box<dyn Fn() + Send>,
    ) -> Membership {
        Membership {
            peer: emitter.peer(),
            may_ask,
            wanted,
            on_change,
            emitter,
            passes,
            asks: Default::default(),
            number: 0,
            say_at: None,
            heard: [None; 2],
            message: Vec::new(),
        }
    }

    /// Whether a flow of this key is the one in which the peer asks for groups, and may.
    pub(in crate::packets) fn is_question(&self, key: &PacketKey) -> bool {
        *key == membership_key() && self.may_ask
    }

    /// Whether the peer is to be asked for any group.
    pub(in crate::packets) fn asks(&self) -> bool {
        self.asks.iter().any(|ask| !ask.groups.is_empty())
    }

    /// Groups that the peer asks us for.
    pub(in crate::packets) fn asked_here(&self) -> Vec<IpAddr> {
        self.wanted.of(self.peer)
    }

    /// Groups that we ask the peer for.
    pub(in crate::packets) fn asked_there(&self) -> Vec<IpAddr> {
        let asks = self.asks.iter();
        asks.flat_map(|ask| ask.groups.iter().copied()).collect()
    }

    /// LANs to which another TPO brings the peer's groups.
    pub(in crate::packets) fn lans_left(&self) -> Vec<String> {
        self.emitter.lans_left()
    }

    /// What the peer shall be asked for from now on, by [`For`].
    pub(in crate::packets) fn ask(&mut self, groups: [Vec<IpAddr>; 2], now: Instant) {
        for (ask, groups) in self.asks.iter_mut().zip(groups) {
            ask.groups = groups;
        }
        self.say_at = Some(now);
    }

    /// Asks the peer for groups when it is time; for none only once.
    pub(in crate::packets) fn send(&mut self, peer: &mut Peer, now: Instant) {
        if self.say_at.is_none_or(|at| at > now) || !peer.is_up() {
            return;
        }
        for (ask, whom) in self.asks.iter_mut().zip(For::BOTH) {
            if ask.groups.is_empty() && !ask.believed {
                continue;
            }
            self.message.clear();
            self.number = self.number.wrapping_add(1);
            emit_membership(whom, &ask.groups, self.number, &mut self.message);
            // That nothing is wanted any more is said once.
            let treatment = (Class::Normal, Delivery::Reliable);
            let sent = peer.send_packet(&membership_key(), treatment, &self.message, now);
            ask.believed = !ask.groups.is_empty() || sent.is_err();
        }
        // A peer that does not want to hear it is asked again too: its configuration may change.
        let more = self.asks.iter().any(|ask| ask.believed);
        self.say_at = more.then_some(now + TELL_EVERY);
    }

    /// The peer has begun anew: it knows nothing of what was asked, and asks for nothing.
    pub(in crate::packets) fn begin_anew(&mut self, now: Instant) {
        self.asks.iter_mut().for_each(|ask| ask.believed = false);
        self.say_at = Some(now);
        self.heard = [None; 2];
        self.wanted.forget(Some(self.peer), now);
        (self.on_change)();
    }

    /// The peer says what it wants; false when that is no such message, or the peer may not ask. A
    /// message older than the last one is passed over: they may overtake each other.
    pub(in crate::packets) fn handle(&mut self, flow: FlowId, bytes: &[u8], now: Instant) -> bool {
        if !self.may_ask {
            return false;
        }
        let Some((whom, number, groups)) = parse_membership(bytes) else {
            return false;
        };
        let heard = &mut self.heard[whom as usize];
        let is_older =
            |last: Heard| last.flow == flow && (number.wrapping_sub(last.number) as i32) <= 0;
        if !heard.is_some_and(is_older) {
            *heard = Some(Heard { flow, number });
            if self.wanted.set(self.peer, whom, groups, now) {
                (self.on_change)();
            }
        }
        true
    }

    /// Sends what the peer has brought for a group to our LANs, and tells to which other peers it
    /// goes on.
    pub(in crate::packets) fn emit(
        &mut self,
        key: &PacketKey,
        bytes: &[u8],
        mut onward: impl FnMut(PeerId, crate::lanes::batch::Ruled),
    ) -> Emitted {
        if let Some(passes) = &self.passes {
            passes.each(key, |to, whom, ruled| {
                if to != self.peer && whom == For::Itself {
                    onward(to, ruled);
                }
            });
        }
        self.emitter.emit(key, bytes)
    }
}
