//! The sending half: payloads in, datagrams filled, acknowledgements taken. Stage 6 of the walk.
//!
//! `connection.rs` hands in payloads and the peer's acknowledgements, lends the path, and fills
//! datagrams from here. Nothing here knows of sessions, addresses or the receiving half.
//!
//! - `sender` joins the others.
//! - `queue` holds the payloads until they are acknowledged, and cuts them into segments.
//! - `flight` has a record of each datagram on its way.
//! - `tail` sends the end of a burst once more.
//! - `load` says what a datagram is for, and what it was filled with.

pub(crate) mod flight;
pub(crate) mod load;
pub(crate) mod queue;
pub(crate) mod sender;
mod tail;
