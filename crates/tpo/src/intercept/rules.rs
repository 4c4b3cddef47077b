//! One nftables table from the look-up table. Pure: text in, text out; [`super::install`] gives it
//! to the kernel.
//!
//! What happens to a packet of a connection that a rule names, in the order of the chains:
//!
//! * Only a pure SYN is looked up. Everything else belongs to us exactly when a transparent socket
//!   of ours has its four-tuple (`socket transparent`), so connections that began before us, or
//!   went their plain way, are never touched. The SYN comes first because `tproxy` itself knows
//!   what a SYN for a connection in TIME_WAIT means.
//! * `decide` (one for all hooks) finds the first match by its layers and goes to the chain of its
//!   peer and failure mode, which *returns* to the hook when the peer's lease is present, and ends
//!   the walk when it is not: accepted, or refused.
//! * The hook then acts: `tproxy` for forwarded connections; for those of this host a mark, by
//!   which the packet is routed to `lo`, where `tproxy` takes it; `redirect` in the other mode.
//! * When `tproxy` finds nobody listening (the daemon has just died, its leases have not yet) the
//!   walk goes on: the mark is set and `decide` asked again, and the chains of closed rules, which
//!   see the mark, refuse; all others let it pass.
//!
//! Refused means a TCP reset, not silence: the application learns at once, and an administrator
//! sees "connection refused" instead of a hang of minutes that looks like a broken network. A flood
//! of SYNs gets few of them (`RESETS_PER_SECOND`): its sources may be made up, and a reset would
//! reach whoever has the address.
//!
//! SYNs are bounded before `tproxy` ([`Bounds`]): a listener whose queue is full sends SYN cookies,
//! which transparent sockets cannot serve, and then nobody's connections work. A SYN beyond the
//! bounds takes its plain way, or is dropped where its rule fails closed. In order:
//!
//! * A source that has completed a handshake (the daemon says so, by the sets of [`Standing`]) has
//!   its own bound, and all such have one together. One that completes many has a higher one. In
//!   IPv6 all such of a /64 together have that of one that completes many.
//! * Other sources, which may be made up, have a lower one each, by /64 in IPv6, and a lower one
//!   together. They cannot use up what known ones need.
//! * The set that counts for each source is bounded: when it is full, sources that are not in it
//!   are beyond the bounds.

use super::tun::DEVICE;
use crate::table::bounds::Bounds;
use crate::table::interface::is_interface_name;
use crate::table::layers::{Element, Family, Layers, RuleError, Verdict};
use crate::table::marks::{MARK_DELIVER, MARK_OWN, MARK_PACKETS};
use crate::table::peers::PeerId;
use crate::table::protocols::{ICMP, ICMP_V6, UDP};
use crate::table::{Mode, OnFailure, Table};
use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The name of our nft table, of family `inet`. There is one daemon in a network namespace, so it
/// is fixed.
pub const TABLE: &str = "tpo";

/// The name of the set of groups that peers ask for, in our tables of the families `ip` and `ip6`:
/// copying is not for `inet`.
pub const GROUPS: &str = "groups";

/// Ports of the listeners. No `v6` where the host has no IPv6: then nothing of it is intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// On 127.0.0.1, or on every address in redirect mode.
    pub v4: u16,
    /// On ::1, or on every address in redirect mode.
    pub v6: Option<u16>,
}

/// The name of the set that holds a peer's lease.
pub fn lease_set(peer: PeerId) -> String {
    format!("alive_{}", peer.number())
}

/// The name of the set that says that the daemon, with this number of peers, lives and carries
/// anything.
pub fn daemon_set(peers: usize) -> String {
    // Behind those of the peers.
    lease_set(PeerId::new(peers))
}

/// What the daemon has seen of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has completed a handshake.
    Known,
    /// It completes many: a load tester, a site behind one address.
    Busy,
}

impl Standing {
    /// Both, from the higher one on.
    pub const ALL: [Standing; 2] = [Standing::Busy, Standing::Known];

    fn name(self) -> &'static str {
        match self {
            Standing::Known => "known",
            Standing::Busy => "busy",
        }
    }

    /// The name of the set of sources that have it.
    pub fn set(self, v6: bool) -> String {
        format!("{}_{}", self.name(), if v6 { "v6" } else { "v4" })
    }
}

/// The counters of the table, by name.
pub mod counter {
    /// Connections handed to the listener.
    pub const INTERCEPTED: &str = "intercepted";
    /// SYNs that went their plain way because the peer's lease was absent.
    pub const NO_LEASE: &str = "no_lease";
    /// SYNs refused because the peer's lease was absent, or nobody listened, and the rule fails
    /// closed.
    pub const REFUSED: &str = "refused";
    /// SYNs that found a lease but nobody who listened.
    pub const NO_LISTENER: &str = "no_listener";
    /// Packets of what is no TCP handed to the TUN device.
    pub const PACKETS: &str = "others";
    /// SYNs beyond the bounds that went their plain way.
    pub const FLOOD: &str = "flood";
    /// SYNs beyond the bounds that were dropped, because their rule fails closed.
    pub const FLOOD_DROPPED: &str = "flood_dropped";
    /// Packets out of the TUN device whose answers could not be noted, because a set was full.
    pub const WAYS_FULL: &str = "ways_full";
    /// What the open rule at this place let go because the peer's lease was absent: SYNs of TCP,
    /// packets of the rest. Only where [`super::MOST_COUNTED`] allows.
    pub fn of_rule(place: usize) -> String {
        format!("{OF_RULE}{place}")
    }

