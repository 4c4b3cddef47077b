//! The edges of everything that is no TCP: one for each UDP flow and each ICMP flow of packets,
//! which the engine keeps; here packets become its datagrams and datagrams become packets again,
//! with their original addresses.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use tpo_engine::{Class, Delivery, FlowId, PacketKey, Peer, SendError, Status, Treatment};
use tracing::debug;

use crate::edge::exit::Exit;
use crate::host::own_addresses::Own;
use crate::intercept::tun::{Tun, VNET};
use crate::ip::{Head, Refused};
use crate::lanes::batch::{Batch, Item, Onward, Ruled};
use crate::lanes::report::PacketCounters;
use crate::lanes::transit::Transit;
use crate::packets::form;
use crate::packets::multicast::emit::Emitter;
use crate::packets::multicast::groups::{
    For, TELL_EVERY, Wanted, emit_membership, membership_key, parse_membership,
};
use crate::packets::multicast::igmp::IGMP;
use crate::packets::plain_way::{Cause, Plain};
use crate::packets::reader::{GroupTable, Opened, is_roomy, shed};
use crate::packets::udp::{self, Row};
use crate::table::address::any_form;
use crate::table::peers::PeerId;
use crate::table::protocols::UDP;

/// Bytes of payloads that go together: a packet has at most 65,535.
const MOST_BYTES: usize = 65_000;

/// Flows from other peers that are remembered before those that are over are forgotten: twice as
/// many as can live.
const MOST_TAKEN_OVER: usize = 262_144;

/// The packet edges of one lane.
pub struct Packets {
    out: Out,
    run: Run,
    plain: Arc<Plain>,
    opened: Arc<Opened>,
    owner: PeerId,
    /// Flows that the peer has opened.
    theirs: HashMap<FlowId, Theirs>,
    ours: Ours,
    /// With which of this host's changes of addresses the peer's flows were permitted.
    permitted_at: u64,
    form: Vec<u8>,
    groups: Option<Groups>,
    /// Where some of it goes on to another peer.
    transit: Option<Arc<Transit>>,
    onward: BTreeMap<PeerId, Onward>,
}

/// Flows of our side, if other peers might want them.
#[derive(Default)]
struct Ours {
    by_flow: HashMap<FlowId, PacketKey>,
    /// Those that other peers have brought for this one.
    taken_over: HashSet<PacketKey>,
}

impl Ours {
    fn note(&mut self, flow: FlowId, key: PacketKey) {
        self.by_flow.insert(flow, key);
    }

    /// Another peer has brought it; none is kept that did not come to be.
    fn note_taken_over(&mut self, key: &PacketKey, is_there: impl Fn(&PacketKey) -> bool) {
        if !is_there(key) {
            self.taken_over.remove(key);
            return;
        }
        // One whose opening found a full queue is not known by its number, nor when it ends.
        if self.taken_over.len() >= MOST_TAKEN_OVER {
            self.taken_over.retain(is_there);
        }
        self.taken_over.insert(*key);
    }

    fn is_taken_over(&self, key: &PacketKey) -> bool {
        self.taken_over.contains(key)
    }

    /// It is over; which it was.
    fn end(&mut self, flow: FlowId) -> Option<PacketKey> {
        let key = self.by_flow.remove(&flow)?;
        shed(&mut self.by_flow);
        if self.taken_over.remove(&key)
            && is_roomy(self.taken_over.capacity(), self.taken_over.len())
        {
            self.taken_over.shrink_to(2 * self.taken_over.len());
        }
        Some(key)
    }
}

/// A flow that the peer has opened.
struct Theirs {
    key: PacketKey,
    /// How its first rule wants it to be treated.
    asked: Treatment,
    /// The peer to which it goes on.
    next: Option<(PeerId, Ruled)>,
}

/// One lane's part in multicast.
pub struct Groups {
    /// Whether the peer may ask us for groups.
    pub may_ask: bool,
    /// What the peers ask for.
    pub wanted: Arc<Wanted>,
    /// Told when that has changed.
    pub on_change: Box<dyn Fn() + Send>,
    /// Where what the peer brings goes out.
    pub emitter: Emitter,
    /// To which other peers it goes on.
    passes: Option<Arc<GroupTable>>,
    /// What we ask the peer for, by [`For`], and the number of the last message that said so.
    ask: [Ask; 2],
    number: u32,
    /// When it is said again; none: there is nothing to say.
    say_at: Option<Instant>,
    /// The flow and the number of what the peer said last, by [`For`].
    said: [Option<(FlowId, u32)>; 2],
}

