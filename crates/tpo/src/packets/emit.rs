//! The last step of the way in: writes packets to the TUN device, from where the kernel sends them
//! on as any packet that came in somewhere.
//!
//! Packets of one flow in a row that are all alike go to the kernel as one, which cuts it: that
//! costs as much as one of them. Their payloads are copied together here, the only copy that this
//! room makes on the way in. A packet that crossed whole is written from where it lies.

use std::sync::Arc;

use tpo_engine::PacketKey;
use tracing::debug;

use super::form::{self, Unpacked};
use super::udp::{self, MOST_TOGETHER};
use crate::host::own_addresses::Own;
use crate::intercept::tun::{Tun, VNET};
use crate::ip::{Head, Refused};
use crate::lanes::report::PacketCounters;
use crate::table::address::any_form;

/// Bytes of payloads that go together: a packet has 65,535 at most, its headers included.
const MOST_BYTES: usize = 65_000;

/// The way to the kernel of one lane.
pub(super) struct Emitter {
    tun: Arc<Tun>,
    own: Arc<Own>,
    /// Headers that are being made.
    header: Vec<u8>,
    /// The last identification: tells packets that may be cut from each other.
    number: u16,
    /// The kernel cuts no packets for us: it is older than 6.2.
    one_by_one: bool,
    row: Row,
    pub(super) counters: PacketCounters,
}

/// Ordinary UDP packets of one flow in a row, all alike.
#[derive(Default)]
struct Row {
    key: Option<PacketKey>,
    head: Head,
    /// Bytes of each payload but the last one, which may be shorter.
    size: usize,
    count: usize,
    payloads: Vec<u8>,
}

impl Row {
    fn takes(&self, key: &PacketKey, head: Head, length: usize) -> bool {
        self.key.as_ref() == Some(key)
            && self.head == head
            && (1..=self.size).contains(&length)
            // Only the last one may be shorter.
            && self.payloads.len() == self.count * self.size
            && self.count < MOST_TOGETHER
            && self.payloads.len() + length <= MOST_BYTES
    }

    fn begin(&mut self, key: PacketKey, head: Head, size: usize) {
        (self.key, self.head, self.size, self.count) = (Some(key), head, size, 0);
        self.payloads.clear();
    }

    fn push(&mut self, payload: &[u8]) {
        self.payloads.extend_from_slice(payload);
        self.count += 1;
    }
}

impl Emitter {
    pub(super) fn new(tun: Arc<Tun>, own: Arc<Own>) -> Emitter {
        Emitter {
            tun,
            own,
            header: Vec::new(),
            number: 0,
            one_by_one: false,
            row: Row::default(),
            counters: PacketCounters::default(),
        }
    }

    /// Sends a packet of the near side on its plain way.
    pub(super) fn let_go(&mut self, packet: &[u8]) {
        if let Err(error) = self.tun.write(packet) {
            self.counters.not_emitted += 1;
            debug!(%error, "a packet cannot take its plain way");
        }
    }

    /// Emits a packet that crossed in this form, a packet of the flow `key` seen from the side that
    /// sent it. It may wait for the next ones until [`Emitter::flush`].
    pub(super) fn emit(&mut self, bytes: &[u8], key: &PacketKey) {
        match form::read(bytes, key) {
            Ok(Unpacked::Udp(head, payload)) => {
                if !self.row.takes(key, head, payload.len()) {
                    self.flush();
                    self.row.begin(*key, head, payload.len());
                }
                self.row.push(payload);
            }
            Ok(Unpacked::Whole { packet, router }) => {
                self.flush();
                // An error may come from any router on the way, but not from this one.
                if router.is_some_and(|router| any_form(router, |at| self.own.contains(at))) {
                    self.counters.foreign += 1;
                } else {
                    self.header.clear();
                    self.write(&[0; VNET], packet, 1);
                }
            }
            Err(Refused::Foreign) => self.counters.foreign += 1,
            Err(Refused::Icmp) => self.counters.icmp += 1,
        }
    }

    /// Nothing waits any longer.
    pub(super) fn flush(&mut self) {
        let Some(key) = self.row.key.take() else {
            return;
        };
        let payloads = std::mem::take(&mut self.row.payloads);
        if !self.emit_together(&key, &payloads) {
            self.emit_each(&key, &payloads);
        }
        self.row.payloads = payloads;
    }

    /// Gives the row to the kernel as one packet; false when the kernel does not take it, or there
    /// is one packet only.
    fn emit_together(&mut self, key: &PacketKey, payloads: &[u8]) -> bool {
        let (head, size, count) = (self.row.head, self.row.size, self.row.count);
        if count < 2 || self.one_by_one {
            return false;
        }
        self.header.clear();
        self.number = self.number.wrapping_add(count as u16);
        let row = udp::Row {
            size,
            bytes: payloads.len(),
        };
        let vnet = udp::emit_header_of_row(key, head, row, self.number, &mut self.header);
        let taken = vnet.is_some_and(|vnet| self.write(&vnet, payloads, count));
        self.one_by_one = !taken;
        taken
    }

    fn emit_each(&mut self, key: &PacketKey, payloads: &[u8]) {
        let (head, size) = (self.row.head, self.row.size);
        // A payload of nothing is a packet too.
        let empty = (size == 0).then_some(&[][..]);
        for payload in payloads.chunks(size.max(1)).chain(empty) {
            self.header.clear();
            self.number = self.number.wrapping_add(1);
            if udp::emit_header(key, head, payload, self.number, &mut self.header) {
                self.write(&[0; VNET], payload, 1);
            }
        }
    }

    /// Writes the headers and what is behind them. False when the kernel does not take several
    /// packets as one.
    fn write(&mut self, vnet: &[u8; VNET], behind: &[u8], packets: usize) -> bool {
        match self.tun.write_parts(vnet, [&self.header, behind]) {
            Ok(()) => {
                self.counters.emitted += packets as u64;
                true
            }
            Err(error) if packets > 1 => {
                debug!(%error, "the kernel takes no packets together; they go one by one from now on");
                false
            }
            Err(error) => {
                self.counters.not_emitted += 1;
                debug!(%error, "the kernel does not take a packet");
                true
            }
        }
    }
}
