//! Congestion control: how many bytes may be on their way, and how fast they leave.
//!
//! A path (`path/`) owns a [`Controller`] and hands it each acknowledgement as an [`AckReport`]
//! (round trip, delivery-rate sample, losses). In return the path reads `rate` for its pacer and
//! `window` as the limit of bytes in flight. This is stage 6 of the walk, the mover. All bytes are
//! bytes of the wire, IP headers included. Nothing here sends, keeps a timer or knows of payloads.
//!
//! - `auto`: a model of the path's bandwidth and min RTT with a learned loss floor; the default.
//! - `fixed`: a configured rate with a brake.
//! - `cubic`: CUBIC, for links that are shared with TCP.
//! - `scavenger`: takes what others leave.
//!
//! **A new congestion control** is one file (or folder) here, with a struct whose methods are
//! `on_ack_report`, `handle_time`, `set_flows`, `rate`, `window`, `bandwidth`, `phase` and
//! `on_outage_end`, as far as it has a use for them (`cubic.rs` is the
//! model to begin from). `controller.rs` gets a variant for it and an arm in each method;
//! `config.rs` gets a variant of `Congestion`, and the program's configuration the word for it. It
//! takes its input from `report.rs`, where it begins from `initial.rs` and its arithmetic from
//! `rate.rs`. `tests/matrix.rs` and `tests/fairness.rs` show what it does.

mod auto;
mod controller;
mod cubic;
mod fixed;
mod initial;
mod rate;
mod report;
mod scavenger;

pub(crate) use self::controller::Controller;
pub(crate) use self::report::{AckReport, Lost};
