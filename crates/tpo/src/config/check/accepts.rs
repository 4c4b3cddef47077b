//! `[[accept]]`: what each peer may reach through us.

use std::sync::Arc;

use tpo_engine::Prefix;

use super::behind::Behind;
use super::ends::{check_families, check_groups, ports, protocol};
use super::peers::Peers;
use crate::config::checked::{Accept, SourceAddress};
use crate::config::file::{File, Section};
use crate::config::finding::Findings;
use crate::config::value;
use crate::table::address::{is_routed, is_special_only};
use crate::table::protocols::TCP;

/// Accepts: 100,000, far above any use; it bounds the memory that they take.
const MOST_ACCEPTS: usize = 100_000;

/// All `[[accept]]` sections. `behind`: whom those mean that do not say `source`, if the rules are
/// known.
pub(super) fn check_accepts(
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
    let protocol = section.read_or("protocol", protocol, TCP, findings);
    let destination_ports = ports(&mut section, "destination_ports", Some(protocol), findings);
    let sources = value::one_of(SOURCES);
    let source_address =
        section.read_or("source_address", sources, SourceAddress::Client, findings);
    let pinned = section.read_or("pinned", value::boolean, false, findings);
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
