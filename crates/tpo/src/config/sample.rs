//! The configuration that `tpo init` prints.
