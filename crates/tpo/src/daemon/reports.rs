//! What the daemon tells of itself: gathers the figures of lanes, gate, demultiplexer and kernel
//! into the reports of [`crate::status`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tpo_engine::{Class, CompressionStats, FlowInfo, FlowKind, Uncompressed};

use crate::config::Checked;
use crate::daemon::{control, passed};
use crate::demultiplexer::Drops;
use crate::gate;
use crate::intercept::lease::{Count, Lease};
use crate::intercept::names::counter;
use crate::lanes::handle::Lane;
use crate::lanes::report::Report;
use crate::lanes::sighting::{Fault, Sighting};
use crate::packets::plain_way::Plain;
use crate::packets::reader;
use crate::status::drops;
use crate::status::{
    CompressionReport, FlowReport, FlowState, HandshakeReport, InterceptReport, LeaseReport,
    MemoryReport, OpenedBy, PassedReport, PeerReport, PeerState, PlainReport, Reason, StatusReport,
};
use crate::table::peers::{ByPeer, PeerId};
use crate::table::{Mode, OnFailure};

/// A lane answers within its turn; those that have not after this time, for all together, are
/// reported as stuck.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a lease holds no TCP though its peer is up.
const FLOODED: &str = "a flood of new connections filled the listeners' queues: no TCP is taken until it ends, all else is";

/// Everything that can be asked, and the configuration that gives it names.
pub(crate) struct Facts {
    checked: Checked,
    lanes: ByPeer<Lane>,
    gate: Arc<gate::Counters>,
    demultiplexer: Arc<Drops>,
    tun_reader: Option<Arc<reader::Counters>>,
    plain: Arc<Plain>,
    /// The rule of the configuration for each rule in the kernel.
    origins: Vec<usize>,
    start: Instant,
    memory_peak: AtomicU64,
}

/// What the rooms count that a lane does not report.
pub(crate) struct Counters {
    /// The gate's.
    pub(crate) gate: Arc<gate::Counters>,
    /// What the demultiplexer dropped.
    pub(crate) demultiplexer: Arc<Drops>,
    /// The TUN reader's, if there is one.
    pub(crate) tun_reader: Option<Arc<reader::Counters>>,
    /// What went in the clear.
    pub(crate) plain: Arc<Plain>,
}

impl Facts {
    /// The facts of a daemon that has just started.
    pub(crate) fn new(checked: &Checked, lanes: ByPeer<Lane>, counters: Counters) -> Facts {
        let Counters {
            gate,
            demultiplexer,
            tun_reader,
            plain,
        } = counters;
        let (start, memory_peak) = (Instant::now(), AtomicU64::new(0));
        let origins = crate::daemon::tables::origins(checked);
        Facts {
            checked: checked.clone(),
            lanes,
            gate,
            demultiplexer,
            tun_reader,
            plain,
            origins,
            start,
            memory_peak,
        }
    }

    /// The answer of each lane. All are asked before the first answer is waited for.
    fn ask<T>(&self, question: fn(&Lane) -> Receiver<T>) -> ByPeer<Option<T>> {
        let answers: Vec<_> = self.lanes.iter().map(question).collect();
        let deadline = Instant::now() + PATIENCE;
        let left = || deadline.saturating_duration_since(Instant::now());
        answers
            .into_iter()
            .map(|answer| answer.recv_timeout(left()).ok())
            .collect()
    }

    fn intercept(&self, peers: &[PeerReport]) -> InterceptReport {
        let (on, off): (Vec<_>, Vec<_>) = self.checked.rules.iter().partition(|rule| rule.enabled);
        let leases =
            self.gate
                .leases
                .iter()
                .zip(peers)
                .zip(&self.lanes)
                .map(|((held, peer), lane)| {
                    let held = held.load(Ordering::Relaxed);
                    let lack = lane.pulse.lack().map(|lack| lack.sentence().to_owned());
                    let flooded = self
                        .gate
                        .pressed
                        .load(Ordering::Relaxed)
                        .then(|| FLOODED.to_owned());
                    let reason = peer.reason.clone().or(flooded).or(lack);
                    let reason =
                        (!held).then(|| reason.unwrap_or_else(|| "not renewed yet".into()));
                    LeaseReport {
                        peer: peer.name.clone(),
                        held,
                        reason,
                    }
                });
        let intact = self.gate.intact.load(Ordering::Relaxed);
        InterceptReport {
            installed: intact,
            mode: match self.checked.intercept.mode {
                Mode::Tproxy => "tproxy".into(),
                Mode::Redirect => "redirect".into(),
            },
            local: self.checked.intercept.local,
            interfaces: self.checked.intercept.interfaces.clone(),
            rules: on.len(),
            rules_disabled: off.len(),
            rules_closed: on
                .iter()
                .filter(|rule| rule.on_failure == OnFailure::Closed)
                .count(),
            hold_closed: self.checked.tpo.hold_closed,
            held: self.held(),
            hold_problem: self
                .plain
                .hold_lost
                .load(Ordering::Relaxed)
                .then(|| "see the log".into()),
            problem: (!intact)
                .then(|| "our rules or route were removed by someone; being reinstalled".into()),
            leases: leases.collect(),
        }
    }

