//! One flow: who it is, how far its life has come, and its two directions.
//!
//! A flow's life: opened (here, or by a full-form message from there) → answered or accepted → each
//! direction ends on its own with a FIN → closed when both have ended and everything was delivered;
//! or reset at any time. The directions are small machines: [`Outgoing`] knows what may be sent,
//! [`Incoming`] puts arriving data in order, [`Window`] decides how much the far side may send. The
//! driver owns the flows and routes between them, the schedule and the control messages.

use std::{fmt, time::Duration, time::Instant};

mod blocks;
mod incoming;
mod order;
mod outgoing;
mod packets;
mod window;

pub(crate) use blocks::{Blocks, PacketParts};
pub(crate) use incoming::{Chunk, Incoming};
pub(crate) use order::{Order, Place};
pub(crate) use outgoing::Outgoing;
pub use packets::Delivery;
pub(crate) use packets::PacketFlow;
pub(crate) use window::{Climate, Due, Memory, Window};

use crate::compress::{Compress, Record};
#[cfg(test)]
use crate::config::SPARSE;
use crate::config::{LONG, PAUSE, SPARSE_RATE_MS};
use crate::driver::Slot;
use crate::key::{FlowKey, StreamKey};
use crate::stats::CompressionStats;

/// A flow's number, the same at both sides. Bit 31 is set if the side with the higher public key
/// opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub u32);

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// How a flow is treated beside others: each class has a share of the link, in the proportion 16 :
/// 8 : 4 : 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// What keeps the network itself alive.
    Control = 0,
    /// Somebody waits for each answer.
    Interactive = 1,
    /// The usual: by behaviour. New and sparse flows are treated as interactive, long ones become
    /// bulk.
    Normal = 2,
    /// May wait.
    Bulk = 3,
}

impl Class {
    /// In the order of their numbers.
    pub const ALL: [Class; 4] = [
        Class::Control,
        Class::Interactive,
        Class::Normal,
        Class::Bulk,
    ];
    /// How many classes there are.
    pub const COUNT: usize = Class::ALL.len();

    pub(crate) fn from_number(number: u8) -> Option<Class> {
        Class::ALL.get(usize::from(number)).copied()
    }

    /// Whether somebody waits for its buffers: they go before others and are never larger than a
    /// segment, because a larger one would wait for all of its segments.
    pub(crate) fn is_urgent(self) -> bool {
        self <= Class::Interactive
    }
}

/// How a rule wants its flows to be treated. The far side is told when a flow opens, and treats its
/// own direction so too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Treatment {
    /// Beside others.
    pub class: Class,
    /// What is asked of compression; `None`: what is set for the peer.
    pub compress: Option<Compress>,
    /// Nothing of it is compressed together with other flows, or by what is known of them.
    pub isolated: bool,
    /// Datagrams wait for lost ones before them as long as parity takes to bring those back.
    pub in_order: bool,
}

impl Treatment {
    /// On the next leg of a flow that another peer brought with the wishes `before`: what this rule
    /// leaves open is as they say, and what was to be kept apart stays apart.
    #[must_use]
    pub fn after(self, before: &Treatment) -> Treatment {
        Treatment {
            class: if self.class == Class::Normal {
                before.class
            } else {
                self.class
            },
            compress: self.compress.or(before.compress),
            isolated: self.isolated || before.isolated,
            in_order: self.in_order || before.in_order,
        }
    }
}

impl From<Class> for Treatment {
    fn from(class: Class) -> Treatment {
        Treatment {
            class,
            compress: None,
            isolated: false,
            in_order: false,
        }
    }
}

/// How a flow ended, when not in order. The numbers are those on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// It did not.
    None = 0,
    /// The application reset its connection.
    Reset = 1,
    /// The destination refused the connection.
    Refused = 2,
    /// There is no way to the destination.
    Unreachable = 3,
    /// The destination did not answer.
    TimedOut = 4,
    /// The far TPO does not let its peer reach this destination.
    NotAllowed = 5,
    /// Too many flows, or too much memory in use.
    NoResources = 6,
    /// A TPO goes away.
    GoingAway = 7,
    /// The far TPO broke the rules of the flow.
    Protocol = 8,
    /// The peer restarted, or was given up: what it knew of the flow is lost.
    PeerRestarted = 9,
}

impl Status {
    /// An unknown number is some newer kind of reset.
    pub(crate) fn from_number(number: u8) -> Status {
        match number {
            0 => Status::None,
            2 => Status::Refused,
            3 => Status::Unreachable,
            4 => Status::TimedOut,
            5 => Status::NotAllowed,
            6 => Status::NoResources,
            7 => Status::GoingAway,
            8 => Status::Protocol,
            9 => Status::PeerRestarted,
            _ => Status::Reset,
        }
    }

    /// Whether the flow ended by its applications or the network around them, so that the data sent
    /// before still counts. The other kinds act at once.
    pub(crate) fn is_orderly(self) -> bool {
        match self {
            Status::None
            | Status::Reset
            | Status::Refused
            | Status::Unreachable
            | Status::TimedOut
            | Status::NotAllowed => true,
            Status::NoResources | Status::GoingAway | Status::Protocol | Status::PeerRestarted => {
                false
            }
        }
    }
}

