//! What streams and flows of packets share: one peer has one link, one set of numbers, one memory.

use super::{
    control::{Control, ControlQueue, Reset},
    events::Events,
    memory::Memory,
    numbers::Numbers,
    path::Path,
};
use crate::{Counters, FlowId, Limits, Status, config::MAX_REFUSALS, schedule::Schedule};

/// What both kinds of flows use, each by its own methods. The driver owns it, and lends it to them.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    /// Initial credit that the peer gives to streams; none while there is no session.
    pub(crate) peer_credit: Option<u32>,
    pub(crate) path: Path,
    pub(crate) memory: Memory,
    pub(crate) numbers: Numbers,
    pub(crate) schedule: Schedule,
    pub(crate) control: ControlQueue,
    pub(crate) events: Events,
    pub(crate) counters: Counters,
    /// Used payloads, to be given back to the mover after each input.
    pub(crate) spent: Vec<Vec<u8>>,
}

impl Shared {
    /// `higher`: our public key is the higher one of the two.
    pub(crate) fn new(limits: Limits, higher: bool) -> Shared {
        Shared {
            limits,
            peer_credit: None,
            path: Path::new(),
            memory: Memory::new(limits.peer_bytes),
            numbers: Numbers::new(higher),
            schedule: Schedule::new(),
            control: ControlQueue::default(),
            events: Events::default(),
            counters: Counters::default(),
            spent: Vec::new(),
        }
    }

    /// A flow of the far side is refused that never came into being here.
    pub(crate) fn refuse(&mut self, flow: FlowId, protocol: u8, status: Status) {
        self.counters.flows.refused += 1;
        if !self.send_reset(flow, protocol, status) {
            self.counters.refusals_dropped += 1;
        }
    }

    /// The far side is told that a flow that has sent nothing here is over. False: too much
    /// waits for the link, and the far side is not told.
    pub(crate) fn send_reset(&mut self, flow: FlowId, protocol: u8, status: Status) -> bool {
        let has_room = self.control.resets() < MAX_REFUSALS;
        if has_room {
            self.control.push(Control::Reset(Reset {
                flow,
                sequence: 0,
                protocol,
                status,
            }));
        }
        has_room
    }

    /// Tells the peer whether the dictionary of this generation is there.
    pub(crate) fn answer(&mut self, generation: u8, holds: bool) {
        if !self.control.push_answer(generation, holds) {
            self.counters.answers_dropped += 1;
        }
    }
}
