//! Multicast: one thread that knows which groups our LANs listen to and which ones the peers ask
//! for, and sees to both.
//!
//! * Towards the peers it is a listener: what hosts of our LANs have joined (heard by packet
//!   sockets, [`igmp`], [`members`]), and what the configuration pins, is asked for at every peer
//!   from which an `accept` lets it come, in one message for all listeners ([`groups`]).
//! * Towards our LANs it is a router that asks who listens, and a member of what peers ask for:
//!   switches that look into IGMP then send it here.
//! * In the kernel it keeps the sets of groups that are copied into the TUN device. Nobody asks:
//!   nothing is copied.
//!
//! * For its peers it is a hub, where a rule with `transit` says so: what one of them wants for
//!   itself is asked for at the others.
//!
//! Packets themselves do not come this way: the TUN reader gives them to the lanes of the peers
//! that ask, [`crate::packets::multicast::emit`] sends out what comes, and `packets/onward.rs`
//! hands on what a hub's peers want. Loops are impossible: what a peer brought is never taken from
//! a LAN, and goes on only to peers that want it for themselves; a flow comes from one peer at a
//! time; only packets from where the kernel would send answers are taken, and each TPO takes one
//! off the hop limit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Token};
use socket2::{Domain, InterfaceIndexOrAddress, SockFilter, Socket, Type};
use tpo_engine::Prefix;
use tracing::{debug, info, warn};

use crate::host::doorbell::Doorbell;
use crate::intercept::lease::{GroupSets, RENEW_EVERY};
use crate::lanes::handle::{Command, Lane};
use crate::packets::multicast::emit::Lan;
use crate::packets::multicast::groups::{
    For, Joined, Listeners, MOST_GROUPS, Wanted, fair_share, peers_of,
};
use crate::packets::multicast::igmp::Heard;
use crate::packets::multicast::members::Members;
use crate::packets::multicast::neighbours::{Neighbours, Site};
use crate::packets::multicast::taking::Taking;
use crate::sys;
use crate::table::address::is_routed;
use crate::table::peers::{ByPeer, PeerId};

pub(crate) mod emit;
pub mod groups;
pub(crate) mod igmp;
pub(crate) mod members;
pub(crate) mod membership;
pub(crate) mod neighbours;
pub(crate) mod taking;

/// How often interfaces, addresses and this host's own members are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What peers ask for is followed at most so often, however often they say it.
const FOLLOW_EVERY: Duration = Duration::from_millis(50);
/// A peer is told of changes at most so often: what others ask of a hub changes by their words.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Reports handled before anything else has its turn.
const TURN: usize = 256;
/// IGMP and MLD are far shorter; what is longer is read cut and not understood.
const LONGEST: usize = 9_216;

/// What the configuration says about it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The LANs.
    pub(crate) interfaces: Vec<String>,
    /// Whether we ask who listens, where no router does.
    pub(crate) asks: bool,
    /// Groups that are taken from our LANs, and for which peers.
    pub(crate) rules: Vec<(Prefix, Vec<PeerId>)>,
    /// Groups that go on from peer to peer, and to which.
    pub(crate) passes: Vec<(Prefix, Vec<PeerId>)>,
    /// Groups that peers may bring: which peer, which groups, whether they are asked for even when
    /// nobody listens.
    pub(crate) accepts: Vec<(PeerId, Prefix, bool)>,
    /// The peers' names for other TPOs of a LAN.
    pub(crate) sites: ByPeer<Site>,
}

impl Plan {
    /// Whether there is anything to do.
    pub(crate) fn is_used(&self) -> bool {
        !self.interfaces.is_empty() || !self.passes.is_empty()
    }

    /// Whether this peer may ask us for groups at all.
    pub(crate) fn may_ask(&self, peer: PeerId) -> bool {
        self.rules.iter().any(|(_, peers)| peers.contains(&peer))
    }

    fn is_taken(&self, group: IpAddr, peer: PeerId) -> bool {
        self.rules
            .iter()
            .any(|(prefix, peers)| prefix.contains(group) && peers.contains(&peer))
    }

