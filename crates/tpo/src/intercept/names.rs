//! The names and numbers under which the kernel has what is ours, and what is asked for by them:
//! tables, sets, counters, routes. [`super::rules`] makes them, [`super::lease`] fills and reads
//! them.

use crate::table::peers::PeerId;

/// The name of our nft table, of family `inet`. There is one daemon in a network namespace, so it
/// is fixed.
pub(crate) const TABLE: &str = "tpo";

/// The name of the set of groups that peers ask for, in our tables of the families `ip` and `ip6`:
/// copying is not for `inet`.
pub(crate) const GROUPS: &str = "groups";

/// Number of our routing table, and preference of the rule that leads to it: before the main table
/// (32766) and before most of what others put there, after the local table (0).
pub(crate) const ROUTE_TABLE: u32 = 478;

/// The same for packets that go to the TUN device.
pub(crate) const PACKET_TABLE: u32 = ROUTE_TABLE + 1;

/// The name of the set that holds a peer's lease.
pub(crate) fn lease_set(peer: PeerId) -> String {
    format!("alive_{}", peer.number())
}

/// The name of the set that says that the daemon, with this number of peers, lives and carries
/// anything.
pub(crate) fn daemon_set(peers: usize) -> String {
    // Behind those of the peers.
    lease_set(PeerId::new(peers))
}

/// What the daemon has seen of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has completed a handshake.
    Known,
    /// It completes many: a load tester, a site behind one address.
    Busy,
}

impl Standing {
    /// Both, from the higher one on.
    pub(crate) const ALL: [Standing; 2] = [Standing::Busy, Standing::Known];

    /// Its name in our table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Standing::Known => "known",
            Standing::Busy => "busy",
        }
    }

    /// The name of the set of sources that have it.
    pub(crate) fn set(self, v6: bool) -> String {
        format!("{}_{}", self.name(), if v6 { "v6" } else { "v4" })
    }
}

/// The counters of the table, by name.
pub mod counter {
    /// Connections handed to the listener.
    pub const INTERCEPTED: &str = "intercepted";
    /// SYNs that went their plain way because the peer's lease was absent.
    pub const NO_LEASE: &str = "no_lease";
    /// SYNs refused because the peer's lease was absent, or nobody listened, and the rule fails
    /// closed.
    pub const REFUSED: &str = "refused";
    /// SYNs that found a lease but nobody who listened.
    pub const NO_LISTENER: &str = "no_listener";
    /// Packets handed to the TUN device (`packets` alone is a word of nft).
    pub(crate) const PACKETS: &str = "intercepted_packets";
    /// SYNs beyond the bounds that went their plain way.
    pub const FLOOD: &str = "flood";
    /// SYNs beyond the bounds that were dropped, because their rule fails closed.
    pub(crate) const FLOOD_DROPPED: &str = "flood_dropped";
    /// Packets out of the TUN device whose answers could not be noted, because a set was full.
    pub const WAYS_FULL: &str = "ways_full";
    /// What the open rule at this place let go because the peer's lease was absent: SYNs of TCP,
    /// packets of the rest. Only where [`super::MOST_COUNTED`] allows.
    pub(crate) fn of_rule(place: usize) -> String {
        format!("{OF_RULE}{place}")
    }

    /// How the names of these begin.
    pub(crate) const OF_RULE: &str = "plain_";
    /// All of them, but for those of single rules.
    pub const ALL: [&str; 8] = [
        INTERCEPTED,
        NO_LEASE,
        REFUSED,
        NO_LISTENER,
        PACKETS,
        FLOOD,
        FLOOD_DROPPED,
        WAYS_FULL,
    ];
}

/// Of more rules than these what goes its plain way is counted only together: each costs a counter
/// and a chain, and `tpo status` asks for all of them.
pub(crate) const MOST_COUNTED: usize = 1_000;

/// Sources of each family that have completed a handshake, at most: beyond it further ones are
/// bounded as new ones are.
pub(crate) const MOST_KNOWN: usize = 65_536;

/// Of these the addresses of one /64 of IPv6, so that one host of many addresses does not use up
/// the places of other networks: an eighth, a large LAN with several addresses for each host.
pub(crate) const MOST_KNOWN_OF_SITE: usize = MOST_KNOWN / 8;
