//! Where packets are taken: UDP, ICMP and whatever else a rule names, whole, into the TUN device;
//! and what answers to packets that came out of it.

use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::ways_back::WaysBack;
use super::writer::{NOT_FORWARDED, PRIORITY_PACKETS, Writer};
use crate::intercept::names::{counter, daemon_set};
use crate::intercept::tun::DEVICE;
use crate::table::marks::{MARK_DELIVER, MARK_OWN, MARK_PACKETS};
use crate::table::protocols::{ICMP, ICMP_V6, UDP};

pub(super) fn packets(w: &mut Writer<'_>) -> fmt::Result {
    let ways_back = WaysBack::new(w.table, w.ports.v6.is_some());
    decisions(w)?;
    ways_back.sets(w.text)?;
    ways_back.notes(w.text)?;
    writeln!(
        w.text,
        "  chain packets_taken {{
    meta mark set meta mark | {MARK_PACKETS:#x} counter name {packets} accept
  }}",
        packets = counter::PACKETS
    )?;
    ways_back.answers(w.text, &daemon_set(w.table.peers))?;
    forwarded(w)?;
    ruled(w)?;
    output(w)
}

/// The look-up table of each protocol.
fn decisions(w: &mut Writer<'_>) -> fmt::Result {
    for (protocol, layers) in w.packets {
        let (prefix, ports) = (format!("p{protocol}_"), *protocol == UDP);
        let (v4, v6) = (format!("{prefix}v4"), format!("{prefix}v6"));
        w.maps_with(&v4, "ipv4_addr", ports, &layers.v4, |bits| {
            Ipv4Addr::from(bits as u32).to_string()
        })?;
        if w.ports.v6.is_some() {
            w.maps_with(&v6, "ipv6_addr", ports, &layers.v6, |bits| {
                Ipv6Addr::from(bits).to_string()
            })?;
        }
        w.decide(
            &format!("decide_{protocol}"),
            &prefix,
            layers,
            if ports { "udp" } else { "" },
        )?;
    }
    Ok(())
}

/// Packets that come in, from the LANs or out of the device.
fn forwarded(w: &mut Writer<'_>) -> fmt::Result {
    writeln!(
        w.text,
        "  chain packets_prerouting {{
    type filter hook prerouting priority {PRIORITY_PACKETS}; policy accept;
    meta l4proto tcp accept
    meta mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} accept
    iifname \"{DEVICE}\" meta mark set meta mark | {MARK_OWN:#x} jump packets_out
    iifname \"{DEVICE}\" accept
    {NOT_FORWARDED} accept
    icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect }} accept
    jump packets_back"
    )?;
    w.only_interfaces()?;
    writeln!(w.text, "    goto packets_ruled\n  }}")
}

/// Takes what a rule names. Of ICMP these are echo requests alone.
fn ruled(w: &mut Writer<'_>) -> fmt::Result {
    writeln!(w.text, "  chain packets_ruled {{")?;
    for (protocol, _) in w.packets {
        match *protocol {
            ICMP => writeln!(w.text, "    icmp type echo-request jump decide_{protocol}")?,
            ICMP_V6 if w.ports.v6.is_some() => writeln!(
                w.text,
                "    icmpv6 type echo-request jump decide_{protocol}"
            )?,
            _ => writeln!(w.text, "    meta l4proto {protocol} jump decide_{protocol}")?,
        }
    }
    // Whoever returned from its decision is taken; a packet that has none is not.
    let protocols: Vec<String> = w
        .packets
        .iter()
        .map(|(protocol, _)| protocol.to_string())
        .collect();
    writeln!(
        w.text,
        "    meta l4proto != {{ {} }} accept
    icmp type != echo-request accept
    icmpv6 type != echo-request accept
    goto packets_taken
  }}",
        protocols.join(", ")
    )
}

/// What this host sends itself: answers of its own services and its kernel's ICMP errors to those
/// whom we speak for, and if it is wanted, what its own applications begin. Our own tunnel bears
/// our mark.
fn output(w: &mut Writer<'_>) -> fmt::Result {
    writeln!(
        w.text,
        "  chain packets_output {{
    type route hook output priority {PRIORITY_PACKETS}; policy accept;
    meta l4proto tcp accept
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept
    {NOT_FORWARDED} accept
    jump packets_back"
    )?;
    if w.table.local {
        writeln!(w.text, "    goto packets_ruled")?;
    }
    writeln!(w.text, "  }}")
}