    /// Whether one of these wants it for itself, other than `peer`, and is to get it from here.
    fn is_passed(&self, group: IpAddr, askers: &[(PeerId, For)], peer: PeerId) -> bool {
        let passes = |to: PeerId| {
            self.passes
                .iter()
                .any(|(prefix, peers)| prefix.contains(group) && peers.contains(&to))
        };
        askers
            .iter()
            .any(|(asker, whom)| *whom == For::Itself && *asker != peer && passes(*asker))
    }

    fn is_accepted(&self, group: IpAddr, peer: PeerId) -> bool {
        self.accepts
            .iter()
            .any(|(from, prefix, _)| *from == peer && prefix.contains(group))
    }
}

/// The running thread.
pub(crate) struct Multicast {
    ring: Box<dyn Fn() + Send>,
    stopping: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Multicast {
    /// Starts the thread.
    pub(crate) fn start(
        doorbell: Doorbell,
        plan: Plan,
        (wanted, joined): (Arc<Wanted>, Arc<Joined>),
        lans: Arc<[Lan]>,
        sets: GroupSets,
        lanes: ByPeer<Lane>,
    ) -> io::Result<Multicast> {
        let ring = Box::new(doorbell.ring());
        let stopping = Arc::new(AtomicBool::new(false));
        let lost = Arc::new(AtomicBool::new(false));
        let (stop, sets_lost) = (stopping.clone(), lost.clone());
        let any = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        let thread = std::thread::Builder::new()
            .name("multicast".into())
            .spawn(move || {
                Loop {
                    doorbell,
                    members: Members::new(lans.len(), plan.asks),
                    neighbours: Neighbours::new(lans.len()),
                    snoops: lans.iter().map(|_| None).collect(),
                    told: lanes.iter().map(|_| Told::default()).collect(),
                    shown: Listeners::default(),
                    taking: Taking::default(),
                    memberships: lans.iter().map(|_| Memberships::default()).collect(),
                    sets,
                    sets_lost,
                    plan,
                    wanted,
                    joined,
                    lans,
                    lanes,
                    any,
                    stopping: stop,
                }
                .run();
            })?;
        Ok(Multicast {
            ring,
            stopping,
            lost,
            thread,
        })
    }

    /// Whether the thread has ended by itself, which it never should.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Somebody removed the sets of groups that it keeps.
    pub(crate) fn has_lost_its_sets(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Ends the thread: our memberships end with it.
    pub(crate) fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        (self.ring)();
        // One that panicked has said so already.
        let _ = self.thread.join();
    }
}

/// A packet socket on one LAN, and the number of the interface that it hears.
struct Snoop {
    socket: Socket,
    index: u32,
}

/// What a lane was given last, and when.
#[derive(Default)]
struct Told {
    groups: [Vec<IpAddr>; 2],
    at: Option<Instant>,
}

/// The sockets by which this host is a member of groups on one LAN. The kernel lets each have some
/// only (`igmp_max_memberships`, usually 20).
#[derive(Default)]
struct Memberships {
    sockets: Vec<Holder>,
    /// Which socket holds each group.
    of: HashMap<IpAddr, usize>,
    /// Sockets opened since the start.
    opened: u64,
}

/// One of them. Without groups it is closed, and its place is free.
struct Holder {
    socket: Option<Socket>,
    is_v4: bool,
    groups: usize,
    is_full: bool,
}

struct Loop {
    doorbell: Doorbell,
    plan: Plan,
    members: Members,
    neighbours: Neighbours,
    snoops: Vec<Option<Snoop>>,
    /// What each lane was given last.
    told: Vec<Told>,
    /// What the lanes send out, and where.
    shown: Listeners,
    /// Groups that peers ask for, and how we are a member of them on each LAN.
    taking: Taking,
    memberships: Vec<Memberships>,
    sets: GroupSets,
    sets_lost: Arc<AtomicBool>,
    wanted: Arc<Wanted>,
    joined: Arc<Joined>,
    lans: Arc<[Lan]>,
    lanes: ByPeer<Lane>,
    /// To ask about interfaces with.
    any: Socket,
    stopping: Arc<AtomicBool>,
}

impl Loop {
    fn run(mut self) {
        let mut events = Events::with_capacity(16);
        let (mut next_look, mut next_tell, mut next_renewal) =
            (Instant::now(), Instant::now(), Instant::now());
        let mut next_follow = Instant::now();
        let mut queries = Vec::new();
        while !self.stopping.load(Ordering::SeqCst) {
            let now = Instant::now();
            if now >= next_look {
                self.look(now);
                next_look = now + LOOK_EVERY;
            }
            if now >= next_tell {
                self.tell_neighbours();
                next_tell = now + neighbours::TELL_EVERY;
            }
            self.neighbours.turn(now);
            self.members.turn(now, &mut queries);
            for query in queries.drain(..) {
                let packet = igmp::query(query.own, query.group, query.within);
                let everybody: IpAddr = match query.own {
                    IpAddr::V4(_) => Ipv4Addr::new(224, 0, 0, 1).into(),
                    IpAddr::V6(_) => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
                };
                if let Err(error) =
                    self.lans[query.lan].send(&packet, query.group.unwrap_or(everybody))
                {
                    debug!(%error, lan = self.plan.interfaces[query.lan], "nobody can be asked for groups");
                }
            }
            let follows = now >= next_follow;
            if follows {
                self.ask_peers(now);
                next_follow = now + FOLLOW_EVERY;
            }
            if follows && self.follow_peers(now) || now >= next_renewal {
                self.renew_sets();
                next_renewal = now + RENEW_EVERY;
            }
            let wake = next_look.min(next_tell).min(next_renewal);
            let wait =
                if follows { wake } else { wake.min(next_follow) }.saturating_duration_since(now);
            if let Err(error) = self.doorbell.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                warn!(%error, "multicast: cannot wait for reports; the thread ends");
                return;
            }
            self.hear(Instant::now());
        }
    }

