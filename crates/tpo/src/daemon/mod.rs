//! The daemon: makes the rooms from the configuration, connects them, waits for the signal to end,
//! and takes everything down in order.
//!
//! The picture of its threads is in ARCHITECTURE.md, "Threads".

pub mod control;
mod passed;
pub mod reports;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tpo_engine::{Compression, Policy, Prefix, Rule};
use tpo_mover::Guard;
use tracing::{debug, info, warn};

use crate::config::checked;
use crate::config::{Checked, Keys};
use crate::daemon::reports::Facts;
use crate::demultiplexer::{Demultiplexer, Listed, Table};
use crate::edge::exit::{Claims, Exit, Permit, SourceAddress};
use crate::edge::shares::Shares;
use crate::gate::Gate;
use crate::host::doorbell::Doorbell;
use crate::host::life_signs::Watched;
use crate::host::own_addresses::{Following, Own};
use crate::host::privilege;
use crate::host::service::Service;
use crate::intercept::findings;
use crate::intercept::install::{self, Installed};
use crate::intercept::lease::{GroupSets, Lease};
use crate::intercept::tcp::Listeners;
use crate::intercept::tcp::Ports;
use crate::lane;
use crate::lane::dictionary_worker::DictionaryWorker;
use crate::lane::on_demand::Demand;
use crate::lane::path_cache::{self, PathCache};
use crate::lanes::handle::{Command, Lane};
use crate::lanes::transit::Transit;
use crate::link::udp::Link;
use crate::packets::directory::{Directory, GroupTable};
use crate::packets::edge::{self, Packets};
use crate::packets::multicast::emit;
use crate::packets::multicast::groups::{Joined, Wanted};
use crate::packets::multicast::membership::Membership;
use crate::packets::multicast::neighbours::site;
use crate::packets::multicast::{Multicast, Plan};
use crate::packets::owners::FlowOwners;
use crate::packets::plain_way::Plain;
use crate::packets::reader::TunReader;
use crate::table::bounds::Bounds;
use crate::table::peers::{ByPeer, PeerId};
use crate::table::protocols::{ICMP, ICMP_V6, TCP};
use crate::table::{self, OnFailure, RuleSpec};