/// A reset from the far side that waits until the data before it has been delivered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    /// Offset up to which the far side has sent data.
    pub(crate) at: u64,
    pub(crate) status: Status,
}

/// Everything kept for one flow. An idle one has no heap memory beside this.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) key: StreamKey,
    /// What its rule asks for.
    pub(crate) asked: Treatment,
    /// What its buffers did when compressed, since the first that held its messages alone.
    pub(crate) record: Option<Box<Record>>,
    /// How it is treated: what its rule asks for, or what its behaviour says.
    pub(crate) class: Class,
    pub(crate) behaviour: Behaviour,
    pub(crate) slot: Slot,
    /// In which list of flows by what they hold it stands; 0: in none.
    pub(crate) listed: u8,
    /// Opened by the near side.
    pub(crate) ours: bool,
    /// Opened here: the far side has said anything about it, so it knows the addresses.
    pub(crate) answered: bool,
    /// Its application is connected: opened here, or accepted.
    pub(crate) accepted: bool,
    /// The first message of a flow opened here was packed: the far side may know of it.
    pub(crate) open_sent: bool,
    /// `Event::Deliver` was given and not everything has been taken since.
    pub(crate) told_deliver: bool,
    /// `Event::Finish` was given.
    pub(crate) told_finish: bool,
    /// A credit message is in the control queue.
    pub(crate) credit_due: bool,
    /// A pause is in the control queue.
    pub(crate) pause_due: bool,
    /// Its application has ended, of which the far side, which has ended too, shall know soon.
    pub(crate) end_due: bool,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
    pub(crate) window: Window,
    pub(crate) ending: Option<Ending>,
    pub(crate) since: Instant,
    /// When data last came or went.
    pub(crate) moved: Instant,
}

impl Flow {
    pub(crate) fn new(
        key: StreamKey,
        asked: Treatment,
        slot: Slot,
        ours: bool,
        credit: u32,
        window: Window,
        now: Instant,
    ) -> Flow {
        Flow {
            key,
            asked,
            record: None,
            class: Behaviour::first_class(asked.class),
            behaviour: Behaviour::default(),
            slot,
            listed: 0,
            ours,
            answered: !ours,
            accepted: ours,
            open_sent: !ours,
            told_deliver: false,
            told_finish: false,
            credit_due: false,
            pause_due: false,
            end_due: false,
            outgoing: Outgoing::new(u64::from(credit)),
            incoming: Incoming::default(),
            window,
            ending: None,
            since: now,
            moved: now,
        }
    }

    /// So many bytes were packed for the far side, or none and the application has something again.
    /// True if it is another class from now on. `sparse`: up to so much of late somebody waits for
    /// it.
    pub(crate) fn behave(&mut self, bytes: usize, sparse: u32, now: Instant) -> bool {
        let life = now.saturating_duration_since(self.since);
        let class = self.behaviour.class(self.asked.class, bytes, sparse, life);
        std::mem::replace(&mut self.class, class) != class
    }

    /// The application has nothing more to send now.
    pub(crate) fn rest(&mut self, now: Instant) {
        self.behaviour
            .rest(now.saturating_duration_since(self.since));
    }

    /// Whether its application may be read: it is connected, has not ended, and nobody has reset
    /// the flow.
    pub(crate) fn may_send(&self) -> bool {
        self.accepted && self.ending.is_none() && !self.end_due && !self.outgoing.fin()
    }

    /// Whether the far side has yet to learn of the flow.
    pub(crate) fn must_open(&self) -> bool {
        self.ours && !self.open_sent
    }

    /// As if so many bytes had crossed each way.
    #[cfg(test)]
    pub(crate) fn start_at(&mut self, offset: u64) {
        self.outgoing.start_at(offset);
        self.incoming.start_at(offset);
        self.window.start_at(offset);
    }

    pub(crate) fn check_invariants(&self) {
        self.outgoing.check_invariants();
        self.incoming.check_invariants();
        assert!(
            self.incoming.end() <= self.window.granted(),
            "data was taken beyond the credit"
        );
        assert!(
            self.told_deliver <= (self.incoming.deliverable_bytes() > 0),
            "told of data that is not there"
        );
        assert!(
            self.accepted || self.incoming.delivered() == 0,
            "delivered before it was accepted"
        );
        if self.accepted && self.incoming.deliverable_bytes() > 0 {
            assert!(
                self.told_deliver,
                "data waits that the edge was not told of"
            );
        }
        if self.accepted && self.incoming.finished() {
            assert!(self.told_finish, "the end was not told");
        }
    }
}

/// What a flow has sent of late: a bucket that leaks while its application has nothing to send.
/// Waiting for a turn, for credit or for the end of an outage is no rest: on a slow link, bulk
/// would look like many short requests.
#[derive(Debug, Default)]
pub(crate) struct Behaviour {
    recent: u32,
    /// Milliseconds of the flow's life up to which it has leaked, if it rests; 49 days make a turn.
    rests: Option<u32>,
}

