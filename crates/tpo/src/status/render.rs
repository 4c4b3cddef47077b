//! The reports for people: what `tpo status` and `tpo flows` print. Made to be read at three in the
//! morning: first whether it works, then what it does, then why not.

use std::fmt::Write as _;

use super::peer_lines::peer_lines;
use super::reason::Reason;
use super::report::{
    CompressionReport, FlowReport, InterceptReport, OpenedBy, PeerReport, PeerState, PlainReport,
    StatusReport,
};
use super::text_table::Align::{Left, Right};
use super::text_table::TextTable;
use super::units::{bytes, counts, plural, protocol, rate, span, times};

/// `tpo status`.
pub(crate) fn status(report: &StatusReport) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}", headline(report));
    out.push('\n');
    out.push_str(&peers(&report.peers));
    for peer in &report.peers {
        peer_lines(&mut out, peer);
    }
    out.push('\n');
    interception(&mut out, &report.intercept);
    let memory = &report.memory;
    let (used, budget, peak) = (bytes(memory.used), bytes(memory.budget), bytes(memory.peak));
    let _ = writeln!(out, "memory: {used} of {budget}, peak {peak}");
    if let Some(strangers) = counts(&report.strangers) {
        let _ = writeln!(out, "datagrams of no known peer: {strangers}");
    }
    not_accelerated(&mut out, report);
    went_plain(&mut out, &report.plain);
    out
}