/// Lanes that take longer to end are left behind: removing the rules must not wait for them.
const ENDING: Duration = Duration::from_secs(2);
/// How often what is installed in the kernel is looked at.
const RULES_EVERY: Duration = Duration::from_secs(1);
/// The initial credit of a flow grows with a configured rate up to this: flows whose application
/// takes nothing may hold it.
const MOST_CREDIT: u32 = 1 << 20;
/// When the gate, the demultiplexer or the TUN reader has not turned for this long, the service
/// manager gets no life sign: each turns twice a second at least.
const WEDGED: Duration = Duration::from_secs(2);
/// How often the main thread looks for a signal to end, and at the memory of all lanes.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
/// What keeps the daemon from starting, in words for the administrator. Once it runs, nothing ends
/// it but the signal, or a failure of its own after which everything is removed and the service
/// manager may start it again.
pub fn run(checked: &Checked, keys: Keys) -> Result<()> {
    let signal = Arc::new(AtomicUsize::new(0));
    for number in [SIGTERM, SIGINT, SIGHUP] {
        let value = usize::try_from(number).expect("signal numbers are small");
        signal_hook::flag::register_usize(number, signal.clone(), value)
            .context("watch for signals")?;
    }
    let limit = crate::sys::raise_descriptor_limit().context("raise the limit of open files")?;
    let mut service = Service::from_environment();
    let mut daemon = Daemon::start(checked, &keys, limit)?;
    service.ready();
    info!(name = %checked.tpo.name, listen = %checked.tpo.listen, peers = checked.peers.len(), rules = checked.rules.len(), "tpo runs");
    let memory = usize::try_from(checked.tpo.memory).unwrap_or(usize::MAX);
    let mut told = vec![0; daemon.lanes.len()];
    let mut failed = None;
    let mut next_look = Instant::now() + RULES_EVERY;
    while signal.load(Ordering::Relaxed) == 0 && failed.is_none() {
        share_memory(&daemon.lanes, memory, &mut told);
        failed = daemon.ended_by_itself();
        if daemon.watched.all_turn(WEDGED, Instant::now()) {
            service.alive(Instant::now());
        }
        if Instant::now() >= next_look {
            // This thread gives the life sign as well.
            crate::host::program::within_limit(|| {
                daemon.watch_rules();
                daemon.watch_groups();
            });
            next_look = Instant::now() + RULES_EVERY;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    info!(signal = signal.load(Ordering::Relaxed), "ending");
    service.stopping();
    daemon.stop(failed.is_none());
    match failed {
        None => Ok(()),
        Some(thread) => bail!(
            "the thread \"{thread}\" ended by a failure; everything installed has been removed, but for what holds closed rules"
        ),
    }
}

struct Daemon {
    lanes: ByPeer<Lane>,
    threads: Vec<std::thread::JoinHandle<()>>,
    gate: Gate,
    demultiplexer: Demultiplexer,
    tap: Option<TunReader>,
    multicast: Option<Multicast>,
    /// The way into the TUN device is gone and could not be restored, which has been said.
    packets_lost: bool,
    plain: Arc<Plain>,
    installed: Installed,
    table: table::Table,
    ports: Ports,
    control: control::Server,
    following: Following,
    /// What the service manager's watchdog wants to know of. No lane is among them: how much one
    /// has to do at a time is its peer's choice, and who wedges his own lane loses his lease and
    /// nothing else ([`crate::gate`]).
    watched: Watched,
}

impl Daemon {
    fn start(checked: &Checked, keys: &Keys, descriptors: u64) -> Result<Daemon> {
        let own_key = keys.identity.public_key();
        let table = table(checked);
        let all = findings::failures(&table)
            .into_iter()
            .chain(findings::findings(&table));
        for finding in all.chain(findings::descriptors(descriptors)) {
            match finding.severity {
                findings::Severity::Info => info!("{finding}"),
                findings::Severity::Warning | findings::Severity::Problem => warn!("{finding}"),
            }
        }
        // `install` finds out whether another tpo runs here, so only the listeners, whose ports it
        // needs, come before it. Without a lease open rules let everything pass, and closed ones
        // refuse.
        let listeners = Listeners::with_room(table.mode, table.bounds.half_open())
            .context("open the interceptor's sockets")?;
        let ports = listeners.ports();
        let installed =
            install::install(&table, ports).context("install the interception rules")?;
        let control = control::Bound::new(&checked.tpo.control).with_context(|| {
            format!("open the control socket {}", checked.tpo.control.display())
        })?;
        // Every thread that hears others starts after this. The UDP sockets are made after it too:
        // sockets that share a port must belong to the same user.
        confine(checked, &control).context("give up what is not needed")?;
        // Better to hear now that the rules cannot be put in force again than when somebody has
        // removed them.
        install::rehearse(&table, ports).context("as a confined daemon")?;
        let lease = Lease::for_protocols(&table.packets).context("open netlink for the leases")?;
        let (tun, owners) = (
            installed.tun(),
            Arc::new(FlowOwners::new(checked.peers.len())),
        );
        let (own, following) = Following::start().context("learn this host's own addresses")?;
        let enabled = || checked.rules.iter().filter(|rule| rule.enabled);
        let policy = || Policy::new(enabled().map(|rule| rule.matches.clone()).collect());
        let closed = enabled().map(|rule| rule.on_failure == OnFailure::Closed);
        let plain = Arc::new(Plain::new(policy(), closed.collect()));
        let listener = Link::listen(checked.tpo.listen)
            .with_context(|| format!("listen at {} (UDP)", checked.tpo.listen))?;
        let doorbell = Doorbell::new().context("make the gate's poll")?;
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let plan = multicast_plan(checked);
        let mut groups = match tun.is_some() && plan.is_used() {
            true => Some(MulticastParts::open(&plan).context("multicast")?),
            false => None,
        };

        let transit = transit(checked).map(Arc::new);
        let passes = groups
            .as_ref()
            .filter(|_| transit.is_some())
            .map(|parts| Arc::new(group_table(checked, |rule| rule.transit, &parts.wanted)));
        // What a level costs is this machine's own.
        let compression = Compression::measured(checked.tpo.compress_isolation, |work| {
            let start = Instant::now();
            work();
            start.elapsed()
        });
        debug!(costs_ns = ?compression.costs, "compression measured");
        let dictionary_worker = DictionaryWorker::start().context("start the dictionary worker")?;
        let enabled = || checked.rules.iter().filter(|rule| rule.enabled);
        let policy = || Policy::new(enabled().map(|rule| rule.matches.clone()).collect());
        let claims = Arc::new(Claims {
            policy: policy(),
            carriers: checked.carriers.clone(),
        });
        let all_shares = Shares::of_lanes(descriptors, checked.peers.len(), plan.interfaces.len());
        let mut lanes = ByPeer::default();
        let mut threads = Vec::new();
        for ((id, peer), shares) in checked.peers.iter_with_id().zip(all_shares) {
            let start = lane::Start {
                name: peer.name.clone(),
                exit: exit(checked, id, own.clone(), claims.clone()),
                engine: engine_config(checked, id, keys, compression)?,
                packets: tun.clone().map(|tun| {
                    let shared = edge::Shared {
                        tun,
                        own: own.clone(),
                        plain: plain.clone(),
                        owners: owners.clone(),
                        transit: transit.clone(),
                    };
                    let membership = groups
                        .as_ref()
                        .map(|groups| groups.of_lane(id, &plan, passes.clone()));
                    Packets::new(id, shared, membership)
                }),
                id,
                transit: transit.clone(),
                listener: listener.try_clone().context("share the listening socket")?,
                shares,
                dictionary_worker: dictionary_worker.clone(),
                path_cache: PathCache::of_service(&peer.name),
                demand: peer.on_demand.map(Demand::new),
                on_change: Box::new(doorbell.ring()),
            };
            let (lane, thread) =
                lane::start(start).with_context(|| format!("start the lane of {}", peer.name))?;
            lanes.push(lane);
            threads.push(thread);
        }
        if let Some(transit) = &transit {
            transit.set_lanes(lanes.clone());
        }
        let listed = lanes.iter().cloned().zip(&checked.peers);
        let listed = listed
            .zip(&keys.pre_shared)
            .map(|((lane, peer), pre_shared)| Listed {
                lane,
                key: peer.public_key,
                guard: Guard::new(&keys.identity, &peer.public_key, pre_shared.as_deref()),
                endpoint: peer.endpoint,
            });
        let demultiplexer = Demultiplexer::start(listener, Table::new(&own_key, listed.collect()))
            .context("start the demultiplexer")?;

        let tap = tun.map(|tun| {
            let fails_open = enabled()
                .map(|rule| rule.on_failure == OnFailure::Open)
                .collect();
            let to_groups = groups
                .as_ref()
                .map(|parts| group_table(checked, |_| true, &parts.wanted));
            let carriers = checked.carriers.clone();
            let lanes = lanes.clone();
            let plain = plain.clone();
            TunReader::start(
                tun,
                Directory {
                    policy: policy(),
                    fails_open,
                    plain,
                    carriers,
                    owners,
                    lanes,
                    groups: to_groups,
                },
            )
        });
        let tap = tap.transpose().context("start the tap")?;
        let multicast = groups.take().map(|parts| {
            let MulticastParts {
                doorbell,
                wanted,
                joined,
                lans,
            } = parts;
            let sets = GroupSets::open(installed.has_v6())?;
            Multicast::start(doorbell, plan, (wanted, joined), lans, sets, lanes.clone())
        });
        let multicast = multicast.transpose().context("start multicast")?;
        let table_of_gate = (policy(), checked.carriers.clone());
        let gate = Gate::start(doorbell, listeners, lease, table_of_gate, lanes.clone())
            .context("start the gate")?;
        let taken = tap.as_ref().map(|tap| tap.counters.clone());
        let counters = (
            gate.counters.clone(),
            demultiplexer.drops.clone(),
            taken,
            plain.clone(),
        );
        let facts = Facts::new(checked, lanes.clone(), counters);
        let control = control::Server::answer(control, Arc::new(facts))
            .context("answer at the control socket")?;
        let turns = [
            Some(&gate.counters.turns),
            Some(&demultiplexer.turns),
            tap.as_ref().map(|tap| &tap.turns),
        ];
        let watched = Watched::new(turns.into_iter().flatten().cloned(), Instant::now());
        Ok(Daemon {
            lanes,
            threads,
            gate,
            demultiplexer,
            tap,
            multicast,
            packets_lost: false,
            plain,
            installed,
            table,
            ports,
            control,
            following,
            watched,
        })
    }

    /// Others remove what they did not install (a reload of the firewall, a network manager that
    /// owns all routing rules). Half of it left in place would take connections and deliver them
    /// nowhere, so the leases go until all is whole again.
    fn watch_rules(&mut self) {
        // First: what is missing here lets something through that must not be.
        match self.installed.keep_holding() {
            Ok(false) => self.plain.hold_lost.store(false, Ordering::Relaxed),
            Ok(true) => {
                warn!("somebody removed what holds the closed rules, or a part; it is there again")
            }
            Err(error) if !self.plain.hold_lost.swap(true, Ordering::Relaxed) => {
                warn!(%error, "what holds the closed rules is not whole: what they name may take its plain way");
            }
            Err(_) => {}
        }
        match self.installed.is_whole() {
            Ok(true) => self.gate.set_intact(true),
            Ok(false) => {
                if self.gate.counters.intact.load(Ordering::Relaxed) {
                    warn!("somebody removed our rules or our route; they are installed again");
                }
                self.gate.set_intact(false);
                match self.installed.repair(&self.table, self.ports) {
                    Ok(()) => self.gate.set_intact(true),
                    Err(error) => {
                        warn!(%error, "interception cannot be installed again: traffic goes as its rule's on_failure says")
                    }
                }
            }
            Err(error) => warn!(%error, "cannot look at the interception rules"),
        }
        // Without this way open rules' packets take their plain one; closed rules are held.
        match self.installed.packets_are_whole() {
            Ok(true) => self.packets_lost = false,
            Ok(false) => match self.installed.repair_packets(&self.table) {
                Ok(()) => warn!("somebody removed the way into our TUN device; it is there again"),
                Err(error) if !std::mem::replace(&mut self.packets_lost, true) => {
                    warn!(%error, "UDP, ICMP and other packets are no longer taken: they go as their rule's on_failure says");
                }
                Err(_) => {}
            },
            Err(error) => warn!(%error, "cannot look at the way into the TUN device"),
        }
    }

    /// Without these tables nothing is copied, and nothing else happens.
    fn watch_groups(&self) {
        if self
            .multicast
            .as_ref()
            .is_some_and(Multicast::has_lost_its_sets)
            && let Err(error) = self.installed.repair_groups(&self.table)
        {
            warn!(%error, "multicast is no longer taken from the LANs");
        }
    }

    /// The name of a thread that has ended though nobody asked it to.
    fn ended_by_itself(&self) -> Option<String> {
        let lanes = self.lanes.iter().zip(&self.threads);
        lanes
            .filter(|(_, thread)| thread.is_finished())
            .map(|(lane, _)| format!("lane {}", lane.name))
            .chain(self.gate.has_ended().then(|| "gate".into()))
            .chain(
                self.demultiplexer
                    .has_ended()
                    .then(|| "demultiplexer".into()),
            )
            .chain(self.following.has_ended().then(|| "addresses".into()))
            .chain(
                self.tap
                    .as_ref()
                    .is_some_and(TunReader::has_ended)
                    .then(|| "tap".into()),
            )
            .chain(
                self.multicast
                    .as_ref()
                    .is_some_and(Multicast::has_ended)
                    .then(|| "multicast".into()),
            )
            .next()
    }

    /// New connections go their plain way first, then flows end, then the rules that they needed
    /// are removed.
    fn stop(self, orderly: bool) {
        let start = Instant::now();
        self.control.stop();
        self.gate.stop();
        for lane in &self.lanes {
            lane.close();
        }
        let deadline = Instant::now() + ENDING;
        for thread in self.threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            if !thread.is_finished() {
                warn!("a lane does not end; its flows are reset by the kernel");
            } else if thread.join().is_err() {
                warn!("a lane ended by a failure");
            }
        }
        self.demultiplexer.stop();
        self.following.stop();
        if let Some(multicast) = self.multicast {
            multicast.stop();
        }
        if let Some(tap) = self.tap {
            tap.stop();
        }
        let removed = match orderly {
            true => self.installed.remove(),
            false => self.installed.give_up(),
        };
        if let Err(error) = removed {
            warn!(%error, "the interception rules could not be removed");
        }
        info!(took_ms = start.elapsed().as_millis() as u64, "ended");
    }
}

/// The daemon becomes its own user and gives up everything else ([`privilege`]).
fn confine(checked: &Checked, control: &control::Bound) -> Result<()> {
    let who = privilege::Who::choose(checked.tpo.user.as_deref())?;
    control.give(&who)?;
    let mut folders: Vec<_> = control
        .path()
        .parent()
        .map(Into::into)
        .into_iter()
        .collect();
    if let Some(folder) = path_cache::folder() {
        // A folder that is not ours costs what is remembered of the paths, and no more.
        if let Err(error) = path_cache::give(&folder, &who) {
            warn!(error = %format!("{error:#}"), "paths to the peers will not be remembered");
        }
        folders.push(folder);
    }
    privilege::confine(&who, &folders)
}

/// What multicast's thread and the lanes share.
struct MulticastParts {
    doorbell: Doorbell,
    wanted: Arc<Wanted>,
    joined: Arc<Joined>,
    lans: Arc<[emit::Lan]>,
}

impl MulticastParts {
    fn open(plan: &Plan) -> Result<MulticastParts> {
        let open = |name: &String| {
            emit::Lan::open(name).with_context(|| {
                format!("open raw sockets on the interface {name} ([multicast] interfaces)")
            })
        };
        let lans: Vec<emit::Lan> = plan.interfaces.iter().map(open).collect::<Result<_>>()?;
        let (wanted, joined) = Default::default();
        Ok(MulticastParts {
            doorbell: Doorbell::new()?,
            wanted,
            joined,
            lans: lans.into(),
        })
    }

    fn of_lane(&self, id: PeerId, plan: &Plan, passes: Option<Arc<GroupTable>>) -> Membership {
        let emitter = emit::Emitter::new(id, self.lans.clone(), self.joined.clone());
        Membership::new(
            emitter,
            plan.may_ask(id),
            self.wanted.clone(),
            passes,
            Box::new(self.doorbell.ring()),
        )
    }
}

/// The rules that are also for what peers bring; none: nothing goes on from peer to peer.
fn transit(checked: &Checked) -> Option<Transit> {
    let mut rules = checked
        .rules
        .iter()
        .filter(|rule| rule.enabled && rule.transit)
        .peekable();
    rules.peek()?;
    let to_one: Vec<&checked::Rule> = rules.filter(|rule| !rule.is_for_many()).collect();
    let fails_open = to_one
        .iter()
        .map(|rule| rule.on_failure == OnFailure::Open)
        .collect();
    let policy = Policy::new(to_one.iter().map(|rule| rule.matches.clone()).collect());
    Some(Transit::new(policy, fails_open, checked.carriers.clone()))
}

/// Those of the rules for groups of many, and who asks.
fn group_table(
    checked: &Checked,
    which: impl Fn(&checked::Rule) -> bool,
    wanted: &Arc<Wanted>,
) -> GroupTable {
    let rules = checked
        .rules
        .iter()
        .filter(|rule| rule.enabled && rule.is_for_many() && which(rule));
    let policy = Policy::new(rules.map(|rule| rule.matches.clone()).collect());
    GroupTable {
        policy,
        carriers: checked.carriers.clone(),
        wanted: wanted.clone(),
    }
}

fn multicast_plan(checked: &Checked) -> Plan {
    let rules = || {
        checked
            .rules
            .iter()
            .filter(|rule| rule.enabled && rule.is_for_many())
    };
    let accepts = checked
        .accepts
        .iter()
        .filter(|accept| accept.destination.address.is_multicast());
    let what_for_whom =
        |rule: &checked::Rule| (rule.matches.destination, rule.carriers.peers.clone());
    Plan {
        interfaces: checked.multicast.interfaces.clone(),
        asks: checked.multicast.querier,
        rules: rules().map(what_for_whom).collect(),
        passes: rules()
            .filter(|rule| rule.transit)
            .map(what_for_whom)
            .collect(),
        accepts: accepts
            .map(|accept| (accept.peer, accept.destination, accept.pinned))
            .collect(),
        sites: checked
            .peers
            .iter()
            .map(|peer| site(peer.public_key.as_bytes()))
            .collect(),
    }
}

/// Each lane may hold what the others leave free, but never less than an equal share of a half.
fn share_memory(lanes: &ByPeer<Lane>, memory: usize, told: &mut [usize]) {
    let used: Vec<usize> = lanes
        .iter()
        .map(|lane| lane.pulse.memory.load(Ordering::Relaxed))
        .collect();
    let total: usize = used.iter().sum();
    let floor = memory / 2 / lanes.len().max(1);
    for ((lane, own), told) in lanes.iter().zip(&used).zip(told) {
        let budget = memory.saturating_sub(total - own).max(floor);
        // A small change is not worth a wake-up.
        if budget.abs_diff(*told) > memory / 64 && lane.send(Command::Budget(budget)).is_ok() {
            *told = budget;
        }
    }
}

fn engine_config(
    checked: &Checked,
    id: PeerId,
    keys: &Keys,
    compression: Compression,
) -> Result<tpo_engine::Config> {
    let peer = &checked.peers[id];
    let pre_shared = keys.pre_shared[id].clone();
    let slot =
        u16::try_from(id.number()).expect("the checked configuration has at most 4,096 peers");
    let mut mover = tpo_mover::Config::new(
        keys.identity.clone(),
        peer.public_key,
        slot,
        crate::sys::random_seed()?,
    );
    mover.pre_shared = pre_shared;
    mover.endpoint = peer.endpoint;
    mover.on_demand = peer.on_demand.is_some();
    mover.segment = checked.tpo.segment_size;
    mover.max_payload = checked.tpo.buffer_size.max(mover.max_payload);
    mover.rate = peer.rate;
    mover.congestion = peer.congestion;
    mover.loss_tolerance = peer.loss_tolerance;
    mover.remembered_path = PathCache::of_service(&peer.name).and_then(|cache| cache.load());
    mover.dead_after = checked.tpo.outage;
    let mut limits = tpo_engine::Limits::default();
    limits.peer_bytes = limits
        .peer_bytes
        .min(usize::try_from(checked.tpo.memory).unwrap_or(usize::MAX));
    (limits.one_way, limits.both_ways) = (checked.tpo.idle, checked.tpo.idle_both);
    if let Some(rate) = peer.rate {
        // Ten milliseconds of what we may send, where what comes is usually as fast: a new flow is
        // at its rate one round trip sooner. On a link whose ways differ it is too much or too
        // little for a round trip, within bounds.
        limits.initial_credit = u32::try_from(rate / 100)
            .unwrap_or(u32::MAX)
            .clamp(limits.initial_credit, MOST_CREDIT);
    }
    let compression = Compression {
        compress: peer.compress,
        ..compression
    };
    Ok(tpo_engine::Config {
        mover,
        buffer_size: checked.tpo.buffer_size,
        limits,
        compression,
    })
}

fn exit(checked: &Checked, peer: PeerId, own: Arc<Own>, claims: Arc<Claims>) -> Exit {
    let permits = checked
        .accepts
        .iter()
        .filter(|accept| accept.peer == peer)
        .map(|accept| Permit {
            protocol: accept.protocol,
            sources: accept.sources.clone(),
            destination: accept.destination,
            destination_ports: accept.destination_ports.clone(),
            source_address: match accept.source_address {
                checked::SourceAddress::Client => SourceAddress::Client,
                checked::SourceAddress::Tpo => SourceAddress::Tpo,
            },
        });
    Exit::new(permits.collect(), peer, own, claims)
}

/// The look-up table as the kernel's side of interception wants it.
pub fn table(checked: &Checked) -> table::Table {
    table::Table {
        rules: checked
            .rules
            .iter()
            .filter(|rule| !rule.is_for_many())
            .flat_map(rule_specs)
            .collect(),
        mode: checked.intercept.mode,
        local: checked.intercept.local,
        interfaces: checked.intercept.interfaces.clone(),
        peers: checked.peers.len(),
        carriers: checked.carriers.clone(),
        multicast: checked.multicast.interfaces.clone(),
        far_source_is_client: checked
            .accepts
            .iter()
            .any(|accept| accept.source_address == checked::SourceAddress::Client),
        packets: packets(checked),
        // The far side forgets a flow later than its opener.
        packets_rest: checked.tpo.idle_both.max(checked.tpo.idle) + checked.tpo.idle,
        bounds: Bounds {
            syns_per_source: checked.intercept.syn_rate_per_source,
            syns: checked.intercept.syn_rate,
            flows: tpo_engine::Limits::default().flows * checked.peers.len().max(1),
            rest_one_way: checked.tpo.idle * 2,
        },
        hold_closed: checked.tpo.hold_closed,
    }
}

/// The rule of the configuration, by its place there, from which each rule of [`table()`] comes.
pub fn origins(checked: &Checked) -> Vec<usize> {
    let rules = checked
        .rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| !rule.is_for_many());
    rules
        .flat_map(|(place, rule)| rule_specs(rule).into_iter().map(move |_| place))
        .collect()
}

