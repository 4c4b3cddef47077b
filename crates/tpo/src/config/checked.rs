//! The configuration as it is meant: names are indices, rates are bytes per second, prefixes and
//! keys are parsed, paths are complete. The rest of the program takes this and never sees the text.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tpo_engine::{CarriersId, Class, Compress, Delivery, PacketKey, Policy, Prefix, Treatment};
use tpo_mover::{Congestion, PublicKey};

use super::file::{File, Section, Written};
use super::{Findings, Level, shadow, value};
use crate::host::log::LogFormat;
use crate::table::address::{Prefixes, is_routed, is_special, is_special_only};
use crate::table::bounds::Bounds;
use crate::table::carriers::{AllCarriers, Carriers};
use crate::table::layers::MAX_RULES;
use crate::table::peers::{ByPeer, PeerId};
use crate::table::protocols::{ICMP, ICMP_V6, TCP, UDP};
use crate::table::{Mode, OnFailure};

/// A whole configuration in which every name is known and every value is inside its bounds.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The file it was read from.
    pub file: PathBuf,
    /// `name`: what this TPO is called in its logs and in `tpo status`.
    pub name: String,
    /// `private_key_file`, complete. Read by [`load_identity`](super::load_identity), which needs
    /// more rights than the rest.
    pub private_key_file: PathBuf,
    /// The line that names it.
    pub private_key_line: usize,
    /// `listen`: where datagrams of the peers arrive.
    pub listen: SocketAddr,
    /// `control`, complete: the Unix socket of `tpo status`.
    pub control: PathBuf,
    /// `user`: as whom it runs when root has started it; `None` ("auto"): as tpo or, where there is
    /// no such user, as a number of nobody's.
    pub user: Option<String>,
    /// `buffer_size`: the packet driver's largest buffer, bytes.
    pub buffer_size: usize,
    /// `segment_size`: the largest datagram (UDP payload), bytes. `None`: found from the path.
    pub segment_size: Option<u16>,
    /// `memory`: what all flows of all peers may hold together, bytes.
    pub memory: u64,
    /// `outage`: how long flows wait for a peer that is silent.
    pub outage: Duration,
    /// `idle`: how long a flow of what is no TCP lives without a packet when only one side has
    /// spoken.
    pub idle: Duration,
    /// `idle_both`: the same when both have.
    pub idle_both: Duration,
    /// `compress_isolation`: each buffer is compressed by itself, and none that holds several
    /// flows.
    pub compress_isolation: bool,
    /// `hold_closed`: closed rules hold after an orderly stop too, and for every packet of TCP.
    pub hold_closed: bool,
    /// `log`: what to log, in the words of [`log`](crate::host::log).
    pub log: String,
    /// `log_format`.
    pub log_format: LogFormat,
    /// `[intercept]`.
    pub intercept: Intercept,
    /// `[multicast]`.
    pub multicast: Multicast,
    /// The `[[peer]]` sections in order; rules and accepts name them by index.
    pub peers: ByPeer<Peer>,
    /// The `[[rule]]` sections in order: the first match wins.
    pub rules: Vec<Rule>,
    /// Whom the rules' carriers mean.
    pub carriers: AllCarriers,
    /// The `[[accept]]` sections in order.
    pub accepts: Vec<Accept>,
}

/// How connections are taken from the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intercept {
    /// By which mechanism of the kernel.
    pub mode: Mode,
    /// Also the connections of applications on the TPO's own host.
    pub local: bool,
    /// Only connections that come in through one of these; empty: through any.
    pub interfaces: Vec<String>,
    /// New TCP connections of one source in a second, at most.
    pub syn_rate_per_source: u32,
    /// The same of all sources together.
    pub syn_rate: u32,
}

impl Default for Intercept {
    fn default() -> Intercept {
        let bounds = Bounds::default();
        Intercept {
            mode: Mode::Tproxy,
            local: true,
            interfaces: Vec::new(),
            syn_rate_per_source: bounds.syns_per_source,
            syn_rate: bounds.syns,
        }
    }
}

/// What is carried to groups of many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multicast {
    /// `interfaces`: the LANs whose groups are taken and served.
    pub interfaces: Vec<String>,
    /// `querier`: ask who listens, where no other router does.
    pub querier: bool,
}

impl Default for Multicast {
    fn default() -> Multicast {
        Multicast {
            interfaces: Vec::new(),
            querier: true,
        }
    }
}

/// One far TPO.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// What it is called here.
    pub name: String,
    /// The key that it must prove.
    pub public_key: PublicKey,
    /// `pre_shared_key_file`, complete, and its line. Read by
    /// [`load_pre_shared`](super::load_pre_shared).
    pub pre_shared_key_file: Option<(PathBuf, usize)>,
    /// Where it listens; `None`: it calls us.
    pub endpoint: Option<SocketAddr>,
    /// `connect = "on-demand"`: it is called when it is needed, and left when nothing was carried
    /// for so long (`disconnect_after`).
    pub on_demand: Option<Duration>,
    /// What the link to it carries, bytes per second.
    pub rate: Option<u64>,
    /// Who decides how fast we send.
    pub congestion: Congestion,
    /// `compress`: what is done with what is sent to it, unless a rule says otherwise.
    pub compress: Compress,
    /// `loss_tolerance`: loss that counts as the path's own, as a share.
    pub loss_tolerance: f64,
    /// The line of its section.
    pub line: usize,
}

/// One row of the look-up table.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What it matches, and the carriers (by their number) and class of what it matches.
    pub matches: tpo_engine::Rule,
    /// Who carries it.
    pub carriers: Carriers,
    /// What becomes of new connections while the peer is not up.
    pub on_failure: OnFailure,
    /// It is also for what peers bring.
    pub transit: bool,
    /// A rule that is switched off is as if it were not there.
    pub enabled: bool,
    /// The line of its section.
    pub line: usize,
}

impl Rule {
    /// Its destinations are groups of multicast.
    pub fn is_for_many(&self) -> bool {
        self.matches.destination.address.is_multicast()
    }
}

