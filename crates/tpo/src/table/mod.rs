//! The look-up table, pure: which addresses it may mean, and how its rules overlap.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use bounds::Bounds;
use carriers::AllCarriers;
use tpo_engine::CarriersId;

pub mod address;
pub mod bounds;
pub mod carriers;
pub mod interface;
pub mod layers;
pub mod marks;
pub mod peers;
pub mod protocols;

/// What to intercept, and how: the look-up table as the kernel's side of it needs it.
#[derive(Clone, Debug)]
pub struct Table {
    /// First match wins.
    pub rules: Vec<RuleSpec>,
    /// How packets reach the listener.
    pub mode: Mode,
    /// Also this host's own part in the traffic: its applications' connections are intercepted, and
    /// its servers can be reached from the client's address. Costs connection tracking for all
    /// traffic, forwarded or not.
    pub local: bool,
    /// Forwarded connections are intercepted only when they come in by one of these; empty: by any.
    pub interfaces: Vec<String>,
    /// How many peers there are.
    pub peers: usize,
    /// Whom [`RuleSpec::carriers`] means: the peers of which one must be up.
    pub carriers: AllCarriers,
    /// Far-edge sockets speak from the client's own address, so answers to it must come back to
    /// this host.
    pub far_source_is_client: bool,
    /// Protocols other than TCP that a rule names or that a peer may bring: their packets come and
    /// go by the TUN device. Empty: there is none.
    pub packets: Vec<u8>,
    /// How long answers to a packet that came out of the TUN device are ours, once one has come: as
    /// long as its flow may live without another.
    pub packets_rest: Duration,
    /// Interfaces from which packets to groups are copied to the TUN device; empty: from none.
    pub multicast: Vec<String>,
    /// What may be taken at most.
    pub bounds: Bounds,
    /// What holds the closed rules stays after an orderly end, and holds every packet of TCP that
    /// they name, not only those that open a connection.
    pub hold_closed: bool,
}

impl Table {
    /// These rules for so many peers, each of which carries by itself, and nothing else: TCP by
    /// `tproxy`, this host's own connections too, the default bounds. For tests of interception.
    pub fn of_rules(rules: Vec<RuleSpec>, peers: usize) -> Table {
        Table {
            rules,
            mode: Mode::Tproxy,
            local: true,
            interfaces: Vec::new(),
            peers,
            carriers: AllCarriers::of_peers(peers),
            far_source_is_client: true,
            packets: Vec::new(),
            packets_rest: Duration::ZERO,
            multicast: Vec::new(),
            bounds: Bounds::default(),
            hold_closed: false,
        }
    }
}

/// One line of the look-up table.
///
/// Both prefixes are of one family. A prefix of length 0 beside one of the other family means "any"
/// of that other family; a rule for any source and any destination of both families is two of
/// these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSpec {
    /// IANA protocol number, that of the rule's family: 1 or 58 for ICMP.
    pub protocol: u8,
    /// Address and prefix length; bits behind the prefix do not matter.
    pub source: (IpAddr, u8),
    /// Source ports, both ends included.
    pub source_ports: RangeInclusive<u16>,
    /// Address and prefix length; bits behind the prefix do not matter.
    pub destination: (IpAddr, u8),
    /// Destination ports, both ends included.
    pub destination_ports: RangeInclusive<u16>,
    /// Who carries it.
    pub carriers: CarriersId,
    /// What becomes of new connections while the peer's lease is absent.
    pub on_failure: OnFailure,
    /// A rule that is not enabled is as if it were not there.
    pub enabled: bool,
}

/// How a connection reaches the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The packet keeps its destination and is delivered to a transparent socket (nft `tproxy`).
    /// When nobody listens it goes on its plain way by itself.
    Tproxy,
    /// The packet's destination is rewritten to the listener (nft `redirect`), which asks the
    /// kernel for the original one. Needs connection tracking, and a listener on every address.
    Redirect,
}

/// What becomes of a new connection, or of a packet of another protocol, that a rule names while
/// nobody can carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnFailure {
    /// It goes its plain way.
    Open,
    /// It is refused: TCP by a reset, all else by an ICMP error. A flood is dropped in silence.
    Closed,
}
