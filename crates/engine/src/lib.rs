//! The accelerator without an operating system: messages of flows to payloads and back (claims
//! 7-18, 42, 47).
//!
//! The walk of a byte through this crate: an edge (of the program) says that a flow is
//! [`Peer::readable`]; when the mover may send, the packet driver takes the flow's turn (the
//! schedule's order), reads its bytes through [`Source`] straight into a buffer behind a routing
//! header and a message header, and gives the buffer to the mover as a payload. At the far side the
//! payload is taken apart, each flow's bytes are put in order, and the edge is told to
//! [`Event::Deliver`] them.
//!
//! Nothing here opens a socket, reads a clock, takes a lock or draws randomness: time is an
//! argument, numbers come from the order of calls. One owner drives a [`Peer`] with the verbs that
//! the mover has too: `handle_…`, `poll_…`, `poll_timeout`.
#![forbid(unsafe_code)]

mod compress;
mod config;
mod driver;
mod edge;
mod error;
mod flow;
mod hash;
mod key;
mod message;
mod peer;
mod policy;
mod schedule;
mod stats;

pub use compress::{
    dictionary::{Work, Worked},
    settings::{Compress, Compression},
};
pub use config::{Config, Limits};
pub use driver::packets::Arrived;
pub use edge::{Event, Read, Source};
pub use error::{OpenError, PrefixError, SendError};
pub use flow::{
    id::FlowId,
    info::{FlowInfo, FlowKind, PacketFlowInfo, StreamInfo},
    status::Status,
    treatment::{Class, Delivery, PacketTreatment, Treatment},
};
pub use key::{FlowKey, KeyError, PacketKey, StreamKey};
pub use peer::Peer;
pub use policy::{CarriersId, Policy, Prefix, Rule};
pub use stats::{
    Breaches, CompressionStats, Counters, FlowCounters, Malformed, PacketCounters, Stats,
    TrafficCounters, Uncompressed, Usage,
};

#[doc(hidden)]
pub mod fuzzing;

/// Lets the tests of this crate share files with those outside.
#[cfg(test)]
extern crate self as tpo_engine;

/// Some time to begin at: tests need one, and only the distance to it counts.
#[cfg(test)]
#[allow(clippy::disallowed_methods)]
fn clock() -> std::time::Instant {
    std::time::Instant::now()
}
