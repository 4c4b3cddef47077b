//! The data mover: payloads, reliably and secretly, over lossy datagrams (claims 18-23, 28, 42).
//! Stage 6 of the walk.
//!
//! [`Mover`] is one peer's: its type says how it is driven. The packet driver hands it payloads and
//! takes payloads from it; the lane brings datagrams, time, and whatever the link says.
//!
//! The crate is pure. It opens no socket, starts no thread, takes no lock and reads no clock, and
//! all its decisions follow from its inputs and [`Config::seed`] (`clippy.toml` enforces it). Two
//! things come from the operating system: new keys ([`Identity::generate`]), and what TLS draws
//! during a handshake.
// `fec::field` alone has vector instructions; see there.
#![deny(unsafe_code)]

// Reliability.
mod account;
mod ack;
mod buffer_pool;
mod config;
mod congestion;
mod connection;
mod error;
mod event;
mod fec;
mod instance;
mod mover;
mod params;
mod path;
mod ranges;
mod recv;
mod send;
mod seq;
mod sessions;
mod stats;
mod subfield;
mod timer;
mod transmit;

// Secrecy.
mod crypto;
mod handshake;
mod identity;

#[doc(hidden)]
pub mod fuzzing;

pub use config::{Config, Congestion, Limits, RememberedPath};
pub use crypto::{HEADER, Outer, TAG, pair_hint, peek};
pub use event::{Event, Reason};
pub use handshake::{Guard, GuardError, HandshakeCounters, HandshakeDrops};
pub use identity::{Identity, KeyError, PreSharedKey, PublicKey};
pub use mover::Mover;
pub use stats::{
    Breaches, Counters, Drops, Gauges, ParityCounters, PathCounters, PathGauges, ReceiverCounters,
    ReceiverGauges, SenderCounters, SenderGauges, Stats,
};
pub use timer::Timer;
pub use transmit::{Origin, Transmit, TransmitKind};