/// What one peer may reach through us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    /// Which peer.
    pub peer: PeerId,
    /// IANA number of the protocol.
    pub protocol: u8,
    /// The addresses that the peer's clients may have: what `source` says, or where it is left out
    /// all destinations of the rules for the peer.
    pub sources: Arc<Prefixes>,
    /// The addresses that may be connected to.
    pub destination: Prefix,
    /// The ports that may be connected to.
    pub destination_ports: RangeInclusive<u16>,
    /// The address that the destination sees.
    pub source_address: SourceAddress,
    /// Of one group of many: it is asked for whether or not anybody listens.
    pub pinned: bool,
    /// The line of its section.
    pub line: usize,
}

/// From which address the far edge connects to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceAddress {
    /// From the client's own address and port: answers must come back through this TPO.
    Client,
    /// From the TPO's address: for networks whose answers would not come back through it.
    Tpo,
}

/// No user of this name is meant.
const AUTO: &str = "auto";
/// The port that peers are expected at; nothing else is registered there.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 47_800);
/// Where the control socket is when nothing else is said: a folder of its own, so that the daemon
/// needs no right in another.
pub const CONTROL: &str = "/run/tpo/tpo.sock";
/// The longest path of a Unix socket is 107 bytes; a new socket is made under a name that is 4
/// bytes longer before it takes its place.
const LONGEST_CONTROL: usize = 103;
/// Buffers: below 4 KiB aggregation does nothing; 256 KiB is the mover's largest payload.
const BUFFER_SIZES: RangeInclusive<u64> = 4_096..=262_144;
/// Datagrams: the handshake needs 1,200 bytes, which every usable path carries; 16,356 is the
/// largest jumbo frame that is probed for, less its IP and UDP headers.
const SEGMENT_SIZES: RangeInclusive<u16> = 1_200..=16_356;
/// Memory of all flows: one peer with a long fat link needs some 16 MiB to work at all.
const MEMORIES: RangeInclusive<u64> = 16 << 20..=1 << 40;
const MEMORY: u64 = 512 << 20;
/// Outage: below the 2 s after which a peer counts as silent there is nothing to wait for; after a
/// day no application is still there.
const OUTAGES: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(86_400);
const OUTAGE: Duration = Duration::from_secs(300);
/// What is no TCP has no end of its own: RFC 4787 asks for two minutes at least where an answer may
/// come, and for less where none does.
const IDLES: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
const IDLE: Duration = Duration::from_secs(30);
const IDLE_BOTH: Duration = Duration::from_secs(180);
/// Between two requests of somebody who works; a handshake costs a round trip and some milliseconds
/// of CPU time.
const DISCONNECT_AFTER: Duration = Duration::from_secs(60);
/// A session index has 12 bits for the peer.
const MOST_PEERS: usize = 4_096;
/// Peers of one rule: each costs a look at its lease for each new connection.
const MOST_TOGETHER: usize = 16;
/// Where nothing says otherwise: more than that is rarely a path's own.
const LOSS_TOLERANCE: f64 = 0.05;
/// Above it a rate that ignores loss would fill any queue with copies.
const LOSS_TOLERANCES: RangeInclusive<f64> = 0.0..=0.25;
/// Far above any use; it bounds the memory that they take.
const MOST_ACCEPTS: usize = 100_000;

/// Of an accept's sources so many are compared with the rules. One that is written is one; more
/// follow from the rules themselves, and 100,000 accepts times 10,000 rules would take minutes.
const MOST_LOOKED_AT: usize = 16;
/// A shorter prefix in an accept is worth a note: nobody has more than a network of class A, or
/// than what a regional registry gives out.
const WIDE_V4: u8 = 8;
const WIDE_V6: u8 = 16;

/// Prefixes that a note names: a line to read, not a list of ten thousand.
const MOST_NAMED: usize = 8;
/// Where notes about clients belong.
const SOURCE: &str = "[[accept]] source";

const FAILURES: &[(&str, OnFailure)] = &[("open", OnFailure::Open), ("closed", OnFailure::Closed)];
/// Whatever a rule may leave out: port 0 is nobody's service, but whoever wants no answer may send
/// UDP from it (RFC 768), and a closed rule holds that too.
const ALL_PORTS: RangeInclusive<u16> = 0..=65_535;
const PROTOCOLS: &str =
    "\"tcp\", \"udp\", \"icmp\" or the number of another protocol, such as 47 for GRE";

/// Reads everything out of the text. What is wrong becomes findings; `None` when nothing usable
/// remains.
pub(super) fn check(text: &str, path: &Path, findings: &mut Findings) -> Option<Checked> {
    let file = File::parse(text, findings);
    let before = findings.count(Level::Error);
    let peers = check_peers(&file, path, findings);
    let on_failure = default_on_failure(&file);
    let mut rules = check_rules(&file, &peers, on_failure, findings);
    let carriers = number_carriers(&mut rules, peers.list.len());
    // Where a peer or a rule is wrong nobody knows what was to be sent to whom.
    let behind =
        (findings.count(Level::Error) == before).then(|| Behind::new(&rules, peers.list.len()));
    let accepts = check_accepts(&file, &peers, behind.as_ref(), findings);
    let intercept = check_intercept(&file, findings);
    let multicast = check_multicast(&file, findings);
    let checked = check_tpo(&file, path, findings);
    file.finish(
        &["tpo", "intercept", "multicast", "peer", "rule", "accept"],
        findings,
    );
    let checked = Checked {
        intercept,
        multicast,
        peers: peers.list,
        rules,
        carriers,
        accepts,
        ..checked?
    };
    if !findings.has_errors() {
        check_together(&checked, behind.as_ref(), findings);
    }
    Some(checked)
}

/// The control socket alone, from a text that may be wrong in every other respect.
pub(super) fn control_socket(text: &str, path: &Path) -> PathBuf {
    let mut ignored = Findings::new(path);
    let file = File::parse(text, &mut ignored);
    let written = file
        .section("tpo", &mut ignored)
        .and_then(|mut tpo| tpo.read("control", value::path, &mut ignored));
    beside(path, &written.unwrap_or_else(|| CONTROL.into()))
}