    /// What hosts have said since.
    fn hear(&mut self, now: Instant) {
        let mut buffer = [0; LONGEST];
        for (lan, snoop) in self.snoops.iter().enumerate() {
            let Some(snoop) = snoop else { continue };
            // A turn's rest is found at the next wake-up, half a second later at most.
            for _ in 0..TURN {
                let Ok(length) = (&snoop.socket).read(&mut buffer) else {
                    break;
                };
                match igmp::read(&buffer[..length]) {
                    Some(Heard::Serves { from, sites }) => {
                        self.neighbours.hear(lan, from, sites, now)
                    }
                    Some(heard) => self.members.hear(lan, heard, now),
                    None => {}
                }
            }
        }
    }

    /// Interfaces and addresses as they are now, and what this host itself listens to.
    fn look(&mut self, now: Instant) {
        let v6 = std::fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
        let own = own_members();
        for (lan, name) in self.plan.interfaces.iter().enumerate() {
            let index = sys::interface_index(name).ok();
            if self.snoops[lan].as_ref().map(|snoop| snoop.index) != index {
                self.snoops[lan] = index.and_then(|index| self.snoop(lan, index));
            }
            let v4 = sys::interface_v4(&self.any, name).ok().map(IpAddr::from);
            self.members
                .set_own(lan, [v4, link_local(&v6, name).map(IpAddr::from)], now);
            for (_, group, users) in own
                .iter()
                .filter(|(interface, group, _)| interface == name && is_routed(*group))
            {
                // One of them is our own, where peers ask for it.
                if *users > u32::from(self.taking.contains(*group)) {
                    self.members.hear_own(lan, *group, now);
                }
            }
        }
    }

    fn snoop(&self, lan: usize, index: u32) -> Option<Snoop> {
        let name = &self.plan.interfaces[lan];
        let opened = sys::open_packet_socket(index, &membership_filter()).and_then(|socket| {
            let registry = self.doorbell.poll.registry();
            registry.register(
                &mut SourceFd(&socket.as_raw_fd()),
                Token(1 + lan),
                Interest::READABLE,
            )?;
            Ok(Snoop { socket, index })
        });
        match opened {
            Ok(snoop) => Some(snoop),
            Err(error) => {
                warn!(%error, lan = name, "multicast: cannot hear who listens to groups here");
                None
            }
        }
    }