    /// How the names of these begin.
    pub const OF_RULE: &str = "plain_";
    /// All of them, but for those of single rules.
    pub const ALL: [&str; 8] = [
        INTERCEPTED,
        NO_LEASE,
        REFUSED,
        NO_LISTENER,
        PACKETS,
        FLOOD,
        FLOOD_DROPPED,
        WAYS_FULL,
    ];
}

/// Of more rules than these what goes its plain way is counted only together: each costs a counter
/// and a chain, and `tpo status` asks for all of them.
pub const MOST_COUNTED: usize = 1_000;

/// The table as input for `nft -f`, replacing an older one of ours in the same transaction.
///
/// # Panics
/// When a rule names carriers that is not in [`Table::carriers`], or carriers a peer that is not
/// below [`Table::peers`].
pub fn render(table: &Table, ports: Ports) -> Result<String, RuleError> {
    if let Some(bad) = table
        .interfaces
        .iter()
        .chain(&table.multicast)
        .find(|name| !is_interface_name(name))
    {
        return Err(RuleError::Interface(bad.clone()));
    }
    let layers = Layers::new(&table.rules)?;
    let others = table
        .packets
        .iter()
        .map(|protocol| Ok((*protocol, Layers::of(&table.rules, *protocol)?)));
    let others = others.collect::<Result<Vec<_>, RuleError>>()?;
    let mut text = String::with_capacity(4096 + table.rules.len() * 96);
    // Adding before deleting makes the deletion possible whether or not there is an older one.
    write!(
        text,
        "add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n"
    )
    .expect(TO_STRING);
    let counted = table.rules.iter().filter(|rule| rule.enabled).count() <= MOST_COUNTED;
    Writer {
        text: &mut text,
        table,
        ports,
        layers: &layers,
        others: &others,
        counted,
    }
    .all()
    .expect(TO_STRING);
    text.push_str("}\n");
    text.push_str(&multicast(&table.multicast, ports.v6.is_some()));
    Ok(text)
}

/// Takes away what [`render`] makes.
pub fn nothing() -> String {
    ["inet", "ip", "ip6"]
        .map(|family| format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n"))
        .concat()
}

/// Copies packets to the groups that peers ask for into the TUN device; they themselves go their
/// way. Only those that came in where answers to them would go out: others have been brought here
/// by somebody else, as we bring some ourselves. Copying takes one off the hop limit.
pub(super) fn multicast(interfaces: &[String], v6: bool) -> String {
    let families: &[(&str, &str, Ipv6Addr)] = match v6 {
        true => &[
            ("ip", "ipv4_addr", VIA.to_ipv6_mapped()),
            ("ip6", "ipv6_addr", VIA_V6),
        ],
        false => &[("ip", "ipv4_addr", VIA.to_ipv6_mapped())],
    };
    let mut text = String::new();
    for (family, kind, via) in families {
        let _ = writeln!(
            text,
            "add table {family} {TABLE}\ndelete table {family} {TABLE}"
        );
        if interfaces.is_empty() {
            continue;
        }
        let names: Vec<String> = interfaces
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect();
        let _ = write!(
            text,
            "table {family} {TABLE} {{
  set {GROUPS} {{
    type {kind}; flags timeout;
  }}
  chain multicast {{
    type filter hook prerouting priority {PRIORITY_PACKETS}; policy accept;
    meta l4proto != udp accept
    {family} daddr != @{GROUPS} accept
    iifname != {{ {names} }} accept
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept
    fib saddr . iif oif missing accept
    dup to {via} device \"{DEVICE}\"
  }}
}}
",
            names = names.join(", "),
            via = via
                .to_ipv4_mapped()
                .map_or_else(|| via.to_string(), |via| via.to_string()),
        );
    }
    text
}

/// Copies need a next hop, though the device has none: nobody's addresses (RFC 7600, RFC 6666).
const VIA: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 9);
/// Of IPv6, for which the kernel wants a route too.
pub const VIA_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 9);

const TO_STRING: &str = "writing into a String cannot fail";

/// A pure SYN: the first packet of a connection.
pub(super) const SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";

/// Packets to these are for this host, or for many; no rule applies.
pub(super) const NOT_FORWARDED: &str = "fib daddr type { local, anycast, multicast, broadcast }";

/// After connection tracking and whatever else marks packets (some firewalls set the whole mark at
/// `mangle`, and check the reverse path by mark at `mangle + 10`, where ours must not be seen yet),
/// before addresses are rewritten at `mangle + 50`.
const PRIORITY: &str = "mangle + 20";

/// Right behind: what belongs to a transparent socket is marked already.
const PRIORITY_PACKETS: &str = "mangle + 21";

/// Entries of each of the sets of ways back at most: eight peers' flows. Some 130 bytes of the
/// kernel's memory each, when used.
const MOST_WAYS_BACK: usize = 1 << 20;

/// A source that has completed no handshake may send a sixth of what a known one may: it is known
/// within 50 ms of its first one.
const NEW_SHARE: u32 = 6;

/// Of the SYNs of all sources, those that have completed no handshake may send a quarter.
const NEW_SHARE_OF_ALL: u32 = 4;

/// Sources of each family that have completed a handshake, at most: beyond it further ones are
/// bounded as new ones are.
pub const MOST_KNOWN: usize = 65_536;