    fn peer(&self, id: PeerId, report: Option<&Report>) -> PeerReport {
        let config = &self.checked.peers[id];
        let Some(report) = report else {
            return PeerReport {
                name: config.name.clone(),
                state: PeerState::Stuck,
                reason: Some("its lane does not answer; the log may say why".into()),
                ..PeerReport::default()
            };
        };
        let engine = &report.stats;
        let (mover, path) = (&engine.mover.counters, &engine.mover.gauges.path);
        let up = self.lanes[id].pulse.is_up();
        let state = match (up, report.connected, config.endpoint, report.remote) {
            _ if report.rests => PeerState::Resting,
            (true, ..) if report.connected => PeerState::Up,
            (_, true, ..) => PeerState::Silent,
            (_, _, None, None) => PeerState::Waiting,
            _ => PeerState::Connecting,
        };
        let handshake = &mover.handshake;
        let lost = mover.path.wire_bytes_lost as f64;
        let sent = lost + mover.path.wire_bytes_delivered as f64;
        PeerReport {
            name: config.name.clone(),
            up,
            state,
            endpoint: report
                .remote
                .or(config.endpoint)
                .map(|address| address.to_string()),
            reason: self.reason(id, state, report),
            rtt_ms: path.rtt.map(milliseconds),
            min_rtt_ms: path.min_rtt.map(milliseconds),
            loss_since_start_percent: if sent > 0.0 { 100.0 * lost / sent } else { 0.0 },
            rate: path.pacing_rate,
            delivery_rate: engine.mover.gauges.sender.peer_delivery_rate,
            segment: u16::try_from(path.datagram_size).unwrap_or(u16::MAX),
            in_flight: path.in_flight_bytes,
            flows: engine.flows as u64,
            flows_total: engine.counters.flows.opened_here + engine.counters.flows.opened_there,
            sent: engine.counters.traffic.bytes_out,
            received: engine.counters.traffic.bytes_in,
            datagrams_sent: mover.path.datagrams_sent,
            datagrams_received: mover.path.datagrams_received,
            retransmissions: mover.sender.segments_repaired,
            parity_sent: mover.parity.rows_sent,
            rebuilt: mover.parity.datagrams_rebuilt,
            compression: compression_of(engine, path.pacing_rate),
            groups_asked_here: report
                .groups_asked_here
                .iter()
                .map(IpAddr::to_string)
                .collect(),
            groups_asked_there: report
                .groups_asked_there
                .iter()
                .map(IpAddr::to_string)
                .collect(),
            lans_left: report.lans_left.clone(),
            drops: drops(report),
            handshake: HandshakeReport {
                completed: handshake.established,
                failed: handshake.drops.forged + handshake.drops.refused,
                key_age: engine
                    .mover
                    .gauges
                    .keys_since
                    .map(|since| since.elapsed().as_secs_f64()),
            },
        }
    }

    /// Why a peer is not as it should be; none: it is.
    fn reason(&self, id: PeerId, state: PeerState, report: &Report) -> Option<String> {
        let known = match state {
            PeerState::Up | PeerState::Resting => None,
            PeerState::Silent => Some("nothing is heard from it: flows wait"),
            PeerState::Waiting => Some("it has no endpoint here, and it has not called yet"),
            PeerState::Connecting | PeerState::Stuck
                if self.checked.peers[id].pre_shared_key_file.is_some() =>
            {
                Some(
                    "no answer to the handshake: is the peer running, is UDP let through, and is the pre-shared key the same there?",
                )
            }
            PeerState::Connecting | PeerState::Stuck => {
                Some("no answer to the handshake: is the peer running, and is UDP let through?")
            }
        };
        let now = Instant::now();
        let seen = self
            .demultiplexer
            .sighting(id, now)
            .into_iter()
            .chain(report.stranger)
            .max_by_key(|seen| seen.at);
        known.map(|known| match seen.filter(|seen| seen.counts(now)) {
            Some(seen) => format!("{known}; {}", hearsay(&seen, now)),
            None => known.to_owned(),
        })
    }

