//! Flows as shown to people.

use std::time::{Duration, Instant};

use super::id::FlowId;
use crate::{Class, CompressionStats, FlowKey};

/// A flow as shown to people: what both kinds have, and what is the kind's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowInfo {
    /// Its number.
    pub flow: FlowId,
    /// Its addresses.
    pub key: FlowKey,
    /// How it is treated.
    pub class: Class,
    /// Opened by the near side.
    pub opened_here: bool,
    /// Both ends are connected, as far as this side knows; of packets: the far side knows the
    /// addresses.
    pub connected: bool,
    /// Application bytes packed for the far side.
    pub bytes_out: u64,
    /// Application bytes that came from the far side; of a stream: in order.
    pub bytes_in: u64,
    /// Bytes that are kept here for the flow, bookkeeping included.
    pub held_bytes: usize,
    /// What compression did with buffers that held its messages alone.
    pub compression: CompressionStats,
    /// When it was opened.
    pub since: Instant,
    /// When data last came or went, or was taken.
    pub moved: Instant,
    /// What only its kind has.
    pub kind: FlowKind,
}

/// What only one kind of flow has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowKind {
    /// A stream.
    Stream(StreamInfo),
    /// A flow of packets.
    Packets(PacketFlowInfo),
}

/// What only streams have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamInfo {
    /// The near application has ended its direction.
    pub finished_out: bool,
    /// The far application has ended its direction, and everything was taken.
    pub finished_in: bool,
    /// Bytes that may be packed before the far side must grant more.
    pub credit_left: u64,
    /// The window granted to the far side at present, bytes.
    pub window_bytes: u64,
}

/// What only flows of packets have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketFlowInfo {
    /// Packets of the far side that did not come, or came too late.
    pub lost_in: u32,
    /// Packets that came from the far side.
    pub packets_in: u32,
    /// Packets that were packed for the far side.
    pub packets_out: u32,
    /// How long packets wait here for the link, smoothed.
    pub wait: Duration,
}
