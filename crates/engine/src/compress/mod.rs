//! The compression engine (claims 17 and 32): buffers are compressed one by one, when it pays, at
//! the level that pays best at the moment.
//!
//! It takes packed buffers from the driver and gives them back, compressed or not; at the far side
//! it takes received payloads and gives back what was packed. [`codec`] joins the two directions:
//! [`compressor`] is the sender's, which alone decides, and [`decompressor`] the receiver's. What
//! was done stands in the buffer ([`mod@format`]), so the sides cannot disagree. A buffer may refer
//! to a dictionary: bytes of earlier buffers of the same direction. The sender proposes one, and
//! uses it when the receiver has said that it holds all of it. So a lost datagram never keeps
//! another buffer from being read. `docs/wire.md` section 4 has the bytes.

pub(crate) mod codec;
pub(crate) mod compressor;
pub(crate) mod decompressor;
pub(crate) mod dictionary;
pub(crate) mod format;
mod level;
pub(crate) mod record;
pub(crate) mod settings;

#[cfg(test)]
mod tests;
