//! The ways back: answers to a packet that came out of the TUN device, and errors about it, go into
//! the device again. Sets remember whom they would come from; an entry leaves when its flow would
//! rest at the latest; one that ends before leaves it until then. Flows that were answered have
//! sets of their own, and live longer.

use std::fmt::{self, Write};

use crate::intercept::names::counter;
use crate::table::Table;

/// Entries of each set at most: 1,048,576, the flows of eight peers. Each costs some 130 bytes of
/// the kernel's memory, when used.
const MOST_WAYS_BACK: usize = 1 << 20;

/// An address family of packets.
pub(super) struct Family {
    /// In the names of sets.
    pub(super) name: &'static str,
    /// Its header, in the words of nft.
    pub(super) header: &'static str,
    /// The type of its addresses.
    pub(super) kind: &'static str,
}

const V4: Family = Family {
    name: "v4",
    header: "ip",
    kind: "ipv4_addr",
};
const V6: Family = Family {
    name: "v6",
    header: "ip6",
    kind: "ipv6_addr",
};

/// The sets of all families, and what fills and asks them.
pub(super) struct WaysBack {
    pub(super) families: Vec<Family>,
    /// Entries of each set.
    size: usize,
    /// How long a flow lives that was not answered.
    brief: String,
    /// How long a flow lives that was answered.
    rest: String,
}

/// A set of flows, and by what of a packet it is asked.
struct FlowSet {
    name: String,
    /// Of which packets.
    only: &'static str,
    key: String,
}

impl WaysBack {
    /// Those that the table needs.
    pub(super) fn new(table: &Table, v6: bool) -> WaysBack {
        let seconds = |span: std::time::Duration| format!("{}s", span.as_secs().max(1));
        WaysBack {
            families: if v6 { vec![V4, V6] } else { vec![V4] },
            size: table.bounds.flows.clamp(1, MOST_WAYS_BACK),
            brief: seconds(table.bounds.rest_one_way),
            rest: seconds(table.packets_rest),
        }
    }

    /// The sets themselves.
    pub(super) fn sets(&self, text: &mut String) -> fmt::Result {
        let (brief, rest, size) = (&self.brief, &self.rest, self.size);
        for Family { name, kind, .. } in &self.families {
            let flow = format!("{kind} . {kind} . inet_service . inet_service");
            let pair = format!("{kind} . {kind} . inet_proto");
            for (set, kind, rest) in [
                ("", flow.as_str(), brief),
                ("_mutual", &flow, rest),
                ("_pairs", &pair, brief),
                ("_pairs_mutual", &pair, rest),
                // An error comes soon after what it is about.
                ("_hosts", kind, brief),
            ] {
                writeln!(
                    text,
                    "  set back_{name}{set} {{
    type {kind}
    flags dynamic,timeout
    timeout {rest}; size {size};
  }}"
                )?;
            }
        }
        Ok(())
    }

    /// The chain `packets_out`: notes where the answers to what comes out of the device go.
    pub(super) fn notes(&self, text: &mut String) -> fmt::Result {
        let (brief, rest) = (&self.brief, &self.rest);
        writeln!(text, "  chain packets_out_flow {{")?;
        for Family { name, header, .. } in &self.families {
            for (set, only, key) in [
                (
                    format!("back_{name}"),
                    "meta l4proto udp",
                    format!("{header} daddr . {header} saddr . udp dport . udp sport"),
                ),
                (
                    format!("back_{name}_pairs"),
                    "meta l4proto != udp",
                    format!("{header} daddr . {header} saddr . meta l4proto"),
                ),
            ] {
                writeln!(
                    text,
                    "    {only} {key} @{set}_mutual update @{set}_mutual {{ {key} timeout {rest} }} accept
    {only} update @{set} {{ {key} timeout {brief} }} accept"
                )?;
            }
        }
        // A set that is full notes no more: the rule above ends there, and the packet goes on.
        let full = counter::WAYS_FULL;
        writeln!(
            text,
            "    counter name {full}\n  }}\n  chain packets_out {{"
        )?;
        for Family { name, header, .. } in &self.families {
            writeln!(
                text,
                "    update @back_{name}_hosts {{ {header} saddr timeout {brief} }} goto packets_out_flow"
            )?;
        }
        writeln!(text, "    counter name {full} goto packets_out_flow\n  }}")
    }

    /// The chain `packets_back`: takes what answers a packet that came out of the device, and
    /// errors about one; returns for all else. `alive` is the set that says that the daemon lives.
    pub(super) fn answers(&self, text: &mut String, alive: &str) -> fmt::Result {
        writeln!(
            text,
            "  chain packets_back {{
    meta l4proto != @{alive} return"
        )?;
        for family in &self.families {
            errors(text, family)?;
            for set in flow_sets(family) {
                self.answers_of(text, &set)?;
            }
        }
        writeln!(text, "  }}")
    }

    fn answers_of(&self, text: &mut String, set: &FlowSet) -> fmt::Result {
        let FlowSet { name, only, key } = set;
        // The first answer makes it a flow of both ways. Where that cannot be noted it is ours all
        // the same.
        let note = format!(
            "update @{name}_mutual {{ {key} timeout {rest} }} goto packets_taken",
            rest = self.rest
        );
        writeln!(
            text,
            "    {only}{key} @{name}_mutual {note}
    {only}{key} @{name} {note}
    {only}{key} @{name} counter name {full} goto packets_taken",
            full = counter::WAYS_FULL
        )
    }
}

/// Errors about packets that came out of the device. What else there is of ICMP, but for echo,
/// tells a network's own hosts how to behave, and stays there.
fn errors(text: &mut String, Family { name, header, .. }: &Family) -> fmt::Result {
    let errors = match *name {
        "v4" => "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
        _ => {
            "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"
        }
    };
    let no_echo = match *name {
        "v4" => "icmp type != { echo-request, echo-reply }",
        _ => "icmpv6 type != { echo-request, echo-reply }",
    };
    writeln!(
        text,
        "    {errors} {header} daddr @back_{name}_hosts goto packets_taken\n    {no_echo} return"
    )
}

/// The sets by which answers are known: flows of UDP with their ports, and pairs of addresses.
fn flow_sets(Family { name, header, .. }: &Family) -> [FlowSet; 2] {
    [
        FlowSet {
            name: format!("back_{name}"),
            only: "",
            key: format!("{header} saddr . {header} daddr . udp sport . udp dport"),
        },
        FlowSet {
            name: format!("back_{name}_pairs"),
            only: "meta l4proto != udp ",
            key: format!("{header} saddr . {header} daddr . meta l4proto"),
        },
    ]
}