/// Of these the addresses of one /64 of IPv6, so that one host of many addresses does not use up
/// the places of other networks: an eighth, a large LAN with several addresses for each host.
pub const MOST_KNOWN_OF_SITE: usize = MOST_KNOWN / 8;

/// Sources whose SYNs are counted apart, for each family and kind. A flood from more sources in
/// [`SYN_MEMORY`] is beyond the bounds.
const MOST_SOURCES: usize = 131_072;

/// How long the count of a source's SYNs is kept after its last one.
const SYN_MEMORY: &str = "3s";

/// The part of an IPv6 address that its host cannot choose.
const V6_SITE: &str = "ffff:ffff:ffff:ffff::";

/// TCP resets per second by which connections are refused; beyond it they are refused in silence. A
/// peer that is down sees as many connections, and a flood from made-up sources is not turned upon
/// their owners.
const RESETS_PER_SECOND: u32 = 1_000;

/// Writes the parts of a table of ours.
pub(super) struct Writer<'a> {
    pub(super) text: &'a mut String,
    pub(super) table: &'a Table,
    pub(super) ports: Ports,
    pub(super) layers: &'a Layers,
    /// Of each other protocol that is carried.
    pub(super) others: &'a [(u8, Layers)],
    /// What open rules let go is counted for each.
    pub(super) counted: bool,
}

