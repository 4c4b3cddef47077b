//! Edges: the ends of the application's own connections.

pub mod exit;
pub mod shares;
pub mod tcp;
