//! The edge of a lane for packets: joins the steps between the lane's engine and the TUN device,
//! and decides for each packet which of them it takes.
//!
//! On the way out it takes batches of the TUN reader ([`Packets::send`]) and of other lanes
//! ([`Packets::take_over`]) and gives each packet to the engine. On the way in it takes what
//! arrived from the engine ([`Packets::deliver`]) and gives it to the kernel, to multicast or to
//! another lane.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tpo_engine::{Arrived, Class, Delivery, FlowId, PacketKey, Peer, SendError, Status, Treatment};

use super::emit::Emitter;
use super::flows::{Flows, Onwards};
use super::form;
use super::multicast::igmp::IGMP;
use super::multicast::membership::Membership;
use super::onward::PassingOn;
use super::owners::FlowOwners;
use super::plain_way::{Cause, Plain};
use crate::edge::exit::Exit;
use crate::host::own_addresses::Own;
use crate::intercept::tun::Tun;
use crate::lanes::batch::{Batch, Item, Onward, OnwardItem, Ruled};
use crate::lanes::report::PacketCounters;
use crate::lanes::transit::Transit;
use crate::table::peers::PeerId;
use crate::table::protocols::UDP;

/// The edge for packets of one lane.
pub(crate) struct Packets {
    emitter: Emitter,
    plain: Arc<Plain>,
    flows: Flows,
    membership: Option<Membership>,
    /// Where some of what the peer brings goes on to another.
    onward: Option<PassingOn>,
}

/// What the edges of all lanes share.
#[derive(Clone)]
pub(crate) struct Shared {
    /// The device.
    pub(crate) tun: Arc<Tun>,
    /// This host's own addresses.
    pub(crate) own: Arc<Own>,
    /// What may take its plain way.
    pub(crate) plain: Arc<Plain>,
    /// Which peer owns a flow.
    pub(crate) owners: Arc<FlowOwners>,
    /// Where some of what a peer brings goes on to another.
    pub(crate) transit: Option<Arc<Transit>>,
}

/// How a packet is treated that opens a flow by this rule, or by none.
fn treatment(ruled: Option<Ruled>) -> (Treatment, Delivery) {
    ruled.map_or((Class::Normal.into(), Delivery::Timely), |rule| {
        (rule.treatment, rule.delivery)
    })
}

/// The key of the flow of a packet that arrived, seen from the side that sent it.
fn from_there(arrived: &Arrived<'_>) -> PacketKey {
    if arrived.is_reply {
        arrived.key.turned()
    } else {
        *arrived.key
    }
}

impl Packets {
    /// The edge of the lane of this peer.
    pub(crate) fn new(peer: PeerId, shared: Shared, membership: Option<Membership>) -> Packets {
        Packets {
            emitter: Emitter::new(shared.tun, shared.own),
            plain: shared.plain,
            flows: Flows::new(peer, shared.owners),
            membership,
            onward: shared.transit.map(PassingOn::new),
        }
    }

    // --- out
    // ---------------------------------------------------------------------------------------------

    /// Gives packets of the near side to the engine. Those that the engine cannot have take their
    /// plain way, if their rule lets them.
    pub(crate) fn send(&mut self, peer: &mut Peer, batch: Batch, now: Instant) {
        peer.begin_block(batch.block);
        for item in &batch.items {
            if let Err(error) = self.send_one(peer, item, now) {
                self.on_refused(peer, item, error);
            }
        }
        peer.end_block();
    }

    /// Gives a packet of the block to the engine; `None`: the packet may open no flow, and there is
    /// none.
    fn send_one(
        &mut self,
        peer: &mut Peer,
        item: &Item,
        now: Instant,
    ) -> Result<(), Option<SendError>> {
        let key = &item.parsed.key;
        if item.ruled.is_none() && peer.packet_flow(key).is_none() {
            return Err(None);
        }
        // A stream waits for a silent peer; a packet would only get old.
        if !peer.is_up() {
            return Err(Some(SendError::NotConnected));
        }
        let form = form::pack(item.place.len(), &item.parsed);
        let body = item.place.start + form.body.start..item.place.start + form.body.end;
        let opened = peer.send_from_block(key, treatment(item.ruled), (form.front(), body), now)?;
        if let Some(flow) = opened {
            self.flows.open_here(flow, *key);
        }
        Ok(())
    }