impl Writer<'_> {
    fn all(&mut self) -> fmt::Result {
        for name in counter::ALL {
            writeln!(self.text, "  counter {name} {{\n  }}")?;
        }
        // A set can only be looked up by something of the packet. It holds all protocols that are
        // carried or none, so "is this one in the set" asks whether the set is empty. The one
        // behind the last peer's says that the daemon itself lives.
        let of_peers = (0..self.table.peers).map(PeerId::new).map(lease_set);
        for set in of_peers.chain([daemon_set(self.table.peers)]) {
            writeln!(
                self.text,
                "  set {set} {{\n    type inet_proto; flags timeout;\n  }}"
            )?;
        }
        self.bounds()?;
        self.verdict_chains()?;
        self.maps("v4", "ipv4_addr", &self.layers.v4, |bits| {
            Ipv4Addr::from(bits as u32).to_string()
        })?;
        if self.ports.v6.is_some() {
            self.maps("v6", "ipv6_addr", &self.layers.v6, |bits| {
                Ipv6Addr::from(bits).to_string()
            })?;
        }
        self.decide("decide", "", self.layers, "tcp")?;
        match self.table.mode {
            Mode::Tproxy => self.tproxy()?,
            Mode::Redirect => self.redirect()?,
        }
        self.established()?;
        if self.table.local {
            self.output()?;
        }
        if !self.table.packets.is_empty() {
            self.packets()?;
        }
        Ok(())
    }

    /// What may be intercepted at most, and a chain for each failure mode. Whoever returns from it
    /// is within the bounds.
    fn bounds(&mut self) -> fmt::Result {
        let Bounds {
            syns_per_source: known,
            syns,
            ..
        } = self.table.bounds;
        let new = (known / NEW_SHARE).max(1);
        let all_new = (syns / NEW_SHARE_OF_ALL).max(1);
        let all_known = (syns - all_new).max(1);
        // The last quarter is for the others.
        let busy = known.max(all_known - all_known / 4);
        let rate_of = |standing| match standing {
            Standing::Known => known,
            Standing::Busy => busy,
        };
        // A browser or a load tester opens many at once.
        let burst = 2 * new;
        let families: &[(&str, &str, &str, String)] = &[
            ("v4", "ipv4_addr", "ip saddr", "ip saddr".to_owned()),
            (
                "v6",
                "ipv6_addr",
                "ip6 saddr",
                format!("ip6 saddr & {V6_SITE}"),
            ),
        ];
        for (which, rate) in [("known", all_known), ("new", all_new)] {
            writeln!(
                self.text,
                "  limit syns_{which} {{\n    rate over {rate}/second burst {rate} packets\n  }}"
            )?;
        }
        writeln!(
            self.text,
            "  set syns_site {{
    type ipv6_addr; flags dynamic,timeout; timeout {SYN_MEMORY}; size {MOST_SOURCES};
  }}"
        )?;
        for (family, kind, ..) in families {
            writeln!(
                self.text,
                "  set syns_new_{family} {{
    type {kind}; flags dynamic,timeout; timeout {SYN_MEMORY}; size {MOST_SOURCES};
  }}"
            )?;
            for standing in Standing::ALL {
                writeln!(
                    self.text,
                    "  set {set} {{
    type {kind}; flags timeout; size {MOST_KNOWN};
  }}
  set syns_{set} {{
    type {kind}; flags dynamic,timeout; timeout {SYN_MEMORY}; size {MOST_SOURCES};
  }}",
                    set = standing.set(*family == "v6")
                )?;
            }
        }
        for (mode, over) in [
            (
                OnFailure::Open,
                format!("counter name {} accept", counter::FLOOD),
            ),
            (
                OnFailure::Closed,
                format!("counter name {} drop", counter::FLOOD_DROPPED),
            ),
        ] {
            let chain = bounded_chain(mode);
            writeln!(self.text, "  chain {chain}_over {{\n    {over}\n  }}")?;
            for standing in Standing::ALL {
                let (name, rate) = (standing.name(), rate_of(standing));
                writeln!(self.text, "  chain {chain}_{name} {{")?;
                for (family, _, source, _) in families {
                    writeln!(
                        self.text,
                        "    update @syns_{name}_{family} {{ {source} limit rate over {rate}/second burst {rate} packets }} goto {chain}_over"
                    )?;
                }
                // A host of IPv6 may make as many of its addresses known as it likes: together
                // they are no more than one busy source.
                writeln!(
                    self.text,
                    "    update @syns_site {{ ip6 saddr & {V6_SITE} limit rate over {busy}/second burst {busy} packets }} goto {chain}_over
    limit name \"syns_known\" goto {chain}_over\n  }}"
                )?;
            }
            // What this host's applications begin is finished by its own kernel: it stays half-open
            // for no time. It leaves by an interface (the output hooks) or has come from `lo`. Its
            // addresses would not say so: anybody in a LAN may bear them as a source.
            writeln!(
                self.text,
                "  chain {chain} {{
    meta l4proto != tcp return
    meta oif != 0 return
    iifname \"lo\" return"
            )?;
            for standing in Standing::ALL {
                for (family, _, source, _) in families {
                    let set = standing.set(*family == "v6");
                    writeln!(
                        self.text,
                        "    {source} @{set} goto {chain}_{}",
                        standing.name()
                    )?;
                }
            }
            for (family, _, _, source) in families {
                writeln!(
                    self.text,
                    "    update @syns_new_{family} {{ {source} limit rate over {new}/second burst {burst} packets }} goto {chain}_over
    {source} != @syns_new_{family} goto {chain}_over"
                )?;
            }
            writeln!(
                self.text,
                "    limit name \"syns_new\" goto {chain}_over\n  }}"
            )?;
        }
        Ok(())
    }

    /// One chain for each pair of peer and failure mode that a rule uses. Whoever returns from it
    /// may be intercepted.
    fn verdict_chains(&mut self) -> fmt::Result {
        writeln!(
            self.text,
            "  chain refuse {{
    counter name {refused}
    meta l4proto tcp limit rate over {RESETS_PER_SECOND}/second burst {RESETS_PER_SECOND} packets drop
    meta l4proto tcp reject with tcp reset
    reject with icmpx type admin-prohibited
  }}",
            refused = counter::REFUSED
        )?;
        let all = std::iter::once(self.layers).chain(self.others.iter().map(|(_, layers)| layers));
        let all = all
            .flat_map(|layers| [&layers.v4, &layers.v6])
            .flat_map(|f| f.layers.iter().flatten());
        let chains: BTreeSet<(Verdict, Option<usize>)> =
            all.map(|e| (e.verdict, self.counted_apart(e))).collect();
        for (verdict, rule) in chains {
            let own = match rule {
                Some(rule) => {
                    let name = counter::of_rule(rule);
                    writeln!(self.text, "  counter {name} {{\n  }}")?;
                    format!("counter name {name} ")
                }
                None => String::new(),
            };
            let peers = &self.table.carriers[verdict.carriers].peers;
            assert!(
                peers.iter().all(|peer| peer.number() < self.table.peers),
                "a rule names {peers:?} of {}",
                self.table.peers
            );
            let bounded = bounded_chain(verdict.on_failure);
            let chain = verdict_chain(verdict, rule);
            let sets: Vec<String> = peers
                .iter()
                .map(|peer| format!("    meta l4proto @{} goto {bounded}", lease_set(*peer)))
                .collect();
            let sets = sets.join("\n");
            match verdict.on_failure {
                OnFailure::Open => writeln!(
                    self.text,
                    "  chain {chain} {{
    meta mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} return
{sets}
    {own}counter name {no_lease} accept
  }}",
                    no_lease = counter::NO_LEASE
                )?,
                OnFailure::Closed => writeln!(
                    self.text,
                    "  chain {chain} {{
    meta mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} goto refuse
{sets}
    goto refuse
  }}"
                )?,
            }
        }
        Ok(())
    }

    /// Whether what the element lets go is counted by itself: the place of its rule.
    fn counted_apart(&self, element: &Element) -> Option<usize> {
        (self.counted && element.verdict.on_failure == OnFailure::Open).then_some(element.rule)
    }

    fn maps(
        &mut self,
        name: &str,
        kind: &str,
        family: &Family,
        address: fn(u128) -> String,
    ) -> fmt::Result {
        self.maps_with(name, kind, true, family, address)
    }

    /// The same, with ports in the keys or without.
    pub(super) fn maps_with(
        &mut self,
        name: &str,
        kind: &str,
        ports: bool,
        family: &Family,
        address: fn(u128) -> String,
    ) -> fmt::Result {
        for (index, layer) in family.layers.iter().enumerate() {
            writeln!(
                self.text,
                "  map {name}_{index} {{
    type {kind} . {kind}{services} : verdict
    flags interval
    elements = {{",
                services = if ports {
                    " . inet_service . inet_service"
                } else {
                    ""
                }
            )?;
            for element in layer {
                let chain = verdict_chain(element.verdict, self.counted_apart(element));
                let Element {
                    source,
                    source_ports,
                    destination,
                    destination_ports,
                    ..
                } = *element;
                let services = match ports {
                    true => format!(
                        " . {} . {}",
                        range(destination_ports.0, destination_ports.1),
                        range(source_ports.0, source_ports.1)
                    ),
                    false => String::new(),
                };
                writeln!(
                    self.text,
                    "      {} . {}{services} : goto {},",
                    range(address(destination.0), address(destination.1)),
                    range(address(source.0), address(source.1)),
                    chain
                )?;
            }
            writeln!(self.text, "    }}\n  }}")?;
        }
        if family.layers.is_empty() {
            return Ok(());
        }
        writeln!(
            self.text,
            "  set {name}_destinations {{\n    type {kind}\n    flags interval\n    elements = {{"
        )?;
        for (first, last) in family.destinations() {
            writeln!(self.text, "      {},", range(address(first), address(last)))?;
        }
        writeln!(self.text, "    }}\n  }}")
    }

    /// Returns to its caller only for a SYN that is to be intercepted. Most SYNs go where no rule
    /// points: one look at the merged destinations ends their walk, at a tenth of the cost of one
    /// layer.
    pub(super) fn decide(
        &mut self,
        chain: &str,
        prefix: &str,
        layers: &Layers,
        transport: &str,
    ) -> fmt::Result {
        let v6 = if self.ports.v6.is_some() {
            layers.v6.layers.len()
        } else {
            0
        };
        let families = [("v4", "ip", layers.v4.layers.len()), ("v6", "ip6", v6)];
        writeln!(self.text, "  chain {chain} {{")?;
        for (family, header, layers) in families {
            let name = format!("{prefix}{family}");
            if layers == 0 {
                continue;
            }
            writeln!(
                self.text,
                "    {header} daddr != @{name}_destinations accept"
            )?;
            for index in 0..layers {
                // The kernel narrows down field by field, and what the first one leaves is the cost
                // of the others: the destination, which tells rules apart best, makes a look-up ten
                // times as fast as the source would.
                let ports = match transport {
                    "" => String::new(),
                    _ => format!(" . {transport} dport . {transport} sport"),
                };
                let key = format!("{header} daddr . {header} saddr{ports}");
                writeln!(self.text, "    {key} vmap @{name}_{index}")?;
            }
        }
        writeln!(self.text, "    accept\n  }}")
    }

    fn tproxy(&mut self) -> fmt::Result {
        let Ports { v4, v6 } = self.ports;
        let then = format!(
            "meta mark set meta mark | {MARK_DELIVER:#x} counter name {} accept",
            counter::INTERCEPTED
        );
        writeln!(self.text, "  chain divert {{")?;
        writeln!(
            self.text,
            "    meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:{v4} {then}"
        )?;
        if let Some(v6) = v6 {
            writeln!(
                self.text,
                "    meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:{v6} {then}"
            )?;
        }
        // Reached only when nobody listens.
        writeln!(self.text, "    counter name {}\n  }}", counter::NO_LISTENER)?;
        writeln!(self.text, "  chain opening {{")?;
        if self.table.local {
            // Decided in `output`. The packet is on `lo` and cannot go its plain way any more: when
            // nobody listens it is dropped, and the application's next SYN, a second later, finds
            // the lease gone.
            writeln!(
                self.text,
                "    iifname \"lo\" meta mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} goto opening_local"
            )?;
        }
        self.only_interfaces()?;
        writeln!(
            self.text,
            "    jump decide
    jump divert
    meta mark set meta mark | {MARK_DELIVER:#x}
    jump decide
    meta mark set meta mark & {:#x}
  }}",
            !MARK_DELIVER
        )?;
        if self.table.local {
            writeln!(
                self.text,
                "  chain opening_local {{
    jump divert
    jump decide
    drop
  }}"
            )?;
        }
        Ok(())
    }

    fn redirect(&mut self) -> fmt::Result {
        let Ports { v4, v6 } = self.ports;
        writeln!(
            self.text,
            "  chain divert {{\n    counter name {}",
            counter::INTERCEPTED
        )?;
        writeln!(
            self.text,
            "    meta nfproto ipv4 meta l4proto tcp redirect to :{v4}"
        )?;
        if let Some(v6) = v6 {
            writeln!(
                self.text,
                "    meta nfproto ipv6 meta l4proto tcp redirect to :{v6}"
            )?;
        }
        writeln!(self.text, "  }}\n  chain redirect_prerouting {{")?;
        writeln!(
            self.text,
            "    type nat hook prerouting priority dstnat; policy accept;"
        )?;
        self.opening_only()?;
        self.only_interfaces()?;
        writeln!(self.text, "    jump decide\n    goto divert\n  }}")?;
        if self.table.local {
            writeln!(self.text, "  chain redirect_output {{")?;
            writeln!(
                self.text,
                "    type nat hook output priority -100; policy accept;"
            )?;
            writeln!(
                self.text,
                "    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept"
            )?;
            self.opening_only()?;
            writeln!(self.text, "    jump decide\n    goto divert\n  }}")?;
        }
        Ok(())
    }

    /// Forwarded packets that belong to a transparent socket of ours, near or far edge, and ICMP
    /// errors about them.
    fn established(&mut self) -> fmt::Result {
        let tproxy = self.table.mode == Mode::Tproxy;
        if !tproxy && !self.table.far_source_is_client {
            return Ok(());
        }
        writeln!(
            self.text,
            "  chain prerouting {{
    type filter hook prerouting priority {PRIORITY}; policy accept;
    meta l4proto != {{ tcp, icmp, ipv6-icmp }} accept
    {NOT_FORWARDED} accept"
        )?;
        if tproxy {
            writeln!(self.text, "    {SYN} goto opening")?;
        }
        writeln!(
            self.text,
            "    socket transparent 1 meta mark set meta mark | {MARK_DELIVER:#x}\n  }}"
        )
    }

    /// What this host sends itself.
    fn output(&mut self) -> fmt::Result {
        let tproxy = self.table.mode == Mode::Tproxy;
        if !tproxy && !self.table.far_source_is_client {
            return Ok(());
        }
        let deliver = format!("meta mark set meta mark | {MARK_DELIVER:#x}");
        writeln!(
            self.text,
            "  chain output {{
    type route hook output priority {PRIORITY}; policy accept;"
        )?;
        if self.table.far_source_is_client {
            // Two kinds of packets that this host sends to the client's address are meant for our
            // socket that bears it: what a server on this very host answers, and the host's own
            // ICMP errors about that socket's packets (a destination that does not answer ARP).
            // Neither belongs to our socket, so only connection tracking knows them, by the mark
            // that our SYN left there.
            writeln!(
                self.text,
                "    meta l4proto {{ icmp, ipv6-icmp }} ct state related ct mark & {MARK_OWN:#x} == {MARK_OWN:#x} {deliver} accept
    meta l4proto != tcp accept
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} {SYN} ct mark set ct mark | {MARK_OWN:#x} accept
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept
    ct direction reply ct mark & {MARK_OWN:#x} == {MARK_OWN:#x} {deliver} accept"
            )?;
        } else {
            writeln!(
                self.text,
                "    meta l4proto != tcp accept\n    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept"
            )?;
        }
        if tproxy {
            // Here too connection tracking has to remember which connections are ours. What it
            // remembers of an earlier SYN is forgotten with each new one, or a connection that goes
            // its plain way now would be cut in two.
            writeln!(
                self.text,
                "    {NOT_FORWARDED} accept
    {SYN} goto opening_output
    ct direction original ct mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} {deliver}
  }}
  chain opening_output {{
    ct mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} ct mark set ct mark & {:#x}
    jump decide
    ct mark set ct mark | {MARK_DELIVER:#x} {deliver}",
                !MARK_DELIVER
            )?;
        }
        writeln!(self.text, "  }}")
    }

    /// UDP, ICMP and whatever else a rule names, whole, into the TUN device; and what answers to
    /// packets that came out of it.
    fn packets(&mut self) -> fmt::Result {
        let own = MARK_PACKETS;
        let rest = format!("{}s", self.table.packets_rest.as_secs().max(1));
        let families: &[(&str, &str, &str)] = match self.ports.v6 {
            Some(_) => &[("v4", "ip", "ipv4_addr"), ("v6", "ip6", "ipv6_addr")],
            None => &[("v4", "ip", "ipv4_addr")],
        };
        for (protocol, layers) in self.others {
            let (prefix, ports) = (format!("p{protocol}_"), *protocol == UDP);
            let (v4, v6) = (format!("{prefix}v4"), format!("{prefix}v6"));
            self.maps_with(&v4, "ipv4_addr", ports, &layers.v4, |bits| {
                Ipv4Addr::from(bits as u32).to_string()
            })?;
            if self.ports.v6.is_some() {
                self.maps_with(&v6, "ipv6_addr", ports, &layers.v6, |bits| {
                    Ipv6Addr::from(bits).to_string()
                })?;
            }
            self.decide(
                &format!("decide_{protocol}"),
                &prefix,
                layers,
                if ports { "udp" } else { "" },
            )?;
        }
        self.ways_back_sets(families, &rest)?;
        self.noting_ways_back(families, &rest)?;
        let alive = daemon_set(self.table.peers);
        writeln!(
            self.text,
            "  chain others_taken {{
    meta mark set meta mark | {own:#x} counter name {packets} accept
  }}
  chain others_back {{
    meta l4proto != @{alive} return",
            packets = counter::PACKETS
        )?;
        for (family, header, _) in families {
            let errors = match *family {
                "v4" => "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
                _ => {
                    "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"
                }
            };
            let no_echo = match *family {
                "v4" => "icmp type != { echo-request, echo-reply }",
                _ => "icmpv6 type != { echo-request, echo-reply }",
            };
            // What else there is of ICMP tells a network's own hosts how to behave, and stays
            // there.
            writeln!(
                self.text,
                "    {errors} {header} daddr @back_{family}_hosts goto others_taken\n    {no_echo} return"
            )?;
            for (set, only, key) in [
                (
                    format!("back_{family}"),
                    "",
                    format!("{header} saddr . {header} daddr . udp sport . udp dport"),
                ),
                (
                    format!("back_{family}_pairs"),
                    "meta l4proto != udp ",
                    format!("{header} saddr . {header} daddr . meta l4proto"),
                ),
            ] {
                // The first answer makes it a flow of both ways. Where that cannot be noted it is
                // ours all the same.
                let note =
                    format!("update @{set}_mutual {{ {key} timeout {rest} }} goto others_taken");
                writeln!(
                    self.text,
                    "    {only}{key} @{set}_mutual {note}
    {only}{key} @{set} {note}
    {only}{key} @{set} counter name {full} goto others_taken",
                    full = counter::WAYS_FULL
                )?;
            }
        }
        writeln!(
            self.text,
            "  }}
  chain others {{
    type filter hook prerouting priority {PRIORITY_PACKETS}; policy accept;
    meta l4proto tcp accept
    meta mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} accept
    iifname \"{DEVICE}\" meta mark set meta mark | {MARK_OWN:#x} jump others_out
    iifname \"{DEVICE}\" accept
    {NOT_FORWARDED} accept
    icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} accept
    jump others_back"
        )?;
        self.only_interfaces()?;
        writeln!(
            self.text,
            "    goto others_ruled\n  }}\n  chain others_ruled {{"
        )?;
        for (protocol, _) in self.others {
            match *protocol {
                ICMP => writeln!(
                    self.text,
                    "    icmp type echo-request jump decide_{protocol}"
                )?,
                ICMP_V6 if self.ports.v6.is_some() => writeln!(
                    self.text,
                    "    icmpv6 type echo-request jump decide_{protocol}"
                )?,
                _ => writeln!(
                    self.text,
                    "    meta l4proto {protocol} jump decide_{protocol}"
                )?,
            }
        }
        // Whoever returned from its decision is taken; a packet that has none is not.
        let protocols: Vec<String> = self
            .others
            .iter()
            .map(|(protocol, _)| protocol.to_string())
            .collect();
        writeln!(
            self.text,
            "    meta l4proto != {{ {} }} accept
    icmp type != echo-request accept
    icmpv6 type != echo-request accept
    goto others_taken
  }}",
            protocols.join(", ")
        )?;
        // What this host sends itself: answers of its own services and its kernel's ICMP errors to
        // those whom we speak for, and if it is wanted, what its own applications begin. Our own
        // tunnel bears our mark.
        writeln!(
            self.text,
            "  chain others_output {{
    type route hook output priority {PRIORITY_PACKETS}; policy accept;
    meta l4proto tcp accept
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept
    {NOT_FORWARDED} accept
    jump others_back"
        )?;
        if self.table.local {
            writeln!(self.text, "    goto others_ruled")?;
        }
        writeln!(self.text, "  }}")
    }

    /// What came out of the device, the other way round: packets that answer it, and errors about
    /// it, are ours too. An entry leaves when its flow does at the latest: there are sets for flows
    /// that were not answered yet, and for those that were, which live longer.
    fn ways_back_sets(&mut self, families: &[(&str, &str, &str)], rest: &str) -> fmt::Result {
        let size = self.table.bounds.flows.clamp(1, MOST_WAYS_BACK);
        let brief = self.rest_one_way();
        for (family, _, kind) in families {
            let flow = format!("{kind} . {kind} . inet_service . inet_service");
            let pair = format!("{kind} . {kind} . inet_proto");
            for (set, kind, rest) in [
                ("", flow.as_str(), brief.as_str()),
                ("_mutual", &flow, rest),
                ("_pairs", &pair, &brief),
                ("_pairs_mutual", &pair, rest),
                // An error comes soon after what it is about.
                ("_hosts", kind, &brief),
            ] {
                writeln!(
                    self.text,
                    "  set back_{family}{set} {{
    type {kind}
    flags dynamic,timeout
    timeout {rest}; size {size};
  }}"
                )?;
            }
        }
        Ok(())
    }

    /// Notes where the answers to what comes out of the device go.
    fn noting_ways_back(&mut self, families: &[(&str, &str, &str)], rest: &str) -> fmt::Result {
        let brief = self.rest_one_way();
        writeln!(self.text, "  chain others_out_flow {{")?;
        for (family, header, _) in families {
            for (set, only, key) in [
                (
                    format!("back_{family}"),
                    "meta l4proto udp",
                    format!("{header} daddr . {header} saddr . udp dport . udp sport"),
                ),
                (
                    format!("back_{family}_pairs"),
                    "meta l4proto != udp",
                    format!("{header} daddr . {header} saddr . meta l4proto"),
                ),
            ] {
                writeln!(
                    self.text,
                    "    {only} {key} @{set}_mutual update @{set}_mutual {{ {key} timeout {rest} }} accept
    {only} update @{set} {{ {key} timeout {brief} }} accept"
                )?;
            }
        }
        // A set that is full notes no more: the rule above ends there, and the packet goes on.
        writeln!(
            self.text,
            "    counter name {full}\n  }}\n  chain others_out {{",
            full = counter::WAYS_FULL
        )?;
        for (family, header, _) in families {
            writeln!(
                self.text,
                "    update @back_{family}_hosts {{ {header} saddr timeout {brief} }} goto others_out_flow"
            )?;
        }
        writeln!(
            self.text,
            "    counter name {full} goto others_out_flow\n  }}",
            full = counter::WAYS_FULL
        )
    }

    fn rest_one_way(&self) -> String {
        format!("{}s", self.table.bounds.rest_one_way.as_secs().max(1))
    }

    /// Ends the walk of all but SYNs that a rule may name.
    fn opening_only(&mut self) -> fmt::Result {
        writeln!(self.text, "    meta l4proto != tcp accept")?;
        writeln!(
            self.text,
            "    tcp flags & (fin | syn | rst | ack) != syn accept"
        )?;
        writeln!(self.text, "    {NOT_FORWARDED} accept")
    }

    pub(super) fn only_interfaces(&mut self) -> fmt::Result {
        if self.table.interfaces.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = self
            .table
            .interfaces
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect();
        writeln!(
            self.text,
            "    iifname != {{ {} }} accept",
            names.join(", ")
        )
    }
}