    /// Says on each LAN from which sites we can bring groups.
    fn tell_neighbours(&mut self) {
        if self.plan.accepts.is_empty() {
            return;
        }
        let brings = |peer: &PeerId| {
            let may = self.plan.accepts.iter().any(|(from, ..)| from == peer);
            may && self.lanes[*peer].pulse.is_up()
        };
        let sites: Vec<Site> = self
            .lanes
            .ids()
            .filter(brings)
            .map(|peer| self.plan.sites[peer])
            .collect();
        for (lan, sender) in self.lans.iter().enumerate() {
            let Some(own) = self.members.own_v4(lan) else {
                continue;
            };
            if let Err(error) =
                sender.send(&neighbours::emit(own, &sites), neighbours::ROUTERS.into())
            {
                debug!(%error, lan = self.plan.interfaces[lan], "other TPOs cannot be told what we bring");
            }
        }
    }

    /// LANs, with the peer, to which another TPO brings what comes from there.
    fn left_to_others(&self) -> BTreeSet<(usize, PeerId)> {
        let mut left = BTreeSet::new();
        for lan in 0..self.lans.len() {
            let Some(own) = self.members.own_v4(lan) else {
                continue;
            };
            let theirs = self.plan.sites.iter_with_id();
            left.extend(
                theirs
                    .filter(|(_, site)| self.neighbours.brings(lan, own, site))
                    .map(|(peer, _)| (lan, peer)),
            );
        }
        left
    }

    /// Tells each lane what its peer shall be asked for.
    fn ask_peers(&mut self, now: Instant) {
        let mut groups = self.members.groups();
        for (_, prefix, _) in self.plan.accepts.iter().filter(|(.., pinned)| *pinned) {
            groups.insert(prefix.address, (0..self.lans.len()).collect());
        }
        let listeners = Listeners {
            groups,
            left: self.left_to_others(),
        };
        let Listeners { groups, .. } = &listeners;
        let asked = if self.plan.passes.is_empty() {
            BTreeMap::new()
        } else {
            self.wanted.all()
        };
        for ((peer, lane), told) in self.lanes.iter_with_id().zip(&mut self.told) {
            // Without LANs of our own what the configuration pins is for peers.
            let is_ours = |group: &IpAddr| {
                let listens = self.lans.is_empty() || listeners.lans(*group, peer).next().is_some();
                groups.contains_key(group) && listens
            };
            let own = groups
                .keys()
                .copied()
                .filter(|group| self.plan.is_accepted(*group, peer) && is_ours(group));
            // What another TPO brings to our LANs may still be for a peer.
            let for_others = asked.iter().filter(|(group, askers)| {
                let passed = !is_ours(group) && self.plan.is_passed(**group, askers, peer);
                passed && self.plan.is_accepted(**group, peer)
            });
            let wanted = [
                own.take(MOST_GROUPS).collect::<Vec<IpAddr>>(),
                fair_share(
                    for_others.map(|(group, askers)| (*group, peers_of(askers))),
                    MOST_GROUPS,
                )
                .into_iter()
                .collect(),
            ];
            let is_time = told.at.is_none_or(|at| now >= at + ASK_EVERY);
            if wanted != told.groups
                && is_time
                && lane.send(Command::Groups(wanted.clone())).is_ok()
            {
                debug!(peer = %lane.name, groups = ?wanted, "groups are asked for");
                *told = Told {
                    groups: wanted,
                    at: Some(now),
                };
            }
        }
        if listeners.left != self.shown.left {
            let of = |(lan, peer): &(usize, PeerId)| {
                (&self.plan.interfaces[*lan], &self.lanes[*peer].name)
            };
            info!(left = ?listeners.left.iter().map(of).collect::<Vec<_>>(), "LANs to which another TPO brings a peer's groups");
        }
        if listeners != self.shown {
            self.joined.set(listeners.clone());
            self.shown = listeners;
        }
    }