    /// The engine does not take a packet.
    fn on_refused(&mut self, peer: &Peer, item: &Item, error: Option<SendError>) {
        let fails_closed = item.ruled.is_some_and(|rule| !rule.fails_open);
        let cause = match error {
            None => Cause::NoFlow,
            Some(SendError::Full) => {
                self.emitter.counters.dropped += 1;
                return;
            }
            Some(_) if fails_closed => {
                self.emitter.counters.dropped += 1;
                return;
            }
            Some(SendError::TooManyFlows) => Cause::FlowLimit,
            Some(SendError::NotConnected | SendError::Refused) => Cause::PeerDown,
        };
        let counters = &mut self.emitter.counters;
        if !self.plain.may_go(Some(&item.parsed), cause) {
            counters.dropped += 1;
            return;
        }
        match cause {
            Cause::NoFlow => counters.no_flow += 1,
            Cause::FlowLimit => counters.too_many += 1,
            Cause::PeerDown => counters.let_go += 1,
        }
        self.emitter.let_go(&peer.block()[item.place.clone()]);
    }

    /// Gives the engine what other peers have brought for this one.
    pub(crate) fn take_over(&mut self, peer: &mut Peer, batch: Onward, now: Instant) {
        peer.begin_block(Arc::new(batch.bytes));
        for item in &batch.items {
            self.take_one_over(peer, item, now);
        }
        peer.end_block();
    }

    fn take_one_over(&mut self, peer: &mut Peer, item: &OnwardItem, now: Instant) {
        let OnwardItem { key, ruled, place } = item;
        let living = peer.packet_flow(key);
        if ruled.is_some() && living.is_some_and(|flow| !self.flows.is_brought(flow)) {
            // Our own LAN has opened it: it has gone round and come back.
            self.emitter.counters.dropped += 1;
            return;
        }
        let belongs = ruled.is_some() || living.is_some();
        let taken = match belongs && peer.is_up() {
            true => peer.send_from_block(key, treatment(*ruled), (&[], place.clone()), now),
            false => Err(SendError::NotConnected),
        };
        if ruled.is_some()
            && let Some(flow) = peer.packet_flow(key)
        {
            self.flows.note_brought(flow, *key);
        }
        match (taken, ruled) {
            (Ok(None), _) => {}
            (Ok(Some(flow)), _) => self.flows.open_here(flow, *key),
            // Its first leg is behind it: from here it takes its plain way, if its rule lets it.
            (Err(_), Some(rule)) if rule.fails_open => {
                self.emitter.counters.let_go += 1;
                self.plain.went(key, Cause::PeerDown);
                self.emitter.emit(&peer.block()[place.clone()], key);
                self.emitter.flush();
            }
            (Err(_), _) => self.emitter.counters.dropped += 1,
        }
    }

    // --- in
    // ---------------------------------------------------------------------------------------------

    /// Gives what arrived to the kernel, to the LANs that listen to a group, or to another lane.
    pub(crate) fn deliver(&mut self, peer: &mut Peer, now: Instant) {
        peer.take_packets(
            |arrived| match arrived.key.destination.ip().is_multicast() {
                true => self.deliver_to_group(arrived, now),
                false => self.deliver_to_one(arrived),
            },
        );
        self.emitter.flush();
        if let Some(onward) = &mut self.onward {
            self.emitter.counters.dropped += onward.hand_over();
        }
    }

    fn deliver_to_one(&mut self, arrived: &Arrived<'_>) {
        let key = from_there(arrived);
        // What may go no further than here is the kernel's, which says so to its source.
        if !self.goes_on(arrived, key) {
            self.emitter.emit(arrived.bytes, &key);
        }
    }

    /// Gives a packet to the lane to which its flow goes on; false when it is for here.
    fn goes_on(&mut self, arrived: &Arrived<'_>, key: PacketKey) -> bool {
        let Some(onward) = &mut self.onward else {
            return false;
        };
        if arrived.is_reply {
            // The answer to what another peer has brought.
            let asker = self.flows.asker(arrived.key);
            return asker.is_some_and(|to| onward.push(to, key, None, arrived.bytes));
        }
        let Some(Onwards { peer, ruled }) = self.flows.onwards(arrived.flow) else {
            return false;
        };
        onward.push(peer, key, Some(ruled.after(arrived.asked)), arrived.bytes)
    }