/// The chain of a peer and a failure mode; of one rule, where what it lets go is counted apart.
pub(super) fn verdict_chain(verdict: Verdict, rule: Option<usize>) -> String {
    match (verdict.on_failure, rule) {
        (OnFailure::Open, Some(rule)) => format!("rule_{rule}_open"),
        (OnFailure::Open, None) => format!("peer_{}_open", verdict.carriers.number()),
        (OnFailure::Closed, _) => format!("peer_{}_closed", verdict.carriers.number()),
    }
}

fn bounded_chain(mode: OnFailure) -> &'static str {
    match mode {
        OnFailure::Open => "bounded_open",
        OnFailure::Closed => "bounded_closed",
    }
}

pub(super) fn range<T: fmt::Display + PartialEq>(first: T, last: T) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::RuleSpec;
    use crate::table::carriers::{AllCarriers, Carriers};
    use tpo_engine::CarriersId;

    fn table(interfaces: &[&str]) -> Table {
        let any = RuleSpec {
            protocol: 6,
            source: ("10.10.1.9".parse().unwrap(), 24),
            source_ports: 0..=u16::MAX,
            destination: ("10.10.2.0".parse().unwrap(), 24),
            destination_ports: 80..=80,
            carriers: CarriersId::new(0),
            on_failure: OnFailure::Open,
            enabled: true,
        };
        let closed = RuleSpec {
            destination_ports: 81..=90,
            carriers: CarriersId::new(1),
            on_failure: OnFailure::Closed,
            ..any.clone()
        };
        Table {
            rules: vec![any, closed],
            mode: Mode::Tproxy,
            local: true,
            interfaces: interfaces.iter().map(|s| s.to_string()).collect(),
            peers: 2,
            carriers: AllCarriers::of_peers(2),
            far_source_is_client: true,
            packets: Vec::new(),
            packets_rest: std::time::Duration::ZERO,
            multicast: Vec::new(),
            bounds: Bounds::default(),
            hold_closed: false,
        }
    }

    const PORTS: Ports = Ports {
        v4: 15001,
        v6: Some(15002),
    };

    #[test]
    fn elements_carry_ranges_and_their_peers_chain() {
        let text = render(&table(&["lan0"]), PORTS).unwrap();
        assert!(text.contains(
            "10.10.2.0-10.10.2.255 . 10.10.1.0-10.10.1.255 . 80 . 0-65535 : goto rule_0_open,"
        ));
        assert!(text.contains("10.10.1.0-10.10.1.255 . 81-90 . 0-65535 : goto peer_1_closed,"));
        assert!(text.contains("iifname != { \"lan0\" } accept"));
        assert!(text.starts_with("add table inet tpo\ndelete table inet tpo\n"));
    }

    #[test]
    fn any_of_several_peers_will_do() {
        let mut table = table(&[]);
        table.rules[0].carriers = table.carriers.id_of(&Carriers {
            peers: [1, 0].map(PeerId::new).into(),
            spread: false,
        });
        let text = render(&table, PORTS).unwrap();
        let both = "meta l4proto @alive_1 goto bounded_open\n    meta l4proto @alive_0 goto bounded_open\n    counter name plain_0 counter name no_lease accept";
        assert!(text.contains(both), "{text}");
    }

    #[test]
    fn many_rules_share_their_counters() {
        let mut table = table(&[]);
        let more = (0..MOST_COUNTED as u16).map(|port| RuleSpec {
            destination_ports: port..=port,
            ..table.rules[0].clone()
        });
        table.rules = more.collect();
        assert!(
            render(&table, PORTS)
                .unwrap()
                .contains("goto rule_999_open")
        );
        table.rules.push(RuleSpec {
            destination_ports: 5_000..=5_000,
            ..table.rules[0].clone()
        });
        let text = render(&table, PORTS).unwrap();
        assert!(text.contains("goto peer_0_open") && !text.contains("plain_"));
    }

    #[test]
    fn groups_are_copied_only_where_they_are_carried() {
        let text = render(&table(&[]), PORTS).unwrap();
        assert!(
            !text.contains("dup to") && text.contains("delete table ip6 tpo"),
            "what an earlier run left goes"
        );
        let text = render(
            &Table {
                multicast: vec!["lan0".into()],
                ..table(&[])
            },
            PORTS,
        )
        .unwrap();
        assert!(
            text.contains("dup to 192.0.0.9 device \"tpo0\"")
                && text.contains("dup to 100::9 device"),
            "{text}"
        );
    }

    #[test]
    fn without_ipv6_nothing_of_it_is_named() {
        let text = render(
            &table(&[]),
            Ports {
                v4: 15001,
                v6: None,
            },
        )
        .unwrap();
        assert!(!text.contains("ip6 to"));
    }

    #[test]
    fn connection_tracking_only_for_this_hosts_own_traffic() {
        let text = render(
            &Table {
                local: false,
                ..table(&[])
            },
            PORTS,
        )
        .unwrap();
        assert!(!text.contains("ct mark"));
        assert!(!text.contains("ct direction"));
    }

    #[test]
    fn an_interface_name_cannot_smuggle_rules() {
        for bad in ["", "a\"; accept; \"", "a b", "sixteen-letters-"] {
            assert_eq!(
                render(&table(&[bad]), PORTS).unwrap_err(),
                RuleError::Interface(bad.to_owned())
            );
        }
    }
}
