//! Two TPOs in network namespaces: client - A = WAN = B - server, real daemons, real kernel, the
//! lab's WAN between them.
//!
//! What is asked here is what only the kernel and the whole program decide; the protocol itself is
//! proved in the worlds of `mover` and `engine`. Needs root. Most tests run beside each other,
//! those that fill the machine alone (`turn.rs`); all make their namespaces and remove them.

mod site;
mod turn;

mod carry;
mod compress;
mod confined;
mod demand;
mod ends;
mod failure;
mod floods;
mod grants;
mod hold;
mod hostile;
mod keys;
mod liar;
mod local;
mod mesh;
mod multicast;
mod packets;
mod quic;
mod shares;
mod strangers;
mod transit;
