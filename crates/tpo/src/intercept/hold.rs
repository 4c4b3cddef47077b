//! What holds the closed rules when nothing else of ours is there: a second nftables table and
//! routing rules. Pure: text and values out, which [`super::holding`] gives to the kernel.
//!
//! The table `inet tpo` refuses what a closed rule names while the peer's lease is absent. That is
//! quick and polite, but it is not enough: what it has marked for the TUN device takes its plain
//! way when the device is gone, and everything does when somebody flushes the table. So a closed
//! rule is held by two more things, neither of which needs the other, nor the mark:
//!
//! * The table `inet tpo_hold` looks at packets *after* routing. One that a closed rule names
//!   leaves by our TUN device, or not at all.
//! * Routing rules behind that of marked packets prohibit what a closed rule names, by address,
//!   protocol and port. A packet that was not marked, or whose device is gone, reaches them before
//!   the main table. They are for what this host forwards: the kernel asks the same rules, with the
//!   ends exchanged, whether a packet's source is plausible (`rp_filter`), and such a question
//!   cannot be told from a packet of this host. What this host sends itself is held by the table
//!   alone.
//!
//! A flush of nftables leaves the routing rules, a flush of routing rules leaves the table, and the
//! daemon puts back within a second what it misses. Both outlive the daemon; the next one takes
//! them over without a gap.
//!
//! TCP: connections that began before the rules were installed go on. So the table holds SYNs, and
//! packets of the connections that we carry, which it remembers. Routing rules can tell neither and
//! hold no TCP. With [`Table::hold_closed`] both hold every packet from a rule's sources to its
//! destinations.

use super::routing::{Action, RoutingRule};
use super::rules::writer::{NOT_FORWARDED, SYN, Writer, range, verdict_chain};
use super::tcp::Ports;
use super::tun::DEVICE;
use crate::table::layers::{self, Element, Family, Layers, RuleError};
use crate::table::marks::{MARK_DELIVER, MARK_OWN, MARK_PACKETS};
use crate::table::protocols::{TCP, UDP};
use crate::table::{Mode, OnFailure, RuleSpec, Table};
use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The name of the table, of family `inet`.
pub(crate) const TABLE: &str = "tpo_hold";

/// The counter of what was held, in that table.
pub(crate) const HELD: &str = "held";

/// Routing rules that hold, in each address family. The kernel tries them one by one for each
/// packet that it forwards, at about 20 ns each: with all of them a packet costs some five
/// microseconds more. What does not fit is held by the table alone.
pub(crate) const MOST_ROUTING_RULES: usize = 256;

/// Behind the marks of `inet tpo`, behind the rewriting of destinations, before most firewalls
/// filter.
const PRIORITY: &str = "filter - 5";

/// Before source addresses are rewritten.
const PRIORITY_LAST: &str = "mangle";

/// Right behind the marks of `inet tpo`.
const PRIORITY_MARKED: &str = "mangle + 21";

/// How long a connection that we carry is remembered after its last packet, and how many are. It
/// matters for what is under way in the LAN when the daemon dies (the kernel resets the connection
/// at once), or until the table is back: seconds. Whoever goes on sending stays remembered.
const CARRIED_SECONDS: u32 = 10;
const CARRIED: u32 = 131_072;

/// ICMP messages that quote another packet.
const ERRORS_V4: &str = "icmp type { destination-unreachable, time-exceeded, parameter-problem }";
const ERRORS_V6: &str =
    "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }";

/// Where they say of which protocol it is: behind 8 bytes of their own, the tenth byte of an IPv4
/// header, the seventh of IPv6.
const QUOTED_V4: &str = "@th,136,8";
const QUOTED_V6: &str = "@th,112,8";

/// Takes the table away.
pub(crate) fn nothing() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// Whether a rule of the table is to be held.
fn is_held(rule: &RuleSpec) -> bool {
    rule.enabled && rule.on_failure == OnFailure::Closed
}

