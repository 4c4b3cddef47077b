//! The configuration that `tpo init` prints: every key, explained, with its default. Keys that have
//! a default are commented out.

/// The sample. It lacks only the keys, and is good once they are filled in.
pub const SAMPLE: &str = include_str!("sample.toml");