    /// Becomes a member of what peers ask for, and no longer of what they do not. Whether something
    /// changed.
    fn follow_peers(&mut self, now: Instant) -> bool {
        self.wanted.forget(None, now);
        let mut asked: BTreeMap<IpAddr, Vec<PeerId>> = BTreeMap::new();
        for (group, peers) in self.wanted.all() {
            let may = peers
                .into_iter()
                .map(|(peer, _)| peer)
                .filter(|peer| self.plan.is_taken(group, *peer));
            let may: Vec<PeerId> = may.collect();
            if !may.is_empty() {
                asked.insert(group, may);
            }
        }
        let changes = self.taking.turn(&asked, now);
        for (memberships, name) in self.memberships.iter_mut().zip(&self.plan.interfaces) {
            for group in &changes.leave {
                memberships.leave(name, *group);
            }
            for group in &changes.join {
                if let Err(error) = memberships.join(name, *group) {
                    warn!(%error, %group, lan = name, "multicast: cannot become a member");
                }
            }
        }
        for group in &changes.join {
            debug!(%group, "a peer asks for this group");
        }
        !changes.join.is_empty() || !changes.leave.is_empty()
    }

    fn renew_sets(&mut self) {
        if self.lans.is_empty() {
            return;
        }
        let outcome = self.sets.renew(self.taking.groups());
        let lost = outcome.is_err();
        let before = self.sets_lost.swap(lost, Ordering::Relaxed);
        if let (Err(error), false) = (outcome, before) {
            warn!(%error, "multicast: the kernel's sets of groups cannot be kept: nothing is taken from the LANs");
        }
    }
}

impl Memberships {
    /// Makes this host a member, so that switches send the group here.
    fn join(&mut self, interface: &str, group: IpAddr) -> io::Result<()> {
        let index = sys::interface_index(interface)?;
        let fits = |holder: &Holder| {
            holder.is_v4 == group.is_ipv4() && !holder.is_full && holder.socket.is_some()
        };
        for (place, holder) in self
            .sockets
            .iter_mut()
            .enumerate()
            .filter(|(_, holder)| fits(holder))
        {
            let Some(socket) = &holder.socket else {
                continue;
            };
            match set_membership(socket, index, group, true) {
                Ok(()) => {
                    holder.groups += 1;
                    self.of.insert(group, place);
                    return Ok(());
                }
                // As many as this one may have: the next one. The kernel says so in one of these
                // ways.
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) =>
                {
                    holder.is_full = true
                }
                Err(error) => return Err(error),
            }
        }
        let domain = if group.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::DGRAM, None)?;
        set_membership(&socket, index, group, true)?;
        self.opened += 1;
        let holder = Holder {
            socket: Some(socket),
            is_v4: group.is_ipv4(),
            groups: 1,
            is_full: false,
        };
        let place = self
            .sockets
            .iter()
            .position(|holder| holder.socket.is_none())
            .unwrap_or(self.sockets.len());
        if place == self.sockets.len() {
            self.sockets.push(holder);
        } else {
            self.sockets[place] = holder;
        }
        self.of.insert(group, place);
        Ok(())
    }

    /// It is none any more.
    fn leave(&mut self, interface: &str, group: IpAddr) {
        let Some(place) = self.of.remove(&group) else {
            return;
        };
        let holder = &mut self.sockets[place];
        let index = sys::interface_index(interface).unwrap_or(0);
        if let Some(socket) = &holder.socket
            && let Err(error) = set_membership(socket, index, group, false)
        {
            // With the interface its memberships went.
            debug!(%error, %group, lan = interface, "a membership had ended already");
        }
        holder.groups -= 1;
        holder.is_full = false;
        if holder.groups == 0 {
            holder.socket = None;
        }
    }
}

/// A socket becomes a member on this interface, or ends that.
fn set_membership(socket: &Socket, index: u32, group: IpAddr, joins: bool) -> io::Result<()> {
    let at = InterfaceIndexOrAddress::Index(index);
    match (group, joins) {
        (IpAddr::V4(group), true) => socket.join_multicast_v4_n(&group, &at),
        (IpAddr::V4(group), false) => socket.leave_multicast_v4_n(&group, &at),
        (IpAddr::V6(group), true) => socket.join_multicast_v6(&group, index),
        (IpAddr::V6(group), false) => socket.leave_multicast_v6(&group, index),
    }
}