/// The table as input for `nft -f`, replacing an older one in the same transaction. Only
/// [`nothing`] where no rule is closed.
pub(crate) fn render(table: &Table, v6: bool) -> Result<String, RuleError> {
    let mut text = nothing();
    let protocols: BTreeSet<u8> = table
        .rules
        .iter()
        .filter(|rule| is_held(rule))
        .map(|rule| rule.protocol)
        .collect();
    if protocols.is_empty() {
        return Ok(text);
    }
    let rules = around_closed(&table.rules)?;
    let of = |protocol| Ok((protocol, Layers::of(&rules, protocol)?));
    let held = protocols
        .into_iter()
        .map(of)
        .collect::<Result<Vec<_>, RuleError>>()?;
    // Ports of listeners do not appear in this table; whether IPv6 is spoken does.
    let ports = Ports {
        v4: 0,
        v6: v6.then_some(0),
    };
    writeln!(text, "table inet {TABLE} {{").expect(TO_STRING);
    let none = Layers::default();
    let writer = Writer {
        text: &mut text,
        table,
        ports,
        layers: &none,
        packets: &held,
        counted: false,
    };
    Holder { writer }.all().expect(TO_STRING);
    text.push_str("}\n");
    Ok(text)
}

/// What nft calls the ports of a protocol that has some.
fn transport(protocol: u8) -> Option<&'static str> {
    match protocol {
        TCP => Some("tcp"),
        UDP => Some("udp"),
        _ => None,
    }
}

/// The closed rules, and the open ones before them that take something out of them.
fn around_closed(rules: &[RuleSpec]) -> Result<Vec<RuleSpec>, RuleError> {
    let boxes = rules
        .iter()
        .enumerate()
        .map(|(index, rule)| Ok((rule, layers::element(index, rule)?)));
    let boxes = boxes.collect::<Result<Vec<(&RuleSpec, (Element, bool))>, RuleError>>()?;
    let closed: Vec<_> = boxes.iter().filter(|(rule, _)| is_held(rule)).collect();
    let matters = |(rule, (own, v4)): &&(&RuleSpec, (Element, bool))| {
        let from_it = |(other, (theirs, other_v4)): &(&RuleSpec, (Element, bool))| {
            theirs.rule > own.rule
                && other.protocol == rule.protocol
                && v4 == other_v4
                && own.overlaps(theirs)
        };
        is_held(rule) || rule.enabled && closed.iter().any(|other| from_it(other))
    };
    Ok(boxes
        .iter()
        .filter(matters)
        .map(|(rule, _)| (*rule).clone())
        .collect())
}

const TO_STRING: &str = "writing into a String cannot fail";

struct Holder<'a> {
    writer: Writer<'a>,
}

