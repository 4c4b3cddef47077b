//! Room 1 of the walk: the kernel hands over the connections that the look-up table names, and only
//! those.
//!
//! Takes a [`Table`](crate::table::Table), made from the configuration. Gives accepted sockets with
//! the client's address and the original destination, sockets of the far edge that speak from the
//! client's own address, and the TUN device. From the bottom up:
//!
//! * [`names`]: under which names and numbers the kernel has what is ours;
//! * [`error`], `commands`: runs `nft` and `ip`, and says in words what went wrong;
//! * [`tcp`] makes the sockets of TCP, [`tun`] the device for packets;
//! * [`rules`] (pure) renders the nftables table from the look-up table, whose rules
//!   [`crate::table::layers`] has put in order;
//! * [`routing`] speaks of routing rules with the kernel, [`hold`] (pure) says what holds the
//!   closed rules when that table does not, [`holding`] puts both in force;
//! * `watch` looks whether all is still there;
//! * [`install`] loads the table with the policy route it needs, repairs both, and takes them away
//!   again;
//! * [`lease`] is the dead-man switch: interception of a peer's traffic holds only while its lease
//!   is renewed;
//! * [`findings`] reads what this host's settings mean for interception; it never changes them.
//!
//! The order at start: [`tcp::Listeners::open`], [`install::install`] with their ports,
//! [`lease::Lease::open`], then [`lease::Lease::renew`] for each peer that is up, every
//! [`lease::RENEW_EVERY`]. At the end drop the leases, then end the flows, then remove
//! [`install::Installed`]: open connections need its rules until they have ended. In between, ask
//! [`install::Installed::is_whole`] every second or so, let no lease be renewed while it is not,
//! and [`install::Installed::repair`] it.
//!
//! Connection tracking: forwarded connections need none in
//! [`Mode::Tproxy`](crate::table::Mode::Tproxy). With [`Table::local`](crate::table::Table::local)
//! it is needed for this host's own, and the kernel knows no half measures: it then tracks
//! everything in this network namespace, forwarded traffic that no rule names too. That costs
//! memory and time for each connection, and new ones are dropped when
//! `net.netfilter.nf_conntrack_max` is reached. A router whose own applications need no
//! acceleration should have it off.

pub mod names;

mod commands;
pub mod error;
pub mod findings;
pub(crate) mod hold;
pub(crate) mod holding;
pub mod install;
pub mod lease;
pub mod routing;
pub mod rules;
pub mod tcp;
pub mod tun;
mod watch;
