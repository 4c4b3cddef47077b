//! The transport protocol optimizer: everything of it that touches Linux or a person.
//!
//! The binary `tpo` only calls [`cli::main`]; tests and fuzz targets reach the rooms through this library.
//! The modules follow the walk of a byte where they are part of it; what a person touches comes first.

pub mod cli;
pub mod config;
pub mod control;
pub mod intercept;
pub mod keygen;
pub mod log;
pub mod status;
pub mod sys;
