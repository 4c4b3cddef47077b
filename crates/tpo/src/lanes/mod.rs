//! The lanes as other threads have them: how they give a lane work and what they see of it.
//!
//! A lane itself, the thread around one peer's engine, is in [`crate::lane`]. The gate gives it
//! connections, the TUN reader packets, the demultiplexer datagrams, another lane what goes on
//! from its peer ([`transit`]), multicast what the peer shall be asked for; the daemon's reports
//! ask it how it goes. Nobody waits for a lane, and nothing here knows the loop behind the handle.

pub(crate) mod batch;
pub(crate) mod handle;
pub(crate) mod inlet;
pub(crate) mod pulse;
pub(crate) mod report;
pub(crate) mod sighting;
pub(crate) mod transit;