/// The protocols other than TCP that are carried, either way.
fn packets(checked: &Checked) -> Vec<u8> {
    let rules = checked
        .rules
        .iter()
        .filter(|rule| rule.enabled)
        .map(|rule| rule.matches.protocol);
    let mut all: Vec<u8> = rules
        .chain(checked.accepts.iter().map(|accept| accept.protocol))
        .collect();
    if all.contains(&ICMP) || all.iter().any(|protocol| *protocol != TCP) {
        // Errors about the others are carried too.
        all.extend([ICMP, ICMP_V6]);
    }
    all.retain(|protocol| *protocol != TCP);
    all.sort_unstable();
    all.dedup();
    all
}

/// One rule, or two where it means both families.
fn rule_specs(rule: &checked::Rule) -> Vec<RuleSpec> {
    let Rule {
        protocol,
        source,
        source_ports,
        destination,
        destination_ports,
        carriers,
        ..
    } = &rule.matches;
    families(*source, *destination)
        .into_iter()
        .map(|(source, destination)| RuleSpec {
            protocol: match *protocol {
                ICMP if source.0.is_ipv6() => ICMP_V6,
                protocol => protocol,
            },
            source,
            source_ports: source_ports.clone(),
            destination,
            destination_ports: destination_ports.clone(),
            carriers: *carriers,
            on_failure: rule.on_failure,
            enabled: rule.enabled,
        })
        .collect()
}

