//! What only shows when all sections are seen together; most of it is advice.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use tpo_engine::{PacketKey, Policy, Prefix};

use super::behind::Behind;
use crate::config::checked::{Accept, Checked, Rule};
use crate::config::finding::Findings;
use crate::config::shadow;
use crate::table::address::is_special;
use crate::table::peers::PeerId;
use crate::table::protocols::TCP;

/// Sources of an accept that are compared with the rules: 16. One that is written is one; more
/// follow from the rules themselves, and 100,000 accepts times 10,000 rules would take minutes.
const MOST_LOOKED_AT: usize = 16;
/// Bits of an IPv4 prefix below which an accept is worth a note: nobody has more than a network of
/// class A.
const WIDE_V4: u8 = 8;
/// The same of IPv6: nobody has more than a regional registry gives out.
const WIDE_V6: u8 = 16;
/// The key to which notes about clients belong.
const SOURCE: &str = "[[accept]] source";

/// Looks at the whole configuration, in which nothing is wrong by itself.
pub(super) fn check_together(checked: &Checked, behind: Option<&Behind>, findings: &mut Findings) {
    check_use_of_peers(checked, findings);
    check_multicast_lans(checked, findings);
    for accept in &checked.accepts {
        let peer = &checked.peers[accept.peer].name;
        note_wide_destination(accept, peer, findings);
        match behind.and_then(|behind| behind.followed_by(accept)) {
            Some(clients) => note_clients(accept, &clients.named, peer, findings),
            None => note_wide_source(accept, peer, findings),
        }
    }
    check_owners_of_clients(checked, findings);
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

/// Who calls a peer, and whether anything is carried to it or from it.
fn check_use_of_peers(checked: &Checked, findings: &mut Findings) {
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
}

/// Multicast groups need LANs in which they are taken and served.
fn check_multicast_lans(checked: &Checked, findings: &mut Findings) {
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
}

/// Clients that an accept lets in and a rule of ours seeks behind another peer.
fn check_owners_of_clients(checked: &Checked, findings: &mut Findings) {
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
pub(crate) fn note_own(checked: &Checked, own: &[IpAddr], findings: &mut Findings) {
    let alone = |prefix: &Prefix| prefix.length == if prefix.address.is_ipv4() { 32 } else { 128 };
    let is_alone: HashSet<(PeerId, IpAddr)> = checked
        .accepts
        .iter()
        .filter(|accept| alone(&accept.destination))
        .map(|accept| (accept.peer, accept.destination.address))
        .collect();
    let mut named: HashSet<(PeerId, IpAddr, u8)> = HashSet::new();
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
        if named.insert((accept.peer, address, length)) {
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