fn check_tpo(file: &File<'_>, path: &Path, findings: &mut Findings) -> Option<Checked> {
    let Some(mut tpo) = file.section("tpo", findings) else {
        findings.error(
            0,
            "[tpo]",
            "missing",
            "a section [tpo] with at least name and private_key_file; `tpo init` prints a sample",
        );
        return None;
    };
    let private_key_line = tpo.line_of("private_key_file");
    let name = tpo.require(
        "name",
        "a name for this TPO, such as \"paris\"",
        value::name,
        findings,
    );
    let private_key_file = tpo.require(
        "private_key_file",
        "the file that `tpo keygen --out` wrote, such as \"paris.key\"",
        value::path,
        findings,
    );
    let listen = tpo
        .read("listen", value::socket_address, findings)
        .unwrap_or(LISTEN);
    let control = tpo
        .read("control", control_path(path), findings)
        .unwrap_or_else(|| beside(path, CONTROL));
    let user = tpo
        .read("user", value::name, findings)
        .filter(|name| name != AUTO);
    let buffer_size = tpo
        .read("buffer_size", value::size(BUFFER_SIZES), findings)
        .map_or(tpo_engine::Config::BUFFER_SIZE, |bytes| bytes as usize);
    let segment_size = tpo
        .read("segment_size", value::segment_size(SEGMENT_SIZES), findings)
        .flatten();
    let memory = tpo
        .read("memory", value::size(MEMORIES), findings)
        .unwrap_or(MEMORY);
    let outage = tpo
        .read("outage", value::duration(OUTAGES), findings)
        .unwrap_or(OUTAGE);
    let idle = tpo
        .read("idle", value::duration(IDLES), findings)
        .unwrap_or(IDLE);
    let idle_both = tpo
        .read("idle_both", value::duration(IDLES), findings)
        .unwrap_or(IDLE_BOTH);
    let compress_isolation = tpo
        .read("compress_isolation", value::boolean, findings)
        .unwrap_or(false);
    // Its value has been read before the rules were.
    let _ = tpo.read("on_failure", value::one_of(FAILURES), findings);
    let hold_closed = tpo
        .read("hold_closed", value::boolean, findings)
        .unwrap_or(false);
    let log = tpo
        .read("log", value::log_filter, findings)
        .unwrap_or_else(|| "info".into());
    let formats = value::one_of(&[("human", LogFormat::Human), ("json", LogFormat::Json)]);
    let log_format = tpo
        .read("log_format", formats, findings)
        .unwrap_or_default();
    tpo.finish(findings);
    Some(Checked {
        file: path.to_owned(),
        name: name?,
        private_key_file: beside(path, &private_key_file?),
        private_key_line,
        listen,
        control,
        user,
        buffer_size,
        segment_size,
        memory,
        outage,
        idle,
        idle_both,
        compress_isolation,
        hold_closed,
        log,
        log_format,
        intercept: Intercept::default(),
        multicast: Multicast::default(),
        peers: ByPeer::default(),
        rules: Vec::new(),
        carriers: AllCarriers::of_peers(0),
        accepts: Vec::new(),
    })
}

/// New connections per second that may be named: from one office's to more than any host of today
/// accepts.
const SYN_RATES: RangeInclusive<u32> = 10..=1_000_000;

fn check_intercept(file: &File<'_>, findings: &mut Findings) -> Intercept {
    let mut intercept = Intercept::default();
    let Some(mut section) = file.section("intercept", findings) else {
        return intercept;
    };
    let modes = value::one_of(&[("tproxy", Mode::Tproxy), ("redirect", Mode::Redirect)]);
    intercept.mode = section
        .read("mode", modes, findings)
        .unwrap_or(intercept.mode);
    intercept.local = section
        .read("local", value::boolean, findings)
        .unwrap_or(intercept.local);
    intercept.interfaces = section
        .read("interfaces", value::interfaces, findings)
        .unwrap_or_default();
    for (key, rate) in [
        ("syn_rate_per_source", &mut intercept.syn_rate_per_source),
        ("syn_rate", &mut intercept.syn_rate),
    ] {
        *rate = section
            .read(key, value::number(SYN_RATES), findings)
            .unwrap_or(*rate);
    }
    section.finish(findings);
    intercept
}

fn check_multicast(file: &File<'_>, findings: &mut Findings) -> Multicast {
    let mut multicast = Multicast::default();
    let Some(mut section) = file.section("multicast", findings) else {
        return multicast;
    };
    multicast.interfaces = section
        .read("interfaces", value::interfaces, findings)
        .unwrap_or_default();
    multicast.querier = section
        .read("querier", value::boolean, findings)
        .unwrap_or(multicast.querier);
    section.finish(findings);
    multicast
}

/// A rule or an `accept` for groups of many: UDP, and all of its destinations such groups.
fn check_groups(
    section: &Section<'_>,
    protocol: Option<u8>,
    destination: Option<Prefix>,
    findings: &mut Findings,
) {
    let Some(destination) = destination.filter(|prefix| prefix.address.is_multicast()) else {
        return;
    };
    let all = if destination.address.is_ipv4() { 4 } else { 8 };
    let (line, key) = (section.line_of("destination"), section.key("destination"));
    if destination.length < all {
        let found = format!("found {destination}, which is more than groups of multicast");
        findings.error(
            line,
            key.clone(),
            found,
            "\"224.0.0.0/4\", \"ff00::/8\", or a part of them",
        );
    }
    if protocol.is_some_and(|protocol| protocol != UDP) {
        findings.error(
            line,
            key,
            "found a group of multicast",
            "protocol = \"udp\": nothing else is carried to groups",
        );
    }
}

/// The peers, and how rules and accepts find them. A name stays known even when the rest of its
/// section is wrong, so that one mistake does not make a hundred.
struct Peers {
    list: ByPeer<Peer>,
    by_name: HashMap<String, PeerId>,
}

