//! What `tpo status` says of a peer below the table: what does not fit into a column.

use std::fmt::Write as _;

use super::report::{CompressionReport, PeerReport, PeerState};
use super::units::{bytes, counts, plural, span, times};

/// Groups that a line shows: one line of a screen. All of them are in `--json`.
const SHOWN_GROUPS: usize = 8;

/// Why the peer is not up, what went over the path and what was dropped, what compression and the
/// handshake did, and which multicast groups are asked for.
pub(super) fn peer_lines(out: &mut String, peer: &PeerReport) {
    why_not_up(out, peer);
    datagrams(out, peer);
    compression(out, peer);
    groups(out, peer);
    handshakes(out, peer);
}

fn why_not_up(out: &mut String, peer: &PeerReport) {
    if peer.up {
        return;
    }
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

fn datagrams(out: &mut String, peer: &PeerReport) {
    if peer.datagrams_sent + peer.datagrams_received == 0 {
        return;
    }
    let again = 100.0 * peer.retransmissions as f64 / peer.datagrams_sent.max(1) as f64;
    let _ = write!(
        out,
        "{}: {} datagrams sent, {} segments retransmitted ({again:.2} %), {} datagrams received",
        peer.name, peer.datagrams_sent, peer.retransmissions, peer.datagrams_received
    );
    if peer.parity_sent + peer.rebuilt > 0 {
        let _ = write!(
            out,
            ", {} parity rows sent, {} lost datagrams rebuilt",
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

fn compression(out: &mut String, peer: &PeerReport) {
    let compression = &peer.compression;
    if compression.before == 0 {
        return;
    }
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
        let all: Vec<String> = compression.classes.iter().map(each).collect();
        let _ = write!(out, "; {}", all.join(", "));
    }
    if let Some(raw) = counts(&compression.raw) {
        let _ = write!(out, "; buffers sent uncompressed: {raw}");
    }
    out.push('\n');
}

fn groups(out: &mut String, peer: &PeerReport) {
    for (what, groups) in [
        ("asks us for", &peer.groups_asked_here),
        ("is asked for", &peer.groups_asked_there),
    ] {
        if groups.is_empty() {
            continue;
        }
        let more = if groups.len() > SHOWN_GROUPS {
            " ..."
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "{} {what} {}: {}{more}",
            peer.name,
            plural(groups.len() as u64, "multicast group"),
            groups[..groups.len().min(SHOWN_GROUPS)].join(" ")
        );
    }
    if !peer.lans_left.is_empty() {
        let _ = writeln!(
            out,
            "{}: another TPO brings its multicast groups to {}",
            peer.name,
            peer.lans_left.join(" ")
        );
    }
}

fn handshakes(out: &mut String, peer: &PeerReport) {
    let handshake = &peer.handshake;
    if handshake.completed + handshake.failed == 0 {
        return;
    }
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
            "; {} more not authenticated (anybody can replay one)",
            handshake.failed
        );
    }
    out.push('\n');
}