/// What we ask a peer for.
#[derive(Default)]
struct Ask {
    groups: Vec<IpAddr>,
    /// The peer may believe that we want something.
    believed: bool,
}

impl Groups {
    /// Nothing is asked for yet.
    pub fn new(
        may_ask: bool,
        wanted: Arc<Wanted>,
        emitter: Emitter,
        passes: Option<Arc<GroupTable>>,
        on_change: Box<dyn Fn() + Send>,
    ) -> Groups {
        Groups {
            may_ask,
            wanted,
            on_change,
            emitter,
            passes,
            ask: Default::default(),
            number: 0,
            say_at: None,
            said: [None; 2],
        }
    }

    /// The peer says what it wants. An older word than the last one is passed over: they may
    /// overtake each other.
    fn hear(&mut self, flow: FlowId, bytes: &[u8], owner: PeerId, now: Instant) -> bool {
        let Some((whom, number, groups)) = parse_membership(bytes) else {
            return false;
        };
        let said = &mut self.said[whom as usize];
        let is_older = |(last, before): (FlowId, u32)| {
            last == flow && (number.wrapping_sub(before) as i32) <= 0
        };
        if !said.is_some_and(is_older) {
            *said = Some((flow, number));
            if self.wanted.set(owner, whom, groups, now) {
                (self.on_change)();
            }
        }
        true
    }
}

/// The way to the kernel.
struct Out {
    tun: Arc<Tun>,
    own: Arc<Own>,
    packet: Vec<u8>,
    /// Tells packets that may be cut from each other.
    number: u16,
    /// The kernel cuts no packets for us: it is older than 6.2.
    one_by_one: bool,
    counters: PacketCounters,
}

impl Out {
    /// A packet that crossed whole.
    fn whole(&mut self, bytes: &[u8], key: &PacketKey) {
        self.packet.clear();
        self.number = self.number.wrapping_add(1);
        match form::unpack(bytes, key, self.number, &mut self.packet) {
            // An error may come from any router on the way, but not from this one.
            Ok(Some(router)) if any_form(router, |address| self.own.contains(address)) => {
                self.counters.foreign += 1
            }
            Ok(_) => {
                self.send(&[0; VNET], 1);
            }
            Err(Refused::Foreign) => self.counters.foreign += 1,
            Err(Refused::Icmp) => self.counters.icmp += 1,
        }
    }

    fn send(&mut self, told: &[u8; VNET], packets: usize) -> bool {
        match self.tun.write_told(told, &self.packet) {
            Ok(()) => {
                self.counters.emitted += packets as u64;
                true
            }
            Err(error) if packets > 1 => {
                debug!(%error, "the kernel takes no packets together; they go one by one from now on");
                false
            }
            Err(error) => {
                self.counters.not_emitted += 1;
                debug!(%error, "the kernel does not take a packet");
                true
            }
        }
    }
}

/// Ordinary UDP packets of one flow in a row, all alike: they go to the kernel together, which
/// costs as much as one of them.
#[derive(Default)]
struct Run {
    key: Option<PacketKey>,
    head: Head,
    size: usize,
    count: usize,
    payloads: Vec<u8>,
}

impl Run {
    fn takes(&self, key: &PacketKey, head: Head, length: usize) -> bool {
        self.key.as_ref() == Some(key)
            && self.head == head
            && (1..=self.size).contains(&length)
            // Only the last one may be shorter.
            && self.payloads.len() == self.count * self.size
            && self.count < udp::MOST_TOGETHER
            && self.payloads.len() + length <= MOST_BYTES
    }

    fn begin(&mut self, key: PacketKey, head: Head, size: usize) {
        (self.key, self.head, self.size, self.count) = (Some(key), head, size, 0);
        self.payloads.clear();
    }

    fn push(&mut self, payload: &[u8]) {
        self.payloads.extend_from_slice(payload);
        self.count += 1;
    }

