//! Flows: what the engine knows of each, without a word about who else there is.
//!
//! A stream is [`stream`], joined of its two directions ([`outgoing`], [`incoming`]), the window
//! that it grants ([`window`]) and what it behaves like ([`behaviour`]). A flow of packets is
//! [`packets`], with where its packets wait ([`blocks`]) and the order of
//! what arrives ([`order`]). The driver owns the flows, in
//! `driver/streams.rs` and `driver/packets.rs`.

pub(crate) mod behaviour;
pub(crate) mod blocks;
pub(crate) mod id;
pub(crate) mod incoming;
pub(crate) mod info;
pub(crate) mod order;
pub(crate) mod outgoing;
pub(crate) mod packets;
mod sequence;
pub(crate) mod status;
pub(crate) mod stream;
pub(crate) mod treatment;
pub(crate) mod window;