    fn passed(&self, reports: &ByPeer<Option<Report>>) -> Vec<PassedReport> {
        // The kernel's counters hold what never reached us. Without them (no permission any more)
        // the rest is still worth telling.
        let kernel = Lease::open()
            .and_then(|mut lease| lease.counters())
            .unwrap_or_default();
        passed::reports(&passed::Sources {
            kernel: &kernel,
            gate: &self.gate,
            reader: self.tun_reader.as_deref(),
            lanes: reports.iter().flatten().collect(),
        })
    }
}

impl Facts {
    /// Packets of closed rules that were refused, or lost, where they would have gone in the clear.
    fn held(&self) -> u64 {
        let kernel = Lease::open().ok().map_or(0, |mut kernel| {
            let held = kernel.held().map_or(0, |held| held.packets);
            held + kernel
                .counters()
                .map_or(0, |all| all[counter::REFUSED].packets)
        });
        kernel + self.plain.kept.load(Ordering::Relaxed)
    }

    /// What went its plain way, by rule and reason: let go by the kernel's rules, and given back by
    /// us.
    fn plain(&self) -> Vec<PlainReport> {
        let mut counts: BTreeMap<(Option<usize>, Reason), u64> = BTreeMap::new();
        let mut kernel = Lease::open().ok();
        let of_rules = kernel
            .as_mut()
            .and_then(|kernel| kernel.rule_counters().ok())
            .unwrap_or_default();
        let all = kernel
            .as_mut()
            .and_then(|kernel| kernel.counters().ok())
            .unwrap_or_default();
        for (place, reason, count) in let_go(&of_rules, &all) {
            *counts
                .entry((
                    place.and_then(|place| self.origins.get(place).copied()),
                    reason,
                ))
                .or_default() += count;
        }
        let enabled: Vec<usize> = (0..self.checked.rules.len())
            .filter(|rule| self.checked.rules[*rule].enabled)
            .collect();
        for (rule, reason, count) in self.plain.counts() {
            *counts
                .entry((rule.and_then(|rule| enabled.get(rule).copied()), reason))
                .or_default() += count;
        }
        let report = |((rule, reason), count): ((Option<usize>, Reason), u64)| PlainReport {
            rule: rule.map(|rule| rule + 1),
            line: rule.map(|rule| self.checked.rules[rule].line),
            names: rule.map_or_else(String::new, |rule| names(&self.checked.rules[rule].matches)),
            number: reason.number(),
            reason: reason.name().into(),
            count,
        };
        counts
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(report)
            .collect()
    }
}

/// What the kernel's rules let go their plain way, by the rule's place in the table, where one is
/// known, and reason.
fn let_go(
    of_rules: &BTreeMap<usize, Count>,
    all: &BTreeMap<&'static str, Count>,
) -> Vec<(Option<usize>, Reason, u64)> {
    let of = |name| all.get(name).map_or(0, |count| count.packets);
    let mut gone: Vec<_> = of_rules
        .iter()
        .map(|(place, count)| (Some(*place), Reason::PeerDown, count.packets))
        .collect();
    if of_rules.is_empty() {
        // Rules are too many to be counted apart: what they let go is known in all.
        gone.push((None, Reason::PeerDown, of(counter::NO_LEASE)));
    }
    // The bounds of SYNs, and the sets of ways back, are one for all rules.
    gone.push((None, Reason::Flood, of(counter::FLOOD)));
    gone.push((None, Reason::WaysFull, of(counter::WAYS_FULL)));
    gone
}

/// What a rule names, in short.
fn names(rule: &tpo_engine::Rule) -> String {
    let ports = |ports: &std::ops::RangeInclusive<u16>| match (*ports.start(), *ports.end()) {
        (0 | 1, u16::MAX) => String::new(),
        (first, last) if first == last => format!(" port {first}"),
        (first, last) => format!(" ports {first}-{last}"),
    };
    format!(
        "{} from {}{} to {}{}",
        crate::status::units::protocol(rule.protocol),
        rule.source,
        ports(&rule.source_ports),
        rule.destination,
        ports(&rule.destination_ports)
    )
}