fn check_peers(file: &File<'_>, path: &Path, findings: &mut Findings) -> Peers {
    let sections = file.sections("peer", findings);
    let mut peers = Peers {
        list: ByPeer::default(),
        by_name: HashMap::new(),
    };
    match sections.len() {
        0 => findings.error(
            0,
            "[[peer]]",
            "missing",
            "at least one section [[peer]]: a TPO works in pairs",
        ),
        too_many if too_many > MOST_PEERS => {
            findings.error(
                0,
                "[[peer]]",
                format!("{too_many} sections"),
                format!("at most {MOST_PEERS}"),
            );
        }
        _ => {}
    }
    let mut lines_of_keys: HashMap<[u8; 32], usize> = HashMap::new();
    for section in sections {
        let line_of_name = section.line_of("name");
        let (line_of_key, key_of_key) = (section.line_of("public_key"), section.key("public_key"));
        let (name, peer) = check_peer(section, path, findings);
        if let Some(name) = name
            && peers
                .by_name
                .insert(name.clone(), PeerId::new(peers.list.len()))
                .is_some()
        {
            findings.error(
                line_of_name,
                "[[peer]] name",
                format!("found \"{name}\" a second time"),
                "a name of its own for each peer",
            );
        }
        let Some(peer) = peer else { continue };
        if let Some(first) = lines_of_keys.insert(*peer.public_key.as_bytes(), line_of_key) {
            let found = format!("found the key of line {first} again");
            findings.error(
                line_of_key,
                key_of_key,
                found,
                "a key of its own for each peer",
            );
        }
        peers.list.push(peer);
    }
    peers
}

fn check_peer(
    mut section: Section<'_>,
    path: &Path,
    findings: &mut Findings,
) -> (Option<String>, Option<Peer>) {
    const CONGESTIONS: &[(&str, Congestion)] = &[
        ("auto", Congestion::Auto),
        ("fixed", Congestion::Fixed),
        ("cubic", Congestion::Cubic),
        ("scavenger", Congestion::Scavenger),
    ];
    let name = section.require(
        "name",
        "a name for the peer, such as \"lyon\"",
        value::name,
        findings,
    );
    let public_key = section.require(
        "public_key",
        "what `tpo keygen` printed at the peer",
        value::public_key,
        findings,
    );
    let line_of_pre_shared = section.line_of("pre_shared_key_file");
    let pre_shared = section.read("pre_shared_key_file", value::path, findings);
    let endpoint = section.read("endpoint", value::socket_address, findings);
    let connects = value::one_of(&[("always", false), ("on-demand", true)]);
    let on_demand = section.read("connect", connects, findings).unwrap_or(false);
    let after = section
        .read("disconnect_after", value::duration(IDLES), findings)
        .unwrap_or(DISCONNECT_AFTER);
    let rate = section.read("rate", value::rate, findings);
    let congestion = section
        .read("congestion", value::one_of(CONGESTIONS), findings)
        .unwrap_or(Congestion::Auto);
    let loss_tolerance = section.read("loss_tolerance", value::share(LOSS_TOLERANCES), findings);
    let compress = section
        .read("compress", value::compress, findings)
        .unwrap_or_default();
    let line = section.line;
    if congestion == Congestion::Fixed && section.line_of("rate") == line {
        findings.error(
            line,
            section.key("rate"),
            "missing",
            "a rate such as \"100mbit\": congestion = \"fixed\" sends at that rate",
        );
    }
    if on_demand && endpoint.is_none() {
        let would_do = "an endpoint too: who is called on demand must be known where";
        findings.error(
            section.line_of("connect"),
            section.key("connect"),
            "found \"on-demand\"",
            would_do,
        );
    }
    section.finish(findings);
    let peer = name.clone().zip(public_key).map(|(name, public_key)| Peer {
        name,
        public_key,
        pre_shared_key_file: pre_shared.map(|file| (beside(path, &file), line_of_pre_shared)),
        endpoint,
        on_demand: on_demand.then_some(after),
        rate,
        congestion,
        compress,
        loss_tolerance: loss_tolerance.unwrap_or(LOSS_TOLERANCE),
        line,
    });
    (name, peer)
}

/// `on_failure` of `[tpo]`, by itself: what is wrong with it is said where the whole section is
/// read.
fn default_on_failure(file: &File<'_>) -> OnFailure {
    let mut ignored = Findings::default();
    let section = file.section("tpo", &mut ignored);
    section
        .and_then(|mut tpo| tpo.read("on_failure", value::one_of(FAILURES), &mut ignored))
        .unwrap_or(OnFailure::Open)
}

fn check_rules(
    file: &File<'_>,
    peers: &Peers,
    default: OnFailure,
    findings: &mut Findings,
) -> Vec<Rule> {
    let sections = file.sections("rule", findings);
    if sections.len() > MAX_RULES {
        findings.error(
            0,
            "[[rule]]",
            format!("{} sections", sections.len()),
            format!("at most {MAX_RULES}"),
        );
        return Vec::new();
    }
    let mut rules = Vec::with_capacity(sections.len());
    for section in sections {
        rules.extend(check_rule(section, peers, default, findings));
    }
    // The kernel knows each address family apart.
    let both_families =
        |rule: &&Rule| rule.matches.source.is_any() && rule.matches.destination.is_any();
    let in_kernel = rules.len() + rules.iter().filter(both_families).count();
    if in_kernel > MAX_RULES {
        let found = format!("{in_kernel} rules, one from any to any counted for IPv4 and for IPv6");
        findings.error(0, "[[rule]]", found, format!("at most {MAX_RULES}"));
    }
    rules
}

