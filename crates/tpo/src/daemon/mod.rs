//! The daemon: makes the rooms from the configuration, connects them, waits for the signal to end,
//! and takes everything down in order.
//!
//! The picture of its threads is in ARCHITECTURE.md, "Threads".

pub mod control;
mod passed;
pub(crate) mod reports;
pub mod tables;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tpo_engine::Compression;
use tpo_mover::Guard;
use tracing::{debug, info, warn};

use crate::config::{Checked, Keys};
use crate::daemon::reports::{Counters, Facts};
use crate::daemon::tables::{
    enabled, engine_config, exit, group_table, multicast_plan, policy, table, transit,
};
use crate::demultiplexer::{Demultiplexer, Listed, Table};
use crate::edge::exit::Claims;
use crate::edge::shares::Shares;
use crate::gate::{self, Gate};
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
use crate::packets::multicast::{Multicast, Plan};
use crate::packets::owners::FlowOwners;
use crate::packets::plain_way::Plain;
use crate::packets::reader::TunReader;
use crate::table::peers::{ByPeer, PeerId};
use crate::table::{OnFailure, Table as KernelTable};

/// Lanes that take longer to end are left behind: removing the rules must not wait for them.
const ENDING: Duration = Duration::from_secs(2);
/// How often what is installed in the kernel is looked at.
const RULES_EVERY: Duration = Duration::from_secs(1);
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
pub(crate) fn run(checked: &Checked, keys: Keys) -> Result<()> {
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
    let mut budgets = vec![0; daemon.lanes.len()];
    let mut failed = None;
    let mut next_look = Instant::now() + RULES_EVERY;
    while signal.load(Ordering::Relaxed) == 0 && failed.is_none() {
        share_memory(&daemon.lanes, memory, &mut budgets);
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
    threads: Vec<JoinHandle<()>>,
    gate: Gate,
    demultiplexer: Demultiplexer,
    tun_reader: Option<TunReader>,
    multicast: Option<Multicast>,
    /// The way into the TUN device is gone and could not be restored, which has been said.
    packets_lost: bool,
    plain: Arc<Plain>,
    installed: Installed,
    table: KernelTable,
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
        let table = table(checked);
        say_findings(&table, descriptors);
        let foothold = Foothold::take(checked, &table)?;
        let ports = foothold.listeners.ports();
        let tun = foothold.installed.tun();
        let (own, following) = Following::start().context("learn this host's own addresses")?;
        let plain = Arc::new(plain_way(checked));
        let at = checked.tpo.listen;
        let listener = Link::listen(at).with_context(|| format!("listen at {at} (UDP)"))?;
        let doorbell = Doorbell::new().context("make the gate's poll")?;
        let plan = multicast_plan(checked);
        let groups = open_groups(&plan, tun.is_some())?;
        let transit = transit(checked).map(Arc::new);
        let owners = Arc::new(FlowOwners::new(checked.peers.len()));
        let shared = tun.clone().map(|tun| edge::Shared {
            tun,
            own: own.clone(),
            plain: plain.clone(),
            owners: owners.clone(),
            transit: transit.clone(),
        });
        let parts = LaneParts {
            checked,
            keys,
            own,
            transit: transit.as_ref(),
            shared: shared.as_ref(),
            groups: groups.as_ref(),
            plan: &plan,
            listener: &listener,
            doorbell: &doorbell,
        };
        let (lanes, threads) = parts.start_all(descriptors)?;
        if let Some(transit) = &transit {
            transit.set_lanes(lanes.clone());
        }
        let demultiplexer = start_demultiplexer(checked, keys, listener, &lanes)
            .context("start the demultiplexer")?;
        let wanted = groups.as_ref().map(|parts| &parts.wanted);
        let directory = directory(checked, &plain, owners, &lanes, wanted);
        let tun_reader = tun
            .map(|tun| TunReader::start(tun, directory))
            .transpose()
            .context("start the TUN reader")?;
        let multicast = groups
            .map(|parts| parts.start(plan, foothold.installed.has_v6(), lanes.clone()))
            .transpose()
            .context("start multicast")?;
        let given = gate::Given {
            listeners: foothold.listeners,
            lease: foothold.lease,
            policy: policy(checked),
            carriers: checked.carriers.clone(),
            lanes: lanes.clone(),
        };
        let gate = Gate::start(doorbell, given).context("start the gate")?;
        let counters = counters(&gate, &demultiplexer, tun_reader.as_ref(), &plain);
        let facts = Arc::new(Facts::new(checked, lanes.clone(), counters));
        let control = control::Server::answer(foothold.control, facts)
            .context("answer at the control socket")?;
        let watched = watched(&gate, &demultiplexer, tun_reader.as_ref());
        Ok(Daemon {
            lanes,
            threads,
            gate,
            demultiplexer,
            tun_reader,
            multicast,
            packets_lost: false,
            plain,
            installed: foothold.installed,
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
                self.tun_reader
                    .as_ref()
                    .is_some_and(TunReader::has_ended)
                    .then(|| "TUN reader".into()),
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
        if let Some(reader) = self.tun_reader {
            reader.stop();
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

/// Says in the log what keeps interception from being what the configuration asks for.
fn say_findings(table: &KernelTable, descriptors: u64) {
    let all = findings::failures(table)
        .into_iter()
        .chain(findings::findings(table));
    for finding in all.chain(findings::descriptors(descriptors)) {
        match finding.severity {
            findings::Severity::Info => info!("{finding}"),
            findings::Severity::Warning | findings::Severity::Problem => warn!("{finding}"),
        }
    }
}

/// What only root may make, and what must be there before others are heard.
struct Foothold {
    listeners: Listeners,
    installed: Installed,
    control: control::Bound,
    lease: Lease,
}

impl Foothold {
    /// Takes it, and gives up all that the daemon needs no more.
    fn take(checked: &Checked, table: &KernelTable) -> Result<Foothold> {
        // `install` finds out whether another tpo runs here, so only the listeners, whose ports it
        // needs, come before it. Without a lease open rules let everything pass, and closed ones
        // refuse.
        let listeners = Listeners::with_room(table.mode, table.bounds.half_open())
            .context("open the listening sockets of interception")?;
        let ports = listeners.ports();
        let installed = install::install(table, ports).context("install the interception rules")?;
        let control = control::Bound::new(&checked.tpo.control).with_context(|| {
            format!("open the control socket {}", checked.tpo.control.display())
        })?;
        // Every thread that hears others starts after this. The UDP sockets are made after it too:
        // sockets that share a port must belong to the same user.
        confine(checked, &control).context("give up what is not needed")?;
        // Better to hear now that the rules cannot be put in force again than when somebody has
        // removed them.
        install::rehearse(table, ports).context("as a confined daemon")?;
        let lease = Lease::for_protocols(&table.packets).context("open netlink for the leases")?;
        Ok(Foothold {
            listeners,
            installed,
            control,
            lease,
        })
    }
}

/// What all lanes are made of.
struct LaneParts<'a> {
    checked: &'a Checked,
    keys: &'a Keys,
    own: Arc<Own>,
    transit: Option<&'a Arc<Transit>>,
    /// What the packet edges of all lanes share, if any packets are carried.
    shared: Option<&'a edge::Shared>,
    groups: Option<&'a MulticastParts>,
    plan: &'a Plan,
    listener: &'a Link,
    doorbell: &'a Doorbell,
}

impl LaneParts<'_> {
    /// Starts the lane of each peer, of a process with this limit of open files.
    fn start_all(&self, descriptors: u64) -> Result<(ByPeer<Lane>, Vec<JoinHandle<()>>)> {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let peers = &self.checked.peers;
        let all_shares = Shares::of_lanes(descriptors, peers.len(), self.plan.interfaces.len());
        // What a level costs is this machine's own.
        let compression = Compression::measured(self.checked.tpo.compress_isolation, |work| {
            let start = Instant::now();
            work();
            start.elapsed()
        });
        debug!(costs_ns = ?compression.costs, "compression measured");
        let worker = DictionaryWorker::start().context("start the dictionary worker")?;
        let claims = Arc::new(Claims {
            policy: policy(self.checked),
            carriers: self.checked.carriers.clone(),
        });
        let passes = self.groups.filter(|_| self.transit.is_some()).map(|parts| {
            Arc::new(group_table(
                self.checked,
                |rule| rule.transit,
                &parts.wanted,
            ))
        });
        let (mut lanes, mut threads) = (ByPeer::default(), Vec::new());
        for ((id, peer), shares) in peers.iter_with_id().zip(all_shares) {
            let membership = self
                .groups
                .map(|groups| groups.of_lane(id, self.plan, passes.clone()));
            let start = lane::Start {
                name: peer.name.clone(),
                exit: exit(self.checked, id, self.own.clone(), claims.clone()),
                engine: engine_config(self.checked, id, self.keys, compression)?,
                packets: self
                    .shared
                    .map(|shared| Packets::new(id, shared.clone(), membership)),
                id,
                transit: self.transit.cloned(),
                listener: (self.listener.try_clone()).context("share the listening socket")?,
                shares,
                dictionary_worker: worker.clone(),
                path_cache: PathCache::of_service(&peer.name),
                demand: peer.on_demand.map(Demand::new),
                on_change: Box::new(self.doorbell.ring()),
            };
            let (lane, thread) =
                lane::start(start).with_context(|| format!("start the lane of {}", peer.name))?;
            lanes.push(lane);
            threads.push(thread);
        }
        Ok((lanes, threads))
    }
}

fn start_demultiplexer(
    checked: &Checked,
    keys: &Keys,
    listener: Link,
    lanes: &ByPeer<Lane>,
) -> std::io::Result<Demultiplexer> {
    let listed = lanes.iter().zip(&checked.peers).zip(&keys.pre_shared);
    let listed = listed.map(|((lane, peer), pre_shared)| Listed {
        lane: lane.clone(),
        key: peer.public_key,
        guard: Guard::new(&keys.identity, &peer.public_key, pre_shared.as_deref()),
        endpoint: peer.endpoint,
    });
    let table = Table::new(&keys.identity.public_key(), listed.collect());
    Demultiplexer::start(listener, table)
}

/// What the TUN reader looks up.
fn directory(
    checked: &Checked,
    plain: &Arc<Plain>,
    owners: Arc<FlowOwners>,
    lanes: &ByPeer<Lane>,
    wanted: Option<&Arc<Wanted>>,
) -> Directory {
    Directory {
        policy: policy(checked),
        fails_open: enabled(checked)
            .map(|rule| rule.on_failure == OnFailure::Open)
            .collect(),
        plain: plain.clone(),
        carriers: checked.carriers.clone(),
        owners,
        lanes: lanes.clone(),
        groups: wanted.map(|wanted| group_table(checked, |_| true, wanted)),
    }
}

fn counters(
    gate: &Gate,
    demultiplexer: &Demultiplexer,
    tun_reader: Option<&TunReader>,
    plain: &Arc<Plain>,
) -> Counters {
    Counters {
        gate: gate.counters.clone(),
        demultiplexer: demultiplexer.drops.clone(),
        tun_reader: tun_reader.map(|reader| reader.counters.clone()),
        plain: plain.clone(),
    }
}

/// What the service manager's watchdog wants to know of.
fn watched(gate: &Gate, demultiplexer: &Demultiplexer, tun_reader: Option<&TunReader>) -> Watched {
    let turns = [
        Some(&gate.counters.turns),
        Some(&demultiplexer.turns),
        tun_reader.map(|reader| &reader.turns),
    ];
    Watched::new(turns.into_iter().flatten().cloned(), Instant::now())
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

    /// Starts the thread.
    fn start(self, plan: Plan, has_v6: bool, lanes: ByPeer<Lane>) -> std::io::Result<Multicast> {
        let MulticastParts {
            doorbell,
            wanted,
            joined,
            lans,
        } = self;
        let sets = GroupSets::open(has_v6)?;
        Multicast::start(doorbell, plan, (wanted, joined), lans, sets, lanes)
    }

    /// What the lane of one peer has of it.
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

/// What multicast needs before there are lanes, if it is carried.
fn open_groups(plan: &Plan, has_tun: bool) -> Result<Option<MulticastParts>> {
    match has_tun && plan.is_used() {
        true => MulticastParts::open(plan).context("multicast").map(Some),
        false => Ok(None),
    }
}

/// What may take its plain way: all that no closed rule names.
fn plain_way(checked: &Checked) -> Plain {
    let closed = enabled(checked).map(|rule| rule.on_failure == OnFailure::Closed);
    Plain::new(policy(checked), closed.collect())
}

/// Each lane may hold what the others leave free, but never less than an equal share of a half.
fn share_memory(lanes: &ByPeer<Lane>, memory: usize, budgets: &mut [usize]) {
    let used: Vec<usize> = lanes
        .iter()
        .map(|lane| lane.pulse.memory.load(Ordering::Relaxed))
        .collect();
    let total: usize = used.iter().sum();
    let floor = memory / 2 / lanes.len().max(1);
    for ((lane, own), known) in lanes.iter().zip(&used).zip(budgets) {
        let budget = memory.saturating_sub(total - own).max(floor);
        // A small change is not worth a wake-up.
        if budget.abs_diff(*known) > memory / 64 && lane.send(Command::Budget(budget)).is_ok() {
            *known = budget;
        }
    }
}
