//! The transport protocol optimizer: everything of it that touches Linux or a person.
//!
//! The binary `tpo` only calls [`cli::main`]; tests and fuzz targets reach the rooms through this
//! library. The modules follow the walk of a byte where they are part of it; what a person touches
//! comes first.

pub mod address;
pub mod bench;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod demo;
pub mod facts;
pub mod group;
pub mod keygen;
pub mod log;
pub mod memory;
pub mod packet;
pub mod plain;
pub mod privilege;
pub mod service;
pub mod status;

// The walk.
pub mod demand;
pub mod edge;
pub mod gate;
pub mod intercept;
pub mod lane;
pub mod link;
pub mod multicast;
pub mod router;
pub mod shares;
pub mod tap;
pub mod transit;
pub mod turns;
pub mod workshop;

pub mod sys;
