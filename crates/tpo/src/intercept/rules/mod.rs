//! One nftables table from the look-up table. Pure: text in, text out; [`install`](super::install)
//! gives it to the kernel.
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
//! SYNs are bounded before `tproxy` ([`Bounds`](crate::table::bounds::Bounds)): a listener whose
//! queue is full sends SYN cookies, which transparent sockets cannot serve, and then nobody's
//! connections work. A SYN beyond the bounds takes its plain way, or is dropped where its rule
//! fails closed. In order:
//!
//! * A source that has completed a handshake (the daemon says so, by the sets of
//!   [`Standing`](super::names::Standing)) has its own bound, and all such have one together. One
//!   that completes many has a higher one. In IPv6 all such of a /64 together have that of one that
//!   completes many.
//! * Other sources, which may be made up, have a lower one each, by /64 in IPv6, and a lower one
//!   together. They cannot use up what known ones need.
//! * The set that counts for each source is bounded: when it is full, sources that are not in it
//!   are beyond the bounds.

pub(crate) mod multicast;
mod packet_hooks;
mod syn_bounds;
mod tcp_hooks;
mod verdicts;
mod ways_back;
pub(super) mod writer;

use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::names::{MOST_COUNTED, TABLE, counter, daemon_set, lease_set};
use super::tcp::Ports;
use crate::table::interface::is_interface_name;
use crate::table::layers::{Layers, RuleError};
use crate::table::peers::PeerId;
use crate::table::{Mode, Table};
use writer::Writer;

/// The table as input for `nft -f`, replacing an older one of ours in the same transaction.
///
/// # Panics
/// When a rule names carriers that are not in [`Table::carriers`], or carriers a peer that is not
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
    let packets = table
        .packets
        .iter()
        .map(|protocol| Ok((*protocol, Layers::of(&table.rules, *protocol)?)));
    let packets = packets.collect::<Result<Vec<_>, RuleError>>()?;
    let mut text = String::with_capacity(4096 + table.rules.len() * 96);
    // Adding before deleting makes the deletion possible whether or not there is an older one.
    write!(
        text,
        "add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n"
    )
    .expect(TO_STRING);
    let counted = table.rules.iter().filter(|rule| rule.enabled).count() <= MOST_COUNTED;
    all(&mut Writer {
        text: &mut text,
        table,
        ports,
        layers: &layers,
        packets: &packets,
        counted,
    })
    .expect(TO_STRING);
    text.push_str("}\n");
    text.push_str(&multicast::multicast(&table.multicast, ports.v6.is_some()));
    Ok(text)
}

/// Takes away what [`render`] makes.
pub(crate) fn nothing() -> String {
    ["inet", "ip", "ip6"]
        .map(|family| format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n"))
        .concat()
}

const TO_STRING: &str = "writing into a String cannot fail";

/// Writes all parts, each after those that it names.
fn all(w: &mut Writer<'_>) -> fmt::Result {
    for name in counter::ALL {
        writeln!(w.text, "  counter {name} {{\n  }}")?;
    }
    // A set can only be looked up by something of the packet. It holds all protocols that are
    // carried or none, so "is this one in the set" asks whether the set is empty. The one
    // behind the last peer's says that the daemon itself lives.
    let of_peers = (0..w.table.peers).map(PeerId::new).map(lease_set);
    for set in of_peers.chain([daemon_set(w.table.peers)]) {
        writeln!(
            w.text,
            "  set {set} {{\n    type inet_proto; flags timeout;\n  }}"
        )?;
    }
    syn_bounds::bounds(w.text, &w.table.bounds)?;
    verdicts::verdict_chains(w)?;
    w.maps("v4", "ipv4_addr", &w.layers.v4, |bits| {
        Ipv4Addr::from(bits as u32).to_string()
    })?;
    if w.ports.v6.is_some() {
        w.maps("v6", "ipv6_addr", &w.layers.v6, |bits| {
            Ipv6Addr::from(bits).to_string()
        })?;
    }
    w.decide("decide", "", w.layers, "tcp")?;
    match w.table.mode {
        Mode::Tproxy => tcp_hooks::tproxy(w)?,
        Mode::Redirect => tcp_hooks::redirect(w)?,
    }
    tcp_hooks::established(w)?;
    if w.table.local {
        tcp_hooks::output(w)?;
    }
    if !w.table.packets.is_empty() {
        packet_hooks::packets(w)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
