//! Edges: the ends of the application's own connections.

pub mod exit;
pub mod multicast;
pub mod packets;
pub mod tcp;