    fn deliver_to_group(&mut self, arrived: &Arrived<'_>, now: Instant) {
        let counters = &mut self.emitter.counters;
        let (key, bytes) = (arrived.key, arrived.bytes);
        match &mut self.membership {
            // Both sides ask in the flow of this name, whoever opened it.
            Some(membership) if key.protocol == IGMP => {
                if !membership.handle(arrived.flow, bytes, now) {
                    counters.foreign += 1;
                }
            }
            Some(membership) if key.protocol == UDP && !arrived.is_reply => {
                let emitted = membership.emit(key, bytes, |to, ruled| {
                    if let Some(onward) = &mut self.onward {
                        onward.push(to, *key, Some(ruled.after(arrived.asked)), bytes);
                    }
                });
                counters.emitted += emitted.sent;
                counters.not_emitted += emitted.not_sent;
                counters.foreign += emitted.foreign;
                counters.icmp += emitted.icmp;
            }
            // Nobody answers to a group.
            _ => counters.foreign += 1,
        }
    }

    // --- flows
    // ---------------------------------------------------------------------------------------------

    /// The peer has opened a flow: its answers are ours. It may go on to another peer. False when
    /// another peer owns it: then its answers are not this one's, it might go in circles, and what
    /// is sent to many would be heard twice.
    pub(crate) fn open(
        &mut self,
        flow: FlowId,
        key: PacketKey,
        next: Option<(PeerId, Ruled)>,
    ) -> bool {
        let onwards = next.map(|(peer, ruled)| Onwards { peer, ruled });
        let is_free = self.flows.open_there(flow, key, onwards);
        self.emitter.counters.owned += u64::from(!is_free);
        is_free
    }

    /// A flow is over, of whatever kind: the engine has said so.
    pub(crate) fn end(&mut self, flow: FlowId, peer: &Peer) {
        self.flows.end(flow, |key| peer.packet_flow(key));
    }

    /// What an address means may change, when it becomes this host's own or is so no longer: the
    /// peer's flows that are not permitted any more end. To be called before anything of the peer
    /// is taken. Gives how many they were.
    pub(crate) fn follow_addresses(&mut self, peer: &mut Peer, exit: &Exit, now: Instant) -> u64 {
        let banned = self.flows.banned(exit);
        for flow in &banned {
            peer.reset(*flow, Status::NotAllowed, now);
            self.end(*flow, peer);
        }
        banned.len() as u64
    }

    /// Whether the peer is heard: only then its flows are nobody else's.
    pub(crate) fn set_heard(&self, heard: bool) {
        self.flows.set_heard(heard);
    }

    // --- groups
    // ---------------------------------------------------------------------------------------------

    /// What the peer shall be asked for from now on, by [`For`](super::multicast::groups::For).
    pub(crate) fn ask(&mut self, groups: [Vec<IpAddr>; 2], now: Instant) {
        if let Some(membership) = &mut self.membership {
            membership.ask(groups, now);
        }
    }

    /// Asks the peer for groups when it is time.
    pub(crate) fn say_what_is_asked(&mut self, peer: &mut Peer, now: Instant) {
        if let Some(membership) = &mut self.membership {
            membership.send(peer, now);
        }
    }

    /// The peer has begun anew: it knows nothing of what was asked, and asks for nothing.
    pub(crate) fn begin_anew(&mut self, now: Instant) {
        if let Some(membership) = &mut self.membership {
            membership.begin_anew(now);
        }
    }

    /// Whether a flow of this key is one in which the peer asks for groups, and may.
    pub(crate) fn is_question(&self, key: &PacketKey) -> bool {
        self.membership
            .as_ref()
            .is_some_and(|membership| membership.is_question(key))
    }

    /// Whether the peer is to be asked for any group.
    pub(crate) fn asks_for_groups(&self) -> bool {
        self.membership.as_ref().is_some_and(Membership::asks)
    }

    // --- figures
    // ---------------------------------------------------------------------------------------------

    /// What happened so far.
    pub(crate) fn counters(&self) -> PacketCounters {
        self.emitter.counters
    }

    /// Groups that the peer asks us for.
    pub(crate) fn asked_here(&self) -> Vec<IpAddr> {
        self.of_membership(Membership::asked_here)
    }

    /// Groups that we ask the peer for.
    pub(crate) fn asked_there(&self) -> Vec<IpAddr> {
        self.of_membership(Membership::asked_there)
    }

    /// LANs to which another TPO brings the peer's groups.
    pub(crate) fn lans_left(&self) -> Vec<String> {
        self.of_membership(Membership::lans_left)
    }

    fn of_membership<T>(&self, of: impl Fn(&Membership) -> Vec<T>) -> Vec<T> {
        self.membership.as_ref().map_or_else(Vec::new, of)
    }
}
