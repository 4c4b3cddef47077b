//! Multicast is copied into the TUN device, not taken: tables of the families `ip` and `ip6`.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::writer::PRIORITY_PACKETS;
use crate::intercept::names::{GROUPS, TABLE};
use crate::intercept::tun::DEVICE;
use crate::table::marks::MARK_OWN;

/// Copies packets to the groups that peers ask for into the TUN device; they themselves go their
/// way. Only those that came in where answers to them would go out: others have been brought here
/// by somebody else, as we bring some ourselves. Copying takes one off the hop limit.
pub(in crate::intercept) fn multicast(interfaces: &[String], v6: bool) -> String {
    let families: &[(&str, &str, Ipv6Addr)] = match v6 {
        true => &[
            ("ip", "ipv4_addr", VIA.to_ipv6_mapped()),
            ("ip6", "ipv6_addr", VIA_V6),
        ],
        false => &[("ip", "ipv4_addr", VIA.to_ipv6_mapped())],
    };
    let mut text = String::new();
    for (family, kind, via) in families {
        let _ = writeln!(
            text,
            "add table {family} {TABLE}\ndelete table {family} {TABLE}"
        );
        if interfaces.is_empty() {
            continue;
        }
        let names: Vec<String> = interfaces
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect();
        let _ = write!(
            text,
            "table {family} {TABLE} {{
  set {GROUPS} {{
    type {kind}; flags timeout;
  }}
  chain multicast {{
    type filter hook prerouting priority {PRIORITY_PACKETS}; policy accept;
    meta l4proto != udp accept
    {family} daddr != @{GROUPS} accept
    iifname != {{ {names} }} accept
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept
    fib saddr . iif oif missing accept
    dup to {via} device \"{DEVICE}\"
  }}
}}
",
            names = names.join(", "),
            via = via
                .to_ipv4_mapped()
                .map_or_else(|| via.to_string(), |via| via.to_string()),
        );
    }
    text
}

/// Copies need a next hop, though the device has none: nobody's addresses (RFC 7600, RFC 6666).
const VIA: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 9);

/// Of IPv6, for which the kernel wants a route too.
pub(crate) const VIA_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 9);
