//! Edges: the ends of the application's own connections.

pub(crate) mod exit;
pub(crate) mod shares;
pub(crate) mod tcp;
