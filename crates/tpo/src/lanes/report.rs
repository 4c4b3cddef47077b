//! What a lane tells of itself when it is asked: taken from the engine and from the lane's rooms by
//! the lane, given to the daemon's reports.

use std::net::{IpAddr, SocketAddr};

use super::sighting::Sighting;

/// What a lane knows of itself.
pub(crate) struct Report {
    /// The engine's figures.
    pub(crate) stats: tpo_engine::Stats,
    /// Whether a session stands, heard or not.
    pub(crate) connected: bool,
    /// Called on demand, and nothing needs it now.
    pub(crate) rests: bool,
    /// Where the peer is, as far as known.
    pub(crate) remote: Option<SocketAddr>,
    /// Counters of the lane itself.
    pub(crate) counters: Counters,
    /// Of packets.
    pub(crate) packets: PacketCounters,
    /// The last handshake datagram for other keys that came by the lane's own socket.
    pub(crate) stranger: Option<Sighting>,
    /// Groups of multicast that the peer asks for.
    pub(crate) groups_asked_here: Vec<IpAddr>,
    /// Groups of multicast that the peer is asked for.
    pub(crate) groups_asked_there: Vec<IpAddr>,
    /// LANs to which another TPO brings the peer's groups.
    pub(crate) lans_left: Vec<String>,
}

/// What happened at the lane's own doors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Connections that could not become flows because the peer was down when they arrived here.
    pub(crate) refused_not_connected: u64,
    /// The same for lack of room.
    pub(crate) refused_no_room: u64,
    /// Flows of the peer that were refused because its share of the descriptors is used up.
    pub(crate) no_descriptors: u64,
    /// Connects for the peer that were given up for newer ones, because its share of those without
    /// an answer was used up.
    pub(crate) connects_given_up: u64,
    /// Flows of the peer that no `accept` permits.
    pub(crate) not_allowed: u64,
    /// Batches that the kernel refused.
    pub(crate) send_failures: u64,
    /// Packets that the kernel dropped because the lane's socket was full.
    pub(crate) buffer_full: u64,
    /// ICMP errors that quote nothing that was sent: forged, or their quote is cut off.
    pub(crate) complaints_unproved: u64,
}

/// What became of packets in this lane.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PacketCounters {
    /// Sent on their plain way: no session with the peer, or it refused the flow.
    pub(crate) let_go: u64,
    /// Sent on their plain way because there is no room for another flow.
    pub(crate) too_many: u64,
    /// Sent on their plain way because no flow was there that they belong to.
    pub(crate) no_flow: u64,
    /// Lost for lack of room, or because their rule fails closed.
    pub(crate) dropped: u64,
    /// Given to the kernel for their destination.
    pub(crate) emitted: u64,
    /// That the kernel did not take.
    pub(crate) not_emitted: u64,
    /// From the peer, of another flow than they said.
    pub(crate) foreign: u64,
    /// From the peer, ICMP that is neither an echo nor an error about a packet.
    pub(crate) icmp: u64,
    /// Flows of the peer that were refused because another peer owns them.
    pub(crate) owned: u64,
}