impl Holder<'_> {
    fn all(mut self) -> fmt::Result {
        self.say(&format!("  counter {HELD} {{\n  }}"))?;
        self.say(&format!(
            "  chain refuse {{
    counter name {HELD}
    meta l4proto tcp reject with tcp reset
    reject with icmpx type admin-prohibited
  }}"
        ))?;
        self.protocols()?;
        self.whole_packets()?;
        if self.remembers_carried() {
            self.carried()?;
        }
        self.forwarded()?;
        if self.writer.table.local {
            self.local()?;
        }
        Ok(())
    }

    fn say(&mut self, text: &str) -> fmt::Result {
        writeln!(self.writer.text, "{text}")
    }

    fn families(&self) -> &'static [(&'static str, &'static str)] {
        match self.writer.ports.v6 {
            Some(_) => &[("v4", "ip"), ("v6", "ip6")],
            None => &[("v4", "ip")],
        }
    }

    /// The look-up tables, and a chain that returns to the hook for what a closed rule names and
    /// accepts all else.
    fn protocols(&mut self) -> fmt::Result {
        let packets = self.writer.packets;
        let all = packets
            .iter()
            .flat_map(|(_, layers)| [&layers.v4, &layers.v6])
            .flat_map(|f| f.layers.iter().flatten());
        let verdicts: BTreeSet<_> = all.map(|element| element.verdict).collect();
        for verdict in verdicts {
            let end = if verdict.on_failure == OnFailure::Open {
                "    accept\n"
            } else {
                ""
            };
            let chain = verdict_chain(verdict, None);
            self.say(&format!("  chain {chain} {{\n{end}  }}"))?;
        }
        for (protocol, layers) in packets {
            let transport = transport(*protocol).unwrap_or_default();
            let (prefix, ports) = (format!("p{protocol}_"), !transport.is_empty());
            let v4 = |bits: u128| Ipv4Addr::from(bits as u32).to_string();
            self.writer
                .maps_with(&format!("{prefix}v4"), "ipv4_addr", ports, &layers.v4, v4)?;
            self.closed_destinations(&format!("{prefix}v4"), "ipv4_addr", &layers.v4, v4)?;
            if self.writer.ports.v6.is_some() {
                let v6 = |bits: u128| Ipv6Addr::from(bits).to_string();
                self.writer.maps_with(
                    &format!("{prefix}v6"),
                    "ipv6_addr",
                    ports,
                    &layers.v6,
                    v6,
                )?;
                self.closed_destinations(&format!("{prefix}v6"), "ipv6_addr", &layers.v6, v6)?;
            }
            self.writer
                .decide(&format!("held_{protocol}"), &prefix, layers, transport)?;
        }
        let names: Vec<String> = packets
            .iter()
            .map(|(protocol, _)| protocol.to_string())
            .collect();
        self.say(&format!(
            "  chain held_protocols {{\n    meta l4proto != {{ {} }} accept",
            names.join(", ")
        ))?;
        for (protocol, _) in packets {
            let Some(transport) = transport(*protocol) else {
                self.say(&format!("    meta l4proto {protocol} goto held_{protocol}"))?;
                continue;
            };
            // An extension header may say that it is longer than the packet: then nobody can say
            // whose it is.
            self.say(&format!(
                "    {transport} dport >= 0 {transport} sport >= 0 goto held_{protocol}"
            ))?;
            for (family, header) in self.families() {
                self.say(&format!(
                    "    meta l4proto {protocol} {header} daddr @p{protocol}_{family}_closed return"
                ))?;
            }
            self.say(&format!("    meta l4proto {protocol} accept"))?;
        }
        self.say("  }")
    }

    fn closed_destinations(
        &mut self,
        name: &str,
        kind: &str,
        family: &Family,
        address: fn(u128) -> String,
    ) -> fmt::Result {
        let closed = |element: &&Element| element.verdict.on_failure == OnFailure::Closed;
        let elements: Vec<Element> = family
            .layers
            .iter()
            .flatten()
            .filter(closed)
            .copied()
            .collect();
        self.say(&format!(
            "  set {name}_closed {{\n    type {kind}\n    flags interval"
        ))?;
        if !elements.is_empty() {
            let ranges = Family {
                layers: vec![elements],
                covered: 0,
            }
            .destinations();
            let words: Vec<String> = ranges
                .into_iter()
                .map(|(first, last)| range(address(first), address(last)))
                .collect();
            self.say(&format!("    elements = {{ {} }}", words.join(", ")))?;
        }
        self.say("  }")
    }

    /// By port a rule names only whole packets. Where nothing of ours is there, nobody else may put
    /// pieces together before they are looked at: any `tproxy` makes the kernel do so, and this one
    /// takes nothing.
    fn whole_packets(&mut self) -> fmt::Result {
        self.say("  chain whole_packets {\n    type filter hook prerouting priority mangle + 10; policy accept;")?;
        let nobody = format!("meta mark {:#x} meta l4proto udp", u32::MAX);
        self.say(&format!(
            "    meta nfproto ipv4 {nobody} tproxy ip to 127.0.0.1:1"
        ))?;
        if self.writer.ports.v6.is_some() {
            self.say(&format!(
                "    meta nfproto ipv6 {nobody} tproxy ip6 to [::1]:1"
            ))?;
        }
        self.say("  }")
    }

    /// ICMP errors quote what they are about. One about a packet of a held protocol that goes to
    /// where a closed rule leads shows in the clear what came through the tunnel.
    fn errors(&mut self) -> fmt::Result {
        let families = self.families();
        for (protocol, _) in self.writer.packets {
            if *protocol == TCP && !self.writer.table.hold_closed {
                // Connections that began before need them.
                continue;
            }
            for (family, header) in families {
                let (errors, quoted) = match *family {
                    "v4" => (ERRORS_V4, QUOTED_V4),
                    _ => (ERRORS_V6, QUOTED_V6),
                };
                self.say(&format!(
                    "    {errors} {quoted} {protocol} {header} daddr @p{protocol}_{family}_closed return"
                ))?;
            }
        }
        Ok(())
    }

    /// Where packets of open connections go on, those of the connections that we carry must not,
    /// and have to be told apart.
    fn remembers_carried(&self) -> bool {
        let table = self.writer.table;
        table.mode == Mode::Tproxy
            && !table.hold_closed
            && self
                .writer
                .packets
                .iter()
                .any(|(protocol, _)| *protocol == TCP)
    }

    /// Remembers which connections are ours: what has our mark is, while the daemon and `inet tpo`
    /// are there. A SYN opens none yet, and a flood of them would fill the sets; it is held by its
    /// rule anyway.
    fn carried(&mut self) -> fmt::Result {
        for (family, _) in self.families() {
            let kind = if *family == "v4" {
                "ipv4_addr"
            } else {
                "ipv6_addr"
            };
            self.say(&format!(
                "  set carried_{family} {{
    type {kind} . inet_service . {kind} . inet_service
    flags dynamic,timeout
    timeout {CARRIED_SECONDS}s; size {CARRIED};
  }}"
            ))?;
        }
        self.say(&format!(
            "  chain carried {{
    type filter hook prerouting priority {PRIORITY_MARKED}; policy accept;
    meta l4proto != tcp accept
    {SYN} accept
    meta mark & {MARK_DELIVER:#x} != {MARK_DELIVER:#x} accept"
        ))?;
        for (family, header) in self.families() {
            let connection = format!("{header} saddr . tcp sport . {header} daddr . tcp dport");
            self.say(&format!(
                "    {header} daddr @p{TCP}_{family}_closed update @carried_{family} {{ {connection} timeout {CARRIED_SECONDS}s }}"
            ))?;
        }
        self.say("  }")
    }

    fn forwarded(&mut self) -> fmt::Result {
        self.say("  chain held_known {")?;
        if self.remembers_carried() {
            // Not reset: when only the table was gone the connection goes on as soon as it is back.
            for (family, header) in self.families() {
                let connection = format!("{header} saddr . tcp sport . {header} daddr . tcp dport");
                let again = format!(
                    "update @carried_{family} {{ {connection} timeout {CARRIED_SECONDS}s }}"
                );
                self.say(&format!(
                    "    {connection} @carried_{family} {again} counter name {HELD} drop"
                ))?;
            }
        }
        if !self.writer.table.hold_closed {
            self.say(&format!(
                "    meta l4proto tcp {} accept",
                SYN.replace("==", "!=")
            ))?;
        }
        self.errors()?;
        self.say(
            "    goto held_protocols\n  }\n  chain held {\n    meta l4proto >= 0 goto held_known",
        )?;
        // Reached only by a packet whose chain of extension headers cannot be followed: nobody can
        // say what it is.
        if self.writer.ports.v6.is_some() {
            for (protocol, _) in self.writer.packets {
                self.say(&format!("    ip6 daddr @p{protocol}_v6_closed return"))?;
            }
        }
        self.say(&format!(
            "    accept
  }}
  chain forward {{
    type filter hook forward priority {PRIORITY}; policy accept;
    oifname \"{DEVICE}\" accept
    iifname \"{DEVICE}\" accept
    {NOT_FORWARDED} accept"
        ))?;
        self.writer.only_interfaces()?;
        self.say("    jump held\n    goto refuse\n  }")
    }

    /// What this host sends itself. A mark says that `inet tpo` leads it to us; whether it got
    /// there is asked behind routing.
    fn local(&mut self) -> fmt::Result {
        self.say(&format!(
            "  chain held_local {{\n    meta l4proto tcp {} accept",
            SYN.replace("==", "!=")
        ))?;
        self.errors()?;
        self.say(&format!(
            "    icmp type != echo-request accept
    icmpv6 type != echo-request accept
    goto held_protocols
  }}
  chain output {{
    type filter hook output priority {PRIORITY}; policy accept;
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept
    meta mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} accept
    meta mark & {MARK_PACKETS:#x} == {MARK_PACKETS:#x} accept
    {NOT_FORWARDED} accept
    jump held_local
    goto refuse
  }}
  chain postrouting {{
    type filter hook postrouting priority {PRIORITY_LAST}; policy accept;
    oifname {{ \"{DEVICE}\", \"lo\" }} accept
    iifname \"{DEVICE}\" accept
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept
    meta mark & {MARK_DELIVER:#x} != {MARK_DELIVER:#x} meta mark & {MARK_PACKETS:#x} != {MARK_PACKETS:#x} accept
    {NOT_FORWARDED} accept
    jump held_local
    counter name {HELD} drop
  }}"
        ))
    }
}

