//! Where TCP is taken: forwarded connections, and those of this host.

use std::fmt::{self, Write};

use super::writer::{NOT_FORWARDED, PRIORITY, SYN, Writer};
use crate::intercept::names::counter;
use crate::intercept::tcp::Ports;
use crate::table::Mode;
use crate::table::marks::{MARK_DELIVER, MARK_OWN};

pub(super) fn tproxy(w: &mut Writer<'_>) -> fmt::Result {
    let Ports { v4, v6 } = w.ports;
    let then = format!(
        "meta mark set meta mark | {MARK_DELIVER:#x} counter name {} accept",
        counter::INTERCEPTED
    );
    writeln!(w.text, "  chain divert {{")?;
    writeln!(
        w.text,
        "    meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:{v4} {then}"
    )?;
    if let Some(v6) = v6 {
        writeln!(
            w.text,
            "    meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:{v6} {then}"
        )?;
    }
    // Reached only when nobody listens.
    writeln!(w.text, "    counter name {}\n  }}", counter::NO_LISTENER)?;
    writeln!(w.text, "  chain opening {{")?;
    if w.table.local {
        // Decided in `output`. The packet is on `lo` and cannot go its plain way any more: when
        // nobody listens it is dropped, and the application's next SYN, a second later, finds
        // the lease gone.
        writeln!(
            w.text,
            "    iifname \"lo\" meta mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} goto opening_local"
        )?;
    }
    w.only_interfaces()?;
    writeln!(
        w.text,
        "    jump decide
    jump divert
    meta mark set meta mark | {MARK_DELIVER:#x}
    jump decide
    meta mark set meta mark & {:#x}
  }}",
        !MARK_DELIVER
    )?;
    if w.table.local {
        writeln!(
            w.text,
            "  chain opening_local {{
    jump divert
    jump decide
    drop
  }}"
        )?;
    }
    Ok(())
}

pub(super) fn redirect(w: &mut Writer<'_>) -> fmt::Result {
    let Ports { v4, v6 } = w.ports;
    writeln!(
        w.text,
        "  chain divert {{\n    counter name {}",
        counter::INTERCEPTED
    )?;
    writeln!(
        w.text,
        "    meta nfproto ipv4 meta l4proto tcp redirect to :{v4}"
    )?;
    if let Some(v6) = v6 {
        writeln!(
            w.text,
            "    meta nfproto ipv6 meta l4proto tcp redirect to :{v6}"
        )?;
    }
    writeln!(w.text, "  }}\n  chain redirect_prerouting {{")?;
    writeln!(
        w.text,
        "    type nat hook prerouting priority dstnat; policy accept;"
    )?;
    w.opening_only()?;
    w.only_interfaces()?;
    writeln!(w.text, "    jump decide\n    goto divert\n  }}")?;
    if w.table.local {
        writeln!(w.text, "  chain redirect_output {{")?;
        writeln!(
            w.text,
            "    type nat hook output priority -100; policy accept;"
        )?;
        writeln!(
            w.text,
            "    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept"
        )?;
        w.opening_only()?;
        writeln!(w.text, "    jump decide\n    goto divert\n  }}")?;
    }
    Ok(())
}

/// Forwarded packets that belong to a transparent socket of ours, near or far edge, and ICMP
/// errors about them.
pub(super) fn established(w: &mut Writer<'_>) -> fmt::Result {
    let tproxy = w.table.mode == Mode::Tproxy;
    if !tproxy && !w.table.far_source_is_client {
        return Ok(());
    }
    writeln!(
        w.text,
        "  chain prerouting {{
    type filter hook prerouting priority {PRIORITY}; policy accept;
    meta l4proto != {{ tcp, icmp, ipv6-icmp }} accept
    {NOT_FORWARDED} accept"
    )?;
    if tproxy {
        writeln!(w.text, "    {SYN} goto opening")?;
    }
    writeln!(
        w.text,
        "    socket transparent 1 meta mark set meta mark | {MARK_DELIVER:#x}\n  }}"
    )
}

/// What this host sends itw.
pub(super) fn output(w: &mut Writer<'_>) -> fmt::Result {
    let tproxy = w.table.mode == Mode::Tproxy;
    if !tproxy && !w.table.far_source_is_client {
        return Ok(());
    }
    let deliver = format!("meta mark set meta mark | {MARK_DELIVER:#x}");
    writeln!(
        w.text,
        "  chain output {{
    type route hook output priority {PRIORITY}; policy accept;"
    )?;
    if w.table.far_source_is_client {
        // Two kinds of packets that this host sends to the client's address are meant for our
        // socket that bears it: what a server on this very host answers, and the host's own
        // ICMP errors about that socket's packets (a destination that does not answer ARP).
        // Neither belongs to our socket, so only connection tracking knows them, by the mark
        // that our SYN left there.
        writeln!(
                w.text,
                "    meta l4proto {{ icmp, ipv6-icmp }} ct state related ct mark & {MARK_OWN:#x} == {MARK_OWN:#x} {deliver} accept
    meta l4proto != tcp accept
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} {SYN} ct mark set ct mark | {MARK_OWN:#x} accept
    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept
    ct direction reply ct mark & {MARK_OWN:#x} == {MARK_OWN:#x} {deliver} accept"
            )?;
    } else {
        writeln!(
            w.text,
            "    meta l4proto != tcp accept\n    meta mark & {MARK_OWN:#x} == {MARK_OWN:#x} accept"
        )?;
    }
    if tproxy {
        // Here too connection tracking has to remember which connections are ours. What it
        // remembers of an earlier SYN is forgotten with each new one, or a connection that goes
        // its plain way now would be cut in two.
        writeln!(
            w.text,
            "    {NOT_FORWARDED} accept
    {SYN} goto opening_output
    ct direction original ct mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} {deliver}
  }}
  chain opening_output {{
    ct mark & {MARK_DELIVER:#x} == {MARK_DELIVER:#x} ct mark set ct mark & {:#x}
    jump decide
    ct mark set ct mark | {MARK_DELIVER:#x} {deliver}",
            !MARK_DELIVER
        )?;
    }
    writeln!(w.text, "  }}")
}