impl control::Facts for Facts {
    fn status(&self) -> StatusReport {
        let reports = self.ask(Lane::report);
        let peers: Vec<_> = reports
            .iter_with_id()
            .map(|(id, report)| self.peer(id, report.as_ref()))
            .collect();
        let used = reports
            .iter()
            .flatten()
            .map(|report| report.stats.held_bytes as u64)
            .sum();
        let peak = self
            .memory_peak
            .fetch_max(used, Ordering::Relaxed)
            .max(used);
        let dropped = &self.demultiplexer;
        let strangers = [
            ("noise", &dropped.noise),
            ("unknown session", &dropped.unknown_sessions),
            ("other keys", &dropped.other_keys),
            ("wrong guard", &dropped.wrong_guards),
            ("too many handshakes", &dropped.handshakes_full),
            ("too many of sessions", &dropped.sessions_full),
            ("receive buffer full", &dropped.buffer_full),
        ];
        StatusReport {
            name: self.checked.tpo.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime: self.start.elapsed().as_secs_f64(),
            intercept: self.intercept(&peers),
            memory: MemoryReport {
                used,
                peak,
                budget: self.checked.tpo.memory,
            },
            passed: self.passed(&reports),
            plain: self.plain(),
            peers,
            strangers: kinds(strangers.map(|(kind, count)| (kind, count.load(Ordering::Relaxed)))),
        }
    }

    fn flows(&self) -> Vec<FlowReport> {
        let now = Instant::now();
        let reports = self.ask(Lane::report);
        let lanes = self
            .checked
            .peers
            .iter()
            .zip(self.ask(Lane::flows))
            .zip(reports);
        lanes
            .flat_map(|((peer, flows), report)| {
                let path = report
                    .as_ref()
                    .map(|report| &report.stats.mover.gauges.path);
                let (way, rate) = (
                    path.and_then(|path| path.rtt).map(|rtt| rtt / 2),
                    path.map_or(0, |path| path.pacing_rate),
                );
                flows
                    .unwrap_or_default()
                    .into_iter()
                    .map(move |info| flow(&peer.name, &info, (way, rate), now))
            })
            .collect()
    }
}

fn flow(
    peer: &str,
    info: &FlowInfo,
    (way, rate): (Option<Duration>, u64),
    now: Instant,
) -> FlowReport {
    let (stream, packets) = match info.kind {
        FlowKind::Stream(stream) => (Some(stream), None),
        FlowKind::Packets(packets) => (None, Some(packets)),
    };
    let (finished_out, finished_in) = stream.map_or((false, false), |stream| {
        (stream.finished_out, stream.finished_in)
    });
    FlowReport {
        id: info.flow.0,
        peer: peer.into(),
        protocol: info.key.protocol,
        client: info.key.source.to_string(),
        server: info.key.destination.to_string(),
        opened_by: if info.opened_here {
            OpenedBy::Us
        } else {
            OpenedBy::Peer
        },
        state: match (info.connected, finished_out, finished_in) {
            (_, true, true) => FlowState::Closing,
            (_, true, false) => FlowState::Receiving,
            (_, false, true) => FlowState::Sending,
            (true, ..) => FlowState::Open,
            (false, ..) => FlowState::Opening,
        },
        class: class_name(info.class).into(),
        sent: info.bytes_out,
        received: info.bytes_in,
        packets_sent: packets.map(|packets| packets.packets_out.into()),
        packets_received: packets.map(|packets| packets.packets_in.into()),
        lost_percent: packets.and_then(|packets| {
            let (came, lost) = (f64::from(packets.packets_in), f64::from(packets.lost_in));
            (came + lost > 0.0).then(|| 100.0 * lost / (came + lost))
        }),
        compression: compression(&info.compression, rate),
        delay_ms: way
            .map(|way| milliseconds(way + packets.map_or(Duration::ZERO, |packets| packets.wait))),
        age: now.saturating_duration_since(info.since).as_secs_f64(),
        idle: now.saturating_duration_since(info.moved).as_secs_f64(),
        credit: stream.map_or(0, |stream| stream.credit_left),
        waiting: info.held_bytes as u64,
        reason: hold_up(info),
    }
}

/// What an unauthenticated handshake says: from where, when, and that it proves nothing.
fn hearsay(seen: &Sighting, now: Instant) -> String {
    let (what, remedy) = match seen.fault {
        Fault::Keys => (
            "a handshake for other keys than ours and our peers'",
            "compare the public keys at both ends",
        ),
        Fault::Guard => (
            "a handshake in its name that proves nothing",
            "compare the public and the pre-shared keys at both ends",
        ),
    };
    let (from, ago) = (seen.from, now.saturating_duration_since(seen.at).as_secs());
    format!("{what} came from {from} {ago} s ago: if that was it, {remedy} (anybody can send one)")
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Control => "control",
        Class::Interactive => "interactive",
        Class::Normal => "normal",
        Class::Bulk => "bulk",
    }
}