fn check_rule(
    mut section: Section<'_>,
    peers: &Peers,
    default: OnFailure,
    findings: &mut Findings,
) -> Option<Rule> {
    const CLASSES: &[(&str, Class)] = &[
        ("interactive", Class::Interactive),
        ("normal", Class::Normal),
        ("bulk", Class::Bulk),
    ];
    const DELIVERIES: &[(&str, Delivery)] = &[
        ("timely", Delivery::Timely),
        ("reliable", Delivery::Reliable),
        ("plain", Delivery::Plain),
    ];
    let protocol = section.require("protocol", PROTOCOLS, protocol, findings);
    let source = section.require(
        "source",
        "the clients' prefix, such as \"10.10.1.0/24\", or \"any\"",
        value::prefix,
        findings,
    );
    let source_ports = ports(&mut section, "source_ports", protocol, findings);
    let would_do = "the servers' prefix, such as \"10.10.2.0/24\", or \"any\"";
    let destination = section.require("destination", would_do, value::prefix, findings);
    let destination_ports = ports(&mut section, "destination_ports", protocol, findings);
    let named = section.require(
        "peer",
        &peers.names(),
        |written| peers.find_some(written),
        findings,
    );
    let spread = section
        .read("spread", value::boolean, findings)
        .unwrap_or(false);
    let class = section
        .read("class", value::one_of(CLASSES), findings)
        .unwrap_or(Class::Normal);
    let compress = section
        .read("compress", value::compress_or_peer, findings)
        .unwrap_or_default();
    let isolated = section
        .read("compress_isolation", value::boolean, findings)
        .unwrap_or(false);
    let delivery = section.read("delivery", value::one_of(DELIVERIES), findings);
    if delivery.is_some() && protocol == Some(TCP) {
        let line = section.line_of("delivery");
        findings.error(
            line,
            section.key("delivery"),
            "a rule for TCP",
            "leave it out: TCP is always delivered whole",
        );
    }
    let in_order = section
        .read("keep_order", value::boolean, findings)
        .unwrap_or(false);
    if in_order && (protocol == Some(TCP) || delivery == Some(Delivery::Reliable)) {
        let (found, would_do) = if protocol == Some(TCP) {
            (
                "a rule for TCP",
                "leave it out: TCP is always delivered in order",
            )
        } else {
            (
                "delivery = \"reliable\"",
                "timely or plain: what is sent again comes a round trip later, and nobody waits for that",
            )
        };
        findings.error(
            section.line_of("keep_order"),
            section.key("keep_order"),
            found,
            would_do,
        );
    }
    let is_for_many =
        destination.is_some_and(|destination: Prefix| destination.address.is_multicast());
    // Multicast stays in its LAN whatever becomes of the copies: nothing of it can be closed.
    let default = if is_for_many {
        OnFailure::Open
    } else {
        default
    };
    let on_failure = section
        .read("on_failure", value::one_of(FAILURES), findings)
        .unwrap_or(default);
    let transit = section
        .read("transit", value::boolean, findings)
        .unwrap_or(false);
    let enabled = section
        .read("enabled", value::boolean, findings)
        .unwrap_or(true);
    let line = section.line;
    check_families(&section, source, destination, findings);
    check_groups(&section, protocol, destination, findings);
    if let Some(peers) = &named
        && peers.len() > MOST_TOGETHER
        && destination.is_some_and(|destination| !destination.address.is_multicast())
    {
        let found = format!("found a list of {} peers", peers.len());
        let would_do = format!("at most {MOST_TOGETHER}: only a rule for multicast may name more");
        findings.error(
            section.line_of("peer"),
            section.key("peer"),
            found,
            would_do,
        );
    }
    if on_failure == OnFailure::Closed && is_for_many {
        let would_do = "leave it out: multicast stays in its LAN whatever becomes of the copies";
        findings.error(
            section.line_of("on_failure"),
            section.key("on_failure"),
            "found a rule for multicast",
            would_do,
        );
    }
    section.finish(findings);
    let matches = tpo_engine::Rule {
        protocol: protocol?,
        source: source?,
        source_ports,
        destination: destination?,
        destination_ports,
        // Numbered when all rules are known.
        carriers: CarriersId::new(0),
        treatment: Treatment {
            class,
            compress,
            isolated,
            in_order,
        },
        delivery: delivery.unwrap_or_default(),
    };
    Some(Rule {
        matches,
        carriers: Carriers {
            peers: named?,
            spread,
        },
        on_failure,
        transit,
        enabled,
        line,
    })
}

/// Gives each rule the number of its carriers.
fn number_carriers(rules: &mut [Rule], peers: usize) -> AllCarriers {
    let mut all = AllCarriers::of_peers(peers);
    for rule in rules {
        rule.matches.carriers = all.id_of(&rule.carriers);
    }
    all
}

/// Who lives behind each peer by our own rules: what we send to it. IPv4 and IPv6 apart, and
/// together.
struct Behind(ByPeer<[Clients; 3]>);

/// Whom an accept means that does not say `source`.
struct Clients {
    sources: Arc<Prefixes>,
    /// The same for people: the first ones in the order of the rules, and how many more.
    named: String,
}

impl Clients {
    fn of(destinations: impl Iterator<Item = Prefix> + Clone) -> Clients {
        let sources: Prefixes = destinations.clone().collect();
        let mut first: Vec<Prefix> = Vec::new();
        for prefix in destinations {
            if first.len() < MOST_NAMED && !first.contains(&prefix) {
                first.push(prefix);
            }
        }
        let mut named = first
            .iter()
            .map(Prefix::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let more = sources.iter().count() - first.len();
        if more > 0 {
            named += &format!(" and {more} more");
        }
        Clients {
            sources: Arc::new(sources),
            named,
        }
    }
}

impl Behind {
    fn new(rules: &[Rule], peers: usize) -> Behind {
        let mut all = ByPeer::new(peers, |_| Vec::new());
        for rule in rules
            .iter()
            .filter(|rule| rule.enabled && !rule.is_for_many())
        {
            rule.carriers
                .peers
                .iter()
                .for_each(|peer| all[*peer].push(rule.matches.destination));
        }
        let sets = |prefixes: Vec<Prefix>| {
            let all = prefixes.iter().copied();
            let of =
                |v4: bool| move |prefix: &Prefix| prefix.is_any() || prefix.address.is_ipv4() == v4;
            [
                Clients::of(all.clone().filter(of(true))),
                Clients::of(all.clone().filter(of(false))),
                Clients::of(all),
            ]
        };
        Behind(all.into_iter().map(sets).collect())
    }

