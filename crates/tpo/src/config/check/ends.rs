//! What rules and accepts have in common: the protocol, the ports, and both ends of a flow.

use std::ops::RangeInclusive;

use tpo_engine::Prefix;

use crate::config::file::{Section, Written};
use crate::config::finding::Findings;
use crate::config::value;
use crate::table::protocols::{ICMP, ICMP_V6, TCP, UDP};

/// The ports of a rule that names none: port 0 is nobody's service, but whoever wants no answer may
/// send UDP from it (RFC 768), and a closed rule holds that too.
const ALL_PORTS: RangeInclusive<u16> = 0..=65_535;
/// What would do for `protocol`.
pub(super) const PROTOCOLS: &str =
    "\"tcp\", \"udp\", \"icmp\" or the number of another protocol, such as 47 for GRE";

/// Reads `protocol`.
pub(super) fn protocol(written: &Written<'_>) -> Result<u8, String> {
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
pub(super) fn ports(
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
pub(super) fn check_families(
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

/// A rule or an `accept` for groups of many: UDP, and all of its destinations such groups.
pub(super) fn check_groups(
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
