//! Multicast: one thread that knows which groups our LANs listen to and which ones the peers ask
//! for, and sees to both.
//!
//! * Towards the peers it is a listener: what hosts of our LANs have joined (heard by packet
//!   sockets, [`igmp`], [`members`]), and what the configuration pins, is asked for at every peer
//!   from which an `accept` lets it come, in one message for all listeners ([`groups`]).
//! * Towards our LANs it is a router that asks who listens, and a member of what peers ask for:
//!   switches that look into IGMP then send it here.
//! * In the kernel it keeps the sets of groups that are copied into the TUN device. Nobody asks:
//!   nothing is copied.
//!
//! * For its peers it is a hub, where a rule with `transit` says so: what one of them wants for
//!   itself is asked for at the others.
//!
//! Packets themselves do not come this way: the TUN reader gives them to the lanes of the peers
//! that ask, [`crate::packets::multicast::emit`] sends out what comes, and `packets/onward.rs`
//! hands on what a hub's peers want. Loops are impossible: what a peer brought is never taken from
//! a LAN, and goes on only to peers that want it for themselves; a flow comes from one peer at a
//! time; only packets from where the kernel would send answers are taken, and each TPO takes one
//! off the hop limit.

mod plan;
mod thread;

pub mod groups;
pub(crate) mod membership;

pub(crate) mod igmp;
mod listen;
pub(crate) mod members;
pub(crate) mod neighbours;
pub(crate) mod site;

mod sockets;
pub(crate) mod taking;

pub(crate) mod emit;

pub(crate) use plan::Plan;
pub(crate) use thread::Multicast;
