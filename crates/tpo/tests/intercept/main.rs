//! Interception as the kernel does it: client - TPO - server in three network namespaces, IPv4 and
//! IPv6.
//!
//! Needs root, `nft` and `ip`. The "daemon" here only says who connected where, and the server says
//! who it believes to talk to, so that each test can tell from the first line of a connection which
//! way it went.

mod net;

mod bounds;
mod far_edge;
mod install;
mod leases;
mod many_rules;
mod repair;
mod taking;
mod ways_back;
