//! The accelerator without an operating system: messages of flows to payloads and back (claims 7-18, 42, 47).
#![forbid(unsafe_code)]