/// The routing rules of one address family, in order, and whether all closed rules are among them.
pub(crate) fn routing(table: &Table, v6: bool) -> Result<(Vec<RoutingRule>, bool), RuleError> {
    let mut boxes = Vec::new();
    for (index, rule) in table.rules.iter().enumerate() {
        let (element, is_v4) = layers::element(index, rule)?;
        let named = rule.protocol != TCP || table.hold_closed;
        if rule.enabled && named && is_v4 != v6 {
            boxes.push((rule, element));
        }
    }
    let closed: Vec<(usize, &(&RuleSpec, Element))> = boxes
        .iter()
        .enumerate()
        .filter(|(_, (rule, _))| is_held(rule))
        .collect();
    let mut rules = Vec::new();
    for (at, (rule, element)) in boxes.iter().enumerate() {
        let takes_out = || {
            let later = closed.iter().filter(|(place, _)| *place > at);
            later
                .into_iter()
                .any(|(_, (other, o))| other.protocol == rule.protocol && o.overlaps(element))
        };
        let action = match rule.on_failure {
            OnFailure::Closed => Action::Prohibit,
            OnFailure::Open if takes_out() => Action::Leave,
            OnFailure::Open => continue,
        };
        rules.extend(routing_rules(rule, action, &table.interfaces));
    }
    for (_, (rule, _)) in closed {
        for piece in pieces(rule, &table.interfaces) {
            if !rules.contains(&piece) {
                rules.push(piece);
            }
        }
    }
    let all = rules.len() <= MOST_ROUTING_RULES;
    // The first match counts, so what is left away at the end changes nothing before it.
    rules.truncate(MOST_ROUTING_RULES);
    Ok((rules, all))
}

