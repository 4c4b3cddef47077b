//! What each room is given of the configuration, in the room's own types.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::Result;
use tpo_engine::{Compression, Policy, Prefix, Rule};

use crate::config::{Checked, Keys, checked};
use crate::edge::exit::{Claims, Exit, Permit};
use crate::host::own_addresses::Own;
use crate::lane::path_cache::PathCache;
use crate::lanes::transit::Transit;
use crate::packets::directory::GroupTable;
use crate::packets::multicast::Plan;
use crate::packets::multicast::groups::Wanted;
use crate::packets::multicast::site::site;
use crate::table::bounds::Bounds;
use crate::table::peers::PeerId;
use crate::table::protocols::{ICMP, ICMP_V6, TCP};
use crate::table::{self, OnFailure, RuleSpec};

/// The rules that are switched on.
pub(super) fn enabled(checked: &Checked) -> impl Iterator<Item = &checked::Rule> {
    checked.rules.iter().filter(|rule| rule.enabled)
}

/// The look-up table of the rules that are switched on.
pub(super) fn policy(checked: &Checked) -> Policy {
    Policy::new(enabled(checked).map(|rule| rule.matches.clone()).collect())
}

/// The initial credit of a flow grows with a configured rate up to this: flows whose application
/// takes nothing may hold it.
const MOST_CREDIT: u32 = 1 << 20;

/// The rules that are also for what peers bring; none: nothing goes on from peer to peer.
pub(super) fn transit(checked: &Checked) -> Option<Transit> {
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
pub(super) fn group_table(
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

pub(super) fn multicast_plan(checked: &Checked) -> Plan {
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

pub(super) fn engine_config(
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

pub(super) fn exit(checked: &Checked, peer: PeerId, own: Arc<Own>, claims: Arc<Claims>) -> Exit {
    let permits = checked
        .accepts
        .iter()
        .filter(|accept| accept.peer == peer)
        .map(|accept| Permit {
            protocol: accept.protocol,
            sources: accept.sources.clone(),
            destination: accept.destination,
            destination_ports: accept.destination_ports.clone(),
            source_address: accept.source_address,
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
