//! The thread of multicast: looks at the LANs, asks and answers there, tells the lanes what their
//! peers shall be asked for, and keeps the kernel's sets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Token};
use socket2::{Domain, Socket, Type};
use tracing::{debug, info, warn};

use super::emit::Lan;
use super::groups::{Joined, Listeners, MOST_GROUPS, Wanted, fair_share, peers_of};
use super::igmp::{self, Heard};
use super::listen::{Listener, link_local, own_members};
use super::members::Members;
use super::neighbours::{self, Neighbours};
use super::plan::Plan;
use super::site::Site;
use super::sockets::Memberships;
use super::taking::Taking;
use crate::host::doorbell::Doorbell;
use crate::intercept::lease::{GroupSets, RENEW_EVERY};
use crate::lanes::handle::{Command, Lane};
use crate::sys;
use crate::table::address::is_routed;
use crate::table::peers::{ByPeer, PeerId};

/// How often interfaces, addresses and this host's own members are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What peers ask for is followed at most so often, however often they say it.
const FOLLOW_EVERY: Duration = Duration::from_millis(50);
/// A peer is told of changes at most so often: what others ask of a hub changes by their words.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// Reports handled before anything else has its turn.
const TURN: usize = 256;

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
                    listeners: lans.iter().map(|_| None).collect(),
                    given: lanes.iter().map(|_| Given::default()).collect(),
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

/// What a lane was given last, and when.
#[derive(Default)]
struct Given {
    groups: [Vec<IpAddr>; 2],
    at: Option<Instant>,
}

struct Loop {
    doorbell: Doorbell,
    plan: Plan,
    members: Members,
    neighbours: Neighbours,
    listeners: Vec<Option<Listener>>,
    /// What each lane was given last.
    given: Vec<Given>,
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
        for (lan, listener) in self.listeners.iter().enumerate() {
            let Some(listener) = listener else { continue };
            // A turn's rest is found at the next wake-up, half a second later at most.
            for _ in 0..TURN {
                match listener.next() {
                    Some(Some(Heard::Serves { from, sites })) => {
                        self.neighbours.hear(lan, from, sites, now)
                    }
                    Some(Some(heard)) => self.members.hear(lan, heard, now),
                    Some(None) => {}
                    None => break,
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
            if self.listeners[lan].as_ref().map(|listener| listener.index) != index {
                self.listeners[lan] = index.and_then(|index| self.listen(lan, index));
            }
            let v4 = sys::interface_v4(&self.any, name).ok().map(IpAddr::from);
            self.members
                .set_own(lan, [v4, link_local(&v6, name).map(IpAddr::from)], now);
            for of_one in own
                .iter()
                .filter(|of_one| of_one.interface == *name && is_routed(of_one.group))
            {
                // One of them is our own, where peers ask for it.
                if of_one.users > u32::from(self.taking.contains(of_one.group)) {
                    self.members.hear_own(lan, of_one.group, now);
                }
            }
        }
    }

    fn listen(&self, lan: usize, index: u32) -> Option<Listener> {
        let registry = self.doorbell.poll.registry();
        match Listener::open(index, registry, Token(1 + lan)) {
            Ok(listener) => Some(listener),
            Err(error) => {
                let lan = &self.plan.interfaces[lan];
                warn!(%error, lan, "multicast: cannot hear who listens to groups here");
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
        for ((peer, lane), given) in self.lanes.iter_with_id().zip(&mut self.given) {
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
            let is_time = given.at.is_none_or(|at| now >= at + ASK_EVERY);
            if wanted != given.groups
                && is_time
                && lane.send(Command::Groups(wanted.clone())).is_ok()
            {
                debug!(peer = %lane.name, groups = ?wanted, "groups are asked for");
                *given = Given {
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
