//! The reports: plain data, filled by the daemon, carried as JSON, and what `--json` prints. Fields
//! may be added; a field that one side does not know is ignored, one that it misses is empty, so
//! that `tpo status` works across an update.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reason::Reason;

/// The whole program at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReport {
    /// `name` of the configuration.
    pub name: String,
    /// Version of the running program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime: f64,
    /// What is taken from the LAN.
    pub intercept: InterceptReport,
    /// What the flows hold.
    pub memory: MemoryReport,
    /// Every configured peer, in the order of the file.
    pub peers: Vec<PeerReport>,
    /// Why connections were not accelerated, and how many; reasons that never came up are left out.
    pub passed: Vec<PassedReport>,
    /// What rules name and went its plain way all the same, unencrypted, by rule and reason; what
    /// never came up is left out.
    pub plain: Vec<PlainReport>,
    /// Datagrams that belonged to no peer, by kind.
    pub strangers: BTreeMap<String, u64>,
}

/// What is taken from the LAN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InterceptReport {
    /// Whether the kernel has our rules.
    pub installed: bool,
    /// `tproxy` or `redirect`.
    pub mode: String,
    /// Whether applications on this host are included.
    pub local: bool,
    /// The interfaces looked at; empty: all.
    pub interfaces: Vec<String>,
    /// Rules in use.
    pub rules: usize,
    /// Rules that are switched off.
    pub rules_disabled: usize,
    /// Why it is not installed.
    pub problem: Option<String>,
    /// Rules in use that are closed.
    pub rules_closed: usize,
    /// What holds the closed rules stays after an orderly stop.
    pub hold_closed: bool,
    /// Packets of closed rules that were refused where they would have gone in the clear.
    pub held: u64,
    /// Why what holds the closed rules is not whole.
    pub hold_problem: Option<String>,
    /// The lease of each peer.
    pub leases: Vec<LeaseReport>,
}

/// Whether interception for one peer is held at the moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseReport {
    /// Name of the peer.
    pub peer: String,
    /// Whether its connections are taken.
    pub held: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// What the flows of all peers hold, bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryReport {
    /// At the moment.
    pub used: u64,
    /// The most so far.
    pub peak: u64,
    /// The most allowed.
    pub budget: u64,
}

/// One far TPO.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerReport {
    /// What it is called here.
    pub name: String,
    /// Whether flows can be opened to it at the moment.
    pub up: bool,
    /// More exactly.
    pub state: PeerState,
    /// Where it is, as last proved or as configured.
    pub endpoint: Option<String>,
    /// Why it is not up.
    pub reason: Option<String>,
    /// Smoothed round-trip time, ms.
    pub rtt_ms: Option<f64>,
    /// Lowest round-trip time, ms.
    pub min_rtt_ms: Option<f64>,
    /// Bytes lost on the way there, percent of all since the start.
    pub loss_since_start_percent: f64,
    /// What we may send at the moment, bytes per second.
    pub rate: u64,
    /// What arrives there, as measured by acknowledgements, bytes per second.
    pub delivery_rate: u64,
    /// Largest datagram at the moment, bytes.
    pub segment: u16,
    /// Bytes sent and not yet acknowledged.
    pub in_flight: u64,
    /// Open flows.
    pub flows: u64,
    /// Flows since the start.
    pub flows_total: u64,
    /// Application bytes sent to it.
    pub sent: u64,
    /// Application bytes received from it.
    pub received: u64,
    /// Datagrams sent to it.
    pub datagrams_sent: u64,
    /// Datagrams received from it and found genuine.
    pub datagrams_received: u64,
    /// Segments sent again.
    pub retransmissions: u64,
    /// Parity rows sent, over datagrams with urgent data.
    pub parity_sent: u64,
    /// Lost datagrams that were rebuilt here from the peer's parity.
    pub rebuilt: u64,
    /// What compression did with what was sent to it.
    pub compression: CompressionReport,
    /// Groups of multicast that it asks us for.
    pub groups_asked_here: Vec<String>,
    /// Groups of multicast that we ask it for, because a host of our LANs listens.
    pub groups_asked_there: Vec<String>,
    /// LANs of ours to which another TPO brings the peer's groups.
    pub lans_left: Vec<String>,
    /// Datagrams dropped, by kind; kinds that never came up are left out.
    pub drops: BTreeMap<String, u64>,
    /// How the session came about.
    pub handshake: HandshakeReport,
}