    /// Who may want to reach this.
    fn of(&self, peer: PeerId, destination: Prefix) -> &Clients {
        let [v4, v6, both] = &self.0[peer];
        match (destination.is_any(), destination.address.is_ipv4()) {
            (true, _) => both,
            (false, true) => v4,
            (false, false) => v6,
        }
    }

    /// Whom the rules mean, if this accept leaves that to them.
    fn followed_by(&self, accept: &Accept) -> Option<&Clients> {
        let clients = self.of(accept.peer, accept.destination);
        // What is written is never shared.
        Arc::ptr_eq(&clients.sources, &accept.sources).then_some(clients)
    }
}

fn check_accepts(
    file: &File<'_>,
    peers: &Peers,
    behind: Option<&Behind>,
    findings: &mut Findings,
) -> Vec<Accept> {
    let sections = file.sections("accept", findings);
    if sections.len() > MOST_ACCEPTS {
        findings.error(
            0,
            "[[accept]]",
            format!("{} sections", sections.len()),
            format!("at most {MOST_ACCEPTS}"),
        );
        return Vec::new();
    }
    let mut accepts = Vec::with_capacity(sections.len());
    for section in sections {
        accepts.extend(check_accept(section, peers, behind, findings));
    }
    accepts
}

fn check_accept(
    mut section: Section<'_>,
    peers: &Peers,
    behind: Option<&Behind>,
    findings: &mut Findings,
) -> Option<Accept> {
    const SOURCES: &[(&str, SourceAddress)] = &[
        ("client", SourceAddress::Client),
        ("tpo", SourceAddress::Tpo),
    ];
    let peer = section.require(
        "peer",
        &peers.names(),
        |written| peers.find(written),
        findings,
    );
    let would_do =
        "the prefix that the peer may reach through us, such as \"10.10.1.0/24\", or \"any\"";
    let destination = section.require("destination", would_do, value::prefix, findings);
    let source = section.read("source", value::prefix, findings);
    let protocol = section.read("protocol", protocol, findings).unwrap_or(TCP);
    let destination_ports = ports(&mut section, "destination_ports", Some(protocol), findings);
    let source_address = section
        .read("source_address", value::one_of(SOURCES), findings)
        .unwrap_or(SourceAddress::Client);
    let pinned = section
        .read("pinned", value::boolean, findings)
        .unwrap_or(false);
    let line = section.line;
    check_families(&section, source, destination, findings);
    check_groups(&section, Some(protocol), destination, findings);
    let is_group = |prefix: Prefix| {
        is_routed(prefix.address)
            && prefix.length == if prefix.address.is_ipv4() { 32 } else { 128 }
    };
    if pinned && destination.is_some_and(|destination| !is_group(destination)) {
        let would_do = "a destination that is one group of multicast, such as \"239.1.1.1\"";
        findings.error(
            section.line_of("pinned"),
            section.key("pinned"),
            "found true",
            would_do,
        );
    }
    check_special(&section, source, destination, findings);
    let (peer, destination) = (peer?, destination?);
    let sources = match source {
        Some(source) => Arc::new([source].into_iter().collect()),
        None if section.says("source") => Arc::default(),
        None => behind
            .map(|behind| behind.of(peer, destination).sources.clone())
            .unwrap_or_default(),
    };
    if behind.is_some() && !section.says("source") && sources.is_empty() {
        let name = &peers.list.get(peer)?.name;
        let found = format!(
            "missing, and no enabled [[rule]] sends anything to somebody behind peer \"{name}\""
        );
        let example = if destination.is_any() || destination.address.is_ipv4() {
            "10.10.2.0/24"
        } else {
            "fd10:2::/64"
        };
        let would_do = format!(
            "the line source = \"{example}\", with the prefix of the clients behind \"{name}\""
        );
        findings.error(line, section.key("source"), found, would_do);
    }
    section.finish(findings);
    Some(Accept {
        peer,
        protocol,
        sources,
        destination,
        destination_ports,
        source_address,
        pinned,
        line,
    })
}

/// What no accept gives: nobody may be this host's loopback, its link or a group, and who is to
/// reach such an address must name it alone.
fn check_special(
    section: &Section<'_>,
    source: Option<Prefix>,
    destination: Option<Prefix>,
    findings: &mut Findings,
) {
    if let Some(source) = source.filter(|source| is_special_only(*source)) {
        let would_do = "the prefix of the peer's clients: none of them is loopback, link-local, a group or reserved";
        findings.error(
            section.line_of("source"),
            section.key("source"),
            format!("found {source}"),
            would_do,
        );
    }
    if let Some(destination) = destination
        && is_special_only(destination)
        && !destination.address.is_multicast()
        && destination.length
            < if destination.address.is_ipv4() {
                32
            } else {
                128
            }
    {
        let would_do = "each such address alone, as \"127.0.0.1\": a prefix does not mean loopback, link-local or reserved ones";
        let found = format!("found {destination}");
        findings.error(
            section.line_of("destination"),
            section.key("destination"),
            found,
            would_do,
        );
    }
}

fn protocol(written: &Written<'_>) -> Result<u8, String> {
    match written {
        Written::Text("tcp") => Ok(TCP),
        Written::Text("udp") => Ok(UDP),
        Written::Text("icmp") => Ok(ICMP),
        // Multicast's own protocol belongs to each network alone; 58 is "icmp"; behind IPv6's
        // extension headers (hop-by-hop options, routing, fragment, destination options) any
        // protocol may follow.
        Written::Integer(number) => match u8::try_from(*number) {
            Ok(number) if ![0, 2, 43, 44, 60, ICMP_V6].contains(&number) => Ok(number),
            _ => Err(PROTOCOLS.into()),
        },
        _ => Err(PROTOCOLS.into()),
    }
}

/// The ports of a rule or an `accept`: all where nothing is said, and nothing else where the
/// protocol has none.
fn ports(
    section: &mut Section<'_>,
    key: &'static str,
    protocol: Option<u8>,
    findings: &mut Findings,
) -> RangeInclusive<u16> {
    let written = section.read(key, value::ports, findings);
    if matches!(protocol, None | Some(TCP | UDP)) {
        return written.unwrap_or(ALL_PORTS);
    }
    if written.is_some() {
        findings.error(
            section.line_of(key),
            section.key(key),
            "a protocol without ports",
            "leave it out",
        );
    }
    0..=u16::MAX
}

/// No connection has an IPv4 address at one end and an IPv6 address at the other.
fn check_families(
    section: &Section<'_>,
    source: Option<Prefix>,
    destination: Option<Prefix>,
    findings: &mut Findings,
) {
    let (Some(source), Some(destination)) = (source, destination) else {
        return;
    };
    if source.is_any()
        || destination.is_any()
        || source.address.is_ipv4() == destination.address.is_ipv4()
    {
        return;
    }
    let family = |prefix: Prefix| {
        if prefix.address.is_ipv4() {
            "IPv4"
        } else {
            "IPv6"
        }
    };
    let found = format!(
        "found {} while source is {}",
        family(destination),
        family(source)
    );
    findings.error(
        section.line_of("destination"),
        section.key("destination"),
        found,
        "source and destination of one family",
    );
}

impl Peers {
    fn find(&self, written: &Written<'_>) -> Result<PeerId, String> {
        match written {
            Written::Text(name) => self.by_name.get(*name).copied().ok_or_else(|| self.names()),
            _ => Err(self.names()),
        }
    }