/// Lets IGMP, and ICMPv6 behind a header of options, through: `A` and the rest are of the classic
/// packet filter's machine.
fn membership_filter() -> [SockFilter; 12] {
    const BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const END: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = SockFilter::new;
    [
        step(BYTE, 0, 0, 0),
        step(AND, 0, 0, 0xf0),
        step(IS, 0, 2, 0x40),
        step(BYTE, 0, 0, 9),
        step(IS, 6, 5, igmp::IGMP.into()),
        step(IS, 0, 4, 0x60),
        step(BYTE, 0, 0, 6),
        step(IS, 0, 2, 0),
        step(BYTE, 0, 0, 40),
        step(IS, 1, 0, crate::table::protocols::ICMP_V6.into()),
        step(END, 0, 0, 0),
        step(END, 0, 0, LONGEST as u32),
    ]
}

/// The link-local address of an interface, in the kernel's list of addresses.
fn link_local(list: &str, interface: &str) -> Option<Ipv6Addr> {
    list.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let address = u128::from_str_radix(words.next()?, 16).ok()?;
        (words.last()? == interface && address >> 112 == 0xfe80).then(|| Ipv6Addr::from(address))
    })
}

/// What this host is a member of: interface, group, and how many members there are.
fn own_members() -> Vec<(String, IpAddr, u32)> {
    let v4 = std::fs::read_to_string("/proc/self/net/igmp").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/self/net/igmp6").unwrap_or_default();
    let mut all = read_igmp_list(&v4);
    all.extend(v6.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let group = Ipv6Addr::from(u128::from_str_radix(words.get(2)?, 16).ok()?);
        Some((
            words[1].to_owned(),
            group.into(),
            words.get(3)?.parse().ok()?,
        ))
    }));
    all
}

fn read_igmp_list(text: &str) -> Vec<(String, IpAddr, u32)> {
    let mut interface = "";
    let mut all = Vec::new();
    for line in text.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if !line.starts_with(char::is_whitespace) {
            interface = words.get(1).copied().unwrap_or_default();
        } else if let [group, users, ..] = words[..]
            && let (Ok(group), Ok(users)) = (u32::from_str_radix(group, 16), users.parse())
        {
            // As it lies in memory, read as a number of this machine.
            all.push((
                interface.to_owned(),
                Ipv4Addr::from(group.to_ne_bytes()).into(),
                users,
            ));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thousand groups take the sockets that the kernel needs for them, and a socket that is left
    /// by all is closed.
    #[test]
    fn memberships_share_sockets() {
        let mut memberships = Memberships::default();
        let groups: Vec<IpAddr> = (0..200_u32)
            .map(|number| (0xef09_0000 + number).to_be_bytes().into())
            .collect();
        for group in &groups {
            memberships.join("lo", *group).unwrap();
        }
        let sockets = memberships.sockets.len();
        assert!(
            sockets <= groups.len() / 10 && memberships.opened as usize == sockets,
            "{sockets} sockets"
        );
        // Half of them change again and again: what is left is used again.
        for _ in 0..5 {
            groups[..100]
                .iter()
                .for_each(|group| memberships.leave("lo", *group));
            groups[..100]
                .iter()
                .for_each(|group| memberships.join("lo", *group).unwrap());
        }
        assert!(
            memberships.opened as usize <= 7 * sockets && memberships.sockets.len() <= sockets + 1
        );
        groups
            .iter()
            .for_each(|group| memberships.leave("lo", *group));
        assert!(
            memberships.of.is_empty()
                && memberships
                    .sockets
                    .iter()
                    .all(|holder| holder.socket.is_none())
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_lists_are_read() {
        let list = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    2\tlan0      :     2      V3\n\t\t\t\t010101EF     2 0:00000000\t\t0\n";
        let seen = read_igmp_list(list);
        assert_eq!(
            seen[1],
            ("lan0".to_owned(), "239.1.1.1".parse().unwrap(), 2)
        );
        let list = "fd100001000000000000000000000001 02 40 00 80     lan0\nfe800000000000000000000000000007 02 40 20 80     lan0\n";
        assert_eq!(link_local(list, "lan0"), Some("fe80::7".parse().unwrap()));
        assert_eq!(link_local(list, "lan1"), None);
    }
}
