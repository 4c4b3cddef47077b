//! Room 1 of the walk: the kernel hands over the connections that the look-up table names, and only
//! those.
//!
//! Takes a [`Table`] (made from the configuration), gives accepted sockets with the client's
//! address and the original destination, and far-edge sockets that speak from the client's own
//! address. The parts:
//!
//! * [`layers`] (pure) orders overlapping rules so that the kernel's sets, which know no order,
//!   still give "first match wins";
//! * [`rules`] (pure) renders one nftables table from it;
//! * [`tool`] runs the programs `nft` and `ip` for it;
//! * [`hold`] (pure) says what holds the closed rules when that table does not, [`routing`] speaks
//!   of routing rules with the kernel, [`holding`] puts both in force;
//! * [`install`] loads that table with the policy route it needs, looks whether they are still
//!   there, repairs them, and takes both away again;
//! * [`lease`] is the dead-man switch: interception of a peer's traffic holds only while its lease
//!   is renewed;
//! * [`tcp`] makes the sockets, [`tun`] the device for packets of what is no TCP;
//! * [`lock`] lets one daemon into a network namespace; [`own`] knows this host's own addresses;
//! * `watch` looks whether all is still there, `netlink` is the grammar in which the kernel is
//!   asked;
//! * [`findings`] reads what this host's settings mean for interception; it never changes them.
//!
//! The order at start: [`tcp::Listeners::open`], [`install::install`] with their ports,
//! [`lease::Lease::open`], then [`lease::Lease::renew`] for each peer that is up, every
//! [`lease::RENEW_EVERY`]. At the end drop the leases, then end the flows, then remove
//! [`install::Installed`]: open connections need its rules until they have ended. In between, ask
//! [`install::Installed::is_whole`] every second or so, let no lease be renewed while it is not,
//! and [`install::Installed::repair`] it.
//!
//! Connection tracking: forwarded connections need none in [`Mode::Tproxy`]. With [`Table::local`]
//! it is needed for this host's own, and the kernel knows no half measures: it then tracks
//! everything in this network namespace, forwarded traffic that no rule names too. That costs
//! memory and time for each connection, and new ones are dropped when
//! `net.netfilter.nf_conntrack_max` is reached. A router whose own applications need no
//! acceleration should have it off.

use crate::group::Group;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

pub mod findings;
pub mod hold;
pub mod holding;
pub mod install;
pub mod layers;
pub mod lease;
pub mod lock;
mod netlink;
pub mod own;
pub mod routing;
pub mod rules;
pub mod tcp;
pub mod tool;
pub mod tun;
mod watch;

pub use rules::Bounds;
pub use tcp::connect_from;

/// The bits of the packet mark (and of the conntrack mark) that say, all together, "deliver to this
/// host". Ours in both directions: nobody else on the host may use a mark that has all of them. All
/// other bits are left as they are.
///
/// Several bits, and high ones, because single low ones are everybody's (several uplinks, proxies,
/// VPNs): a foreign mark bears these by chance only if it is made of many bits too, and
/// [`findings`] tells when a routing rule does. They share none with [`MARK_OWN`], so that clearing
/// one leaves the other.
pub const MARK_DELIVER: u32 = 0x0478_0000;

/// The bits of the packet mark on everything that the daemon's own sockets send (`SO_MARK`), so
/// that it can never intercept itself. In the conntrack mark the same bits mark our connections to
/// servers on this very host.
pub const MARK_OWN: u32 = 0x0807_0000;

/// The bits of the packet mark that say, all together, "to the TUN device": packets of what is no
/// TCP. They share none with the other two.
pub const MARK_PACKETS: u32 = 0x7080_0000;

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
    /// What [`RuleSpec::peer`] means, by number: the peers of which one must be up.
    pub groups: Vec<Group>,
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
    /// Index of the group of peers that carry it.
    pub peer: usize,
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
