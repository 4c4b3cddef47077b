//! Writes tables of ours: what all their chains have in common. [`super`] and
//! [`hold`](crate::intercept::hold) write with it.

use std::fmt::{self, Write};

use crate::intercept::tcp::Ports;
use crate::table::layers::{Element, Family, Layers, Verdict};
use crate::table::{OnFailure, Table};

/// A pure SYN: the first packet of a connection.
pub(in crate::intercept) const SYN: &str = "tcp flags & (fin | syn | rst | ack) == syn";

/// Packets to these are for this host, or for many; no rule applies.
pub(in crate::intercept) const NOT_FORWARDED: &str =
    "fib daddr type { local, anycast, multicast, broadcast }";

/// After connection tracking and whatever else marks packets (some firewalls set the whole mark at
/// `mangle`, and check the reverse path by mark at `mangle + 10`, where ours must not be seen yet),
/// before addresses are rewritten at `mangle + 50`.
pub(in crate::intercept) const PRIORITY: &str = "mangle + 20";

/// Right behind: what belongs to a transparent socket is marked already.
pub(in crate::intercept) const PRIORITY_PACKETS: &str = "mangle + 21";

/// Writes the parts of a table of ours.
pub(in crate::intercept) struct Writer<'a> {
    pub(in crate::intercept) text: &'a mut String,
    pub(in crate::intercept) table: &'a Table,
    pub(in crate::intercept) ports: Ports,
    pub(in crate::intercept) layers: &'a Layers,
    /// Of each other protocol that is carried.
    pub(in crate::intercept) packets: &'a [(u8, Layers)],
    /// What open rules let go is counted for each.
    pub(in crate::intercept) counted: bool,
}

impl Writer<'_> {
    pub(in crate::intercept) fn maps(
        &mut self,
        name: &str,
        kind: &str,
        family: &Family,
        address: fn(u128) -> String,
    ) -> fmt::Result {
        self.maps_with(name, kind, true, family, address)
    }

    /// The same, with ports in the keys or without.
    pub(in crate::intercept) fn maps_with(
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

    /// Whether what the element lets go is counted by itself: the place of its rule.
    pub(in crate::intercept) fn counted_apart(&self, element: &Element) -> Option<usize> {
        (self.counted && element.verdict.on_failure == OnFailure::Open).then_some(element.rule)
    }

    /// Returns to its caller only for a SYN that is to be intercepted. Most SYNs go where no rule
    /// points: one look at the merged destinations ends their walk, at a tenth of the cost of one
    /// layer.
    pub(in crate::intercept) fn decide(
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

    /// Ends the walk of all but SYNs that a rule may name.
    pub(in crate::intercept) fn opening_only(&mut self) -> fmt::Result {
        writeln!(self.text, "    meta l4proto != tcp accept")?;
        writeln!(
            self.text,
            "    tcp flags & (fin | syn | rst | ack) != syn accept"
        )?;
        writeln!(self.text, "    {NOT_FORWARDED} accept")
    }

    pub(in crate::intercept) fn only_interfaces(&mut self) -> fmt::Result {
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
pub(in crate::intercept) fn verdict_chain(verdict: Verdict, rule: Option<usize>) -> String {
    match (verdict.on_failure, rule) {
        (OnFailure::Open, Some(rule)) => format!("rule_{rule}_open"),
        (OnFailure::Open, None) => format!("peer_{}_open", verdict.carriers.number()),
        (OnFailure::Closed, _) => format!("peer_{}_closed", verdict.carriers.number()),
    }
}

pub(in crate::intercept) fn bounded_chain(mode: OnFailure) -> &'static str {
    match mode {
        OnFailure::Open => "bounded_open",
        OnFailure::Closed => "bounded_closed",
    }
}

pub(in crate::intercept) fn range<T: fmt::Display + PartialEq>(first: T, last: T) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}