impl Behaviour {
    pub(crate) fn first_class(asked: Class) -> Class {
        if asked == Class::Normal {
            Class::Interactive
        } else {
            asked
        }
    }

    /// What the flow is, having sent so many bytes at this time of its `life`.
    fn class(&mut self, asked: Class, bytes: usize, sparse: u32, life: Duration) -> Class {
        if asked != Class::Normal {
            return asked;
        }
        let passed = self
            .rests
            .take()
            .map_or(0, |since| (life.as_millis() as u32).wrapping_sub(since));
        let leaked = if u128::from(passed) >= PAUSE.as_millis() {
            u32::MAX
        } else {
            passed * SPARSE_RATE_MS
        };
        self.recent = self
            .recent
            .saturating_sub(leaked)
            .saturating_add(bytes as u32)
            .min(2 * LONG);
        match self.recent {
            recent if recent <= sparse => Class::Interactive,
            recent if recent <= LONG => Class::Normal,
            _ => Class::Bulk,
        }
    }

    fn rest(&mut self, life: Duration) {
        self.rests.get_or_insert(life.as_millis() as u32);
    }
}

/// A flow as shown to people.
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
    /// Both ends are connected, as far as this side knows.
    pub connected: bool,
    /// The near application has ended its direction.
    pub finished_out: bool,
    /// The far application has ended its direction, and everything was taken.
    pub finished_in: bool,
    /// Application bytes packed for the far side.
    pub bytes_out: u64,
    /// Application bytes that came in order from the far side.
    pub bytes_in: u64,
    /// Bytes that wait here for the near application, bookkeeping included.
    pub held_bytes: usize,
    /// Bytes that may be packed before the far side must grant more.
    pub credit_left: u64,
    /// The window granted to the far side at present.
    pub window_bytes: u64,
    /// Of datagrams: how many of the far side's did not come, or came too late.
    pub lost_in: u32,
    /// Of datagrams: how many came.
    pub datagrams_in: u32,
    /// Of datagrams: how many were packed.
    pub datagrams_out: u32,
    /// Of datagrams: how long they wait here for the link, smoothed.
    pub wait: Duration,
    /// What compression did with buffers that held its messages alone.
    pub compression: CompressionStats,
    /// When it was opened.
    pub since: Instant,
    /// When data last came or went, or was taken.
    pub moved: Instant,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_flow_is_small() {
        let bytes = size_of::<Flow>() + Slot::COST + 2 * size_of::<(FlowId, Box<Flow>)>();
        assert!(bytes <= 328, "{bytes} bytes for an idle flow");
    }

    #[test]
    fn behaviour_tells_what_a_flow_is() {
        let mut flow = Behaviour::default();
        let class = |flow: &mut Behaviour, bytes, at| {
            flow.class(Class::Normal, bytes, SPARSE, Duration::from_millis(at))
        };
        assert_eq!(class(&mut flow, 0, 0), Class::Interactive, "new");
        assert_eq!(class(&mut flow, 64 << 10, 1), Class::Interactive);
        assert_eq!(class(&mut flow, 10_000, 2), Class::Normal);
        for at in 3..100 {
            class(&mut flow, 30_000, at);
        }
        assert_eq!(
            class(&mut flow, 300, 9_000),
            Class::Bulk,
            "it waited for its turn all the time"
        );
        flow.rest(Duration::from_millis(9_000));
        assert_eq!(class(&mut flow, 0, 9_400), Class::Bulk);
        flow.rest(Duration::from_millis(9_400));
        flow.rest(Duration::from_millis(9_800));
        assert_eq!(
            class(&mut flow, 300, 9_900),
            Class::Interactive,
            "after a pause"
        );
        // A terminal or a call, for an hour.
        for at in (10_000..3_600_000).step_by(20) {
            flow.rest(Duration::from_millis(at - 19));
            assert_eq!(class(&mut flow, 1_200, at), Class::Interactive, "at {at}");
        }
        for asked in [Class::Control, Class::Interactive, Class::Bulk] {
            assert_eq!(
                flow.class(asked, 10 << 20, SPARSE, Duration::from_secs(4_000)),
                asked,
                "its rule says so"
            );
        }
    }

    #[test]
    fn a_hub_keeps_what_the_first_rule_wants() {
        let open = Treatment::from(Class::Normal);
        let wishes = Treatment {
            class: Class::Bulk,
            compress: Some(Compress::Off),
            isolated: true,
            in_order: true,
        };
        assert_eq!(open.after(&wishes), wishes);
        assert_eq!(open.after(&open), open);
        let own = Treatment {
            compress: Some(Compress::Level(3)),
            ..Class::Interactive.into()
        };
        let both = own.after(&wishes);
        assert_eq!(
            (both.class, both.compress),
            (own.class, own.compress),
            "its own word goes before"
        );
        assert!(
            both.isolated && both.in_order,
            "what was kept apart stays apart"
        );
    }

    #[test]
    fn status_numbers_are_the_documented_ones() {
        for number in 0..=9 {
            assert_eq!(Status::from_number(number) as u8, number);
        }
        assert_eq!(Status::from_number(77), Status::Reset);
    }
}
