//! The receiving half: which datagrams came, the payloads that they carry, and when to acknowledge.
//! Stage 6 of the walk.
//!
//! `connection.rs` hands in the subfields of authenticated datagrams and takes whole payloads and
//! acknowledgements. Nothing here knows of sessions, addresses or the sending half.
//!
//! - `receiver` joins the others.
//! - `bitmap` knows which datagrams came.
//! - `assemble` puts payloads together from their segments.

pub(crate) mod assemble;
pub(crate) mod bitmap;
pub(crate) mod receiver;
