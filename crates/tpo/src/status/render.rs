//! The reports for people: what `tpo status` and `tpo flows` print. Made to be read at three in the
//! morning: first whether it works, then what it does, then why not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Reason;
use super::report::{
    CompressionReport, FlowReport, InterceptReport, OpenedBy, PeerReport, PeerState, PlainReport,
    StatusReport,
};

/// Widest column: addresses fit, a long text does not push everything else off the screen.
const WIDEST: usize = 60;

/// `tpo status`.
pub fn status(report: &StatusReport) -> String {
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
    let _ = writeln!(out, "memory: {used} of {budget}, {peak} at most so far");
    if let Some(strangers) = counts(&report.strangers) {
        let _ = writeln!(out, "datagrams of nobody we know: {strangers}");
    }
    not_accelerated(&mut out, report);
    went_plain(&mut out, &report.plain);
    out
}

/// `tpo flows`.
pub fn flows(flows: &[FlowReport]) -> String {
    if flows.is_empty() {
        return "no flows\n".into();
    }
    let mut table = Table::new(&[
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
        ("SHRUNK", Right),
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

fn headline(report: &StatusReport) -> String {
    let up = report.peers.iter().filter(|peer| peer.up).count();
    let flows: u64 = report.peers.iter().map(|peer| peer.flows).sum();
    let verdict = match (up, report.intercept.installed) {
        (0, _) => "NOT WORKING, no peer is up",
        (_, false) => "NOT INTERCEPTING, peers are up but nothing is taken from the LAN",
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
    let mut table = Table::new(&[
        ("PEER", Left),
        ("STATE", Left),
        ("ENDPOINT", Left),
        ("RTT", Right),
        ("LEAST", Right),
        ("LOSS SO FAR", Right),
        ("MAY SEND", Right),
        ("ARRIVES", Right),
        ("IN FLIGHT", Right),
        ("SEGMENT", Right),
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
        table.row(vec![
            peer.name.clone(),
            peer.state.word().into(),
            peer.endpoint.clone().unwrap_or_else(|| "-".into()),
            peer.rtt_ms
                .map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms")),
            peer.min_rtt_ms
                .map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms")),
            measured(format!("{:.2} %", peer.loss_since_start_percent)),
            measured(rate(peer.rate)),
            measured(rate(peer.delivery_rate)),
            bytes(peer.in_flight),
            measured(peer.segment.to_string()),
            peer.flows.to_string(),
            bytes(peer.sent),
            bytes(peer.received),
        ]);
    }
    table.to_string()
}

/// The rest is in `--json`.
const SHOWN_GROUPS: usize = 8;

/// What does not fit into the table: why a peer is not up, and what went wrong on the way.
fn peer_lines(out: &mut String, peer: &PeerReport) {
    if !peer.up {
        let reason = peer.reason.as_deref().unwrap_or(match peer.state {
            PeerState::Waiting => "it has no endpoint here, so it must call us, and it has not called yet",
            PeerState::Connecting => {
                "no answer yet: is it running, is its endpoint right, does a firewall let the port through?"
            }
            PeerState::Silent => "nothing has been heard from it; its flows wait",
            PeerState::Stuck => "the thread that serves it does not answer",
            PeerState::Up | PeerState::Resting => "it is just coming up",
        });
        let _ = writeln!(out, "{} is not up: {reason}", peer.name);
    }
    if peer.datagrams_sent + peer.datagrams_received > 0 {
        let again = 100.0 * peer.retransmissions as f64 / peer.datagrams_sent.max(1) as f64;
        let _ = write!(
            out,
            "{}: {} datagrams sent, {} segments again ({again:.2} %), {} received",
            peer.name, peer.datagrams_sent, peer.retransmissions, peer.datagrams_received
        );
        if peer.parity_sent + peer.rebuilt > 0 {
            let _ = write!(
                out,
                ", {} parity sent, {} lost ones rebuilt",
                peer.parity_sent, peer.rebuilt
            );
        }
        if let Some(drops) = counts(&peer.drops) {
            let _ = write!(out, ", dropped: {drops}");
        }
        let _ = writeln!(
            out,
            "; {} since the start",
            plural(peer.flows_total, "flow")
        );
    }
    let compression = &peer.compression;
    if compression.before > 0 {
        let _ = write!(
            out,
            "{}: compressed {} to {} ({:.1} times), {:.2} s of CPU, saved {} of the link's time",
            peer.name,
            bytes(compression.before),
            bytes(compression.after),
            times(compression),
            compression.cpu,
            span(compression.saved),
        );
        if compression.classes.len() > 1 {
            let each = |(class, own): (&String, &CompressionReport)| {
                format!("{class} {:.1} times", times(own))
            };
            let _ = write!(
                out,
                "; {}",
                compression
                    .classes
                    .iter()
                    .map(each)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        if let Some(raw) = counts(&compression.raw) {
            let _ = write!(out, "; buffers sent as they were: {raw}");
        }
        out.push('\n');
    }
    for (what, groups) in [
        ("asks us for", &peer.groups_asked_here),
        ("is asked for", &peer.groups_asked_there),
    ] {
        if !groups.is_empty() {
            let more = if groups.len() > SHOWN_GROUPS {
                " ..."
            } else {
                ""
            };
            let shown = groups
                .iter()
                .take(SHOWN_GROUPS)
                .cloned()
                .collect::<Vec<_>>()
                .join(" ");
            let _ = writeln!(
                out,
                "{} {what} {}: {shown}{more}",
                peer.name,
                plural(groups.len() as u64, "group")
            );
        }
    }
    if !peer.lans_left.is_empty() {
        let _ = writeln!(
            out,
            "{}: its groups come to {} by another TPO there",
            peer.name,
            peer.lans_left.join(" ")
        );
    }
    let handshake = &peer.handshake;
    if handshake.completed + handshake.failed > 0 {
        let _ = write!(
            out,
            "{}: {}",
            peer.name,
            plural(handshake.completed, "handshake")
        );
        if let Some(age) = handshake.key_age {
            let _ = write!(out, ", keys {} old", span(age));
        }
        if handshake.failed > 0 {
            let _ = write!(
                out,
                "; {} more proved nothing (anybody can repeat one)",
                handshake.failed
            );
        }
        out.push('\n');
    }
}

/// How many bytes became one.
fn times(compression: &CompressionReport) -> f64 {
    compression.before as f64 / compression.after.max(1) as f64
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
        let _ = write!(out, " ({} more switched off)", intercept.rules_disabled);
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
                let _ = writeln!(out, "  {}: held, new connections are taken", lease.peer);
            }
            false => {
                let reason = lease.reason.as_deref().unwrap_or("the peer is not up");
                let _ = writeln!(out, "  {}: LET GO, {reason}", lease.peer);
            }
        }
    }
}

fn not_accelerated(out: &mut String, report: &StatusReport) {
    if report.passed.iter().all(|passed| passed.count == 0) {
        return;
    }
    out.push_str("\nconnections that were not accelerated:\n");
    let mut table = Table::new(&[
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

/// The rest is in `--json`.
const SHOWN_PLAIN: usize = 20;

/// What left in the clear though a rule names it: whoever counts on encryption looks here.
fn went_plain(out: &mut String, plain: &[PlainReport]) {
    let mut most: Vec<&PlainReport> = plain.iter().filter(|plain| plain.count > 0).collect();
    if most.is_empty() {
        return;
    }
    most.sort_by_key(|plain| std::cmp::Reverse(plain.count));
    out.push_str("\nwent in the clear (TCP: connections, all else: packets):\n");
    let mut table = Table::new(&[
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

fn counts(counts: &BTreeMap<String, u64>) -> Option<String> {
    let counted: Vec<String> = counts
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    (!counted.is_empty()).then(|| counted.join(", "))
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

/// The name of a protocol, or its number.
pub fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        other => other.to_string(),
    }
}

/// Bytes in the unit that suits them.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0 of the smaller unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Bytes per second, as the bits per second in which links are sold.
pub fn rate(bytes_per_second: u64) -> String {
    let bits = bytes_per_second as f64 * 8.0;
    match bits {
        _ if bits >= 999.95e6 => format!("{:.2} Gbit/s", bits / 1e9),
        _ if bits >= 999.95e3 => format!("{:.1} Mbit/s", bits / 1e6),
        _ => format!("{:.1} kbit/s", bits / 1e3),
    }
}

/// Seconds, in the two largest units that matter.
pub fn span(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 60.0 {
        // 59.96 would be printed as 60.0.
        return format!("{:.1}s", seconds.min(59.9));
    }
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes}m {}s", whole % 60),
        (0, hours) => format!("{hours}h {minutes}m"),
        (days, hours) => format!("{days}d {hours}h"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}
use Align::{Left, Right};

/// Rows of text in columns as wide as they must be. A column in which nothing stands is left out.
struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(columns: &[(&'static str, Align)]) -> Table {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows
            .push(cells.iter().map(|cell| one_line(cell)).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let used: Vec<(usize, usize)> = (0..self.columns.len())
            .filter(|column| self.rows.is_empty() || width(*column) > 0)
            .map(|column| {
                (
                    column,
                    width(column).max(self.columns[column].0.chars().count()),
                )
            })
            .collect();
        let head: Vec<String> = self
            .columns
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            for (column, width) in &used {
                let cell = &row[*column];
                match self.columns[*column].1 {
                    Left => write!(line, "{cell:<width$}  ")?,
                    Right => write!(line, "{cell:>width$}  ")?,
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A cell is one line without control characters, whatever a peer or an application made of it, and
/// no wider than a screen bears.
fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    match text.chars().count() > WIDEST {
        false => text.chars().map(clean).collect(),
        true => text
            .chars()
            .take(WIDEST - 3)
            .map(clean)
            .chain("...".chars())
            .collect(),
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
