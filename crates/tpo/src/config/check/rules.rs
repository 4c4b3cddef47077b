//! `[[rule]]`: the look-up table.

use tpo_engine::{CarriersId, Class, Delivery, Prefix, Treatment};

use super::ends::{PROTOCOLS, check_families, check_groups, ports, protocol};
use super::peers::Peers;
use super::tpo::FAILURES;
use crate::config::checked::Rule;
use crate::config::file::{File, Section, Written};
use crate::config::finding::Findings;
use crate::config::value;
use crate::table::OnFailure;
use crate::table::carriers::{AllCarriers, Carriers};
use crate::table::layers::MAX_RULES;
use crate::table::peers::PeerId;
use crate::table::protocols::TCP;

/// Peers of one rule: 16, because each costs a look at its lease for each new connection.
const MOST_TOGETHER: usize = 16;

/// All `[[rule]]` sections, in order.
pub(super) fn check_rules(
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
    let protocol = section.require("protocol", PROTOCOLS, protocol, findings);
    let would_do = "the clients' prefix, such as \"10.10.1.0/24\", or \"any\"";
    let source = section.require("source", would_do, value::prefix, findings);
    let source_ports = ports(&mut section, "source_ports", protocol, findings);
    let would_do = "the servers' prefix, such as \"10.10.2.0/24\", or \"any\"";
    let destination = section.require("destination", would_do, value::prefix, findings);
    let destination_ports = ports(&mut section, "destination_ports", protocol, findings);
    let find = |written: &Written<'_>| peers.find_some(written);
    let named = section.require("peer", &peers.names(), find, findings);
    let spread = section.read_or("spread", value::boolean, false, findings);
    let (treatment, delivery) = check_treatment(&mut section, protocol, findings);
    let is_for_many =
        destination.is_some_and(|destination: Prefix| destination.address.is_multicast());
    // Multicast stays in its LAN whatever becomes of the copies: nothing of it can be closed.
    let default = if is_for_many {
        OnFailure::Open
    } else {
        default
    };
    let on_failure = section.read_or("on_failure", value::one_of(FAILURES), default, findings);
    let transit = section.read_or("transit", value::boolean, false, findings);
    let enabled = section.read_or("enabled", value::boolean, true, findings);
    let line = section.line;
    check_families(&section, source, destination, findings);
    check_groups(&section, protocol, destination, findings);
    let many = is_for_many.then_some(on_failure);
    match (many, &named, destination) {
        (Some(on_failure), ..) => check_multicast_rule(&section, on_failure, findings),
        (None, Some(peers), Some(_)) => check_number_of_peers(&section, peers, findings),
        (None, ..) => {}
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
        treatment,
        delivery,
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

/// How what the rule matches is carried.
fn check_treatment(
    section: &mut Section<'_>,
    protocol: Option<u8>,
    findings: &mut Findings,
) -> (Treatment, Delivery) {
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
    let class = section.read_or("class", value::one_of(CLASSES), Class::Normal, findings);
    let compress = section.read_or("compress", value::compress_or_peer, None, findings);
    let isolated = section.read_or("compress_isolation", value::boolean, false, findings);
    let delivery = section.read("delivery", value::one_of(DELIVERIES), findings);
    if delivery.is_some() && protocol == Some(TCP) {
        findings.error(
            section.line_of("delivery"),
            section.key("delivery"),
            "a rule for TCP",
            "leave it out: TCP is always delivered whole",
        );
    }
    let in_order = section.read_or("keep_order", value::boolean, false, findings);
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
    let treatment = Treatment {
        class,
        compress,
        isolated,
        in_order,
    };
    (treatment, delivery.unwrap_or_default())
}

/// Only a rule for multicast may name as many peers as it likes.
fn check_number_of_peers(section: &Section<'_>, peers: &[PeerId], findings: &mut Findings) {
    if peers.len() > MOST_TOGETHER {
        let found = format!("found a list of {} peers", peers.len());
        let would_do = format!("at most {MOST_TOGETHER}: only a rule for multicast may name more");
        findings.error(
            section.line_of("peer"),
            section.key("peer"),
            found,
            would_do,
        );
    }
}

/// A rule for multicast cannot be closed.
fn check_multicast_rule(section: &Section<'_>, on_failure: OnFailure, findings: &mut Findings) {
    if on_failure == OnFailure::Closed {
        let would_do = "leave it out: multicast stays in its LAN whatever becomes of the copies";
        findings.error(
            section.line_of("on_failure"),
            section.key("on_failure"),
            "found a rule for multicast",
            would_do,
        );
    }
}

/// Gives each rule the number of its carriers.
pub(super) fn number_carriers(rules: &mut [Rule], peers: usize) -> AllCarriers {
    let mut all = AllCarriers::of_peers(peers);
    for rule in rules {
        rule.matches.carriers = all.id_of(&rule.carriers);
    }
    all
}