    /// Gives them to the kernel.
    fn flush(&mut self, out: &mut Out) {
        let Some(key) = self.key.take() else { return };
        if self.count > 1 && !out.one_by_one {
            out.packet.clear();
            out.number = out.number.wrapping_add(self.count as u16);
            let row = Row {
                size: self.size,
                bytes: self.payloads.len(),
            };
            if let Some(told) =
                udp::emit_header_of_row(&key, self.head, row, out.number, &mut out.packet)
            {
                out.packet.extend_from_slice(&self.payloads);
                if out.send(&told, self.count) {
                    return;
                }
            }
            out.one_by_one = true;
        }
        // A payload of nothing is a packet too.
        for payload in self
            .payloads
            .chunks(self.size.max(1))
            .chain((self.size == 0).then_some(&[][..]))
        {
            out.packet.clear();
            out.number = out.number.wrapping_add(1);
            if udp::emit(&key, self.head, payload, out.number, &mut out.packet) {
                out.send(&[0; VNET], 1);
            }
        }
    }
}

fn is_for_many(key: &PacketKey) -> bool {
    key.destination.ip().is_multicast()
}

impl Packets {
    /// The edges of the lane of this peer.
    pub fn new(
        tun: Arc<Tun>,
        own: Arc<Own>,
        plain: Arc<Plain>,
        opened: Arc<Opened>,
        owner: PeerId,
        groups: Option<Groups>,
        transit: Option<Arc<Transit>>,
    ) -> Packets {
        let out = Out {
            tun,
            own,
            packet: Vec::new(),
            number: 0,
            one_by_one: false,
            counters: PacketCounters::default(),
        };
        Packets {
            out,
            run: Run::default(),
            plain,
            opened,
            owner,
            theirs: HashMap::new(),
            ours: Ours::default(),
            permitted_at: 0,
            form: Vec::new(),
            groups,
            transit,
            onward: BTreeMap::new(),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> PacketCounters {
        self.out.counters
    }

    /// Whether the peer is to be asked for any group.
    pub fn asks_for_groups(&self) -> bool {
        self.groups
            .as_ref()
            .is_some_and(|own| own.ask.iter().any(|ask| !ask.groups.is_empty()))
    }

    /// Groups that the peer asks us for.
    pub fn asked_here(&self) -> Vec<IpAddr> {
        self.groups
            .as_ref()
            .map_or_else(Vec::new, |own| own.wanted.of(self.owner))
    }

    /// Groups that we ask the peer for.
    pub fn asked_there(&self) -> Vec<IpAddr> {
        let asked = self.groups.iter().flat_map(|own| &own.ask);
        asked.flat_map(|ask| ask.groups.iter().copied()).collect()
    }

    /// LANs to which another TPO brings the peer's groups.
    pub fn lans_left(&self) -> Vec<String> {
        self.groups
            .as_ref()
            .map_or_else(Vec::new, |own| own.emitter.lans_left())
    }

    /// Gives packets of the near side to the engine. Those that it cannot have take their plain
    /// way, if their rule lets them.
    pub fn send(&mut self, peer: &mut Peer, batch: &Batch, now: Instant) {
        for item in &batch.items {
            let packet = &batch.bytes[item.bytes.clone()];
            let treatment = item
                .ruled
                .map_or((Class::Normal.into(), Delivery::Timely), |rule| {
                    (rule.treatment, rule.delivery)
                });
            if item.ruled.is_none() && !peer.packet_flow(&item.seen.key).is_some() {
                if self.may_go(item, Cause::NoFlow) {
                    self.out.counters.no_flow += 1;
                    self.let_go(packet);
                }
                continue;
            }
            self.form.clear();
            let form = form::pack(packet.len(), &item.seen);
            self.form.extend_from_slice(form.front());
            self.form.extend_from_slice(&packet[form.body]);
            // A stream waits for a silent peer; a datagram would only get old.
            let taken = match peer.is_up() {
                true => peer.send_packet(&item.seen.key, treatment, &self.form, now),
                false => Err(SendError::NotConnected),
            };
            match taken {
                Ok(None) => {}
                Ok(Some(flow)) => self.note_ours(flow, item.seen.key),
                Err(SendError::Full) => self.out.counters.dropped += 1,
                Err(_) if item.ruled.is_some_and(|rule| !rule.fails_open) => {
                    self.out.counters.dropped += 1
                }
                Err(SendError::TooManyFlows) => {
                    if self.may_go(item, Cause::FlowLimit) {
                        self.out.counters.too_many += 1;
                        self.let_go(packet);
                    }
                }
                Err(SendError::NotConnected | SendError::Refused) => {
                    if self.may_go(item, Cause::PeerDown) {
                        self.out.counters.let_go += 1;
                        self.let_go(packet);
                    }
                }
            }
        }
    }

    /// A flow of our side began: nobody but this peer may take it for one of his.
    fn note_ours(&mut self, flow: FlowId, key: PacketKey) {
        if self.opened.notes_ours() {
            self.opened.insert_ours(key, self.owner);
            self.ours.note(flow, key);
        }
    }

    /// Whether the packet may take its plain way; what may not is lost.
    fn may_go(&mut self, item: &Item, cause: Cause) -> bool {
        let may = self.plain.may_go(Some(&item.seen), cause);
        self.out.counters.dropped += u64::from(!may);
        may
    }

    fn let_go(&mut self, packet: &[u8]) {
        if let Err(error) = self.out.tun.write(packet) {
            self.out.counters.not_emitted += 1;
            debug!(%error, "a packet cannot take its plain way");
        }
    }

    /// What the peer shall be asked for from now on, by [`For`].
    pub fn ask(&mut self, groups: [Vec<IpAddr>; 2], now: Instant) {
        if let Some(own) = &mut self.groups {
            for (ask, groups) in own.ask.iter_mut().zip(groups) {
                ask.groups = groups;
            }
            own.say_at = Some(now);
        }
    }

    /// Asks the peer for groups when it is time; for none only once.
    pub fn say_what_is_asked(&mut self, peer: &mut Peer, now: Instant) {
        let Some(own) = self
            .groups
            .as_mut()
            .filter(|own| own.say_at.is_some_and(|at| at <= now))
        else {
            return;
        };
        if !peer.is_up() {
            return;
        }
        for (ask, whom) in own.ask.iter_mut().zip(For::BOTH) {
            if ask.groups.is_empty() && !ask.believed {
                continue;
            }
            self.form.clear();
            own.number = own.number.wrapping_add(1);
            emit_membership(whom, &ask.groups, own.number, &mut self.form);
            // That nothing is wanted any more is said once.
            let treatment = (Class::Normal, Delivery::Reliable);
            let said = peer.send_packet(&membership_key(), treatment, &self.form, now);
            ask.believed = !ask.groups.is_empty() || said.is_err();
        }
        // One that does not want to hear it is asked again too: its configuration may change.
        own.say_at = own
            .ask
            .iter()
            .any(|ask| ask.believed)
            .then_some(now + TELL_EVERY);
    }

    /// The peer has begun anew: it knows nothing of what was asked, and asks for nothing.
    pub fn begin_anew(&mut self, now: Instant) {
        if let Some(own) = &mut self.groups {
            own.ask.iter_mut().for_each(|ask| ask.believed = false);
            own.say_at = Some(now);
            own.said = [None; 2];
            own.wanted.forget(Some(self.owner), now);
            (own.on_change)();
        }
    }

    /// Whether a flow of this key is one in which the peer asks for groups, and may.
    pub fn is_question(&self, key: &PacketKey) -> bool {
        *key == membership_key() && self.groups.as_ref().is_some_and(|own| own.may_ask)
    }

    /// Gives what arrived to the kernel.
    pub fn deliver(&mut self, peer: &mut Peer, now: Instant) {
        let Packets {
            out,
            run,
            groups,
            owner,
            opened,
            theirs,
            transit,
            onward,
            ..
        } = self;
        let mut pass_on =
            |to: PeerId, key: PacketKey, flow: FlowId, mut ruled: Option<Ruled>, bytes: &[u8]| {
                if let (Some(ruled), Some(theirs)) = (&mut ruled, theirs.get(&flow)) {
                    ruled.treatment = ruled.treatment.after(&theirs.asked);
                }
                let batch = onward.entry(to).or_default();
                let from = batch.bytes.len();
                batch.push(key, ruled, bytes);
                let goes_on = form::take_hop(&mut batch.bytes[from..]);
                if !goes_on {
                    batch.take_back(from);
                }
                goes_on
            };
        peer.take_packets(|arrived| {
            let is_for_many = is_for_many(arrived.key);
            if transit.is_some() && !is_for_many {
                let next = match arrived.is_reply {
                    // The answer to what another peer has brought.
                    true => opened
                        .by(arrived.key)
                        .filter(|by| by != owner)
                        .map(|by| (by, None)),
                    false => theirs
                        .get(&arrived.flow)
                        .and_then(|flow| flow.next)
                        .map(|(to, ruled)| (to, Some(ruled))),
                };
                if let Some((to, ruled)) = next {
                    let key = if arrived.is_reply {
                        arrived.key.turned()
                    } else {
                        *arrived.key
                    };
                    if pass_on(to, key, arrived.flow, ruled, arrived.bytes) {
                        return;
                    }
                    // The kernel says so to its source.
                }
            }
            if is_for_many {
                let counters = &mut out.counters;
                match groups.as_mut() {
                    // Both sides ask in the flow of this name, whoever opened it.
                    Some(own) if arrived.key.protocol == IGMP => {
                        if !own.may_ask || !own.hear(arrived.flow, arrived.bytes, *owner, now) {
                            counters.foreign += 1;
                        }
                    }
                    Some(own) if arrived.key.protocol == UDP && !arrived.is_reply => {
                        if let Some(passes) = &own.passes {
                            passes.each(arrived.key, |to, whom, ruled| {
                                if to != *owner && whom == For::Itself {
                                    let (key, flow) = (*arrived.key, arrived.flow);
                                    pass_on(to, key, flow, Some(ruled), arrived.bytes);
                                }
                            });
                        }
                        let emitted = own.emitter.emit(arrived.key, arrived.bytes);
                        counters.emitted += emitted.sent;
                        counters.not_emitted += emitted.not_sent;
                        counters.foreign += emitted.foreign;
                        counters.icmp += emitted.icmp;
                    }
                    // Nobody answers to a group.
                    _ => counters.foreign += 1,
                }
                return;
            }
            let key = if arrived.is_reply {
                arrived.key.turned()
            } else {
                *arrived.key
            };
            match form::as_udp(arrived.bytes).filter(|_| key.protocol == UDP) {
                Some((head, payload)) => {
                    if !run.takes(&key, head, payload.len()) {
                        run.flush(out);
                        run.begin(key, head, payload.len());
                    }
                    run.push(payload);
                }
                None => {
                    run.flush(out);
                    out.whole(arrived.bytes, &key);
                }
            }
        });
        run.flush(out);
        for (to, batch) in std::mem::take(&mut self.onward) {
            let lane = self.transit.as_ref().and_then(|transit| transit.lane(to));
            let packets = batch.items.len() as u64;
            if packets > 0 && !lane.is_some_and(|lane| lane.pass_on(batch)) {
                self.out.counters.dropped += packets;
            }
        }
    }

    /// Gives the engine what other peers have brought for this one.
    pub fn take_over(&mut self, peer: &mut Peer, batch: &Onward, now: Instant) {
        for (key, ruled, bytes) in &batch.items {
            let bytes = &batch.bytes[bytes.clone()];
            let treatment = ruled.map_or((Class::Normal.into(), Delivery::Timely), |rule| {
                (rule.treatment, rule.delivery)
            });
            let is_there = peer.packet_flow(key).is_some();
            if ruled.is_some() && is_there && !self.ours.is_taken_over(key) {
                // Our own LAN has opened it: it has gone round and come back.
                self.out.counters.dropped += 1;
                continue;
            }
            let belongs = ruled.is_some() || is_there;
            let taken = match belongs && peer.is_up() {
                true => peer.send_packet(key, treatment, bytes, now).ok(),
                false => None,
            };
            if ruled.is_some() {
                self.ours
                    .note_taken_over(key, |key| peer.packet_flow(key).is_some());
            }
            if let Some(Some(flow)) = taken {
                self.note_ours(flow, *key);
            }
            if taken.is_none() {
                // Its first leg is behind it: from here it takes its plain way, if its rule lets
                // it.
                match ruled {
                    Some(rule) if rule.fails_open => {
                        self.out.counters.let_go += 1;
                        self.plain.went(key, Cause::PeerDown);
                        self.out.whole(bytes, key);
                    }
                    _ => self.out.counters.dropped += 1,
                }
            }
        }
    }

    /// The peer has opened a flow: its answers are ours. It may go on to another peer. False when
    /// another peer owns it: then its answers are not this one's, it might go in circles, and what
    /// is sent to many would be heard twice.
    pub fn open(
        &mut self,
        flow: FlowId,
        (key, asked): (PacketKey, Treatment),
        next: Option<(PeerId, Ruled)>,
    ) -> bool {
        // Every peer has a flow of this name.
        if key != membership_key() && !self.opened.insert(key, self.owner) {
            self.out.counters.owned += 1;
            return false;
        }
        self.theirs.insert(flow, Theirs { key, asked, next });
        true
    }

    /// What an address means may change, when it becomes this host's own or is so no longer: the
    /// peer's flows that are not permitted any more end. To be called before anything of the peer
    /// is taken.
    pub fn follow_addresses(&mut self, peer: &mut Peer, exit: &Exit, now: Instant) -> u64 {
        let changes = exit.changes();
        if std::mem::replace(&mut self.permitted_at, changes) == changes {
            return 0;
        }
        let banned = |theirs: &Theirs| theirs.key != membership_key() && !exit.permits(&theirs.key);
        let flows: Vec<FlowId> = self
            .theirs
            .iter()
            .filter(|(_, theirs)| banned(theirs))
            .map(|(flow, _)| *flow)
            .collect();
        for flow in &flows {
            self.end(*flow);
            peer.reset(*flow, Status::NotAllowed, now);
        }
        flows.len() as u64
    }

    /// Whether the peer is heard: only then its flows are nobody else's.
    pub fn set_heard(&self, heard: bool) {
        self.opened.set_heard(self.owner, heard);
    }

    /// A flow is over.
    pub fn end(&mut self, flow: FlowId) {
        if let Some(Theirs { key, .. }) = self.theirs.remove(&flow) {
            self.opened.remove(&key, self.owner);
            shed(&mut self.theirs);
        }
        if let Some(key) = self.ours.end(flow) {
            self.opened.remove_ours(&key, self.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use tpo_engine::Config;

    use super::*;

    /// What the tables hold of one flow is charged: whatever kind of flow it is, in tables that
    /// have just grown, of which seven sixteenths are in use then (and a byte of control for each
    /// place).
    #[test]
    fn what_the_edge_remembers_of_a_flow_is_in_its_price() {
        let place = |bytes: usize| (bytes + 1) * 16 / 7;
        let owner = place(size_of::<(PacketKey, PeerId)>());
        let theirs = place(size_of::<(FlowId, Theirs)>()) + owner;
        let ours = place(size_of::<(FlowId, PacketKey)>()) + owner;
        let taken_over = ours + place(size_of::<PacketKey>());
        for (kind, bytes) in [
            ("theirs", theirs),
            ("ours", ours),
            ("taken over", taken_over),
        ] {
            assert!(bytes <= Config::EDGE_COST, "{kind}: {bytes}");
        }
    }

    #[test]
    fn nothing_stays_of_flows_that_are_over() {
        let mut ours = Ours::default();
        let key = |number: u32| {
            let from =
                std::net::SocketAddr::from((std::net::Ipv4Addr::from(0x0a01_0000 + number), 4_000));
            PacketKey::new(UDP, from, "10.2.2.2:53".parse().unwrap()).unwrap()
        };
        const FLOWS: u32 = 20_000;
        for number in 0..FLOWS {
            ours.note_taken_over(&key(number), |_| true);
            ours.note(FlowId(number), key(number));
            // One that the engine refuses was never there.
            ours.note_taken_over(&key(FLOWS + number), |_| false);
        }
        assert_eq!(
            (ours.taken_over.len(), ours.by_flow.len()),
            (FLOWS as usize, FLOWS as usize)
        );
        assert!(ours.is_taken_over(&key(7)) && !ours.is_taken_over(&key(FLOWS)));
        for number in 0..FLOWS {
            assert_eq!(ours.end(FlowId(number)), Some(key(number)));
        }
        assert_eq!((ours.taken_over.len(), ours.by_flow.len()), (0, 0));
        assert!(
            ours.taken_over.capacity() <= 8_192,
            "{}",
            ours.taken_over.capacity()
        );
    }
}