/// Pieces of packets tell no ports, and while the tables are there they are whole before they are
/// routed. Without the tables they are held where a closed rule names some ports of these ends:
/// what tells a port goes on, what is left tells none.
fn pieces(rule: &RuleSpec, interfaces: &[String]) -> Vec<RoutingRule> {
    let every = RuleSpec {
        source_ports: 0..=u16::MAX,
        destination_ports: 0..=u16::MAX,
        ..rule.clone()
    };
    let all = routing_rules(&every, Action::Prohibit, interfaces);
    if all == routing_rules(rule, Action::Prohibit, interfaces) {
        return Vec::new();
    }
    let ports = Some((1, u16::MAX - 1));
    let each = |one: RoutingRule| {
        let leave = RoutingRule {
            action: Action::Leave,
            ..one.clone()
        };
        [
            RoutingRule {
                destination_ports: ports,
                ..leave.clone()
            },
            RoutingRule {
                source_ports: ports,
                ..leave
            },
            one,
        ]
    };
    all.into_iter().flat_map(each).collect()
}

/// One rule; one for each interface where only some are looked at.
fn routing_rules(rule: &RuleSpec, action: Action, interfaces: &[String]) -> Vec<RoutingRule> {
    let has_ports = transport(rule.protocol).is_some();
    let ports = |ports: &std::ops::RangeInclusive<u16>| match (*ports.start(), *ports.end()) {
        _ if !has_ports => Some(None),
        (0 | 1, u16::MAX) => Some(None),
        // The kernel takes no range with 0 or 65535 in it.
        (first, last) => {
            let (first, last) = (first.max(1), last.min(u16::MAX - 1));
            (first <= last).then_some(Some((first, last)))
        }
    };
    let (Some(source_ports), Some(destination_ports)) =
        (ports(&rule.source_ports), ports(&rule.destination_ports))
    else {
        return Vec::new();
    };
    let one = |interface: Option<String>| RoutingRule {
        interface,
        source: rule.source,
        destination: rule.destination,
        protocol: rule.protocol,
        source_ports,
        destination_ports,
        action,
    };
    match interfaces {
        [] => vec![one(None)],
        some => some.iter().map(|name| one(Some(name.clone()))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use std::ops::RangeInclusive;

    fn rule(
        protocol: u8,
        destination: &str,
        ports: RangeInclusive<u16>,
        on_failure: OnFailure,
    ) -> RuleSpec {
        let destination: IpAddr = destination.parse().unwrap();
        RuleSpec {
            protocol,
            source: ("10.1.0.0".parse().unwrap(), 0),
            source_ports: 1..=65_535,
            destination: (destination, 24),
            destination_ports: ports,
            carriers: tpo_engine::CarriersId::new(0),
            on_failure,
            enabled: true,
        }
    }

    fn table(rules: Vec<RuleSpec>) -> Table {
        Table::of_rules(rules, 1)
    }

    const ALL: RangeInclusive<u16> = 1..=65_535;

    #[test]
    fn nothing_is_held_where_nothing_is_closed() {
        let mut table = table(vec![rule(17, "10.2.0.0", ALL, OnFailure::Open)]);
        table.rules.push(RuleSpec {
            enabled: false,
            ..rule(17, "10.3.0.0", ALL, OnFailure::Closed)
        });
        assert_eq!(render(&table, true).unwrap(), nothing());
        assert_eq!(routing(&table, false).unwrap(), (Vec::new(), true));
    }

    #[test]
    fn an_open_rule_before_a_closed_one_takes_its_part_out() {
        let open = rule(17, "10.2.0.0", 53..=53, OnFailure::Open);
        let elsewhere = rule(17, "10.9.0.0", 53..=53, OnFailure::Open);
        let table = table(vec![
            elsewhere,
            open,
            rule(17, "10.2.0.0", ALL, OnFailure::Closed),
        ]);
        let (rules, all) = routing(&table, false).unwrap();
        let actions: Vec<_> = rules
            .iter()
            .map(|rule| (rule.action, rule.destination_ports))
            .collect();
        assert_eq!(
            (actions, all),
            (
                vec![(Action::Leave, Some((53, 53))), (Action::Prohibit, None)],
                true
            )
        );
        let text = render(&table, false).unwrap();
        assert!(
            text.contains("goto peer_0_open") && text.contains("goto peer_0_closed"),
            "{text}"
        );
        assert!(
            !text.contains("10.9.0."),
            "what takes nothing out is not there\n{text}"
        );
    }

    #[test]
    fn tcp_is_held_by_routing_only_where_all_of_it_is() {
        let mut table = table(vec![rule(TCP, "10.2.0.0", 80..=65_535, OnFailure::Closed)]);
        assert_eq!(routing(&table, false).unwrap().0, Vec::new());
        assert!(render(&table, false).unwrap().contains("!= syn accept"));
        table.hold_closed = true;
        table.local = false;
        let rules = routing(&table, false).unwrap().0;
        assert_eq!(
            (rules[0].action, rules[0].destination_ports),
            (Action::Prohibit, Some((80, 65_534)))
        );
        let rest: Vec<_> = rules[1..]
            .iter()
            .map(|rule| (rule.action, rule.source_ports, rule.destination_ports))
            .collect();
        let ports = Some((1, 65_534));
        assert_eq!(
            rest,
            [
                (Action::Leave, None, ports),
                (Action::Leave, ports, None),
                (Action::Prohibit, None, None)
            ]
        );
        assert!(
            !render(&table, false).unwrap().contains("syn"),
            "a packet of any kind is held"
        );
        assert_eq!(
            routing(&table, true).unwrap().0,
            Vec::new(),
            "not of the other family"
        );
    }

    #[test]
    fn each_interface_has_its_rule_and_there_are_not_too_many() {
        let mut table = table(
            (0..200)
                .map(|n| rule(47, &format!("10.2.{n}.0"), ALL, OnFailure::Closed))
                .collect(),
        );
        assert_eq!(routing(&table, false).unwrap().0.len(), 200);
        table.interfaces = vec!["lan0".into(), "lan1".into()];
        let (rules, all) = routing(&table, false).unwrap();
        assert_eq!((rules.len(), all), (MOST_ROUTING_RULES, false));
        assert_eq!(rules[1].interface.as_deref(), Some("lan1"));
    }
}
