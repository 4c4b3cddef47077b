//! The data mover: payloads, reliably and secretly, over lossy datagrams (claims 18-23, 28, 42).
#![forbid(unsafe_code)]
