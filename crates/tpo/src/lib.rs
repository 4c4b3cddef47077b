//! The transport protocol optimizer: everything of it that touches Linux or a person.
//!
//! The binary `tpo` only calls [`cli::main`]; tests and fuzz targets reach the rooms through this
//! library. The modules stand on floors: each uses those above it in this list, never those below.

// What all rooms stand on.
pub mod config;
pub mod host;
pub mod status;
pub mod sys;
pub mod table;

// The walk.
pub mod demultiplexer;
pub mod edge;
pub mod gate;
pub mod intercept;
pub mod lane;
pub mod link;
pub mod packets;

// What joins them, and what a person touches.
pub mod cli;
pub mod daemon;
