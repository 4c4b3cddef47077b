//! Room 1 of the walk: the kernel hands over the connections that the look-up table names, and only
//! those.
//!
//! Takes a [`Table`](crate::table::Table) (made from the configuration), gives accepted sockets with the client's
//! address and the original destination, and far-edge sockets that speak from the client's own
//! address. The parts:
//!
//! * [`crate::table::layers`] (pure) orders overlapping rules so that the kernel's sets, which know
//!   no order, still give "first match wins";
//! * [`rules`] (pure) renders one nftables table from it;
//! * [`crate::host::program`] runs the programs `nft` and `ip` for it;
//! * [`hold`] (pure) says what holds the closed rules when that table does not, [`routing`] speaks
//!   of routing rules with the kernel, [`holding`] puts both in force;
//! * [`install`] loads that table with the policy route it needs, looks whether they are still
//!   there, repairs them, and takes both away again;
//! * [`lease`] is the dead-man switch: interception of a peer's traffic holds only while its lease
//!   is renewed;
//! * [`tcp`] makes the sockets, [`tun`] the device for packets of what is no TCP;
//! * [`crate::host::lock`] lets one daemon into a network namespace; [`crate::host::own_addresses`]
//!   knows this host's own addresses;
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
//! Connection tracking: forwarded connections need none in
//! [`Mode::Tproxy`](crate::table::Mode::Tproxy). With [`Table::local`](crate::table::Table::local)
//! it is needed for this host's own, and the kernel knows no half measures: it then tracks
//! everything in this network namespace, forwarded traffic that no rule names too. That costs
//! memory and time for each connection, and new ones are dropped when
//! `net.netfilter.nf_conntrack_max` is reached. A router whose own applications need no
//! acceleration should have it off.

mod commands;
pub mod error;
pub mod findings;
pub mod hold;
pub mod holding;
pub mod install;
pub mod lease;
pub mod names;
pub mod routing;
pub mod rules;
pub mod tcp;
pub mod tun;
mod watch;

pub use tcp::connect_from;
