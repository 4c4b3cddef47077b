//! The transport protocol optimizer: everything of it that touches Linux or a person.
//!
//! The binary `tpo` only calls [`cli::main`]; tests and fuzz targets reach the rooms through this
//! library. The modules stand on floors, the lowest first: each uses those before it in this list,
//! never those behind it.

// --- What all rooms stand on -------------------------------------------------------------------

// System calls.
pub mod sys;

// This host apart from its traffic.
pub mod host;

// What people are shown.
pub mod status;

// The look-up table and the numbers of peers, pure.
pub mod table;

// The configuration.
pub mod config;

// --- The walk ----------------------------------------------------------------------------------

// The kernel's side of taking connections and packets.
pub mod intercept;

// UDP sockets towards the peers.
pub(crate) mod link;

// IP packets, pure.
pub mod ip;

// The edges of connections, what a peer may reach, what all peers share.
pub(crate) mod edge;

// The lanes as other threads have them.
pub(crate) mod lanes;

// All that is not TCP, between the TUN device and the lanes.
pub mod packets;

// The loop around one peer's engine.
pub(crate) mod lane;

// Who calls at the port.
pub(crate) mod demultiplexer;

// Accepts connections, holds the leases.
pub(crate) mod gate;

// --- What joins them, and what a person touches ------------------------------------------------

pub mod daemon;

pub mod cli;
