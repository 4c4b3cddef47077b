//! The edges of everything that is no TCP: one for each UDP flow and each ICMP exchange, which the engine keeps; here packets become its
//! datagrams and datagrams become packets again, with their original addresses.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tpo_engine::{Class, Delivery, FlowId, FlowKey, Peer, SendError};
use tracing::debug;

use crate::intercept::tun::Tun;
use crate::packet;
use crate::tap::{Batch, Opened};

/// What became of packets in this lane.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Sent on their plain way: no session with the peer, or it refused the flow.
    pub let_go: u64,
    /// Lost for lack of room, or because their rule fails closed.
    pub dropped: u64,
    /// Given to the kernel for their destination.
    pub emitted: u64,
    /// That the kernel did not take.
    pub not_emitted: u64,
    /// From the peer, of another flow than they said.
    pub foreign: u64,
}

/// The packet edges of one lane.
pub struct Packets {
    tun: Arc<Tun>,
    opened: Arc<Opened>,
    slot: usize,
    /// Flows that the peer has opened.
    theirs: HashMap<FlowId, FlowKey>,
    form: Vec<u8>,
    number: u16,
    /// What happened so far.
    pub counters: Counters,
}

impl Packets {
    /// The edges of the lane in this slot.
    pub fn new(tun: Arc<Tun>, opened: Arc<Opened>, slot: usize) -> Packets {
        Packets {
            tun,
            opened,
            slot,
            theirs: HashMap::new(),
            form: Vec::new(),
            number: 0,
            counters: Counters::default(),
        }
    }

    /// Gives packets of the near side to the engine. Those that it cannot have take their plain way, if their rule lets them.
    pub fn send(&mut self, peer: &mut Peer, batch: &Batch, now: Instant) {
        for item in &batch.items {
            let packet = &batch.bytes[item.bytes.clone()];
            let treatment = item.ruled.map_or((Class::Normal, Delivery::Timely), |rule| (rule.class, rule.delivery));
            if item.ruled.is_none() && !peer.has_exchange(&item.seen.key) {
                self.let_go(packet);
                continue;
            }
            self.form.clear();
            packet::pack(packet, &item.seen, &mut self.form);
            match peer.send_datagram(&item.seen.key, treatment, &self.form, now) {
                Ok(()) => {}
                Err(SendError::Full) => self.counters.dropped += 1,
                Err(SendError::NotConnected | SendError::Refused | SendError::TooManyFlows) => {
                    if item.ruled.is_some_and(|rule| !rule.fails_open) {
                        self.counters.dropped += 1;
                    } else {
                        self.let_go(packet);
                    }
                }
            }
        }
    }

    fn let_go(&mut self, packet: &[u8]) {
        self.counters.let_go += 1;
        if let Err(error) = self.tun.write(packet) {
            self.counters.not_emitted += 1;
            debug!(%error, "a packet cannot take its plain way");
        }
    }

    /// Gives what arrived to the kernel.
    pub fn deliver(&mut self, peer: &mut Peer) {
        let Packets { tun, form, number, counters, .. } = self;
        peer.take_datagrams(|arrived| {
            let key = if arrived.is_reply { arrived.key.turned() } else { *arrived.key };
            form.clear();
            *number = number.wrapping_add(1);
            if !packet::unpack(arrived.bytes, &key, *number, form) {
                counters.foreign += 1;
                return;
            }
            match tun.write(form) {
                Ok(()) => counters.emitted += 1,
                Err(error) => {
                    counters.not_emitted += 1;
                    debug!(%error, "the kernel does not take a packet");
                }
            }
        });
    }

    /// The peer has opened a flow: its answers are ours.
    pub fn open(&mut self, flow: FlowId, key: FlowKey) {
        self.opened.insert(key, self.slot);
        self.theirs.insert(flow, key);
    }

    /// A flow is over.
    pub fn end(&mut self, flow: FlowId) {
        if let Some(key) = self.theirs.remove(&flow) {
            self.opened.remove(&key, self.slot);
        }
    }
}
