//! A flow of datagrams (UDP, ICMP, any protocol that is no stream): boundaries are kept, nothing is
//! put in order, no credit is asked for.
//!
//! Life: opened by its first datagram, here or there → answered by the far side → over when nothing
//! has moved for a while. What waits for the link waits in here, not longer than its [`Delivery`]
//! allows. The driver owns the flows of packets and routes between them and the schedule.

use std::{collections::VecDeque, time::Duration, time::Instant};

use super::{blocks::Waiting, order::Order};
use crate::{Class, PacketKey, Treatment, compress::Record, config::EXCHANGE_COST, driver::Slot};

/// How the datagrams of a flow are carried. The numbers are those on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Delivery {
    /// Never behind anything, protected against loss, dropped when they are too old to be of use:
    /// voice, games, tunnels, DNS.
    #[default]
    Timely = 0,
    /// In the order of their class, kept longer when the link is busy: logs, telemetry.
    Reliable = 1,
    /// As the first, without protection against loss.
    Plain = 2,
}

impl Delivery {
    pub(crate) fn from_number(number: u8) -> Option<Delivery> {
        match number {
            0 => Some(Delivery::Timely),
            1 => Some(Delivery::Reliable),
            2 => Some(Delivery::Plain),
            _ => None,
        }
    }

    /// How long a datagram may wait here for the link, when something has waited for so long
    /// already. A call or a query has no use for one that is older; a log has. While the link is
    /// still finding out what it carries, a late one is better than none.
    fn patience(self, busy: Duration) -> Duration {
        match self {
            Delivery::Timely | Delivery::Plain if busy < Duration::from_secs(1) => {
                Duration::from_millis(300)
            }
            Delivery::Timely | Delivery::Plain => Duration::from_millis(100),
            Delivery::Reliable => Duration::from_secs(2),
        }
    }

    /// The class of a flow whose rule asks for none.
    pub(crate) fn class(self, asked: Class) -> Class {
        match (self, asked) {
            (Delivery::Timely | Delivery::Plain, Class::Normal) => Class::Interactive,
            (_, asked) => asked,
        }
    }

    /// Whether its datagrams are given on in order, as far as that takes a moment only.
    pub(crate) fn keeps_order(self) -> bool {
        self != Delivery::Reliable
    }

    /// Whether its buffers are protected and go before others.
    pub(crate) fn is_urgent(self) -> bool {
        self == Delivery::Timely
    }
}

/// What went one way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) datagrams: u32,
    pub(crate) bytes: u64,
}

impl Count {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.datagrams = self.datagrams.wrapping_add(1);
        self.bytes += bytes as u64;
    }
}

/// Everything kept for one flow of datagrams.
#[derive(Debug)]
pub(crate) struct PacketFlow {
    pub(crate) key: PacketKey,
    /// What its rule asks for.
    pub(crate) asked: Treatment,
    /// What its buffers did when compressed, since the first that held its messages alone.
    pub(crate) record: Option<Box<Record>>,
    pub(crate) delivery: Delivery,
    pub(crate) slot: Slot,
    /// Opened by the near side.
    pub(crate) ours: bool,
    /// The far side knows the addresses.
    pub(crate) answered: bool,
    /// The far side does not want it: nothing is sent until then.
    pub(crate) refused_until: Option<Instant>,
    pub(crate) waiting: VecDeque<Waiting>,
    /// What they cost.
    pub(crate) waiting_bytes: usize,
    /// Since when something waits.
    busy_since: Instant,
    pub(crate) sent: Count,
    pub(crate) received: Count,
    /// Of what is received.
    pub(crate) order: Order,
    /// How long datagrams wait for the link, smoothed.
    pub(crate) wait: Duration,
    pub(crate) since: Instant,
    /// When something last came or went.
    pub(crate) moved: Instant,
}

impl PacketFlow {
    pub(crate) fn new(
        key: PacketKey,
        (asked, delivery): (Treatment, Delivery),
        slot: Slot,
        ours: bool,
        now: Instant,
    ) -> PacketFlow {
        PacketFlow {
            key,
            asked,
            record: None,
            delivery,
            slot,
            ours,
            answered: !ours,
            refused_until: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            busy_since: now,
            sent: Count::default(),
            received: Count::default(),
            order: Order::new(asked.in_order),
            wait: Duration::ZERO,
            since: now,
            moved: now,
        }
    }

    pub(crate) fn class(&self) -> Class {
        self.delivery.class(self.asked.class)
    }

    /// Whether something has gone each way.
    pub(crate) fn is_mutual(&self) -> bool {
        self.sent.datagrams > 0 && self.received.datagrams > 0
    }

    pub(crate) fn push(&mut self, packet: Waiting, now: Instant) {
        if self.waiting.is_empty() {
            self.busy_since = now;
        }
        self.waiting_bytes += packet.cost();
        self.waiting.push_back(packet);
    }

    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        let packet = self.waiting.pop_front()?;
        self.waiting_bytes -= packet.cost();
        if self.waiting.is_empty() && self.waiting.capacity() > 64 {
            self.waiting = VecDeque::new();
        }
        Some(packet)
    }

    /// Nothing waits any more: gives what did, for the caller to release.
    pub(crate) fn forget_waiting(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting).into_iter()
    }

    /// The oldest one is packed now.
    pub(crate) fn note_wait(&mut self, now: Instant) {
        if let Some(first) = self.waiting.front() {
            self.wait = (self.wait * 7 + now.saturating_duration_since(first.since)) / 8;
        }
    }

    /// Whether the oldest one has waited too long.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        let patience = self
            .delivery
            .patience(now.saturating_duration_since(self.busy_since));
        self.waiting
            .front()
            .is_some_and(|first| now.saturating_duration_since(first.since) > patience)
    }

    /// What it costs, with all that waits in it.
    pub(crate) fn cost(&self) -> usize {
        EXCHANGE_COST + self.waiting_bytes + self.order.cost()
    }

    pub(crate) fn check_invariants(&self) {
        assert_eq!(
            self.waiting_bytes,
            self.waiting.iter().map(Waiting::cost).sum::<usize>()
        );
        self.order.check_invariants();
    }
}
