//! Agreeing on keys with one pinned peer (docs/wire.md, section 2).
//!
//! [`machine`] is the whole of it; from `mover.rs` it takes handshake datagrams and time, and gives
//! it datagrams to send and, in the end, a session. Of the parts below none knows the machine:
//!
//! - `initiator` is our own attempt, `responder` our answer to one of the peer's; both send a
//!   `flight`, and both let `tls` speak TLS 1.3.
//! - `admission` says which of the peer's attempts may begin: cookies and limits.
//! - `wire` is the form of the datagrams and the proof that one of the pair made them; `guard` is
//!   that proof alone, for the demultiplexer.
//! - `draws` are our random numbers, `error` and `counters` what went wrong, by kind.

mod admission;
mod counters;
mod draws;
mod error;
mod flight;
mod fuzzing;
mod guard;
mod initiator;
mod machine;
mod responder;
mod tls;
mod wire;

pub use self::counters::{HandshakeCounters, HandshakeDrops};
pub(crate) use self::error::HandshakeError;
pub use self::fuzzing::fuzz_handshake;
pub use self::guard::{Guard, GuardError};
pub(crate) use self::machine::{Established, Handshake};
pub(crate) use self::wire::call_number;