/// The pairs of source and destination prefixes of one family each that two prefixes mean together.
/// "Any" is of both families; prefixes of different families mean nothing, which the checked
/// configuration does not let through.
fn families(source: Prefix, destination: Prefix) -> Vec<((IpAddr, u8), (IpAddr, u8))> {
    let four = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let six = (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
    let plain = |prefix: Prefix| (prefix.address, prefix.length);
    match (source.is_any(), destination.is_any()) {
        (true, true) => vec![(four, four), (six, six)],
        (true, false) if destination.address.is_ipv4() => vec![(four, plain(destination))],
        (false, true) if source.address.is_ipv4() => vec![(plain(source), four)],
        _ => vec![(plain(source), plain(destination))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_means_both_families_unless_the_other_end_says_one() {
        let check = |source: &str, destination: &str, want: &[(&str, &str)]| {
            let text = |(address, length): (IpAddr, u8)| format!("{address}/{length}");
            let got = families(source.parse().unwrap(), destination.parse().unwrap());
            let got: Vec<_> = got.into_iter().map(|(s, d)| (text(s), text(d))).collect();
            let want: Vec<_> = want
                .iter()
                .map(|(s, d)| (s.to_string(), d.to_string()))
                .collect();
            assert_eq!(got, want, "{source} to {destination}");
        };
        check(
            "any",
            "any",
            &[("0.0.0.0/0", "0.0.0.0/0"), ("::/0", "::/0")],
        );
        check("any", "10.0.0.0/8", &[("0.0.0.0/0", "10.0.0.0/8")]);
        check("10.0.0.0/8", "any", &[("10.0.0.0/8", "0.0.0.0/0")]);
        check("any", "fd00::/8", &[("::/0", "fd00::/8")]);
        check("fd00::/8", "any", &[("fd00::/8", "::/0")]);
        check("0.0.0.0/0", "0.0.0.0/0", &[("0.0.0.0/0", "0.0.0.0/0")]);
    }
}
