//! The configuration as it is meant: names are indices, rates are bytes per second, prefixes and
//! keys are parsed, paths are complete. The rest of the program takes this and never sees the text.
//! `config/check/` makes it.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tpo_engine::{Compress, Prefix};
use tpo_mover::{Congestion, PublicKey};

use crate::host::log::LogFormat;
use crate::table::address::Prefixes;
use crate::table::bounds::Bounds;
use crate::table::carriers::{AllCarriers, Carriers};
use crate::table::peers::{ByPeer, PeerId};
use crate::table::{Mode, OnFailure};

/// Where the control socket is when nothing else is said: a folder of its own, so that the daemon
/// needs no right in another.
pub(crate) const CONTROL: &str = "/run/tpo/tpo.sock";

/// A whole configuration in which every name is known and every value is inside its bounds.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The file it was read from.
    pub file: PathBuf,
    /// `[tpo]`.
    pub tpo: Tpo,
    /// `[intercept]`.
    pub intercept: Intercept,
    /// `[multicast]`.
    pub multicast: Multicast,
    /// The `[[peer]]` sections in order; rules and accepts name them by index.
    pub peers: ByPeer<Peer>,
    /// The `[[rule]]` sections in order: the first match wins.
    pub rules: Vec<Rule>,
    /// Whom the rules' carriers mean.
    pub carriers: AllCarriers,
    /// The `[[accept]]` sections in order.
    pub accepts: Vec<Accept>,
}

/// What this TPO is and does as a whole.
#[derive(Debug, Clone)]
pub struct Tpo {
    /// `name`: what this TPO is called in its logs and in `tpo status`.
    pub name: String,
    /// `private_key_file`, complete. Read by [`load_identity`](super::load_identity), which needs
    /// more rights than the rest.
    pub private_key_file: PathBuf,
    /// The line that names it.
    pub private_key_line: usize,
    /// `listen`: where datagrams of the peers arrive.
    pub listen: SocketAddr,
    /// `control`, complete: the Unix socket of `tpo status`.
    pub control: PathBuf,
    /// `user`: as whom it runs when root has started it; `None` ("auto"): as tpo or, where there is
    /// no such user, as a number of nobody's.
    pub user: Option<String>,
    /// `buffer_size`: the packet driver's largest buffer, bytes.
    pub buffer_size: usize,
    /// `segment_size`: the largest datagram (UDP payload), bytes. `None`: found from the path.
    pub segment_size: Option<u16>,
    /// `memory`: what all flows of all peers may hold together, bytes.
    pub memory: u64,
    /// `outage`: how long flows wait for a peer that is silent.
    pub outage: Duration,
    /// `idle`: how long a flow of packets lives without one when only one side has spoken.
    pub idle: Duration,
    /// `idle_both`: the same when both have.
    pub idle_both: Duration,
    /// `compress_isolation`: each buffer is compressed by itself, and none that holds several
    /// flows.
    pub(crate) compress_isolation: bool,
    /// `hold_closed`: closed rules hold after an orderly stop too, and for every packet of TCP.
    pub(crate) hold_closed: bool,
    /// `log`: what to log, in the words of [`log`](crate::host::log).
    pub log: String,
    /// `log_format`.
    pub log_format: LogFormat,
}

/// How connections are taken from the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intercept {
    /// By which mechanism of the kernel.
    pub mode: Mode,
    /// Also the connections of applications on the TPO's own host.
    pub local: bool,
    /// Only connections that come in through one of these; empty: through any.
    pub interfaces: Vec<String>,
    /// New TCP connections of one source in a second, at most.
    pub(crate) syn_rate_per_source: u32,
    /// The same of all sources together.
    pub(crate) syn_rate: u32,
}

impl Default for Intercept {
    fn default() -> Intercept {
        let bounds = Bounds::default();
        Intercept {
            mode: Mode::Tproxy,
            local: true,
            interfaces: Vec::new(),
            syn_rate_per_source: bounds.syns_per_source,
            syn_rate: bounds.syns,
        }
    }
}

/// What is carried to groups of many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multicast {
    /// `interfaces`: the LANs whose groups are taken and served.
    pub(crate) interfaces: Vec<String>,
    /// `querier`: ask who listens, where no other router does.
    pub(crate) querier: bool,
}

impl Default for Multicast {
    fn default() -> Multicast {
        Multicast {
            interfaces: Vec::new(),
            querier: true,
        }
    }
}

/// One far TPO.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// What it is called here.
    pub name: String,
    /// The key that it must prove.
    pub public_key: PublicKey,
    /// `pre_shared_key_file`, complete, and its line. Read by
    /// [`load_pre_shared`](super::load_pre_shared).
    pub pre_shared_key_file: Option<(PathBuf, usize)>,
    /// Where it listens; `None`: it calls us.
    pub endpoint: Option<SocketAddr>,
    /// `connect = "on-demand"`: it is called when it is needed, and left when nothing was carried
    /// for so long (`disconnect_after`).
    pub on_demand: Option<Duration>,
    /// What the link to it carries, bytes per second.
    pub rate: Option<u64>,
    /// Who decides how fast we send.
    pub congestion: Congestion,
    /// `compress`: what is done with what is sent to it, unless a rule says otherwise.
    pub compress: Compress,
    /// `loss_tolerance`: loss that counts as the path's own, as a share.
    pub loss_tolerance: f64,
    /// The line of its section.
    pub line: usize,
}

/// One row of the look-up table.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What it matches, and the carriers (by their number) and class of what it matches.
    pub matches: tpo_engine::Rule,
    /// Who carries it.
    pub carriers: Carriers,
    /// What becomes of new connections while the peer is not up.
    pub on_failure: OnFailure,
    /// It is also for what peers bring.
    pub transit: bool,
    /// A rule that is switched off is as if it were not there.
    pub enabled: bool,
    /// The line of its section.
    pub line: usize,
}

impl Rule {
    /// Its destinations are groups of multicast.
    pub fn is_for_many(&self) -> bool {
        self.matches.destination.address.is_multicast()
    }
}

/// What one peer may reach through us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    /// Which peer.
    pub peer: PeerId,
    /// IANA number of the protocol.
    pub protocol: u8,
    /// The addresses that the peer's clients may have: what `source` says, or where it is left out
    /// all destinations of the rules for the peer.
    pub sources: Arc<Prefixes>,
    /// The addresses that may be connected to.
    pub destination: Prefix,
    /// The ports that may be connected to.
    pub destination_ports: RangeInclusive<u16>,
    /// The address that the destination sees.
    pub source_address: SourceAddress,
    /// Of one group of many: it is asked for whether or not anybody listens.
    pub pinned: bool,
    /// The line of its section.
    pub line: usize,
}

/// From which address the far edge connects to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceAddress {
    /// From the client's own address and port: answers must come back through this TPO.
    Client,
    /// From the TPO's address: for networks whose answers would not come back through it.
    Tpo,
}