/// All that is said of the compression for one peer.
fn compression_of(engine: &tpo_engine::Stats, pacing_rate: u64) -> CompressionReport {
    CompressionReport {
        dictionaries: engine.dictionaries,
        classes: Class::ALL
            .into_iter()
            .map(|class| (class, &engine.compression[class as usize]))
            .filter(|(_, stats)| stats.bytes_in > 0)
            .map(|(class, stats)| {
                (
                    class_name(class).to_owned(),
                    compression(stats, pacing_rate),
                )
            })
            .collect(),
        ..compression(&engine.compression_in_all(), pacing_rate)
    }
}

/// `rate`: what the link takes, bytes per second.
fn compression(stats: &CompressionStats, rate: u64) -> CompressionReport {
    let saved = stats.bytes_in.saturating_sub(stats.bytes_out) as f64;
    let why = Uncompressed::ALL.map(|why| {
        let name = match why {
            Uncompressed::Off => "off",
            Uncompressed::Small => "small",
            Uncompressed::Incompressible => "does not shrink",
            Uncompressed::FastLink => "fast link",
            Uncompressed::Isolated => "kept apart",
            Uncompressed::TooManyMessages => "too many messages",
        };
        (name, stats.uncompressed[why as usize])
    });
    CompressionReport {
        before: stats.bytes_in,
        after: stats.bytes_out,
        raw: kinds(why),
        cpu: stats.cpu_ns as f64 / 1e9,
        saved: if rate > 0 { saved / rate as f64 } else { 0.0 },
        ..CompressionReport::default()
    }
}

fn hold_up(info: &FlowInfo) -> Option<String> {
    if !info.connected && info.opened_here {
        Some("the far side has not answered yet".into())
    } else if !info.connected {
        Some("the server has not answered yet".into())
    } else {
        match info.kind {
            FlowKind::Stream(stream) if stream.credit_left == 0 => {
                Some("the far application does not read".into())
            }
            FlowKind::Stream(_) | FlowKind::Packets(_) => None,
        }
    }
}

fn drops(report: &Report) -> BTreeMap<String, u64> {
    let (stats, packets) = (&report.stats.counters, &report.packets);
    let own = [
        ("packets too late", stats.packets.stale + stats.packets.late),
        ("packets too many", stats.packets.full + packets.dropped),
        ("packets foreign", packets.foreign),
        ("ICMP neither echo nor error", packets.icmp),
        ("flows that another peer owns", packets.owned),
        ("packets not taken by the kernel", packets.not_emitted),
        ("packet flows refused", stats.packets.flows_refused),
        ("icmp unproved", report.counters.complaints_unproved),
        ("connects given up", report.counters.connects_given_up),
        ("send failures", report.counters.send_failures),
        ("receive buffer full", report.counters.buffer_full),
    ];
    kinds(
        drops::of_mover(&report.stats.mover.counters)
            .into_iter()
            .chain(drops::of_engine(stats))
            .chain(own),
    )
}

/// The kinds that came up at all.
fn kinds(all: impl IntoIterator<Item = drops::Counted>) -> BTreeMap<String, u64> {
    all.into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| (kind.to_owned(), count))
        .collect()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes in the clear is told whatever let it go: no lease, the bounds of SYNs, a full set.
    #[test]
    fn everything_that_the_kernel_lets_go_is_told() {
        let count = |packets| Count {
            packets,
            ..Count::default()
        };
        let all = [
            (counter::NO_LEASE, count(7)),
            (counter::FLOOD, count(5)),
            (counter::FLOOD_DROPPED, count(100)),
            (counter::WAYS_FULL, count(3)),
            (counter::REFUSED, count(100)),
        ];
        let all = all.into_iter().collect();
        let beside = [(None, Reason::Flood, 5), (None, Reason::WaysFull, 3)];
        let apart = let_go(&[(1, count(4)), (2, count(3))].into_iter().collect(), &all);
        assert_eq!(
            apart,
            [
                &[
                    (Some(1), Reason::PeerDown, 4),
                    (Some(2), Reason::PeerDown, 3)
                ][..],
                &beside
            ]
            .concat()
        );
        let together = let_go(&BTreeMap::new(), &all);
        assert_eq!(
            together,
            [&[(None, Reason::PeerDown, 7)][..], &beside].concat()
        );
    }
}