    /// One peer, or a list of different ones.
    fn find_some(&self, written: &Written<'_>) -> Result<Vec<PeerId>, String> {
        let Written::List(list) = written else {
            return Ok(vec![self.find(written)?]);
        };
        let found = list
            .iter()
            .map(|one| self.find(one))
            .collect::<Result<Vec<PeerId>, String>>()?;
        let twice = found
            .iter()
            .enumerate()
            .any(|(at, peer)| found[..at].contains(peer));
        if found.is_empty() || twice {
            return Err(format!(
                "one peer, or a list of different ones; {}",
                self.names()
            ));
        }
        Ok(found)
    }

    /// What would do where a peer must be named.
    fn names(&self) -> String {
        const SHOWN: usize = 8;
        let mut names: Vec<String> = self
            .by_name
            .keys()
            .map(|name| format!("\"{name}\""))
            .collect();
        names.sort();
        let more = if names.len() > SHOWN { ", ..." } else { "" };
        names.truncate(SHOWN);
        match names.is_empty() {
            true => "the name of a [[peer]]".into(),
            false => format!("the name of a [[peer]]: {}{more}", names.join(", ")),
        }
    }
}

/// What only shows when all sections are seen together; most of it is advice.
fn check_together(checked: &Checked, behind: Option<&Behind>, findings: &mut Findings) {
    for (id, peer) in checked.peers.iter_with_id() {
        if peer.endpoint.is_none() {
            let found = format!("peer \"{}\" has none", peer.name);
            findings.note(
                peer.line,
                "[[peer]] endpoint",
                found,
                "it must call us, so its own configuration needs an endpoint for us",
            );
        }
        let ruled = checked
            .rules
            .iter()
            .any(|rule| rule.enabled && rule.carriers.peers.contains(&id));
        if !ruled && !checked.accepts.iter().any(|accept| accept.peer == id) {
            let found = format!(
                "no [[rule]] and no [[accept]] names peer \"{}\": nothing is carried to it or from it",
                peer.name
            );
            findings.warning(
                peer.line,
                "[[peer]]",
                found,
                "a [[rule]] for what goes there, an [[accept]] for what comes from there",
            );
        }
    }
    // A hub needs no LAN for what goes on from peer to peer.
    let is_hub = checked
        .rules
        .iter()
        .any(|rule| rule.enabled && rule.transit && rule.is_for_many());
    let in_rules = checked
        .rules
        .iter()
        .filter(|rule| rule.enabled && !rule.transit);
    let in_rules = in_rules.map(|rule| (rule.line, rule.matches.destination));
    let in_accepts = checked
        .accepts
        .iter()
        .filter(|_| !is_hub)
        .map(|accept| (accept.line, accept.destination));
    let mut all = in_rules.chain(in_accepts);
    if checked.multicast.interfaces.is_empty()
        && let Some((line, group)) = all.find(|(_, destination)| destination.address.is_multicast())
    {
        let would_do = "[multicast] with interfaces, such as interfaces = [\"lan0\"]: where groups are taken and served";
        findings.error(
            line,
            "destination",
            format!("found {group}, a group of multicast, and no LAN for it"),
            would_do,
        );
    }
    for accept in &checked.accepts {
        let peer = &checked.peers[accept.peer].name;
        note_wide_destination(accept, peer, findings);
        match behind.and_then(|behind| behind.followed_by(accept)) {
            Some(clients) => note_clients(accept, &clients.named, peer, findings),
            None => note_wide_source(accept, peer, findings),
        }
    }
    if checked.peers.len() > 1 && checked.accepts.iter().any(|accept| accept.protocol != TCP) {
        let enabled: Vec<&Rule> = checked.rules.iter().filter(|rule| rule.enabled).collect();
        let policy = Policy::new(enabled.iter().map(|rule| rule.matches.clone()).collect());
        let find = |key: &PacketKey| {
            policy
                .find_with_number(key)
                .map(|(number, _)| enabled[number])
        };
        checked
            .accepts
            .iter()
            .for_each(|accept| warn_of_anothers(checked, accept, find, findings));
    }
    for (rule, by) in shadow::shadowed(&checked.rules) {
        let found = format!(
            "never matches: the rule of line {} takes everything first",
            checked.rules[by].line
        );
        findings.warning(
            checked.rules[rule].line,
            "[[rule]]",
            found,
            "the narrower rule before the wider one",
        );
    }
}

/// More than a network of somebody's.
fn is_wide(prefix: &Prefix) -> bool {
    prefix.is_any()
        || prefix.length
            < if prefix.address.is_ipv4() {
                WIDE_V4
            } else {
                WIDE_V6
            }
}

/// Says of an accept that it gives away more than a network of somebody's.
fn note_wide_destination(accept: &Accept, peer: &str, findings: &mut Findings) {
    if is_wide(&accept.destination) {
        let found = format!("{} is wide", accept.destination);
        let may = format!(
            "peer \"{peer}\" may reach whatever this host can, but for its own, loopback and link-local addresses"
        );
        findings.note(accept.line, "[[accept]] destination", found, may);
    }
}

/// Says the same of its clients.
fn note_wide_source(accept: &Accept, peer: &str, findings: &mut Findings) {
    if let Some(source) = accept.sources.iter().find(is_wide) {
        findings.note(
            accept.line,
            SOURCE,
            format!("{source} is wide"),
            whoever(peer),
        );
    }
}

/// Says of an accept that does not name its clients whom it means: others are refused, also those
/// whom the peer's own rules let come.
fn note_clients(accept: &Accept, named: &str, peer: &str, findings: &mut Findings) {
    let found = format!(
        "left out, so nobody may come from \"{peer}\" but the destinations of the rules for it, {named}"
    );
    let means = match accept.sources.iter().find(is_wide) {
        Some(wide) => format!("{wide} is wide: {}", whoever(peer)),
        None => "others are refused, unless a line with source names them".into(),
    };
    findings.note(accept.line, SOURCE, found, means);
}

/// Says of accepts whose prefix holds an address of this host that it is not meant: a note for each
/// such destination, unless another accept for the same peer names the address alone.
pub(super) fn note_own(checked: &Checked, own: &[IpAddr], findings: &mut Findings) {
    let alone = |prefix: &Prefix| prefix.length == if prefix.address.is_ipv4() { 32 } else { 128 };
    let is_alone: HashSet<(PeerId, IpAddr)> = checked
        .accepts
        .iter()
        .filter(|accept| alone(&accept.destination))
        .map(|accept| (accept.peer, accept.destination.address))
        .collect();
    let mut told: HashSet<(PeerId, IpAddr, u8)> = HashSet::new();
    // What is meant by "any" is said where it is called wide.
    for accept in checked
        .accepts
        .iter()
        .filter(|accept| !is_wide(&accept.destination) && !alone(&accept.destination))
    {
        let Prefix { address, length } = accept.destination;
        let is_held = |own: &&IpAddr| {
            own.is_ipv4() == address.is_ipv4()
                && accept.destination.contains(**own)
                && !is_special(**own)
                && !is_alone.contains(&(accept.peer, **own))
        };
        let Some(held) = own.iter().find(is_held) else {
            continue;
        };
        if told.insert((accept.peer, address, length)) {
            let found = format!(
                "{} holds {held}, an address of this host",
                accept.destination
            );
            let means = format!(
                "a prefix does not mean it, so peer \"{}\" reaches it only by an [[accept]] that names it alone",
                checked.peers[accept.peer].name
            );
            findings.note(accept.line, "[[accept]] destination", found, means);
        }
    }
}

/// What a wide source means.
fn whoever(peer: &str) -> String {
    format!(
        "a client behind \"{peer}\" may have whatever address it says, but for this host's own, loopback and link-local ones"
    )
}

/// Warns of clients whose packets are let in by an accept, but to whom our own rule sends through
/// other peers: they would be refused.
fn warn_of_anothers<'c>(
    checked: &Checked,
    accept: &Accept,
    find: impl Fn(&PacketKey) -> Option<&'c Rule>,
    findings: &mut Findings,
) {
    let has = |outer: Prefix, inner: Prefix| {
        let same_family = outer.address.is_ipv4() == inner.address.is_ipv4();
        outer.is_any()
            || (!inner.is_any()
                && same_family
                && outer.length <= inner.length
                && outer.contains(inner.address))
    };
    for source in accept.sources.iter().take(MOST_LOOKED_AT) {
        // Any port will do: a rule for some of them is passed over below.
        let end = |prefix: Prefix| SocketAddr::new(prefix.address, 1);
        let key = PacketKey::new(accept.protocol, end(accept.destination), end(source));
        let Some(rule) = key.ok().and_then(|key| find(&key)) else {
            continue;
        };
        let covers = has(rule.matches.source, accept.destination)
            && has(rule.matches.destination, source)
            && [&rule.matches.source_ports, &rule.matches.destination_ports]
                .iter()
                .all(|ports| ports.end() - ports.start() >= u16::MAX - 1);
        if covers && !rule.carriers.peers.contains(&accept.peer) {
            let (own, other) = (
                &checked.peers[accept.peer].name,
                &checked.peers[rule.carriers.peers[0]].name,
            );
            let found = format!(
                "{source} is behind \"{other}\" by the rule of line {}: packets from there through \"{own}\" are refused",
                rule.line
            );
            let would_do = format!(
                "both in that rule, peer = [\"{other}\", \"{own}\"], or other clients here"
            );
            findings.warning(accept.line, SOURCE, found, would_do);
        }
    }
}

/// A path of the configuration is relative to the configuration's own folder.
fn beside(file: &Path, written: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(written)
}

fn control_path(file: &Path) -> impl Fn(&Written<'_>) -> Result<PathBuf, String> {
    move |written| {
        let path = beside(file, &value::path(written)?);
        let too_long = || {
            format!(
                "a path of at most {LONGEST_CONTROL} bytes (the kernel's limit for a socket); complete it is {}",
                path.display()
            )
        };
        if path.as_os_str().len() > LONGEST_CONTROL {
            Err(too_long())
        } else {
            Ok(path)
        }
    }
}
