//! How a flow wants to be treated, as its rule says and the wire bears: its class, its compression,
//! and how its packets are carried.

use std::time::Duration;

use crate::Compress;

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

/// How the packets of a flow are carried. The numbers are those on the wire.
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

    /// How long a packet may wait here for the link. `busy`: how long something has waited without
    /// a pause. A call or a query has no use for one that is older; a log has. While the link is
    /// still finding out what it carries, a late one is better than none.
    pub(super) fn patience(self, busy: Duration) -> Duration {
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

    /// Whether its packets are given on in order, as far as that takes a moment only.
    pub(crate) fn keeps_order(self) -> bool {
        self != Delivery::Reliable
    }

    /// Whether its buffers are protected and go before others.
    pub(crate) fn is_urgent(self) -> bool {
        self == Delivery::Timely
    }
}

/// How the packets of a flow are treated and carried, as its opener's rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketTreatment {
    /// How the flow is treated.
    pub asked: Treatment,
    /// How its packets are carried.
    pub delivery: Delivery,
}

impl<T: Into<Treatment>> From<(T, Delivery)> for PacketTreatment {
    fn from((asked, delivery): (T, Delivery)) -> PacketTreatment {
        PacketTreatment {
            asked: asked.into(),
            delivery,
        }
    }
}

impl PacketTreatment {
    /// The class of its packets.
    pub(crate) fn class(&self) -> Class {
        self.delivery.class(self.asked.class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