/// What compression did with what was sent to a peer, or by a flow.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompressionReport {
    /// Bytes of buffers before.
    pub before: u64,
    /// Bytes of buffers after.
    pub after: u64,
    /// Buffers that were sent as they were, by reason; reasons that never came up are left out.
    pub raw: BTreeMap<String, u64>,
    /// CPU time spent, seconds, by the measured cost of each level.
    pub cpu: f64,
    /// Dictionaries made on the way.
    pub dictionaries: u64,
    /// What it saved on the link at its present rate, seconds.
    pub saved: f64,
    /// Of a peer: the same for each class that sent anything.
    pub classes: BTreeMap<String, CompressionReport>,
}

/// How far a peer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// We have no endpoint for it, and it has not called.
    Waiting,
    /// A handshake is under way.
    #[default]
    Connecting,
    /// Called on demand, and nothing needs it now.
    Resting,
    /// Connected and heard.
    Up,
    /// Connected, but nothing was heard for a while: flows wait.
    Silent,
    /// Unknown: the thread that serves it does not answer.
    Stuck,
}

/// How the session came about.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandshakeReport {
    /// Handshakes completed.
    pub completed: u64,
    /// Attempts that did not prove to be the peer's: refused by TLS, or with a part that does not
    /// open. Who knows both public keys can begin one.
    pub failed: u64,
    /// How long ago the keys were agreed with which is sealed what we send, seconds.
    pub key_age: Option<f64>,
}

/// How often one reason came up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PassedReport {
    /// The number of the reason.
    pub number: u8,
    /// Its name.
    pub reason: String,
    /// Connections.
    pub count: u64,
}

impl PassedReport {
    /// `count` connections for this reason.
    pub(crate) fn new(reason: Reason, count: u64) -> PassedReport {
        PassedReport {
            number: reason.number(),
            reason: reason.name().into(),
            count,
        }
    }
}

/// What one rule let go in the clear, for one reason.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlainReport {
    /// Which `[[rule]]` of the file, counted from 1; none: no rule, or no single one.
    pub rule: Option<usize>,
    /// The line where it begins.
    pub line: Option<usize>,
    /// What it names, in short.
    pub names: String,
    /// The number of the reason.
    pub number: u8,
    /// Its name.
    pub reason: String,
    /// Connections of TCP, packets of all else. Where ways were full it is the packets brought
    /// whose answers could not be noted: so many answers at most.
    pub count: u64,
}

/// One flow.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlowReport {
    /// The number that it has between the two TPOs.
    pub id: u32,
    /// Name of the peer.
    pub peer: String,
    /// IANA number.
    pub protocol: u8,
    /// Address and port of the application that opened it.
    pub client: String,
    /// Address and port that it wanted.
    pub server: String,
    /// On whose side the client is.
    pub opened_by: OpenedBy,
    /// How far it is.
    pub state: FlowState,
    /// `interactive`, `normal` or `bulk`.
    pub class: String,
    /// Application bytes sent to the peer.
    pub sent: u64,
    /// Application bytes received from the peer.
    pub received: u64,
    /// Of a flow of packets: packets sent to the peer.
    pub packets_sent: Option<u64>,
    /// Of a flow of packets: packets received from the peer.
    pub packets_received: Option<u64>,
    /// Of a flow of packets: packets of the peer that did not come, or came too late to be of
    /// use, percent.
    pub lost_percent: Option<f64>,
    /// What compression did with what it sent, in buffers of its own.
    pub compression: CompressionReport,
    /// From here to the far application's LAN, as far as known: half a round trip between the TPOs,
    /// and what packets wait here for the link, ms.
    pub delay_ms: Option<f64>,
    /// Seconds since it was opened.
    pub age: f64,
    /// Seconds since bytes last moved.
    pub idle: f64,
    /// Bytes that the peer lets us send before it must free some memory.
    pub credit: u64,
    /// Bytes received that the application has not taken yet.
    pub waiting: u64,
    /// What holds it up, if something does.
    pub reason: Option<String>,
}

/// On whose side the client of a flow is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenedBy {
    /// On ours.
    #[default]
    Us,
    /// On the peer's.
    Peer,
}

/// How far a flow is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// The far side has not yet connected to the server.
    #[default]
    Opening,
    /// Both directions are open.
    Open,
    /// We have no more to send, the peer has.
    Receiving,
    /// The peer has no more to send, we have.
    Sending,
    /// Both directions have ended; the last bytes are on their way.
    Closing,
}

impl PeerState {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            PeerState::Waiting => "waiting",
            PeerState::Connecting => "connecting",
            PeerState::Resting => "resting",
            PeerState::Up => "up",
            PeerState::Silent => "silent",
            PeerState::Stuck => "stuck",
        }
    }
}

impl FlowState {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            FlowState::Opening => "opening",
            FlowState::Open => "open",
            FlowState::Receiving => "receiving",
            FlowState::Sending => "sending",
            FlowState::Closing => "closing",
        }
    }
}
