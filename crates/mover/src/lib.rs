//! The data mover: payloads, reliably and secretly, over lossy datagrams (claims 18-23, 28, 42).
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
pub use error::ParseError;
pub use event::{Event, Reason};
#[doc(hidden)]
pub use handshake::fuzz_handshake;
pub use handshake::{Guard, GuardError, HandshakeCounters, HandshakeDrops};
pub use identity::{Identity, KeyError, PreSharedKey, PublicKey};
pub use mover::Mover;
pub use stats::{
    Breaches, Counters, Drops, Gauges, ParityCounters, PathCounters, PathGauges, ReceiverCounters,
    ReceiverGauges, SenderCounters, SenderGauges, Stats,
};
pub use timer::Timer;
pub use transmit::{Origin, Transmit, TransmitKind};