/// `tpo flows`.
pub(crate) fn flows(flows: &[FlowReport]) -> String {
    if flows.is_empty() {
        return "no flows\n".into();
    }
    let mut table = TextTable::new(&[
        ("FLOW", Right),
        ("PEER", Left),
        ("PROTO", Left),
        ("CLIENT", Left),
        ("SERVER", Left),
        ("OPENED BY", Left),
        ("STATE", Left),
        ("CLASS", Left),
        ("SENT", Right),
        ("RECEIVED", Right),
        ("PACKETS", Right),
        ("COMPRESSED", Right),
        ("LOST", Right),
        ("DELAY", Right),
        ("AGE", Right),
        ("IDLE", Right),
        ("CREDIT", Right),
        ("HELD UP BY", Left),
    ]);
    for flow in flows {
        table.row(vec![
            // Bit 31 tells which side numbers the flow (docs/wire.md, section 4); a person tells
            // the two apart by OPENED BY.
            (flow.id & 0x7fff_ffff).to_string(),
            flow.peer.clone(),
            protocol(flow.protocol),
            flow.client.clone(),
            flow.server.clone(),
            match flow.opened_by {
                OpenedBy::Us => "us".into(),
                OpenedBy::Peer => "peer".into(),
            },
            flow.state.word().into(),
            flow.class.clone(),
            bytes(flow.sent),
            bytes(flow.received),
            match (flow.packets_sent, flow.packets_received) {
                (Some(sent), Some(received)) => format!("{sent}/{received}"),
                _ => String::new(),
            },
            shrinks(&flow.compression),
            flow.lost_percent
                .map_or_else(String::new, |lost| format!("{lost:.2} %")),
            flow.delay_ms
                .map_or_else(String::new, |ms| format!("{ms:.1} ms")),
            span(flow.age),
            span(flow.idle),
            bytes(flow.credit),
            flow.reason.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

/// What the columns of `tpo status` mean, for its manual.
pub(crate) const COLUMNS: &str = "\
Columns of the peers (-: not measured, idle: nothing is in flight):
  RTT          smoothed round-trip time
  MIN RTT      lowest round-trip time
  LOSS SO FAR  bytes lost on the way to the peer, of all since the start
  PACING       the rate at which we may send now
  DELIVERED    the rate at which the peer takes in what we send, as it says itself
  IN FLIGHT    bytes sent and not yet acknowledged
  DATAGRAM     largest UDP payload, bytes
  FLOWS        open flows; SENT, RECEIVED: their bytes and those of all flows before
";

fn headline(report: &StatusReport) -> String {
    let up = report.peers.iter().filter(|peer| peer.up).count();
    let flows: u64 = report.peers.iter().map(|peer| peer.flows).sum();
    let verdict = match (up, report.intercept.installed) {
        (0, _) => "NOT WORKING, no peer is up",
        (_, false) => "NOT INTERCEPTING, peers are up but nothing is intercepted",
        (up, true) if up < report.peers.len() => "working in part",
        _ => "working",
    };
    let peers = format!("{up} of {} up", plural(report.peers.len() as u64, "peer"));
    let flows = plural(flows, "flow");
    format!(
        "{}: {verdict}; {peers}, {flows}, running for {} (tpo {})",
        report.name,
        span(report.uptime),
        report.version
    )
}

fn peers(peers: &[PeerReport]) -> String {
    let mut table = TextTable::new(&[
        ("PEER", Left),
        ("STATE", Left),
        ("ENDPOINT", Left),
        ("RTT", Right),
        ("MIN RTT", Right),
        ("LOSS SO FAR", Right),
        ("PACING", Right),
        ("DELIVERED", Right),
        ("IN FLIGHT", Right),
        ("DATAGRAM", Right),
        ("FLOWS", Right),
        ("SENT", Right),
        ("RECEIVED", Right),
    ]);
    for peer in peers {
        let measured = |text: String| {
            if peer.state == PeerState::Up {
                text
            } else {
                "-".into()
            }
        };
        // Both rates are those of the last traffic: they say nothing of a path that is not used.
        let in_use = |bytes_per_second| match peer.in_flight {
            0 => "idle".into(),
            _ => rate(bytes_per_second),
        };
        table.row(vec![
            peer.name.clone(),
            peer.state.word().into(),
            peer.endpoint.clone().unwrap_or_else(|| "-".into()),
            peer.rtt_ms
                .map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms")),
            peer.min_rtt_ms
                .map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms")),
            measured(format!("{:.2} %", peer.loss_since_start_percent)),
            measured(in_use(peer.rate)),
            measured(in_use(peer.delivery_rate)),
            bytes(peer.in_flight),
            measured(peer.segment.to_string()),
            peer.flows.to_string(),
            bytes(peer.sent),
            bytes(peer.received),
        ]);
    }
    table.to_string()
}

/// What compression does for a flow, or why nothing.
fn shrinks(compression: &CompressionReport) -> String {
    let most = compression.raw.iter().max_by_key(|(_, count)| **count);
    match most {
        _ if compression.before == 0 => String::new(),
        Some((why, _)) if times(compression) < 1.01 => why.clone(),
        _ => format!("{:.1}x", times(compression)),
    }
}

fn interception(out: &mut String, intercept: &InterceptReport) {
    if !intercept.installed {
        let problem = intercept.problem.as_deref().unwrap_or("no rule is enabled");
        let _ = writeln!(out, "interception: NOT INSTALLED, {problem}");
        return;
    }
    let _ = write!(
        out,
        "interception: installed, {}, {}",
        intercept.mode,
        plural(intercept.rules as u64, "rule")
    );
    if intercept.rules_disabled > 0 {
        let _ = write!(out, " ({} more disabled)", intercept.rules_disabled);
    }
    match intercept.interfaces.is_empty() {
        true => out.push_str(", any interface"),
        false => {
            let _ = write!(out, ", only {}", intercept.interfaces.join(" "));
        }
    }
    out.push_str(if intercept.local {
        ", this host's applications too\n"
    } else {
        ", not this host's applications\n"
    });
    if let Some(problem) = &intercept.hold_problem {
        let _ = writeln!(out, "  closed rules: NOT HELD WHOLE, {problem}");
    } else if intercept.rules_closed > 0 {
        let after = if intercept.hold_closed {
            ", also after a stop"
        } else {
            ""
        };
        let closed = plural(intercept.rules_closed as u64, "closed rule");
        let held = plural(intercept.held, "packet");
        let _ = writeln!(
            out,
            "  {closed} held{after}: {held} refused that would have gone in the clear"
        );
    }
    for lease in &intercept.leases {
        match lease.held {
            true => {
                let _ = writeln!(
                    out,
                    "  {}: held, new connections are intercepted",
                    lease.peer
                );
            }
            false => {
                let reason = lease.reason.as_deref().unwrap_or("the peer is not up");
                let _ = writeln!(out, "  {}: NOT HELD, {reason}", lease.peer);
            }
        }
    }
}

fn not_accelerated(out: &mut String, report: &StatusReport) {
    if report.passed.iter().all(|passed| passed.count == 0) {
        return;
    }
    out.push_str("\nconnections that were not accelerated:\n");
    let mut table = TextTable::new(&[
        ("COUNT", Right),
        ("NO.", Right),
        ("REASON", Left),
        ("WHAT TO DO", Left),
    ]);
    let mut sentences = String::new();
    for passed in report.passed.iter().filter(|passed| passed.count > 0) {
        let reason = Reason::from_number(passed.number);
        let advice = reason.map_or(
            "update this program: it is older than the running one",
            Reason::advice,
        );
        table.row(vec![
            passed.count.to_string(),
            passed.number.to_string(),
            passed.reason.clone(),
            advice.into(),
        ]);
        if let Some(reason) = reason {
            let _ = writeln!(sentences, "  {}: {}", reason.number(), reason.sentence());
        }
    }
    out.push_str(&table.to_string());
    out.push_str(&sentences);
}

/// Lines that are shown of what went in the clear, the largest counts first: a screen. All of them
/// are in `--json`.
const SHOWN_PLAIN: usize = 20;

/// What left in the clear though a rule names it, for those who count on encryption.
fn went_plain(out: &mut String, plain: &[PlainReport]) {
    let mut most: Vec<&PlainReport> = plain.iter().filter(|plain| plain.count > 0).collect();
    if most.is_empty() {
        return;
    }
    most.sort_by_key(|plain| std::cmp::Reverse(plain.count));
    out.push_str("\nwent in the clear (TCP: connections, all else: packets):\n");
    let mut table = TextTable::new(&[
        ("COUNT", Right),
        ("NO.", Right),
        ("REASON", Left),
        ("LINE", Right),
        ("RULE", Left),
    ]);
    for plain in most.iter().take(SHOWN_PLAIN) {
        table.row(vec![
            plain.count.to_string(),
            plain.number.to_string(),
            plain.reason.clone(),
            plain.line.map_or_else(String::new, |line| line.to_string()),
            if plain.names.is_empty() {
                "no single rule".into()
            } else {
                plain.names.clone()
            },
        ]);
    }
    out.push_str(&table.to_string());
    if most.len() > SHOWN_PLAIN {
        let _ = writeln!(out, "and {} more lines in --json", most.len() - SHOWN_PLAIN);
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
